"""The command line as such: version, help, and one line for every error, foreseen or not."""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import fewstep
from fewstep.cli.main import app, main
from fewstep.errors import FewstepWarning, FolderError, Interrupted
from fewstep.recipes.config import built_in_recipes


def raising(error: BaseException) -> Callable[..., object]:
    def load(*_: object, **__: object) -> object:
        raise error

    return load


def said(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> tuple[int, str]:
    """Return the exit code and stderr of a command in which something raises."""
    monkeypatch.setattr("fewstep.recipes.config.load_recipe", raising(error))
    code = main(["train", "digits"])
    return code, capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fewstep {fewstep.__version__}\n"
    for arguments in (
        ["-h"],
        ["--help"],
        ["train", "-h"],
        ["features", "-h"],
        ["features", "train", "-h"],
    ):
        assert main(arguments) == 0
        assert "Usage:" in capsys.readouterr().out


def test_help_names_values_in_capitals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "distill [OPTIONS] RECIPE\n" in shown
    assert "--teacher PATH" in shown
    assert main(["sample", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--steps NUMBER" in shown
    assert "1 to 100000" in " ".join(shown.split())
    assert not re.search(r"[<{]|x<=|\d{19}", shown)


def test_recipes_are_listed_with_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == built_in_recipes()
    assert all(len(line) < 100 for line in lines)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fewstep distill di", ["digits", "digits-encoders"]),
        ("fewstep export runs/x --to s", ["single-file"]),
        ("fewstep export runs/x --style k", ["kohya"]),
    ],
)
def test_a_shell_completes_names(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    found: list[str],
) -> None:
    monkeypatch.setenv("_FEWSTEP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        app(args=[], prog_name="fewstep")
    assert capsys.readouterr().out.split() == found


def test_the_list_of_commands_cuts_no_sentence_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unsupported operand"),
        RecursionError("maximum recursion depth exceeded"),
        KeyError("x"),
        RuntimeError("a\nb\n" * 500),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        AssertionError(),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_debug_shows_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    code, err = said(capsys, monkeypatch, error)
    assert code == 1
    assert err.startswith(f"fewstep: stopped by an unforeseen error ({type(error).__name__}")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert "--debug" in err
    for place in (["train", "digits", "--debug"], ["--debug", "train", "digits"]):
        assert main(place) == 1
        shown = capsys.readouterr().err
        assert "Traceback (most recent call last)" in shown
        assert shown.splitlines()[-1] == err.strip()


@pytest.mark.parametrize(
    ("error", "says", "expected"),
    [
        (MemoryError(), "out of memory", 1),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), "memory", 1),
        (RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory", 1),
        (FileNotFoundError(errno.ENOENT, "x", "a/b"), "a/b cannot be used: No such file", 1),
        (IsADirectoryError(errno.EISDIR, "x", "a"), "a cannot be used: Is a directory", 1),
        (OSError(errno.EIO, "x"), "a file cannot be used: Input/output error", 1),
        (FolderError("mine"), "fewstep: mine", 1),
        (Interrupted("stopped at 3"), "stopped at 3", 130),
        (KeyboardInterrupt(), "same command", 130),
    ],
)
def test_known_kinds_of_errors_have_lines_of_their_own(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    says: str,
    expected: int,
) -> None:
    code, err = said(capsys, monkeypatch, error)
    assert (code, err.count("\n")) == (expected, 1)
    assert says in err
    assert "unforeseen" not in err


def test_debug_after_two_dashes_is_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--", "--debug"]) == 1
    assert "recipe '--debug' is neither built in" in capsys.readouterr().err


def test_a_recipe_file_that_is_not_there_is_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "demos.yaml", "--plan"]) == 1
    assert capsys.readouterr().err == (
        "fewstep: recipe 'demos.yaml' does not exist. Check the path: a relative one starts at "
        "the current folder. Did you mean 'demo'?\n"
    )


def test_warnings_of_fewstep_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> object:
        for _unused in range(3):
            warnings.warn("a damaged\ncheckpoint", FewstepWarning, stacklevel=1)
        raise FolderError("end")

    monkeypatch.setattr("fewstep.recipes.config.load_recipe", load)
    assert main(["train", "digits"]) == 1
    assert capsys.readouterr().err == "fewstep: a damaged checkpoint\nfewstep: end\n"


@pytest.mark.parametrize("command", ["train", "distill", "report"])
@pytest.mark.parametrize("device", ["gpu", "banana", "cuda:99", "mps", "", "cpu:0", "cuda:-1"])
def test_a_device_that_is_not_there_is_never_the_cpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, device: str
) -> None:
    assert main([command, "digits", "--out", str(tmp_path / "r"), "--device", device]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fewstep: device must")
    assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("command", ["train", "distill", "report"])
@pytest.mark.parametrize("out", ["file", "file/run", "a" * 300])
def test_a_run_that_cannot_be_written_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, out: str
) -> None:
    (tmp_path / "file").write_text("mine")
    options = ["--set", "evaluate.samples=8", "--device", "cpu"]
    assert main([command, "digits", "--out", str(tmp_path / out), *options]) == 1
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("fewstep: ")]
    assert len(errors) == 1
    assert "cannot be written" in errors[0]
    assert (tmp_path / "file").read_text() == "mine"
