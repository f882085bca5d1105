"""Exports, opened where fewstep cannot be imported: the same images as the live student's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.pipelines import draw_apart
from tests.models.test_families import FOLDERS, FOUR, conditions, live
from torch import Tensor

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.distill.plan import Stage
from fewstep.errors import FewstepError, FolderError, RangeError
from fewstep.folders import load, load_vae, save_model
from fewstep.folders.export import FORMATS
from fewstep.models import Model, decode_latents, model_of, student_of
from fewstep.models.pipeline import ClassConditionalPipeline

ONE = Stage("student", "teacher", updates=1)
NAMES = ("stable-diffusion", "stable-diffusion-xl", "dit", "pixart-sigma", "pixart-alpha")
PROMPTS = ["a cat", "two dogs", ""]
MANY_STEPS = (1, 2, 4, 8)
W = 2.5


def noise() -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))


def call_of(student: Model, steps: int) -> dict[str, Any]:
    """What a stock pipeline is called with to draw the conditions of the families' tests."""
    call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0}
    if student.family.name == "dit":
        return {**call, "class_labels": [3, 0, 7], "seed": 7}
    if student.family.name.startswith("pixart"):
        call |= {"use_resolution_binning": False, "clean_caption": False}
    return {**call, "prompt": PROMPTS, "latents": noise()}


def images(student: Model, cond: Any, steps: int, w: float) -> Tensor:
    z = fewstep.sample(student, cond, w=w, steps=steps, z=noise())
    return (decode_latents(load_vae(student.source or ""), z) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_folder_draws_as_the_live_student(name: str, tmp_path: Path) -> None:
    stock = FOLDERS[name](tmp_path / "stock")
    save_model(live(stock, stage=ONE), tmp_path / "live")
    student = model_of(load(tmp_path / "live"))
    lines = fewstep.export(tmp_path / "live", tmp_path / "folded", w=W)
    assert lines == ("w = 2.5 is fixed in the weights; use guidance scale 1",)
    pipeline = student.family.pipelines[0]
    jobs = {
        str(n): {
            "folder": str(tmp_path / "folded"), "pipeline": pipeline, "call": call_of(student, n)
        }
        for n in MANY_STEPS
    }  # fmt: skip
    drawn, cond = draw_apart(jobs, tmp_path), conditions(stock)
    for n in MANY_STEPS:
        ours = images(student, cond, n, W)
        assert drawn[str(n)]["batches"] == [3] * n
        assert float(((ours > 0) & (ours < 1)).float().mean()) > 0.3
        assert float((drawn[str(n)]["images"] - ours).abs().max()) < 1e-4
        assert float((images(student, cond, n, 0.0) - ours).abs().max()) > 1e-3


def test_a_folded_class_model_draws_in_one_pass(student: Model, tmp_path: Path) -> None:
    fewstep.export(student, tmp_path / "folded", to="diffusers", w=W)
    pipe = ClassConditionalPipeline.from_pretrained(tmp_path / "folded")
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    calls: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    found = pipe([3, 7], guidance_scale=1 + W, latents=z, output_type="latent").images
    wanted = fewstep.sample(student, torch.tensor([3, 7]), w=W, z=z)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert calls == [2] * 4


def guided(folder: Path) -> Guided:
    found = load(folder)
    assert isinstance(found, Guided)
    return found


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({}, "w is required"),
        ({"w": 9.0}, r"w must lie in \[0, 4\]"),
        ({"w": float("nan")}, r"w must lie in \[0, 4\]"),
        ({"to": "difusers"}, "Did you mean 'diffusers'"),
        ({"w": 1.0, "v": 2}, "v is no option of an export"),
    ],
)
def test_wrong_options_are_refused(
    student: Model, tmp_path: Path, options: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(RangeError, match=wrong):
        fewstep.export(student, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_models_without_an_input_for_w_are_refused(sd: Path, tmp_path: Path) -> None:
    pair = student_of(guided(sd), Stage("p", "teacher", steps=4, pair=True), (0.0, 4.0))
    dit = FOLDERS["dit"](tmp_path / "dit")
    fixed = student_of(guided(dit), FOUR, (3.0, 3.0))
    own = torch.nn.Linear(1, 1)
    cases: list[tuple[Any, str]] = [
        (sd, "got a teacher"),
        (pair, "a student of two passes"),
        (fixed, "for w = 3 alone"),
        (own, "does not come from a model folder"),
    ]
    for model, wrong in cases:
        with pytest.raises(FewstepError, match=wrong):
            fewstep.export(model, tmp_path / "out", w=1.0)


def test_a_model_is_not_replaced_by_its_own_export(student: Model, tmp_path: Path) -> None:
    save_model(student, tmp_path / "live")
    with pytest.raises(FolderError, match="is the model that is read"):
        fewstep.export(tmp_path / "live", tmp_path / "x" / ".." / "live", w=W)


def test_formats_are_listed_under_their_names() -> None:
    assert all(name == f.name and f.about for name, f in FORMATS.items())
