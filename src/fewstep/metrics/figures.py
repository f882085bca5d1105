"""The figures of one cell: a frozen record with a name for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fewstep.metrics.features import distance_key

RMS = "rms_to_teacher"


@dataclass(frozen=True)
class Figures:
    """What is measured of samples; None where a figure could not be measured.

    Attributes:
        fd_name: name of the Fréchet distance, which tells the features: "fid" in those of the
            published Inception, "fd_<name>" in any others.
        fd: Fréchet distance to the training images.
        kd: kernel distance to them; called "kid" or "kd_<name>".
        precision, recall: against the training images, in the same features.
        score, accuracy: of the features' classifier.
        variance: within a class, on pixels.
        nearest: distance to the nearest training image.
        rms_to_teacher: paired distance to the many-step teacher's samples from the same noise.
        fd_to_teacher: Fréchet distance to the many-step teacher's samples of another seed, at the
            same w and in the same features. That of the teacher itself is the floor.
    """

    fd_name: str
    fd: float | None = None
    kd: float | None = None
    precision: float | None = None
    recall: float | None = None
    score: float | None = None
    accuracy: float | None = None
    variance: float | None = None
    nearest: float | None = None
    rms_to_teacher: float | None = None
    fd_to_teacher: float | None = None

    @property
    def kd_name(self) -> str:
        """The name of the kernel distance."""
        return "kid" if self.fd_name == "fid" else f"kd_{self.fd_name.removeprefix('fd_')}"

    @property
    def by_name(self) -> dict[str, float | None]:
        """The figures as tables and files name them, in one order."""
        names = {"fd": self.fd_name, "kd": self.kd_name}
        return {names.get(key, key): getattr(self, key) for key in KEYS}

    @classmethod
    def named(cls, values: Mapping[str, Any]) -> Figures:
        """Return the figures that a file has under the names of tables; others are left out."""
        found = cls(distance_key(values))
        names = {found.fd_name: "fd", found.kd_name: "kd"} | {key: key for key in KEYS[2:]}
        return cls(found.fd_name, **{key: values.get(name) for name, key in names.items()})


KEYS = tuple(f.name for f in fields(Figures))[1:]
