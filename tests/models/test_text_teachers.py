"""Stock pipeline folders as teachers: conditions, clock, guidance; what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from tests.models.pipelines import LENGTH, TEXT, edit, sd_folder, xl_folder

import fewstep
from fewstep.core import cond as conds
from fewstep.core.denoiser import Guided, Traits
from fewstep.core.seed import Noise
from fewstep.data.latents import cache_latents
from fewstep.errors import FewstepWarning, FolderError, RangeError, ShapeError
from fewstep.folders import encode_prompts, encoders_sha256, load_vae
from fewstep.measure.solvers import solve
from fewstep.models import Model, card_of, encode_images, encoders_kept
from fewstep.models import prompts as prompts_part
from fewstep.testing import check_denoiser

PROMPTS = ["a cat", "two dogs", "rain"]
STOCK: dict[str, Any] = {"sd": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}


def teacher(folder: Path, **more: Any) -> Guided:
    loaded = fewstep.load(folder, **more)
    assert isinstance(loaded, Guided)
    assert isinstance(loaded.denoiser, Model)
    return loaded


def noise(n: int = 3) -> torch.Tensor:
    return Noise(0, range(n)).draw((4, 8, 8), torch.float32, torch.device("cpu"))


def stock(folder: Path, kind: str, steps: int = 4, **more: Any) -> torch.Tensor:
    """What the folder's own pipeline draws with DDIM, trailing: clean latents."""
    pipe = STOCK[kind].from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    pipe.set_progress_bar_config(disable=True)
    z = pipe(PROMPTS, num_inference_steps=steps, latents=noise(), output_type="latent", **more)
    return z.images


def assert_near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # Random eps-networks draw latents of size 30 to 60; the difference is relative to their size.
    assert float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["sd", "xl"])
@pytest.mark.parametrize(("steps", "w"), [(4, 3.0), (1, 6.5), (8, 0.0)])
def test_a_guided_teacher_draws_what_its_own_pipeline_draws(
    request: pytest.FixtureRequest, kind: str, steps: int, w: float
) -> None:
    folder = request.getfixturevalue(kind)
    cond = encode_prompts(folder, PROMPTS)
    ours = fewstep.sample(teacher(folder), cond, w=w, steps=steps)
    assert_near(ours, stock(folder, kind, steps, guidance_scale=1 + w))


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_negative_prompt_is_the_unconditional_pass(
    request: pytest.FixtureRequest, kind: str
) -> None:
    folder = request.getfixturevalue(kind)
    cond = encode_prompts(folder, PROMPTS)
    loaded = teacher(folder, negative_prompt="blurry")
    assert card_of(loaded).null_prompt == "blurry"
    ours = fewstep.sample(loaded, cond, w=3.0, steps=2)
    options = {"guidance_scale": 4.0, "negative_prompt": ["blurry"] * 3}
    assert_near(ours, stock(folder, kind, 2, **options))
    plain = fewstep.sample(teacher(folder), cond, w=3.0, steps=2)
    assert float((ours - plain).abs().max()) > 0.01


@pytest.mark.parametrize(
    "scheduler",
    [
        {},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {
            "_class_name": "DDIMScheduler",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
    ],
    ids=["eps", "v", "x", "v, zero terminal SNR"],
)
def test_stable_diffusion_keeps_the_laws_of_a_denoiser(
    tmp_path: Path, scheduler: dict[str, Any]
) -> None:
    loaded = teacher(sd_folder(tmp_path / "sd", **scheduler))
    cond = encode_prompts(tmp_path / "sd", PROMPTS)
    laws = check_denoiser(loaded, cond, null_cond=loaded.null_cond)
    assert len(laws) == 13
    check_denoiser(loaded.denoiser, cond)
    drawn = fewstep.sample(loaded, cond, w=2.0, steps=2)
    theirs = stock(tmp_path / "sd", "sd", 2, guidance_scale=3.0)
    assert_near(drawn, theirs)


def test_sdxl_keeps_the_laws_of_a_denoiser(xl: Path) -> None:
    loaded = teacher(xl)
    cond = encode_prompts(xl, PROMPTS)
    assert len(check_denoiser(loaded, cond, null_cond=loaded.null_cond)) == 13


def test_conditions_are_what_the_encoders_give(sd: Path, xl: Path) -> None:
    text = encode_prompts(sd, PROMPTS)
    assert isinstance(text, torch.Tensor)
    assert text.shape == (3, LENGTH, TEXT)
    assert not torch.allclose(text[0], text[1], atol=1e-2)
    both = encode_prompts(xl, PROMPTS, batch_size=2)
    assert isinstance(both, dict)
    assert {k: tuple(t.shape) for k, t in both.items()} == {
        "text": (3, LENGTH, 2 * TEXT),
        "pooled": (3, 8),
        "time_ids": (3, 6),
    }
    assert both["time_ids"][0].tolist() == [16, 16, 0, 0, 16, 16]


def test_encoders_are_opened_once_where_they_are_kept(
    sd: Path, xl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = prompts_part.load_part

    def counted(kind: Any, path: Path, **more: Any) -> Any:
        opened.append(path.name)
        return plain(kind, path, **more)

    monkeypatch.setattr(prompts_part, "load_part", counted)
    before = encode_prompts(sd, PROMPTS)
    assert opened == ["text_encoder"]
    with encoders_kept():
        for _ in range(3):
            assert torch.equal(encode_prompts(sd, PROMPTS), before)  # type: ignore[arg-type]
            encode_prompts(xl, PROMPTS[:1])
    assert opened == ["text_encoder"] * 3 + ["text_encoder_2"]
    encode_prompts(sd, PROMPTS)
    assert len(opened) == 5


def test_the_null_condition_is_what_the_folder_says(sd: Path, xl: Path, tmp_path: Path) -> None:
    null = teacher(sd).null_cond
    assert isinstance(null, torch.Tensor)
    assert torch.equal(null, encode_prompts(sd, [""]))
    zeros = teacher(xl).null_cond
    assert isinstance(zeros, dict)
    assert not zeros["text"].any()
    assert not zeros["pooled"].any()
    assert zeros["time_ids"].any()
    assert card_of(teacher(xl)).null_prompt is None
    other = xl_folder(tmp_path / "xl", force_zeros_for_empty_prompt=False)
    empty = teacher(other).null_cond
    assert isinstance(empty, dict)
    assert torch.equal(empty["text"], conds.take(encode_prompts(other, [""]), slice(0, 1))["text"])


def test_what_a_teacher_says_of_itself(sd: Path) -> None:
    loaded = teacher(sd)
    card = card_of(loaded)
    assert (card.family, card.prediction) == ("stable-diffusion", "epsilon")
    assert card.is_teacher
    assert (card.clock, card.shape, card.null_prompt) == ("table-1000-0.0292-1.5025", (4, 8, 8), "")
    assert loaded.passes == 2
    assert loaded.traits.clock(4)[-1] == 0.0
    assert loaded.traits.phi_range[1] == pytest.approx(1.5025, abs=1e-4)


def test_stage_one_stays_within_the_table(sd: Path) -> None:
    loaded = teacher(sd)
    assert fewstep.GuidanceDistillation(loaded, w_range=(2, 14)).phi == loaded.traits.phi_range
    assert fewstep.GuidanceDistillation(loaded, w_range=(2, 14), phi=(0.1, 0.2)).phi == (0.1, 0.2)


def test_stage_two_asks_its_teacher_on_the_teachers_grid(sd: Path) -> None:
    loaded = teacher(sd)
    stage = fewstep.StepDistillation(loaded, steps=4, w_range=(2, 14))
    assert stage.grid == loaded.traits.clock(4)
    asked = stage._table(torch.device("cpu"), torch.float64).phi.flatten().tolist()
    assert tuple(asked) == loaded.traits.clock(8)[:-1]


def test_long_prompts_are_cut_as_by_the_pipeline_and_it_is_said(sd: Path) -> None:
    with pytest.warns(FewstepWarning, match="1 of 2 prompts are longer than 12 tokens"):
        cond = encode_prompts(sd, ["a", "a b c d e f g h i j k l m"])
    assert torch.equal(cond[1], encode_prompts(sd, ["a b c d e f g h i j"])[0])


@pytest.mark.parametrize("prompts", [[], "a cat"])
def test_prompts_are_a_list(sd: Path, prompts: Any) -> None:
    with pytest.raises(RangeError, match="at least one prompt"):
        encode_prompts(sd, prompts)


def test_conditions_of_another_kind_are_refused(sd: Path, xl: Path) -> None:
    text, both = encode_prompts(sd, PROMPTS), encode_prompts(xl, PROMPTS)
    with pytest.raises(ShapeError, match="not a dict"):
        fewstep.sample(teacher(sd), both, steps=1)
    with pytest.raises(ShapeError, match="not a tensor"):
        fewstep.sample(teacher(xl), text, steps=1)
    with pytest.raises(ShapeError, match=r"\(B, L, 16\)"):
        fewstep.sample(teacher(sd), text[..., :8], steps=1)
    assert isinstance(both, dict)
    with pytest.raises(ShapeError, match="time_ids"):
        fewstep.sample(teacher(xl), {**both, "time_ids": both["pooled"]}, steps=1)


def test_solvers_walk_the_folders_own_table(sd: Path) -> None:
    model, cond = teacher(sd), encode_prompts(sd, PROMPTS)
    many = fewstep.sample(model, cond, w=2.0, steps=200)
    errors = [
        float((solve(model, cond, solver="unipc", w=2.0, steps=n) - many).square().mean().sqrt())
        for n in (4, 20)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_solvers_refuse_a_clock_of_ones_own() -> None:
    class Own:
        passes = 1
        traits = Traits(shape=(2,), clock=lambda n: tuple(1.0 - k / n for k in range(n + 1)))

        def __call__(self, z: torch.Tensor, *_: Any) -> torch.Tensor:
            return z

    with pytest.raises(RangeError, match="a clock of its own"):
        solve(Own(), torch.zeros(3, dtype=torch.int64), solver="unipc", steps=4)


def rename(path: Path, old: str, new: str) -> None:
    path.rename(path.with_name(path.name.replace(old, new, 1)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


INDEX, CONFIG = "model_index.json", "unet/config.json"
UNET, CLIP = "diffusion_pytorch_model.safetensors", "model.safetensors"
T5 = ["transformers", "T5EncoderModel"]
SPOILT: dict[str, Callable[[Path], object]] = {
    "pickled unet": lambda f: rename(f / "unet" / UNET, ".safetensors", ".bin"),
    "pickled encoder": lambda f: rename(f / "text_encoder" / CLIP, ".safetensors", ".bin"),
    "cut": lambda f: cut(f / "unet" / UNET),
    "no vae": lambda f: shutil.rmtree(f / "vae"),
    "no encoder listed": lambda f: edit(f / INDEX, text_encoder=[None, None]),
    "another pipeline": lambda f: edit(f / INDEX, _class_name="KolorsPipeline"),
    "another encoder": lambda f: edit(f / INDEX, text_encoder=T5),
    "distilled": lambda f: edit(f / CONFIG, time_cond_proj_dim=256),
    "inpainting": lambda f: edit(f / CONFIG, in_channels=9),
    "class labels": lambda f: edit(f / CONFIG, class_embed_type="timestep"),
    "index cut": lambda f: cut(f / INDEX),
}


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("pickled unet", r"unet/diffusion_pytorch_model\.bin is a pickle.*save_pretrained"),
        ("pickled encoder", r"text_encoder/model\.bin is a pickle.*save_pretrained"),
        ("cut", "unet cannot be read"),
        ("no vae", "vae/config.json is missing"),
        ("no encoder listed", "text_encoder: None; a stable-diffusion folder has 'CLIPTextModel'"),
        ("another pipeline", "_class_name: 'KolorsPipeline' is not understood"),
        ("another encoder", "text_encoder: 'T5EncoderModel'"),
        ("distilled", "time_cond_proj_dim: 256: this network was distilled already"),
        ("inpainting", "in_channels: 9 and out_channels: 4"),
        ("class labels", "class_embed_type: 'timestep'"),
        ("index cut", "model_index.json is not JSON"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_why(
    sd: Path, tmp_path: Path, how: str, match: str
) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    SPOILT[how](tmp_path / "sd")
    with pytest.raises(FolderError, match=match) as caught:
        fewstep.load(tmp_path / "sd")
    assert str(tmp_path / "sd") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_weights_in_pieces_loads(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / "unet")
    teacher(sd).denoiser.network.save_pretrained(tmp_path / "sd" / "unet", max_shard_size="20KB")
    assert not (tmp_path / "sd" / "unet" / UNET).exists()
    cond = encode_prompts(sd, PROMPTS)
    again = fewstep.sample(teacher(tmp_path / "sd"), cond, w=2.0, steps=1)
    assert torch.equal(again, fewstep.sample(teacher(sd), cond, w=2.0, steps=1))


def test_classes_take_no_negative_prompt(student: Any, tmp_path: Path) -> None:
    fewstep.models.save_model(student, tmp_path / "m")
    with pytest.raises(RangeError, match="draws classes"):
        fewstep.load(tmp_path / "m", negative_prompt="blurry")


def test_words_may_be_kept_as_in_published_folders(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    words = tmp_path / "sd" / "tokenizer"
    vocabulary = json.loads((words / "tokenizer.json").read_text())["model"]["vocab"]
    (words / "tokenizer.json").unlink()
    (words / "vocab.json").write_text(json.dumps(vocabulary))
    (words / "merges.txt").write_text("#version: 0.2\n")
    assert torch.equal(encode_prompts(tmp_path / "sd", PROMPTS), encode_prompts(sd, PROMPTS))


def test_a_cache_depends_on_the_encoders_alone(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "sd")
    expected = encoders_sha256(sd)
    edit(tmp_path / "sd" / "unet" / "config.json", dropout=0.5)
    assert encoders_sha256(tmp_path / "sd") == expected
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        weights = tmp_path / "sd" / f"{part}.safetensors"
        kept = weights.read_bytes()
        cut(weights)
        assert encoders_sha256(tmp_path / "sd") != expected
        weights.write_bytes(kept)


def test_cached_examples_are_those_of_the_encoders(sd: Path, tmp_path: Path) -> None:
    vae, pictures = load_vae(sd), torch.rand(5, 3, 16, 16, generator=torch.Generator())
    captions = [*PROMPTS, "x", "y"]

    def encode(part: range) -> tuple[torch.Tensor, conds.Cond]:
        few = slice(part.start, part.stop)
        return encode_images(vae, pictures[few] * 2 - 1), encode_prompts(sd, captions[few])

    who = {"model": encoders_sha256(sd), "data": "five"}
    data = cache_latents(tmp_path, who, 5, encode, shard_size=2, progress=False)
    x, cond = data.batch(torch.tensor([4, 1]))
    torch.testing.assert_close(x, encode_images(vae, pictures[[4, 1]] * 2 - 1))
    torch.testing.assert_close(cond, encode_prompts(sd, ["y", "two dogs"]))
    stage = fewstep.StepDistillation(teacher(sd), steps=4, w_range=(2, 14))
    assert stage(x, cond, torch.Generator()).v_target.isfinite().all()
