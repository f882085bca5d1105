"""Conditions of prompts, by the encoders of a model folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, RangeError
from fewstep.files.copies import copied_sha256, part_files
from fewstep.files.hub import local
from fewstep.folders.base import base_of
from fewstep.folders.read import family_of
from fewstep.models.card import CARD, read_card
from fewstep.models.prompts import encode


def encode_prompts(
    folder: Path | str,
    prompts: Sequence[str],
    *,
    device: str = "cpu",
    batch_size: int = 64,
    max_sequence_length: int | None = None,
) -> Cond:
    """Return the condition batch of the prompts, by the encoders of a pipeline folder or hub id.

    A tensor (B, L, D) for Stable Diffusion, a dict of tensors for other families. Prompts longer
    than the encoder can read are cut, with a warning.

    max_sequence_length: argument of the stock pipeline; by default what the folder's card says, and
    where it says nothing the pipeline's own.

    Raises FolderError: no such folder, or a part that is missing, pickled or damaged; RangeError:
    no prompts, a model that draws classes, or a pipeline without `max_sequence_length`.
    """
    if isinstance(prompts, str) or not prompts:
        raise RangeError(f"prompts = {prompts!r}; give a list of at least one prompt.")
    given = local(folder)
    if max_sequence_length is None and (given / CARD).is_file():
        max_sequence_length = read_card(given).max_sequence_length
    folder = base_of(given)
    family = family_of(folder)
    if not family.takes_prompts:
        raise RangeError(
            f"{folder} draws classes and takes no prompts; its condition is class ids."
        )
    return encode(
        family,
        folder,
        list(prompts),
        device=device,
        batch_size=batch_size,
        max_sequence_length=max_sequence_length,
    )


def encoders_sha256(folder: Path | str, *, prompts: bool = True) -> str:
    """Return the hash of the parts that make latents and conditions: not of the network's.

    What a cache of latents and text embeddings depends on; without prompts, `vae/` alone. It is
    the same for a folder that was saved of this one. Raises FolderError where a part is missing.
    """
    digest = hashlib.sha256()
    folder = base_of(local(folder))
    for part in sorted(family_of(folder).parts_in(folder) if prompts else {"vae"}):
        if not (folder / part).is_dir():
            raise FolderError(f"{folder / part} is missing; give a folder that has it.")
        for file, name in part_files(folder / part).items():
            digest.update(f"{part}/{name} {copied_sha256(file)}\n".encode())
    return digest.hexdigest()
