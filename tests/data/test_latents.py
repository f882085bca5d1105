"""The cache of latents and text embeddings: the same bytes however it was made, and checked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.data import examples
from fewstep.data.latents import MANIFEST, Latents, cache_latents
from fewstep.errors import DataError, NonFiniteError, RangeError

COUNT, EACH = 10, 4
NAMES = [f"shard-{n:05d}.safetensors" for n in range(3)]
WHO = {"model": "abc", "data": "def"}


def values(index: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    x = index.float().reshape(-1, 1, 1, 1).expand(-1, 4, 2, 2) / 7
    return x, {"text": torch.sin(x[:, 0]), "ids": index * 3}


class Encoder:
    """Encodes by formula, and remembers what it was asked."""

    def __init__(self, single: bool = False) -> None:
        self.asked: list[range] = []
        self.single = single

    def __call__(self, part: range) -> tuple[Tensor, Cond]:
        self.asked.append(part)
        x, cond = values(torch.tensor(list(part)))
        return x, cond["text"] if self.single else cond


def cached(root: Path, encode: Any = None, **more: Any) -> Latents:
    message = {"identity": WHO, "count": COUNT, "shard_size": EACH, **more}
    return cache_latents(root, encode=encode or Encoder(), progress=False, **message)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_was_encoded_comes_back_in_any_order(tmp_path: Path) -> None:
    data = cached(tmp_path)
    assert (len(data), data.shape, data.num_classes) == (COUNT, (4, 2, 2), 0)
    for order in ([3], [9, 0, 4, 4, 1], list(range(COUNT))[::-1]):
        x, cond = data.batch(torch.tensor(order))
        x_true, cond_true = values(torch.tensor(order))
        assert torch.equal(x, x_true)
        assert isinstance(cond, dict)
        assert cond.keys() == cond_true.keys()
        assert all(torch.equal(cond[k], cond_true[k]) for k in cond)
        assert cond["ids"].dtype == torch.int64


def test_a_condition_of_one_tensor_stays_one(tmp_path: Path) -> None:
    _, cond = cached(tmp_path, Encoder(single=True)).batch(torch.tensor([2, 7]))
    assert isinstance(cond, Tensor)
    assert torch.equal(cond, values(torch.tensor([2, 7]))[1]["text"])


def test_floats_can_be_kept_in_half_the_space(tmp_path: Path) -> None:
    whole, half = cached(tmp_path), cached(tmp_path, dtype=torch.float16)
    assert whole.folder != half.folder
    sizes = [sum((d.folder / n).stat().st_size for n in NAMES) for d in (whole, half)]
    assert sizes[1] < 0.75 * sizes[0]
    x, _ = half.batch(torch.arange(COUNT))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, values(torch.arange(COUNT))[0], rtol=1e-3, atol=0)


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    first = cached(tmp_path)
    again = Encoder()
    assert cached(tmp_path, again).folder == first.folder
    assert again.asked == []
    other = cached(tmp_path, again, identity={**WHO, "data": "another"})
    assert other.folder != first.folder
    assert again.asked == [range(1), range(4), range(4, 8), range(8, 10)]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.data.test_latents import Encoder, cached

class Killed(Encoder):
    def __call__(self, part):
        if part.start == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(part)

cached(Path({out!r}), Killed())
"""


def test_killed_and_resumed_it_has_the_same_bytes(tmp_path: Path) -> None:
    code = KILLED.format(root=str(Path(__file__).parents[2]), out=str(tmp_path / "killed"))
    died = subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False)
    assert died.returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "killed").iterdir()
    assert {NAMES[0], MANIFEST} == set(contents(folder))
    with pytest.raises(DataError, match="1 of 3 shards"):
        Latents(folder)
    (folder / f".partial-0123abcd-{NAMES[1]}").write_bytes(b"cut short")
    rest = Encoder()
    resumed = cached(tmp_path / "killed", rest)
    assert rest.asked == [range(1), range(4, 8), range(8, 10)]
    whole = cached(tmp_path / "whole")
    assert contents(resumed.folder) == contents(whole.folder)
    assert resumed.content_hash() == whole.content_hash()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_a_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    data = cached(tmp_path)
    before = contents(data.folder)
    flip(data.folder / NAMES[1])
    opened = Latents(data.folder)
    opened.batch(torch.tensor([0, 9]))
    with pytest.raises(DataError, match=rf"{NAMES[1]} is damaged"):
        opened.batch(torch.tensor([0, 5]))
    with pytest.raises(DataError, match=rf"{NAMES[1]} is damaged.*Remove it and run again"):
        cached(tmp_path)
    (data.folder / NAMES[1]).unlink()
    with pytest.raises(DataError, match=rf"{NAMES[1]} is missing"):
        Latents(data.folder).batch(torch.tensor([5]))
    again = Encoder()
    cached(tmp_path, again)
    assert again.asked == [range(1), range(4, 8)]
    assert contents(data.folder) == before


def test_its_size_is_told_before_it_starts(tmp_path: Path) -> None:
    said: list[str] = []
    data = cached(tmp_path, say=said.append)
    # 16 + 4 floats and an int64 an example.
    assert len(said) == 1
    assert said[0].startswith("10 examples, 880 B in ")
    assert "880 B still to be written" in said[0]
    (data.folder / NAMES[2]).unlink()
    cached(tmp_path, say=said.append)
    assert "176 B still to be written" in said[1]


def test_a_disk_without_room_is_told_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("fewstep.data.latents.shutil.disk_usage", lambda _: usage(1000, 200, 800))
    encoder = Encoder()
    with pytest.raises(DataError, match="needs another 880 B and the disk has 800 B"):
        cached(tmp_path, encoder)
    assert encoder.asked == [range(1)]


@pytest.mark.parametrize("more", [{"count": 0}, {"shard_size": 0}])
def test_numbers_are_checked(tmp_path: Path, more: dict[str, int]) -> None:
    with pytest.raises(RangeError, match="at least 1"):
        cached(tmp_path, **more)


def test_an_encoder_that_loses_examples_is_found(tmp_path: Path) -> None:
    def loses(part: range) -> tuple[Tensor, Cond]:
        x, cond = values(torch.tensor(list(part)))
        return x[: 1 if len(part) == 1 else -1], cond

    with pytest.raises(DataError, match=r"gave \[3, 4\] examples for the 4 of 0 to 3"):
        cached(tmp_path, loses)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), torch.float32, "example 6 has values of x that are NaN or infinite"),
        (1e6, torch.float16, "as float16.*latents.dtype=float32"),
    ],
)
def test_what_is_not_finite_is_never_stored(
    tmp_path: Path, value: float, dtype: torch.dtype, message: str
) -> None:
    def overflows(part: range) -> tuple[Tensor, Cond]:
        x, cond = values(torch.tensor(list(part)))
        return torch.where((torch.tensor(part) == 6)[:, None, None, None], value, x), cond

    with pytest.raises(NonFiniteError, match=message):
        cached(tmp_path, overflows, dtype=dtype)
    (folder,) = tmp_path.iterdir()
    assert {NAMES[0], MANIFEST} == set(contents(folder)), "the good shard alone"


@pytest.mark.parametrize(("text", "match"), [("{", "not JSON"), ("[]", "format: None")])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str, match: str) -> None:
    data = cached(tmp_path)
    (data.folder / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=match):
        Latents(data.folder)
    (data.folder / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"has no cache\.json"):
        Latents(data.folder)


def test_it_is_walked_like_any_data(tmp_path: Path) -> None:
    data = cached(tmp_path)
    seen = []
    for update in range(5):
        index, _ = examples(data, 0, update, 2, part=0, parts=1)
        x, _ = data.batch(index)
        seen += (x[:, 0, 0, 0] * 7).round().int().tolist()
    assert sorted(seen) == list(range(COUNT))
    with pytest.raises(DataError, match="examples 0 to 9"):
        data.batch(torch.tensor([10]))
