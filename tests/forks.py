"""Start commands in processes of their own without importing torch in each.

A server is started once. It imports what every command needs and then forks a child for each
command that it reads from its standard input, one line of JSON with a list of them; when all of
them have ended it writes one line: their exit codes, negative for the number of a signal.

A command has "arguments" (those of Python: `-m MODULE ...`, `-c CODE ...` or `SCRIPT ...`), "env",
"cwd", and the files "stdout" and "stderr".
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
FEWSTEP = ("sklearn.datasets", "fewstep.cli.main", "fewstep.recipes.study")
LIMIT = 1800  # seconds; ends a command that hangs, far above what the busiest machine needs


class Forks:
    """The server, started at its first command.

    It stands for an interpreter that has just started: nothing has run in it but imports.
    """

    def __init__(self, modules: Sequence[str] = FEWSTEP) -> None:
        """Make a server that imports these modules, beside torch and diffusers."""
        self._modules = modules
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, *arguments: object, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        (done,) = self.together([arguments], [env], cwd)
        return done

    def together(
        self,
        commands: Sequence[Sequence[object]],
        env: Sequence[dict[str, str]],
        cwd: Path | None = None,
    ) -> list[subprocess.CompletedProcess[str]]:
        """Run commands at the same time, each with its own additions to the environment."""
        with tempfile.TemporaryDirectory() as folder:
            files = [[f"{folder}/{k}.{name}" for name in ("out", "err")] for k in range(len(env))]
            jobs = [
                {"arguments": [str(a) for a in arguments], "env": added, "cwd": str(cwd or folder),
                 "stdout": out, "stderr": err}
                for arguments, added, (out, err) in zip(commands, env, files, strict=True)
            ]  # fmt: skip
            codes = self._ask(jobs)
            said = [[Path(file).read_text() for file in two] for two in files]
            return [
                subprocess.CompletedProcess(job["arguments"], code, *two)
                for job, code, two in zip(jobs, codes, said, strict=True)
            ]

    def _ask(self, jobs: list[dict[str, Any]]) -> list[int]:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__, *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(jobs) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the server of forks.py has died"
        codes: list[int] = json.loads(answer)
        return codes

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()


def _fork(job: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(LIMIT)
        # A shell that starts the tests in the background lets them ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(job["stdout"], WRITE), 1)
        os.dup2(os.open(job["stderr"], WRITE), 2)
        os.environ.update(job["env"])
        os.chdir(job["cwd"])
        code = _run(job["arguments"])
    except BaseException:  # noqa: BLE001  a child must not go on as the server
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    first, *rest = arguments
    try:
        if first == "-m":
            sys.argv = rest
            sys.path.insert(0, os.getcwd())
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = ["-c", *rest[1:]]
            sys.path.insert(0, "")
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(first).parent))
            runpy.run_path(first, run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        sys.stderr.write(f"{stop.code}\n")
    else:
        return 0
    return 1


def main() -> None:
    """Serve until standard input ends."""
    sys.path.pop(0)  # the folder of the tests, which has names that packages have
    import diffusers
    import torch

    for name in sys.argv[1:]:
        importlib.import_module(name)
    assert diffusers.UNet2DConditionModel is not diffusers.DDIMScheduler  # lazy until named
    torch.set_num_threads(1)
    for line in sys.stdin:
        children = [_fork(job) for job in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
