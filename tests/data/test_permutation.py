"""Which examples an update sees: laws of counting."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data import indices
from fewstep.data.permutation import _epoch
from fewstep.errors import RangeError

SEEDS = st.integers(0, 2**31)
BATCHES = st.integers(1, 40)
LENGTHS = st.integers(1, 60)
law = settings(deadline=None, derandomize=True, max_examples=60)


def walk(seed: int, updates: int, batch: int, length: int) -> list[int]:
    return torch.cat([indices(seed, u, batch, length) for u in range(updates)]).tolist()


@law
@given(seed=SEEDS, batch=BATCHES, length=LENGTHS)
def test_each_epoch_is_a_permutation(seed: int, batch: int, length: int) -> None:
    seen = walk(seed, -(-3 * length // batch), batch, length)
    for epoch in range(3):
        assert sorted(seen[epoch * length : (epoch + 1) * length]) == list(range(length))


@law
@given(seed=SEEDS, update=st.integers(0, 500), batch=BATCHES, length=LENGTHS)
def test_shape_and_range(seed: int, update: int, batch: int, length: int) -> None:
    index = indices(seed, update, batch, length)
    assert index.shape == (batch,)
    assert index.dtype == torch.int64
    assert 0 <= int(index.min()) <= int(index.max()) < length


@law
@given(
    seed=SEEDS,
    update=st.integers(0, 500),
    batch=st.integers(1, 12),
    length=LENGTHS,
    world=st.integers(1, 5),
)
def test_ranks_partition_the_global_batch(
    seed: int, update: int, batch: int, length: int, world: int
) -> None:
    parts = [indices(seed, update, batch, length, rank=r, world=world) for r in range(world)]
    assert torch.equal(torch.cat(parts), indices(seed, update, world * batch, length))


@law
@given(seed=SEEDS, batch=BATCHES, length=LENGTHS, other=SEEDS, updates=st.permutations(range(6)))
def test_pure_function_of_its_arguments(
    seed: int, batch: int, length: int, other: int, updates: list[int]
) -> None:
    """Neither the order of the calls, nor a cold cache, nor writing into a result matters."""
    want = {u: indices(seed, u, batch, length).clone() for u in range(6)}
    torch_state = torch.get_rng_state()
    for u in updates:
        indices(other, u, batch, length).zero_()
        indices(seed, u, batch, length).zero_()
        _epoch.cache_clear()
        assert torch.equal(indices(seed, u, batch, length), want[u])
        assert torch.equal(indices(seed, u, batch, length), want[u])
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_epochs_and_seeds_differ() -> None:
    first, second, other = (indices(s, u, 100, 100).tolist() for s, u in ((0, 0), (0, 1), (1, 0)))
    assert first != second
    assert first != other
    assert second != other


def test_the_draw_is_fair() -> None:
    """Over 400 seeds each of 5 examples comes first about 80 times: 5 sigma is 40."""
    firsts = Counter(int(indices(seed, 0, 1, 5)) for seed in range(400))
    assert all(abs(firsts[k] - 80) < 40 for k in range(5))


@pytest.mark.parametrize(
    ("update", "batch", "length", "rank", "world", "message"),
    [
        (-1, 4, 10, 0, 1, "numbered from 0"),
        (0, 0, 10, 0, 1, "at least 1"),
        (0, 4, 0, 0, 1, "at least 1"),
        (0, 4, 10, 2, 2, "0 to world - 1"),
        (0, 4, 10, -1, 2, "0 to world - 1"),
        (0, 4, 10, 0, 0, "0 to world - 1"),
    ],
)
def test_wrong_numbers_are_explained(
    update: int, batch: int, length: int, rank: int, world: int, message: str
) -> None:
    with pytest.raises(RangeError, match=message):
        indices(0, update, batch, length, rank=rank, world=world)
