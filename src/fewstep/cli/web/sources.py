"""Images and masks that the page edits, as files that the shown commands read."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fewstep.atomic import atomic_write
from fewstep.cli.out import short_name
from fewstep.data import open_image
from fewstep.errors import FolderError
from fewstep.show.sheet import contact_sheet

OWN = re.compile(r"-[0-9a-f]{8}\.\w+$")  # the end of the names that this page gives
SIDE = 512  # pixels of a drawn image that is to be edited: enough to paint a mask on


class Sources:
    """A folder of images. A file is named after its content, so none is ever replaced."""

    def __init__(self, folder: Path) -> None:
        """Keep files in `folder`, which is made when the first one is written.

        Raises FolderError where it cannot be written.
        """
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise FolderError(
                f"--out must be a folder that can be written, got {folder}. Choose another one."
            )
        # All of it is served to the browser.
        others = [p for p in folder.glob("*") if not OWN.search(p.name)]
        if others:
            raise FolderError(
                "--out must be empty or hold only images of this page, which serves all of it, got "
                f"{folder} with {others[0].name} in it. Choose another one."
            )
        self.folder = folder

    def upload(self, path: str) -> Path:
        """Return the place of an uploaded file. Raises DataError where it is no image."""
        open_image(Path(path))
        return self._kept(Path(path).read_bytes(), Path(path).stem, Path(path).suffix.lower())

    def picture(self, image: Image.Image, name: str) -> Path:
        """Return the place of an image."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return self._kept(buffer.getvalue(), name, ".png")

    def drawn(self, images: Tensor) -> list[Path]:
        """Return the places of images (B, C, H, W), each pixel enlarged."""
        scale = max(1, SIDE // max(images.shape[-2:]))
        return [self.picture(contact_sheet(x[None], 1, scale), "drawn") for x in images]

    def edited(self, editor: dict[str, Any] | None) -> tuple[Path, Path] | None:
        """Return the places of an editor's image and of its mask; None where one is missing."""
        background = (editor or {}).get("background")
        layers: Sequence[Image.Image] = (editor or {}).get("layers") or ()
        if background is None or not layers:
            return None
        mask = Image.new("L", background.size)
        for layer in layers:
            painted = layer.convert("RGBA").getchannel("A").point(lambda a: 255 if a > 127 else 0)
            mask.paste(255, (0, 0), painted)
        if mask.getextrema() == (0, 0):
            return None
        return self.picture(background.convert("RGB"), "image"), self.picture(mask, "mask")

    def _kept(self, data: bytes, name: str, suffix: str) -> Path:
        digest = hashlib.sha256(data).hexdigest()[:8]
        stem = short_name(re.sub(r"[^\w-]+", "-", name)).removesuffix(f"-{digest}")
        path = self.folder / f"{stem or 'image'}-{digest}{suffix}"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)
        return path
