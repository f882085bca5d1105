"""Free memory is the least of what the machine, the container and the process allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep import resident


def test_the_least_of_machine_and_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(resident, "CONTAINER", (tmp_path / "none", limit))
    monkeypatch.setattr(resident, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(resident, "resident_now", lambda: 1 << 20)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    limit.write_text("max\n")
    assert resident.free_memory() == 2048 * 1024
    limit.write_text(f"{(1 << 20) + 1000}\n")
    assert resident.free_memory() == 1000
    limit.write_text("1000\n")
    assert resident.free_memory() == 0
    (tmp_path / "meminfo").unlink()
    limit.write_text("max\n")
    assert resident.free_memory() > 1 << 28  # the machine's memory, where no more is known
