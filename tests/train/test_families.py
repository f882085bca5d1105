"""Transformers on two processes: whole, and in shards, they learn what one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.forks import Forks
from tests.models.packed import flux_folder
from tests.models.pipelines import dit_folder, sd3_folder, unet
from tests.train.many import Net
from tests.train.test_processes import start

from fewstep.train.shard import units

SCRIPT = Path(__file__).parent / "families.py"
MADE = {
    "sd3": sd3_folder,
    "dit": lambda path: dit_folder(path, classes=20),
    "flux": lambda path: flux_folder(path, guidance=True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make(tmp_path_factory.mktemp("stock") / name) for name, make in MADE.items()]


def learnt(
    forks: Forks, folders: list[Path], out: Path, count: int, **settings: object
) -> dict[str, dict[str, torch.Tensor]]:
    out.mkdir()
    done = start(forks, count, SCRIPT, out, json.dumps(settings), *folders)
    assert [code for code, _ in done] == [0] * count, done
    return {name: torch.load(out / f"{name}.pt", weights_only=True) for name in MADE}


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The root mean square difference of the tensor that differs most.

    Single elements may differ by more: where the gradient is rounding alone, Adam divides it by its
    own size, or by its epsilon. For Flux, one gradient of 1e-9 among ones of 1e-4 moved its weight
    by 2e-5.
    """
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).square().mean().sqrt()) for k in a)


def test_two_processes_learn_what_one_does_whole_and_in_shards(
    forks: Forks, folders: list[Path], tmp_path: Path
) -> None:
    one = learnt(forks, folders, tmp_path / "one", 1, accumulate=2)
    for state in one.values():
        assert (state.pop("held") == 1.0).all()
    for shard in (False, True):
        settings = {"shard": shard, "checkpoint_activations": shard}
        two = learnt(forks, folders, tmp_path / f"two-{shard}", 2, **settings)
        for name, state in one.items():
            # Between the calls of the teacher too, a process holds half of its weights.
            held = two[name].pop("held")
            assert (held < 0.6).all() if shard else (held == 1.0).all()
            assert state["loss"].isfinite().all()
            assert len(set(state["loss"].tolist())) == 3, name  # it learns something
            assert difference(state, two[name]) < 1e-6, (name, shard)


def test_shards_are_the_blocks_that_a_network_names() -> None:
    """Layers inside a block are not gathered by themselves."""
    found = list(units(unet()))
    assert {type(m).__name__ for m in found} == {
        "BasicTransformerBlock", "ResnetBlock2D", "UpBlock2D", "CrossAttnUpBlock2D",
    }  # fmt: skip
    # Without names, all members of module lists.
    net = Net()
    assert list(units(net)) == list(net.blocks)
