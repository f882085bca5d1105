"""Train and measure the small latent models on a GPU, in one call: several chains side by side.

    python benchmarks/gpu/small_models.py --out FOLDER --data train.parquet --minutes 9

See `benchmarks.gpu.chains` for what comes back. With --start, teachers, their parts and the
classifier are those of an earlier call's archives.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from benchmarks.gpu.chains import Plan, Step, copy, main  # noqa: E402

# Name of the file -> folder of a model, in the order of their worth.
MODELS = {
    "latent-small-teacher": "latent-small/teacher",
    "flow-small-teacher": "flow-small/teacher",
    "latent-small-student-4": "latent-small/student-4",
    "flow-small-student-4": "flow-small/student-4",
    "flow-small-student-2": "flow-small/student-2",
    "latent-small-one": "one/latent-small/student-4",
    "cifar10-small-teacher": "pixels/cifar10-small/teacher",
    "digits-teachers": "pixels/teachers",
}
TINY = (
    *("teacher.updates=2", "teacher.batch_size=4", "distill.updates=2", "distill.batch_size=4"),
    *("evaluate.samples=20", "evaluate.batch_size=20", "evaluate.reference_steps=5"),
    "evaluate.w=[1, 4]",
)
DIRECT = "distill.stages=[{parent: teacher, steps: 4, order: 2, substeps: 4, updates: 600}]"
DIRECT_PIXELS = (
    "[{parent: teacher, steps: 8, order: 2}, "
    "{parent: teacher, steps: 4, order: 2, substeps: 4, updates: 1100}, "
    "{parent: student-4, steps: 2}, {parent: student-2, steps: 1}]"
)
DIRECT_DIGITS = (
    "[{parent: teacher, steps: 8, order: 2, updates: 600}, "
    "{parent: teacher, steps: 4, order: 2, substeps: 4, updates: 600}, "
    "{parent: student-4, steps: 2}, {parent: student-2, steps: 1}]"
)


class SmallModels(Plan):
    """The small latent models and the digits; names of folders are those of the recipes."""

    models = MODELS
    given = ("parts", "latent-small-teacher", "flow-small-teacher")
    pictures = ("latent-small/*/*.png", "flow-small/*/*.png", "strong/*/*/sheets/w10.png")
    conds = ("class", "prompt")

    def chains(self) -> dict[str, list[Step]]:
        """Return the steps of each chain, every chain after those that it waits for."""
        chains = {}
        if not (self.start / "features").is_dir():
            chains["features"] = [self.features()]
        for name in ("latent-small", "flow-small"):
            if self.teacher_folder(name) == self.work / name / "teacher":
                chains[f"{name}-teacher"] = self.teacher(name)
        for name, seed in (("latent-small", 0), ("flow-small", 0), ("flow-small", 1)):
            own, run = [f"seed={seed}", "evaluate.teacher_steps=[4]", *self.plan(name)], name
            run += f"-seed-{seed}" if seed else ""
            chains[f"{run}-cells"] = [self.cells(name, name, run, own)]
            chains[run] = self.students(name, name, self.work / run, run, own)
        for model in ("latent-small", "flow-small"):
            cells = f"strong-{model}"
            chains[f"{cells}-cells"] = [self.cells("strong-guidance", model, cells, [])]
            for states in ("noised", "trajectory"):
                chains[f"{cells}-{states}"] = self.strong(model, cells, states)
        own = ["network.w_features=one", "evaluate.teacher_steps=[4]", *self.plan("latent-small")]
        out = self.work / "one/latent-small"
        chains["one-latent-small"] = self.students(
            "latent-small", "latent-small", out, "latent-small", own
        )
        chains["cifar10-small"] = self.pixels("cifar10-small", 0, DIRECT_PIXELS)
        for seed in (0, 1, 2):
            chains[f"digits-{seed}"] = self.pixels("digits", seed, DIRECT_DIGITS)
        for seed in (0, 1, 2):
            chains[f"one-digits-{seed}"] = self.digits(seed)
        return chains

    def teacher_folder(self, name: str) -> Path:
        """Return the folder of a recipe's teacher: of an earlier call, or made in this one."""
        return self.earlier_or_new(f"{name}/teacher")

    def features_folder(self) -> Path:
        """Return the folder of the metrics' classifier: of an earlier call, or made here."""
        return self.earlier_or_new("features")

    def teacher(self, name: str) -> list[Step]:
        """Return the steps to the parts and the teacher of a recipe."""
        flow, vae = name == "flow-small", self.work / "parts/latent-small-unfinished/vae"
        given = ["--pipeline", "sd3", "--vae", str(vae)] if flow else []
        if self.tiny:
            given += ["--clip-updates", "2", *([] if flow else ["--vae-updates", "2"])]
        folder = self.work / "parts" / name
        parts = ("parts", str(self.data), "--out", str(folder), *given)
        own = [f"latents.folder={folder}", "teacher.checkpoint_every=1000", *self.plan(name)]
        train = ("train", name, "--out", str(self.work / name), *self.set(name, own))
        needs = vae if flow else self.images("class")
        return [Step(parts, (needs,)), Step(train, (self.images("prompt"),))]

    def plan(self, name: str) -> list[str]:
        """Return the stages of a recipe where they are others here: a student straight from it."""
        stages = "[{parent: teacher, steps: 4, order: 2, substeps: 4}]"
        return [f"distill.stages={stages}"] if name == "latent-small" else []

    def cells(self, recipe: str, model: str, run: str, own: Sequence[str]) -> Step:
        """Return the step that measures the teacher of a model alone, as a recipe asks."""
        settings = [*own, "distill.stages=[]"]
        return self.report(recipe, model, self.work / "cells" / run, settings)

    def students(
        self, recipe: str, model: str, out: Path, cells: str, own: Sequence[str]
    ) -> list[Step]:
        """Return the steps that train students of a model's teacher and measure them.

        cells: name of the run that measures the teacher, while the students are trained.
        """
        teacher, before = self.teacher_folder(model), self.work / "cells" / cells
        given = () if out == teacher.parent else ("--teacher", str(teacher))
        distill = ("distill", recipe, "--out", str(out), *given, *self.set(model, own))
        copied = ("copy", str(before / "evaluation"), str(out / "evaluation"))
        return [
            Step(distill, (teacher / "fewstep.json",)),
            Step(copied, (before / "report.json",)),
            self.report(recipe, model, out, own),
        ]

    def strong(self, model: str, cells: str, states: str) -> list[Step]:
        """Return the steps to students by targets of both orders at these states."""
        train, measure = [], []
        for order in (2, 1):
            own = [f"distill.stages.0.order={order}", f"distill.states={states}"]
            out = self.work / "strong" / model / f"order-{order}-{states}"
            steps = self.students("strong-guidance", model, out, cells, own)
            train.append(steps[0])
            measure += steps[1:]
        return train + measure

    def digits(self, seed: int) -> list[Step]:
        """Return the steps to both kinds of features of w on the digits, which take no GPU."""
        slow, one = (self.work / "one" / f"digits-{seed}" / kind for kind in ("slow", "one"))
        short = [*TINY] if self.tiny else ["evaluate.reference_steps=64"]
        stages = DIRECT.replace("600", "2") if self.tiny else DIRECT
        short += [f"seed={seed}", stages, "evaluate.teacher_steps=[4]"]
        settings = [x for s in short for x in ("--set", s)]
        common = ("digits", "--device", "cpu", *settings)
        features = ("--set", "network.w_features=one")
        given = ("--out", str(one), "--teacher", str(slow / "teacher"), *features)
        return [
            Step(("report", *common, "--out", str(slow))),
            Step(("distill", *common, *given)),
            Step(("copy", str(slow / "evaluation"), str(one / "evaluation"))),
            Step(("report", *common, *given)),
        ]

    def pixels(self, recipe: str, seed: int, stages: str) -> list[Step]:
        """Return the steps to a pixel model and its students straight from the guided pair."""
        name = f"{recipe}-{seed}" if recipe == "digits" else recipe
        own = ["evaluate.teacher_steps=[]", "evaluate.stage_one_steps=[]", f"seed={seed}"]
        own += ["evaluate.solver_steps=[]", "evaluate.reference_steps=64"]
        common: tuple[str, ...] = ("--out", str(self.work / "pixels" / name))
        if recipe == "digits":
            common += ("--device", "cpu")
        else:
            own += [f"data.name={self.data}"]
        own += [f"distill.stages={stages}", *(TINY if self.tiny else ())]
        settings = [x for s in own for x in ("--set", s)]
        return [
            Step(("train", recipe, *common, *settings)),
            Step(("report", recipe, *common, *settings)),
        ]

    def features(self) -> Step:
        """Return the step that trains the classifier of the metrics."""
        out = ("--out", str(self.work / "features"), "--name", "cifar32", "--size", "32")
        epochs = "1" if self.tiny else "6"
        command = ("features", "train", str(self.data), *out, "--epochs", epochs)
        return Step(command, (self.images("class"),))

    def report(self, recipe: str, model: str, out: Path, own: Sequence[str]) -> Step:
        """Return the step that measures what is not measured yet, and writes the report."""
        teacher, features = self.teacher_folder(model), self.features_folder()
        given = () if out == teacher.parent else ("--teacher", str(teacher))
        settings = self.set(model, [*own, f"evaluate.features={features}"])
        command = ("report", recipe, "--out", str(out), *given, *settings)
        return Step(command, (teacher / "fewstep.json", features / "features.json"))

    def set(self, model: str, own: Sequence[str]) -> list[str]:
        """Return the options that set these keys, and those of every run on a model's latents."""
        shared = [f"data.name={self.data}", "distill.checkpoint_every=100000"]
        shared += ["latents.dtype=float16"] if model == "flow-small" else []
        shared += TINY if self.tiny else ()
        return [x for s in (*shared, *own) for x in ("--set", s)]

    def collect(self) -> None:
        """Bring the digits' teachers together."""
        for teacher in self.work.glob("pixels/digits-*/teacher"):
            copy([str(teacher), str(self.work / "pixels/teachers" / teacher.parent.name)])

    def unreported(self) -> dict[str, list[Path]]:
        """Return the students of strong guidance without a report."""
        return {
            "-".join(p.parts[-3:-1]): [p]
            for p in sorted(self.work.glob("strong/*/*/student-4"))
            if not (p.parent / "report.json").is_file()
        }


if __name__ == "__main__":
    main(SmallModels, __doc__.splitlines()[0])
