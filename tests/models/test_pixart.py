"""PixArt-Sigma and PixArt-Alpha folders: conditions, guidance, and where w can be added."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtTransformer2DModel,
)
from tests.models.pipelines import TEXT, dit_folder, edit, pixart_folder, t5_encoder
from torch import Tensor, nn

import fewstep
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, Guided
from fewstep.core.seed import Noise
from fewstep.errors import FewstepWarning, FolderError, MissingError
from fewstep.folders import encode_prompts
from fewstep.models import BetaClock, BetaDenoiser
from fewstep.testing import check_denoiser

PROMPTS = ["a cat", "two dogs", "rain"]
LENGTH = {"PixArtSigmaPipeline": 300, "PixArtAlphaPipeline": 120}  # tokens


@pytest.fixture(scope="module")
def sigma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixart_folder(tmp_path_factory.mktemp("stock") / "sigma")


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pixart_folder(tmp_path_factory.mktemp("stock") / "alpha", alpha=True)


def encoded(folder: Path, prompts: list[str]) -> Cond:
    return encode_prompts(folder, prompts)


def call(network: Any, z: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
    """The network's own prediction: the first half of its channels."""
    assert isinstance(cond, dict)
    out = network(
        z,
        encoder_hidden_states=cond["text"].to(z.dtype),
        encoder_attention_mask=cond["mask"],
        timestep=timestep,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    prediction: Tensor = out[:, : z.shape[1]]
    return prediction


class ByHand(nn.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.inner = PixArtTransformer2DModel.from_pretrained(folder / "transformer").eval()

    def forward(self, z: Tensor, timestep: Tensor, cond: Cond) -> Tensor:
        return call(self.inner, z, timestep, cond)


def table(folder: Path) -> BetaClock:
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    return BetaClock.from_betas(scheduler.betas)


def by_hand(folder: Path) -> Guided:
    """The guided teacher, of the stock network and the folder's table."""
    denoiser = BetaDenoiser(ByHand(folder), table(folder), shape=(4, 8, 8))
    return Guided(denoiser, encoded(folder, [""]))


def check_it_draws_as_its_pipeline(
    folder: Path, denoiser: Denoiser, cond: Cond, kind: str, steps: int, w: float, **more: Any
) -> None:
    """Compare clean latents of `denoiser` with those of the folder's own pipeline, under DDIM."""
    pipe = getattr(diffusers, kind).from_pretrained(folder)
    pipe.scheduler = table(folder).scheduler()
    pipe.set_progress_bar_config(disable=True)
    noise = Noise(0, range(len(PROMPTS))).draw((4, 8, 8), torch.float32, torch.device("cpu"))
    theirs = pipe(
        PROMPTS,
        num_inference_steps=steps,
        guidance_scale=1 + w,
        latents=noise,
        output_type="latent",
        use_resolution_binning=False,
        clean_caption=False,
        **more,
    ).images
    ours = fewstep.sample(denoiser, cond, w=w, steps=steps)
    size = max(1.0, float(theirs.abs().max()))
    assert float((ours - theirs).abs().max()) < 1e-5 * size
    # Prompts, and so guidance, matter.
    assert float(
        (ours[0] - fewstep.sample(denoiser, cond, w=w + 1, steps=steps)[0]).abs().max()
    ) > (1e-3 * size)


CASES = pytest.mark.parametrize(("steps", "w"), [(4, 3.0), (1, 6.5), (8, 0.0)])


@CASES
@pytest.mark.parametrize("kind", list(LENGTH))
def test_the_network_called_by_hand_draws_what_its_pipeline_draws(
    request: pytest.FixtureRequest, kind: str, steps: int, w: float
) -> None:
    folder = request.getfixturevalue("sigma" if "Sigma" in kind else "alpha")
    cond = encoded(folder, PROMPTS)
    check_it_draws_as_its_pipeline(folder, by_hand(folder), cond, kind, steps, w)


@CASES
@pytest.mark.parametrize("kind", list(LENGTH))
def test_a_guided_teacher_draws_what_its_own_pipeline_draws(
    request: pytest.FixtureRequest, kind: str, steps: int, w: float
) -> None:
    folder = request.getfixturevalue("sigma" if "Sigma" in kind else "alpha")
    loaded, cond = fewstep.load(folder), encode_prompts(folder, PROMPTS)
    check_it_draws_as_its_pipeline(folder, loaded, cond, kind, steps, w)


def test_a_negative_prompt_is_the_unconditional_pass(sigma: Path) -> None:
    loaded = fewstep.load(sigma, negative_prompt="blurry")
    check_it_draws_as_its_pipeline(
        sigma, loaded, encode_prompts(sigma, PROMPTS), "PixArtSigmaPipeline", 2, 3.0,
        negative_prompt="blurry",
    )  # fmt: skip


@pytest.mark.parametrize("learned_sigma", [True, False])
def test_it_keeps_the_laws_of_a_denoiser(tmp_path: Path, learned_sigma: bool) -> None:
    folder = pixart_folder(tmp_path / "sigma", learned_sigma=learned_sigma)
    loaded, cond = fewstep.load(folder), encode_prompts(folder, PROMPTS)
    assert isinstance(loaded, Guided)
    assert len(check_denoiser(loaded, cond, null_cond=loaded.null_cond)) == 13


def test_a_folder_of_the_older_class_loads(sigma: Path, tmp_path: Path) -> None:
    """As PixArt-Sigma was published: the network under the name of a more general class."""
    old = pixart_folder(tmp_path / "old")
    edit(old / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(old / "transformer/config.json", _class_name="Transformer2DModel", num_vector_embeds=None)
    cond = encode_prompts(sigma, PROMPTS)
    again, before = (fewstep.sample(fewstep.load(f), cond, w=1.0, steps=1) for f in (old, sigma))
    assert torch.equal(again, before)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"out_channels": 5}, "and out_channels"),
        ({"use_additional_conditions": True}, "use_additional_conditions"),
    ],
)
def test_networks_of_another_kind_are_refused(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    edit(pixart_folder(tmp_path / "sigma") / "transformer" / "config.json", **change)
    with pytest.raises(FolderError, match=match):
        fewstep.load(tmp_path / "sigma")


@pytest.mark.parametrize("kind", list(LENGTH))
def test_conditions_are_the_text_and_which_of_it_is_padding(
    request: pytest.FixtureRequest, kind: str
) -> None:
    folder = request.getfixturevalue("sigma" if "Sigma" in kind else "alpha")
    cond = encoded(folder, PROMPTS)
    assert isinstance(cond, dict)
    assert cond["text"].shape == (3, LENGTH[kind], TEXT)
    assert cond["mask"].sum(dim=1).tolist() == [7, 10, 6]  # a space is a token, and so is the end
    # Of a longer prompt, what the pipeline reads is as much as its own default.
    long = "a" * LENGTH[kind]
    with pytest.warns(FewstepWarning, match=f"1 of 2 prompts are longer than {LENGTH[kind]} tok"):
        encoded(folder, ["a", long])


def test_words_that_need_a_library_are_said(sigma: Path, tmp_path: Path) -> None:
    if diffusers.utils.is_sentencepiece_available():
        pytest.skip("sentencepiece is installed")
    folder = pixart_folder(tmp_path / "sigma")
    (folder / "tokenizer/tokenizer.json").rename(folder / "tokenizer/spiece.model")
    with pytest.raises(MissingError, match=r"spiece\.model.*pip install sentencepiece protobuf"):
        encoded(folder, ["a"])


def test_t5_with_other_words_is_refused(sigma: Path, tmp_path: Path) -> None:
    folder = pixart_folder(tmp_path / "sigma")
    few = t5_encoder()
    few.resize_token_embeddings(20)
    few.save_pretrained(folder / "text_encoder")
    with pytest.raises(FolderError, match="tokenizer must have the words of text_encoder"):
        encoded(folder, ["z"])


def test_a_constant_before_the_first_layer_of_time_is_a_bias(sigma: Path, tmp_path: Path) -> None:
    """Why one fixed w costs nothing: W1 (t + c) + b = W1 t + (b + W1 c), for every timestep."""
    cond, draws = encoded(sigma, PROMPTS), torch.Generator().manual_seed(0)
    z, t = torch.randn(3, 4, 8, 8, generator=draws), torch.tensor([3.0, 500.5, 999.0])
    pixart = PixArtTransformer2DModel.from_pretrained(sigma / "transformer").eval()
    folder = dit_folder(tmp_path / "dit", classes=20)
    dit = DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()
    labels = torch.tensor([0, 7, 20])

    def of_dit(network: Any) -> Tensor:
        out: Tensor = network(z, timestep=t, class_labels=labels, return_dict=False)[0]
        return out

    cases: list[tuple[Any, list[str], Any]] = [
        (pixart, ["adaln_single.emb.timestep_embedder"], lambda n: call(n, z, t, cond)),
        (
            dit,
            [f"transformer_blocks.{k}.norm1.emb.timestep_embedder" for k in range(2)],
            of_dit,
        ),
    ]
    for network, names, answer in cases:
        added, folded = copy.deepcopy(network), copy.deepcopy(network)
        with torch.no_grad():
            for name in names:
                layer = folded.get_submodule(name).linear_1
                c = 0.5 * torch.randn(layer.in_features, generator=draws)
                layer.bias += layer.weight @ c
                added.get_submodule(name).register_forward_pre_hook(
                    lambda _, args, c=c: (args[0] + c, *args[1:])
                )
            a, b, plain = answer(added), answer(folded), answer(network)
        size = float(plain.abs().max())
        gap, moved = float((a - b).abs().max()) / size, float((a - plain).abs().max()) / size
        print(type(network).__name__, "folded", gap, "moved by", moved)
        assert gap < 5e-6
        assert moved > 1e-2
