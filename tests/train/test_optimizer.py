"""AdamW with moments of 8 bits: it learns, resumes to the same bits, and says what it needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.seed import generator
from fewstep.distill.pretrain import Pretrain
from fewstep.errors import CheckpointError, Interrupted, MissingError, RangeError
from fewstep.train import TrainConfig, check_trainable, train
from fewstep.train.optimizer import (
    check_groups,
    check_state,
    lr_scales,
    make_optimizer,
    state_bytes,
)

needed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs fewstep[adamw8bit]"
)
SETTINGS = {"batch_size": 8, "lr": 1e-2, "warmup": 0, "checkpoint_every": 5, "log_every": 5}
CPU = torch.device("cpu")


class Net(nn.Module):
    """A denoiser of 8x8 images with weights that are large enough for 8 bits, and small ones."""

    passes = 1

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(66, 70), nn.Linear(70, 64)
        draws = generator("cpu", 0, "net")
        for p in self.parameters():
            p.data.copy_(0.1 * torch.randn(p.shape, generator=draws))

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        assert isinstance(cond, Tensor)
        inputs = torch.cat([z.flatten(1), phi[:, None], cond[:, None].float()], dim=1)
        out: Tensor = self.last(torch.tanh(self.first(inputs))).view_as(z)
        return out


def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
    draws = generator("cpu", 3, update)
    cond = torch.randint(0, 2, (8,), generator=draws)
    return (2.0 * cond - 1)[:, None, None, None].expand(8, 1, 8, 8), cond


def go(
    folder: Path, optimizer: str = "adamw8bit", until: Callable[[int], bool] = lambda _: False
) -> list[float]:
    def stopping(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
        if until(update):
            raise KeyboardInterrupt
        return batch(update, part, parts)

    config = TrainConfig(updates=20, optimizer=optimizer, **SETTINGS)  # type: ignore[arg-type]
    problem = Pretrain(torch.tensor([2]))
    result = train(Net(), problem, stopping, config, folder, device="cpu", progress=False)
    return [loss for _, loss in result.losses]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / "00000020" / "weights.safetensors")


@needed
def test_it_learns_as_adamw_does_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    plain, small = go(tmp_path / "plain", "adamw"), go(tmp_path / "small")
    assert small == pytest.approx(plain, rel=0.05)
    assert small != plain
    assert small[-1] < 0.9 * small[0]
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        go(tmp_path / "stopped", until=lambda update: update == 12)
    assert go(tmp_path / "stopped") == small
    once, twice = weights(tmp_path / "small"), weights(tmp_path / "stopped")
    assert all(torch.equal(once[name], twice[name]) for name in once)


@needed
def test_its_state_takes_a_quarter_and_is_checked(tmp_path: Path) -> None:
    config = TrainConfig(optimizer="adamw8bit")
    parameters = [nn.Parameter(torch.zeros(70, 66)), nn.Parameter(torch.zeros(70))]
    made = make_optimizer(parameters, config, CPU)
    for p in parameters:
        p.grad = torch.ones_like(p)
    made.step()
    held = {
        id(t): t.numel() * t.element_size()
        for state in made.state.values()
        for name, t in state.items()
        if isinstance(t, Tensor) and not name.startswith("qmap")
    }
    assert sum(held.values()) == sum(state_bytes(p.numel(), config) for p in parameters)
    assert state_bytes(70 * 66, config) < 8 * 70 * 66 / 3.9
    assert state_bytes(70, config) == state_bytes(70, TrainConfig()) == 8 * 70
    state = made.state_dict()["state"]
    check_state(state, parameters, tmp_path)
    with pytest.raises(CheckpointError, match="optimiser's state must fit"):
        check_state(state, [nn.Parameter(torch.zeros(71, 66)), parameters[1]], tmp_path)


def test_a_missing_package_is_named_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(MissingError, match=r"needs the package bitsandbytes. In the clone"):
        go(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_it_is_refused_with_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(RangeError, match="optimizer must be adamw with shard"):
        check_trainable(TrainConfig(optimizer="adamw8bit", shard=True), "cpu")


def test_the_default_does_not_name_another_run() -> None:
    assert "optimizer" not in TrainConfig().identity()
    assert TrainConfig(optimizer="adamw8bit").identity()["optimizer"] == "adamw8bit"


class Scaled(Net):
    lr_scales = {"last": 8.0}  # noqa: RUF012


def test_a_module_can_have_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    config = TrainConfig(**SETTINGS, updates=1, ema=0.0)
    before, moved = Net().state_dict(), {}
    for net in (Net(), Scaled()):
        train(net, Pretrain(torch.tensor([2])), batch, config, tmp_path / type(net).__name__)
        after = net.state_dict()
        moved[type(net)] = {k: (after[k] - before[k]).abs().max() for k in before}
    # The first step of Adam is as long as the learning rate.
    for name, length in moved[Net].items():
        factor = 8.0 if name.startswith("last.") else 1.0
        torch.testing.assert_close(moved[Scaled][name], factor * length, rtol=1e-3, atol=0.0)


class Outer(nn.Module):
    """A user's module, some of whose modules have a name that another one has."""

    def __init__(self, scales: Any) -> None:
        super().__init__()
        self.last, self.body, self.lr_scales = nn.Linear(1, 1), Net(), scales


def factors(module: Any) -> dict[str, float]:
    names = [name for name, _ in module.named_parameters() if name.endswith("weight")]
    scales = lr_scales(module, names)
    assert scales is not None
    return {n.removesuffix(".weight"): s for n, s in zip(names, scales, strict=True)}


def test_a_factor_is_that_of_the_named_module_alone() -> None:
    assert factors(Outer({"last": 8.0})) == {"last": 8.0, "body.first": 1.0, "body.last": 1.0}
    inner = {"body": 2.0, "body.last": 0.5}
    assert factors(Outer(inner)) == {"last": 1.0, "body.first": 2.0, "body.last": 0.5}
    compiled = Outer({"body.last": 3})
    compiled.body = torch.compile(compiled.body)  # type: ignore[assignment]
    assert {s for n, s in factors(compiled).items() if n.endswith("last") and n != "last"} == {3.0}
    assert factors(torch.compile(Outer({"last": 4.0})))["_orig_mod.last"] == 4.0


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([8.0], "must be a dict of positive factors .*, got list"),
        ({"lost": 8.0}, "must have names of its modules, got 'lost'"),
        ({"last": 0.0}, "must be positive finite numbers, got 0.0 for last"),
        ({"last": float("nan")}, "got nan for last"),
        ({"last": "8"}, "got '8' for last"),
    ],
)
def test_factors_that_do_not_fit_are_refused(tmp_path: Path, scales: Any, message: str) -> None:
    net = Net()
    net.lr_scales = scales
    with pytest.raises(RangeError, match=message):
        train(net, Pretrain(torch.tensor([2])), batch, TrainConfig(**SETTINGS, updates=1), tmp_path)


def test_a_resume_with_other_factors_is_refused(tmp_path: Path) -> None:
    def run(scales: dict[str, float] | None, until: int) -> None:
        def stopping(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
            if update == until:
                raise KeyboardInterrupt
            return batch(update, part, parts)

        net = Net()
        net.lr_scales = scales  # type: ignore[assignment]
        config = TrainConfig(**SETTINGS, updates=7)
        train(net, Pretrain(torch.tensor([2])), stopping, config, tmp_path)

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        run({"last": 8.0}, until=6)
    for scales in (None, {"last": 4.0}):
        with pytest.raises(CheckpointError, match="learning rates must be those that"):
            run(scales, until=7)
    run({"last": 8.0}, until=7)


def test_a_checkpoint_with_other_groups_of_parameters_is_refused() -> None:
    one = [{"params": [0, 1]}]
    check_groups(one, one, Path("run"))
    with pytest.raises(CheckpointError, match="learning rates must be those that"):
        check_groups(one, [{"params": [0]}, {"params": [1]}], Path("run"))
