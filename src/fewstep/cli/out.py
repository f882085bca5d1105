"""Where the drawing commands write. One rule: only pictures that fewstep drew are replaced.

A file that exists, or a folder with files in it, is refused before any model is loaded, unless
fewstep drew what is there or `--overwrite` is given. A picture carries its settings, which is how
fewstep recognises its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.errors import FolderError, RangeError

KEY = "fewstep"  # of the settings in a picture, and of the metadata of a noise file
METADATA = "metadata.jsonl"
SHEET = "sheet.png"
RESULTS = "results.sqlite"
_PASSING = (".partial-", ".fewstep.lock")  # of a write that is going on, or was killed
_MOST_BYTES = 150  # of a file name that is made of a prompt or of another file's name


class Drawn(NamedTuple):
    """One image of a folder: its name, its PNG file, and what metadata.jsonl says of it."""

    name: str
    png: bytes
    line: dict[str, Any]


def is_folder(out: Path) -> bool:
    """Whether --out names a folder: it is one, or ends in no suffix, or in a number as v1.5."""
    return out.is_dir() or not out.suffix or out.suffix[1:].isdigit()


def check_out(
    out: Path,
    overwrite: bool,
    inputs: Iterable[Path] = (),
    suffixes: Sequence[str] = (".png",),
    folder: bool = True,
) -> None:
    """Raise RangeError or FolderError unless a command may write to `out`.

    Args:
        out: the file or folder to write.
        overwrite: also replace files that fewstep did not draw.
        inputs: what the command reads; it is never replaced.
        suffixes: of the files that the command can write; none where it writes a folder alone.
        folder: whether the command can also write a folder.
    """
    try:
        if suffixes:
            _check_kind(out, suffixes, folder)
        elif out.exists() and not out.is_dir():
            raise FolderError(f"--out must be a folder, got the file {out}. Choose another name.")
        _check_place(out)
        _check_inputs(out, inputs)
        if not overwrite:
            _check_contents(out)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link to itself
        reason = getattr(error, "strerror", None) or error
        raise FolderError(
            f"--out must be a place that can be written, got {str(out)[:200]!r}: {reason}. Choose "
            "another path."
        ) from None


def _check_kind(out: Path, suffixes: Sequence[str], folder: bool) -> None:
    wanted = " or ".join(s[1:].upper() if len(s) == 4 else s for s in suffixes)
    is_file, nameless = out.suffix.lower() in suffixes, out.name.lower() in suffixes
    if is_file and out.is_dir():
        raise FolderError(
            f"--out must be a file where it ends in {out.suffix}, got the folder {out}. Choose "
            "another name."
        )
    if not nameless and (is_file or (folder and is_folder(out))):
        return
    base = out if is_folder(out) else out.with_suffix("")
    base = out.with_name("result") if nameless else base
    names = [f"{base}{suffixes[0]}", *([str(base)] if folder else [])]
    raise RangeError(
        f"--out must be a {wanted} file{' or a folder' if folder else ''}, got {out}. Use "
        f"--out {' or '.join(names)}."
    )


def _check_place(out: Path) -> None:
    if out.is_symlink() and not out.exists():
        raise FolderError(f"--out must not be a broken link, got {out}. Choose another path.")
    if is_folder(out) and out.exists() and not out.is_dir():
        raise FolderError(
            f"--out must be a PNG file or a folder, got the file {out}. Choose another name."
        )
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    folder = there if there.is_dir() else there.parent
    if there != out.absolute() and not there.is_dir():
        raise FolderError(
            f"--out must lie in a folder, got {out}: {there} is a file. Choose another."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FolderError(
            f"--out must lie in a folder that can be written, got {out}: {folder} cannot. Choose "
            "another."
        )


def _check_inputs(out: Path, inputs: Iterable[Path]) -> None:
    place = out.resolve()
    for path in inputs:
        if place in (path.resolve(), path.resolve().parent if path.is_file() else None):
            raise FolderError(
                f"--out must not replace what the command reads, got {out} beside the input {path}."
                " Choose another name."
            )


def _check_contents(out: Path) -> None:
    if out.is_dir():
        name = foreign(out)
        found = f"the folder {out} with {name} in it" if name else None
    else:
        found = None if not out.exists() or is_drawn(out) else f"the file {out}"
    if found:
        raise FolderError(
            f"--out must not hold files that fewstep did not draw, got {found}. Choose another "
            "name, or pass --overwrite to replace files of the same name."
        )


def foreign(folder: Path) -> str | None:
    """Return the name of a file in a folder that no drawing command wrote there; None for none."""
    own = _listed(folder)
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(_PASSING) and not (path.name in own and is_drawn(path)):
            return path.name
    return None


def _listed(folder: Path) -> set[str]:
    """Return the names of the files that a drawing command wrote into a folder."""
    if not is_drawn(folder / METADATA):
        return set()
    lines = (folder / METADATA).read_text(encoding="utf-8").splitlines()
    names = (json.loads(line).get("file_name") for line in lines)
    return {METADATA, SHEET, *(n for n in names if isinstance(n, str) and n == Path(n).name)}


def is_drawn(path: Path) -> bool:
    """Whether a drawing command wrote a file: a picture, a noise file, or a metadata.jsonl."""
    if not path.is_file() or path.is_symlink():
        return False
    try:
        if path.name == METADATA:
            found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        else:
            found = [json.loads(_settings_text(path))]
    except Exception:  # noqa: BLE001  a file that cannot be read, for whatever reason, is not ours
        return False
    return bool(found) and all(isinstance(f, dict) and "command" in f for f in found)


def _settings_text(path: Path) -> Any:
    """Return the settings that a PNG, GIF or safetensors file carries, as JSON text."""
    if path.suffix.lower() == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            return (file.metadata() or {})[KEY]
    from PIL import Image

    with Image.open(path) as image:
        if image.format == "GIF":
            return image.info["comment"].decode().removeprefix(KEY)
        return image.info[KEY]


def check_results(out: Path, written: Iterable[str]) -> None:
    """Raise FolderError where a measurement would replace files of the names `written`.

    Files beside the results of an earlier measurement are its own.
    """
    there = [name for name in written if (out / name).exists()]
    if there and not (out / RESULTS).is_file():
        raise FolderError(
            f"--out must be a folder without a {there[0]}, or with earlier results ({RESULTS}), "
            f"got {out}. Choose another folder."
        )
    check_out(out, overwrite=True, suffixes=())


def short_name(text: str) -> str:
    """Return the beginning of a file name that is not longer than file systems allow."""
    return text.encode()[:_MOST_BYTES].decode(errors="ignore")


def write_folder(out: Path, drawn: Sequence[Drawn], sheet: bytes) -> None:
    """Write metadata.jsonl, the images and sheet.png; images drawn there before are removed.

    Raises FolderError where another process writes to the folder, or the disk is full.
    """
    from fewstep.atomic import atomic_write
    from fewstep.lock import writer_of

    lines, files = [], []
    for k, (name, _, line) in enumerate(drawn):
        files.append(f"{k:04d}{'-' if name else ''}{short_name(name)}.png")
        lines.append(json.dumps({"file_name": files[-1], **line}))
    with writer_of(out):
        for old in _listed(out) - {METADATA}:
            if is_drawn(out / old):
                (out / old).unlink()
        # First, so that a run that is killed leaves a folder that fewstep still knows as its own.
        atomic_write(out / METADATA, ("\n".join(lines) + "\n").encode())
        for file, (_, png, _) in zip(files, drawn, strict=True):
            atomic_write(out / file, png)
        atomic_write(out / SHEET, sheet)
