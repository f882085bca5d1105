"""`fewstep export`: what is left on the disk, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.cli.inside import fewstep
from tests.cli.test_cli import one_line_error
from tests.models.pipelines import sd_folder

import fewstep as library
from fewstep.folders import card_in, save_model
from fewstep.folders.export import FORMATS
from fewstep.models import student_of
from fewstep.models.w_input import one_feature


def test_export_of_one_w(run: Path, tmp_path: Path) -> None:
    command = ("export", run / "student-4", "--to", "diffusers", "--w", 2, "--out", "at-2")
    done = fewstep(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "w = 2 is fixed in the weights" in done.stderr
    assert card_in(tmp_path / "at-2").w_range == (2.0, 2.0)
    library.load(tmp_path / "at-2")
    one_line_error(fewstep(*command, cwd=tmp_path), "pass --overwrite")
    done = fewstep(*command, "--overwrite", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("{run}/student-4", "--to", "diffusers"), "--w 2"),
        (("{run}/student-4", "--to", "diffusers", "--w", "9"), "[0, 4]"),
        (("{run}/student-4", "--to", "onyx"), "Did you mean 'onnx'"),
        (("{run}/teacher", "--to", "onnx"), "guided by two passes"),
        (("{run}/student-4", "--to", "single-file", "--w", "1"), "got one of unet-class"),
        (("{run}/student-4", "--to", "lora"), "got one of unet-class"),
        (("{run}/teacher", "--to", "diffusers", "--w", "1"), "got a teacher"),
        (("{run}", "--to", "diffusers", "--w", "1"), "is not a fewstep model"),
        (("{run}/nothing", "--to", "diffusers", "--w", "1"), "does not exist"),
    ],
)
def test_what_is_refused(run: Path, tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    done = fewstep("export", *(o.format(run=run) for o in options), "--out", "out", cwd=tmp_path)
    one_line_error(done, says)
    assert not (tmp_path / "out").exists()


def test_other_folders_are_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    command = ("export", run / "student-4", "--to", "diffusers", "--w", 2, "--out", "mine")
    one_line_error(fewstep(*command, cwd=tmp_path), "notes.txt")
    one_line_error(fewstep(*command, "--overwrite", cwd=tmp_path), "notes.txt")
    command = (*command[:-1], run / "student-4", "--overwrite")
    one_line_error(fewstep(*command, cwd=tmp_path), "must not replace what the command reads")


def test_help_names_every_format(tmp_path: Path) -> None:
    shown = fewstep("export", "--help", cwd=tmp_path).stdout
    assert all(f"{name}:" in shown for name in FORMATS)


def test_one_feature_of_w_in_a_recipe(recipe: Path, run: Path, tmp_path: Path) -> None:
    one = ("--set", "network.w_features=one", "--set", "distill.stages=[{parent: teacher}]")
    short = ("--set", "distill.updates=4", "--teacher", run / "teacher", "--out", "one")
    done = fewstep("distill", recipe, *one, *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "one" / "stage-one"
    assert card_in(folder).w_band == "one"
    weight = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    used = weight["time_embedding.cond_proj.weight"].abs().sum(dim=0) > 0
    assert used.nonzero().tolist() == [[one_feature(32)]]
    wrong = fewstep("distill", recipe, *one, "--set", "network.w_band=0.5", cwd=tmp_path)
    one_line_error(wrong, "w_band must be left out")


def test_export_as_lora_files(tmp_path: Path) -> None:
    teacher = sd_folder(tmp_path / "sd")
    stage = library.Stage("student-4", "teacher", steps=4)
    student = student_of(library.load(teacher), stage, (0.0, 12.0), w_band="one")
    student.network.conv_in.weight.data[0] += 1.0
    save_model(student, tmp_path / "student-4")
    command = ("export", "student-4", "--to", "lora", "--base", "sd", "--rank", 2, "--out", "lora")
    done = fewstep(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-3].startswith("student.safetensors: rank 2, ")
    assert lines[-3].endswith("% of the difference to the teacher left out; layers changed: 1")
    assert lines[-2].startswith("guidance.safetensors: its strength is sin(0.1 w)")
    assert lines[-1] == "lora: lora"
    one_line_error(fewstep(*command, cwd=tmp_path), "pass --overwrite")
    assert fewstep(*command, "--overwrite", cwd=tmp_path).returncode == 0
    wrong = fewstep(*command[:4], "--out", "other", cwd=tmp_path)
    one_line_error(wrong, "base is required, the teacher that student-4 was made from, sd")
    wrong = fewstep("export", "student-4", "--to", "lora", "--w", 1, "--out", "x", cwd=tmp_path)
    one_line_error(wrong, "w must be left out for the format lora")
