"""Train and measure any-step, consistency and matched students of cifar10-small on a GPU.

    python benchmarks/gpu/pixel_students.py --out FOLDER --data train.parquet --minutes 10

For each of three seeds it makes separate students of 8, 4, 2 and 1 steps (those of 8 and 4 straight
from the guided teacher), any-step students, consistency students and a student of distribution
matching. docs/lab compares them (any-step.md, consistency.md, distribution-matching.md). All seeds
share one teacher. See `benchmarks.gpu.chains` for what comes back. With --start, teacher and
features are those of an earlier call's archives.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from benchmarks.gpu.chains import Plan, Step, main  # noqa: E402
from benchmarks.gpu.small_models import DIRECT_PIXELS  # noqa: E402

RECIPE = "cifar10-small"
TEACHER = f"pixels/{RECIPE}/teacher"
FEATURES = "features"
SEEDS = (0, 1, 2)
TINY_PIXELS = (
    *("teacher.updates=2", "distill.updates=2", "distill.batch_size=128"),
    *("evaluate.samples=20", "evaluate.batch_size=20", "evaluate.reference_steps=4"),
)
COUNTS = "any_steps: [8, 4, 2, 1], order: 2, states: trajectory, mixture: [8, 4, 4, 4], pool: 16, "
# They cost 0.60 of the separate students' 1,644,800 evaluations, and all of them.
ANY = {"any": 1664, "equal": 2784}
# 1,287,936 evaluations; the separate students of 4, 2 and 1 steps cost 1,286,400 together.
END = (
    "[{parent: teacher, kind: consistency-distillation, substeps: 8, order: 2, pool: 8, "
    "updates: 1005}]"
)
MATCHED = (
    "[{parent: teacher, steps: 4, order: 2, substeps: 4, updates: 400}, "
    "{parent: student-4, steps: 2, updates: 300}, {parent: student-2, steps: 1, updates: 300}, "
    "{parent: teacher, kind: sample-distillation, updates: 1600, pool: 8}, "
    "{parent: student-1, kind: distribution-matching, steps: 1, real: sampled, updates: 800}]"
)


class PixelStudents(Plan):
    """Students of one teacher, with three seeds."""

    models: ClassVar = {
        "cifar10-small-teacher": TEACHER,
        "equal-student-any": "equal/0/student-any",
        "matched-1": "matched/0/matched-1",
    }
    given = ("cifar10-small-teacher", "parts")
    pictures = ("*/*/sheets/w1.png",)
    size = 16

    def chains(self) -> dict[str, list[Step]]:
        """Return the steps of each chain, every chain after those that it waits for."""
        chains: dict[str, list[Step]] = {}
        if self.teacher == self.work / TEACHER:
            out = ("--out", str(self.teacher.parent))
            train = Step(("train", RECIPE, *out, *self.set()), (self.images("class"),))
            chains["teacher"] = [train]
        if self.features == self.work / FEATURES:
            chains["features"] = [self.train_features()]
        for seed in SEEDS:
            chains[f"cells-{seed}"] = [self.report("cells", seed, "[]")]
            chains[f"separate-{seed}"] = self.students("separate", seed, DIRECT_PIXELS)
            for count, updates in ANY.items():
                stages = f"[{{parent: teacher, {COUNTS}updates: {updates}}}]"
                for name, lr in ((count, "2e-3"), (f"{count}-slower", "1e-3")):
                    few = ("distill.batch_size=128", f"distill.lr={lr}")
                    chains[f"{name}-{seed}"] = self.students(name, seed, stages, *few)
            many = ("distill.batch_size=256", "distill.lr=2e-3")
            chains[f"end-{seed}"] = self.students("end", seed, END, *many)
            chains[f"end-{seed}"].append(self.measured_with_ddim("end", seed))
            many = ("distill.batch_size=256", "evaluate.stage_one_steps=[16]")
            chains[f"matched-{seed}"] = self.students("matched", seed, MATCHED, *many)
        return chains

    def unreported(self) -> dict[str, list[Path]]:
        """Return the finished any-step students and matched students of runs without a report."""
        made = [*self.work.glob("*/*/student-any"), *self.work.glob("*/*/matched-1")]
        runs = [p for p in made if not (p.parent / "report.json").is_file()]
        return {"-".join(p.relative_to(self.work).parts): [p] for p in sorted(runs)}

    @property
    def teacher(self) -> Path:
        """The folder of the teacher: of an earlier call, or made in this one."""
        return self.earlier_or_new(TEACHER)

    @property
    def features(self) -> Path:
        """The folder of the classifier whose features the metrics compare."""
        return self.earlier_or_new(FEATURES)

    def train_features(self) -> Step:
        """Return the step that trains the classifier of the metrics."""
        out = ("--out", str(self.features), "--name", "cifar16", "--size", str(self.size))
        epochs = "1" if self.tiny else "8"
        command = ("features", "train", str(self.data), *out, "--epochs", epochs)
        return Step(command, (self.images("class"),))

    def students(self, name: str, seed: int, stages: str, *own: str) -> list[Step]:
        """Return the steps that train students and measure them, beside the teacher's cells."""
        out, cells = self.work / name / str(seed), self.work / "cells" / str(seed)
        distill = self.report(name, seed, stages, *own)
        copied = ("copy", str(cells / "evaluation"), str(out / "evaluation"))
        return [
            Step(("distill", *distill.command[1:]), (self.teacher / "fewstep.json",)),
            Step(copied, (cells / "report.json",)),
            distill,
        ]

    def report(self, name: str, seed: int, stages: str, *own: str) -> Step:
        """Return the step that measures what is not measured yet, and writes the report."""
        out = ("--out", str(self.work / name / str(seed)), "--teacher", str(self.teacher))
        if self.tiny:
            stages = re.sub(r"updates: \d+", "updates: 2", stages)
        own = (*own, f"evaluate.features={self.features}")
        settings = self.set(f"seed={seed}", f"distill.stages={stages}", *own)
        needs = (self.teacher / "fewstep.json", self.features / "features.json")
        return Step(("report", RECIPE, *out, *settings), needs)

    def measured_with_ddim(self, name: str, seed: int) -> Step:
        """Return the step that measures consistency students with DDIM, too."""
        return Step(("consistency", "measure", str(self.work / name / str(seed))))

    def set(self, *own: str) -> list[str]:
        """Return the options that set these keys, and those of every run."""
        shared = [f"data.name={self.data}", "distill.checkpoint_every=100"]
        shared += [f"evaluate.{key}=[]" for key in ("teacher_steps", "solver_steps")]
        shared += ["evaluate.stage_one_steps=[]", "evaluate.reference_steps=64"]
        settings = [*shared, *own, *(TINY_PIXELS if self.tiny else ())]
        return [x for s in settings for x in ("--set", s)]


if __name__ == "__main__":
    main(PixelStudents, __doc__.splitlines()[0])
