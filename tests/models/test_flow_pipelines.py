"""Families of rectified flow against their own stock pipelines: teachers, students, adapters."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tests.models.pipelines import draw_apart, edit, sana_folder, sd3_folder
from tests.models.test_families import W, live
from torch import Tensor

import fewstep
from fewstep.core.angle import phi_from_flow, rotate
from fewstep.core.denoiser import Guided
from fewstep.core.samplers import get_sampler, run
from fewstep.core.seed import Noise
from fewstep.distill.plan import Stage
from fewstep.errors import FolderError, ShapeError
from fewstep.folders import encode_prompts, load, load_model, load_vae, save_model
from fewstep.models import Lora, decode_latents, encode_images, fold_w, model_of, student_of
from fewstep.models.clocks.flow import FlowClock
from fewstep.testing import check_denoiser

PROMPTS = ["a cat", "two dogs", "rain"]


@dataclass(frozen=True)
class Case:
    """A family: its folder, its stock pipeline, and what its calls need besides the usual."""

    make: Callable[[Path], Path]
    pipeline: str
    call: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    prompts: list[str] = field(default_factory=lambda: PROMPTS)


SD3 = "StableDiffusion3Pipeline"
SMALL = {"height": 32, "width": 32, "use_resolution_binning": False}
CASES = {
    "sd3": Case(sd3_folder, SD3),
    "sd3 without t5": Case(
        lambda path: sd3_folder(path, t5=False), SD3, without=("text_encoder_3", "tokenizer_3")
    ),
    "sd3 by resolution": Case(
        lambda path: sd3_folder(path, use_dynamic_shifting=True, base_shift=0.7), SD3
    ),
    "sana": Case(sana_folder, "SanaPipeline", SMALL),
    "sana of scaled time": Case(
        lambda path: sana_folder(path, timestep_scale=0.5, out_channels=8), "SanaPipeline", SMALL
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.make(tmp_path_factory.mktemp("stock") / "model")


def noise_like(model: Any, count: int) -> Tensor:
    shape = model_of(model).card.shape
    return Noise(0, range(count)).draw(shape, torch.float32, torch.device("cpu"))


def opened(case: Case, folder: Path) -> Any:
    kind = getattr(diffusers, case.pipeline)
    pipe = kind.from_pretrained(folder, **dict.fromkeys(case.without))
    pipe.set_progress_bar_config(disable=True)
    if isinstance(pipe.scheduler, diffusers.DPMSolverMultistepScheduler):
        # Published Sana folders have a solver of second order; Euler's steps are those compared.
        shift = pipe.scheduler.config.flow_shift
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    return pipe


def check_close(ours: Tensor, theirs: Tensor) -> None:
    size = max(1.0, float(theirs.abs().max()))
    assert float((ours - theirs).abs().max()) < 1e-4 * size


@pytest.mark.parametrize("w", [3.5, 0.0])
def test_the_guided_teacher_draws_what_its_pipeline_draws(
    case: Case, folder: Path, tmp_path: Path, w: float
) -> None:
    """20 steps: of the untouched folder given sigmas, and of a teacher saved again as it is."""
    teacher = load(folder)
    noise = noise_like(teacher, len(case.prompts))
    cond = encode_prompts(folder, case.prompts)
    ours = fewstep.sample(teacher, cond, w=w, steps=20, z=noise)
    call = {"latents": noise, "guidance_scale": 1 + w, "output_type": "latent", **case.call}
    sigmas = list(np.linspace(1.0, 1 / 20, 20))
    theirs = opened(case, folder)(case.prompts, num_inference_steps=20, sigmas=sigmas, **call)
    check_close(ours, theirs.images)
    save_model(load_model(folder), tmp_path / "again")
    again = opened(case, tmp_path / "again")(case.prompts, num_inference_steps=20, **call)
    check_close(ours, again.images)
    moved = fewstep.sample(teacher, cond, w=w + 1, steps=20, z=noise)
    assert float((moved - ours).abs().max()) > 1e-2  # prompts, and so guidance, matter


def test_the_grid_that_its_own_scheduler_walks_gives_its_images(case: Case, folder: Path) -> None:
    teacher, pipe = load(folder), opened(case, folder)
    noise = noise_like(teacher, len(case.prompts))
    seen: list[Tensor] = []

    def look(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(pipe.scheduler.sigmas)
        return {}

    theirs = pipe(
        case.prompts, num_inference_steps=4, guidance_scale=4.5, latents=noise,
        output_type="latent", callback_on_step_end=look, **case.call,
    ).images  # fmt: skip
    grid = tuple(phi_from_flow(seen[0].double()).tolist())
    cond, w = encode_prompts(folder, case.prompts), torch.full((len(noise),), 3.5)
    ours = run(get_sampler("deterministic"), teacher, noise, cond, w, grid)
    check_close(ours, theirs)


def test_a_negative_prompt_is_the_unconditional_pass(case: Case, folder: Path) -> None:
    teacher = load(folder, negative_prompt="blurry")
    noise = noise_like(teacher, 1)
    ours = fewstep.sample(teacher, encode_prompts(folder, ["a cat"]), w=3.0, steps=2, z=noise)
    theirs = opened(case, folder)(
        "a cat", negative_prompt="blurry", num_inference_steps=2, sigmas=[1.0, 0.5],
        guidance_scale=4.0, latents=noise, output_type="latent", **case.call,
    ).images  # fmt: skip
    check_close(ours, theirs)


def test_it_keeps_the_laws_of_a_denoiser(case: Case, folder: Path) -> None:
    teacher, cond = load(folder), encode_prompts(folder, case.prompts)
    assert isinstance(teacher, Guided)
    assert len(check_denoiser(teacher, cond, null_cond=teacher.null_cond)) == 13


def test_folded_students_draw_in_the_stock_pipeline(
    case: Case, folder: Path, tmp_path: Path
) -> None:
    """N network evaluations at batch B, where fewstep cannot be imported; a LoRA's are merged."""
    student = live(folder)
    cond, noise = encode_prompts(folder, case.prompts), noise_like(student, len(case.prompts))
    jobs, ours = {}, {}
    for steps in (1, 2, 4, 8):
        few = student_of(student, Stage(parent="teacher", steps=steps), W).eval()
        save_model(fold_w(few, 2.5), tmp_path / f"{steps}")
        ours[steps] = fewstep.sample(few, cond, w=2.5, z=noise)
        jobs[str(steps)] = {
            "folder": str(tmp_path / f"{steps}"),
            "pipeline": case.pipeline,
            "without": case.without,
            "call": {
                "prompt": case.prompts,
                "num_inference_steps": steps,
                "guidance_scale": 1.0,
                "latents": noise,
                **case.call,
            },
        }
    drawn = draw_apart(jobs, tmp_path)
    for steps, latents in ours.items():
        job = drawn[str(steps)]
        assert job["batches"] == [len(case.prompts)] * steps
        check_close(latents, job["latents"])
        pixels = (decode_latents(load_vae(folder), latents) / 2 + 0.5).clamp(0, 1)
        check_close(pixels, job["images"])


def test_a_lora_student_comes_back(case: Case, folder: Path, tmp_path: Path) -> None:
    student = live(folder, Lora(rank=2, alpha=4))
    for name, weight in student.network.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    cond, noise = encode_prompts(folder, case.prompts), noise_like(student, len(case.prompts))
    before = fewstep.sample(student, cond, w=2.0, z=noise)
    save_model(student, tmp_path / "merged")
    again = load(tmp_path / "merged")
    check_close(fewstep.sample(again, cond, w=2.0, z=noise), before)
    save_model(fold_w(again, 2.0), tmp_path / "folded")
    theirs = opened(case, tmp_path / "folded")(
        case.prompts, num_inference_steps=4, guidance_scale=1.0, latents=noise,
        output_type="latent", **case.call,
    ).images  # fmt: skip
    check_close(before, theirs)
    apart = student_of(
        load(folder), Stage("apart", "teacher", steps=4), W, w_dim=32,
        lora=Lora(rank=2, keep_apart=True),
    )  # fmt: skip
    save_model(apart, tmp_path / "apart")
    drawn = fewstep.sample(load(tmp_path / "apart"), cond, w=2.0, z=noise)
    check_close(drawn, fewstep.sample(apart, cond, w=2.0, z=noise))


def test_latents_are_shifted_and_scaled_as_the_pipeline_does(case: Case, folder: Path) -> None:
    vae = load_vae(folder)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    with torch.no_grad():
        made = vae.encode(x)
        own = made.latent if hasattr(made, "latent") else made.latent_dist.mode()
    shift = vae.config.get("shift_factor") or 0.0
    z = encode_images(vae, x)
    torch.testing.assert_close(z, (own - shift) * vae.config.scaling_factor)
    with torch.no_grad():
        torch.testing.assert_close(decode_latents(vae, z), vae.decode(own).sample)


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        ("transformer", {"out_channels": 8}, "in_channels and out_channels must be as many"),
        ("transformer", {"patch_size": 0}, "patch_size must be a whole number above 0, got 0"),
        ("vae", {"shift_factor": "x"}, "shift_factor must be null or a finite number, got 'x'"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "are trained on rectified flow"),
        ("scheduler", {"stochastic_sampling": True}, "stochastic_sampling: True"),
    ],
)
def test_a_stable_diffusion_3_of_another_kind_is_refused(
    tmp_path: Path, part: str, changes: dict[str, Any], match: str
) -> None:
    folder = sd3_folder(tmp_path / "sd3")
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(folder / part / name, **changes)
    with pytest.raises(FolderError, match=match):
        load_vae(folder) if part == "vae" else load(folder)


def test_parts_that_are_not_optional_are_missed(tmp_path: Path) -> None:
    edit(sd3_folder(tmp_path / "a") / "model_index.json", text_encoder_2=[None, None])
    with pytest.raises(FolderError, match="text_encoder_2: None; a stable-diffusion-3 folder has"):
        load(tmp_path / "a")
    shutil.rmtree(sd3_folder(tmp_path / "b") / "text_encoder_3")
    with pytest.raises(FolderError, match="text_encoder_3"):
        load(tmp_path / "b")


def test_a_tokenizer_that_stayed_without_its_encoder_is_no_harm(tmp_path: Path) -> None:
    edit(sd3_folder(tmp_path / "sd3") / "model_index.json", text_encoder_3=[None, None])
    cond = encode_prompts(tmp_path / "sd3", ["a cat"])
    assert isinstance(cond, dict)
    assert not cond["text"][:, -256:].any()


@pytest.mark.parametrize(
    ("cond", "match"),
    [
        (torch.zeros(1, 3, 32), "a dict of text, pooled, not a tensor"),
        ({"text": torch.zeros(1, 3, 31), "pooled": torch.zeros(1, 16)}, r"\(B, L, 32\)"),
        ({"text": torch.zeros(1, 3, 32), "pooled": torch.zeros(1, 15)}, r"pooled .* \(B, 16\)"),
    ],
)
def test_conditions_of_another_kind_are_refused(tmp_path: Path, cond: Any, match: str) -> None:
    teacher = load(sd3_folder(tmp_path / "sd3"))
    with pytest.raises(ShapeError, match=match):
        fewstep.sample(teacher, cond, steps=1)


def test_a_sana_that_is_a_sprint_is_refused(tmp_path: Path) -> None:
    edit(sana_folder(tmp_path / "sana") / "transformer" / "config.json", guidance_embeds=True)
    with pytest.raises(FolderError, match="guidance_embeds must be false"):
        load(tmp_path / "sana")


def test_a_folder_of_sprint_is_refused_and_says_why(tmp_path: Path) -> None:
    edit(sana_folder(tmp_path / "sana") / "model_index.json", _class_name="SanaSprintPipeline")
    with pytest.raises(FolderError, match=r"Sprint.*is not read: .* consistency model"):
        load(tmp_path / "sana")


def test_sprint_has_our_angles_and_adds_noise_between_its_steps(tmp_path: Path) -> None:
    """Why Sana has no slot: one step of its pipeline is ours, two are not determined."""
    made = sana_folder(tmp_path / "sana", guidance_embeds=True, timestep_scale=0.001)
    pipe = diffusers.SanaSprintPipeline.from_pretrained(made, scheduler=diffusers.SCMScheduler())
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def drawn(steps: int, seed: int, **call: Any) -> Tensor:
        draws = torch.Generator().manual_seed(seed)
        call = {"latents": noise, "output_type": "latent", "generator": draws, **SMALL, **call}
        out: Tensor = pipe(PROMPTS, num_inference_steps=steps, guidance_scale=3.0, **call).images
        return out

    clock, phi = FlowClock(), torch.full((3,), 1.2)
    asked = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    text, mask = pipe.encode_prompt(PROMPTS, complex_human_instruction=asked)
    with torch.no_grad():
        predicted = pipe.transformer(
            clock.state(noise, phi),
            timestep=clock.place(phi)[1] * pipe.transformer.config.timestep_scale,
            guidance=torch.full((3,), 3.0 * pipe.transformer.config.guidance_embeds_scale),
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            return_dict=False,
        )[0]
    ours = rotate(noise, clock.velocity(predicted, noise, phi), phi)
    once = {"max_timesteps": 1.2, "intermediate_timesteps": None}
    check_close(ours, drawn(1, 0, **once))
    assert float((drawn(2, 0) - drawn(2, 1)).abs().max()) > 1e-2


def test_the_readme_says_how_the_folder_is_opened(tmp_path: Path) -> None:
    folder = sd3_folder(tmp_path / "sd3", t5=False)
    save_model(fold_w(live(folder), 2.5), tmp_path / "folded")
    text = (tmp_path / "folded" / "README.md").read_text()
    assert 'from_pretrained("path/to/student", text_encoder_3=None, tokenizer_3=None)' in text
    assert "`guidance_scale` must be 1" in text
    assert "num_inference_steps=4, guidance_scale=1\n" in text
    assert '"clock": "flow-1000-3.0000"' in (tmp_path / "folded" / "fewstep.json").read_text()
    one = student_of(load(folder), Stage("one", "teacher"), (1.0, 1.0))
    save_model(one, tmp_path / "one")
    text = (tmp_path / "one" / "README.md").read_text()
    assert "`num_inference_steps` may be any number.\n" in text


def test_a_card_must_be_of_its_scheduler(tmp_path: Path) -> None:
    save_model(fold_w(live(sd3_folder(tmp_path / "sd3")), 2.5), tmp_path / "folded")
    edit(tmp_path / "folded" / "scheduler" / "scheduler_config.json", shift=2.0)
    with pytest.raises(FolderError, match=r"is of flow-1000-2.0000, flow; .* says flow-1000-3"):
        load(tmp_path / "folded")
    edit(tmp_path / "folded" / "fewstep.json", prediction="epsilon")
    with pytest.raises(FolderError, match="prediction must be 'flow' on a clock of rectified flow"):
        load(tmp_path / "folded")
