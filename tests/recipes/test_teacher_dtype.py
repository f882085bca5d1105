"""A teacher whose weights are held in bf16 while its students are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tests.models.test_families import FOLDERS, conditions, question
from tests.recipes.test_lora import LORA, RECIPE

from fewstep.core.denoiser import Guided
from fewstep.distill.plan import Stage
from fewstep.errors import RecipeError
from fewstep.folders import load
from fewstep.models import Lora, Model, model_of, read_card, student_of
from fewstep.recipes import preflight, samples
from fewstep.recipes.config import Recipe, check_recipe
from fewstep.recipes.run import Run
from fewstep.recipes.samples import track_of
from fewstep.recipes.schema import TrackConfig
from fewstep.recipes.teachers import hold_matrices
from fewstep.train import TrainConfig, loop
from fewstep.train.log import read_metrics


def recipe(**distill: object) -> Recipe:
    shared = {
        "batch_size": 8,
        "updates": 3,
        "warmup": 0,
        "log_every": 1,
        "stages": [{"parent": "teacher"}],
    }
    given = {**RECIPE, "distill": {**shared, "precision": "bf16", **distill}}
    return check_recipe(given, "recipe.yaml")


HELD = {"teacher_dtype": "bfloat16"}


@pytest.fixture
def bf16_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where such a run is refused for its speed, and can be seen all the same."""
    for module in (loop, preflight):
        monkeypatch.setattr(module, "check_trainable", lambda config, device: None)
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("kind", ["stable-diffusion", "stable-diffusion-3", "sana"])
def test_the_guided_pair_answers_as_before_in_half_the_memory(tmp_path: Path, kind: str) -> None:
    folder = FOLDERS[kind](tmp_path / "stock")
    guided, cond = load(folder), conditions(folder)
    z, phi = question(folder)
    w = torch.full((3,), 7.0)

    def size() -> int:
        return sum(p.numel() * p.element_size() for p in model_of(guided).parameters())

    before = size()
    with torch.no_grad():
        exact = guided(z, phi, cond, w)
        with torch.autocast("cpu", torch.bfloat16):
            whole = guided(z, phi, cond, w)
            hold_matrices(model_of(guided), torch.bfloat16)
            held = guided(z, phi, cond, w)
    assert size() < 0.6 * before
    assert held.dtype == torch.float32
    rounding = float((whole - exact).norm())
    assert rounding > 0
    # Tables that are added, not multiplied, are rounded in addition to what autocast rounds.
    assert float((held - exact).norm()) < 2 * rounding


def run(path: Path, **distill: object) -> Run:
    made = Run(recipe(**distill), path, "cpu", progress=False)
    made.prepare()
    made.train_teacher()
    for stage in made.plan:
        made.distill(stage)
    return made


def network(made: Run, name: str) -> dict[str, torch.Tensor]:
    loaded = made.load(name)
    model: Any = loaded.denoiser if isinstance(loaded, Guided) else loaded
    assert isinstance(model, Model)
    return dict(model.network.named_parameters())


@pytest.mark.usefixtures("bf16_on_a_cpu")
def test_a_run_learns_the_same_from_it(tmp_path: Path) -> None:
    plain, held = run(tmp_path / "plain"), run(tmp_path / "held", **HELD)
    teacher = network(plain, "teacher")
    losses = [[row["loss"] for row in read_metrics(made.workspace.training("stage-one"))]
              for made in (plain, held)]  # fmt: skip
    assert len(losses[0]) == 3
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    said = [read_card(made.folder("stage-one")).training for made in (plain, held)]
    assert said[0]["fingerprint"] != said[1]["fingerprint"]
    bytes_of = sum(4 * p.numel() for p in teacher.values())
    saved = said[0]["memory_estimate_bytes"] - said[1]["memory_estimate_bytes"]  # type: ignore[operator]
    assert saved > 0.45 * bytes_of


@pytest.mark.usefixtures("bf16_on_a_cpu")
def test_a_lora_shares_what_is_held_and_is_merged_in_float32(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", lora=LORA)
    held = run(tmp_path / "held", lora=LORA, **HELD)
    teacher, student = network(held, "teacher"), network(held, "stage-one")
    merged = 0
    for name, weight in teacher.items():
        rounded = weight.bfloat16().float() if weight.ndim > 1 else weight
        if not any(f".{target}." in name for target in LORA["targets"]):  # type: ignore[attr-defined]
            assert torch.equal(student[name], rounded), name
        elif weight.ndim > 1:
            difference = student[name] - rounded
            merged += int((difference != 0).any())
            assert not torch.equal(student[name], student[name].bfloat16().float())
    assert merged
    said = [read_card(made.folder("stage-one")).training for made in (plain, held)]
    saved = said[0]["memory_estimate_bytes"] - said[1]["memory_estimate_bytes"]  # type: ignore[operator]
    # The base is there once, and autocast need not copy it.
    assert saved > 0.45 * sum(4 * p.numel() for p in teacher.values())


def test_samples_for_trackers_are_drawn_in_the_students_own_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FOLDERS["stable-diffusion"](tmp_path / "stock")
    seen: list[torch.dtype] = []

    def decoder(_model: Model, _device: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: (seen.append(x.dtype), x)[1]

    monkeypatch.setattr(samples, "image_decoder", decoder)
    parent = load(folder)
    student = student_of(parent, Stage("stage-one", "teacher"), (0.0, 4.0), lora=Lora(**LORA))  # type: ignore[arg-type]
    hold_matrices(model_of(parent), torch.bfloat16)
    assert torch.bfloat16 in {p.dtype for p in student.parameters()}
    track = {"trackers": ["tensorboard"], "images_every": 1}
    asked = recipe(lora=LORA, **HELD).model_copy(update={"track": TrackConfig(**track)})  # type: ignore[arg-type]
    tracked = track_of(asked, student, lambda *_: (None, conditions(folder)), TrainConfig())  # type: ignore[arg-type,return-value]
    assert tracked is not None
    assert tracked.images is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert len(tracked.images()) == 3
    assert seen == [torch.float32] * 3


def test_it_needs_a_network_that_computes_in_bf16(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="must be float32 unless precision is bf16"):
        recipe(precision="fp32", **HELD)
