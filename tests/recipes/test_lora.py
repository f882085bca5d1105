"""A study whose students are LoRAs: one key of the recipe, the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewstep.errors import RecipeError
from fewstep.models import Model, read_card
from fewstep.recipes.config import Recipe, check_recipe
from fewstep.recipes.run import Run
from fewstep.train import memory

LORA = {"rank": 2, "alpha": 4, "targets": ["to_q", "to_k", "to_v", "to_out.0"]}
RECIPE = {
    "name": "lora",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "attention": [False, True], "w_dim": 32},
    "teacher": {"updates": 3, "batch_size": 8},
    "distill": {
        "batch_size": 8,
        "updates": 3,
        "lora": LORA,
        "stages": [
            {"parent": "teacher"},
            {"parent": "stage-one", "steps": 2},
            {"parent": "teacher", "steps": 4, "pair": True},
        ],
    },
}


def recipe(**lora: object) -> Recipe:
    distill = {**RECIPE["distill"], "lora": {**LORA, **lora}}  # type: ignore[dict-item]
    return check_recipe({**RECIPE, "distill": distill}, "recipe.yaml")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    lines: list[str] = []
    run = Run(recipe(), tmp_path_factory.mktemp("run"), "cpu", say=lines.append, progress=False)
    run.prepare()
    run.train_teacher()
    for stage in run.plan:
        run.distill(stage)
    return run, lines


def test_every_student_is_a_merged_lora_of_its_parent(study: tuple[Run, list[str]]) -> None:
    run, _ = study
    teacher = run.load("teacher").denoiser  # type: ignore[union-attr]
    assert isinstance(teacher, Model)
    before = dict(teacher.network.named_parameters())
    for name in ("stage-one", "student-2"):
        card, model = read_card(run.folder(name)), run.load(name)
        assert isinstance(model, Model)
        assert card.lora is not None
        assert (card.lora.rank, card.lora.alpha, card.lora.merged) == (2, 4, True)
        changed = {
            n for n, p in model.network.named_parameters()
            if n not in before or not torch.equal(p, before[n])
        }  # fmt: skip
        assert changed
        assert all(".to_" in n or "cond_proj" in n for n in changed)
    assert [p.name for p in read_card(run.folder("student-2")).parents] == ["stage-one", "teacher"]


def test_a_pair_has_no_w_input(study: tuple[Run, list[str]]) -> None:
    run, _ = study
    pair = run.load("pair-4").denoiser  # type: ignore[union-attr]
    assert isinstance(pair, Model)
    assert pair.w_dim is None


def test_its_memory_is_told_before_and_after_and_kept(study: tuple[Run, list[str]]) -> None:
    run, lines = study
    for name in ("teacher", "stage-one", "student-2"):
        printed = [line for line in lines if line.startswith(f"{name}: ")]
        assert "memory about " in printed[1]
        assert "MB (weights " in printed[1]
        assert " s, memory at most " in printed[2]
        training = read_card(run.folder(name)).training
        assert training["memory_estimate_bytes"] > 0
        # Some containers do not let a process reset its peak, which is then not known.
        assert training.get("memory_peak_bytes", 1) > 0
        assert "memory_peak_bytes" in training or not memory._forget_peak()


def test_what_is_wrong_is_said_by_its_key(study: tuple[Run, list[str]], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"distill\.lora\.rank"):
        recipe(rank=0)
    with pytest.raises(RecipeError, match=r"distill\.lora\.rnk is not a key.*'rank'"):
        recipe(rnk=4)
    finished, _ = study
    with pytest.raises(RecipeError, match=r"distill\.lora\.rank"):
        Run(recipe(rank=3), finished.out, "cpu", progress=False).prepare()
    # A folder in which nothing depends on the adapter yet takes another one.
    Run(recipe(), tmp_path / "run", "cpu", progress=False).prepare()
    Run(recipe(rank=3), tmp_path / "run", "cpu", progress=False).prepare()
