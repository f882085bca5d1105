"""Students of stock pipeline folders: surgery, training, and what a saved folder holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.pipelines import edit, w_student
from torch import Tensor

import fewstep
from fewstep.atomic import sha256
from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided
from fewstep.distill.plan import Stage
from fewstep.errors import FolderError, GridError, RangeError, ShapeError
from fewstep.folders import encode_prompts, load_model, save_model
from fewstep.models import Model, card_of, student_of
from fewstep.testing import Gaussian, check_denoiser, check_stage
from fewstep.train import TrainConfig, train

PROMPTS = ["a cat", "two dogs", "rain", "x"]
ONE = Stage("stage-one", "teacher", updates=60)
FOUR = Stage("student-4", "teacher", updates=60, steps=4)
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def guided(folder: Path, **more: Any) -> Guided:
    loaded = fewstep.load(folder, **more)
    assert isinstance(loaded, Guided)
    return loaded


def question(teacher: Guided) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(3)
    z = torch.randn(4, 4, 8, 8, generator=draws)
    low, high = teacher.traits.phi_range
    return z, low + (high - low) * torch.rand(4, generator=draws)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_student_equals_the_conditional_teacher_bit_for_bit_at_every_w(
    request: pytest.FixtureRequest, kind: str
) -> None:
    folder = request.getfixturevalue(kind)
    teacher, cond = guided(folder), encode_prompts(folder, PROMPTS)
    student = student_of(teacher, ONE, (2, 14)).eval()
    z, phi = question(teacher)
    with torch.no_grad():
        expected = teacher.denoiser(z, phi, cond, torch.zeros(4))
        for w in (-1.0, 0.0, 2.3, 14.0):
            assert torch.equal(student(z, phi, cond, torch.full((4,), w)), expected)


def test_the_w_input_learns_in_its_slow_columns_only(sd: Path) -> None:
    teacher = guided(sd)
    student = student_of(teacher, ONE, (2, 14), w_dim=32)
    z, phi = question(teacher)
    v = student(z, phi, encode_prompts(sd, PROMPTS), torch.tensor([2.0, 5.0, 9.0, 14.0]))
    v.square().mean().backward()
    used = student.network.time_embedding.cond_proj.weight.grad.abs().sum(dim=0) > 0
    assert 0 < int(used.sum()) < 32
    assert not used[0]
    assert not used[16]


def test_a_student_is_told_where_it_comes_from(sd: Path) -> None:
    card = student_of(guided(sd, negative_prompt="blurry"), FOUR, (2, 14)).card
    assert (card.name, card.stage.kind, card.steps, card.sampler) == (
        "student-4",
        "step-distillation",
        4,
        "deterministic",
    )
    assert (card.w_range, card.w_band, card.null_prompt) == ((2, 14), 1.0, "blurry")
    assert [p.name for p in card.parents] == ["sd"]
    assert card.parents[0].sha256 == sha256(sd / WEIGHTS)


def test_a_student_of_a_student_is_a_plain_copy_with_a_longer_line(
    sd: Path, tmp_path: Path
) -> None:
    save_model(w_student(sd), tmp_path / "one")
    one = load_model(tmp_path / "one")
    two = student_of(one, FOUR, (2, 14)).eval()
    assert two.w_dim == 32
    assert [p.name for p in two.card.parents] == ["student", "sd"]
    assert two.card.parents[0].sha256 == sha256(tmp_path / "one" / WEIGHTS)
    cond, w = encode_prompts(sd, PROMPTS), torch.tensor([2.0, 5.0, 9.0, 14.0])
    z, phi = question(guided(sd))
    with torch.no_grad():
        assert torch.equal(one(z, phi, cond, w), two(z, phi, cond, w))
    with pytest.raises(RangeError, match="parent's range"):
        student_of(one, FOUR, (2, 20))


def test_what_cannot_have_a_student_is_refused(sd: Path) -> None:
    with pytest.raises(ShapeError, match="no network"):
        student_of(Gaussian(0.0, 0.4), FOUR, (0, 4))  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="low <= high"):
        student_of(guided(sd), FOUR, (4, 0))
    with pytest.raises(GridError, match="does not divide"):
        Stage("three", "teacher", updates=1, steps=3).problem(guided(sd), (2, 14))


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_stages_on_these_teachers_keep_their_laws(
    request: pytest.FixtureRequest, kind: str
) -> None:
    folder = request.getfixturevalue(kind)
    teacher, cond = guided(folder), encode_prompts(folder, PROMPTS)
    x = 0.5 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    changes: tuple[dict[str, int], ...] = ({}, {"order": 2}, {"substeps": 5, "order": 2})
    for stage in (ONE, *(FOUR.model_copy(update=change) for change in changes)):
        assert len(check_stage(stage.problem(teacher, (2, 14)), x, cond)) >= 4


def trained(
    folder: Path, stage: Stage, tmp_path: Path, updates: int = 50
) -> tuple[Model, float, float]:
    """Train; return the student, and its error on states not trained on, before and after."""
    teacher, cond = guided(folder), encode_prompts(folder, PROMPTS)
    problem = stage.problem(teacher, (0, 4))

    def batch(update: int, _part: int, _parts: int) -> tuple[Tensor, Cond]:
        draws = torch.Generator().manual_seed(update)
        index = torch.randint(4, (16,), generator=draws)
        return 0.5 * torch.randn(16, 4, 8, 8, generator=draws), conds.take(cond, index)

    student = student_of(teacher, stage, (0, 4))
    held = [problem(*batch(n, 0, 1), torch.Generator().manual_seed(n)) for n in (10**6, 10**7)]

    def error() -> float:
        with torch.no_grad():
            found = [(student(r.z, r.phi, r.cond, r.w) - r.v_target).square() for r in held]
        return float(torch.cat(found).mean())

    before = error()
    config = TrainConfig(updates=updates, batch_size=16, lr=5e-4, warmup=5, ema=0.95)
    result = train(student, problem, batch, config, tmp_path / "run", progress=False)
    student.load_state_dict(result.ema_state)
    assert isinstance(student, Model)
    return student, before, error()


@pytest.mark.parametrize(("kind", "stage"), [("sd", ONE), ("sd", FOUR), ("xl", FOUR)])
def test_both_stages_train_on_them(
    request: pytest.FixtureRequest, kind: str, stage: Stage, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(kind)
    student, before, after = trained(folder, stage, tmp_path)
    print(kind, stage.name, before, after)
    assert after < 0.9 * before
    used = student.network.time_embedding.cond_proj.weight.abs().sum(dim=0) > 0
    assert 0 < int(used.sum()) < 128
    card = save_model(student, tmp_path / "student")
    loaded = fewstep.load(tmp_path / "student")
    cond = encode_prompts(tmp_path / "student", PROMPTS)
    ours = fewstep.sample(student.eval(), cond, w=2.0, steps=4)
    assert torch.equal(fewstep.sample(loaded, cond, w=2.0, steps=4), ours)
    assert card_of(loaded) == card
    check_denoiser(loaded, cond, w_range=(0.0, 4.0))


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_saved_folder_is_a_stock_one_and_a_card(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    parent = request.getfixturevalue(kind)
    student = w_student(parent, steps=4)
    save_model(student, tmp_path / "m")
    theirs = {str(p.relative_to(parent)) for p in parent.rglob("*") if p.is_file()}
    ours = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    assert ours == theirs | {"fewstep.json", "README.md"}
    changed = {"model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS}
    for name in theirs - changed:
        assert (parent / name).read_bytes() == (tmp_path / "m" / name).read_bytes()
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    scheduler = json.loads((tmp_path / "m" / "scheduler" / "scheduler_config.json").read_text())
    expected = {
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
        "prediction_type": "epsilon",
        "beta_start": 0.00085,
    }
    assert {k: scheduler[k] for k in expected} == expected


def test_reload_is_bit_equal(sd: Path, tmp_path: Path) -> None:
    student = w_student(sd, steps=4)
    card = save_model(student, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.card == card
    assert card.weights_sha256 == sha256(tmp_path / "m" / WEIGHTS)
    for key, value in student.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_a_student_is_checked_when_it_is_sampled(sd: Path, tmp_path: Path) -> None:
    save_model(w_student(sd, steps=4), tmp_path / "m")
    student, cond = fewstep.load(tmp_path / "m"), encode_prompts(sd, PROMPTS)
    assert student.passes == 1
    with pytest.raises(RangeError, match="made for 4"):
        fewstep.sample(student, cond, w=2.0, steps=8)
    with pytest.raises(RangeError, match=r"\[-1, 14\]"):
        fewstep.sample(student, cond, w=15.0)
    with pytest.raises(RangeError, match="in its weights"):
        fewstep.load(tmp_path / "m", negative_prompt="blurry")


def test_a_teacher_is_saved_as_it_is(sd: Path, tmp_path: Path) -> None:
    teacher = guided(sd, negative_prompt="blurry")
    assert isinstance(teacher.denoiser, Model)
    save_model(teacher.denoiser, tmp_path / "t")
    again, cond = guided(tmp_path / "t"), encode_prompts(sd, PROMPTS)
    assert card_of(again).null_prompt == "blurry"
    expected = fewstep.sample(teacher, cond, w=3.0, steps=2)
    assert torch.equal(fewstep.sample(again, cond, w=3.0, steps=2), expected)
    assert student_of(again, FOUR, (0, 4)).card.parents[0].sha256 == sha256(sd / WEIGHTS)


def test_only_safe_and_needed_files_are_copied(sd: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(sd, parent)
    for name in (
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin.index.json",
        "text_encoder/model.safetensors.index.fp16.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "LICENSE.md",
        "v1-5-pruned.ckpt",
    ):
        (parent / name).write_text("x")
    save_model(w_student(parent), tmp_path / "m")
    new = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*") if p.is_file()}
    old = {str(p.relative_to(sd)) for p in sd.rglob("*") if p.is_file()}
    pieces = "text_encoder/model-00001-of-00002.safetensors"
    assert new - old == {"fewstep.json", "README.md", "LICENSE.md", pieces}


def test_a_failed_save_leaves_the_old_folder(sd: Path, tmp_path: Path) -> None:
    shutil.copytree(sd, tmp_path / "parent")
    student = w_student(tmp_path / "parent")
    save_model(student, tmp_path / "m")
    before = (tmp_path / "m" / "fewstep.json").read_bytes()
    shutil.rmtree(tmp_path / "parent" / "vae")
    with pytest.raises(FolderError, match="vae is missing"):
        save_model(student, tmp_path / "m")
    assert (tmp_path / "m" / "fewstep.json").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "parent"]
    assert fewstep.load(tmp_path / "m").passes == 1


def test_a_model_is_saved_over_the_folder_it_came_from(sd: Path, tmp_path: Path) -> None:
    save_model(w_student(sd), tmp_path / "m")
    model = load_model(tmp_path / "m")
    model.card = model.card.model_copy(update={"figures": {"fid": 12.5}})
    save_model(model, tmp_path / "m")
    assert card_of(fewstep.load(tmp_path / "m")).figures == {"fid": 12.5}
    assert encode_prompts(tmp_path / "m", ["a"]).shape[0] == 1


@pytest.mark.parametrize("change", [{"prediction_type": "v_prediction"}, {"beta_end": 0.02}])
def test_a_student_under_another_clock_is_refused(
    sd: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    save_model(w_student(sd), tmp_path / "m")
    edit(tmp_path / "m" / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(FolderError, match=r"json says table-1000-0\.0292-1\.5025, epsilon"):
        fewstep.load(tmp_path / "m")
