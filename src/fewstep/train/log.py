"""metrics.jsonl and TensorBoard: one row every log_every updates, and no row twice."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from fewstep.atomic import atomic_write

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl up to the first one that is not whole."""
    path = folder / METRICS
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            rows.append({**row, "update": int(row["update"])})
        except (ValueError, TypeError, KeyError):
            break
    return rows


class Log:
    """The log of one training run, continued from an update."""

    def __init__(self, folder: Path, update: int) -> None:
        """Open the log. Rows after `update` belong to work that will be done again."""
        rows = [r for r in read_metrics(folder) if r["update"] <= update]
        text = "".join(json.dumps(r) + "\n" for r in rows)
        atomic_write(folder / METRICS, text.encode())
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._board = _Board(folder / "tensorboard", update + 1)

    def write(self, update: int, **values: float) -> None:
        """Add a row."""
        self._file.write(json.dumps({"update": update, **values}) + "\n")
        self._file.flush()
        self._board.write(update, values)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()


class _Board:
    """An event file of TensorBoard. torch's own writer would put the host's name into its name."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        # TensorBoard reads the event files of a folder in the order of their names.
        name = f"events.out.tfevents.{now:020.6f}.{os.getpid()}"
        self._file: BinaryIO = (folder / name).open("wb")
        self._records = RecordWriter(self._file)
        self._add(Event(wall_time=now, file_version="brain.Event:2"))
        # Rows from here on replace those that an earlier event file has.
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=now, step=purge_step, session_log=start))

    def write(self, update: int, values: dict[str, float]) -> None:
        rows = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        self._add(Event(wall_time=time.time(), step=update, summary=Summary(value=rows)))

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()
