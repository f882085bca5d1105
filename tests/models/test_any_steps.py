"""Any-step students: the number of steps as an input, folded, saved, exported and refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.models.conftest import TINY
from tests.models.pipelines import draw_apart, edit
from tests.models.test_families import FOLDERS, W, conditions, live, question
from torch import Tensor

import fewstep
from fewstep.core.seed import Noise
from fewstep.distill.plan import Stage
from fewstep.errors import FolderError, RangeError
from fewstep.folders import card_in, encode_prompts, load, load_vae, save_model
from fewstep.folders.export import export
from fewstep.models import Lora, Model, decode_latents, fold_steps, fold_w, model_of, student_of
from fewstep.models.w_input import STEPS, features_of, steps_projection
from fewstep.train.optimizer import lr_scales

ANY = Stage(None, "teacher", updates=1, any_steps=[8, 4, 2, 1], order=2)
FAMILIES = ("stable-diffusion", "dit", "stable-diffusion-3", "flux-guided", "chroma")
WS = torch.tensor([0.0, 1.5, 4.0])


def any_step(parent: Path, lora: Lora | None = None) -> Model:
    """A student whose w and number of steps matter, though nothing has trained it."""
    return with_steps(live(parent, lora, ANY))


def with_steps(student: Model) -> Model:
    layer = steps_projection(student.network)
    assert layer is not None
    draws = torch.Generator().manual_seed(3)
    layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=draws))
    return student


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FOLDERS[request.param](tmp_path_factory.mktemp("stock") / request.param)


def test_a_family_has_an_input_for_the_number_of_steps(folder: Path, tmp_path: Path) -> None:
    cond, (z, phi) = conditions(folder), question(folder)
    fresh, parent = live(folder, stage=ANY), live(folder)
    with torch.no_grad():
        steps = torch.tensor([8, 2, 1])
        assert torch.equal(fresh(z, phi, cond, WS, steps), parent(z, phi, cond, WS))
        student = any_step(folder)
        save_model(student, tmp_path / "any")
        again = load(tmp_path / "any")
        assert isinstance(again, Model)
        assert again.traits.steps == (8, 4, 2, 1)
        assert torch.equal(student(z, phi, cond, WS, steps), again(z, phi, cond, WS, steps))
        apart = []
        for n in (8, 4, 2, 1):
            at = student.at_steps(n)(z, phi, cond, WS)
            assert torch.equal(at, student(z, phi, cond, WS, torch.full((3,), n)))
            folded = fold_steps(again, n)
            torch.testing.assert_close(folded(z, phi, cond, WS), at, atol=2e-5, rtol=1e-5)
            assert steps_projection(folded.network) is None
            assert features_of(folded.network) == features_of(student.network)
            assert (folded.card.steps, folded.traits.steps) == (n, (n,))
            apart.append(at)
        far = [float((a - b).abs().max()) for a, b in pairwise(apart)]
        assert min(far) > 1e-3
    save_model(folded, tmp_path / "one")
    saved = load(tmp_path / "one")
    both = fold_w(folded, 2.0)
    with torch.no_grad():
        assert torch.equal(saved(z, phi, cond, WS), folded(z, phi, cond, WS))
        wanted = student.at_steps(1)(z, phi, cond, torch.full((3,), 2.0))
        torch.testing.assert_close(both(z, phi, cond, WS), wanted, atol=2e-5, rtol=1e-5)
    stock = {k for k in model_of(load(folder)).network.state_dict() if "guidance_embedder" not in k}
    assert both.network.state_dict().keys() == stock
    fewstep.sample(again, cond[:1] if isinstance(cond, Tensor) else cond, w=1.0, steps=2)


def test_pixel_models_have_it_too(teacher: Model, tmp_path: Path) -> None:
    student = with_steps(student_of(teacher, ANY, W, w_dim=TINY.w_dim))
    assert teacher.lr_scales is None
    for student_or_compiled in (student, torch.compile(student)):
        names = [name for name, _ in student_or_compiled.named_parameters()]
        scales = lr_scales(student_or_compiled, names)
        assert scales is not None
        faster = {n.split(".")[-2]: s for n, s in zip(names, scales, strict=True) if s != 1.0}
        assert faster == {"steps_projection": 8.0}
    save_model(student, tmp_path / "any")
    again, cond = load(tmp_path / "any"), torch.arange(4)
    for n in (8, 1):
        drawn = fewstep.sample(student, cond, w=1.5, steps=n)
        assert torch.equal(fewstep.sample(again, cond, w=1.5, steps=n), drawn)
        (line,) = export(tmp_path / "any", tmp_path / f"{n}", steps=n)
        assert line == f"{n} steps are fixed in the weights; w is still an input"
        pipe = fewstep.ClassConditionalPipeline.from_pretrained(tmp_path / f"{n}")
        pipe.set_progress_bar_config(disable=True)
        noise = Noise(0, range(4)).draw((1, 8, 8), torch.float32, torch.device("cpu"))
        found = pipe(cond, guidance_scale=2.5, latents=noise, output_type="pt").images
        torch.testing.assert_close(found, drawn, rtol=0, atol=1e-4)
    with pytest.raises(Exception, match="WithSteps"):
        fewstep.ClassConditionalPipeline.from_pretrained(tmp_path / "any")


def test_an_exported_folder_draws_the_same_where_fewstep_is_not(sd: Path, tmp_path: Path) -> None:
    student, prompts = any_step(sd), ["a cat", "two dogs"]
    noise = Noise(0, range(2)).draw((4, 8, 8), torch.float32, torch.device("cpu"))
    jobs = {}
    for n in (8, 2, 1):
        export(student, tmp_path / f"{n}", steps=n)
        export(student, tmp_path / f"{n}-w", steps=n, w=3.0)
        for w in (0.5, 3.0):
            call = {"prompt": prompts, "num_inference_steps": n, "latents": noise}
            jobs[f"{n} {w}"] = {
                "folder": str(tmp_path / f"{n}"),
                "pipeline": "StableDiffusionPipeline",
                "call": {**call, "guidance_scale": 1 + w},
            }
        jobs[f"{n} fixed"] = {
            "folder": str(tmp_path / f"{n}-w"),
            "pipeline": "StableDiffusionPipeline",
            "call": {**call, "guidance_scale": 1.0},
        }
    found, vae = draw_apart(jobs, tmp_path), load_vae(sd)
    cond = encode_prompts(sd, prompts)
    for name, got in found.items():
        n, w = name.split()
        assert got["batches"] == [2] * int(n)
        z = fewstep.sample(student, cond, w=3.0 if w == "fixed" else float(w), steps=int(n))
        images = (decode_latents(vae, z) / 2 + 0.5).clamp(0, 1)
        assert float((images - got["images"]).abs().max()) < 1e-4
        assert float((z - got["latents"]).abs().max()) < 1e-4 * max(1.0, float(z.abs().max()))
    assert not torch.allclose(found["2 0.5"]["images"], found["2 3.0"]["images"], atol=1e-3)


def test_exports_name_the_student_that_they_were_made_from(sd: Path, tmp_path: Path) -> None:
    """Fixing the number of steps and then w leaves no model without a hash in between."""
    saved = save_model(any_step(sd), tmp_path / "any")
    export(tmp_path / "any", tmp_path / "fixed", steps=4, w=2.0)
    student, teacher = card_in(tmp_path / "fixed").parents
    assert (student.name, student.sha256) == ("student-any", saved.weights_sha256)
    assert (teacher,) == saved.parents
    export(tmp_path / "any", tmp_path / "single", to="single-file", steps=4, w=2.0)
    with safe_open(tmp_path / "single" / "model.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["fewstep"])
    assert facts["weights_sha256"] == saved.weights_sha256


def test_an_adapter_kept_apart_is_named_where_it_is_folded(sd: Path, tmp_path: Path) -> None:
    saved = save_model(live(sd, Lora(rank=2, alpha=4, keep_apart=True)), tmp_path / "apart")
    student, *_ = fold_w(load(tmp_path / "apart"), 2.0).card.parents
    assert (student.name, student.sha256) == ("student", saved.weights_sha256)


def test_two_lora_files_are_of_one_number_of_steps(sd: Path, tmp_path: Path) -> None:
    """The bias of the number of steps is in the student's file; the slider is as it was."""
    student = with_steps(student_of(load(sd), ANY, W, w_dim=32, w_band="one"))
    with pytest.raises(RangeError, match="steps is required"):
        export(student, tmp_path / "lora", to="lora", base=sd)
    kohya = {"to": "lora", "steps": 2, "base": sd, "style": "kohya"}
    with pytest.raises(RangeError, match="kohya files have none"):
        export(student, tmp_path / "lora", **kohya)
    line, _ = export(student, tmp_path / "lora", to="lora", steps=2, base=sd)
    assert " 0 % of the difference" in line
    biases = load_file(tmp_path / "lora" / "student.safetensors")
    wanted = fold_steps(student, 2).network.time_embedding.linear_1.bias
    base = model_of(load(sd)).network.time_embedding.linear_1.bias
    found = biases["unet.time_embedding.linear_1.lora_B.bias"]
    torch.testing.assert_close(found, (wanted - base).detach())


def test_an_adapter_has_the_input_beside_it(sd: Path, tmp_path: Path) -> None:
    student, cond = any_step(sd, Lora(rank=2, alpha=4, keep_apart=True)), conditions(sd)
    save_model(student, tmp_path / "apart")
    again, (z, phi) = load(tmp_path / "apart"), question(sd)
    with torch.no_grad():
        wanted = student.at_steps(4)(z, phi, cond, WS)
        assert isinstance(again, Model)
        assert torch.equal(again.at_steps(4)(z, phi, cond, WS), wanted)
        folded = fold_steps(again, 4)
        torch.testing.assert_close(folded(z, phi, cond, WS), wanted, atol=2e-5, rtol=1e-5)


def test_activations_are_computed_again_with_the_same_number_of_steps(tmp_path: Path) -> None:
    stock = FOLDERS["dit"](tmp_path / "stock")
    cond, (z, phi) = conditions(stock), question(stock)
    grads = []
    for again in (False, True):
        student = any_step(stock).train()
        if again:
            student.checkpoint_activations()
        calls = [student(z, phi, cond, WS, torch.full((3,), n)) for n in (8, 1)]
        sum(v.square().mean() for v in calls).backward()  # type: ignore[union-attr]
        grads.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    assert f"network.{STEPS}.weight" in grads[0]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4)


def test_what_a_student_is_not_for_is_refused_in_one_line(teacher: Model, tmp_path: Path) -> None:
    student, cond = student_of(teacher, ANY, W, w_dim=16), torch.tensor([1])
    z, phi, w = torch.randn(1, 1, 8, 8), torch.tensor([0.5]), torch.tensor([1.0])
    child = Stage("child", "student-any", updates=1, steps=2)
    for message, call in {
        "pass one of them, for example steps=8": lambda: fewstep.sample(student, cond),
        "was made for 8, 4, 2, 1 steps": lambda: fewstep.sample(student, cond, steps=3),
        "and none was given": lambda: student(z, phi, cond, w),
        "must be 8, 4, 2, 1, .*got 3": lambda: student(z, phi, cond, w, torch.tensor([3])),
        "must be one of": lambda: student.at_steps(3),
        "must be fixed before w": lambda: fold_w(student, 1.0),
        "only an any-step student": lambda: fold_steps(fold_steps(student, 2), 2),
        "needs one number of steps of it": lambda: student_of(student, child, W),
        "steps is required": lambda: export(student, tmp_path / "out"),
        "any-step student is fixed": lambda: export(
            fold_steps(student, 2), tmp_path / "o", steps=2
        ),
    }.items():
        with pytest.raises(RangeError, match=message) as found:
            call()
        assert "\n" not in str(found.value)


def test_a_module_of_your_own_cannot_have_it() -> None:
    class Mine(torch.nn.Module):
        passes = 1

        def forward(self, z: Tensor, phi: Tensor, cond: Tensor, w: Tensor) -> Tensor:
            return z

    with pytest.raises(RangeError, match="any_steps must be left out for a module of your own"):
        student_of(Mine(), ANY, W)


def test_a_folder_from_when_there_were_shortcuts_is_read(teacher: Model, tmp_path: Path) -> None:
    save_model(student_of(teacher, ANY, W, w_dim=16), tmp_path / "any")
    card = card_in(tmp_path / "any")
    stage = {**card.model_dump(mode="json")["stage"], "shortcut": 0.25}
    edit(tmp_path / "any" / "fewstep.json", stage=stage)
    assert card_in(tmp_path / "any") == card
    assert model_of(load(tmp_path / "any")).card.stage == card.stage


def test_a_folder_whose_card_and_weights_differ_is_refused(teacher: Model, tmp_path: Path) -> None:
    save_model(student_of(teacher, ANY, W, w_dim=16), tmp_path / "any")
    card = card_in(tmp_path / "any").model_dump(mode="json")
    edit(tmp_path / "any" / "fewstep.json", stage={**card["stage"], "any_steps": [4, 2, 1]})
    with pytest.raises(FolderError, match="any_steps must be the numbers of steps"):
        load(tmp_path / "any")
    edit(tmp_path / "any" / "fewstep.json", stage=card["stage"], weights_sha256="")
    file = tmp_path / "any" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), f"{STEPS}.weight": torch.zeros(3, 4)}, file)
    with pytest.raises(FolderError, match="must be a matrix of"):
        load(tmp_path / "any")
