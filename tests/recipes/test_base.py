"""`base:`: a recipe is another one with its own keys merged into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fewstep.errors import NoDataError, RecipeError
from fewstep.recipes.config import check_recipe, differences, is_resolved, load_recipe, save_recipe


def written(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_dictionaries_merge_and_other_values_replace(tmp_path: Path) -> None:
    digits = load_recipe("digits")
    text = "name: mine\nbase: digits\nteacher: {updates: 9}\nevaluate: {w: [0.5]}\n"
    mine = load_recipe(written(tmp_path, text))
    assert differences(digits, mine) == ["about", "evaluate.w", "name", "teacher.updates"]
    assert (mine.name, mine.about, mine.seed) == ("mine", "unmeasured", digits.seed)
    assert mine.teacher == digits.teacher.model_copy(update={"updates": 9})
    assert mine.evaluate.w == (0.5,)
    stages = "distill: {stages: [{parent: teacher, steps: 4}]}\n"
    mine = load_recipe(written(tmp_path, "name: mine\nbase: digits\n" + stages))
    assert [s.name for s in mine.distill.plan()] == ["student-4"]
    assert mine.distill.updates == digits.distill.updates


def test_null_leaves_out_what_the_base_sets_or_is_the_value(tmp_path: Path) -> None:
    text = "name: mine\nbase: latent-small\nnetwork: {w_band: null}\n"
    text += "teacher: null\ndata: {captions: null}\ndistill: {ema: null}\n"
    mine, default = load_recipe(written(tmp_path, text)), load_recipe("digits")
    default = check_recipe({"name": "d", "data": {"name": "digits"}}, "d")
    assert mine.network.w_band is None
    assert default.network.w_band is not None
    assert mine.teacher == default.teacher
    assert mine.data.captions == default.data.captions
    assert mine.distill.ema == default.distill.ema
    assert mine.distill.w == load_recipe("latent-small").distill.w
    text = "name: mine\nbase: latent-small\nlatents: null\n"
    assert load_recipe(written(tmp_path, text)).latents is None
    with pytest.raises(RecipeError, match=r"mine\.yaml: teacher must be"):
        load_recipe(written(tmp_path, "name: mine\nbase: comparisons\nteacher: null\n"))


def test_a_base_is_found_beside_the_file_and_may_have_a_base(tmp_path: Path) -> None:
    written(tmp_path, "teacher: {lr: 0.1}\n", "shared/part")  # no name, no data: no whole recipe
    written(tmp_path, "base: part.yaml\ndata: {name: digits}\nseed: 3\n", "shared/whole")
    mine = load_recipe(written(tmp_path, "name: mine\nbase: shared/whole.yaml\nseed: 4\n"))
    assert (mine.teacher.lr, mine.data.name, mine.seed) == (0.1, "digits", 4)


def test_a_resolved_recipe_has_no_base(tmp_path: Path) -> None:
    mine = load_recipe(written(tmp_path, "name: mine\nbase: digits\nseed: 3\n"))
    save_recipe(mine, tmp_path / "run" / "recipe.yaml")
    assert "base" not in yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert is_resolved(tmp_path / "run" / "recipe.yaml")
    assert load_recipe(str(tmp_path / "run")) == mine
    again = load_recipe(written(tmp_path, "name: mine\nbase: run\nseed: 5\n", "again"))
    assert differences(again, mine) == ["seed"]


def test_set_changes_the_merged_recipe(tmp_path: Path) -> None:
    path = written(tmp_path, "name: mine\nbase: digits\nteacher: {updates: 9}\n")
    assert load_recipe(path, ["distill.stages.1.updates=7"]).distill.stages[1].updates == 7
    with pytest.raises(RecipeError, match=r"^--set teacher.lr=-1: teacher.lr must be"):
        load_recipe(path, ["teacher.lr=-1"])
    with pytest.raises(RecipeError, match=r"^--set base=digits: base must stand in the recipe's"):
        load_recipe(path, ["base=digits"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: digit", r"mine\.yaml: base: recipe 'digit' is neither .* Did you mean 'digits'"),
        ("base: mine.yaml", r"mine\.yaml: base must not lead back .*mine\.yaml -> .*mine\.yaml\."),
        ("base: there.yaml", r"there\.yaml: base must not lead back .*mine\.yaml -> .*there\.yaml"),
        ("base: [digits]", r"mine\.yaml: base must be the name or the path of one recipe, got \["),
        ("base: wrong.yaml", r"wrong\.yaml: teacher\.lr must be greater than 0"),
        ("base: wrong.yaml\nteacher: {ema: 2}", r"wrong\.yaml: teacher\.lr .* And 1 more\.$"),
        ("base: wrong.yaml\nteacher: {lr: -2}", r"mine\.yaml: teacher\.lr must be greater than 0"),
        ("base: stages.yaml", r"stages\.yaml: distill\.stages\.0\.parent is required"),
        ("base: yes.yaml", r"yes\.yaml: teacher\.updates must be a number, got True"),
        ("base: digits\nteacher: {lrr: 1}", r"mine\.yaml: teacher\.lrr .* Did you mean 'lr'"),
        ("base: list.yaml", r"list\.yaml must hold keys and values"),
        ("bse: digits\ndata: {name: digits}", r"bse is not a key\. Did you mean 'base'"),
    ],
)
def test_a_wrong_base_is_one_line_with_its_file_and_key(
    tmp_path: Path, text: str, says: str
) -> None:
    written(tmp_path, "base: mine.yaml\n", "there")
    written(tmp_path, "base: digits\nteacher: {lr: -1}\n", "wrong")
    written(tmp_path, "base: digits\ndistill: {stages: [{steps: 4}]}\n", "stages")
    written(tmp_path, "base: digits\nteacher: {updates: yes}\n", "yes")
    written(tmp_path, "- 1\n", "list")
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(written(tmp_path, f"name: mine\n{text}\n"))
    assert "\n" not in str(caught.value)


def test_a_name_and_data_are_required_of_the_whole(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"mine\.yaml: name is required"):
        load_recipe(written(tmp_path, "base: digits\n"))
    written(tmp_path, "name: part\n", "part")
    path = written(tmp_path, "name: mine\nbase: part.yaml\n")
    with pytest.raises(NoDataError, match=r"mine\.yaml: data\.name is required"):
        load_recipe(path)
    assert load_recipe(path, ["data.name=digits"]).data.name == "digits"


def test_keys_without_end_end(tmp_path: Path) -> None:
    loop = "teacher: &a {teacher: *a}\n"
    written(tmp_path, loop, "loop")
    with pytest.raises(RecipeError, match=r"teacher\.teacher is not a key"):
        load_recipe(written(tmp_path, f"name: mine\nbase: loop.yaml\n{loop}"))
