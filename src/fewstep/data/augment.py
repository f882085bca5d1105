"""Flips and crops as a function of (seed, epoch, index): nothing to save, nothing to restore."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewstep.core.seed import derive

_ODD = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, what: str, *numbers: Tensor) -> Tensor:
    """Return a number in [0, 1), float64 (B,), that depends on each row of numbers and no other.

    numbers: (B,) int64 each, at least 0. A hash (the finaliser of splitmix64, once a number), so
    any subset in any order gets the same.

    Source: Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators, figure 17.
    """
    state = np.full(len(numbers[0]), derive(seed, what) % 2**64, dtype=np.uint64)
    for number in numbers:
        state = _mix(state + (number.numpy().astype(np.uint64) + np.uint64(1)) * _ODD)
    return torch.from_numpy((state >> np.uint64(11)).astype(np.float64) / 2.0**53)


def augment(
    x: Tensor, seed: int, epoch: Tensor, index: Tensor, *, flip: bool = False, crop: int = 0
) -> Tensor:
    """Return x (B, C, H, W), each image flipped and shifted as (seed, epoch, index) says.

    epoch, index: (B,) int64. flip: mirror half of them left to right. crop: pixels that an image
    is shifted by, at most, each way; what comes in is the reflected border, so crop < H, W.
    """
    if flip:
        mirrored = uniform(seed, "flip", epoch, index) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    if crop:
        rows, columns = (
            (uniform(seed, f"crop {axis}", epoch, index) * (2 * crop + 1)).long()[:, None]
            + torch.arange(x.shape[axis])
            for axis in (2, 3)
        )
        padded = torch.nn.functional.pad(x, (crop, crop, crop, crop), mode="reflect")
        example = torch.arange(len(x))[:, None, None]
        x = padded.movedim(1, -1)[example, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
    return x.contiguous()


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed
