"""Students of transformers as LoRA files and single files: what stock pipelines draw with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.models.packed import PIXELS
from tests.models.pipelines import draw_apart, sana_folder
from tests.models.test_families import FOLDERS, conditions, live, question
from torch import Tensor

import fewstep
from fewstep.distill.plan import Stage
from fewstep.errors import RangeError
from fewstep.folders import load_model, load_vae, save_model
from fewstep.folders.export.format import ARCHITECTURES
from fewstep.folders.export.lora import SLIDER, STUDENT
from fewstep.folders.export.single_file import FILE
from fewstep.folders.export.slider import strength
from fewstep.models import (
    FAMILIES,
    Lora,
    Model,
    decode_latents,
    fold_w,
    merge_adapter,
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


def made(teacher: Model, steps: int, lora: Lora | None) -> Model:
    """A student of one feature of w, moved away from its teacher as if it had been trained."""
    stage = Stage(f"student-{steps}", "teacher", updates=1, steps=steps)
    student = student_of(teacher, stage, W_RANGE, w_dim=32, w_band="one", lora=lora, seed=1)
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

    def ask(
        self, name: str, student: Model, w: float, *, steps: int | None = None, **job: Any
    ) -> None:
        shape, steps = student.card.shape, steps or student.card.steps
        noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))
        packed = self.family.flow == "spaced"
        call = {
            "prompt": PROMPTS, "num_inference_steps": steps,
            "latents": pack(noise) if packed else noise, **self.case.call, **job.pop("call", {}),
        }  # fmt: skip
        pipeline = self.family.pipelines[0]
        self.jobs[name] = {"folder": str(self.stock), "pipeline": pipeline, "call": call, **job}
        z = fewstep.sample(student, self.cond, w=w, steps=steps, z=noise)
        self.wanted[name] = (decode_latents(self.vae, z) / 2 + 0.5).clamp(0, 1)

    def ask_guided_flux(self, student: Model, single: dict[str, str], folder: Path) -> None:
        """Ask for a single file with its input for w, and for files and folders without it."""
        fewstep.export(student, folder / "live", to="single-file")
        live = {"single": str(folder / "live" / FILE), **guided("flux-guided", W)}
        self.ask("live", student, W, **live)
        fewstep.export(self.stock, folder / "folded", w=W)
        teacher, folded = load_model(self.stock), str(folder / "folded")
        for steps in MANY_STEPS:
            self.ask(f"folded {steps}", teacher, W, steps=steps, folder=folded)
        self.ask("single", student, W, folder=folded, **single)

    def check(self, folder: Path) -> None:
        """Compare them all; guidance must matter, or nothing is shown."""
        differ = self.wanted["apart 4 0.0"] - self.wanted[f"apart 4 {W}"]
        assert float(differ.abs().max()) > 1e-2
        for name, drawn in draw_apart(self.jobs, folder).items():
            wanted = self.wanted[name]
            assert drawn["batches"] == [3] * self.jobs[name]["call"]["num_inference_steps"], name
            assert float(((wanted > 0) & (wanted < 1)).float().mean()) > 0.3, name
            assert float((drawn["images"] - wanted).abs().max()) < 1e-4, name


def files_of(folder: Path, w: float) -> dict[str, float]:
    there = {STUDENT: 1.0, SLIDER: strength(w)}
    return {str(folder / name): s for name, s in there.items() if (folder / name).is_file()}


def guided(name: str, w: float) -> dict[str, Any]:
    """The arguments of a call whose guidance is no LoRA: of a network that takes w itself."""
    return {"call": {"guidance_scale": 1 + w}} if FAMILIES[name].slot == "value" else {}


def with_style(student: Model, file: Path) -> Model:
    """Write a LoRA as if trained on the teacher, and return the student with it in its weights."""
    styled, tensors, draws = merge_adapter(student), {}, torch.Generator().manual_seed(2)
    for name, layer in styled.network.named_modules():
        if name.endswith(("to_q", "to_k")):
            up, down = (0.3 * torch.randn(n, 2, generator=draws) for n in layer.weight.shape)
            tensors |= {f"transformer.{name}.lora_A.weight": down.T.contiguous()}
            tensors |= {f"transformer.{name}.lora_B.weight": up}
            layer.weight = torch.nn.Parameter(layer.weight + up @ down.T)
    save_file(tensors, file)
    return styled


@pytest.mark.parametrize("name", CASES)
def test_lora_files_and_single_files_draw_as_the_live_student(name: str, tmp_path: Path) -> None:
    stock = FOLDERS[name](tmp_path / "stock")
    pipelines, teacher = Pipelines(name, stock), load_model(stock)
    apart = Lora(rank=2, alpha=4, targets=CASES[name].targets, keep_apart=True)
    students = {steps: made(teacher, steps, apart) for steps in (1, 4, 8)}
    save_model(students[4], tmp_path / "student")
    students[4] = load_model(tmp_path / "student")
    for steps, student in students.items():
        out = tmp_path / f"lora-{steps}"
        fewstep.export(student, out, to="lora")
        for w in MANY_W if steps == 4 else (W,):
            job = {"loras": files_of(out, w), "scheduler": str(out), **guided(name, w)}
            assert (len(job["loras"]) == 1) == (name == "flux-guided")
            pipelines.ask(f"apart {steps} {w}", student, w, **job)

    whole, out = made(teacher, 4, None), tmp_path / "svd"
    fewstep.export(whole, out, to="lora", base=stock, rank=10_000)
    with safe_open(out / STUDENT, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["fewstep"])["left_out"] < 1e-6
    assert metadata["modelspec.architecture"] == f"{ARCHITECTURES[name]}/lora"
    job = {"loras": files_of(out, W), "scheduler": str(out), **guided(name, W)}
    pipelines.ask("whole", whole, W, **job)

    student, files = students[4], {"loras": files_of(tmp_path / "lora-4", W)}
    (line,) = fewstep.export(student, tmp_path / "one", to="single-file", w=W)
    assert line.startswith("w = 4 is fixed in the weights of model.safetensors, the transformer al")
    single = {"single": str(tmp_path / "one" / FILE), "scheduler": str(tmp_path / "one")}
    if name == "flux-guided":
        pipelines.ask_guided_flux(student, single, tmp_path)
    else:
        pipelines.ask("single", student, W, **single)
    if name in ("flux", "chroma"):  # their own scheduler makes these steps too
        pipelines.ask("as it is", student, W, **files)
    if name == "stable-diffusion-3":
        pipelines.ask("sigmas", student, W, **files, call={"sigmas": [1.0, 0.75, 0.5, 0.25]})
        style = {str(tmp_path / "style.safetensors"): 1.0}
        styled = with_style(student, tmp_path / "style.safetensors")
        loras, scheduler = {**files["loras"], **style}, str(tmp_path / "lora-4")
        pipelines.ask("style", styled, W, loras=loras, scheduler=scheduler)
        fewstep.export(student, tmp_path / "folded", w=W)
        pipelines.ask("folded", styled, W, loras=style, folder=str(tmp_path / "folded"))
        away = pipelines.wanted["style"] - pipelines.wanted[f"apart 4 {W}"]
        assert float(away.abs().max()) > 1e-3
    pipelines.check(tmp_path)


@pytest.fixture(scope="module")
def guided_flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FOLDERS["flux-guided"](tmp_path_factory.mktemp("stock") / "flux-guided")


def test_a_guided_flux_without_its_guidance_embedder_is_the_same(guided_flux: Path) -> None:
    """The constant that one w adds is a bias: nothing but the rounding of float64 is left."""
    model = load_model(guided_flux)
    model.network.double()
    z, phi = (t.double() for t in question(guided_flux))
    cond = {key: t.double() for key, t in conditions(guided_flux).items()}  # type: ignore[union-attr]
    for w in (0.0, 2.5, 9.0):
        folded = fold_w(model, w)
        assert type(folded.network) is type(model.network)
        assert not folded.network.config.guidance_embeds
        assert folded.card.family == "flux"
        with torch.no_grad():
            wanted = model(z, phi, cond, torch.full((3,), w))
            found = folded(z, phi, cond, torch.zeros(3))
        assert float((found - wanted).abs().max()) < 1e-13


def test_the_names_of_tensors_are_those_of_published_files(
    guided_flux: Path, tmp_path: Path
) -> None:
    line = fewstep.export(guided_flux, tmp_path / "live", to="single-file")
    assert line == (
        "w is an input of model.safetensors, the transformer alone; use guidance scale 1 + w",
    )
    fewstep.export(guided_flux, tmp_path / "one", to="single-file", w=1.0)
    live, one = (load_file(tmp_path / name / FILE) for name in ("live", "one"))
    assert {"double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.bias"} < one.keys()
    assert {key.split(".")[0] for key in live.keys() - one.keys()} == {"guidance_in"}
    with safe_open(tmp_path / "live" / FILE, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "flux-1-dev"
    assert "any number of Euler steps of rectified flow" in metadata["modelspec.usage_hint"]
    assert metadata["modelspec.usage_hint"].endswith("CFG 1, guidance 1 + w")


def test_a_student_for_one_w_has_files_without_w(guided_flux: Path, tmp_path: Path) -> None:
    stock = FOLDERS["flux"](tmp_path / "flux")
    stage = Stage("student-2", "teacher", updates=1, steps=2)
    lora = Lora(rank=2, keep_apart=True)
    student = student_of(load_model(stock), stage, (3.0, 3.0), lora=lora)
    _, line = fewstep.export(student, tmp_path / "lora", to="lora")
    assert line == "w = 3 is in student.safetensors; there is no guidance.safetensors"
    assert not (tmp_path / "lora" / SLIDER).exists()
    text = (tmp_path / "lora" / "README.md").read_text()
    assert "guidance at w = 3 is in `student.safetensors`" in text
    assert 'pipe("a photograph of a cat", num_inference_steps=2, height=16, width=16)' in text
    (line,) = fewstep.export(student, tmp_path / "one", to="single-file")
    assert line.startswith("w = 3 is fixed in the weights of model.safetensors")
    one = student_of(load_model(guided_flux), stage, (3.0, 3.0))
    lines = fewstep.export(one, tmp_path / "guided", to="single-file")
    assert lines[0].startswith("w is an input of model.safetensors")  # its guidance embedder
    live = student_of(load_model(guided_flux), stage, (0.0, 5.0), lora=lora)
    _, line = fewstep.export(live, tmp_path / "live", to="lora")
    assert line == (
        "w is an input of the network, as guidance scale 1 + w; there is no guidance.safetensors"
    )
    text = (tmp_path / "live" / "README.md").read_text()
    assert "num_inference_steps=2, guidance_scale=1 + w, height=16, width=16)" in text
    assert "`guidance_scale` is 1 + w, for w from 0 to 5." in text


def test_what_pipelines_load_lora_files_is_diffusers_to_say() -> None:
    for family in FAMILIES.values():
        if not family.native:
            loads = hasattr(getattr(diffusers, family.pipelines[0]), "load_lora_weights")
            assert loads == (family.time_features is not None), family.name


def test_what_transformers_cannot_become(guided_flux: Path, tmp_path: Path) -> None:
    flux, pixart = load_model(guided_flux), FOLDERS["pixart-sigma"](tmp_path / "pixart")
    several = live(FOLDERS["flux"](tmp_path / "flux"))
    cases: list[tuple[Model, str, dict[str, Any], str]] = [
        (flux, "diffusers", {}, "w is required"),
        (flux, "diffusers", {"w": 9.5}, r"w must lie in \[0, 9\]"),
        (flux, "single-file", {"w": -1.0}, r"w must lie in \[0, 9\]"),
        (several, "single-file", {}, "w is required"),
        (several, "lora", {"style": "kohya"}, "several. Train it with network.w_features=one"),
        (flux, "lora", {}, "for any number of steps"),
        (made(flux, 4, None), "lora", {"style": "kohya"}, "keys are those of a U-Net"),
        (live(pixart), "single-file", {"w": 1.0}, "got one of pixart-sigma, of which diffusers"),
        (live(pixart), "lora", {}, "whose stock pipeline loads LoRA files .* one of pixart-sigma"),
    ]
    sana = load_model(sana_folder(tmp_path / "sana", qk_norm="rms_norm_across_heads"))
    normed = student_of(sana, Stage("one", "teacher", steps=4), (1.0, 1.0))
    cases.append((normed, "single-file", {}, "the original code has no such layer"))
    for model, to, options, wrong in cases:
        with pytest.raises(RangeError, match=wrong):
            fewstep.export(model, tmp_path / "out", to=to, **options)
    assert not (tmp_path / "out").exists()
