"""The loop: it learns, it averages, it stops on what is not finite, and it resumes exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.seed import generator
from fewstep.distill.matching import DistributionMatching
from fewstep.distill.pretrain import Pretrain
from fewstep.distill.problem import AsksAverage, Average, Regression
from fewstep.errors import (
    CheckpointError,
    FewstepWarning,
    FolderError,
    Interrupted,
    NonFiniteError,
    RangeError,
)
from fewstep.testing import Gaussian
from fewstep.train import TrainConfig, TrainResult, read_metrics, train
from fewstep.train.schedule import ema_at, lr_at
from fewstep.train.trained import check_average

CONFIG = TrainConfig(
    updates=40, batch_size=32, lr=1e-2, warmup=5, checkpoint_every=10, log_every=5, ema=0.9
)


class Net(nn.Module):
    """A denoiser on 2-D points with dropout, so that the global generator matters."""

    passes = 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Dropout(0.1), nn.Linear(32, 2))
        g = generator("cpu", 0, "init")
        for p in self.parameters():
            p.data.copy_(0.3 * torch.randn(p.shape, generator=g))

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        assert isinstance(cond, Tensor)
        out: Tensor = self.layers(torch.cat([z, phi[:, None], cond[:, None].float()], dim=1))
        return out


def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
    g = generator("cpu", 7, update)
    cond = torch.randint(0, 2, (CONFIG.batch_size,), generator=g)
    x = 0.1 * torch.randn(CONFIG.batch_size, 2, generator=g) + (2.0 * cond[:, None] - 1)
    size = CONFIG.batch_size // parts
    mine = slice(part * size, (part + 1) * size)
    return x[mine], cond[mine]


PROBLEM = Pretrain(torch.tensor([2]))


def go(folder: Path, config: TrainConfig = CONFIG, **more: object) -> TrainResult:
    options = {"problem": PROBLEM, "seed": 3, "device": "cpu", "progress": False, **more}
    return train(Net(), options.pop("problem"), batch, config, folder, **options)  # type: ignore[arg-type]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_loss_falls(tmp_path: Path) -> None:
    result = go(tmp_path, CONFIG.model_copy(update={"updates": 200}))
    losses = [value for _, value in result.losses]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_learning_rate_rises_then_falls_to_its_end() -> None:
    rates = [lr_at(u, CONFIG) for u in range(CONFIG.updates)]
    assert rates[0] == pytest.approx(CONFIG.lr / 6)
    assert max(rates) <= CONFIG.lr
    assert rates[-1] == pytest.approx(CONFIG.lr / CONFIG.updates)
    cosine = CONFIG.model_copy(update={"decay": "cosine", "lr_final": 0.1, "warmup": 0})
    assert lr_at(20, cosine) == pytest.approx(CONFIG.lr * 0.55)
    flat = CONFIG.model_copy(update={"decay": "none", "warmup": 0})
    assert {lr_at(u, flat) for u in range(40)} == {CONFIG.lr}


def test_the_average_is_the_sum_it_should_be(tmp_path: Path) -> None:
    """Weights after every update, read from checkpoints, averaged by hand."""
    every = CONFIG.model_copy(update={"updates": 6, "checkpoint_every": 1, "keep": 99})
    result = go(tmp_path, every)
    from safetensors.torch import load_file

    name = "layers.0.weight"
    average = dict(Net().named_parameters())[name].detach().clone()
    for u in range(6):
        weights = load_file(tmp_path / "checkpoints" / f"{u + 1:08d}" / "weights.safetensors")
        average = torch.lerp(average, weights[name], 1 - ema_at(u, every))
    torch.testing.assert_close(result.ema_state[name], average, rtol=0, atol=1e-7)


class FromAverage:
    """Targets from the student's own average, which must change nothing of the student."""

    def __init__(self, net: Net, stop: int | None = None) -> None:
        self.net, self.stop, self.seen = net, stop, list[Tensor]()

    def lend(self, average: Average) -> None:
        self.average = average

    def __call__(self, x: Tensor, cond: Cond, g: torch.Generator) -> Regression:
        if len(self.seen) == self.stop:
            raise ConnectionError("the machine went away")
        r = PROBLEM(x, cond, g)
        first = next(self.net.parameters())
        before, asked = first.detach().clone(), [r.z, r.phi, r.cond, r.w]
        with self.average() as student:
            self.seen.append(first.detach().clone())
            v = student(*asked)  # type: ignore[arg-type]
            assert torch.equal(v, student(*asked))  # type: ignore[arg-type]  no dropout
            assert not v.requires_grad
        assert torch.equal(first, before)
        assert self.net.training
        return r._replace(v_target=0.5 * (r.v_target + v))


def from_average(
    folder: Path, stop: int | None = None, **more: int
) -> tuple[FromAverage, TrainResult]:
    net = Net()
    problem, config = FromAverage(net, stop), CONFIG.model_copy(update=more)
    return problem, train(net, problem, batch, config, folder, seed=3, device="cpu", progress=False)


def test_a_problem_is_lent_the_average_of_the_updates_so_far(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    problem, _ = from_average(tmp_path, updates=6, checkpoint_every=1, keep=99)
    assert isinstance(problem, AsksAverage)
    assert torch.equal(problem.seen[0], next(Net().parameters()))
    for u in range(1, 6):
        ema = load_file(tmp_path / "checkpoints" / f"{u:08d}" / "ema.safetensors")
        assert torch.equal(problem.seen[u], ema["layers.0.weight"])


def test_a_run_that_asks_the_average_resumes_with_the_same_bits(tmp_path: Path) -> None:
    _, whole = from_average(tmp_path / "whole")
    with pytest.raises(ConnectionError):
        from_average(tmp_path / "broken", stop=17)
    _, result = from_average(tmp_path / "broken")
    assert same(whole.ema_state, result.ema_state)
    assert same(whole.student.state_dict(), result.student.state_dict())


def test_a_sharded_average_cannot_be_lent() -> None:
    with pytest.raises(RangeError, match="shard must be left out for FromAverage"):
        check_average(FromAverage(Net()), CONFIG.model_copy(update={"shard": True}))
    matching = DistributionMatching(Gaussian(mean=0.0, std=1.0))
    with pytest.raises(RangeError, match="shard must be left out for DistributionMatching"):
        check_average(matching, CONFIG.model_copy(update={"shard": True}))


def test_a_finished_run_returns_at_once_with_the_same_bits(tmp_path: Path) -> None:
    first = go(tmp_path)

    def never(update: int) -> tuple[Tensor, Tensor]:
        raise AssertionError(f"update {update} was asked for again")

    again = train(Net(), PROBLEM, never, CONFIG, tmp_path, seed=3, device="cpu", progress=False)
    assert same(first.ema_state, again.ema_state)
    assert same(first.student.state_dict(), again.student.state_dict())
    assert first.losses == again.losses


@dataclasses.dataclass
class StopAt:
    """Raises in the middle of one update, once."""

    update: int
    calls: int = 0

    def __call__(self, x: Tensor, cond: Cond, g: torch.Generator) -> Regression:
        self.calls += 1
        if self.calls - 1 == self.update:
            raise ConnectionError("the machine went away")
        return PROBLEM(x, cond, g)


@pytest.mark.parametrize("at", [0, 9, 10, 17, 39])
def test_a_run_that_broke_off_ends_with_the_same_bits(tmp_path: Path, at: int) -> None:
    whole = go(tmp_path / "whole")
    with pytest.raises(ConnectionError):
        go(tmp_path / "broken", problem=StopAt(at))
    torch.randn(17)  # the global generator moved on meanwhile
    result = go(tmp_path / "broken")
    assert same(whole.ema_state, result.ema_state)
    assert same(whole.student.state_dict(), result.student.state_dict())
    rows = [r["update"] for r in read_metrics(tmp_path / "broken")]
    assert rows == sorted(set(rows))
    assert rows[-1] == 40


def test_training_leaves_the_callers_randomness_alone(tmp_path: Path) -> None:
    net, state = Net(), torch.random.get_rng_state()
    train(net, PROBLEM, batch, CONFIG, tmp_path, device="cpu", progress=False)
    assert torch.equal(state, torch.random.get_rng_state())


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    go(tmp_path)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["00000030", "00000040", "latest.json"]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    def problem(x: Tensor, cond: Cond, g: torch.Generator) -> Regression:
        r = PROBLEM(x, cond, g)
        problem.calls += 1  # type: ignore[attr-defined]
        bad = math.inf if problem.calls == 24 else 1.0  # type: ignore[attr-defined]
        return r._replace(v_target=r.v_target * bad)

    problem.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match="between updates 21 and 25") as caught:
        go(tmp_path, problem=problem)
    assert "lower" in str(caught.value)
    assert json.loads((tmp_path / "checkpoints" / "latest.json").read_text()) == {"update": 20}
    whole = go(tmp_path / "whole")
    assert same(go(tmp_path).ema_state, whole.ema_state)


class Zero:
    """A problem without draws: the parts of a batch then add up to the batch."""

    def __call__(self, x: Tensor, cond: Cond, draws: torch.Generator) -> Regression:
        del draws
        phi = torch.full((len(x),), 0.8, dtype=x.dtype)
        return Regression(x, phi, cond, torch.zeros(len(x)), -x)


def test_accumulated_parts_give_the_same_update(tmp_path: Path) -> None:
    """To float tolerance: the sums are taken in another order."""

    def train_without_dropout(folder: Path, accumulate: int) -> TrainResult:
        student = Net()
        student.layers[2].p = 0.0  # type: ignore[union-attr, assignment]
        config = CONFIG.model_copy(update={"accumulate": accumulate, "updates": 5})
        return train(student, Zero(), batch, config, folder, device="cpu", progress=False)

    one = train_without_dropout(tmp_path / "1", 1).ema_state
    four = train_without_dropout(tmp_path / "4", 4).ema_state
    assert not same(one, Net().state_dict())
    for key in one:
        torch.testing.assert_close(one[key], four[key], rtol=0, atol=1e-5)


def test_a_batch_that_cannot_be_parted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RangeError, match="batch_size = 32 cannot be shared by 3 parts"):
        go(tmp_path, CONFIG.model_copy(update={"accumulate": 3}))


def test_another_setting_is_refused_by_name(tmp_path: Path) -> None:
    go(tmp_path)
    with pytest.raises(CheckpointError, match=r"lr 0\.01 -> 0\.5"):
        go(tmp_path, CONFIG.model_copy(update={"lr": 0.5}))
    with pytest.raises(CheckpointError, match="seed 3 -> 4"):
        go(tmp_path, seed=4)
    with pytest.raises(CheckpointError, match="fingerprint"):
        go(tmp_path, fingerprint="other data")


@pytest.mark.parametrize("name", ["weights.safetensors", "ema.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, how: str
) -> None:
    whole = go(tmp_path)
    file = tmp_path / "checkpoints" / "00000040" / name
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.warns(FewstepWarning, match=f"{name} is missing, damaged.*of update 30"):
        result = go(tmp_path)
    assert same(result.ema_state, whole.ema_state)


def test_going_back_to_an_older_checkpoint_as_the_error_says(tmp_path: Path) -> None:
    whole = go(tmp_path)
    (tmp_path / "checkpoints" / "00000040" / "ema.safetensors").unlink()
    (tmp_path / "checkpoints" / "latest.json").write_text('{"update": 30}')
    assert same(go(tmp_path).ema_state, whole.ema_state)


def test_a_full_disk_leaves_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fewstep.train.checkpoint as module

    real = module.save_file
    calls = 0

    def save(tensors: dict[str, Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # ema of the second checkpoint
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(module, "save_file", save)
    with pytest.raises(FolderError, match="No space left") as caught:
        go(tmp_path)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "00000010",
        "latest.json",
    ]
    assert same(go(tmp_path).ema_state, go(tmp_path / "whole").ema_state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_request_is_answered_at_an_update_with_a_checkpoint(
    tmp_path: Path, number: signal.Signals
) -> None:
    def stopped(update: int, part: int, parts: int) -> tuple[Tensor, Tensor]:
        if update == 12:
            signal.raise_signal(number)
        return batch(update, part, parts)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="same command"):
        train(Net(), PROBLEM, stopped, CONFIG, tmp_path, seed=3, device="cpu", progress=False)
    assert signal.getsignal(number) is before
    update = json.loads((tmp_path / "checkpoints" / "latest.json").read_text())["update"]
    assert update == 13  # the update that was begun is finished
    assert same(go(tmp_path).ema_state, go(tmp_path / "whole").ema_state)
    assert logged(tmp_path) == logged(tmp_path / "whole")


def logged(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in read_metrics(folder)]


def test_a_resumed_run_has_the_same_log(tmp_path: Path) -> None:
    """The last checkpoint, at update 30, lies between two readings of the loss."""
    config = CONFIG.model_copy(update={"log_every": 7})
    go(tmp_path, config)
    shutil.rmtree(tmp_path / "checkpoints" / "00000040")
    (tmp_path / "checkpoints" / "latest.json").write_text('{"update": 30}')
    go(tmp_path, config)
    go(tmp_path / "whole", config)
    assert logged(tmp_path) == logged(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_on_a_cpu_is_refused_with_the_reason(tmp_path: Path, precision: str) -> None:
    with pytest.raises(RangeError, match="slower"):
        go(tmp_path, CONFIG.model_copy(update={"precision": precision}))
    assert not list(tmp_path.iterdir())


def test_a_last_line_cut_by_a_kill_is_not_read(tmp_path: Path) -> None:
    go(tmp_path)
    path = tmp_path / "metrics.jsonl"
    rows = read_metrics(tmp_path)
    path.write_text(path.read_text() + '{"update": 45, "lo')
    assert read_metrics(tmp_path) == rows
    shutil.rmtree(tmp_path / "tensorboard")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
def test_a_compiled_network_learns_the_same_and_resumes_plain(tmp_path: Path) -> None:
    # Without dropout: a compiled network draws its random numbers in another order.
    class Still(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layers[2] = nn.Identity()

    def learn(folder: Path, **more: object) -> TrainResult:
        config = CONFIG.model_copy(update=more)
        return train(Still(), PROBLEM, batch, config, folder, device="cpu", progress=False)

    plain = learn(tmp_path / "plain")
    compiled = learn(tmp_path / "compiled", compile=True)
    assert compiled.ema_state.keys() == plain.ema_state.keys()
    for key, value in plain.ema_state.items():
        torch.testing.assert_close(compiled.ema_state[key], value, rtol=1e-3, atol=1e-4)
    again = learn(tmp_path / "compiled")
    assert same(again.ema_state, compiled.ema_state)
