"""The distance of cells to the teacher's samples of another seed, and its floor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.recipes.making import guided, image_folder
from tests.recipes.making import teacher as pets_teacher
from torch import Tensor

import fewstep
from fewstep.core.seed import Noise, derive
from fewstep.data import DataConfig
from fewstep.errors import TimeUp
from fewstep.limit import time_limit
from fewstep.measure import drawing, redrawn
from fewstep.measure.cell import DDIM, Cell
from fewstep.measure.drawing import How
from fewstep.measure.evaluate import Evaluation
from fewstep.measure.redrawn import Redrawn
from fewstep.metrics import FD_TO_TEACHER, FeatureOutput, frechet_distance, moments

MOVED, FEW, SPREAD = 0.3, 2, (0.1, 0.2)  # of a model of FEW steps, and the spread of both


class Corner:
    """The first two pixels of an image, as they are."""

    name, sha256, num_classes = "corner", "0", None

    def __call__(self, x: Tensor) -> FeatureOutput:
        return FeatureOutput(x.flatten(1)[:, :2], None)


def gaussians(_model: object, how: How, _conditions: object, part: range) -> Tensor:
    """Images of independent Gaussian pixels in place of a model's: other ones of FEW steps."""
    noise = Noise(how.seed, part).draw((3, 8, 8), torch.float32, torch.device("cpu"))
    few = how.steps == FEW
    return noise * SPREAD[few] + MOVED * few


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images") / "pets")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "redrawn-cache"))


def evaluation_in(folder: Path, pets: Path, samples: int, **more: Any) -> Evaluation:
    made = Evaluation(DataConfig(name=str(pets), held_out=0.0), folder, samples=samples, **more)
    vars(made)["features"] = Corner()
    return made


def both(evaluation: Evaluation, *, with_it: bool = True) -> tuple[Cell, Cell]:
    """Return the cells of a teacher of 4 steps and of FEW."""
    model = guided(pets_teacher())
    again = Redrawn(evaluation, model, DDIM, 4, 1.0) if with_it else None
    many = evaluation.cell("teacher", model, w=1.0, steps=4, redrawn=again)
    few = evaluation.cell("few", model, w=1.0, steps=FEW, teacher=many, redrawn=again)
    return many, few


def test_gaussians_in_closed_form(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_states", gaussians)
    many, few = both(evaluation_in(tmp_path, pets, 2000))
    floor, apart = many.figures.fd_to_teacher, few.figures.fd_to_teacher
    assert apart == pytest.approx(2 * MOVED**2 + 2 * (SPREAD[0] - SPREAD[1]) ** 2, rel=0.05)
    assert floor is not None
    assert 0 < floor < 1e-3 * apart  # other samples of one distribution
    assert not {FD_TO_TEACHER} & {*many.missing, *few.missing}


def test_the_samples_are_those_of_another_seed(pets: Path, tmp_path: Path) -> None:
    many, few = both(evaluation_in(tmp_path, pets, 20))
    seed, labels = derive(0, FD_TO_TEACHER), torch.arange(20) % 2
    drawn = [
        fewstep.sample(guided(pets_teacher()), labels, w=1.0, steps=n, seed=s)
        for n, s in ((4, 0), (FEW, 0), (4, seed))
    ]
    seen = [moments(Corner()(x).features) for x in drawn]
    for cell, own in zip((many, few), seen[:2], strict=True):
        want = frechet_distance(own, seen[2])
        assert cell.figures.fd_to_teacher == pytest.approx(want, rel=1e-3)


def test_they_are_drawn_once(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    first = both(evaluation_in(tmp_path, pets, 20, say=said.append))
    assert [line for line in said if line.startswith(FD_TO_TEACHER)] == [
        "fd_to_teacher: drew the samples of the teacher's 4 steps with another seed at w = 1"
    ]
    (tmp_path / "results.sqlite").unlink()  # measured again, against what is kept

    def drawn_again(*_: object) -> None:
        pytest.fail("the teacher was drawn again")

    monkeypatch.setattr(redrawn, "drawer", drawn_again)
    again = both(evaluation_in(tmp_path, pets, 20))
    assert [cell.figures for cell in again] == [cell.figures for cell in first]


def test_a_cell_that_was_measured_without_gets_it_later(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = both(evaluation_in(tmp_path / "a", pets, 20))
    before = both(evaluation_in(tmp_path / "b", pets, 20), with_it=False)
    assert [cell.figures.fd_to_teacher for cell in before] == [None, None]
    assert before[0].missing[FD_TO_TEACHER] == redrawn.NOT_DRAWN
    assert FD_TO_TEACHER not in whole[0].missing
    results = evaluation_in(tmp_path / "b", pets, 20).results
    for record in results.records():  # as earlier versions wrote them
        old = {k: v for k, v in record.figures.items() if k != FD_TO_TEACHER}
        results.put(replace(record, figures=old))
    assert both(evaluation_in(tmp_path / "b", pets, 20), with_it=False) == before
    monkeypatch.setattr("fewstep.measure.measured.drawer", None)  # no cell is drawn again
    after = both(evaluation_in(tmp_path / "b", pets, 20))
    for got, had, want in zip(after, before, whole, strict=True):
        assert got.figures.fd_to_teacher == pytest.approx(want.figures.fd_to_teacher, rel=1e-6)
        assert replace(got.figures, fd_to_teacher=None) == had.figures
        assert got.key == had.key == want.key
    monkeypatch.setattr(redrawn, "drawer", None)
    assert both(evaluation_in(tmp_path / "b", pets, 20)) == after


def test_a_cell_whose_images_are_not_all_kept_stays_without(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = both(evaluation_in(tmp_path, pets, 20), with_it=False)
    monkeypatch.setattr(redrawn, "KEPT", 7)
    after = both(evaluation_in(tmp_path, pets, 20))
    assert [cell.figures for cell in after] == [cell.figures for cell in before]
    assert after[1].missing[FD_TO_TEACHER] == redrawn.NOT_KEPT


@pytest.mark.parametrize("later", [False, True])
def test_samples_of_the_teacher_that_are_not_finite_are_explained(
    pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    plain = drawing._states

    def lost(model: Any, how: How, *rest: Any) -> Tensor:
        states = plain(model, how, *rest)
        return states if how.seed == 0 else states * torch.nan

    monkeypatch.setattr(drawing, "_states", lost)
    if later:
        both(evaluation_in(tmp_path, pets, 20), with_it=False)
    cells = both(evaluation_in(tmp_path, pets, 20))
    for cell in cells:
        assert cell.figures.fd is not None
        assert cell.figures.fd_to_teacher is None
        assert cell.missing[FD_TO_TEACHER] == redrawn.NOT_FINITE
    monkeypatch.setattr(drawing, "_states", plain)
    assert both(evaluation_in(tmp_path, pets, 20)) == cells  # and not tried again


def test_a_time_limit_keeps_the_teachers_samples(pets: Path, tmp_path: Path) -> None:
    with (
        time_limit(1e-3),
        pytest.raises(TimeUp, match="teacher's 4 steps with another seed at w = 1, which is kept"),
    ):
        both(evaluation_in(tmp_path, pets, 20))
    kept = list((tmp_path / "reference").iterdir())
    assert len(kept) == 2  # of the images, and of the teacher
    assert not (tmp_path / "results.sqlite").exists()
    both(evaluation_in(tmp_path, pets, 20))
    assert sorted((tmp_path / "reference").iterdir()) == sorted(kept)
