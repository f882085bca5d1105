"""Students with frozen parameters: only the others are optimised, averaged and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.train.test_loop import CONFIG, PROBLEM, Net, StopAt, batch, same
from torch import Tensor

from fewstep.errors import CheckpointError, RangeError
from fewstep.train import TrainConfig, TrainResult, train

FROZEN = ("layers.0.weight", "layers.0.bias")


class Half(Net):
    """Its first layer is frozen; a buffer counts the calls, as some norms do."""

    def __init__(self, frozen: tuple[str, ...] = FROZEN) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        for name, p in self.named_parameters():
            p.requires_grad_(name not in frozen)

    def forward(self, *inputs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(*inputs)


def go(folder: Path, config: TrainConfig = CONFIG, **more: object) -> TrainResult:
    given = {"problem": PROBLEM, "student": Half(), **more}
    student, problem = given["student"], given["problem"]
    return train(student, problem, batch, config, folder, seed=3, device="cpu", progress=False)  # type: ignore[arg-type]


def test_frozen_parameters_stay_and_the_others_learn(tmp_path: Path) -> None:
    result, before = go(tmp_path), Half().state_dict()
    for state in (result.student.state_dict(), result.ema_state):
        assert state.keys() == before.keys()
        changed = {k for k in before if not torch.equal(state[k], before[k])}
        assert changed == {"layers.3.weight", "layers.3.bias", "calls"}
    assert not any(p.requires_grad for n, p in result.student.named_parameters() if n in FROZEN)


def test_the_averages_of_frozen_parameters_are_not_copies(tmp_path: Path) -> None:
    result = go(tmp_path)
    theirs = result.student.state_dict()["layers.0.weight"]
    assert result.ema_state["layers.0.weight"].data_ptr() == theirs.data_ptr()


class Twice(Half):
    """Two networks over one frozen tensor, as student and fake score of a LoRA run are."""

    def __init__(self) -> None:
        super().__init__()
        self.other = torch.nn.Linear(*reversed(self.layers[0].weight.shape))
        self.other.weight, self.other.bias = self.layers[0].weight, self.layers[0].bias


def test_a_checkpoint_leaves_out_frozen_parameters_by_every_name(tmp_path: Path) -> None:
    result = go(tmp_path, student=Twice())
    kept = set(load_file(tmp_path / "checkpoints" / "00000040" / "weights.safetensors"))
    assert kept == {"layers.3.weight", "layers.3.bias", "calls"}
    theirs = result.student.state_dict()["other.weight"]
    assert result.ema_state["other.weight"].data_ptr() == theirs.data_ptr()


def test_a_checkpoint_holds_what_is_trained_and_buffers(tmp_path: Path) -> None:
    go(tmp_path)
    folder = tmp_path / "checkpoints" / "00000040"
    for name in ("weights", "ema"):
        kept = set(load_file(folder / f"{name}.safetensors"))
        assert kept == {"layers.3.weight", "layers.3.bias", "calls"}
    moments = torch.load(folder / "optimizer.pt", weights_only=True)["adamw"]["state"]
    assert len(moments) == 2


@pytest.mark.parametrize("at", [0, 10, 17, 39])
def test_a_run_that_broke_off_ends_with_the_same_bits(tmp_path: Path, at: int) -> None:
    whole = go(tmp_path / "whole")
    with pytest.raises(ConnectionError):
        go(tmp_path / "broken", problem=StopAt(at))
    torch.randn(17)  # the global generator moved on meanwhile
    result = go(tmp_path / "broken")
    assert same(whole.ema_state, result.ema_state)
    assert same(whole.student.state_dict(), result.student.state_dict())


def test_a_checkpoint_of_other_trained_parameters_is_refused(tmp_path: Path) -> None:
    go(tmp_path)
    with pytest.raises(CheckpointError, match="trained '2 tensors of 66 numbers' -> None"):
        go(tmp_path, student=Half(()))
    with pytest.raises(CheckpointError, match="of 66 numbers' -> '3 tensors"):
        go(tmp_path, student=Half(FROZEN[:1]))


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RangeError, match="every parameter is frozen"):
        go(tmp_path, student=Net().requires_grad_(False))
    with pytest.raises(RangeError, match="shard"):
        go(tmp_path, CONFIG.model_copy(update={"shard": True}))
