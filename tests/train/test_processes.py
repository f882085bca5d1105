"""Two processes: the weights of one, exact resume after SIGKILL, a lost one noticed, FSDP."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.forks import Forks
from torch import Tensor

from fewstep.errors import CheckpointError, RangeError
from fewstep.train import TrainConfig
from fewstep.train.checkpoint import read_checkpoint
from fewstep.train.config import FREE

SCRIPT = Path(__file__).parent / "many.py"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def start(forks: Forks, count: int, *arguments: object) -> list[tuple[int, str]]:
    """Run a command in `count` processes; return the exit code and stderr of each."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    ranks = [{**where, "RANK": str(r), "LOCAL_RANK": str(r), "LOCAL_WORLD_SIZE": "2"}
             for r in range(count)]  # fmt: skip
    done = forks.together([arguments] * count, [{}] if count == 1 else ranks)
    return [(d.returncode, d.stderr) for d in done]


def go(forks: Forks, folder: Path, count: int, **settings: object) -> list[tuple[int, str]]:
    return start(forks, count, SCRIPT, folder, json.dumps(settings))


def final(folder: Path, update: int = 30) -> dict[str, Tensor]:
    found = read_checkpoint(folder / "checkpoints" / f"{update:08d}")
    return {**found.weights, **{f"ema {k}": v for k, v in found.ema.items()}}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.fixture(scope="module")
def two(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert [code for code, _ in go(forks, folder, 2)] == [0, 0]
    return folder


def test_two_processes_learn_what_one_does(forks: Forks, two: Path, tmp_path: Path) -> None:
    # Each part of a batch has draws of its own, so one process takes the batch in as many parts.
    # What is left is the order in which gradients are added.
    done = go(forks, tmp_path, 1, accumulate=2)
    assert done[0][0] == 0, done[0][1]
    assert distance(final(two), final(tmp_path)) < 1e-6
    moved = distance(final(two), final(two, 20))
    assert moved > 1e-2
    losses = [
        [json.loads(line)["loss"] for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (two, tmp_path)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kill", [{1: 17}, {0: 17}, {0: 25, 1: 25}])
def test_killed_processes_go_on_to_the_same_bits(
    forks: Forks, two: Path, tmp_path: Path, kill: dict[int, int]
) -> None:
    done = go(forks, tmp_path, 2, kill=kill)
    for rank, (code, said) in enumerate(done):
        if rank in kill:
            assert code == -signal.SIGKILL
        else:
            assert code == 3, said
            assert "ProcessLostError" in said
            assert f"process {rank} of 2 stops: another one died" in said
    assert not (tmp_path / "checkpoints" / "00000030").exists()
    done = go(forks, tmp_path, 2)
    assert [code for code, _ in done] == [0, 0], done
    assert distance(final(two), final(tmp_path)) == 0.0


def test_when_the_time_of_one_is_up_all_stop_after_the_same_update(
    forks: Forks, two: Path, tmp_path: Path
) -> None:
    for update in (5, 10):
        for code, said in go(forks, tmp_path, 2, late=1):
            assert code == 3
            assert f"TimeUp: time is up at update {update} of 30" in said
    assert [code for code, _ in go(forks, tmp_path, 2)] == [0, 0]
    assert distance(final(two), final(tmp_path)) == 0.0


def test_shards_learn_the_same_and_load_in_one_process(
    forks: Forks, two: Path, tmp_path: Path
) -> None:
    done = go(forks, tmp_path, 2, shard=True, kill={0: 25, 1: 25})
    assert [code for code, _ in done] == [-signal.SIGKILL] * 2
    assert distance(final(two, 20), final(tmp_path, 20)) < 1e-5
    files = {p.name for p in (tmp_path / "checkpoints" / "00000020").iterdir()}
    shards = {f"shard-0000{k}-model-00001-of-00001.safetensors" for k in (1, 2)}
    assert files == {*shards, "rest.pt", "state.json"}
    done = go(forks, tmp_path, 1, accumulate=2)
    assert done[0][0] == 0, done[0][1]
    assert distance(final(two), final(tmp_path)) < 1e-5


def test_shards_go_on_in_any_number_of_processes(forks: Forks, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"batch_size": 24, "updates": 12, "checkpoint_every": 4, "shard": True}
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    assert [code for code, _ in go(forks, whole, 2, accumulate=3, **shared)] == [0, 0]
    go(forks, begun, 2, accumulate=3, kill={0: 9, 1: 9}, **shared)
    for count, bits in ((1, 1e-6), (2, 0.0), (3, 1e-6)):
        shutil.copytree(begun, tmp_path / str(count))
        for rank in range(count):
            (tmp_path / str(count) / f"killed-{rank}").unlink(missing_ok=True)
        settings = {**shared, "shard": count > 1, "accumulate": 6 // count}
        done = go(forks, tmp_path / str(count), count, **settings)
        assert [code for code, _ in done] == [0] * count, done
        assert distance(final(whole, 12), final(tmp_path / str(count), 12)) <= bits, count


@pytest.mark.parametrize("rank", [0, 1])
def test_shards_are_whole_or_absent(forks: Forks, tmp_path: Path, rank: int) -> None:
    done = go(forks, tmp_path, 2, shard=True, cut={rank: 20})
    assert done[rank][0] == -signal.SIGKILL
    assert "ProcessLostError" in done[1 - rank][1]
    there = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdecimal()]
    assert there == ["00000010"]
    assert [code for code, _ in go(forks, tmp_path, 2, shard=True)] == [0, 0]
    assert not list((tmp_path / "checkpoints").glob(".partial-*"))
    (damaged,) = (tmp_path / "checkpoints" / "00000030").glob("shard-00002-*")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"shard-00002.* is missing, damaged or cut short"):
        final(tmp_path)


def test_shards_on_a_disk_of_another_machine_are_no_checkpoint(
    forks: Forks, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    done = go(forks, tmp_path, 2, shard=True, elsewhere={1: str(tmp_path / "other")})
    for code, said in done:
        assert code == 3
        assert "FolderError: the folder of the run must be one that all processes see" in said
        assert "the parts of 1 of 2 processes" in said
    assert list((tmp_path / "other").glob("shard-00002-*"))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_whole_checkpoint_goes_on_in_shards(forks: Forks, two: Path, tmp_path: Path) -> None:
    assert go(forks, tmp_path, 1, accumulate=2, kill={0: 15})[0][0] == -signal.SIGKILL
    done = go(forks, tmp_path, 2, shard=True)
    assert [code for code, _ in done] == [0, 0], done
    assert distance(final(two), final(tmp_path)) < 1e-5


def test_what_cannot_be_is_refused(forks: Forks, tmp_path: Path) -> None:
    code, said = go(forks, tmp_path, 1, shard=True)[0]
    assert code == 3
    assert "there is one process" in said
    code, said = go(forks, tmp_path, 1, checkpoint_activations=True)[0]
    assert code == 3
    assert "Net has no method of that name" in said
    done = go(forks, tmp_path, 2, accumulate=3)
    assert [code for code, _ in done] == [3, 3]
    assert "cannot be shared by 6 parts" in done[0][1]


def test_settings_of_memory_and_speed_do_not_name_another_run() -> None:
    plain = TrainConfig()
    other = TrainConfig(shard=True, compile=True, checkpoint_activations=True, keep=9)
    assert plain.identity() == other.identity()
    assert not FREE & plain.identity().keys()
    assert RangeError.__doc__


def test_the_command_line_trains_and_distils_on_two(forks: Forks, tmp_path: Path) -> None:
    recipe = {
        "name": "two",
        "data": {"name": "digits"},
        "network": {"channels": [8, 16], "groups": 4, "w_dim": 32},
        "teacher": {"updates": 6, "batch_size": 8, "log_every": 3, "checkpoint_activations": True},
        "distill": {"batch_size": 8, "updates": 4, "shard": True, "log_every": 2,
                    "stages": [{"parent": "teacher"}, {"parent": "stage-one", "steps": 2}]},
    }  # fmt: skip
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(recipe))
    for command in ("train", "distill"):
        done = start(forks, 2, "-m", "fewstep", command, path, "--out", tmp_path / "two")
        assert [code for code, _ in done] == [0, 0], done
        assert "updates of 8" in done[0][1]
        assert "updates of 8" not in done[1][1]
    settings = ("--set", "teacher.accumulate=2", "--set", "distill.accumulate=2")
    settings += ("--set", "distill.shard=false")
    for command in ("train", "distill"):
        done = start(forks, 1, "-m", "fewstep", command, path, *settings, "--out", tmp_path / "one")
        assert done[0][0] == 0, done[0][1]
    for name in ("teacher", "stage-one", "student-2"):
        part = f"{name}/unet/diffusion_pytorch_model.safetensors"
        a, b = (load_file(tmp_path / side / part) for side in ("one", "two"))
        assert distance(a, b) < 1e-5, name
        assert all(torch.isfinite(v).all() for v in a.values())
