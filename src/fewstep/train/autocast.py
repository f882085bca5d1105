"""The casts of autocast on CUDA, for tensors of the meta device.

Autocast looks at the device of a tensor and ignores the meta device. Here PyTorch's functions are
replaced for a while by ones that cast their inputs first, as autocast's lists for CUDA have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# https://docs.pytorch.org/docs/stable/amp.html: what diffusion networks are made of.
SHORT: tuple[tuple[Any, str], ...] = (
    *((F, name) for name in ("conv1d", "conv2d", "conv3d", "linear")),
    *((F, name) for name in ("conv_transpose2d", "scaled_dot_product_attention")),
    *((torch, name) for name in ("bmm", "baddbmm", "matmul", "addmm")),
)
LONG: tuple[tuple[Any, str], ...] = tuple(
    (F, name) for name in ("group_norm", "layer_norm", "rms_norm", "softmax")
)


@contextmanager
def autocast(dtype: torch.dtype | None, *, cache: bool) -> Iterator[None]:
    """Cast the inputs of PyTorch's functions as autocast does on CUDA, until the block ends.

    Not for several threads at once: the functions are replaced for the whole process.

    Args:
        dtype: of products and convolutions; normalisation and softmax are in float32. None casts
            nothing.
        cache: keep the casts of weights until the block ends, as autocast does outside of parts
            that the backward pass computes again.
    """
    if dtype is None:
        yield
        return
    casts: dict[int, tuple[Tensor, Tensor]] = {}

    def short(t: Tensor) -> Tensor:
        if not cache or not t.is_leaf or not t.requires_grad:
            return t.to(dtype)
        return casts.setdefault(id(t), (t, t.to(dtype)))[1]

    replaced = [*_replace(SHORT, short), *_replace(LONG, Tensor.float)]
    try:
        yield
    finally:
        for module, name, plain in replaced:
            setattr(module, name, plain)


def _replace(
    functions: Sequence[tuple[Any, str]], cast: Callable[[Tensor], Tensor]
) -> list[tuple[Any, str, Any]]:
    """Let functions cast their inputs; return what they were."""
    before = [(module, name, getattr(module, name)) for module, name in functions]
    for module, name, plain in before:
        setattr(module, name, _casting(plain, cast))
    return before


def _casting(plain: Callable[..., Any], cast: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def one(value: Any) -> Any:
        return cast(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    def function(*given: Any, **named: Any) -> Any:
        return plain(*map(one, given), **{name: one(value) for name, value in named.items()})

    return function
