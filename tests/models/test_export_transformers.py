"""Students of transformers as LoRA files and single files: what stock pipelines draw with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.models.packed import PIXELS
from tests.models.pipelines import draw_apart
from tests.models.test_families import FOLDERS, conditions
from torch import Tensor

import fewstep
from fewstep.distill.plan import Stage
from fewstep.folders import load, load_vae, save_model
from fewstep.folders.export.format import ARCHITECTURES
from fewstep.folders.export.lora import SLIDER, STUDENT
from fewstep.folders.export.single_file import FILE
from fewstep.folders.export.slider import strength
from fewstep.models import (
    FAMILIES,
    Lora,
    Model,
    decode_latents,
    student_of,
)
from fewstep.models.families.packed import pack
from fewstep.models.w_input import one_feature, projection_of

MANY_STEPS = (1, 2, 4, 8)
MANY_W = (0.0, 1.5, 4.0, 7.0, 9.0)
W_RANGE = (0.0, 9.0)
W = 4.0
PROMPTS = ["a cat", "two dogs", ""]
ATTENTION = ("to_q", "to_v", "to_out.0")


@dataclass(frozen=True)
class Case:
    """What is special to a family: layers with a LoRA, and arguments of its stock pipeline."""

    targets: tuple[str, ...] = ATTENTION
    call: dict[str, Any] = field(default_factory=dict)


ONE = {"guidance_scale": 1.0}
SIZE = {"height": PIXELS, "width": PIXELS}
CASES = {
    "stable-diffusion-3": Case((*ATTENTION, "add_q_proj", "ff.net.0.proj"), ONE),
    "sana": Case(
        call={**ONE, "height": 32, "width": 32, "use_resolution_binning": False},
    ),
    "flux": Case((*ATTENTION, "add_k_proj", "proj_mlp", "proj_out"), SIZE),
    "flux-guided": Case((*ATTENTION, "add_k_proj"), SIZE),
    "chroma": Case((*ATTENTION, "add_v_proj"), {**ONE, **SIZE}),
    "qwen-image": Case((*ATTENTION, "add_q_proj", "img_mod.1"), SIZE),
}


def made(parent: Path, steps: int, lora: Lora | None) -> Model:
    """A student of one feature of w, moved away from its teacher as if it had been trained."""
    stage = Stage(f"student-{steps}", "teacher", updates=1, steps=steps)
    student = student_of(load(parent), stage, W_RANGE, w_dim=32, w_band="one", lora=lora, seed=1)
    draws = torch.Generator().manual_seed(5)
    plain = {n for n, m in student.named_modules() if isinstance(m, torch.nn.Linear)}
    projection = projection_of(student.network)
    for name, p in student.named_parameters():
        noise = torch.randn(p.shape, generator=draws)
        if projection is not None and p is projection.weight:
            p.data[:, one_feature(32)] += noise[:, 0]
        elif p.requires_grad and (lora or name.rpartition(".")[0] in plain):
            p.data += (0.1 if lora else 0.02) * noise
    return student.eval()


class Pipelines:
    """What one family's stock pipeline is to draw, and what `fewstep.sample` draws instead."""

    def __init__(self, name: str, stock: Path) -> None:
        self.case, self.family, self.stock = CASES[name], FAMILIES[name], stock
        self.cond, self.vae = conditions(stock), load_vae(stock)
        self.jobs: dict[str, Any] = {}
        self.wanted: dict[str, Tensor] = {}

    def ask(self, name: str, student: Model, w: float, **job: Any) -> None:
        shape, steps = student.card.shape, student.card.steps
        noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))
        packed = self.family.flow == "spaced"
        call = {
            "prompt": PROMPTS, "num_inference_steps": steps,
            "latents": pack(noise) if packed else noise, **self.case.call, **job.pop("call", {}),
        }  # fmt: skip
        if self.family.slot == "value":
            call["guidance_scale"] = 1 + w
        pipeline = self.family.pipelines[0]
        self.jobs[name] = {"folder": str(self.stock), "pipeline": pipeline, "call": call, **job}
        z = fewstep.sample(student, self.cond, w=w, z=noise)
        self.wanted[name] = (decode_latents(self.vae, z) / 2 + 0.5).clamp(0, 1)

    def check(self, folder: Path) -> None:
        for name, drawn in draw_apart(self.jobs, folder).items():
            wanted = self.wanted[name]
            assert drawn["batches"] == [3] * self.jobs[name]["call"]["num_inference_steps"], name
            assert float(((wanted > 0) & (wanted < 1)).float().mean()) > 0.3, name
            assert float((drawn["images"] - wanted).abs().max()) < 1e-4, name


def files_of(folder: Path, w: float) -> dict[str, float]:
    there = {STUDENT: 1.0, SLIDER: strength(w)}
    return {str(folder / name): s for name, s in there.items() if (folder / name).is_file()}


@pytest.mark.parametrize("name", CASES)
def test_lora_files_and_single_files_draw_as_the_live_student(name: str, tmp_path: Path) -> None:
    stock = FOLDERS[name](tmp_path / "stock")
    pipelines = Pipelines(name, stock)
    apart = Lora(rank=2, alpha=4, targets=CASES[name].targets, keep_apart=True)
    for steps in MANY_STEPS:
        student, out = made(stock, steps, apart), tmp_path / f"lora-{steps}"
        save_model(student, tmp_path / f"student-{steps}")
        fewstep.export(tmp_path / f"student-{steps}", out, to="lora")
        for w in MANY_W if steps == 4 else (W,):
            loras = files_of(out, w)
            assert (len(loras) == 1) == (name == "flux-guided")
            pipelines.ask(f"apart {steps} {w}", student, w, loras=loras, scheduler=str(out))
    whole = made(stock, 4, None)
    save_model(whole, tmp_path / "whole")
    fewstep.export(tmp_path / "whole", tmp_path / "svd", to="lora", base=stock, rank=10_000)
    with safe_open(tmp_path / "svd" / STUDENT, "pt") as file:
        told = file.metadata()
    assert json.loads(told["fewstep"])["left_out"] < 1e-6
    assert told["modelspec.architecture"] == f"{ARCHITECTURES[name]}/lora"
    for w in (0.0, W):
        loras, scheduler = files_of(tmp_path / "svd", w), str(tmp_path / "svd")
        pipelines.ask(f"whole {w}", whole, w, loras=loras, scheduler=scheduler)
    student = load(tmp_path / "student-4")
    fewstep.export(student, tmp_path / "one", to="single-file", w=W)
    single = {"single": str(tmp_path / "one" / FILE), "scheduler": str(tmp_path / "one")}
    if name == "flux-guided":  # with its input for w, and without
        fewstep.export(student, tmp_path / "live", to="single-file")
        pipelines.ask("live", student, W, single=str(tmp_path / "live" / FILE))
        fewstep.export(student, tmp_path / "folded", w=W)
        single["folder"] = str(tmp_path / "folded")
    pipelines.ask("single", student, W, **single)
    if name in ("flux", "chroma"):  # their own scheduler makes these steps too
        pipelines.ask("as it is", student, W, loras=files_of(tmp_path / "lora-4", W))
    if name == "stable-diffusion-3":
        pipelines.ask(
            "by sigmas", student, W, loras=files_of(tmp_path / "lora-4", W),
            call={"sigmas": [1.0, 0.75, 0.5, 0.25]},
        )  # fmt: skip
    pipelines.check(tmp_path)
