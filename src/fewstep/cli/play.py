"""`fewstep play`: a local page with a live guidance slider."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from fewstep.cli.options import Device, say
from fewstep.errors import FolderError, MissingError

FIRST_PORT = 7860


def play_command(
    models: Annotated[
        list[Path],
        typer.Argument(help="Folders of models: students, encoders, a teacher."),
    ],
    teacher: Annotated[
        Path | None, typer.Option(help="Folder of the teacher, drawn beside the student.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to serve; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help=f"Port; by default the first free from {FIRST_PORT}."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the images and masks that are edited on the page.")
    ] = Path("play"),
    device: Device = None,
) -> None:
    """Open a local page with a live guidance slider.

    It draws the student beside its teacher, and edits images.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingError(
            "the page needs Gradio, which is not installed. In the clone of fewstep, run: "
            'pip install -e ".[web]"'
        )
    port = free_port(host, port)
    from fewstep.cli.web.models import open_models
    from fewstep.cli.web.sources import Sources

    sources = Sources(out)
    opened = open_models(models, teacher, device)
    with TemporaryDirectory(prefix="fewstep-play-") as folder:
        # Gradio reads these when it is imported.
        os.environ.update(
            GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=folder
        )
        from fewstep.cli.web.page import Page, serving

        page = Page(opened, sources, Path(folder))
        with serving(page, host, port, browser=open_) as url:
            _wait(url)


def _wait(url: str) -> None:
    """Wait until the user presses Ctrl-C."""
    say(f"page: {url} (Ctrl-C closes it)")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("page closed")


def free_port(host: str, port: int | None) -> int:
    """Return the port to serve: `port`, or the first free one from 7860 on.

    Raises FolderError where none can be had at this address.
    """
    reason = ""
    for wanted in range(FIRST_PORT, FIRST_PORT + 100) if port is None else [port]:
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((host, wanted))
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        return wanted
    given = f"{host} with port {port}" if port else host
    raise FolderError(
        f"the page needs an address and a port that are free, got {given}: {reason}. Choose "
        "another --port or --host."
    )


command = play_command
