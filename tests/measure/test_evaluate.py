"""What a measured cell keeps on the disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.pipelines import edit, sd_folder
from tests.recipes.making import features_folder, guided, image_folder
from tests.recipes.making import teacher as pets_teacher

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.data import DataConfig
from fewstep.errors import DataError, RangeError
from fewstep.folders import load
from fewstep.measure import conditions, evaluate, images, reference, room
from fewstep.measure.conditions import Conditions, evenly
from fewstep.measure.evaluate import Evaluation
from fewstep.measure.identity import identity_of
from fewstep.metrics.rotations import TASK
from fewstep.models import Card, Model, UNetConfig, build_unet, prompts, student_of
from fewstep.models.clocks.native import CLOCK
from fewstep.models.families.unet_class import UNET_CLASS
from fewstep.pixels import from_bytes, to_bytes


@pytest.fixture
def teacher() -> Guided:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        unet = build_unet(UNetConfig(channels=(8, 16), groups=4, w_dim=32), (1, 8, 8), 10)
    card = Card(
        fewstep=fewstep.__version__,
        family=UNET_CLASS.name,
        name="teacher",
        clock=CLOCK,
        shape=(1, 8, 8),
        num_classes=10,
        null_class=10,
        weights_sha256="of random weights",
    )
    model = Model(unet, card).eval()
    return Guided(model, model.null_cond)


def test_a_reference_keeps_all_images_and_others_the_first(
    teacher: Guided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "KEPT", 7)
    evaluation = Evaluation(DataConfig(name="digits"), tmp_path, samples=20)
    many = evaluation.cell("teacher", teacher, w=1.0, steps=4)
    other = evaluation.cell("teacher", teacher, w=1.0, steps=2, teacher=many)
    assert (many.file.count, len(many.images), other.file.count) == (20, 7, 7)
    drawn = fewstep.sample(teacher, evaluation.labels, w=1.0, steps=2)
    theirs = fewstep.sample(teacher, evaluation.labels, w=1.0, steps=4)
    # Measured on all of them, and not on what is kept: as bytes, since all are kept as bytes.
    left, right = (from_bytes(to_bytes(x)).double() for x in (drawn, theirs))
    apart = (left - right).square().mean().sqrt()
    assert other.figures.rms_to_teacher == pytest.approx(float(apart), rel=1e-4)
    torch.testing.assert_close(many.file.part(5, 20), from_bytes(to_bytes(theirs[5:])))
    assert torch.allclose(other.images, drawn[:7], atol=1e-5)
    again = evaluation.cell("teacher", teacher, w=1.0, steps=2, teacher=many)
    assert again == other


def test_the_training_images_are_seen_once(
    teacher: Guided, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(name="digits")
    built: list[int] = []
    plain = evaluate.Reference.of_features

    def counted(name: str, count: int, *rest: Any) -> evaluate.Reference:
        built.append(count)
        return plain(name, count, *rest)

    monkeypatch.setattr(evaluate.Reference, "of_features", counted)
    first = Evaluation(data, tmp_path, samples=20).cell("teacher", teacher, w=1.0, steps=2)
    (path,) = (tmp_path / "reference").glob("*.safetensors")
    (tmp_path / "results.sqlite").unlink()
    again = Evaluation(data, tmp_path, samples=20).cell("teacher", teacher, w=1.0, steps=2)
    assert len(built) == 1
    assert replace(again, seconds_per_image=first.seconds_per_image) == first
    path.write_bytes(path.read_bytes()[:1000])  # cut short: seen anew
    (tmp_path / "results.sqlite").unlink()
    Evaluation(data, tmp_path, samples=20).cell("teacher", teacher, w=1.0, steps=2)
    assert len(built) == 2


def differing(a: Any, b: Any) -> set[str]:
    left, right = identity_of(a), identity_of(b)
    return {k for k in left if left[k] != right[k]}


def test_a_cell_depends_on_all_that_draws_it(teacher: Guided) -> None:
    inner = teacher.denoiser
    assert isinstance(inner, Model)

    def changed(**facts: Any) -> Guided:
        return Guided(Model(inner.network, inner.card.model_copy(update=facts)), teacher.null_cond)

    assert differing(teacher, changed(name="other", figures={"fd": 1.0})) == set()
    assert differing(teacher, changed(weights_sha256="others")) == {"weights"}
    assert differing(teacher, changed(clock="another")) == {"clock"}
    assert differing(teacher, changed(prediction="epsilon")) == {"prediction"}
    assert differing(teacher, changed(w_band=None)) == {"card"}
    assert differing(teacher, Guided(inner, torch.tensor([3]))) == {"guidance"}
    assert differing(teacher, replace(teacher, interval=(0.1, 1.0))) == {"guidance"}
    assert differing(teacher, replace(teacher, threshold=torch.tanh)) == {"guidance"}
    assert differing(teacher, inner) == {"guidance"}
    # Without a hash on the card, the weights themselves are hashed.
    bare, same, other = pets_teacher(), pets_teacher(), pets_teacher(seed=1)
    assert differing(bare, same) == set()
    assert differing(bare, other) == {"weights"}


def test_a_stock_folder_is_known_by_all_of_its_parts(tmp_path: Path) -> None:
    sd_folder(tmp_path / "a")
    first = load(tmp_path / "a")
    for part in ("unet", "vae", "text_encoder"):
        folder = tmp_path / part
        shutil.copytree(tmp_path / "a", folder)
        (file,) = (folder / part).glob("*.safetensors")
        data = bytearray(file.read_bytes())
        data[-5] ^= 1  # a small change of one number
        file.write_bytes(data)
        assert differing(first, load(folder)) == {"weights" if part == "unet" else "encoders"}
    shutil.copytree(tmp_path / "a", tmp_path / "betas")
    edit(tmp_path / "betas" / "scheduler" / "scheduler_config.json", beta_end=0.0120001)
    assert differing(first, load(tmp_path / "betas")) == {"clock"}
    assert differing(first, load(tmp_path / "a", negative_prompt="blurry")) == {"card"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with a caption of their own each, and a classifier of others."""
    path = tmp_path_factory.mktemp("pictures")
    image_folder(path / "pets")
    (path / "own").mkdir()
    lines = []
    for k, file in enumerate(sorted((path / "pets").rglob("*.png"))):
        shutil.copy(file, path / "own" / f"{k}.png")
        lines.append(json.dumps({"file_name": f"{k}.png", "text": f"thing_{k}"}))
    (path / "own" / "metadata.jsonl").write_text("\n".join(lines))
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path_factory.getbasetemp() / "cells-cache"))


def captions_in(path: Path, **more: Any) -> DataConfig:
    return DataConfig(name=str(path / "own"), cond="prompt", held_out=0.0, **more)


def test_captions_of_real_images_are_drawn_evenly(pictures: Path, tmp_path: Path) -> None:
    evaluation = Evaluation(captions_in(pictures, captions=["a {}"]), tmp_path, samples=6)
    assert evaluation.labels is None
    data = evaluation.dataset
    asked = [data.class_names[int(data.batch(k[None])[1])] for k in evenly(6, len(data))]
    assert evaluation.conditions.texts == [f"a {name}" for name in asked]  # as they are written
    assert len(set(asked)) == 6
    many = Conditions(evaluation.data, data, 100)
    assert len(many.texts) == 100
    assert set(many.texts) == {f"a {name}" for name in data.class_names}


def test_images_without_classes_get_features_of_their_turns(pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []
    evaluation = Evaluation(captions_in(pictures), tmp_path, samples=6, say=said.append)
    features = evaluation.features
    assert (features.name, features.num_classes) == (TASK, None)
    assert any("have no classes" in line for line in said)
    assert evaluation.held_out_dataset is None
    assert evaluation.held_out_cell() is None
    # A model of classes draws its own, and is measured without them.
    cell = evaluation.cell("teacher", guided(pets_teacher()), w=1.0, steps=2)
    assert (cell.figures.fd_name, cell.figures.fd is None) == (f"fd_{TASK}", False)
    assert {"score", "accuracy"} <= set(cell.missing)
    again = Evaluation(captions_in(pictures), tmp_path, samples=6, say=said.append)
    count = len(said)
    assert again.features.sha256 == features.sha256
    assert len(said) == count  # nothing was trained


def test_features_of_other_images_are_not_taken_for_these(pictures: Path, tmp_path: Path) -> None:
    image_folder(tmp_path / "others", each=4)
    (tmp_path / "e").mkdir()
    features_folder(tmp_path / "e" / "features", tmp_path / "others")
    config = DataConfig(name=str(pictures / "pets"), held_out=0.0)
    evaluation = Evaluation(config, tmp_path / "e", samples=6)
    assert evaluation.features.name == "own"
    assert len(list((tmp_path / "e").glob("features-*"))) == 1


def test_a_reference_that_does_not_fit_is_read_in_parts(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(name=str(pictures / "pets"), held_out=0.0)
    features = features_folder(tmp_path / "look", pictures / "pets")
    shared: Any = {"samples": 6, "features_path": features}
    whole = Evaluation(config, tmp_path / "a", **shared).cell("t", pets_guided(), w=0.0, steps=2)
    monkeypatch.setattr(reference, "fits", lambda *_: False)
    parts = Evaluation(config, tmp_path / "b", **shared).cell("t", pets_guided(), w=0.0, steps=2)
    assert parts.figures.fd == pytest.approx(whole.figures.fd, rel=1e-6)
    assert parts.figures.nearest is None
    assert "do not fit in memory" in parts.missing["nearest"]


def test_two_students_of_equal_weights_have_two_rows(pictures: Path, tmp_path: Path) -> None:
    config = DataConfig(name=str(pictures / "pets"), held_out=0.0)
    features = features_folder(tmp_path / "look", pictures / "pets")
    evaluation = Evaluation(config, tmp_path / "e", samples=6, features_path=features)
    stage = fewstep.Stage("a", "teacher", updates=1, steps=2)
    made = student_of(pets_guided(), stage, (0.0, 4.0), w_dim=16)
    cells = [evaluation.cell(name, made, w=1.0) for name in ("a", "b")]
    assert [c.model for c in cells] == ["a", "b"]
    assert cells[0].key != cells[1].key
    assert len(evaluation.results.records()) == 2


def test_a_finished_cell_needs_no_free_disk(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(name=str(pictures / "pets"), held_out=0.0)
    features = features_folder(tmp_path / "look", pictures / "pets")
    evaluation = Evaluation(config, tmp_path / "e", samples=6, features_path=features)
    asked = (6, (3, 8, 8), "--samples", tmp_path / "e", 6)
    per_cell = 6 * (4 * 192 + 192 + 4 * 2048)  # float32, bytes, features
    monkeypatch.setattr(room, "free_disk", lambda _: per_cell)
    room.check_samples(*asked)
    made = evaluation.cell("t", pets_guided(), w=0.0, steps=2)
    monkeypatch.setattr(room, "free_disk", lambda _: per_cell - 1)
    room.check_samples(*asked)
    assert evaluation.cell("t", pets_guided(), w=0.0, steps=2) == made
    with pytest.raises(RangeError, match="samples must fit on the disk"):
        evaluation.cell("t", pets_guided(), w=1.0, steps=2)
    with pytest.raises(RangeError, match="--samples must fit on the disk"):
        room.check_samples(*asked[:3], tmp_path / "new", 6)
    # Distances between bytes are distinguished from those between floats.
    assert "paired" not in evaluation.results.records()[0].asked
    monkeypatch.setattr(evaluate, "KEPT", 5)
    monkeypatch.setattr(room, "free_disk", lambda _: per_cell)
    assert evaluation.cell("t", pets_guided(), w=0.0, steps=2).key != made.key
    assert evaluation.results.records()[-1].asked["paired"] == "bytes"


def test_only_a_split_without_images_is_none(pictures: Path, tmp_path: Path) -> None:
    pets = tmp_path / "pets"
    shutil.copytree(pictures / "pets", pets)
    config = DataConfig(name=str(pets), held_out=0.0)
    assert Evaluation(config, tmp_path / "e").held_out_dataset is None
    evaluation = Evaluation(config, tmp_path / "e")
    assert len(evaluation.dataset) == 24
    (pets / "cat" / "0.png").write_bytes(b"damaged since")
    with pytest.raises(DataError, match=r"0\.png"):
        _ = evaluation.held_out_dataset


@pytest.mark.parametrize("count", [1, 2])
def test_several_processes_encode_only_what_they_draw(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    data = fewstep.data.open_dataset(captions_in(pictures))
    model = Model(torch.nn.Identity(), pets_teacher().card.model_copy(update={"num_classes": 0}),
                  source=tmp_path)  # fmt: skip
    texts = [f"a {k}" for k in range(12)]
    asked: list[int] = []

    def encoded(_: Path, prompts: list[str], device: str) -> torch.Tensor:
        asked.append(len(prompts))
        return torch.zeros(len(prompts), 2)

    found = Conditions(captions_in(pictures), data, 12)
    vars(found)["texts"] = texts
    monkeypatch.setattr(conditions, "encode_prompts", encoded)
    monkeypatch.setattr(conditions, "AT_ONCE", 8)
    monkeypatch.setattr(conditions, "rank_and_count", lambda: (0, count))
    with found.opened(model):
        assert (prompts._OPEN.get() is not None) == (count == 2)
        for first in range(0, 12, 2 * count):
            assert len(found.of(model, range(first, first + 2))) == 2
    assert asked == ([8, 4] if count == 1 else [2, 2, 2])


def pets_guided() -> Guided:
    return guided(pets_teacher())
