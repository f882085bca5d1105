"""A time limit stops a run between updates, and the run resumes to the same weights."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep import time_limit
from fewstep.core.cond import Cond
from fewstep.distill.pretrain import Pretrain
from fewstep.errors import RangeError, TimeUp
from fewstep.limit import is_time_up, seconds_of
from fewstep.train import TrainConfig, TrainResult, read_metrics, train

CONFIG = TrainConfig(updates=6, batch_size=4, warmup=2, log_every=1)


class Net(nn.Module):
    passes = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        return self.weight * z


def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
    return torch.full((4, 2), 0.1 * update), torch.zeros(4, dtype=torch.int64)


def go(folder: Path) -> TrainResult:
    problem = Pretrain(torch.tensor([2]))
    return train(Net(), problem, batch, CONFIG, folder, device="cpu", progress=False)


def test_a_run_in_pieces_ends_like_a_run_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(tmp_path / "whole")
    for update in range(1, CONFIG.updates):
        # The limit is over before the first update ends, and each call still makes one update.
        with (
            time_limit(1e-9),
            pytest.raises(TimeUp, match=f"time is up at update {update} of 6.*same command"),
        ):
            go(tmp_path / "pieces")
    with time_limit(1e-9):
        pieces = go(tmp_path / "pieces")  # the last update is the end, not an interruption
    assert all(torch.equal(pieces.ema_state[k], v) for k, v in whole.ema_state.items())
    rates = [[row["lr"] for row in read_metrics(tmp_path / n)] for n in ("whole", "pieces")]
    assert rates[0] == rates[1]


def test_the_earliest_of_nested_limits_counts() -> None:
    assert not is_time_up()
    with time_limit(1e-9):
        time.sleep(1e-3)
        with time_limit(1000):
            assert is_time_up()
    with time_limit(1000):
        assert not is_time_up()
    assert not is_time_up()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_other_limits_are_refused(seconds: float) -> None:
    with pytest.raises(RangeError, match="above 0"), time_limit(seconds):
        pass


def test_times_are_read_as_people_write_them() -> None:
    expected = {"90s": 90, "5m": 300, "2h": 7200, "1h30m": 5400, " 1m5s ": 65}
    assert {text: seconds_of(text) for text in expected} == expected
    with time_limit("5m"):
        assert not is_time_up()


@pytest.mark.parametrize("text", ["0", "0s", "0m", "5x", "", "5", "-5m", "30m1h", "1.5h", "5 m"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(RangeError, match="--for must be a time above 0"):
        seconds_of(text, "--for")
    with pytest.raises(RangeError, match="above 0"), time_limit(text):
        pass
