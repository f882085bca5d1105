"""The w input: the features of stock pipelines, band-limited."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from hypothesis import given
from hypothesis import strategies as st

from fewstep.models.w_input import BAND, frequencies, one_feature, w_features


@pytest.mark.parametrize("dim", [16, 64, 128, 256])
def test_all_columns_are_those_of_stock_pipelines(dim: int) -> None:
    w = torch.tensor([0.0, 0.3, 1.0, 3.7])
    stock = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, dim)
    assert torch.equal(w_features(w, dim, band=None), stock)


def test_fast_columns_are_zero_and_slow_ones_are_kept() -> None:
    w = torch.tensor([0.5, 2.0])
    slow = frequencies(64) <= BAND
    features = w_features(w, 64)
    assert 4 <= int(slow.sum()) < 16
    assert features[:, (~slow).repeat(2)].abs().max() == 0
    torch.testing.assert_close(features, w_features(w, 64, band=None) * slow.repeat(2))


@given(w=st.floats(0, 14), dw=st.floats(-0.01, 0.01))
def test_neighbouring_w_have_neighbouring_features(w: float, dw: float) -> None:
    a, b = w_features(torch.tensor([w]), 128), w_features(torch.tensor([w + dw]), 128)
    slow = int((frequencies(128) <= BAND).sum())
    # No column turns faster than 1 rad a unit of w.
    assert float((a - b).norm()) <= abs(dw) * math.sqrt(slow) + 1e-5


@pytest.mark.parametrize("dim", [8, 64, 256])
def test_the_one_feature_is_the_slowest_sine(dim: int) -> None:
    w = torch.tensor([-1.0, 0.0, 3.0, 14.0])
    features = w_features(w, dim, band="one")
    torch.testing.assert_close(features[:, one_feature(dim)], torch.sin(0.1 * w))
    assert int((features != 0).any(0).sum()) == 1
    stock = w_features(w, dim, band=None)
    assert torch.equal(features[:, one_feature(dim)], stock[:, one_feature(dim)])
