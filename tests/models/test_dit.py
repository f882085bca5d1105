"""DiT folders: teachers, and students for one w that the stock pipeline draws with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from tests.models.pipelines import dit_folder, draw_apart, edit
from torch import Tensor

import fewstep
from fewstep.core.denoiser import Guided
from fewstep.distill.plan import Stage
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.folders import encode_prompts, load_vae, save_model
from fewstep.models import Model, card_of, decode_latents, student_of
from fewstep.models.families.dit import DIT
from fewstep.testing import check_denoiser, check_stage
from fewstep.train import TrainConfig, train

LABELS = [7, 0, 999]
COND = torch.tensor(LABELS)
SEED = 7
FOUR = Stage("student", "teacher", updates=20, steps=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dit_folder(tmp_path_factory.mktemp("stock") / "dit")


def guided(folder: Path) -> Guided:
    loaded = fewstep.load(folder)
    assert isinstance(loaded, Guided)
    assert loaded.denoiser.family is DIT  # type: ignore[attr-defined]
    return loaded


def noise() -> Tensor:
    """What the stock pipeline, which takes no latents, draws with this seed."""
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(SEED))


def images(folder: Path, z: Tensor) -> Tensor:
    raw = decode_latents(load_vae(folder), z) / 2 + 0.5
    assert float(((raw > 0) & (raw < 1)).float().mean()) > 0.5
    return raw.clamp(0, 1)


@pytest.mark.parametrize(("w", "steps"), [(3.0, 4), (0.0, 2)])
def test_a_guided_teacher_draws_what_its_own_pipeline_draws(
    folder: Path, w: float, steps: int
) -> None:
    pipe = DiTPipeline.from_pretrained(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        LABELS,
        guidance_scale=1 + w,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(SEED),
        output_type="pt",
    ).images
    z = fewstep.sample(guided(folder), COND, w=w, steps=steps, z=noise())
    assert float((images(folder, z) - theirs).abs().max()) < 1e-4


@pytest.mark.parametrize("learned_sigma", [True, False])
def test_it_keeps_the_laws_of_a_denoiser(tmp_path: Path, learned_sigma: bool) -> None:
    loaded = guided(dit_folder(tmp_path / "dit", learned_sigma, classes=20))
    cond = torch.tensor([3, 0, 19])
    assert len(check_denoiser(loaded, cond, null_cond=loaded.null_cond)) == 13
    assert len(check_stage(FOUR.problem(loaded, (2, 2)), torch.randn(3, 4, 8, 8), cond)) >= 4


def test_what_it_says_of_itself(folder: Path) -> None:
    card = card_of(guided(folder))
    assert (card.family, card.num_classes, card.null_class) == ("dit", 1000, 1000)
    assert (card.class_names[7], card.null_prompt) == ("thing 7", None)
    with pytest.raises(RangeError, match="class 1001"):
        fewstep.sample(guided(folder), torch.tensor([1001]), steps=1)
    with pytest.raises(ShapeError, match="class ids"):
        fewstep.sample(guided(folder), torch.rand(3, 5), steps=1)
    with pytest.raises(RangeError, match="takes no prompts"):
        encode_prompts(folder, ["a cat"])
    with pytest.raises(RangeError, match="takes no prompts"):
        fewstep.load(folder, negative_prompt="blurry")


@pytest.mark.parametrize(
    ("change", "match"),
    [({"num_embeds_ada_norm": None}, "num_embeds_ada_norm"), ({"out_channels": 5}, "and out_ch")],
)
def test_networks_that_are_no_dit_are_refused(
    tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    edit(dit_folder(tmp_path / "dit", classes=20) / "transformer" / "config.json", **change)
    with pytest.raises(FolderError, match=match):
        fewstep.load(tmp_path / "dit")


def test_a_folder_of_the_older_class_loads(folder: Path, tmp_path: Path) -> None:
    old = dit_folder(tmp_path / "dit")
    edit(old / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    edit(old / "transformer" / "config.json", _class_name="Transformer2DModel")
    z = fewstep.sample(guided(old), COND, w=1.0, steps=1, z=noise())
    assert torch.equal(z, fewstep.sample(guided(folder), COND, w=1.0, steps=1, z=noise()))


def test_a_student_is_for_one_w(folder: Path) -> None:
    teacher = guided(folder)
    student = student_of(teacher, FOUR, (3, 3))
    assert student.w_dim is None
    z, phi = noise(), torch.tensor([0.3, 0.8, 1.4])
    zeros = torch.zeros(3)
    with torch.no_grad():
        assert torch.equal(student(z, phi, COND, zeros), teacher.denoiser(z, phi, COND, zeros))
        # While it is trained it must draw the class that it is asked for, every time.
        assert torch.equal(student.train()(z, phi, COND, zeros), student(z, phi, COND, zeros))
    with pytest.raises(RangeError, match=r"\[3, 3\]"):
        fewstep.sample(student, COND, w=2.0)


def live_student(folder: Path) -> Model:
    """A student for a range of w, which matters though nothing has trained it."""
    student = student_of(guided(folder), FOUR, (0, 4), w_dim=32)
    draws = torch.Generator().manual_seed(0)
    weight = student.network.w_projection.weight
    weight.data.copy_(torch.randn(weight.shape, generator=draws))
    return student.eval()


def test_a_range_of_w_gives_an_input_that_is_silent_at_first(folder: Path) -> None:
    teacher = guided(folder)
    student = student_of(teacher, FOUR, (0, 4), w_dim=32)
    z, phi = noise(), torch.tensor([0.3, 0.8, 1.4])
    w, zeros = torch.tensor([0.0, 2.0, 4.0]), torch.zeros(3)
    assert torch.equal(student(z, phi, COND, w), teacher.denoiser(z, phi, COND, zeros))
    student(z, phi, COND, w).square().mean().backward()
    assert float(student.network.w_projection.weight.grad.abs().max()) > 0
    live = live_student(folder)
    assert len(check_denoiser(live, COND, w_range=(0, 4))) >= 9
    # The parent and other copies are unchanged.
    assert torch.equal(student(z, phi, COND, w), teacher.denoiser(z, phi, COND, zeros))


def test_activations_computed_again_give_the_same_gradient(folder: Path) -> None:
    z, phi, w = noise(), torch.tensor([0.3, 0.8, 1.4]), torch.tensor([0.0, 2.0, 4.0])
    grads = []
    for again in (False, True):
        student = live_student(folder).train()
        if again:
            student.checkpoint_activations()
        student(z, phi, COND, w).square().mean().backward()
        grads.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4)


def test_a_live_w_comes_back_and_stock_pipelines_refuse_it(folder: Path, tmp_path: Path) -> None:
    live = live_student(folder)
    save_model(live, tmp_path / "live")
    loaded = fewstep.load(tmp_path / "live")
    a, b = (fewstep.sample(m, COND, w=1.5, z=noise()) for m in (live, loaded))
    assert torch.equal(a, b)
    assert not torch.equal(a, fewstep.sample(loaded, COND, w=3.0, z=noise()))
    child = student_of(loaded, Stage("child", "student", updates=1, steps=2), (0, 4))
    assert child.w_dim == 32
    with pytest.raises(Exception, match="DiTTransformer2DModelWithW"):
        DiTPipeline.from_pretrained(tmp_path / "live")
    assert "cannot fill: draw with fewstep" in (tmp_path / "live" / "README.md").read_text()


def test_a_trained_student_is_stock(folder: Path, tmp_path: Path) -> None:
    teacher = guided(folder)
    student, problem = student_of(teacher, FOUR, (3, 3)), FOUR.problem(teacher, (3, 3))

    def batch(update: int, _part: int, _parts: int) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(update)
        return 0.5 * torch.randn(8, 4, 8, 8, generator=draws), COND[torch.arange(8) % 3]

    held = problem(*batch(10**6, 0, 1), torch.Generator().manual_seed(0))

    def error() -> float:
        with torch.no_grad():
            v = student(held.z, held.phi, held.cond, held.w)
        return float((v - held.v_target).square().mean())

    before = error()
    config = TrainConfig(updates=20, batch_size=8, lr=1e-3, warmup=5, ema=0.9)
    result = train(student, problem, batch, config, tmp_path / "run", progress=False)
    student.load_state_dict(result.ema_state)
    print("error", before, error())
    assert error() < 0.9 * before
    save_model(student.eval(), tmp_path / "m")
    loaded = fewstep.load(tmp_path / "m")
    z = fewstep.sample(loaded, COND, w=3.0, z=noise())
    assert torch.equal(z, fewstep.sample(student, COND, w=3.0, z=noise()))

    call = {"class_labels": LABELS, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": SEED}
    job = {"folder": str(tmp_path / "m"), "pipeline": "DiTPipeline", "call": call}
    got = draw_apart({"dit": job}, tmp_path)["dit"]
    assert got["batches"] == [3] * 4
    gap = float((images(tmp_path / "m", z) - got["images"]).abs().max())
    print("images", gap)
    assert gap < 1e-4

    text = (tmp_path / "m" / "README.md").read_text()
    assert "Guidance at w = 3 is in its weights" in text
    assert "`guidance_scale` must be 1" in text
    assert "| unconditional pass | class 1000 |" in text
    assert "prompt" not in text
    for code in text.split("```python\n")[1:]:
        exec(code.split("```")[0].replace("path/to/student", str(tmp_path / "m")), {})
