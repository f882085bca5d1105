"""Randomness by counting: every draw comes from a generator seeded by what it is for.

A run that stops and goes on needs no saved random state: update 812 draws the same numbers
whenever it is reached. An image needs no neighbours: image 7 of seed 0 is the same image in
any batch and on any device.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive(seed: int, *counters: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and every counter, the same everywhere.

    A hash rather than arithmetic, so that (seed 1, update 2) and (seed 2, update 1) are unrelated.
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(c).__name__}:{c}" for c in counters)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, seed: int, *counters: int | str) -> torch.Generator:
    """Return a generator on `device`, seeded by `derive(seed, *counters)`."""
    return torch.Generator(device).manual_seed(derive(seed, *counters))


class Noise:
    """Unit Gaussian noise, one stream per image: image k of a seed never depends on its batch.

    Each image's stream is drawn on the CPU, so a seed gives the same noise on every device.
    """

    def __init__(self, seed: int, index: range | list[int]) -> None:
        """Make the streams of the images numbered `index` under `seed`."""
        self._streams = [generator("cpu", seed, "image", k) for k in index]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._streams)

    def draw(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the next (B, *shape) noise, drawn in float32 (float64 where `dtype` is)."""
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        out = torch.empty((len(self), *shape), dtype=exact)
        for row, stream in zip(out, self._streams, strict=True):
            torch.randn(shape, generator=stream, dtype=exact, out=row)
        return out.to(device=device, dtype=dtype)

    def like(self, z: Tensor) -> Tensor:
        """Return the next noise of the shape, dtype and device of z (B, *D)."""
        return self.draw(tuple(z.shape[1:]), z.dtype, z.device)
