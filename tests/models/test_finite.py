"""NaN and infinity become no latent, no embedding and no picture; the part is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.pipelines import edit, xl_folder
from transformers import CLIPTextModel

from fewstep.core.finite import check_finite, check_finite_cond
from fewstep.errors import FolderError, NonFiniteError
from fewstep.folders import encode_prompts, load_vae
from fewstep.models import decode_latents, encode_images


def test_finite_tensors_are_returned_as_they_are() -> None:
    for tensor in (torch.zeros(2), torch.zeros(2, dtype=torch.long), torch.zeros(0)):
        assert check_finite(tensor, "it") is tensor
    cond = {"a": torch.zeros(1), "b": torch.zeros(1)}
    assert check_finite_cond(cond, "it") is cond


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_not_finite_is_counted(bad: float, dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, bad, 2.0], dtype=dtype)
    with pytest.raises(NonFiniteError, match=r"^it must be finite, got 1 of 3 values.*Do this\.$"):
        check_finite(tensor, "it", "Do this.")
    with pytest.raises(NonFiniteError, match=r"it \(text\)"):
        check_finite_cond({"text": tensor}, "it")


def test_an_autoencoder_that_overflows_gives_neither_latents_nor_images(sd: Path) -> None:
    vae = load_vae(sd)
    vae.encoder.conv_out.bias.data.fill_(3e38)
    vae.quant_conv.weight.data.fill_(3e38)
    with pytest.raises(NonFiniteError, match=r"latents that the autoencoder encoded.*float16"):
        encode_images(vae, torch.zeros(1, 3, 16, 16))
    vae.decoder.conv_out.bias.data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="images that the autoencoder decoded"):
        decode_latents(vae, torch.zeros(1, 4, 8, 8))
    with pytest.raises(NonFiniteError, match="the latents to decode"):
        decode_latents(vae, torch.full((1, 4, 8, 8), float("nan")))


def test_text_embeddings_that_overflow_are_refused(
    sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.models import prompts

    network = prompts.load_part(CLIPTextModel, sd / "text_encoder")
    next(network.parameters()).data.fill_(float("nan"))
    monkeypatch.setattr(prompts, "load_part", lambda *_, **__: network)
    with pytest.raises(NonFiniteError, match=r"text embeddings of .*text_encoder"):
        encode_prompts(sd, ["a"])


@pytest.mark.parametrize(
    ("length", "match"),
    [(None, None), (10**30, None), (0, "model_max_length"), (-3, "model_max_length")],
)
def test_the_length_of_prompts_is_the_encoders_where_the_tokenizer_has_none(
    sd: Path, tmp_path: Path, length: int | None, match: str | None
) -> None:
    import shutil

    shutil.copytree(sd, tmp_path / "sd")
    edit(tmp_path / "sd/tokenizer/tokenizer_config.json", model_max_length=length)
    if match is None:
        assert torch.equal(encode_prompts(tmp_path / "sd", ["a"]), encode_prompts(sd, ["a"]))  # type: ignore[arg-type]
    else:
        with pytest.raises(FolderError, match=match):
            encode_prompts(tmp_path / "sd", ["a"])


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = xl_folder(tmp_path / "xl")
    edit(folder / "tokenizer_2/tokenizer_config.json", model_max_length=5)
    with pytest.raises(FolderError, match="one model_max_length, got 12 and 5"):
        encode_prompts(folder, ["a"])
