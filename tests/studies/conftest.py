"""A run of the digits with small networks that are hardly trained: what the studies read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewstep.folders import save_model
from fewstep.measure.evaluate import Evaluation
from fewstep.models import model_of, student_of
from fewstep.recipes.config import Recipe, check_recipe
from fewstep.recipes.run import Run


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    stages = [{"parent": "teacher"}]
    stages += [{"parent": "stage-one", "steps": n} for n in (8, 4, 2, 1)]
    return check_recipe(
        {
            "name": "small",
            "data": {"name": "digits"},
            "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
            "teacher": {"updates": 1, "batch_size": 8},
            "distill": {"w": [-0.5, 4.5], "updates": 1, "batch_size": 8, "stages": stages},
            "evaluate": {"samples": 20, "reference_steps": 16, "batch_size": 20},
        },
        "test",
    )


@pytest.fixture(scope="session")
def run_folder(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with the features for its figures; not to be changed.

    The students are untrained copies of stage one.
    """
    out = tmp_path_factory.mktemp("runs") / "demo"
    run = Run(recipe, out, "cpu", progress=False)
    run.prepare()
    run.train_teacher()
    one, *students = run.plan
    run.distill(one)
    parent = model_of(run.load(one.name))
    for stage in students:
        save_model(student_of(parent, stage, recipe.distill.w), run.folder(stage.name))
    assert Evaluation(recipe.data, out / "evaluation", samples=20).features.name == "digits"
    return out
