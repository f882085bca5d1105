"""How w enters a network: the features that stock diffusers pipelines feed as `timestep_cond`.

Those pipelines compute `[sin, cos]` of `1000 w exp(-k ln 10^4 / (half - 1))` outside the network
and project them by `time_embedding.cond_proj`. The fastest columns turn by 1,000 radians a unit
of w: a hash, of which nothing can be learnt between two trained w's. fewstep feeds only the
columns slower than `BAND` while it trains, so the others' weights stay exactly zero, the knob is
smooth, and a stock pipeline, which feeds all of them, computes the same (decision 0003).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

SCALE = 1000.0
BAND = 1.0  # radians a unit of w

_Columns: TypeAlias = "tuple[Tensor, Tensor | None]"
_kept: dict[tuple[int, float | None, torch.device], _Columns] = {}


def frequencies(dim: int) -> Tensor:
    """Return the (dim // 2,) frequencies in radians a unit of w, float32, from 1000 to 0.1."""
    return SCALE * _falling(dim)


def _falling(dim: int) -> Tensor:
    half = dim // 2
    return torch.exp(torch.arange(half) * -(math.log(1e4) / (half - 1)))


def w_features(w: Tensor, dim: int, band: float | None = BAND) -> Tensor:
    """Return the features (B, dim), float32, of guidance weights w (B,).

    band: columns faster than so many radians a unit of w are zero; None keeps all, as a stock
    pipeline does. Source: the guidance embedding of diffusers' latent consistency pipelines.
    """
    falling, heard = _columns(dim, band, w.device)
    # In the order of the stock pipelines, so that the float32 rounding is theirs.
    turn = (SCALE * w.float())[:, None] * falling
    features = torch.cat([torch.sin(turn), torch.cos(turn)], dim=1)
    return features if heard is None else features * heard


def _columns(dim: int, band: float | None, device: torch.device) -> _Columns:
    """Return (1, dim // 2) frequencies and (dim,) which features are fed, on the device.

    Kept, because a copy from the host would make every call wait for the device. (In a dict, since
    torch.compile looks through functools' caches.)
    """
    if (dim, band, device) not in _kept:
        with torch.inference_mode(False):
            heard = None if band is None else (frequencies(dim) <= band).repeat(2).to(device)
            _kept[dim, band, device] = (_falling(dim)[None, :].to(device), heard)
    return _kept[dim, band, device]
