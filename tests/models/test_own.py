"""Networks that users bring: saved, loaded by a factory, and adapted to a table of betas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fewstep
from fewstep.core.angle import HALF_PI, phi_from_alphas_cumprod, v_from_eps
from fewstep.core.denoiser import Traits
from fewstep.errors import FolderError, NonFiniteError, RangeError, RecipeError, ShapeError
from fewstep.folders import load, save_model
from fewstep.models import BetaClock, BetaDenoiser, Lora, Model, card_of, read_card, student_of
from fewstep.recipes.config import load_recipe
from fewstep.recipes.teachers import check_kind
from fewstep.testing import CheckFailed, check_denoiser

FOUR = fewstep.Stage("student-4", "teacher", updates=1, steps=4)
COND = torch.arange(3)
NULL = torch.tensor([3])


class Net(nn.Module):
    """A network of two numbers and a class, with w as an input."""

    passes = 1

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.into = nn.Linear(5, width)
            self.out = nn.Linear(width, 2)
            self.tied = self.out  # shares its memory, which safetensors would refuse
        self.register_buffer("scale", torch.tensor([2]))

    def forward(self, z: Tensor, phi: Tensor, cond: Tensor, w: Tensor) -> Tensor:
        inputs = torch.stack([phi, w, cond.float()], dim=1).to(z.dtype)
        out: Tensor = self.out(torch.tanh(self.into(torch.cat([z, inputs], dim=1))))
        return out


class Known(Net):
    traits = Traits(shape=(2,), w_range=(0.0, 4.0), steps=(4,), sampler="stochastic")


def test_a_student_of_your_own_module_is_saved_and_loaded(tmp_path: Path) -> None:
    student = student_of(fewstep.Guided(Net(), NULL), FOUR, (0.0, 4.0))
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.1)
    card = save_model(student, tmp_path / "own")
    assert (card.family, card.name, card.steps, card.sampler) == (
        "own", "student-4", 4, "deterministic",
    )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "own").iterdir()) == [
        "fewstep.json",
        "model.safetensors",
    ]
    again = fewstep.load(tmp_path / "own", factory=Net)
    assert isinstance(again, Model)
    assert card_of(again) == card
    a, b = (fewstep.sample(m, COND, w=2.0, shape=(2,), seed=1) for m in (student.eval(), again))
    assert torch.equal(a, b)
    with pytest.raises(RangeError, match="w = 5"):
        fewstep.sample(again, COND, w=5.0, shape=(2,))
    assert torch.equal(Net().out.weight + 0.1, again.network.out.weight)


def test_a_plain_module_is_saved_with_what_its_traits_say(tmp_path: Path) -> None:
    card = save_model(Known(), tmp_path / "known")
    assert (card.stage.kind, card.steps, card.sampler) == ("step-distillation", 4, "stochastic")
    assert card.shape == (2,)
    again = load(tmp_path / "known", factory=Known)
    assert fewstep.sample(again, COND, w=1.0).shape == (3, 2)
    assert save_model(Net(), tmp_path / "plain").is_teacher
    teacher = fewstep.Guided(load(tmp_path / "plain", factory=Net), NULL)  # type: ignore[arg-type]
    assert fewstep.sample(teacher, COND, w=1.0, steps=2, shape=(2,)).shape == (3, 2)
    assert (
        save_model(teacher, tmp_path / "guided").weights_sha256 == card_of(teacher).weights_sha256
    )
    sub = student_of(again, fewstep.Stage("student-2", "student-4", updates=1, steps=2), (0.0, 2.0))
    assert [p.name for p in sub.card.parents] == ["known"]
    assert sub.card.parents[0].sha256 == card.weights_sha256


def _rewrite(file: Path, how: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_model(Net(), tmp_path / "m")
    with pytest.raises(FolderError, match=r"of the class Net.*factory=Net\)"):
        load(tmp_path / "m")
    with pytest.raises(FolderError, match=r"into\.weight must be as in the module"):
        load(tmp_path / "m", factory=lambda: Net(9))
    with pytest.raises(FolderError, match=r"9 missing .*7 unexpected"):
        load(tmp_path / "m", factory=lambda: nn.Sequential(Net(), nn.Identity(), nn.Linear(2, 2)))
    with pytest.raises(RangeError, match=r"factory must return a torch\.nn.Module, got a int"):
        load(tmp_path / "m", factory=lambda: 7)  # type: ignore[arg-type, return-value]
    file = tmp_path / "m/model.safetensors"
    _rewrite(file, lambda t: t["into.bias"].add_(1))
    with pytest.raises(FolderError, match="of sha256"):
        load(tmp_path / "m", factory=Net)
    file.write_bytes(b"cut")
    with pytest.raises(FolderError, match="damaged or cut short"):
        load(tmp_path / "m", factory=Net)
    file.unlink()
    with pytest.raises(FolderError, match="is missing"):
        load(tmp_path / "m", factory=Net)


def test_what_cannot_be_saved_says_why(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="has no network"):
        save_model(lambda z, *_: z, tmp_path / "m")  # type: ignore[arg-type]
    broken = Net()
    broken.into.weight.data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"into\.weight"):
        save_model(broken, tmp_path / "m")

    class Two(Net):
        traits = Traits(steps=(4, 8), w_range=(0.0, 1.0))

    with pytest.raises(RangeError, match="one number of steps"):
        save_model(Two(), tmp_path / "m")
    with pytest.raises(RangeError, match="lora must be left out"):
        student_of(Net(), FOUR, (0.0, 4.0), lora=Lora())
    assert not list(tmp_path.iterdir())


def test_a_factory_that_is_none_is_refused(tmp_path: Path) -> None:
    save_model(Net(), tmp_path / "own")
    for factory in (3, Net()):
        with pytest.raises(RangeError, match="factory must be callable without arguments"):
            load(tmp_path / "own", factory=factory)  # type: ignore[arg-type]


def test_weights_of_the_users_are_not_replaced_by_a_module(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(FolderError, match=r"must be empty or hold a fewstep\.json"):
        save_model(Net(), tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    save_model(Net(), tmp_path / "own")
    save_model(Net(), tmp_path / "own")  # fewstep made this one


def test_a_module_of_your_own_is_no_teacher_of_a_recipe(tmp_path: Path) -> None:
    save_model(Net(), tmp_path / "own")
    recipe = load_recipe("digits", ["data.name=digits"])
    with pytest.raises(RecipeError, match=r"module of your own\. Distil it in Python"):
        check_kind(recipe, read_card(tmp_path / "own"), tmp_path / "own")


def test_a_factory_is_not_for_other_folders(sd: Path) -> None:
    with pytest.raises(RangeError, match="factory is for a folder of a module of your own"):
        load(sd, factory=Net)


BETAS = torch.linspace(1e-4, 0.02, 1000)


class Eps(nn.Module):
    """The exact eps of data that is 0.5 everywhere, of a network whose input is timesteps."""

    def __init__(self, prediction: str) -> None:
        super().__init__()
        self.prediction = prediction
        self.at = phi_from_alphas_cumprod(torch.cumprod(1 - BETAS, 0)).float()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        below = timestep.long().clamp(0, 998)
        phi = torch.lerp(self.at[below], self.at[below + 1], timestep - below)[:, None]
        eps = (z - 0.5 * phi.cos()) / phi.sin()
        v = phi.cos() * eps - phi.sin() * 0.5
        return {"epsilon": eps, "v_prediction": v, "sample": torch.full_like(z, 0.5)}[
            self.prediction
        ]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_network_on_a_table_of_betas_is_a_denoiser(prediction: str) -> None:
    table = BetaClock.from_betas(BETAS, prediction)
    model = BetaDenoiser(Eps(prediction), table, shape=(2,)).eval()
    assert len(check_denoiser(model, COND)) >= 9
    x = fewstep.sample(model, COND, steps=10)
    torch.testing.assert_close(x, torch.full_like(x, 0.5), atol=1e-3, rtol=0)


def test_betas_that_are_none_are_refused() -> None:
    for betas, match in (
        ([], "num_train_timesteps"),
        ([0.1, float("nan")], "trained_betas"),
        ([0.1, 0.0], "do not add noise"),
        ([0.1, 2.0], "trained_betas"),
    ):
        with pytest.raises(FolderError, match=match):
            BetaClock.from_betas(betas)
    with pytest.raises(FolderError, match="Did you mean 'epsilon'"):
        BetaClock.from_betas(BETAS, "epsilom")


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_eps_network_that_divides_by_zero_is_found(guided: bool, dtype: torch.dtype) -> None:
    class Mine:
        """As `v_from_eps` alone would make it: sampling starts at pi/2, off the table."""

        passes = 1

        def __call__(self, z: Tensor, phi: Tensor, cond: Tensor, w: Tensor) -> Tensor:
            del cond, w
            return v_from_eps(z, 0.5 * z, phi)

    class Right(Mine):
        traits = Traits(
            clock=BetaClock.from_betas(BETAS).grid,
            phi_range=(0.01, BetaClock.from_betas(BETAS).phi_range[1]),
            dtype=dtype,
        )

    class Wrong(Mine):
        traits = Traits(dtype=dtype)

    wrong = fewstep.Guided(Wrong(), NULL) if guided else Wrong()
    with pytest.raises(CheckFailed, match=r"phi = 1\.571.*division.*BetaDenoiser"):
        check_denoiser(wrong, COND, shape=(2,))  # type: ignore[arg-type]
    assert check_denoiser(Right(), COND, shape=(2,))
    assert Right.traits.clock(1)[0] < HALF_PI


@pytest.mark.parametrize("w_dim", [2, 5, 10**9])
def test_features_of_w_that_cannot_be(sd: Path, w_dim: int) -> None:
    with pytest.raises(RangeError, match="w_dim must be an even number from 4"):
        student_of(load(sd), FOUR, (0.0, 4.0), w_dim=w_dim)
