"""Every family answers the same questions, and one w can be folded into each."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.packed import chroma_folder, flux_folder, qwen_folder
from tests.models.pipelines import (
    dit_folder,
    edit,
    pixart_folder,
    sana_folder,
    sd3_folder,
    sd_folder,
    xl_folder,
)
from torch import Tensor

import fewstep
from fewstep.core.cond import Cond, batch_size, repeat_null, take
from fewstep.distill.plan import Stage
from fewstep.errors import FolderError, RangeError
from fewstep.folders import card_in, encode_prompts, load, save_model
from fewstep.models import FAMILIES, Lora, Model, fold_w, model_of, student_of
from fewstep.models.families.own import OWN
from fewstep.models.w_input import BAND, features_of, frequencies, projection_of, w_features
from fewstep.testing import check_denoiser

W = (0.0, 4.0)
FOUR = Stage("student", "teacher", updates=1, steps=4)
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion": sd_folder,
    "stable-diffusion-xl": xl_folder,
    "dit": lambda path: dit_folder(path, classes=20),
    "pixart-sigma": pixart_folder,
    "pixart-alpha": lambda path: pixart_folder(path, alpha=True),
    "stable-diffusion-3": sd3_folder,
    "sana": sana_folder,
    "flux": flux_folder,
    "flux-guided": lambda path: flux_folder(path, guidance=True),
    "chroma": chroma_folder,
    "qwen-image": qwen_folder,
}


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FOLDERS[request.param](tmp_path_factory.mktemp("stock") / request.param)


def live(parent: Path, lora: Lora | None = None, stage: Stage = FOUR) -> Model:
    """A student for a range of w, which matters though nothing has trained it."""
    student = student_of(load(parent), stage, W, w_dim=32, lora=lora)
    if student.family.slot == "value":
        return student.eval()
    projection = projection_of(student.network)
    assert projection is not None
    draws = torch.Generator().manual_seed(0)
    slow = (frequencies(32) <= BAND).repeat(2)
    projection.weight.data.copy_(torch.randn(projection.weight.shape, generator=draws) * slow)
    return student.eval()


def conditions(parent: Path) -> Cond:
    family = FAMILIES[card_in(parent).family]
    if family.takes_prompts:
        return encode_prompts(parent, ["a cat", "two dogs", ""])
    return torch.tensor([3, 0, 7])


def question(parent: Path) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(5)
    z = torch.randn(3, *card_in(parent).shape, generator=draws)
    return z, torch.tensor([0.3, 0.8, 1.4])


def test_every_stock_family_has_a_folder_here() -> None:
    assert set(FOLDERS) == {name for name, family in FAMILIES.items() if not family.native}


def test_a_family_passes_the_public_check_and_comes_back(folder: Path, tmp_path: Path) -> None:
    student, cond = live(folder), conditions(folder)
    assert len(check_denoiser(student, cond, w_range=W)) >= 9
    assert batch_size(repeat_null(student.null_cond, 3)) == 3
    save_model(student, tmp_path / "student")
    z, phi = question(folder)
    w = torch.tensor([0.0, 1.5, 4.0])
    with torch.no_grad():
        assert torch.equal(student(z, phi, cond, w), load(tmp_path / "student")(z, phi, cond, w))


@pytest.mark.parametrize("w", [0.0, 1.7, 4.0])
def test_one_w_folds_into_the_weights(folder: Path, tmp_path: Path, w: float) -> None:
    student, cond = live(folder), conditions(folder)
    folded = fold_w(student, w)
    teacher = model_of(load(folder))
    assert features_of(folded.network) is None
    assert not folded.can_fold
    theirs = teacher.network.state_dict().keys()
    assert {k for k in theirs if "guidance_embedder" not in k} == folded.network.state_dict().keys()
    z, phi = question(folder)
    ws = torch.full((3,), w)
    with torch.no_grad():
        wanted = student(z, phi, cond, ws)
        found = folded(z, phi, cond, torch.zeros(3))
        elsewhere = student(z, phi, cond, ws + 0.1)
    # Rounding alone: in float64 they agree to 1e-14 for every family. In float32, Chroma's differ
    # by up to 14 eps of the largest number; a change of z by its own rounding does as much.
    largest, eps = float(wanted.abs().max()), torch.finfo(wanted.dtype).eps
    torch.testing.assert_close(found, wanted, atol=32 * eps * largest, rtol=0)
    assert float((elsewhere - wanted).abs().max()) > 1e-3
    save_model(folded, tmp_path / "folded")
    again = load(tmp_path / "folded")
    with torch.no_grad():
        assert torch.equal(again(z, phi, cond, ws), found)
    with pytest.raises(RangeError, match="outside the range"):
        fewstep.sample(again, cond, w=w + 0.1)


def test_an_adapter_is_merged_when_w_is_folded(tmp_path: Path) -> None:
    stock = sd_folder(tmp_path / "sd")
    student, cond = live(stock, Lora(rank=2, alpha=4)), conditions(stock)
    z, phi = question(stock)
    with torch.no_grad():
        wanted = student(z, phi, cond, torch.full((3,), 2.0))
        found = fold_w(student, 2.0)(z, phi, cond, torch.zeros(3))
    torch.testing.assert_close(found, wanted, atol=3e-6, rtol=1e-5)


def test_what_cannot_be_folded_is_refused(folder: Path) -> None:
    student = live(folder)
    with pytest.raises(RangeError, match="only a network with an input for"):
        fold_w(fold_w(student, 1.0), 1.0)
    with pytest.raises(RangeError, match=r"w must lie in \[0, 4\]"):
        fold_w(student, 5.0)


def of_format_1(stock: Path, folder: Path) -> tuple[Path, Tensor]:
    """A DiT of format 1, and its weight: added to the output of its timestep embedders."""
    save_model(live(stock), folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["w_projection.weight"]
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    save_file({**tensors, "w_input.weight": weight}, file, metadata={"format": "pt"})
    edit(folder / "fewstep.json", weights_sha256="")
    edit(folder / "model_index.json", transformer=["fewstep.models.dit", "DiTWithW"])
    return folder, weight


def test_the_w_input_of_format_1_is_read(tmp_path: Path) -> None:
    stock = dit_folder(tmp_path / "dit", classes=20)
    old, weight = of_format_1(stock, tmp_path / "old")
    student = model_of(load(old))
    z, phi = question(stock)
    cond, ws = conditions(stock), torch.full((3,), 2.0)
    seen: list[Tensor] = []
    embedder = student.network.transformer_blocks[1].norm1.emb.timestep_embedder
    with torch.no_grad():
        before = model_of(load(stock)).network.transformer_blocks[1].norm1.emb.timestep_embedder
        embedder.linear_1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        embedder.register_forward_hook(lambda _, given, out: seen.append(out))
        wanted = student(z, phi, cond, ws)
        added = w_features(ws, 32, student.card.w_band) @ weight.T
        torch.testing.assert_close(seen[1], before(seen[0]) + added)
        found = fold_w(student, 2.0)(z, phi, cond, torch.zeros(3))
    torch.testing.assert_close(found, wanted, atol=3e-6, rtol=1e-5)


def test_the_w_input_of_format_1_stays_what_it_is_when_it_is_saved_again(tmp_path: Path) -> None:
    stock = dit_folder(tmp_path / "dit", classes=20)
    old, _ = of_format_1(stock, tmp_path / "old")
    student = model_of(load(old))
    save_model(student, tmp_path / "again")
    child = student_of(student, Stage("child", "student", updates=1, steps=2), W)
    save_model(child, tmp_path / "child")
    z, phi = question(stock)
    cond, ws = conditions(stock), torch.tensor([0.0, 2.0, 4.0])
    with torch.no_grad():
        wanted = student(z, phi, cond, ws)
        for folder in ("again", "child"):
            assert torch.equal(load(tmp_path / folder)(z, phi, cond, ws), wanted)


def test_weights_that_get_no_gradient_are_known(folder: Path) -> None:
    """Several processes wait for the gradients of all others."""
    student = live(folder).train()
    z, phi = question(folder)
    student(z, phi, conditions(folder), torch.tensor([0.5, 1.0, 3.0])).square().mean().backward()
    without = [name for name, p in student.named_parameters() if p.grad is None]
    assert bool(without) == student.has_unused_weights, without


def test_an_added_input_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    save_model(live(dit_folder(tmp_path / "dit", classes=20)), folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "w_projection.weight": torch.zeros(16, 32)}, file)
    edit(folder / "fewstep.json", weights_sha256="")
    with pytest.raises(FolderError, match="must be a matrix of 256 rows"):
        load(folder)


@pytest.mark.parametrize("kind", ["dit", "pixart-sigma"])
def test_two_calls_before_one_backward_keep_their_own_w(tmp_path: Path, kind: str) -> None:
    """With activations computed again as well: each call's w is computed with in its backward."""
    stock = FOLDERS[kind](tmp_path / "stock")
    cond, (z, phi) = conditions(stock), question(stock)
    grads = []
    for again in (False, True):
        student = live(stock).train()
        if again:
            student.checkpoint_activations()
        calls = [student(z, phi, cond, torch.full((3,), w)) for w in (0.5, 3.0)]
        with torch.no_grad():
            student(z[:1], phi[:1], take(cond, slice(1)), torch.ones(1))
        sum(v.square().mean() for v in calls).backward()  # type: ignore[union-attr]
        grads.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-6, rtol=1e-4)


def test_a_call_of_the_network_alone_is_not_told_an_earlier_w(tmp_path: Path) -> None:
    stock = dit_folder(tmp_path / "dit", classes=20)
    student, teacher = live(stock), model_of(load(stock))
    cond, (z, phi) = conditions(stock), question(stock)
    ask = {"timestep": torch.tensor([3.0]), "class_labels": cond[:1], "return_dict": False}  # type: ignore[index]
    with torch.no_grad():
        student(z, phi, cond, torch.full((3,), 3.0))
        assert torch.equal(student.network(z[:1], **ask)[0], teacher.network(z[:1], **ask)[0])


def test_models_can_be_pickled_and_a_folded_one_names_its_parent(folder: Path) -> None:
    student = live(folder)
    again = pickle.loads(pickle.dumps(student))
    z, phi = question(folder)
    with torch.no_grad():
        cond, ws = conditions(folder), torch.ones(3)
        assert torch.equal(again(z, phi, cond, ws), student(z, phi, cond, ws))
    folded = fold_w(student, 1.0)
    assert [p.name for p in folded.card.parents[:2]] == ["student", folder.name]
    assert folded.card.weights_sha256 == ""


def test_making_students_leaves_the_callers_random_numbers_alone(folder: Path) -> None:
    before = torch.random.get_rng_state()
    student = live(folder)
    fold_w(student, 1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_module_of_your_own_is_a_family_too() -> None:
    assert FAMILIES["own"] is OWN
    assert not OWN.lora

    class Mine(torch.nn.Module):
        passes = 1

        def __init__(self) -> None:
            super().__init__()
            self.w_projection = torch.nn.Linear(1, 2)  # a name that fewstep gives as well

        def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
            return z + self.w_projection(w[:, None])

    student = student_of(Mine(), Stage("mine", "teacher", steps=2), W)
    assert student.w_dim is None
    with pytest.raises(RangeError, match="only a network with an input for w"):
        fold_w(student, 1.0)
