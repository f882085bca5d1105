"""Random changes of a folder of images."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.mutations import ODD, File, Text, files, place, texts
from tests.fuzz.originals import picture

NAMES = (
    *("README.md", "load.py", "data.py", "dataset_infos.json", "dataset_dict.json", "state.json"),
    *("train", "test", "validation", "a b.png", "-rf.png", "*.png", "[a].png", "a\nb.png", "é.png"),
    *("\udcff.png", "x" * 250, ".hidden.png", "Thumbs.db", "a.PNG", "a.jpeg", "a.tar", "a.zip"),
    *("a.webp", "a.npy", "a.txt", "metadata.jsonl", "metadata.csv", "metadata.parquet"),
    *("a.arrow", "a.tfrecord", "__init__.py", "a.png.png", "train.png", "0.png", "a%00.png"),
    *("http:", "hf:", "s3:", "a::b.zip", "{}", "a.svg", "a.gif", "a.json", "$HOME", "b.parquet"),
)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _vast(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that says it is vast."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


CONTENTS: dict[str, bytes] = {
    "nothing": b"",
    "text": b"a cat",
    "zeros": bytes(100),
    "code": b"import os\nos.mkdir('exploded')\n",
    "json": b'{"image": "x", "label": NaN}',
    "csv": b"file_name,label\n../x.png,\n0.png,1e400\n",
    "jsonl": b'{"file_name": "../../x.png", "label": -1}\n{"file_name": null}\n[]\n',
    "link": b"https://example.com/a.png",
    "picture": picture(99),
    "colours": picture(99, "RGB"),
    "alpha": picture(99, "RGBA"),
    "small": picture(99, "L", (1, 1)),
    "wide": picture(99, "L", (8, 60)),
    "cut": picture(99)[:-20],
    "vast": _vast(100_000, 100_000),
    "no width": _vast(0, 8),
    "parquet": b"PAR1\x00\x00\x00\x00PAR1",
    "pickle": pickle.dumps(os.mkdir),
}


@dataclass(frozen=True)
class Add:
    """Add a file, a folder or a link of an odd name."""

    at: int
    name: str
    content: str

    def apply(self, folder: Path) -> None:
        places = [
            folder,
            *sorted(p for p in folder.rglob("*") if p.is_dir() and not p.is_symlink()),
        ]
        path = places[self.at % len(places)] / self.name
        if path.is_dir() or (path.parent.is_symlink() and not path.parent.exists()):
            return
        path.unlink(missing_ok=True)
        if self.content == "folder":
            (path / "inside").mkdir(parents=True)
            (path / "inside" / "a.png").write_bytes(picture(5))
        elif self.content == "link out":
            path.symlink_to(folder.parent)
        elif self.content == "link in":
            path.symlink_to(folder)
        elif self.content == "link to nothing":
            path.symlink_to("nowhere")
        else:
            path.write_bytes(CONTENTS[self.content])


adds = st.builds(
    Add, place, st.sampled_from(NAMES),
    st.sampled_from((*CONTENTS, "folder", "link out", "link in", "link to nothing")),
)  # fmt: skip


@dataclass(frozen=True)
class Rename:
    """Give a file or folder an odd name."""

    at: int
    name: str

    def apply(self, folder: Path) -> None:
        paths = sorted(p for p in folder.rglob("*"))
        if not paths:
            return
        path = paths[self.at % len(paths)]
        suffix = path.suffix if self.at % 2 else ""
        to = path.with_name(self.name + suffix if len(self.name) < 200 else self.name)
        if not os.path.lexists(to):
            path.rename(to)


renames = st.builds(Rename, place, st.sampled_from(NAMES))


@dataclass(frozen=True)
class Row:
    """Change a row of metadata.jsonl, or the text of whatever says what the images are."""

    at: int
    key: str
    odd: Any
    text: Text

    def apply(self, folder: Path) -> None:
        path = folder / "metadata.jsonl"
        if not path.is_file():
            texts = sorted(p for p in folder.rglob("*") if p.suffix in (".csv", ".txt"))
            for path in texts[:1]:
                path.write_bytes(self.text.apply(path.read_bytes()))
            return
        rows = path.read_text("utf-8", "surrogateescape").splitlines() or ["{}"]
        try:
            row = {**json.loads(rows[self.at % len(rows)]), self.key: self.odd}
        except (ValueError, TypeError):
            row = {self.key: self.odd}
        rows[self.at % len(rows)] = json.dumps(row)
        path.write_text("\n".join(rows), "utf-8", "surrogateescape")


PATHS = ("../data/0.png", "/dev/zero", "https://example.com/a.png", "1.png")
rows = st.builds(
    Row,
    place,
    st.sampled_from(("file_name", "label", "text", "image", "x", "")),
    st.sampled_from((*ODD, *PATHS)),
    texts,
)

Change = Add | Rename | Row | File
changes: st.SearchStrategy[Change] = st.one_of(adds, adds, renames, rows, rows, files)
