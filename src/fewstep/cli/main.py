"""`fewstep`: the commands, and one line for every error that a person can cause.

Nothing here imports torch until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import cast

import typer

from fewstep.cli import (
    cache,
    decode,
    demo,
    distill,
    encode,
    evaluate,
    features,
    img2img,
    inpaint,
    interpolate,
    report,
    roundtrip,
    sample,
    show,
    train,
    transfer,
)
from fewstep.errors import FewstepError, Interrupted

app = typer.Typer(
    name="fewstep",
    help="Distil a guided diffusion model to a few steps, with a live guidance knob.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS = (
    demo,
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
    evaluate,
    roundtrip,
    report,
    show,
)
for module in COMMANDS:
    app.command(module.command.__name__.removesuffix("_command"))(module.command)
app.add_typer(features.app, name="features")

# The base of every usage error: click's own class, or in later releases typer's copy of it.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 (error), 2 (usage) or 130 (Ctrl-C)."""
    try:
        app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except UsageError as error:
        error.show()
        return error.exit_code
    except Interrupted as error:
        return _fail(str(error), EXIT_INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped; run the same command to go on.", EXIT_INTERRUPTED)
    except FewstepError as error:
        return _fail(str(error), EXIT_ERROR)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        where = f" ({error.filename})" if error.filename else ""
        advice = "free some space, or give another --out"
        return _fail(f"{os.strerror(error.errno or 0)}{where}; {advice}.", EXIT_ERROR)
    return 0


def _fail(message: str, code: int) -> int:
    typer.echo(f"fewstep: {' '.join(message.split())}", err=True)
    return code


def entry() -> None:
    """Console script."""
    code = main()
    # Only a command that trained has imported this; the others must not pay for it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        if code:
            # Another process may be gone, and with it an orderly farewell.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        from fewstep.train import leave

        leave()
    sys.exit(code)


if __name__ == "__main__":
    entry()
