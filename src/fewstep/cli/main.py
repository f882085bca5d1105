"""The `fewstep` command line: its commands, and one line for every error.

Nothing here imports torch before a command runs, so that `--help` is instant.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from typing import Annotated, TextIO, cast

import typer

from fewstep.cli import (
    cache,
    decode,
    demo,
    distill,
    encode,
    evaluate,
    export,
    features,
    img2img,
    inpaint,
    interpolate,
    pack,
    play,
    recipes,
    report,
    roundtrip,
    sample,
    show,
    train,
    transfer,
    unpack,
)
from fewstep.cli.help import Command
from fewstep.errors import (
    FewstepError,
    FewstepWarning,
    Interrupted,
    TimeUp,
    is_out_of_memory,
)

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
app = typer.Typer(
    name="fewstep",
    help="Distil a classifier-free guided diffusion model into a few-step student that still takes "
    "the guidance weight w.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)


def _print_version(value: bool) -> None:
    if value:
        from fewstep import __version__

        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


# `_print_version` acts on the one option, and `main` reads the other itself.
@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version, then exit.",
        ),
    ] = False,
    _debug: Annotated[
        bool,
        typer.Option("--debug", help="Print the traceback of an error. May also follow a command."),
    ] = False,
) -> None:
    """Distil a classifier-free guided diffusion model to a few steps, at any guidance weight w."""


COMMANDS = (
    demo,
    recipes,
    cache,
    train,
    distill,
    sample,
    img2img,
    inpaint,
    encode,
    decode,
    transfer,
    interpolate,
    play,
    evaluate,
    roundtrip,
    report,
    show,
    export,
    pack,
    unpack,
)
for module in COMMANDS:
    name = module.command.__name__.removesuffix("_command")
    app.command(name, cls=Command, context_settings=CONTEXT)(module.command)
app.add_typer(features.app, name="features", context_settings=CONTEXT)

# The base of every usage error: click's own class, or in later releases typer's copy of it.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
EXIT_TIME_UP = 75  # EX_TEMPFAIL of sysexits.h: try again

DEBUG = "--debug"
GUIDANCE_SCALE = "--guidance-scale"  # the option of other programs, whose value is 1 + w


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code.

    It is 0, 1 (error), 2 (usage), 75 (the time of --for is up) or 130 (Ctrl-C).

    Every error ends in one line on stderr. With `--debug` anywhere among the arguments its
    traceback comes first.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    options_end = given.index("--") if "--" in given else len(given)
    debug = DEBUG in given[:options_end]
    kept = [a for k, a in enumerate(given) if a != DEBUG or k > options_end]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", FewstepWarning)
        try:
            code = app(args=kept, standalone_mode=False)
        except typer.Exit as stop:
            return stop.exit_code
        except UsageError as error:
            if advice := _other_convention(error, kept):
                return _fail(advice, EXIT_ERROR)
            error.show()
            return error.exit_code
        except BaseException as error:
            if isinstance(error, SystemExit | GeneratorExit):
                raise
            if debug:
                traceback.print_exception(error)
            if isinstance(error, TimeUp):
                return _say_how_to_continue(error, kept)
            return _fail(*_explained(error))
    if code == EXIT_INTERRUPTED:  # typer returns this number for Ctrl-C, and prints nothing
        return _fail(*_explained(KeyboardInterrupt()))
    return code if isinstance(code, int) else 0


def _other_convention(error: Exception, arguments: list[str]) -> str | None:
    """Return the advice for a guidance scale given to a command that takes w, else None."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    unknown = getattr(error, "option_name", None)
    if unknown != GUIDANCE_SCALE or all(p.name != "w" for p in getattr(command, "params", ())):
        return None
    found = re.search(rf"{GUIDANCE_SCALE}[= ](-?\d+\.?\d*)", " ".join(arguments))
    if found is None:
        return None
    w = float(found[1]) - 1
    return f"fewstep uses w = guidance scale - 1; you probably mean --w {w:g}."


def _say_how_to_continue(error: TimeUp, arguments: list[str]) -> int:
    """Print the command that continues, once for all processes; return the exit code."""
    if os.environ.get("RANK", "0") != "0":
        return EXIT_TIME_UP
    world, here = (os.environ.get(n, "1") for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    command = shlex.join(["fewstep", *arguments])
    if world != "1":
        launcher = f"torchrun --nproc_per_node {here}" if world == here else "your launcher:"
        command = f"{launcher} -m {command}"
    return _fail(f"{str(error).removesuffix('.')}: {command}", EXIT_TIME_UP)


def _explained(error: BaseException) -> tuple[str, int]:
    """Return the line that explains an error, and the exit code."""
    if isinstance(error, Interrupted):
        return str(error), EXIT_INTERRUPTED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "stopped; run the same command to continue.", EXIT_INTERRUPTED
    if isinstance(error, FewstepError):
        return str(error), EXIT_ERROR
    text = " ".join(str(error).split())[:300]
    if is_out_of_memory(error):
        return (
            f"out of memory ({text or type(error).__name__}). Use a smaller batch or size, fewer "
            "images at once, or a machine with more memory.",
            EXIT_ERROR,
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = str(error.filename)[:300] if error.filename else "a file"
        return (
            f"{where} cannot be used: {os.strerror(error.errno)}. Check the path, its permissions "
            f"and the free space, or run the same command with {DEBUG} to see where.",
            EXIT_ERROR,
        )
    return (
        f"stopped by an unforeseen error ({type(error).__name__}: {text}). Run the same command "
        f"with {DEBUG} to see where, and please report it.",
        EXIT_ERROR,
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, FewstepWarning):
        typer.echo(f"fewstep: {' '.join(str(message).split())}", err=True)
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        (file or sys.stderr).write(text)


def _fail(message: str, code: int) -> int:
    typer.echo(f"fewstep: {' '.join(message.split())}", err=True)
    return code


def entry() -> None:
    """Console script."""
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        # A request to stop is answered like Ctrl-C. Training has a handler of its own.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = main()
    # Only a command that trained has imported this; the others must not wait for the import.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        if code:
            # Another process may be gone, and then an orderly end would wait for it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        from fewstep.train import leave

        leave()
    sys.exit(code)


if __name__ == "__main__":
    entry()
