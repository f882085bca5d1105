"""The command line as a user meets it: what it makes, and one line for what is wrong."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from tests.cli.conftest import SIGNALLED, fewstep
from tests.forks import Forks


def one_line_error(done: subprocess.CompletedProcess[str], *says: str) -> None:
    """Check that the command failed with one line that says all of `says`."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("fewstep: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in says:
        assert word in lines[0], lines[0]


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from fewstep.cli.main import main; code = main(['--help']); "
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "distill", "sample", "evaluate", "show"):
        assert command in done.stdout


def test_train_and_distill_make_model_folders(run: Path) -> None:
    for name in ("teacher", "stage-one", "student-4", "student-2", "student-4-stochastic"):
        assert (run / name / "fewstep.json").is_file()
        assert (run / name / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_finished_run_is_not_made_again(run: Path, recipe: Path) -> None:
    before = (run / "student-2" / "fewstep.json").stat().st_mtime_ns
    done = fewstep("distill", recipe, "--out", run, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert "student-2: already made" in done.stderr
    assert (run / "student-2" / "fewstep.json").stat().st_mtime_ns == before


def test_show_says_what_a_folder_is(run: Path) -> None:
    done = fewstep("show", run / "student-4", cwd=run)
    assert "sub-steps of its parent a step, by DDIM" in done.stdout
    assert done.returncode == 0, done.stderr
    for word in ("few-step student", "steps        4", "0 to 4", "stage-one", "teacher"):
        assert word in done.stdout
    assert "fingerprint" not in done.stdout
    assert "_bytes" not in done.stdout
    card = json.loads(fewstep("show", run / "student-4", "--json", cwd=run).stdout)
    assert [p["name"] for p in card["parents"]] == ["stage-one", "teacher"]
    assert (
        card["parents"][0]["sha256"]
        == json.loads((run / "stage-one" / "fewstep.json").read_text())["weights_sha256"]
    )


def test_sample_writes_a_sheet_that_carries_its_settings(run: Path, tmp_path: Path) -> None:
    done = fewstep(
        "sample", run / "student-4", "--cond", "0,3-4", "--w", 2, "--scale", 2, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sample.png") as image:
        assert image.size[0] > 3 * 16
        assert '"w": 2.0' in image.info["fewstep"]


def test_evaluate_prints_and_keeps_a_table(run: Path, tmp_path: Path) -> None:
    def call() -> subprocess.CompletedProcess[str]:
        return fewstep(
            *("evaluate", run / "student-4", run / "student-2", "--teacher", run / "teacher"),
            *("--reference-steps", 8, "--w", "0,1", "--samples", 40, "--out", "e"),
            cwd=tmp_path,
        )

    done = call()
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert [(r["model"], r["w"], r["evaluations"]) for r in rows] == [
        ("student-4", 0.0, 4),
        ("student-4", 1.0, 4),
        ("student-2", 0.0, 2),
        ("student-2", 1.0, 2),
    ]
    positive = ("rms_to_teacher", "fd_to_teacher", "fd_digits")
    assert all(r[key] > 0 for r in rows for key in positive)
    assert "fd_to_teacher has a floor" in done.stdout
    with closing(sqlite3.connect(tmp_path / "e" / "results.sqlite")) as db:
        kept = db.execute("SELECT model, w, samples, seed, weights_sha256 FROM cells").fetchall()
    assert len(kept) == 6  # the teacher's two are the reference
    assert {(m, w) for m, w, *_ in kept} == {
        (m, w) for m in ("teacher", "student-4", "student-2") for w in (0.0, 1.0)
    }
    assert all(samples == 40 and seed == 0 and len(sha) == 64 for *_, samples, seed, sha in kept)
    for name in ("table.md", "plots/score.svg", "plots/fd-to-teacher-w1.svg", "sheets/w0.png"):
        assert (tmp_path / "e" / name).stat().st_size > 100
    with (tmp_path / "e" / "table.csv").open() as file:
        assert [float(r["fd_digits"]) for r in csv.DictReader(file)] == [
            r["fd_digits"] for r in rows
        ]
    again = call()
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == rows
    assert "student-4" not in again.stderr.replace("evaluation.json", "")


def test_demo_of_a_tiny_recipe_ends_in_a_report(recipe: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shutil.copytree(run, out)
    from fewstep.recipes.config import load_recipe
    from fewstep.recipes.study import run_study

    page = run_study(load_recipe(str(recipe)), out, "cpu", lambda line: None, progress=False)
    assert page == out / "report.html"
    report = json.loads((out / "report.json").read_text())
    keys = {"model", "sampler", "steps", "evaluations", "w", "fd_digits", "score", "accuracy"}
    keys |= {"variance", "nearest", "rms_to_teacher", "fd_to_teacher", "seconds_per_image"}
    keys |= {"kd_digits", "precision", "recall"}
    assert all(set(row) == keys for row in report["rows"])
    cells = {(r["model"], r["sampler"], r["steps"], r["w"]) for r in report["rows"]}
    expected = {("held-out", None, None, None)}
    for w in (0.0, 1.0):
        expected |= {("teacher", "deterministic", n, w) for n in (8, 4, 2)}
        expected |= {("teacher", s, 4, w) for s in ("dpm-solver++", "unipc")}
        expected |= {("stage-one", "deterministic", 4, w), ("student-4", "stochastic", 4, w)}
        expected |= {(f"student-{n}", "deterministic", n, w) for n in (4, 2)}
    assert cells == expected
    html = page.read_text()
    assert "<svg" in html
    assert 'src="http' not in html
    assert json.loads((out / "student-4" / "fewstep.json").read_text())["figures"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("distill.lrr=1e-3", ("distill.lrr", "'lr'")),
        ("teacher.updates=0", ("teacher.updates", "greater than or equal to 1")),
        ("teacher.lr=fast", ("teacher.lr", "number")),
        ("distill.w=[4, 0]", ("distill", "low <= high")),
        ("evaluate.w=[9]", ("evaluate.w", "[0, 4]")),
        ("nonsense", ("--set", "key.key=value")),
        ("distill.stages.7.updates=3", ("distill.stages.7", "no place in a list")),
        ("network.groups=7", ("network", "divide")),
    ],
)
def test_a_wrong_setting_is_named(
    recipe: Path, tmp_path: Path, setting: str, says: tuple[str, ...]
) -> None:
    done = fewstep("train", recipe, "--set", setting, "--out", "r", cwd=tmp_path)
    one_line_error(done, *says)
    assert not (tmp_path / "r").exists()


def test_numbers_in_scientific_notation_are_numbers(recipe: Path, tmp_path: Path) -> None:
    done = fewstep("distill", recipe, "--plan", "--set", "distill.lr=3e-4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # match: 10 x 16 examples x (2 teacher passes + 3); halvings: 10 x 16 x (2 + 3).
    *_, total, teacher, report, _, time = done.stdout.splitlines()
    assert "4,000" in total
    assert teacher.startswith("training the teacher")
    assert "4,720" in report  # 40 samples of 118 evaluations
    assert re.search(r"\d s$", total)
    assert "estimate" in time


def test_an_unknown_recipe_is_named(tmp_path: Path) -> None:
    one_line_error(fewstep("train", "digit", cwd=tmp_path), "digit", "Did you mean 'digits'?")


def test_a_run_with_other_settings_is_refused(run: Path, recipe: Path) -> None:
    done = fewstep("train", recipe, "--set", "teacher.lr=1e-4", "--out", run, cwd=run.parent)
    one_line_error(done, "teacher.lr", "--out")


def test_distill_without_a_teacher(recipe: Path, tmp_path: Path) -> None:
    one_line_error(fewstep("distill", recipe, "--out", "r", cwd=tmp_path), "fewstep train")


def test_distill_from_a_teacher_made_elsewhere(run: Path, recipe: Path, tmp_path: Path) -> None:
    only = ("--set", "distill.stages=[{parent: teacher, updates: 5}]")
    done = fewstep(
        "distill", recipe, "--teacher", run / "teacher", "--out", "r", *only, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    mine, theirs = (
        json.loads((p / "fewstep.json").read_text())
        for p in (tmp_path / "r" / "teacher", run / "teacher")
    )
    assert mine["weights_sha256"] == theirs["weights_sha256"]
    wrong = fewstep("distill", recipe, "--teacher", run / "student-4", "--out", "s", cwd=tmp_path)
    one_line_error(wrong, "not a teacher")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--w", "5"), ("w = 5", "[0, 4]")),
        (("--steps", "3"), ("steps = 3", "made for 4")),
        (("--cond", "0,10,11"), ("class 11", "0 to 9")),
        (("--cond", "cat"), ("--cond", "whole numbers")),
        (("--sampler", "heun"), ("heun", "deterministic")),
        (("--sampler", "ddim"), ("ddim", "deterministic")),
        (("--guidance-scale", "7.5"), ("--w 6.5",)),
        (("--out", "sheet.jpg"), ("PNG",)),
    ],
)
def test_sample_refuses_what_the_model_was_not_made_for(
    run: Path, tmp_path: Path, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    one_line_error(fewstep("sample", run / "student-4", *options, cwd=tmp_path), *says)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["table.csv", "evaluation.json", "plots", "sheets"])
def test_evaluate_replaces_no_file_of_the_users(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    done = fewstep("evaluate", run / "student-4", "--samples", 4, "--out", "mine", cwd=tmp_path)
    one_line_error(done, f"without a {name}", "Choose another folder")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == [name]
    assert (tmp_path / "mine" / name).read_text() == "mine"


@pytest.mark.parametrize("command", ["evaluate", "roundtrip"])
def test_results_go_into_a_folder(run: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "notes.yaml").write_text("mine")
    done = fewstep(
        *(command, run / "student-4", "--teacher", run / "teacher", "--out", "notes.yaml"),
        cwd=tmp_path,
    )
    one_line_error(done, "must be a folder, got the file notes.yaml")
    assert (tmp_path / "notes.yaml").read_text() == "mine"


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_seeds_have_bounds(run: Path, tmp_path: Path, command: str) -> None:
    done = fewstep(command, run / "student-4", "--seed", 2**70, cwd=tmp_path)
    assert done.returncode == 2
    assert "Invalid value for '--seed'" in done.stderr


def test_a_device_is_checked_before_the_images_are_read(recipe: Path, tmp_path: Path) -> None:
    for command in (("features", "train", "digits", "--out", "f"), ("train", recipe)):
        done = fewstep(*command, "--device", "x", cwd=tmp_path)
        one_line_error(done, 'device must be "cpu", "cuda" or "cuda:N"')
    done = fewstep("features", "train", "digits", "--out", "f", "--held-out", 0, cwd=tmp_path)
    assert "unforeseen" not in done.stderr


def test_a_folder_that_is_no_model(run: Path, tmp_path: Path) -> None:
    one_line_error(fewstep("show", tmp_path, cwd=tmp_path), "not a fewstep model")
    one_line_error(fewstep("sample", run, cwd=tmp_path), "There are models in it", "student-4")


def test_a_file_cut_short(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "student-4", tmp_path / "m")
    weights = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    one_line_error(fewstep("sample", "m", cwd=tmp_path), "cut short")


def test_usage_errors_exit_with_two(tmp_path: Path) -> None:
    done = fewstep("sample", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full when a file is flushed to it."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        done = fewstep("train", recipe, "--out", "r", cwd=tmp_path)
    one_line_error(done, "o space left")
    assert not [p for p in (tmp_path / "r").rglob("*") if p.is_file()]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_ctrl_c_stops_in_one_line_and_the_same_command_goes_on(
    recipe: Path, tmp_path: Path, forks: Forks, number: str
) -> None:
    arguments = ("train", recipe, "--out", "r")
    stopped = forks.run("-c", SIGNALLED, number, "12", *arguments, cwd=tmp_path)
    assert stopped.returncode == 130, stopped.stderr
    one_line_error(stopped, "update 13 of 30", "same command")
    assert not (tmp_path / "r" / "teacher").exists()
    again = fewstep(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "r" / "teacher" / "fewstep.json").is_file()


def test_classes_may_be_given_by_name() -> None:
    from fewstep.cli.sample import class_ids
    from fewstep.errors import RangeError

    names = ("cat", "dog", "sea lion")
    assert class_ids("dog, sea lion,cat", names) == [1, 2, 0]
    assert class_ids("0-2,1", names) == [0, 1, 2, 1]
    with pytest.raises(RangeError, match="Did you mean 'dog'"):
        class_ids("dogs", names)


def test_ones_own_images_go_all_the_way_to_a_table(tmp_path: Path) -> None:
    shade = np.random.default_rng(0)
    for i in range(80):
        path = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = shade.integers(0, 100, (8, 8, 3)) + 150 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    recipe = {
        "name": "pets",
        "data": {"name": "pets", "held_out": 0.2, "flip": True},
        "network": {"channels": [8], "groups": 4, "w_dim": 32},
        "teacher": {"updates": 4, "batch_size": 8},
        "distill": {"batch_size": 8, "updates": 2, "stages": [{"parent": "teacher", "steps": 2}]},
        "evaluate": {"w": [1], "samples": 8, "reference_steps": 4, "teacher_steps": [2],
                     "features": "look", "solver_steps": [2]},
    }  # fmt: skip
    (tmp_path / "pets.yaml").write_text(yaml.safe_dump(recipe))
    environment = {"FEWSTEP_CACHE": str(tmp_path / "cache")}

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return fewstep(*arguments, cwd=tmp_path, **environment)

    learn = ("features", "train", "pets", "--out", "look", "--held-out", 0.2, "--epochs", 6)
    done = call(*learn)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[2]) > 0.9
    assert "is not empty" in call(*learn).stderr
    done = call("report", "pets.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["rows"]
    assert {r["sampler"] for r in rows} == {None, "deterministic", "dpm-solver++", "unipc"}
    assert all("fd_look" in r and r["accuracy"] is not None for r in rows)
    student = tmp_path / "run" / "student-2"
    flags = ("--features", "look", "--w", "1", "--samples", 8, "--out", "e")
    done = call("evaluate", student, "--reference", "pets", *flags)
    assert done.returncode == 0, done.stderr
    assert "other images" not in done.stderr
    mine = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    theirs = [r for r in rows if r["model"] == "student-2"]
    assert mine[0]["fd_look"] == theirs[0]["fd_look"]
    lost = fewstep("evaluate", student, *flags, cwd=tmp_path / "cache", **environment)
    assert lost.returncode == 1
    assert "--reference path/to/pets" in lost.stderr


def test_a_pair_and_a_plain_w_input(recipe: Path, run: Path, tmp_path: Path) -> None:
    settings = [
        "distill.stages=[{parent: teacher, steps: 4, pair: true, updates: 4},"
        " {parent: pair-4, steps: 2, pair: true, updates: 4}, {parent: teacher, updates: 4}]",
        "network.w_band=null",
        "evaluate.stage_one_steps=[4]",
    ]
    flags = [part for s in settings for part in ("--set", s)]
    done = fewstep(
        "report", recipe, "--teacher", run / "teacher", *flags, "--out", "pairs", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "pairs" / "report.json").read_text())["rows"]
    costs = {(r["model"], r["w"]): r["evaluations"] for r in rows}
    assert (costs["pair-4", 1.0], costs["pair-4", 0.0], costs["pair-2", 1.0]) == (8, 4, 4)
    assert "two passes a step" in fewstep("show", "pairs/pair-4", cwd=tmp_path).stdout
    card = json.loads((tmp_path / "pairs" / "stage-one" / "fewstep.json").read_text())
    assert card["w_band"] is None
    weight = load_file(tmp_path / "pairs/stage-one/unet/diffusion_pytorch_model.safetensors")
    used = weight["time_embedding.cond_proj.weight"].abs().sum(dim=0) > 0
    assert int(used.sum()) > 16  # the slow quarter alone would be 8
    wrong = fewstep(
        "report", recipe, "--teacher", run / "teacher", "--out", "wrong", "--set",
        "distill.stages=[{parent: teacher, steps: 4, pair: true, updates: 2},"
        " {parent: pair-4, steps: 2, updates: 2}]", cwd=tmp_path,
    )  # fmt: skip
    one_line_error(wrong, "student-2", "pair-4", "a pair starts from")


def test_training_streams_shards_and_goes_on_exactly(tmp_path: Path) -> None:
    encoded = []
    for i in range(120):
        out = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), 2 * i, np.uint8)).save(out, "PNG")
        encoded.append(out.getvalue())
    table = pa.table({"image": encoded, "label": [i % 3 for i in range(120)]})
    pq.write_table(table, tmp_path / "shard.parquet", row_group_size=20)
    recipe = {
        "name": "stream",
        "data": {"name": "shard.parquet", "size": 8, "stream": True, "flip": True},
        "network": {"channels": [8], "groups": 4},
        "teacher": {"updates": 12, "batch_size": 16, "checkpoint_every": 4},
    }
    (tmp_path / "stream.yaml").write_text(yaml.safe_dump(recipe))
    weights = []
    for name in ("whole", "again"):
        done = fewstep("train", "stream.yaml", "--out", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        weights.append(tmp_path / name / "teacher/unet/diffusion_pytorch_model.safetensors")
        if name == "again":
            # As if it had been killed after update 8: no model, and one checkpoint fewer.
            shutil.rmtree(tmp_path / name / "teacher")
            kept = tmp_path / name / "training" / "teacher" / "checkpoints"
            shutil.rmtree(kept / "00000012")
            (kept / "latest.json").write_text(json.dumps({"update": 8}))
            done = fewstep("train", "stream.yaml", "--out", name, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_plan_may_grow_where_it_was_begun(run: Path, recipe: Path, tmp_path: Path) -> None:
    one = ("--teacher", run / "teacher", "--out", "r", "--set")
    stages = "distill.stages=[{parent: teacher, updates: 5}"
    assert fewstep("distill", recipe, *one, f"{stages}]", cwd=tmp_path).returncode == 0
    more = f"{stages}, {{parent: stage-one, steps: 2, updates: 3}}]"
    grown = fewstep("distill", recipe, *one, more, cwd=tmp_path)
    assert grown.returncode == 0, grown.stderr
    assert "stage-one: already made" in grown.stderr
    assert (tmp_path / "r" / "student-2" / "fewstep.json").is_file()
    changed = fewstep("distill", recipe, *one, more.replace("5", "6"), cwd=tmp_path)
    one_line_error(changed, "distill.stages")
    beside = ("--teacher", tmp_path / "r" / "stage-one", "--out", "s", "--set")
    only = "distill.stages=[{parent: stage-one, steps: 2, updates: 3, direction: encode}]"
    encoder = fewstep("distill", recipe, *beside, only, cwd=tmp_path)
    assert encoder.returncode == 0, encoder.stderr
    card = json.loads((tmp_path / "s" / "encoder-2" / "fewstep.json").read_text())
    assert (card["stage"]["direction"], [p["name"] for p in card["parents"]]) == (
        "encode",
        ["stage-one", "teacher"],
    )
