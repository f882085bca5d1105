"""Ctrl-C and SIGTERM end every command in one line and with exit code 130."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.test_cli import one_line_error
from tests.forks import Forks

# Python code: the command line, which gets a signal when it reads a card. SIGNAL COMMAND...
WHILE_READING = """
import signal, sys
import fewstep.folders
from fewstep.cli.main import entry

_, number, *sys.argv[1:] = sys.argv
fewstep.folders.card_in = lambda folder: signal.raise_signal(signal.Signals[number])
entry()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_command_that_does_not_train_stops_in_one_line(
    tmp_path: Path, forks: Forks, number: str
) -> None:
    done = forks.run("-c", WHILE_READING, number, "show", "model", cwd=tmp_path)
    assert done.returncode == 130, done.stderr
    one_line_error(done, "stopped")
