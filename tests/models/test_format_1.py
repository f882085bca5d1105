"""Cards of format 1, which kept the settings of a stage beside the rest, are still read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models.pipelines import edit

import fewstep
from fewstep.errors import FolderError
from fewstep.folders import card_in, load, save_model
from fewstep.models import Model, card_of
from fewstep.models.card import read_card

SHARED = {
    "format": 1, "fewstep": "0.1.0", "family": "unet-class", "clock": "native-1024",
    "shape": [1, 8, 8], "num_classes": 10, "class_names": [], "null_class": 10, "prediction": None,
    "null_prompt": None, "w_band": 1.0, "lora": None, "weights_sha256": "", "figures": {},
    "training": {"updates": 400, "lr": 0.003},
}  # fmt: skip
PLAIN = {
    "w_range": None, "pair": False, "steps": None, "substeps": None, "order": None, "stride": 1,
    "direction": "decode", "sampler": None, "parents": [],
}  # fmt: skip
PARENTS = [{"name": "stage-one", "sha256": "b"}, {"name": "teacher", "sha256": "a"}]
MADE = {"w_range": [-0.5, 4.5], "parents": PARENTS}
FEW = MADE | {"stage": "halve", "steps": 4, "substeps": 2, "order": 1, "sampler": "deterministic"}
CARDS: dict[str, dict[str, Any]] = {
    "teacher": {"stage": "teacher"},
    "stage-one": MADE | {"stage": "match", "parents": PARENTS[1:]},
    "student-4": FEW,
    "student-4-stochastic": FEW | {"stride": 2, "substeps": 4, "sampler": "stochastic"},
    "encoder-4": FEW | {"direction": "encode", "sampler": "encode"},
    "pair-4": FEW | {"pair": True, "w_range": None, "parents": PARENTS[1:]},
}
STAGES = {
    "teacher": fewstep.Stage("teacher", "data", kind="pretraining"),
    "stage-one": fewstep.Stage("stage-one", "teacher"),
    "student-4": fewstep.Stage("student-4", "stage-one", steps=4),
    "student-4-stochastic": fewstep.Stage(None, "stage-one", steps=4, stride=2, substeps=4),
    "encoder-4": fewstep.Stage("encoder-4", "stage-one", steps=4, direction="encode"),
    "pair-4": fewstep.Stage("pair-4", "teacher", steps=4, pair=True),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_stored_card_is_read(name: str, tmp_path: Path) -> None:
    stored = SHARED | PLAIN | {"name": name} | CARDS[name]
    (tmp_path / "fewstep.json").write_text(json.dumps(stored))
    card = read_card(tmp_path)
    assert card.stage == STAGES[name]
    for key in ("steps", "direction", "pair", "sampler"):
        assert getattr(card, key) == stored[key]
    assert card.model_dump(mode="json")["format"] == 2
    for key in stored.keys() - {*PLAIN, "format", "stage"}:
        assert card.model_dump(mode="json")[key] == stored[key]


def test_a_folder_of_format_1_loads_as_it_was_saved(student: Model, tmp_path: Path) -> None:
    save_model(student, tmp_path / "m")
    path = tmp_path / "m" / "fewstep.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | PLAIN | FEW | {"name": "student-4", "format": 1}))
    again = load(tmp_path / "m")
    assert card_of(again).stage == fewstep.Stage("student-4", "stage-one", steps=4)
    a, b = (fewstep.sample(m, cond=[3], w=2.0, seed=0) for m in (student, again))
    assert bool((a == b).all())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "stage.steps must be greater than"),
        ({"steps": None}, "step distillation needs steps"),
        ({"stage": "teacher"}, "steps must be left out of pretraining"),
        ({"stage": ["halve"]}, "stage.kind must be a valid string"),
        ({"parents": 5}, "parents"),
        ({"format": 3}, "has format '3'; this fewstep reads the formats 1 and 2"),
        ({"format": True}, "format"),
    ],
)
def test_what_is_wrong_in_it_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "fewstep.json").write_text(
        json.dumps(SHARED | PLAIN | {"name": "student-4"} | FEW | change)
    )
    if change == {"format": True}:
        edit(tmp_path / "fewstep.json", format=True)
    with pytest.raises(FolderError, match=says):
        card_in(tmp_path)
