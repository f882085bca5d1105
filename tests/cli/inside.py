"""The command line in this process, for tests that need no interpreter of their own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from fewstep.cli.main import main


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def fewstep(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as `tests.cli.conftest.fewstep` does, but in this process."""
    out, err = io.StringIO(), io.StringIO()
    given = [str(a) for a in arguments]
    with (
        _inside(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict("os.environ", environment),
    ):
        code = main(given)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())
