"""A student as two LoRA files: stock pipelines draw with them as fewstep does with the student."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.models.pipelines import draw_apart, sd_folder, w_student, xl_folder
from torch import Tensor

import fewstep
from fewstep.distill.plan import Stage
from fewstep.errors import RangeError
from fewstep.folders import encode_prompts, load_vae, save_model
from fewstep.folders.export.factors import of_difference
from fewstep.folders.export.lora import SLIDER, STUDENT
from fewstep.folders.export.slider import least_norm, strength
from fewstep.models import Lora, Model, decode_latents, merge_adapter, model_of, student_of
from fewstep.models.w_input import one_feature

PROMPTS = ["a cat", "two dogs"]
MANY_STEPS = (1, 2, 4, 8)
MANY_W = (0.0, 1.5, 4.0, 7.0, 12.0)
W_RANGE = (0.0, 12.0)
APART = Lora(rank=3, alpha=6, targets=("to_q", "to_v", "to_out.0", "conv1"), keep_apart=True)
MERGED = APART.model_copy(update={"keep_apart": False})
PIPELINES = {"sd": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline"}


@pytest.fixture(scope="module", params=PIPELINES)
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose embeddings of 8 timesteps are independent, as those of real ones are."""
    kind = request.param
    folder = {"sd": sd_folder, "xl": xl_folder}[kind](tmp_path_factory.mktemp("wide") / kind)
    config = {**UNet2DConditionModel.load_config(folder / "unet"), "block_out_channels": (32, 32)}
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(4)
        UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")
    return folder


def made(parent: Path, steps: int | None, lora: Lora | None = None, biases: bool = True) -> Model:
    """A student of one feature of w, moved away from its teacher as if it had been trained."""
    stage = Stage("student", "teacher", updates=1, steps=steps)
    student = student_of(
        fewstep.load(parent), stage, W_RANGE, w_dim=32, w_band="one", lora=lora, seed=1
    )
    draws = torch.Generator().manual_seed(5)
    norms = {n for n, m in student.named_modules() if "Norm" in type(m).__name__}
    for name, p in student.named_parameters():
        noise = torch.randn(p.shape, generator=draws)
        if "cond_proj" in name:
            p.data[:, one_feature(32)] += noise[:, 0]
            continue
        held = name.rpartition(".")[0] not in norms and (biases or not name.endswith("bias"))
        if p.requires_grad and held:
            p.data += (0.1 if lora else 0.02) * noise
    return student.eval()


def noise() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def check_it_draws_as_the_student(
    parent: Path, folders: dict[int, Path], files: dict[int, Path], tmp_path: Path
) -> None:
    """Compare the teacher's pipeline with both files to the live student, at five w's."""
    jobs = {
        f"{n} {w}": {
            "folder": str(parent),
            "pipeline": PIPELINES[parent.name],
            "call": {
                "prompt": PROMPTS, "latents": noise(), "num_inference_steps": n,
                "guidance_scale": 1.0,
            },
            "loras": {str(files[n] / STUDENT): 1.0, str(files[n] / SLIDER): strength(w)},
            "scheduler": str(files[n]),
        }
        for n in folders
        for w in MANY_W
    }  # fmt: skip
    drawn, cond, vae = draw_apart(jobs, tmp_path), encode_prompts(parent, PROMPTS), load_vae(parent)
    for n, folder in folders.items():
        student, different = fewstep.load(folder), []
        for w in MANY_W:
            z = fewstep.sample(student, cond, w=w, z=noise())
            found = drawn[f"{n} {w}"]
            assert found["batches"] == [2] * n
            ours = (decode_latents(vae, z) / 2 + 0.5).clamp(0, 1)
            assert float((found["images"] - ours).abs().max()) < 1e-4
            assert float((found["latents"] - z).abs().max()) < 1e-4 * float(z.abs().max())
            different.append(z)
        assert float((different[0] - different[-1]).abs().max()) > 0.01


def test_an_adapter_kept_apart(wide: Path, tmp_path: Path) -> None:
    folders, files = {}, {}
    for n in MANY_STEPS:
        folders[n], files[n] = tmp_path / f"student-{n}", tmp_path / f"lora-{n}"
        save_model(made(wide, n, APART), folders[n])
        lines = fewstep.export(folders[n], files[n], to="lora")
        assert lines[0].startswith(f"{STUDENT}: the adapter as it was trained, of rank 3")
    check_it_draws_as_the_student(wide, folders, files, tmp_path)


def test_a_student_of_all_weights_at_full_rank(wide: Path, tmp_path: Path) -> None:
    folders, files = {}, {}
    for n in MANY_STEPS:
        folders[n], files[n] = tmp_path / f"student-{n}", tmp_path / f"lora-{n}"
        save_model(made(wide, n), folders[n])
        fewstep.export(folders[n], files[n], to="lora", base=wide, rank=10_000)
        with safe_open(files[n] / STUDENT, "pt") as file:
            assert json.loads(file.metadata()["fewstep"])["left_out"] < 1e-6
    check_it_draws_as_the_student(wide, folders, files, tmp_path)


def test_keys_of_kohya(wide: Path, tmp_path: Path) -> None:
    folder, files = tmp_path / "student", tmp_path / "lora"
    save_model(made(wide, 4, biases=False), folder)
    fewstep.export(folder, files, to="lora", base=wide, rank=10_000, style="kohya")
    keys = load_file(files / SLIDER).keys()
    name = "lora_unet_time_embedding_linear_1"
    assert set(keys) == {f"{name}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    check_it_draws_as_the_student(wide, {4: folder}, {4: files}, tmp_path)


def test_a_lora_of_the_teacher_works_on_top_of_both_forms(sd: Path, tmp_path: Path) -> None:
    """A style, say, that was trained on the teacher: the same as merged into the student."""
    student, w, draws = made(sd, 4, APART), 4.0, torch.Generator().manual_seed(2)
    save_model(student, tmp_path / "student")
    fewstep.export(tmp_path / "student", tmp_path / "lora", to="lora")
    fewstep.export(tmp_path / "student", tmp_path / "folded", w=w)
    styled, tensors = merge_adapter(student), {}
    for name, layer in styled.network.named_modules():
        if name.endswith(("to_q", "to_v")):
            up, down = (0.3 * torch.randn(n, 2, generator=draws) for n in layer.weight.shape)
            tensors |= {f"unet.{name}.lora_A.weight": down.T.contiguous()}
            tensors |= {f"unet.{name}.lora_B.weight": up}
            layer.weight = torch.nn.Parameter(layer.weight + up @ down.T)
    save_file(tensors, tmp_path / "style.safetensors")
    call = {"prompt": PROMPTS, "latents": noise(), "num_inference_steps": 4, "guidance_scale": 1.0}
    shared = {"pipeline": PIPELINES["sd"], "call": call, "scheduler": str(tmp_path / "lora")}
    style = {str(tmp_path / "style.safetensors"): 1.0}
    both = {str(tmp_path / "lora" / STUDENT): 1.0, str(tmp_path / "lora" / SLIDER): strength(w)}
    jobs = {
        "files": {**shared, "folder": str(sd), "loras": {**both, **style}},
        "folded": {**shared, "folder": str(tmp_path / "folded"), "loras": style},
    }
    drawn, cond, vae = draw_apart(jobs, tmp_path), encode_prompts(sd, PROMPTS), load_vae(sd)
    ours, plain = (
        (decode_latents(vae, fewstep.sample(m, cond, w=w, z=noise())) / 2 + 0.5).clamp(0, 1)
        for m in (styled, student)
    )
    assert float((ours - plain).abs().max()) > 1e-3
    for found in drawn.values():
        assert float((found["images"] - ours).abs().max()) < 1e-4


def test_a_merged_adapter_is_found_again_at_its_own_rank(sd: Path, tmp_path: Path) -> None:
    save_model(made(sd, 4, MERGED), tmp_path / "student")
    student = tmp_path / "student"
    (line, _) = fewstep.export(student, tmp_path / "lora", to="lora", base=sd)
    found = load_file(tmp_path / "lora" / STUDENT)
    assert {len(t) for k, t in found.items() if "lora_A" in k} == {3}
    assert not any(k.endswith("bias") for k in found)
    assert "rank 64" in line
    left = float(line.split(", ")[1].split(" %")[0])
    assert left < 1e-4


def test_a_lower_rank_leaves_more_out(sd: Path) -> None:
    student, base = made(sd, 4), model_of(fewstep.load(sd)).network.state_dict()
    left = [of_difference(student.network, base, r, biases=True)[1] for r in (1, 4, 16, 64)]
    assert left == sorted(left, reverse=True)
    assert left[0] > 0.3
    assert left[-1] < 1e-6
    # Biases count where they cannot be held.
    assert of_difference(student.network, base, 64, biases=False)[1] > 0.01


def test_the_files_and_their_metadata(sd: Path, tmp_path: Path) -> None:
    student = made(sd, 4, APART)
    card = save_model(student, tmp_path / "student")
    _, line = fewstep.export(tmp_path / "student", tmp_path / "lora", to="lora")
    assert line == f"{SLIDER}: its strength is sin(0.1 w): 0 at w = 0, 0.932039 at w = 12"
    assert {str(p.relative_to(tmp_path / "lora")) for p in (tmp_path / "lora").rglob("*.*")} == {
        STUDENT, SLIDER, "README.md", "scheduler/scheduler_config.json"
    }  # fmt: skip
    for name in (STUDENT, SLIDER):
        with safe_open(tmp_path / "lora" / name, "pt") as file:
            metadata = json.loads(file.metadata()["fewstep"])
        assert (metadata["steps"], metadata["timesteps"]) == (4, [999, 749, 499, 249])
        assert metadata["base_sha256"] == card.parents[-1].sha256
        assert metadata["weights_sha256"] == card.weights_sha256
        assert metadata["guidance_strength"]["7"] == round(math.sin(0.7), 6)
    text = (tmp_path / "lora" / "README.md").read_text()
    assert "| 7 | 0.644218 |" in text
    assert card.parents[-1].sha256 in text
    # Written again over itself, and not over anything else.
    fewstep.export(tmp_path / "student", tmp_path / "lora", to="lora")


def test_the_vector_of_the_slider() -> None:
    draws = torch.Generator().manual_seed(0)
    t = torch.randn(4, 16, generator=draws, dtype=torch.float64)
    q = least_norm(t)
    torch.testing.assert_close(t @ q, torch.ones(4, dtype=torch.float64))
    # Of least norm: a combination of the embeddings.
    assert float(torch.linalg.lstsq(t.T, q[:, None]).residuals.sum()) < 1e-20
    with pytest.raises(RangeError, match=r"condition number of at most 100 .* got inf in 16"):
        least_norm(torch.randn(17, 16, generator=draws, dtype=torch.float64))


def test_what_cannot_become_lora_files(sd: Path, xl: Path, tmp_path: Path) -> None:
    apart = made(sd, 4, APART)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (made(sd, 8), {"base": sd}, "condition number of at most 100"),
        (made(sd, None), {"base": sd}, "any number of steps"),
        (w_student(sd, 4), {"base": sd}, "network.w_features=one"),
        (w_student(sd, 4, "encode"), {"base": sd}, "the sampler 'encode'"),
        (sd, {}, "got a teacher"),
        (made(sd, 4), {}, "base is required, the teacher that student was made from, sd"),
        (made(sd, 4), {"base": xl}, "base must be the teacher that student was made from, sd"),
        (made(sd, 4), {"base": sd, "rank": 0}, "rank must be a whole number above 0"),
        (made(sd, 4), {"base": sd, "style": "kohia"}, "Did you mean 'kohya'"),
        (made(sd, 4), {"base": sd, "w": 1.0}, "w must be left out for the format lora"),
        (apart, {"rank": 4}, "Leave out rank and base"),
    ]
    for model, options, wrong in cases:
        with pytest.raises(RangeError, match=wrong):
            fewstep.export(model, tmp_path / "out", to="lora", **options)
    assert not (tmp_path / "out").exists()
