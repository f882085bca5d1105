"""Progress in a log file, and nothing private in the names of TensorBoard's files."""

from __future__ import annotations

import io
import json
import socket
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewstep.train.log import Log, read_metrics
from fewstep.train.progress import Progress, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(monkeypatch: pytest.MonkeyPatch, total: int, seconds: float, done: int = 0) -> list[str]:
    """Return the lines of a run of `total` updates that take so many seconds each."""
    out, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stderr", out)
    progress = Progress("teacher", done, total, clock)
    for _ in range(total - done):
        clock.now += seconds
        progress.step()
        progress.loss(0.25)
    progress.close()
    return out.getvalue().splitlines()


def test_a_log_file_has_a_line_every_so_often_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = lines(monkeypatch, 1000, 1.0)
    assert len(found) == 16  # one a minute
    assert found[0] == (
        "teacher: update 60 of 1000 (6 %), loss 0.2500, 1 updates per second, 16 min left"
    )
    assert len(lines(monkeypatch, 20, 3.0)) == 9  # of a short run one every tenth
    assert len(lines(monkeypatch, 1000, 0.001)) == 0
    assert len(lines(monkeypatch, 100_000, 1.0)) < 1700


def test_a_resumed_run_counts_the_time_of_its_own_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lines(monkeypatch, 1000, 1.0, done=900)
    assert found[0].startswith("teacher: update 960 of 1000 (96 %)")
    assert found[0].endswith("40 s left")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (130, "2 min"), (7300, "2 h 2 min"), (260_000, "3 days 0 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tensorboard_reads_the_rows_and_no_name_tells_the_host(tmp_path: Path) -> None:
    first = Log(tmp_path, 0)
    for update in (5, 10, 15):
        first.write(update, loss=1.0 / update, lr=0.1)
    first.close()
    again = Log(tmp_path, 10)  # a resume: the row of 15 is written again
    again.write(15, loss=7.0, lr=0.1)
    again.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, round(e.value, 3)) for e in board.Scalars("loss")] == [
        (5, 0.2), (10, 0.1), (15, 7.0),
    ]  # fmt: skip
    assert [r["update"] for r in read_metrics(tmp_path)] == [5, 10, 15]
    for path in (tmp_path / "tensorboard").iterdir():
        assert socket.gethostname() not in path.name
        assert socket.gethostname().encode() not in path.read_bytes()


@pytest.mark.parametrize("row", ["[1]", "5", '{"lr": 1}', '{"update": null}', "\udcff", "{"])
def test_a_row_that_is_not_whole_ends_the_log(tmp_path: Path, row: str) -> None:
    good = json.dumps({"update": 1, "loss": 2.0})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(f"{good}\n{row}\n{good}\n".encode(errors="surrogateescape"))
    assert read_metrics(tmp_path) == [{"update": 1, "loss": 2.0}]
