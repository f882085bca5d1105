"""metrics.jsonl and TensorBoard: one row every log_every updates, none of them twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from fewstep.atomic import atomic_write

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the whole rows of metrics.jsonl; a last line that a kill cut short is left out."""
    path = folder / METRICS
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Log:
    """The log of one training run, going on from an update."""

    def __init__(self, folder: Path, update: int) -> None:
        """Open the log; rows after `update` belong to work that will be done again."""
        rows = [r for r in read_metrics(folder) if r["update"] <= update]
        text = "".join(json.dumps(r) + "\n" for r in rows)
        atomic_write(folder / METRICS, text.encode())
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=update + 1)

    def write(self, update: int, **values: float) -> None:
        """Add a row."""
        self._file.write(json.dumps({"update": update, **values}) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, update)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self._board.close()
