"""The scripts of several chains on a GPU: their plans, what they record, and what they pack."""

from __future__ import annotations

import argparse
import json
import tarfile
import time
from pathlib import Path

import pytest
from benchmarks.gpu import chains
from benchmarks.gpu.chains import Plan, Step, pack, run_chain, unpack
from benchmarks.gpu.pixel_students import PixelStudents
from benchmarks.gpu.small_models import MODELS, SmallModels

from fewstep.recipes.config import load_recipe

WORK = Path("/work")


def made_by(step: Step) -> list[Path]:
    program, first, *others = step.command
    out = Path(others[others.index("--out") + 1]) if "--out" in others else Path(first)
    unfinished = out.with_name(out.name + "-unfinished")
    made = {
        "parts": [unfinished / "vae"],
        "features": [out / "features.json"],
        "train": [out / "teacher" / "fewstep.json"],
        "report": [out / "report.json"],
    }
    return made.get(program, [])


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("make", [SmallModels, PixelStudents])
def test_every_command_is_a_recipe_that_holds_and_waits_for_what_comes_before(
    make: type[Plan], tiny: bool
) -> None:
    plan = make(WORK, Path("images.parquet"), tiny=tiny)
    made = {plan.images("class"), plan.images("prompt")}
    for steps in plan.chains().values():
        for step in steps:
            assert {*step.needs} <= made
            made |= {*made_by(step)}
            program, name, *others = step.command
            if program in ("train", "distill", "report"):
                load_recipe(name, [b for a, b in zip(others, others[1:]) if a == "--set"])  # noqa: B905


def test_a_command_that_fails_is_recorded_and_ends_its_chain(tmp_path: Path) -> None:
    (tmp_path / "chains").mkdir()
    (tmp_path / "a").mkdir()
    steps = [
        Step(("copy", str(tmp_path / "a"), str(tmp_path / "b")), (tmp_path / "a",)),
        Step(("show", str(tmp_path / "nothing"))),
        Step(("copy", str(tmp_path / "a"), str(tmp_path / "c"))),
    ]
    run_chain("x", steps, tmp_path, time.time() + 60)
    record = json.loads((tmp_path / "chains" / "x.json").read_text())
    assert [row["state"] for row in record] == ["done", "failed: exit code 1"]
    assert (tmp_path / "b").is_dir()
    assert not (tmp_path / "c").exists()


def test_a_second_call_does_not_repeat_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "chains").mkdir()
    (tmp_path / "a").mkdir()
    steps = [Step(("copy", str(tmp_path / "a"), str(tmp_path / "b")))]
    run_chain("x", steps, tmp_path, time.time() + 60)
    (tmp_path / "b").rmdir()
    run_chain("x", [*steps, Step(("show", str(tmp_path / "c")))], tmp_path, time.time() + 60)
    record = json.loads((tmp_path / "chains" / "x.json").read_text())
    assert [row["state"] for row in record] == ["done", "failed: exit code 1"]
    assert not (tmp_path / "b").exists()


def test_what_never_comes_is_waited_for_until_the_time_is_up(tmp_path: Path) -> None:
    (tmp_path / "chains").mkdir()
    run_chain("x", [Step(("show", "x"), (tmp_path / "never",))], tmp_path, time.time())
    record = json.loads((tmp_path / "chains" / "x.json").read_text())
    assert record[0]["state"] == f"not begun: {tmp_path / 'never'}"


def test_what_is_finished_is_packed_if_it_is_small_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    first, second, *others = MODELS.items()
    for path, size in (
        (f"{first[1]}/unet/weights", 5),
        (f"{second[1]}/unet/weights", 3000),
        ("latent-small/report.json", 5),
        ("latent-small/sheets/w1.png", 5),
        ("cache/meta.json", 5),
    ):
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        # Numbers that do not compress.
        (work / path).write_bytes(bytes(k * k * 7919 // 64 % 256 for k in range(size)))
    out.mkdir()
    monkeypatch.setattr(chains, "LIMIT", 1000)
    plan = SmallModels(work, tmp_path / "data.parquet", tiny=False)
    packed = pack(argparse.Namespace(work=work, out=out, start=None), plan)
    assert packed["parts"] == packed[others[0][0]] == "not made"
    assert packed[second[0]].startswith("left out: ")
    assert {p.name for p in out.iterdir()} == {"reports.tar.gz", f"{first[0]}.tar.gz"}
    with tarfile.open(out / "reports.tar.gz") as archive:
        assert archive.getnames() == ["latent-small/report.json", "latent-small/sheets/w1.png"]


def test_a_call_begins_from_the_models_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    for folder in ("parts/flow-small-unfinished/vae", *MODELS.values(), "features"):
        (work / folder).mkdir(parents=True)
        (work / folder / "fewstep.json").write_text(folder)
    plan = SmallModels(work, tmp_path / "data.parquet", tiny=False)
    pack(argparse.Namespace(work=work, out=out, start=None), plan)
    later = tmp_path / "later"
    later.mkdir()
    unpack(out, later / "start", plan.given)
    unpack(out, later / "start", plan.given)  # is there, and left alone

    plan = SmallModels(later, tmp_path / "data.parquet", tiny=False)
    teacher = later / "start" / "flow-small" / "teacher"
    assert (teacher / "fewstep.json").read_text() == "flow-small/teacher"
    steps = plan.chains()
    assert "features" not in steps
    assert "flow-small-teacher" not in steps
    assert str(teacher) in steps["flow-small"][0].command

    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.setattr(chains, "TOTAL", 1)
    packed = pack(argparse.Namespace(work=work, out=again, start=out), plan)
    assert packed["flow-small-teacher"] == packed["parts"] == "not made"  # they were given
    assert packed["flow-small-student-4"].startswith("left out")
    assert {p.name for p in again.iterdir()} == set()


def test_what_cannot_be_run_is_refused_before_anything_begins(tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    with pytest.raises(SystemExit, match=r"--start must be a folder with one of parts.tar.gz"):
        unpack(tmp_path / "earlier", tmp_path / "start", SmallModels.given)
    assert not (tmp_path / "start").exists()
    given = argparse.Namespace(
        work=tmp_path / "work", out=tmp_path / "out", data=tmp_path / "few.parquet", start=None,
        minutes=1.0, chains=["lost"], tiny=True, commit="", in_turn=True,
    )  # fmt: skip
    with pytest.raises(SystemExit, match=r"--chains must be among features, .* got lost"):
        chains.drive(given, SmallModels)
    assert not (tmp_path / "out").exists()
