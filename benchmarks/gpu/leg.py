"""Step `leg`: train the teacher of `cifar10-h100` for some minutes, distil it, and measure.

Every stage stops when its share of the time is up. A later leg starts from the packed run of an
earlier one (`--start`): the optimiser and the average begin anew.
"""

from __future__ import annotations

import dataclasses
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.common import (
    Context,
    Record,
    Row,
    fresh_folder,
    parameters,
    pretraining,
    teacher_of,
    timed_training,
)
from benchmarks.gpu.packed import Packed
from benchmarks.gpu.training import pays
from safetensors.torch import load_file
from torch import Tensor

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.core.seed import derive
from fewstep.data import augment, examples
from fewstep.distill.plan import Stage
from fewstep.errors import TimeUp
from fewstep.folders import load_model, save_model, to_images
from fewstep.metrics import Features, Reference, measure, train_features, vision_features
from fewstep.models import Model, student_of
from fewstep.recipes.config import RECIPE, save_recipe
from fewstep.recipes.pack import pack_run
from fewstep.recipes.unpack import unpack_run
from fewstep.show.sheet import rows_of, save_sheet
from fewstep.train import TrainConfig, Watch, estimate, read_metrics, train

# Shares of the time. What is left is for samples and metrics.
SHARES = {"teacher": 0.50, "student-4": 0.17, "student-1": 0.10}
COLUMNS = 20
FILES = 5  # of the packed run, beside results.json, log.txt and sheet.png
PROBE = 10  # updates that are timed before a student is trained, to choose how many there will be


def prepare_leg(context: Context) -> None:
    """Decode the images, which takes no GPU."""
    if context.data is not None:
        begun = time.monotonic()
        Packed(context.data)
        # What is imported at first use is imported here, while the GPU works for other steps.
        model = teacher_of(dataclasses.replace(context, device="cpu"))
        config = context.recipe().train_config(None)
        estimate(
            model, pretraining(model), config, torch.zeros(1, 3, 32, 32), torch.zeros(1).long()
        )
        print(f"[leg] ready after {time.monotonic() - begun:.1f} s", flush=True)


def run_leg(context: Context) -> None:
    """Train, distil, pack, draw and measure."""
    if context.data is None:
        raise SystemExit("the leg needs images; pass --data with a file that pack_data.py wrote.")
    Leg(context).run()


class Leg:
    """One leg: its models, and what is recorded of them."""

    def __init__(self, context: Context) -> None:
        """Open the images; the clock of the leg starts."""
        assert context.data is not None
        self.context, self.recipe = context, context.recipe()
        self.record = Record("leg", context)
        self.total = min(6.0, context.left()) if context.tiny else context.left()
        self.data, self.held_out = Packed(context.data), Packed(context.data, "held-out")
        self.models: dict[str, Model] = {}
        self.earlier: Row = {}

    def run(self) -> None:
        """Do everything, the most valuable first."""
        searched = self.measured.get("eager, cudnn.benchmark")
        torch.backends.cudnn.benchmark = pays(searched, self.measured.get("eager"))
        self.record.part("teacher", self.teacher)
        if "teacher" not in self.models:
            return
        self.record.part("pack", self.pack)
        self.record.part("sheet", self.sheet)
        for stage in self.recipe.distill.plan():
            self.record.part(stage.name, partial(self.student, stage))
            self.record.part("pack", self.pack)
        self.record.part("sheet", self.sheet)
        self.record.part("features", self.about_features)
        if "features" in self.record.results:
            self.cells()
            self.record.part("held-out images", self.about_held_out, need=6)

    def teacher(self) -> Row:
        """Train the teacher, or go on with an earlier one."""
        context, model = self.context, teacher_of(self.context)
        model.card = model.card.model_copy(update={"class_names": self.data.class_names})
        if context.start is not None:
            before = fresh_folder(context.work / "before")
            unpack_run(context.start / "packed", before)
            first = load_model(before / "teacher")
            model.network.load_state_dict(first.network.state_dict())
            self.earlier = dict(first.card.training)
        return self.train(model, pretraining(model), self.recipe.train_config(None))

    def student(self, stage: Stage) -> Row:
        """Distil one student; its number of updates is what fits into its share of the time."""
        recipe, parent = self.recipe, self.models[stage.parent]
        student = student_of(parent, stage, recipe.distill.w, w_dim=recipe.network.w_dim)
        denoiser = Guided(parent, parent.null_cond) if stage.parent == "teacher" else parent
        problem = stage.problem(denoiser, recipe.distill.w)
        config = recipe.train_config(stage)
        begun = time.monotonic()
        probe = timed_training(
            self.context, student_of(parent, stage, recipe.distill.w, w_dim=recipe.network.w_dim),
            problem, size=config.batch_size, updates=self.context.short(PROBE, 2), warm=2,
        )  # fmt: skip
        share = SHARES[stage.name] * self.total
        seconds = max(share / 2, share - (time.monotonic() - begun) - 1)
        updates = max(5, int(0.97 * 1000 * seconds / probe["ms"]))
        row = self.train(student, problem, config.model_copy(update={"updates": updates}), seconds)
        return {"probe ms": probe["ms"], **row}

    def train(
        self, model: Model, problem: Any, config: TrainConfig, seconds: float | None = None
    ) -> Row:
        """Train until the time is up, and keep the averaged weights as the model."""
        name = model.card.name
        seconds = SHARES[name] * self.total if seconds is None else seconds
        folder = fresh_folder(self.run_folder / "training" / name)
        x, cond = self.batches(name, config)(0, 0, 1)
        foreseen = estimate(model, problem, config, x[:1], cond[:1])
        watch = Watch(next(model.parameters()).device, foreseen.weights)
        config = config.model_copy(update={"compile": config.compile and self.compiles()})
        begun = time.monotonic()
        error = ""
        try:
            update = self.boxed(model, problem, config, folder, seconds)
        except Exception as failure:
            if not config.compile:
                raise
            error = f"{type(failure).__name__}: {failure}"[:500]
            print(f"[leg] {name}: compiling failed, training goes on without: {error}", flush=True)
            self.context.free()
            config = config.model_copy(update={"compile": False})
            update = self.boxed(
                model, problem, config, folder, max(1.0, seconds - (time.monotonic() - begun))
            )
        taken = time.monotonic() - begun
        row = {
            "parameters": parameters(model), "updates": update, "batch": config.batch_size,
            "images": update * config.batch_size, "seconds": taken, "compiled": config.compile,
            "images_per_second": update * config.batch_size / taken, "compile error": error,
            "memory foreseen": foreseen.total, "memory peak": watch.peak(),
            "config": config.model_dump(mode="json"),
            "losses": [[r["update"], round(r["loss"], 5)] for r in read_metrics(folder)],
            "rates": [round(r["updates_per_second"], 2) for r in read_metrics(folder)],
        }  # fmt: skip
        self.keep(model, row)
        self.context.free()
        return row

    def boxed(
        self, model: Model, problem: Any, config: TrainConfig, folder: Path, seconds: float
    ) -> int:
        """Train for so many seconds at most; load the average into the model; return the update."""
        name = model.card.name
        try:
            with fewstep.time_limit(seconds):
                result = train(
                    model, problem, self.batches(name, config), config, folder,
                    seed=self.seed(name), device=self.context.device, progress=False,
                )  # fmt: skip
            update, average = result.update, result.ema_state
        except TimeUp:
            update = int(json.loads((folder / "checkpoints/latest.json").read_text())["update"])
            average = load_file(folder / f"checkpoints/{update:08d}/ema.safetensors")
        model.load_state_dict(average)
        model.eval().requires_grad_(False)
        return update

    def seed(self, name: str) -> int:
        """Return the seed of a stage; a later leg has another."""
        return derive(self.recipe.seed, name, int(self.earlier.get("legs", 0)))

    def batches(self, name: str, config: TrainConfig) -> Any:
        """Return the batch function: images in a new order every epoch, mirrored at random."""
        seed = self.seed(name)

        def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
            size = config.batch_size // parts
            index, epoch = examples(self.data, seed, update, size, part=part, parts=parts)
            x, cond = self.data.batch(index)
            return augment(x, seed, epoch, index, flip=self.recipe.data.flip), cond

        return batch

    @cached_property
    def measured(self) -> Row:
        """The updates that the step `train` measured, if it did."""
        path = self.context.work / "train.json"
        if not path.is_file():
            return {}
        found: Row = json.loads(path.read_text(encoding="utf-8"))["results"]
        return found

    def compiles(self) -> bool:
        """Return whether the compiled update was faster where it was measured, if it was."""
        if "eager" not in self.measured:
            return True
        return pays(self.measured.get("compiled"), self.measured["eager"])

    def keep(self, model: Model, row: Row) -> None:
        """Keep the trained model, with what it cost on its card."""
        name, before = model.card.name, self.earlier if model.card.name == "teacher" else {}
        training = {
            "recipe": self.recipe.name,
            "data_sha256": self.data.content_hash(),
            "seed": self.recipe.seed,
            "legs": int(before.get("legs", 0)) + 1,
            "images_seen": int(before.get("images_seen", 0)) + row["images"],
            "updates": row["updates"],
            "batch_size": row["batch"],
            "seconds": round(float(before.get("seconds", 0)) + row["seconds"], 1),
        }
        model.card = model.card.model_copy(update={"training": training})
        save_model(model, self.run_folder / name)
        self.models[name] = model

    @cached_property
    def run_folder(self) -> Path:
        """The folder of this leg's run, with its recipe."""
        folder = fresh_folder(self.context.work / "leg")
        save_recipe(self.recipe, folder / RECIPE)
        return folder

    def pack(self) -> Row:
        """Pack the averaged weights of all models so far, rounded to bf16."""
        manifest = pack_run(
            self.run_folder, self.context.out / "packed", optimizer=False, bf16=True, files=FILES
        )
        return {part["name"]: part["sha256"] for part in manifest["parts"]}

    def draw(self, name: str, w: float, steps: int, cond: Tensor) -> Tensor:
        """Return images on the CPU: the teacher's by guided DDIM, a student's by its own steps."""
        model: Any = self.models[name]
        model = Guided(model, model.null_cond) if name == "teacher" else model
        size = self.recipe.evaluate.batch_size
        with torch.no_grad(), self.context.autocast():
            x = fewstep.sample(
                model, cond, w=w, steps=steps, seed=self.recipe.seed, batch_size=size
            )
        return to_images(self.models[name], x.float()).cpu()

    @cached_property
    def kinds(self) -> list[tuple[str, int]]:
        """The models and their numbers of steps, the reference first."""
        return [("teacher", self.recipe.evaluate.reference_steps), ("student-4", 4),
                ("student-1", 1), ("teacher", 4)]  # fmt: skip

    def sheet(self) -> Row:
        """Draw the same noise by every model there is, at every w, into one picture."""
        cond = torch.arange(COLUMNS) % self.data.num_classes
        rows, labels = [], []
        for w in self.recipe.evaluate.w:
            for name, steps in self.kinds:
                if name in self.models:
                    rows.append(self.draw(name, w, steps, cond))
                    labels.append(f"{name}, {steps} steps, w = {w:g}")
        save_sheet(rows_of(rows, COLUMNS, 2), self.context.out / "sheet.png", {"rows": labels})
        return {"rows": labels}

    @cached_property
    def features(self) -> Features:
        """A classifier: the one that was given, or one that is trained now."""
        if self.context.features is not None:
            return vision_features(self.context.features, self.context.device)
        return train_features(
            fresh_folder(self.context.work / "features"), self.data, self.held_out,
            name="cifar10", epochs=self.context.short(8, 1), device=self.context.device,
            progress=False,
        )  # fmt: skip

    @cached_property
    def reference(self) -> Reference:
        """The training images as the classifier sees them."""
        index = torch.arange(self.context.short(len(self.data), min(500, len(self.data))))
        images = torch.cat([self.data.batch(part)[0] for part in index.split(5000)])
        return Reference.build(images, self.features)

    def about_features(self) -> Row:
        """Load or train the classifier, and show it the training images."""
        found, _ = self.features, self.reference
        accuracy = getattr(found, "held_out_accuracy", None)
        return {"name": found.name, "accuracy": accuracy, "sha256": found.sha256}

    def about_held_out(self) -> Row:
        """Return the figures of real images that were held out of training."""
        x, labels = self.held_out.batch(torch.arange(len(self.held_out)))
        return measure(x, labels, features=self.features, reference=self.reference)

    def cells(self) -> None:
        """Draw each cell on the GPU while the CPU measures the one before."""
        waiting: list[tuple[str, Future[Row]]] = []
        longest: float | None = None
        with ThreadPoolExecutor(1) as pool:
            for w in sorted(self.recipe.evaluate.w, key=lambda w: abs(w - 1)):
                reference: Tensor | None = None
                needed = 40.0 if longest is None else 1.3 * longest + 8
                for name, steps in self.kinds:
                    if name not in self.models:
                        continue
                    key, many = f"cell {name} {steps} w={w:g}", reference is None
                    found = self.record.part(
                        key, partial(self.drawn, name, w, steps), need=needed if many else 10
                    )
                    if found is None:
                        break  # the next w has its own reference
                    images = self.images.pop(key)
                    longest = max(longest or 0.0, found["seconds"])
                    teacher = None if many else reference
                    waiting.append((key, pool.submit(self.figures, found, images, teacher)))
                    reference = images if many else reference
                self.collect(waiting)
            self.collect(waiting, wait=True)

    @cached_property
    def images(self) -> dict[str, Tensor]:
        """The images of cells that are still to be measured."""
        return {}

    def drawn(self, name: str, w: float, steps: int) -> Row:
        """Draw the images of a cell; return how fast."""
        cond = torch.arange(self.recipe.evaluate.samples) % self.data.num_classes
        begun = self.context.now()
        self.images[f"cell {name} {steps} w={w:g}"] = self.draw(name, w, steps, cond)
        taken = self.context.now() - begun
        passes = 2 if name == "teacher" and w != 0 else 1
        return {
            "model": name, "steps": steps, "evaluations": steps * passes, "w": w,
            "samples": len(cond), "seconds": taken, "images_per_second": len(cond) / taken,
        }  # fmt: skip

    def figures(self, row: Row, images: Tensor, teacher: Tensor | None) -> Row:
        """Return the metrics of a cell."""
        labels = torch.arange(len(images)) % self.data.num_classes
        shared: Row = {"features": self.features, "reference": self.reference}
        return {**row, **measure(images, labels, **shared, teacher_samples=teacher)}

    def collect(self, waiting: list[tuple[str, Future[Row]]], *, wait: bool = False) -> None:
        """Record the cells that are measured; with wait, all of them, within the time left."""
        for entry in list(waiting):
            key, future = entry
            if wait or future.done():
                waiting.remove(entry)
                limit = None if self.context.tiny else max(1.0, self.context.left())
                self.record.part(f"figures of {key}", partial(future.result, limit))
