"""What transformers of 2x2 patches have in common: Flux, Chroma, Qwen-Image.

States are latents (B, C, H, W); the networks take a token of 4 C numbers for each 2x2 patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FolderError
from fewstep.files.parts import is_count, size_of

SIZE = 128  # of the latents, written into the stock pipelines: no setting of a network says it


def pack(z: Tensor) -> Tensor:
    """Return the tokens (B, H/2 W/2, 4 C) of latents (B, C, H, W)."""
    count, channels, height, width = z.shape
    patches = z.reshape(count, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, 4 * channels)


def unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Return the latents of this shape (B, C, H, W); `pack` undone."""
    count, channels, height, width = shape
    patches = tokens.reshape(count, height // 2, width // 2, channels, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(shape)


def positions(z: Tensor) -> Tensor:
    """Return the ids (H/2 W/2, 3) of the tokens of latents (B, C, H, W): 0, row, column."""
    rows, columns = (torch.arange(n // 2, device=z.device, dtype=z.dtype) for n in z.shape[2:])
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).reshape(-1, 3)


def packed_shape(config: Mapping[str, Any], path: Path) -> tuple[int, int, int]:
    """Return (C, H, W) of the latents, H = W = 128 unless the config says `sample_size`.

    `sample_size` is no setting of these networks, and diffusers keeps it without using it: it is
    how a folder says that its model works on another size. Raises FolderError.
    """
    features: Any = config.get("in_channels")
    if not is_count(features) or features % 4:
        raise FolderError(
            f"{path}: in_channels must be a whole number above 0 that 4 divides, got {features!r}. "
            "The folder is damaged: copy it again."
        )
    height, width = size_of({"sample_size": SIZE, **config}, path)
    if height % 2 or width % 2:
        raise FolderError(
            f"{path}: sample_size must be even, got {height} and {width}: the network takes "
            "patches of 2x2 latents. Write the next even number."
        )
    return features // 4, height, width


def packed_tokens(config: Mapping[str, Any], path: Path) -> int:
    """Return the number of tokens of an image, 2x2 latents each."""
    _, height, width = packed_shape(config, path)
    return height * width // 4


def check_features(config: Mapping[str, Any], path: Path, out: int) -> None:
    """Raise FolderError unless the network answers with as many features as it takes.

    out: features of the output, per token.
    """
    features = config.get("in_channels")
    if out != features:
        raise FolderError(
            f"{path}: in_channels: {features}, and {out} features of the output; they must be as "
            "many. A network made for filling in or for control has more inputs: give the "
            "text-to-image model."
        )
