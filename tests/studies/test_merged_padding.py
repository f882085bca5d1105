"""Zero prompt tokens merged into one give the network's own output and gradients."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel
from studies.merged_padding import merged_padding, zero_tokens


@pytest.fixture(params=[(), (0,)], ids=["joint", "dual"])
def network(request: pytest.FixtureRequest) -> SD3Transformer2DModel:
    """Return a small transformer, with or without a second attention within the image."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            out_channels=4,
            pos_embed_max_size=4,
            dual_attention_layers=request.param,
        )


def test_zero_tokens_counts_those_at_the_end_of_every_example() -> None:
    """A token that one example uses is used, and zeros before a used token count as used."""
    text = torch.zeros(2, 6, 3)
    text[0, 1], text[1, 3, 2] = 1, 1
    assert zero_tokens(text) == 2
    assert zero_tokens(text[:, :4]) == 0
    assert zero_tokens(torch.zeros(2, 6, 3)) == 6


def test_outputs_and_gradients_are_those_of_all_tokens(network: SD3Transformer2DModel) -> None:
    """Rounding apart, nothing depends on whether equal tokens are merged."""
    text = torch.randn(3, 24, 12)
    text[:, 5:] = 0
    inputs = {
        "hidden_states": torch.randn(3, 4, 8, 8),
        "encoder_hidden_states": text,
        "pooled_projections": torch.randn(3, 10),
        "timestep": torch.tensor([10.0, 500.0, 900.0]),
    }
    outputs, gradients, tokens = [], [], []
    network.context_embedder.register_forward_hook(lambda *a: tokens.append(a[2].shape[1]))
    for merged in (False, True):
        network.zero_grad()
        if merged:
            with merged_padding():
                out = network(**inputs, return_dict=False)[0]
        else:
            out = network(**inputs, return_dict=False)[0]
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert tokens == [24, 6]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    without = network(**inputs | {"encoder_hidden_states": text[:, :6]}, return_dict=False)[0]
    assert (without - outputs[0]).abs().max() > 1e-3
