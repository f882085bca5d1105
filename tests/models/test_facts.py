"""A card is read as what a stranger wrote: its facts fit each other and the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models.pipelines import edit, w_student

from fewstep.errors import FewstepError, FolderError, ShapeError
from fewstep.folders import card_in, check_size, load, save_model
from fewstep.models import Model

TEACHER = {"name": "teacher", "parent": "data", "kind": "pretraining"}
FEW = {"name": "tiny", "parent": "teacher", "kind": "step-distillation", "steps": 4}


@pytest.fixture
def folder(student: Model, tmp_path: Path) -> Path:
    save_model(student, tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"null_class": 99}, "null_class must be num_classes"),
        ({"null_class": -1}, "null_class must be num_classes"),
        ({"num_classes": 50, "null_class": 50}, "num_classes must fit the network"),
        ({"num_classes": 10**400, "null_class": 10**400}, "num_classes must fit|damaged"),
        ({"class_names": ["a", "b"]}, "class_names must hold one name"),
        ({"clock": "other"}, "clock and prediction must be"),
        ({"prediction": "epsilon"}, "clock and prediction must be"),
        ({"w_band": -1.0}, "w_band must be"),
        ({"shape": [1, 8, 9]}, "shape must be that of the network"),
        ({"shape": [3, 8, 8]}, "shape must be that of the network"),
        ({"shape": []}, "shape must be channels"),
        ({"shape": [-1, 8, 8]}, "shape must be channels"),
        ({"shape": [1, 10**6, 10**6]}, "shape must be channels"),
        ({"stage": TEACHER | {"steps": 4}}, "stage: steps must be left out of pretraining"),
        ({"stage": TEACHER}, "w_range must be two numbers"),
        ({"stage": TEACHER, "w_range": None}, "an input for w"),
        ({"stage": FEW | {"kind": "halving"}}, "stage: kind must be one of"),
        ({"stage": FEW | {"kind": "guidance-distillation"}}, "steps must be left out"),
        ({"stage": FEW | {"steps": 0}}, "stage.steps must be greater than"),
        ({"stage": FEW | {"steps": 10**9}}, "stage.steps must be less than"),
        ({"stage": FEW | {"steps": None}}, "step distillation needs steps"),
        ({"stage": FEW | {"stride": 7}}, "stage.stride must be 1 or 2"),
        ({"stage": FEW | {"order": 3}}, "stage.order must be 1 or 2"),
        ({"stage": FEW | {"stride": 2, "direction": "encode"}}, "'encode' with stride 2"),
        ({"stage": FEW | {"sampler": "heun"}}, "stage.sampler is not permitted"),
        ({"stage": 3}, "stage must be"),
        ({"w_range": [4.0, 0.0]}, "w_range must be two finite numbers"),
        ({"w_range": None}, "w_range must be two numbers"),
        ({"name": "a\nb"}, "name must be one line"),
        ({"name": ""}, "name must be one line"),
        ({"family": "own"}, "holds a module of your own"),
        ({"family": "new"}, "family 'new' is unknown"),
        ({"training": {"lr": 1e999}}, "must be finite|not JSON"),
    ],
)
def test_a_card_that_contradicts_is_refused(
    folder: Path, change: dict[str, Any], match: str
) -> None:
    edit(folder / "fewstep.json", **change)
    with pytest.raises(FolderError, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": 1, "a": ' * 50_000,
        '{"format": 1e400}',
        '{"format": NaN}',
        "1" * 5000,
        "",
        "\x00",
        "[]",
        '{"format": 1, "shape": 1}',
        '{"format": 1, "stage": [], "parents": 5, "shape": 1}',
        '{"format": 2, "shape": 1}',
    ],
)
def test_a_card_that_is_no_card_ends_in_one_line(folder: Path, text: str) -> None:
    (folder / "fewstep.json").write_text(text)
    for opens in (load, card_in):
        with pytest.raises(FewstepError) as caught:
            opens(folder)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_figures_are_finite(folder: Path) -> None:
    text = (
        (folder / "fewstep.json").read_text().replace('"figures": {}', '"figures": {"fid": 1e999}')
    )
    (folder / "fewstep.json").write_text(text)
    with pytest.raises(FolderError, match="figures and training must hold finite numbers"):
        card_in(folder)


def test_steps_must_be_a_grid_of_the_table(sd: Path, tmp_path: Path) -> None:
    save_model(w_student(sd, 4), tmp_path / "m")
    edit(tmp_path / "m" / "fewstep.json", stage=FEW | {"steps": 3})
    with pytest.raises(FolderError, match=r"fewstep.json: steps = 3 does not divide"):
        load(tmp_path / "m")


def test_a_card_of_another_size_than_its_network_is_refused(sd: Path, tmp_path: Path) -> None:
    save_model(w_student(sd, 4), tmp_path / "m")
    edit(tmp_path / "m" / "fewstep.json", shape=[4, 16, 16])
    with pytest.raises(FolderError, match=r"shape must be that of the network"):
        load(tmp_path / "m")


def test_data_of_another_size_are_refused(sd: Path, student: Model) -> None:
    card = card_in(sd)
    check_size(card, (4, 8, 8), 2)
    with pytest.raises(ShapeError, match=r"images of 32x32 pixels in place of 16x16.*size to 16"):
        check_size(card, (4, 16, 16), 2)
    with pytest.raises(ShapeError, match=r"the images must have the shape \(1, 8, 8\)"):
        check_size(student.card, (3, 8, 8))
    assert json.loads(json.dumps(card.shape)) == [4, 8, 8]
