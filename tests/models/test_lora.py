"""LoRA students: a base in memory once, a teacher that stays as it is, merged and apart folders."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.pipelines import dit_folder, draw_apart, edit, w_student
from torch import Tensor

import fewstep
from fewstep.atomic import sha256
from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided
from fewstep.distill.plan import Stage
from fewstep.errors import FolderError, MissingError, RangeError
from fewstep.folders import encode_prompts, encoders_sha256, load_vae, save_model
from fewstep.models import (
    Lora,
    Model,
    card_of,
    decode_latents,
    merge_adapter,
    student_of,
    with_w_input,
)
from fewstep.models.families.stable_diffusion import STABLE_DIFFUSION
from fewstep.models.lora import adapted, has_adapter, merged
from fewstep.models.w_input import BAND, frequencies
from fewstep.testing import check_denoiser
from fewstep.train import TrainConfig, train

PROMPTS = ["a cat", "two dogs", "rain", "x"]
ONE = Stage("stage-one", "teacher", updates=60)
FOUR = Stage("student-4", "teacher", updates=60, steps=4)
TWO = Stage("student-2", "student-4", updates=60, steps=2)
W = (0.0, 4.0)
MERGED = Lora(rank=4, alpha=8)
APART = Lora(rank=4, alpha=8, keep_apart=True)
UNET = "unet/diffusion_pytorch_model.safetensors"


def guided(folder: Path) -> Guided:
    loaded = fewstep.load(folder)
    assert isinstance(loaded, Guided)
    return loaded


def question(model: Guided | Model) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(3)
    z = torch.randn(4, 4, 8, 8, generator=draws)
    low, high = model.traits.phi_range
    return z, low + (high - low) * torch.rand(4, generator=draws)


def answer(model: Any, cond: Cond, w: float = 2.0) -> Tensor:
    with torch.no_grad():
        v: Tensor = model(*question(model), cond, torch.full((4,), w))
    return v


def own(student: Model) -> dict[str, Tensor]:
    return {n: p for n, p in student.named_parameters() if p.requires_grad}


def shaken(student: Model) -> Model:
    """The student as if it had been trained: of its own weights, only those of fast w are zero."""
    draws = torch.Generator().manual_seed(5)
    for name, p in own(student).items():
        noise = 0.2 * torch.randn(p.shape, generator=draws)
        if "cond_proj" in name:
            noise = noise * (frequencies(p.shape[1]) <= BAND).repeat(2)
        p.data.add_(noise)
    return student.eval()


def learn(
    student: Model, teacher: Any, stage: Stage, cond: Cond, folder: Path, **more: Any
) -> tuple[float, float]:
    """Train; return the error on states not trained on, before and after."""
    problem = stage.problem(teacher, W)

    def batch(update: int, _part: int, _parts: int) -> tuple[Tensor, Cond]:
        draws = torch.Generator().manual_seed(update)
        index = torch.randint(4, (16,), generator=draws)
        return 0.5 * torch.randn(16, 4, 8, 8, generator=draws), conds.take(cond, index)

    held = [problem(*batch(n, 0, 1), torch.Generator().manual_seed(n)) for n in (10**6, 10**7)]

    def error() -> float:
        with torch.no_grad():
            found = [(student(r.z, r.phi, r.cond, r.w) - r.v_target).square() for r in held]
        return float(torch.cat(found).mean())

    before = error()
    config = TrainConfig(**{"updates": 50, "batch_size": 16, "lr": 1e-3, "warmup": 5, **more})
    config = config.model_copy(update={"ema": 0.95})
    result = train(student, problem, batch, config, folder, progress=False)
    student.load_state_dict(result.ema_state)
    return before, error()


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_it_equals_its_parent_bit_for_bit_and_holds_its_very_weights(
    request: pytest.FixtureRequest, kind: str
) -> None:
    folder = request.getfixturevalue(kind)
    teacher, cond = guided(folder), encode_prompts(folder, PROMPTS)
    expected = answer(teacher.denoiser, cond, 0.0)
    student = student_of(teacher, ONE, W, lora=MERGED).eval()
    for w in (0.0, 2.3, 4.0):
        assert torch.equal(answer(student, cond, w), expected)
    assert torch.equal(answer(teacher.denoiser, cond, 0.0), expected)
    mine = {id(p) for p in teacher.denoiser.parameters()}  # type: ignore[attr-defined]
    assert all(id(p) in mine for p in student.parameters() if not p.requires_grad)
    assert mine <= {id(p) for p in student.parameters()}


def test_only_adapters_and_the_w_input_get_gradients(sd: Path) -> None:
    student = student_of(guided(sd), ONE, W, w_dim=32, lora=MERGED)
    assert set(own(student)) == {n for n, _ in student.named_parameters() if "lora_" in n} | {
        "network.time_embedding.cond_proj.weight"
    }
    assert student.card.lora is not None
    assert student.card.lora.model_dump() == {
        "rank": 4, "alpha": 8, "targets": ("to_q", "to_k", "to_v", "to_out.0"),
        "merged": True, "base": None, "base_sha256": "",
    }  # fmt: skip
    v = student(*question(student), encode_prompts(sd, PROMPTS), torch.full((4,), 2.0))
    v.square().mean().backward()
    assert {n for n, p in student.named_parameters() if p.grad is not None} == set(own(student))


def test_the_adapter_is_drawn_from_the_seed_and_the_stage_alone(sd: Path) -> None:
    before = torch.random.get_rng_state()
    made = [own(student_of(guided(sd), ONE, W, lora=MERGED, seed=s)) for s in (3, 3, 4)]
    made.append(own(student_of(guided(sd), FOUR, W, lora=MERGED, seed=3)))
    assert torch.equal(before, torch.random.get_rng_state())
    first = next(n for n in made[0] if "lora_A" in n)
    assert torch.equal(made[0][first], made[1][first])
    assert not torch.equal(made[0][first], made[2][first])
    assert not torch.equal(made[0][first], made[3][first])


@pytest.mark.parametrize(("kind", "stage"), [("sd", ONE), ("xl", FOUR)])
def test_it_learns_and_its_teacher_does_not(
    request: pytest.FixtureRequest, kind: str, stage: Stage, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(kind)
    teacher, cond = guided(folder), encode_prompts(folder, PROMPTS)
    expected = answer(teacher, cond)
    more = Lora(rank=4, targets=("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"))
    student = student_of(teacher, stage, W, lora=more)
    before, after = learn(student, teacher, stage, cond, tmp_path / "run", lr=3e-3)
    print(kind, stage.name, before, after)
    assert after < 0.9 * before
    assert torch.equal(answer(teacher, cond), expected)
    found = load_file(folder / UNET)
    for name, weight in teacher.denoiser.network.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(weight, found[name])
    assert float((answer(student.eval(), cond, 0.0) - answer(student, cond, 4.0)).abs().max()) > 0


class _StopAtError(Exception):
    pass


def test_a_run_that_broke_off_ends_with_the_same_bits_and_an_untouched_teacher(
    sd: Path, tmp_path: Path
) -> None:
    cond = encode_prompts(sd, PROMPTS)
    short = {"updates": 12, "checkpoint_every": 4, "checkpoint_activations": True}

    def run(name: str, stop: int | None = None) -> tuple[Model, Guided]:
        teacher, calls = guided(sd), [0]
        student = student_of(teacher, FOUR, W, lora=MERGED)

        def seen(*_: object) -> None:
            calls[0] += 1
            if stop is not None and calls[0] == stop:
                raise _StopAtError

        teacher.denoiser.register_forward_pre_hook(seen)  # type: ignore[attr-defined]
        learn(student, teacher, FOUR, cond, tmp_path / name, **short)
        return student, teacher

    whole, teacher = run("whole")
    with pytest.raises(_StopAtError):
        run("broken", stop=4 + 2 * 7)
    again, other = run("broken")
    a, b = whole.state_dict(), again.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(answer(teacher, cond), answer(other, cond))
    assert torch.equal(answer(teacher, cond), answer(guided(sd), cond))


def test_a_full_student_of_the_same_parent_still_trains_all_of_its_own(sd: Path) -> None:
    teacher = guided(sd)
    student_of(teacher, ONE, W, lora=MERGED)
    pair = Stage("pair", "teacher", updates=1, steps=4, pair=True)
    for stage in (ONE, pair):
        full = student_of(teacher, stage, W)
        assert all(p.requires_grad for p in full.parameters())
        assert not has_adapter(full)
        assert full.card.lora is None


# Merged.


def test_a_merged_student_is_saved_as_it_then_is(sd: Path, tmp_path: Path) -> None:
    teacher, cond = guided(sd), encode_prompts(sd, PROMPTS)
    student, expected = shaken(student_of(teacher, FOUR, W, lora=MERGED)), answer(teacher, cond)
    trained = answer(student, cond)
    card = save_model(student, tmp_path / "m")
    assert not has_adapter(student)
    torch.testing.assert_close(answer(student, cond), trained, rtol=1e-4, atol=1e-4)
    loaded = fewstep.load(tmp_path / "m")
    assert torch.equal(answer(loaded, cond), answer(student, cond))
    assert card_of(loaded) == card == student.card
    assert card.weights_sha256 == sha256(tmp_path / "m" / UNET)
    assert torch.equal(answer(teacher, cond), expected)
    plain = with_w_input(teacher.denoiser, 256).state_dict()  # type: ignore[arg-type]
    assert load_file(tmp_path / "m" / UNET).keys() == plain.keys()
    check_denoiser(loaded, cond, w_range=W)


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_stock_pipelines_draw_with_a_merged_folder(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    parent = request.getfixturevalue(kind)
    save_model(shaken(student_of(guided(parent), FOUR, W, lora=MERGED)), tmp_path / "m")
    model, cond = fewstep.load(tmp_path / "m"), encode_prompts(tmp_path / "m", PROMPTS)
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    call = {"prompt": PROMPTS, "num_inference_steps": 4, "guidance_scale": 3.0, "latents": noise}
    name = "StableDiffusionXLPipeline" if kind == "xl" else "StableDiffusionPipeline"
    job = {"folder": str(tmp_path / "m"), "pipeline": name, "call": call}
    got = draw_apart({"job": job}, tmp_path)["job"]
    z = fewstep.sample(model, cond, w=2.0, steps=4, z=noise)
    images = decode_latents(load_vae(tmp_path / "m"), z) / 2 + 0.5
    assert got["batches"] == [4] * 4
    assert float((images.clamp(0, 1) - got["images"]).abs().max()) < 1e-4


def test_the_folder_says_that_it_is_a_lora(sd: Path, tmp_path: Path) -> None:
    for lora, name in ((MERGED, "merged"), (APART, "apart")):
        save_model(shaken(student_of(guided(sd), FOUR, W, lora=lora)), tmp_path / name)
    row = "| LoRA | rank 4, alpha 8, on to_q, to_k, to_v, to_out.0, "
    text = (tmp_path / "merged" / "README.md").read_text()
    assert f"{row}merged |" in text
    assert "LoRA of rank 4, merged into the weights" in text
    text = (tmp_path / "apart" / "README.md").read_text()
    assert f"{row}kept apart |" in text
    assert sha256(sd / UNET) in text
    assert "from diffusers import" not in text
    lora = json.loads((tmp_path / "merged" / "fewstep.json").read_text())["lora"]
    assert (lora["rank"], lora["alpha"], lora["merged"]) == (4, 8, True)


# Apart.


@pytest.fixture
def base(sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd, tmp_path / "base"))


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_an_adapter_apart_comes_back_bit_equal(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    base = request.getfixturevalue(kind)
    student = shaken(student_of(guided(base), FOUR, W, lora=APART))
    card, cond = save_model(student, tmp_path / "m"), encode_prompts(base, PROMPTS)
    loaded = fewstep.load(tmp_path / "m")
    assert isinstance(loaded, Model)
    assert has_adapter(student)
    assert has_adapter(loaded)
    assert torch.equal(answer(loaded, cond), answer(student, cond))
    a, b = student.state_dict(), loaded.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert loaded.card == card == student.card
    assert card.weights_sha256 == sha256(tmp_path / "m" / "adapter" / "adapter_model.safetensors")
    names = {str(p.relative_to(tmp_path / "m")) for p in (tmp_path / "m").rglob("*.*")}
    assert names == {
        "fewstep.json", "README.md", "scheduler/scheduler_config.json",
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    }  # fmt: skip
    check_denoiser(loaded, cond, w_range=W)


def test_its_other_parts_are_the_bases(base: Path, tmp_path: Path) -> None:
    save_model(shaken(student_of(guided(base), FOUR, W, lora=APART)), tmp_path / "m")
    theirs, ours = (encode_prompts(f, PROMPTS) for f in (base, tmp_path / "m"))
    assert isinstance(theirs, Tensor)
    assert isinstance(ours, Tensor)
    assert torch.equal(theirs, ours)
    assert encoders_sha256(base) == encoders_sha256(tmp_path / "m")
    assert load_vae(tmp_path / "m").config.scaling_factor == 0.5


def test_peft_opens_the_adapter(sd: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    teacher, cond = guided(sd), encode_prompts(sd, PROMPTS)
    student = shaken(student_of(teacher, FOUR, W, lora=APART))
    save_model(student, tmp_path / "m")
    base = with_w_input(teacher.denoiser, 256)  # type: ignore[arg-type]
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "m" / "adapter")).base_model.model
    model = student.like(theirs.eval(), student.card)
    assert torch.equal(answer(model, cond), answer(student, cond))


def test_folders_that_are_moved_together_still_find_each_other(base: Path, tmp_path: Path) -> None:
    save_model(shaken(student_of(guided(base), FOUR, W, lora=APART)), tmp_path / "m")
    cond = encode_prompts(base, PROMPTS)
    expected = answer(fewstep.load(tmp_path / "m"), cond)
    (tmp_path / "moved").mkdir()
    for name in ("base", "m"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert torch.equal(answer(fewstep.load(tmp_path / "moved" / "m"), cond), expected)


def test_a_base_elsewhere_is_named_from_the_folder(sd: Path, tmp_path: Path) -> None:
    """An absolute path would name this machine in a folder that is made to be shared."""
    card = save_model(student_of(guided(sd), FOUR, W, lora=APART), tmp_path / "m")
    assert card.lora is not None
    assert card.lora.base is not None
    assert not Path(card.lora.base).is_absolute()
    assert (tmp_path / "m" / card.lora.base).resolve() == sd.resolve()
    assert fewstep.load(tmp_path / "m").passes == 1


def test_a_base_that_is_missing_or_another_is_refused(base: Path, tmp_path: Path) -> None:
    save_model(shaken(student_of(guided(base), FOUR, W, lora=APART)), tmp_path / "m")
    weights, original = load_file(base / UNET), (base / UNET).read_bytes()
    save_file({**weights, "conv_in.bias": weights["conv_in.bias"] + 1}, base / UNET)
    with pytest.raises(FolderError, match=r"of the weights .* has .*lora\.base of"):
        fewstep.load(tmp_path / "m")
    base.rename(tmp_path / "elsewhere")
    for opens in (fewstep.load, load_vae, lambda m: encode_prompts(m, PROMPTS)):
        with pytest.raises(FolderError, match=r"an adapter alone; its base.*is not at.*base"):
            opens(tmp_path / "m")  # type: ignore[operator]
    (tmp_path / "elsewhere" / UNET).write_bytes(original)
    card = json.loads((tmp_path / "m" / "fewstep.json").read_text())
    edit(tmp_path / "m" / "fewstep.json", lora={**card["lora"], "base": "../elsewhere"})
    assert fewstep.load(tmp_path / "m").passes == 1


@pytest.mark.parametrize("how", ["cut", "gone", "more", "less"])
def test_a_damaged_adapter_is_named(base: Path, tmp_path: Path, how: str) -> None:
    save_model(shaken(student_of(guided(base), FOUR, W, lora=APART)), tmp_path / "m")
    file = tmp_path / "m" / "adapter" / "adapter_model.safetensors"
    found = load_file(file)
    first = sorted(found)[0]
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif how == "more":
        save_file({**found, "z": torch.zeros(1)}, file)
    else:
        save_file({k: v for k, v in found.items() if k != first}, file)
    with pytest.raises(FolderError, match=r"adapter_model\.safetensors"):
        fewstep.load(tmp_path / "m")


def test_an_adapter_does_not_replace_its_base(base: Path) -> None:
    student = student_of(guided(base), FOUR, W, lora=APART)
    with pytest.raises(FolderError, match="is the base of this adapter"):
        save_model(student, base)
    assert guided(base).passes == 2


def test_an_adapter_apart_can_be_merged_later(base: Path, tmp_path: Path) -> None:
    cond = encode_prompts(base, PROMPTS)
    save_model(shaken(student_of(guided(base), FOUR, W, lora=APART)), tmp_path / "m")
    apart = fewstep.load(tmp_path / "m")
    whole = merge_adapter(apart)
    assert has_adapter(apart)  # type: ignore[arg-type]
    save_model(whole, tmp_path / "whole")
    shutil.rmtree(base)
    found = fewstep.load(tmp_path / "whole")
    assert torch.equal(answer(found, cond), answer(whole, cond))
    torch.testing.assert_close(answer(found, cond), answer(apart, cond), rtol=1e-4, atol=1e-4)
    assert card_of(found).lora is not None


# Stage two from a LoRA stage one.


@pytest.mark.parametrize("lora", [MERGED, APART], ids=["merged", "apart"])
def test_stage_two_starts_from_a_lora_stage_one(base: Path, tmp_path: Path, lora: Lora) -> None:
    cond = encode_prompts(base, PROMPTS)
    one = shaken(student_of(guided(base), ONE, W, lora=lora))
    save_model(one, tmp_path / "one")
    parent = fewstep.load(tmp_path / "one")
    assert isinstance(parent, Model)
    expected = answer(parent, cond)
    two = student_of(parent, FOUR, W, lora=lora)
    assert torch.equal(answer(two.eval(), cond), expected)
    assert not {id(p) for p in own(two).values()} & {id(p) for p in parent.parameters()}
    before, after = learn(two, parent, FOUR, cond, tmp_path / "run")
    print(before, after)
    assert after < before
    assert torch.equal(answer(parent, cond), expected)
    assert float((answer(two.eval(), cond) - expected).abs().max()) > 0
    save_model(two, tmp_path / "two")
    loaded = fewstep.load(tmp_path / "two")
    assert torch.equal(answer(loaded, cond), answer(two, cond))
    parents = [p.sha256 for p in card_of(loaded).parents]
    assert parents == [card_of(parent).weights_sha256, sha256(base / UNET)]
    three = student_of(loaded, TWO, W, lora=lora)
    assert torch.equal(answer(three.eval(), cond), answer(loaded, cond))


def test_another_adapter_over_one_that_is_apart_is_refused(base: Path, tmp_path: Path) -> None:
    save_model(shaken(student_of(guided(base), ONE, W, lora=APART)), tmp_path / "one")
    parent = fewstep.load(tmp_path / "one")
    with pytest.raises(RangeError, match=r"rank 8.*adapter of its own.* of rank 4"):
        student_of(parent, FOUR, W, lora=Lora(rank=8, alpha=8, keep_apart=True))


def test_a_full_student_of_an_adapter_apart_has_it_in_its_weights(
    base: Path, tmp_path: Path
) -> None:
    save_model(shaken(student_of(guided(base), ONE, W, lora=APART)), tmp_path / "one")
    parent, cond = fewstep.load(tmp_path / "one"), encode_prompts(base, PROMPTS)
    full = student_of(parent, FOUR, W)
    assert all(p.requires_grad for p in full.parameters())
    assert has_adapter(parent)  # type: ignore[arg-type]
    torch.testing.assert_close(answer(full.eval(), cond), answer(parent, cond))


def test_an_adapter_over_weights_that_no_folder_has_is_not_kept_apart(sd: Path) -> None:
    unsaved = w_student(sd)
    with pytest.raises(RangeError, match="Save the parent, and load it again"):
        student_of(unsaved, FOUR, W, lora=APART)
    assert student_of(unsaved, FOUR, W, lora=MERGED).card.lora is not None


# Other families, and what cannot be.


def test_a_dit_student_for_one_w(tmp_path: Path) -> None:
    folder = dit_folder(tmp_path / "dit", classes=20)
    teacher, cond = guided(folder), torch.tensor([3, 0, 19, 7])
    for lora, name in ((MERGED, "merged"), (APART, "apart")):
        student = student_of(teacher, FOUR, (3.0, 3.0), lora=lora).eval()
        assert torch.equal(answer(student, cond, 3.0), answer(teacher.denoiser, cond, 0.0))
        save_model(shaken(student), tmp_path / name)
        assert torch.equal(answer(fewstep.load(tmp_path / name), cond), answer(student, cond))


@pytest.mark.parametrize("lora", [MERGED, APART])
def test_a_dit_student_for_a_range_of_w(tmp_path: Path, lora: Lora) -> None:
    folder = dit_folder(tmp_path / "dit", classes=20)
    teacher, cond = guided(folder), torch.tensor([3, 0, 19, 7])
    student = student_of(teacher, FOUR, W, lora=lora).eval()
    assert torch.equal(answer(student, cond, 3.0), answer(teacher.denoiser, cond, 0.0))
    save_model(shaken(student), tmp_path / "student")
    loaded = fewstep.load(tmp_path / "student")
    assert torch.equal(answer(loaded, cond, 3.0), answer(student, cond, 3.0))
    assert not torch.equal(answer(loaded, cond, 3.0), answer(loaded, cond, 1.0))


def test_a_pixel_model(teacher: Model, tmp_path: Path) -> None:
    lora = Lora(rank=2, targets=("conv1", "conv2", "time_emb_proj"))
    student = student_of(Guided(teacher, teacher.null_cond), FOUR, W, w_dim=32, lora=lora)
    z, phi, w = torch.randn(2, 1, 8, 8), torch.rand(2), torch.ones(2)
    cond = torch.tensor([1, 2])
    with torch.no_grad():
        assert torch.equal(student.eval()(z, phi, cond, w), teacher(z, phi, cond, w))
        save_model(shaken(student), tmp_path / "m")
        again = fewstep.load(tmp_path / "m")
        assert torch.equal(student(z, phi, cond, w), again(z, phi, cond, w))
        assert not torch.equal(student(z, phi, cond, w), teacher(z, phi, cond, w))
    with pytest.raises(RangeError, match="'unet-class' are small"):
        student_of(teacher, FOUR, W, lora=lora.model_copy(update={"keep_apart": True}))
    with pytest.raises(RangeError, match=r"no layer.*'to_q'; there are .*conv1"):
        student_of(teacher, FOUR, W, lora=MERGED)


def test_a_pair_gets_no_w_input(sd: Path, tmp_path: Path) -> None:
    pair = Stage("pair", "teacher", updates=1, steps=4, pair=True)
    student = shaken(student_of(guided(sd), pair, W, lora=MERGED))
    assert student.w_dim is None
    save_model(student, tmp_path / "pair")
    assert fewstep.load(tmp_path / "pair").passes == 2


def test_targets_and_ranks_are_checked(sd: Path) -> None:
    with pytest.raises(RangeError, match=r"lora\.targets.*'to_qq'.*Did you mean 'to_q'"):
        student_of(guided(sd), FOUR, W, lora=Lora(targets=("to_k", "to_qq")))
    for wrong in ({"rank": 0}, {"alpha": 0}, {"targets": ()}, {"rnk": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Lora.model_validate(wrong)


def test_without_peft_it_says_what_to_install(sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = guided(sd)  # before: diffusers looks for peft once, and then imports it
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingError, match=r'pip install -e "\.\[lora\]"'):
        student_of(teacher, FOUR, W, lora=MERGED)


def test_a_network_without_an_adapter_is_its_own_merge(sd: Path) -> None:
    network = guided(sd).denoiser.network  # type: ignore[attr-defined]
    assert merged(network) is network
    assert not has_adapter(network)
    first = adapted(network, STABLE_DIFFUSION, MERGED, w_dim=None, seed=0)
    assert has_adapter(first)
    assert not has_adapter(network)
