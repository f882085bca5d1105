"""Trackers get losses, settings and samples when they are asked for, and change no weight."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.cli.inside import fewstep
from tests.recipes.making import teacher
from tests.train.test_loop import CONFIG
from tests.train.test_loop import go as small_training
from torch import Tensor

from fewstep import time_limit
from fewstep.errors import (
    FewstepError,
    FewstepWarning,
    MissingError,
    NonFiniteError,
    RangeError,
    TimeUp,
)
from fewstep.models import Model
from fewstep.recipes import samples
from fewstep.recipes.config import check_recipe
from fewstep.recipes.run import Run
from fewstep.recipes.samples import track_of
from fewstep.train import Track, TrainConfig, check_tracking, read_metrics, track
from fewstep.train.checkpoint import newest_checkpoint

RECIPE: dict[str, Any] = {
    "name": "tracked",
    "data": {"name": "digits"},
    "network": {"channels": [8, 16], "groups": 4, "w_dim": 32, "dropout": 0.2},
    "teacher": {"updates": 6, "batch_size": 16, "log_every": 2},
    "distill": {
        "batch_size": 16,
        "updates": 4,
        "log_every": 2,
        "stages": [
            {"parent": "teacher"},
            {"parent": "stage-one", "steps": 2},
            {"parent": "stage-one", "steps": 4, "direction": "encode"},
        ],
    },
}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def go(folder: Path, **tracked: object) -> Path:
    run = Run(
        check_recipe({**RECIPE, "track": tracked}, "recipe.yaml"), folder, "cpu", progress=False
    )
    with run.writing():
        run.train_teacher()
        for stage in run.plan:
            run.distill(stage)
    return folder


def test_tensorboard_gets_losses_and_samples_and_no_bit_changes(tmp_path: Path) -> None:
    plain = go(tmp_path / "plain")
    found = go(tmp_path / "tracked", trackers=["tensorboard"], images_every=2)
    for name in ("teacher", "stage-one", "student-2", "encoder-4"):
        a, b = (load_file(run / name / WEIGHTS) for run in (plain, found))
        assert all(a[k].equal(b[k]) for k in a), name
    assert not list(plain.rglob("track"))

    for name, updates in (("teacher", 6), ("student-2", 4)):
        board = EventAccumulator(
            str(found / "training" / name / "track" / f"tracked-{name}"), {"images": 0}
        )
        board.Reload()
        rows = read_metrics(found / "training" / name)
        assert [e.step for e in board.Scalars("loss")] == [row["update"] for row in rows]
        for key in ("loss", "lr", "grad_norm"):
            assert [e.value for e in board.Scalars(key)] == pytest.approx([r[key] for r in rows])
        tags = board.Tags()["images"]
        assert sorted(tags) == ["w = 0", "w = 1", "w = 2"]
        shown = board.Images(tags[0])
        assert [e.step for e in shown] == list(range(0, updates + 1, 2))
        assert (shown[0].width, shown[0].height) == (64, 8)  # eight digits
        assert shown[0].encoded_image_string != shown[-1].encoded_image_string
    assert (settings := list(found.glob("training/teacher/track/*/*/hparams.yml")))
    assert "teacher.updates: 6" in settings[0].read_text()
    encoder = EventAccumulator(str(found / "training/encoder-4/track/tracked-encoder-4"))
    assert encoder.Reload().Tags()["images"] == []


def test_an_autoencoder_is_loaded_once_a_drawing_and_decodes_without_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded, seen = [], []

    def decoder(_model: Model, _device: str) -> Callable[[Tensor], Tensor]:
        loaded.append(1)

        def decode(x: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            if len(seen) == 2:
                raise NonFiniteError("overflow")
            return x

        return decode

    monkeypatch.setattr(samples, "image_decoder", decoder)
    recipe = check_recipe({**RECIPE, "track": {"trackers": ["tensorboard"], "images_every": 2}}, "")
    labels = torch.zeros(4, dtype=torch.long)
    tracked = track_of(recipe, teacher(), lambda *_: (torch.zeros(4), labels), TrainConfig())
    assert tracked is not None
    assert tracked.images is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        drawn = tracked.images()
    assert list(drawn) == ["w = 0", "w = 2"]
    assert (len(loaded), seen) == (1, [False] * 3)


def test_a_tracker_of_ones_own_is_used_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Any]] = []

    class Mine(GeneralTracker):
        name = "mine"
        requires_logging_directory = False

        def __init__(self, run_name: str) -> None:
            super().__init__()
            calls.append(("project", run_name))

        @property
        def tracker(self) -> None:
            return None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            calls.append(("settings", values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            calls.append(("log", step))

        def finish(self) -> None:
            calls.append(("finish", None))

    monkeypatch.setitem(track.LOGGER_TYPE_TO_CLASS, "mine", Mine)
    (tmp_path / "recipe.yaml").write_text("name: own\ndata: {name: digits}\n")
    settings = ("network.channels=[8, 16]", "network.groups=4", "teacher.updates=4")
    settings += ("teacher.log_every=2", "teacher.batch_size=8")
    given = [part for s in settings for part in ("--set", s)]
    done = fewstep("train", "recipe.yaml", *given, "--track", "mine", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert calls[0] == ("project", "own-teacher")
    assert calls[1][1]["teacher.batch_size"] == 8
    assert all(isinstance(v, bool | int | float | str) for v in calls[1][1].values())
    assert calls[2:] == [("log", 2), ("log", 4), ("finish", None)]


class Failing(GeneralTracker):
    """A tracker of which one method fails."""

    name, requires_logging_directory, fails = "failing", False, ""
    calls: ClassVar[list[str]] = []

    def __init__(self, _run_name: str) -> None:
        super().__init__()

    def _called(self, method: str) -> None:
        self.calls.append(method)
        if method == self.fails:
            raise OSError("no\nnetwork")

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self._called("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        pass

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._called("log")

    def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._called("images")

    def finish(self) -> None:
        self._called("finish")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[Failing]:
    monkeypatch.setitem(track.LOGGER_TYPE_TO_CLASS, "failing", Failing)
    monkeypatch.setattr(Failing, "calls", [])
    return Failing


@pytest.mark.parametrize("method", ["log", "images", "finish"])
def test_a_tracker_that_fails_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: type[Failing], method: str
) -> None:
    monkeypatch.setattr(failing, "fails", method)
    drawn = Track(["failing"], images=lambda: {"x": torch.zeros(1, 1, 2, 2)}, images_every=4)
    with pytest.warns(FewstepWarning, match=r"failed \(OSError: no network\)") as caught:
        result = small_training(tmp_path, CONFIG, track=drawn)
    assert len(caught) == 1
    assert result.update == CONFIG.updates
    assert failing.calls.count(method) == 1


def test_samples_that_cannot_be_drawn_do_not_stop_the_training(tmp_path: Path) -> None:
    def images() -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tracked = Track(["tensorboard"], images=images, images_every=4)
    with pytest.warns(FewstepWarning, match="drawing samples .* out of memory") as caught:
        result = small_training(tmp_path, CONFIG, track=tracked)
    assert (len(caught), result.update) == (1, CONFIG.updates)


def test_a_tracker_that_fails_masks_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: type[Failing]
) -> None:
    monkeypatch.setattr(failing, "fails", "finish")
    with (
        pytest.warns(FewstepWarning, match="goes on without it"),
        pytest.raises(TimeUp),
        time_limit(1e-9),
    ):
        small_training(tmp_path, CONFIG, track=Track(["failing"]))


def test_a_tracker_that_does_not_start_is_one_line_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: type[Failing]
) -> None:
    monkeypatch.setattr(failing, "fails", "start")
    with pytest.raises(FewstepError, match=r"failing must start .* \(OSError: no network\)"):
        small_training(tmp_path, CONFIG, track=Track(["failing"]))
    assert not list(tmp_path.iterdir())


def test_an_update_is_saved_before_its_samples_are_drawn(tmp_path: Path) -> None:
    seen = []

    def images() -> dict[str, Tensor]:
        seen.append(newest_checkpoint(tmp_path / "checkpoints"))
        return {}

    tracked = Track(["tensorboard"], images=images, images_every=CONFIG.checkpoint_every)
    small_training(tmp_path, CONFIG, track=tracked)
    assert [path and int(path.name) for path in seen] == [None, 10, 20, 30, 40]


def test_a_resumed_training_sends_no_update_twice(
    tmp_path: Path, failing: type[Failing], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, int]] = []
    monkeypatch.setattr(Failing, "log", lambda _, _values, step: sent.append(("rows", step)))
    monkeypatch.setattr(
        Failing, "log_images", lambda _, _values, step: sent.append(("images", step))
    )
    drawn = Track(["failing"], images=lambda: {"x": torch.zeros(1, 1, 2, 2)}, images_every=5)
    whole = small_training(tmp_path, CONFIG, track=drawn)
    before = list(sent)
    assert before[:2] == [("images", 0), ("rows", CONFIG.log_every)]
    folder = tmp_path / "checkpoints"
    for path in sorted(folder.glob("0*"))[1:]:  # as if killed after more updates than were saved
        shutil.rmtree(path)
    (folder / "latest.json").unlink()
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert int(newest.name) < CONFIG.updates
    again = small_training(tmp_path, CONFIG, track=drawn)
    assert (again.losses, sent) == (whole.losses, before)
    shutil.rmtree(folder)
    small_training(tmp_path, CONFIG, seed=4, track=drawn)  # another run in this folder
    assert sent == before * 2


def test_what_cannot_be_tracked_is_one_line_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track, "get_available_trackers", lambda: ["tensorboard"])
    for names, says in (
        ("tensorboard,wandb", "needs the package wandb, which is not installed. Use `pip install"),
        ("tensorbord", "got 'tensorbord'"),
    ):
        done = fewstep("train", "digits", "--track", names, "--out", "run", cwd=tmp_path)
        assert done.returncode == 1
        assert says in done.stderr
        assert len([line for line in done.stderr.splitlines() if "fewstep: " in line]) == 1
        assert list((tmp_path / "run").iterdir()) == []
    done = fewstep("train", "digits", "--set", "track.images_every=5", "--out", "r", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "track.images_every sends samples to trackers, and there are none" in done.stderr
    assert not list(tmp_path.glob("r/*"))
    with pytest.raises(MissingError):
        check_tracking(["wandb"], False, TrainConfig())
    with pytest.raises(RangeError, match="shard divides it"):
        check_tracking(["tensorboard"], True, TrainConfig(shard=True))
