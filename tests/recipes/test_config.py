"""Recipes: what is built in is right, round trips, and what is wrong is said by its key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fewstep.distill.plan import Stage
from fewstep.errors import RecipeError
from fewstep.recipes.config import (
    built_in_recipes,
    differences,
    load_recipe,
    save_recipe,
)


@pytest.mark.parametrize("name", built_in_recipes())
def test_every_built_in_recipe_loads_plans_and_comes_back(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about != "unmeasured" or "unmeasured" in recipe.about
    assert recipe.distill.plan().stages
    save_recipe(recipe, tmp_path / "again.yaml")
    assert load_recipe(str(tmp_path / "again.yaml")) == recipe


def test_overrides_reach_any_key() -> None:
    recipe = load_recipe(
        "digits",
        [
            "seed=7",
            "distill.lr=1e-3",
            "distill.stages.1.updates=9",
            "evaluate.w=[0, 1.5]",
            "network.channels=[8, 16]",
        ],
    )
    assert (recipe.seed, recipe.distill.lr, recipe.evaluate.w) == (7, 1e-3, (0.0, 1.5))
    assert recipe.distill.plan().stages[1].updates == 9
    assert recipe.network.channels == (8, 16)
    changed = differences(load_recipe("digits"), recipe)
    assert {"seed", "distill.lr", "evaluate.w", "network.channels"} <= set(changed)


def test_a_stage_has_its_own_learning_rate_or_the_shared_one() -> None:
    recipe = load_recipe(
        "digits",
        [
            "distill.lr=1e-3",
            "distill.stages=[{parent: teacher, lr: 5e-4}, {parent: stage-one, steps: 2}]",
        ],
    )
    one, two = recipe.distill.plan()
    assert isinstance(one, Stage)
    assert recipe.train_config(one).lr == 5e-4
    assert recipe.train_config(two).lr == 1e-3
    assert recipe.train_config(None).updates == recipe.teacher.updates


def test_a_stage_has_states_of_its_own_or_the_shared_ones() -> None:
    stages = "distill.stages=[{parent: teacher}, {parent: stage-one, steps: 4, states: noised}]"
    recipe = load_recipe("digits", ["distill.states=trajectory", stages])
    assert [s.states for s in recipe.distill.plan()] == ["trajectory", "noised"]
    assert [s.states for s in load_recipe("digits", [stages]).distill.plan()] == ["noised"] * 2
    assert recipe.distill.plan().cost(8) == load_recipe("digits", [stages]).distill.plan().cost(8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [", "is not YAML"),
        ("- a", "keys and values"),
        ("name: Big Name", "name"),
        ("name: a\nnetwork: {chanels: [8]}", "Did you mean 'channels'"),
        ("name: a\nteacher: {lr: -1}", "teacher.lr"),
        ("name: a\ndistill: {stages: [{steps: 4}]}", "distill.stages.0.parent"),
        ("name: a\ndistill: {stages: [{parent: teacher, steps: 4, strid: 2}]}", "'stride'"),
        ("name: a\nevaluate: {w: [5]}", "outside distill.w"),
        ("name: a\nwarmup: 3", "warmup is not a key"),
        ("name: a\ndistill: {states: walked}", "distill.states"),
        (
            "name: a\ndistill: {batch_size: 8, accumulate: 2, states: trajectory,"
            " stages: [{parent: teacher, steps: 8}]}",
            "a batch of 4 cannot hold a trajectory of 8 states",
        ),
        (
            "name: a\ndistill: {stages: [{parent: teacher, steps: 4, stride: 2,"
            " direction: encode, states: trajectory}]}",
            "got 'encode' with stride 2",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_resolved_recipe_of_before_is_read(tmp_path: Path) -> None:
    """It had null for the name and the settings that stages share."""
    stage = {"name": None, "updates": None, "lr": None, "states": None, "steps": None}
    stages = [{**stage, "parent": "teacher"}, {**stage, "parent": "stage-one", "steps": 4}]
    text = yaml.safe_dump({"name": "a", "data": {"name": "digits"}, "distill": {"stages": stages}})
    (tmp_path / "r.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "r.yaml"), ["distill.updates=7"])
    assert [(s.name, s.updates, s.states) for s in recipe.distill.plan()] == [
        ("stage-one", 7, "noised"),
        ("student-4", 7, "noised"),
    ]
    save_recipe(recipe, tmp_path / "again.yaml")
    again = load_recipe(str(tmp_path / "again.yaml"), ["distill.updates=9"])
    assert [s.updates for s in again.distill.plan()] == [9, 9]


def test_a_plan_out_of_order_is_refused() -> None:
    with pytest.raises(RecipeError, match="not made before"):
        load_recipe("digits", ["distill.stages=[{parent: student-8, steps: 4}]"])


def test_the_file_that_comes_with_the_package_is_plain_yaml() -> None:
    from fewstep.recipes.base import BUILT_IN

    assert yaml.safe_load((BUILT_IN / "digits.yaml").read_text())["name"] == "digits"
