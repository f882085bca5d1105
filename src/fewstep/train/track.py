"""Trackers of accelerate, such as TensorBoard and Weights & Biases: losses, settings, samples."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor

from fewstep.atomic import json_sha256, write_json
from fewstep.errors import FewstepError, FewstepWarning, MissingError, RangeError, did_you_mean
from fewstep.pixels import to_bytes

SENT = "tracked.json"
BUILT_IN = frozenset(LOGGER_TYPE_TO_CLASS)  # others are registered by users, and are at hand
Images = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Track:
    """What `train` sends to trackers.

    Attributes:
        trackers: names of accelerate's trackers, for example ("tensorboard", "wandb").
        project: name under which a tracker keeps the run.
        settings: kept once as the run's configuration, with dotted keys; the settings of training
            and what else identifies the run are added.
        images: draws samples, as name -> (B, C, H, W) in [-1, 1]. It is called with the averaged
            weights in the student, and must draw from generators of its own.
        images_every: updates between two calls of `images`; it is also called before the first
            update and after the last.
    """

    trackers: Sequence[str]
    project: str = "fewstep"
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: Images | None = None
    images_every: int = 500


def check_trackers(names: Sequence[str]) -> None:
    """Raise RangeError for a name that is no tracker, MissingError where its package is missing."""
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise RangeError(
                f"track must be names of accelerate's trackers, got {name[:40]!r}. Use "
                f"{', '.join(LOGGER_TYPE_TO_CLASS)}.{did_you_mean(name, LOGGER_TYPE_TO_CLASS)}"
            )
        if name in BUILT_IN and name not in available:
            raise MissingError(
                f"tracking with {name} needs the package {name}, which is not installed. Use "
                f"`pip install {name}`, or leave {name} out."
            )


class Tracking:
    """The trackers of one training run, on its main process; without names it does nothing.

    Each update is sent once: after a resume, updates that were sent before are trained again and
    not sent again. The file `tracked.json` holds the last update that each tracker got.
    """

    def __init__(
        self, track: Track | None, accelerator: Accelerator, folder: Path, run: dict[str, Any]
    ) -> None:
        """Start the trackers. folder: of those that keep files. run: settings that identify it.

        Raises FewstepError where one cannot be started. One that fails later is left out of the
        rest of the training, with a FewstepWarning.
        """
        self._track = track
        self._trackers: list[Any] = []
        self._path, self._run = folder / SENT, json_sha256(run)
        if track is None or not accelerator.is_main_process:
            return
        self._sent = _read_sent(self._path, self._run)
        plain = {k: _plain(v) for k, v in {**run, **track.settings}.items()}
        for name in dict.fromkeys(track.trackers):
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = (str(folder / "track"),) if kind.requires_logging_directory else ()
            try:
                tracker: Any = kind(track.project, *where)
                tracker.start()
                tracker.store_init_configuration(plain)
            except Exception as error:
                self.close()
                raise FewstepError(
                    f"the tracker {name} must start before training, and it fails "
                    f"({_brief(error)}). Set it up, or leave {name} out."
                ) from error
            self._trackers.append(tracker)

    def _each(self, trackers: Sequence[Any], call: Callable[[Any], None]) -> None:
        """Call a function with these trackers; those that fail are not used again."""
        for tracker in list(trackers):
            try:
                call(tracker)
            except Exception as error:  # noqa: BLE001 - trackers are others' code
                self._trackers.remove(tracker)
                _warn(f"the tracker {tracker.name}", error)

    def _due(self, what: str, update: int) -> list[Any]:
        """Return the trackers that have not got the "rows" or "images" of this update."""
        return [t for t in self._trackers if self._sent.get(t.name, {}).get(what, -1) < update]

    def _send(self, what: str, update: int, call: Callable[[Any], None]) -> None:
        due = self._due(what, update)
        self._each(due, call)
        for tracker in due:
            self._sent.setdefault(tracker.name, {})[what] = update
        if due:
            write_json(self._path, {"run": self._run, "sent": self._sent})

    def log(self, update: int, values: dict[str, float]) -> None:
        """Send numbers."""
        self._send("rows", update, lambda tracker: tracker.log(values, step=update))

    def wants_images(self, update: int, last: int) -> bool:
        """Whether samples are due after this update."""
        track = self._track
        if track is None or track.images is None or not self._due("images", update):
            return False
        return update == last or update % track.images_every == 0

    def images(self, update: int) -> None:
        """Draw samples and send them to the trackers that take images.

        Where drawing fails, there is a FewstepWarning, and no more samples are drawn.
        """
        assert self._track is not None
        assert self._track.images is not None
        try:
            drawn = {
                name: to_bytes(x).expand(-1, max(3, x.shape[1]), -1, -1).permute(0, 2, 3, 1).numpy()
                for name, x in self._track.images().items()
            }
        except Exception as error:  # noqa: BLE001 - training is worth more than its pictures
            self._track = replace(self._track, images=None)
            _warn("drawing samples for the trackers", error)
            return

        def send(tracker: Any) -> None:
            if hasattr(tracker, "log_images"):
                shape = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(drawn, step=update, **shape)

        self._send("images", update, send)

    def close(self) -> None:
        """Finish: what was sent is kept."""
        self._each(self._trackers, lambda tracker: tracker.finish())


def _read_sent(path: Path, run: str) -> dict[str, dict[str, int]]:
    """Return the last updates that the trackers of this run got; {} for another run's."""
    try:
        found = json.loads(path.read_bytes())
        return dict(found["sent"]) if found["run"] == run else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _warn(what: str, error: Exception) -> None:
    warnings.warn(
        f"{what} failed ({_brief(error)}). Training goes on without it; metrics.jsonl has the "
        "losses.",
        FewstepWarning,
        stacklevel=2,
    )


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _plain(value: Any) -> bool | int | float | str:
    """Return a value as trackers take it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
