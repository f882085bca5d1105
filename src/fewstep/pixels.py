"""Pixels: bytes 0 to 255 in files, numbers in [-1, 1] in models."""

from __future__ import annotations

from torch import Tensor


def from_bytes(pixels: Tensor) -> Tensor:
    """Return bytes p, of any shape, as float32: x = p / 127.5 - 1."""
    return pixels.float().div_(127.5).sub_(1.0)


def to_bytes(x: Tensor) -> Tensor:
    """Return x, of any shape, as bytes, rounded; values outside [-1, 1] are clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).byte()
