"""The script for a GPU, tried on a CPU at small size: all of it, by the command that a GPU runs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.gpu import pack_data, page
from benchmarks.gpu.common import Context, Record, examples, pretraining, teacher_of
from benchmarks.gpu.leg import Leg
from benchmarks.gpu.memory import subject
from benchmarks.gpu.packed import Packed
from PIL import Image

from fewstep.data import DataConfig, open_dataset
from fewstep.folders import load
from fewstep.models import Model
from fewstep.recipes.unpack import unpack_run
from fewstep.train import TrainConfig, estimate

ROOT = Path(__file__).parents[2]
COUNT = 1000


def images(folder: Path, count: int = COUNT) -> Path:
    """Write a parquet file of random images in ten classes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, files = np.random.default_rng(0), []
    for _ in range(count):
        out = io.BytesIO()
        pixels = rng.integers(0, 256, (2, 2, 3), np.uint8).repeat(16, 0).repeat(16, 1)
        Image.fromarray(pixels).save(out, "PNG")
        files.append(out.getvalue())
    table = pa.table({"image": files, "label": np.arange(count) % 10})
    pq.write_table(table, folder / "images.parquet")
    return folder / "images.parquet"


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("parquet"))


@pytest.fixture(scope="module")
def packed(parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "images.npz"
    assert pack_data.pack(parquet, path, 2**20) == COUNT
    return path


@pytest.fixture(scope="module")
def out(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that comes back from the whole script."""
    out = tmp_path_factory.mktemp("out")
    done = subprocess.run(
        ["bash", "benchmarks/gpu/run.sh", "--out", out, "--work", out.parent / "work", "--data",
         packed, "--device", "cpu", "--tiny", "--minutes", "5", "--commit", "abc"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def test_every_step_of_the_script_ends(report: dict[str, Any]) -> None:
    states = {name: state["state"] for name, state in report["states"].items()}
    assert states == dict.fromkeys(
        ["sanity", "train", "leg", "sampling", "memory", "sweep"], "done"
    )
    assert report["commit"] == "abc"
    assert all(
        s["environment"]["commit"] == "abc" for n, s in report["steps"].items() if n != "sanity"
    )


def test_only_what_needs_a_gpu_fails_on_a_cpu(report: dict[str, Any]) -> None:
    failed = {
        part: why for s in report["steps"].values() for part, why in s.get("errors", {}).items()
    }
    assert len(failed) == 4
    assert all("CUDA graph" in part and "need a GPU" in why for part, why in failed.items())
    sanity = report["steps"]["sanity"]["results"]
    assert sanity["returned"] == 0
    assert sanity["skipped"] >= 4


def test_the_leg_trains_and_measures_three_models(report: dict[str, Any]) -> None:
    found = report["steps"]["leg"]["results"]
    for name in ("teacher", "student-4", "student-1"):
        assert found[name]["updates"] >= 1
        assert found[name]["losses"]
        assert found[name]["memory foreseen"] > 0
    cells = [row for part, row in found.items() if part.startswith("figures of ")]
    assert len(cells) == 3 * 4
    assert all(row["fd_cifar10"] >= 0 and row["samples"] == 20 for row in cells)
    assert found["held-out images"]["fd_cifar10"] >= 0
    many = [row for row in cells if row["rms_to_teacher"] is None]
    assert [row["w"] for row in many] == [1.0, 0.0, 3.0]


def test_what_comes_back_is_few_and_small(out: Path) -> None:
    files = [p for p in out.rglob("*") if p.is_file()]
    assert {p.name for p in files} >= {
        "results.json",
        "log.txt",
        "sheet.png",
        "manifest.json",
        "part-0",
    }
    assert len(files) <= 8
    assert all(p.stat().st_size < 16 * 2**20 for p in files)


def test_the_packed_run_becomes_model_folders(out: Path, tmp_path: Path) -> None:
    unpacked = unpack_run(out / "packed", tmp_path / "run")
    assert list(unpacked["models"]) == ["teacher", "student-4", "student-1"]
    loaded = load(tmp_path / "run" / "student-4", "cpu")
    assert isinstance(loaded, Model)
    assert loaded.card.steps == 4
    assert loaded.card.training["images_seen"] > 0


def test_the_pages_have_the_figures(report: dict[str, Any], out: Path) -> None:
    runs = page.load([out / "results.json"])
    text = page.gpu_page(runs)
    assert "Unmeasured" not in text
    assert "| eager | 8 |" in text
    assert "CUDA graphs need a GPU" in text
    section = page.legs_section(runs)
    assert "fd_cifar10" in section
    assert f"| student-4 | {report['steps']['leg']['results']['student-4']['updates']} |" in section
    filled = page.fill(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n", section)
    assert page.fill(filled, section) == filled
    assert "old" not in filled
    assert filled.endswith("after\n")
    assert page.gpu_page([]).count("Unmeasured") == len(page.SECTIONS)


def test_the_committed_pages_are_those_of_the_committed_results() -> None:
    docs = ROOT / "docs" / "results"
    runs = page.load(sorted((docs / "gpu").glob("*.json")))
    assert (docs / "gpu.md").read_text(encoding="utf-8") == page.gpu_page(runs)
    text = (docs / "cifar10.md").read_text(encoding="utf-8")
    assert page.fill(text, page.legs_section(runs)) == text


def test_packed_images_are_those_of_the_parquet_file(
    parquet: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    for split in ("train", "held-out"):
        plain = open_dataset(DataConfig(name=str(parquet)), split)
        found = Packed(packed, split)
        assert len(found) == len(plain)
        index = torch.arange(len(plain))
        for a, b in zip(found.batch(index), plain.batch(index), strict=True):
            assert torch.equal(a, b)


def test_a_smaller_file_holds_the_same_number_of_each_class(parquet: Path, tmp_path: Path) -> None:
    limit = 80 * 1024
    kept = pack_data.pack(parquet, tmp_path / "small.npz", limit)
    assert 10 <= kept < COUNT
    assert (tmp_path / "small.npz").stat().st_size <= limit
    with np.load(tmp_path / "small.npz") as held:
        assert np.bincount(held["labels"]).tolist() == [kept // 10] * 10


def context(tmp_path: Path, packed: Path, **more: Any) -> Context:
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "work").mkdir(exist_ok=True)
    return Context("cpu", True, tmp_path / "work", tmp_path / "out", packed, **more)


def test_a_later_leg_starts_from_the_packed_weights(
    tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Leg(context(tmp_path, packed))
    first.total = 0.2
    monkeypatch.setattr(first, "compiles", lambda: False)
    first.teacher()
    first.pack()
    later = Leg(context(tmp_path, packed, start=tmp_path / "out"))
    later.total = 0.2
    seen: dict[str, torch.Tensor] = {}

    def trained(model: Model, *_: object) -> dict[str, Any]:
        seen.update({k: v.clone() for k, v in model.network.state_dict().items()})
        later.keep(model, {"images": 8, "updates": 1, "batch": 8, "seconds": 0.1})
        return {}

    later.train = trained  # type: ignore[method-assign]
    later.teacher()
    held = first.models["teacher"].network.state_dict()
    assert all(torch.equal(held[k].bfloat16().float(), v) for k, v in seen.items())
    before = first.models["teacher"].card.training["images_seen"]
    assert later.models["teacher"].card.training["images_seen"] == before + 8
    assert later.models["teacher"].card.training["legs"] == 2
    assert later.seed("teacher") != first.seed("teacher")


def test_training_goes_on_without_a_compiler_that_fails(
    tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    leg = Leg(context(tmp_path, packed))
    leg.total = 0.2
    row = leg.teacher()
    assert "no compiler" in row["compile error"]
    assert row["compiled"] is False
    assert row["updates"] >= 1


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path, packed: Path) -> None:
    record = Record("x", context(tmp_path, packed))

    def broken() -> None:
        raise ValueError("why")

    assert record.part("a", broken) is None
    assert record.part("b", lambda: {"n": 1}) == {"n": 1}
    written = json.loads((tmp_path / "work" / "x.json").read_text())
    assert written["errors"] == {"a": "ValueError: why"}
    assert written["results"] == {"b": {"n": 1}}


def test_a_part_for_which_there_is_no_time_is_skipped(tmp_path: Path, packed: Path) -> None:
    made = context(tmp_path, packed)
    record = Record("x", Context("cpu", False, made.work, made.out, deadline=0.0))
    assert record.part("a", lambda: 1, need=5) is None
    assert "a" in record.skipped


def test_an_error_of_the_device_ends_the_step(tmp_path: Path, packed: Path) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    record = Record("x", context(tmp_path, packed))
    with pytest.raises(RuntimeError, match="illegal"):
        record.part("a", lost)
    assert "illegal" in json.loads((tmp_path / "work" / "x.json").read_text())["errors"]["a"]


def test_the_teachers_problem_drops_labels(tmp_path: Path, packed: Path) -> None:
    assert pretraining(teacher_of(context(tmp_path, packed))).dropout == 0.1


@pytest.mark.parametrize("stage", ["teacher", "student-4"])
@pytest.mark.parametrize(("size", "saving"), [(64, False), (256, True)])
def test_the_estimate_of_memory_is_near_the_peak_of_an_h100(
    tmp_path: Path, stage: str, size: int, saving: bool
) -> None:
    record = json.loads((ROOT / "docs" / "results" / "gpu" / "h100-2.json").read_text())
    measured = record["steps"]["memory"]["results"]
    what = f"{stage}, batch {size}" + (", activations checkpointed" if saving else "")
    context = Context("cpu", False, tmp_path, tmp_path)
    student, problem = subject(context, stage)
    config = TrainConfig(batch_size=size, precision="bf16", checkpoint_activations=saving)
    x, cond = examples(context, 1)
    foreseen = estimate(student, problem, config, x, cond).total
    assert 0.95 < foreseen / measured[what]["peak"] < 1  # kernels have scratch memory besides
