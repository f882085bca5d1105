"""Prompts become conditions by the stock pipelines' own `encode_prompt`."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.pipelines import LENGTH, edit, text_encoder
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fewstep.errors import FewstepWarning, FolderError
from fewstep.folders import encode_prompts

PROMPTS = ["a cat", "two dogs", "", "rain", "a b c d e f g h i j k l m"]


def encoded(folder: Path, end: str, kind: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The first output, the last layer and the one before it, by a loop over one encoder."""
    words = CLIPTokenizer.from_pretrained(folder / f"tokenizer{end}")
    network = kind.from_pretrained(folder / f"text_encoder{end}", dtype=torch.float32).eval()
    ids = words(
        PROMPTS, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        out = network(ids, output_hidden_states=True)
    return out[0], out.last_hidden_state, out.hidden_states[-2]


@pytest.mark.filterwarnings("ignore:1 of 5 prompts")
def test_conditions_are_bit_for_bit_those_of_the_encoders_alone(sd: Path, xl: Path) -> None:
    _, last, _ = encoded(sd, "", CLIPTextModel)
    assert torch.equal(encode_prompts(sd, PROMPTS), last)  # type: ignore[arg-type]
    _, _, first = encoded(xl, "", CLIPTextModel)
    pooled, _, second = encoded(xl, "_2", CLIPTextModelWithProjection)
    both = encode_prompts(xl, PROMPTS)
    assert isinstance(both, dict)
    assert torch.equal(both["text"], torch.cat([first, second], dim=-1))
    assert torch.equal(both["pooled"], pooled)
    assert all(t.dtype == torch.float32 for t in both.values())


@pytest.mark.filterwarnings("ignore:1 of 5 prompts")
@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_batches_are_put_together_in_order(request: pytest.FixtureRequest, kind: str) -> None:
    folder = request.getfixturevalue(kind)
    whole, parts = encode_prompts(folder, PROMPTS), encode_prompts(folder, PROMPTS, batch_size=2)
    torch.testing.assert_close(parts, whole)


def test_encoders_that_heed_the_padding_are_given_the_mask(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    edit(tmp_path / "sd/text_encoder/config.json", use_attention_mask=True)
    masked, plain = (encode_prompts(folder, ["a"]) for folder in (tmp_path / "sd", sd))
    assert isinstance(masked, Tensor)
    assert isinstance(plain, Tensor)
    # Attention looks back alone: what the padding holds is all that differs.
    torch.testing.assert_close(masked[:, :3], plain[:, :3])
    assert not torch.allclose(masked[:, 3:], plain[:, 3:], atol=1e-3)


def test_a_cut_prompt_is_named_once(
    sd: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(library), "propagate", True)
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        encode_prompts(sd, PROMPTS)
    (one,) = [w for w in caught if w.category is FewstepWarning]
    assert str(one.message) == (
        "1 of 5 prompts are longer than 12 tokens and are cut, the first is "
        "'a b c d e f g h i j k l m'"
    )
    assert "longer" not in caplog.text
    assert "truncated" not in caplog.text


def test_a_tokenizer_with_other_words_is_refused(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    few = text_encoder()
    few.resize_token_embeddings(20)
    few.save_pretrained(tmp_path / "sd/text_encoder")
    with pytest.raises(FolderError, match=r"tokenizer must have the words of text_encoder, got to"):
        encode_prompts(tmp_path / "sd", ["z"])


def test_a_projection_that_is_not_used_does_no_harm(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd/text_encoder")
    with_projection = text_encoder(projection=True)
    plain = CLIPTextModel.from_pretrained(sd / "text_encoder")
    with_projection.text_model.load_state_dict(plain.state_dict())
    with_projection.save_pretrained(tmp_path / "sd/text_encoder")
    again, before = encode_prompts(tmp_path / "sd", ["a"]), encode_prompts(sd, ["a"])
    assert torch.equal(again, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_a_missing_part_is_named(sd: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / part)
    with pytest.raises(FolderError, match=f"{part} is missing; copy the whole folder again"):
        encode_prompts(tmp_path / "sd", ["a"])
