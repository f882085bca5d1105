r"""Run a `fewstep` command with the zero prompt tokens of Stable Diffusion 3 merged into one.

    python -m studies merged_padding report flow-small --set data.name=train.parquet ...

The stock pipeline puts zeros in the place of T5's tokens in a folder without T5: 256 of the 272
tokens of `flow-small`. Prompt tokens have no positions in this transformer, so equal tokens stay
equal in every block, and attention to n equal keys is attention to one of them with log n added to
its logit. One token in their place gives the same output up to rounding, for about a fifth of the
time at 64 image tokens. Networks of other families run as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional

from fewstep.cli.main import main as fewstep_main
from studies.common import argument_parser


def zero_tokens(text: Tensor) -> int:
    """Return how many tokens at the end of text (B, L, D) are zeros in every example."""
    used = (text != 0).any(dim=-1).any(dim=0)  # (L,)
    return int(used.flip(0).long().argmax()) if used.any() else len(used)


@contextlib.contextmanager
def merged_padding() -> Iterator[None]:
    """Merge the zero tokens at the end of prompts, in every Stable Diffusion 3 network."""
    whole, attention = SD3Transformer2DModel.forward, functional.scaled_dot_product_attention

    def forward(
        network: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **given: Any
    ) -> Any:
        # The estimate of memory runs networks on the meta device, whose tensors have no values.
        count = 0 if encoder_hidden_states.is_meta else zero_tokens(encoder_hidden_states)
        if count < 2:
            return whole(network, hidden_states, encoder_hidden_states, **given)
        text = encoder_hidden_states[:, : encoder_hidden_states.shape[1] - count + 1]
        side = network.config.patch_size
        image = (hidden_states.shape[-2] // side) * (hidden_states.shape[-1] // side)
        functional.scaled_dot_product_attention = _last_counts(
            attention, image + text.shape[1], count
        )
        try:
            return whole(network, hidden_states, text, **given)
        finally:
            functional.scaled_dot_product_attention = attention

    SD3Transformer2DModel.forward = forward
    try:
        yield
    finally:
        SD3Transformer2DModel.forward = whole


def _last_counts(attention: Callable[..., Tensor], keys: int, count: int) -> Callable[..., Tensor]:
    """Return attention in which the last of so many keys counts as `count` equal ones.

    Attention within the image alone has fewer keys, and is left as it is.
    """

    def counted(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        if key.shape[-2] != keys:
            return attention(query, key, value, **given)
        bias = torch.zeros(keys, dtype=query.dtype, device=query.device)
        bias[-1] = math.log(count)
        return attention(query, key, value, attn_mask=bias.expand(1, 1, 1, -1), **given)

    return counted


def main(arguments: Sequence[str]) -> None:
    """Run the command and exit with its code."""
    parser = argument_parser("merged_padding", __doc__ or "")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="arguments of fewstep")
    with merged_padding():
        code = fewstep_main(parser.parse_args(arguments).command)
    sys.exit(code)
