"""Flux, Chroma and Qwen-Image against their stock pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests.models.packed import CHANNELS, PIXELS, SIDE, chroma_folder, flux_folder, qwen_folder
from tests.models.pipelines import TEXT, draw_apart, edit
from tests.models.test_families import live
from torch import Tensor

import fewstep
from fewstep.core.angle import expand, flow_from_phi
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided
from fewstep.distill.plan import Stage
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.folders import card_in, encode_prompts, load, load_vae, save_model
from fewstep.models import FAMILIES, Lora, Model, decode_latents, fold_w, model_of, student_of
from fewstep.models.families.packed import pack, unpack
from fewstep.testing import check_denoiser, check_stage

PROMPTS = ["a cat", "two dogs", "rain"]
SHAPE = (CHANNELS, SIDE, SIDE)
LORA = Lora(rank=2, alpha=4)


@dataclass(frozen=True)
class Kind:
    """A family here: its folder, its stock pipeline, and how that is asked for guidance.

    Attributes:
        guided: w -> arguments of a call that is guided.
        plain: arguments of a call whose guidance is in the weights.
    """

    folder: Callable[[Path], Path]
    pipeline: str
    guided: Callable[[float], dict[str, Any]]
    plain: dict[str, Any] = field(default_factory=dict)


def real(w: float, null: str = "") -> dict[str, Any]:
    return {"true_cfg_scale": 1 + w, "negative_prompt": [null] * len(PROMPTS)}


def scale(w: float) -> dict[str, Any]:
    return {"guidance_scale": 1 + w}


def guided_flux(path: Path) -> Path:
    return flux_folder(path, guidance=True)


KINDS = {
    "flux": Kind(flux_folder, "FluxPipeline", real),
    "flux-guided": Kind(guided_flux, "FluxPipeline", scale),
    "chroma": Kind(chroma_folder, "ChromaPipeline", scale, scale(0.0)),
    "qwen-image": Kind(qwen_folder, "QwenImagePipeline", lambda w: real(w, " ")),
}
FOLDED = [name for name in KINDS if FAMILIES[name].slot is None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("stock")
    return {name: kind.folder(path / name) for name, kind in KINDS.items()}


def noise() -> Tensor:
    return torch.randn(len(PROMPTS), *SHAPE, generator=torch.Generator().manual_seed(7))


def question() -> tuple[Tensor, Tensor]:
    return noise(), torch.tensor([0.3, 0.8, 1.4])


def test_packing_is_the_pipelines_own() -> None:
    z = noise()
    theirs = diffusers.FluxPipeline._pack_latents(z, 3, CHANNELS, SIDE, SIDE)
    assert torch.equal(pack(z), theirs)
    assert torch.equal(unpack(theirs, z.shape), z)
    wide = torch.randn(2, 4, 6, 10)
    assert torch.equal(unpack(pack(wide), wide.shape), wide)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("steps", "w"), [(20, 3.0), (1, 2.0), (3, 0.5)])
def test_it_draws_what_its_own_pipeline_draws(
    folders: dict[str, Path], name: str, steps: int, w: float
) -> None:
    folder, kind = folders[name], KINDS[name]
    loaded, cond = load(folder), encode_prompts(folder, PROMPTS)
    pipe = getattr(diffusers, kind.pipeline).from_pretrained(folder)
    if name == "qwen-image":  # its last step starts at 0.02, whatever their number
        pipe.scheduler = model_of(loaded).clock.scheduler()
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS,
        num_inference_steps=steps,
        height=PIXELS,
        width=PIXELS,
        latents=pack(noise()),
        output_type="latent",
        **kind.guided(w),
    ).images
    ours = fewstep.sample(loaded, cond, w=w, steps=steps, z=noise())
    torch.testing.assert_close(ours, unpack(theirs, ours.shape), atol=1e-4, rtol=1e-4)
    elsewhere = fewstep.sample(loaded, cond, w=w + 1, steps=steps, z=noise())
    assert float((ours - elsewhere).abs().max()) > 1e-2


@pytest.mark.parametrize("name", KINDS)
def test_it_keeps_the_laws_of_a_denoiser(folders: dict[str, Path], name: str) -> None:
    loaded, cond = load(folders[name]), encode_prompts(folders[name], PROMPTS)
    if isinstance(loaded, Guided) and loaded.rescale is None:
        assert len(check_denoiser(loaded, cond, null_cond=loaded.null_cond)) == 13
    else:
        assert len(check_denoiser(loaded, cond)) >= 9


def test_patches_keep_their_length_where_qwen_image_is_guided(folders: dict[str, Path]) -> None:
    loaded, cond = load(folders["qwen-image"]), encode_prompts(folders["qwen-image"], PROMPTS)
    assert isinstance(loaded, Guided)
    (z, phi), zero = question(), torch.zeros(3)
    with torch.no_grad():
        v_cond = loaded(z, phi, cond, zero)
        v_null = loaded(z, phi, cond, zero - 1)
        guided = loaded(z, phi, cond, zero + 2)
        plain = Guided(loaded.denoiser, loaded.null_cond)
        assert torch.equal(v_cond, plain(z, phi, cond, zero))
        assert torch.equal(v_null, plain(z, phi, cond, zero - 1))
    s = flow_from_phi(phi)
    still = expand(1 - 2 * s, z) * z  # v = k u + (1 - 2 s) z
    lengths = [
        pack(v - still).norm(dim=-1) for v in (guided, v_cond, plain(z, phi, cond, zero + 2))
    ]
    torch.testing.assert_close(lengths[0], lengths[1])
    assert float((lengths[2] - lengths[1]).abs().max()) > 1e-3


def student_for(name: str, folder: Path, steps: int, lora: Lora | None = None) -> Model:
    """A student of so many steps that is not its teacher, though nothing has trained it."""
    if name in FOLDED:
        return live(folder, lora, Stage("student", "teacher", updates=1, steps=steps))
    stage = Stage("student", "stage-one", updates=1, steps=steps)
    student = student_of(load(folder), stage, (0.0, 4.0), lora=lora).eval()
    draws = torch.Generator().manual_seed(2)
    for weight in student.network.parameters():
        if weight.requires_grad:
            weight.data.add_(0.02 * torch.randn(weight.shape, generator=draws))
    return student


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_student_draws_in_the_stock_pipeline_what_sample_draws(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """In a process where fewstep cannot be imported; folded, or with the knob where it is live."""
    kind, folder = KINDS[name], folders[name]
    jobs: dict[str, Any] = {}
    wanted: dict[str, Tensor] = {}
    cond, vae = encode_prompts(folder, PROMPTS), load_vae(folder)
    for steps, w in [(1, 2.5), (2, 2.5), (4, 2.5), (4, 0.5), (8, 2.5)]:
        student, saved = student_for(name, folder, steps), tmp_path / f"{steps}-{w}"
        save_model(fold_w(student, w) if name in FOLDED else student, saved)
        call = {
            "prompt": PROMPTS,
            "num_inference_steps": steps,
            "height": PIXELS,
            "width": PIXELS,
            "seed": 7,
            **(kind.plain if name in FOLDED else kind.guided(w)),
        }
        jobs[saved.name] = {"folder": str(saved), "pipeline": kind.pipeline, "call": call}
        z = fewstep.sample(student, cond, w=w, z=noise())
        wanted[saved.name] = (decode_latents(vae, z) / 2 + 0.5).clamp(0, 1)
    drawn = draw_apart(jobs, tmp_path)
    for key, images in wanted.items():
        assert drawn[key]["batches"] == [len(PROMPTS)] * int(key[0])
        torch.testing.assert_close(drawn[key]["images"], images, atol=1e-4, rtol=1e-4)
    moved = drawn["4-2.5"]["images"] - drawn["4-0.5"]["images"]
    assert float(moved.abs().max()) > 1e-3


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("keep_apart", [False, True])
def test_a_lora_student_comes_back(
    folders: dict[str, Path], tmp_path: Path, name: str, keep_apart: bool
) -> None:
    lora = LORA.model_copy(update={"keep_apart": keep_apart})
    student, cond = (
        student_for(name, folders[name], 4, lora),
        encode_prompts(folders[name], PROMPTS),
    )
    (z, phi), w = question(), torch.tensor([0.0, 1.5, 4.0])
    draws = torch.Generator().manual_seed(3)
    for key, weight in student.network.named_parameters():
        if "lora_B" in key:
            weight.data.copy_(0.1 * torch.randn(weight.shape, generator=draws))
    with torch.no_grad():
        plain = model_of(load(folders[name]))(z, phi, cond, w)
        before = student(z, phi, cond, w)
        save_model(student, tmp_path / "student")
        after = load(tmp_path / "student")(z, phi, cond, w)
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-5)
    assert float((before - plain).abs().max()) > 1e-3


def test_flux_with_guidance_embeds_is_a_model_of_guidance_distillation(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["flux-guided"]
    loaded, card = load(folder), card_in(folder)
    assert isinstance(loaded, Model)
    assert loaded.passes == 1
    assert (card.stage.kind, card.steps, card.w_range) == ("guidance-distillation", None, (0, 9))
    cond = encode_prompts(folder, PROMPTS)
    with pytest.raises(RangeError, match="outside the range"):
        fewstep.sample(loaded, cond, w=9.5, steps=2)
    with pytest.raises(RangeError, match="guidance is in its weights"):
        load(folder, negative_prompt="blurry")
    stage = Stage("student-4", "stage-one", updates=1, steps=4)
    student = student_of(loaded, stage, (1.0, 4.0))
    assert student.network.state_dict().keys() == loaded.network.state_dict().keys()
    save_model(student, tmp_path / "student-4")
    again = card_in(tmp_path / "student-4")
    assert (again.family, again.steps, again.w_range) == ("flux-guided", 4, (1, 4))
    x = 0.5 * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert len(check_stage(stage.problem(loaded, (1.0, 4.0)), x, cond)) >= 4


def test_a_readme_draws_as_the_stock_pipeline_must(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def call(folder: Path) -> str:
        return (folder / "README.md").read_text().split("pipe(")[1].split(").images")[0]

    calls = {
        "flux": "true_cfg_scale=1, height=16, width=16",
        "flux-guided": "guidance_scale=3, height=16, width=16",
        "chroma": "guidance_scale=1, height=16, width=16",
        "qwen-image": "true_cfg_scale=1, height=16, width=16",
    }
    for name, wanted in calls.items():
        student = student_for(name, folders[name], 4)
        save_model(fold_w(student, 2.0) if name in FOLDED else student, tmp_path / name)
        assert f"num_inference_steps=4, {wanted}\n" in call(tmp_path / name)
    for name, null in (("flux", ""), ("qwen-image", " ")):
        copy = tmp_path / f"{name}-copy"
        save_model(model_of(load(folders[name])), copy)
        assert f'true_cfg_scale=7.5, negative_prompt="{null}", height' in call(copy)


def test_what_stock_code_would_compute_differently_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(RangeError, match="must be off for ChromaTransformer2DModel"):
        model_of(load(folders["chroma"])).checkpoint_activations()
    model_of(load(folders["flux"])).checkpoint_activations()


def test_sizes_other_than_the_default_are_named_in_the_config(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = flux_folder(tmp_path / "flux") / "transformer" / "config.json"
    edit(path, sample_size=[6, 10])
    card = card_in(tmp_path / "flux")
    assert card.shape == (CHANNELS, 6, 10)
    edit(path, sample_size=128)
    # mu = 1.15 at 4,096 tokens.
    assert card_in(tmp_path / "flux").clock == "flow-1000-3.1582"
    for wrong, match in ((7, "must be even"), ("8", "one whole number")):
        edit(path, sample_size=wrong)
        with pytest.raises(FolderError, match=match):
            load(tmp_path / "flux")


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("flux", {"out_channels": 32}, "for filling in or for control"),
        ("flux", {"patch_size": 2}, "patch_size must be 1"),
        ("flux", {"in_channels": 66}, "that 4 divides"),
        ("chroma", {"out_channels": 32}, "for filling in or for control"),
        ("qwen-image", {"guidance_embeds": True}, "guidance_embeds"),
        ("qwen-image", {"zero_cond_t": True}, "zero_cond_t"),
    ],
)
def test_networks_of_another_kind_are_refused(
    tmp_path: Path, name: str, change: dict[str, Any], match: str
) -> None:
    folder = KINDS[name].folder(tmp_path / "model")
    edit(folder / "transformer" / "config.json", **change)
    with pytest.raises(FolderError, match=match):
        load(folder)


def test_conditions_that_do_not_fit_are_refused(folders: dict[str, Path]) -> None:
    flux, chroma = (model_of(load(folders[name])) for name in ("flux", "chroma"))
    text = torch.zeros(1, 5, TEXT)
    wrong: list[tuple[Model, Cond, str]] = [
        (flux, text, "dict of text, pooled, not a tensor"),
        (flux, {"text": text, "pooled": torch.zeros(1, 3)}, "pooled text of shape"),
        (flux, {"text": text[..., :3], "pooled": torch.zeros(1, TEXT)}, "text embeddings of"),
        (chroma, {"text": text, "mask": torch.ones(1, 4)}, "a mask of shape"),
    ]
    for model, cond, match in wrong:
        with pytest.raises(ShapeError, match=match):
            fewstep.sample(model, cond, w=0.0, steps=1)


def test_prompts_of_qwen_image_have_the_length_that_is_asked_for(tmp_path: Path) -> None:
    """Masked tokens change no answer, and a longer one than the default is not cut at that."""
    folder = qwen_folder(tmp_path / "qwen")
    model = model_of(load(folder))
    z, phi = torch.randn(1, *model.card.shape), torch.tensor([0.8])
    answers, used = [], []
    for length in (8, 200, 700):
        cond = encode_prompts(folder, ["a cat"], max_sequence_length=length)
        assert isinstance(cond, dict)
        assert (cond["text"].shape[1], cond["mask"].shape[1]) == (length, length)
        used.append(int(cond["mask"].sum()))
        with torch.no_grad():
            answers.append(model(z, phi, cond, torch.zeros(1)))
    assert used[0] == 8 < used[1] == used[2]
    torch.testing.assert_close(answers[1], answers[2])
