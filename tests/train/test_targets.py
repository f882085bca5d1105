"""Batches that share a pool: the examples of one call, dealt to several updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.distill.problem import Regression
from fewstep.errors import RangeError
from fewstep.train import TrainConfig, train
from fewstep.train.targets import Targets
from fewstep.train.trained import check_average

P, B = 4, 6


class Numbered:
    """A problem whose targets are the numbers of its examples; counts its calls."""

    calls = 0

    def __call__(self, x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        self.calls += 1
        drawn = torch.rand(len(x), generator=generator)
        return Regression(x, drawn, cond, drawn, x.clone())


class Student(nn.Module):
    """A linear denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        return self.scale * z


def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
    first = 100 * update + 10 * part
    x = torch.arange(first, first + B // parts, dtype=torch.float32)[:, None]
    return x, torch.arange(len(x))


def targets(pool: int, problem: Any = None, parts: int = 1) -> Targets:
    asked = problem or Numbered()
    return Targets(asked, batch, Accelerator(cpu=True), seed=3, parts=parts, pool=pool)


def test_a_pool_holds_the_examples_of_its_updates_and_deals_each_once() -> None:
    problem = Numbered()
    pooled = targets(P, problem)
    dealt = torch.stack([pooled(u, 0).z[:, 0] for u in range(4, 8)])
    assert problem.calls == 1
    assert dealt.shape == (P, B)
    wanted = [100.0 * u + k for u in range(4, 8) for k in range(B)]
    assert dealt.flatten().sort().values.tolist() == wanted
    # Examples of one update are dealt to others.
    assert all(len(set(one)) > 1 for one in (dealt // 100).tolist())


def test_what_belongs_to_an_example_stays_with_it() -> None:
    r = targets(P)(5, 0)
    assert isinstance(r.cond, Tensor)
    torch.testing.assert_close(r.v_target, r.z)
    torch.testing.assert_close(r.cond, r.z[:, 0].long() % 100)
    torch.testing.assert_close(r.w, r.phi)


def test_a_pool_is_the_same_wherever_a_run_goes_on() -> None:
    whole, again = targets(P), targets(P)
    for update in range(6):
        kept = whole(update, 0)
    assert all(torch.equal(a, b) for a, b in zip(kept[:2], again(5, 0)[:2], strict=True))


def test_the_parts_of_an_update_have_pools_of_their_own() -> None:
    problem = Numbered()
    pooled = targets(2, problem, parts=2)
    for update in (0, 1):
        for part in (0, 1):
            found = pooled(update, part).z[:, 0]
            assert {int(z) % 100 // 10 for z in found} == {part}
            assert len(found) == B // 2
    assert problem.calls == 2


def test_without_a_pool_a_batch_keeps_its_order() -> None:
    r = targets(1)(5, 0)
    assert r.z[:, 0].tolist() == [500.0 + k for k in range(B)]


def test_a_problem_that_asks_the_average_cannot_have_a_pool(tmp_path: Path) -> None:
    class Asking(Numbered):
        def lend(self, average: object) -> None:
            pass

    with pytest.raises(RangeError, match=r"pool must be 1 for Asking.*got 2"):
        train(Student(), Asking(), batch, TrainConfig(updates=2, batch_size=B, pool=2), tmp_path)


def test_matching_cannot_have_a_pool_either() -> None:
    """Its batch has an order, and its targets come from the student of every update."""

    class Matching(Numbered):
        networks = nn.ModuleList()

    with pytest.raises(RangeError, match="pool must be 1 for Matching"):
        check_average(Matching(), TrainConfig(pool=2))


def test_batches_of_several_sizes_cannot_share_a_pool() -> None:
    def sizes(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
        x = torch.zeros(B, 3 + update % 2)
        return x, torch.zeros(B)

    made = Targets(Numbered(), sizes, Accelerator(cpu=True), seed=3, parts=1, pool=2)
    with pytest.raises(RangeError, match=r"differ in size, got batches of \(6, 3\) and \(6, 4\)"):
        made(0, 0)


def test_a_batch_that_draws_from_the_global_generator_changes_no_dropout(tmp_path: Path) -> None:
    """The batches of a pool are made by one of its updates alone."""

    class Dropping(Student):
        calls = 0

        def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == kill_at:
                raise ConnectionError("killed")
            return self.scale * nn.functional.dropout(z, 0.5, self.training)

    def drawing(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
        torch.default_generator.manual_seed(update)
        torch.rand(1 + update)
        return batch(update, part, parts)

    config, kill_at = TrainConfig(updates=8, batch_size=B, pool=P, checkpoint_every=1), 0
    whole = train(Dropping(), Numbered(), drawing, config, tmp_path / "whole", progress=False)
    kill_at = 7
    with pytest.raises(ConnectionError):
        train(Dropping(), Numbered(), drawing, config, tmp_path / "again", progress=False)
    kill_at = 0
    again = train(Dropping(), Numbered(), drawing, config, tmp_path / "again", progress=False)
    assert torch.equal(whole.student.scale, again.student.scale)


def test_a_run_with_a_pool_is_another_run(tmp_path: Path) -> None:
    plain = TrainConfig(updates=4, batch_size=B)
    assert "pool" not in plain.identity()
    assert plain.model_copy(update={"pool": 2}).identity()["pool"] == 2
