"""The study of two LoRA files: every form is measured, and full rank is the folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from tests.models.pipelines import sd_folder
from tests.studies.test_latents import write_images

from fewstep import Stage, load
from fewstep.data import DataConfig, open_dataset
from fewstep.folders import save_model
from fewstep.metrics import train_features
from fewstep.models import student_of
from fewstep.models.w_input import one_feature
from studies import two_files

WS = ("1", "4")


@pytest.mark.filterwarnings("ignore:.*tokens and are cut")
def test_full_rank_is_the_folder_and_a_low_one_is_further_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    images = write_images(tmp_path / "images.parquet")
    config = DataConfig(name=str(images), size=16, held_out=0.05)
    data = [open_dataset(config, split) for split in ("train", "held-out")]
    train_features(tmp_path / "features", *data, name="small", epochs=1, progress=False)
    teacher = sd_folder(tmp_path / "teacher")
    stage = Stage("student-2", "teacher", steps=2)
    student = student_of(load(teacher), stage, (0.0, 8.0), w_dim=32, w_band="one")
    draws = torch.Generator().manual_seed(0)
    for name, layer in student.network.named_modules():
        if name.endswith(("to_q", "to_v", "conv1")):
            layer.weight.data += 0.05 * torch.randn(layer.weight.shape, generator=draws)
    weight = student.network.time_embedding.cond_proj.weight.data
    weight[:, one_feature(32)] = torch.randn(len(weight), generator=draws)
    save_model(student, tmp_path / "student")

    folders = [str(tmp_path / name) for name in ("teacher", "student")]
    shared = [*folders, str(images), str(tmp_path / "features"), "--out", str(tmp_path / "out")]
    small = ["--samples", "20", "--steps", "4", "--size", "16", "--batch-size", "20"]
    two_files.main([*shared, *small, "--ranks", "1", "full", "--w", *WS])
    table = (tmp_path / "out" / "two-files.md").read_text()
    assert table in capsys.readouterr().out
    assert "fd_small, w = 1, 4" in table

    with (tmp_path / "out" / "two-files.csv").open() as file:
        rows = {(row["form"], row["w"]): row for row in csv.DictReader(file)}
    forms = ("folder", "two files, rank 1", "two files, rank full")
    assert set(rows) == {(form, f"{w}.0") for form in forms for w in WS}
    for w in WS:
        folder, low, full = (rows[form, f"{w}.0"] for form in forms)
        assert float(folder["to the folder"]) == 0.0
        assert float(full["to the folder"]) < 1e-5
        assert float(low["to the folder"]) > 1e-3
        assert float(full["left out"]) < 1e-6 < 0.3 < float(low["left out"])
        assert float(full["fd"]) == pytest.approx(float(folder["fd"]), rel=1e-3)
        assert float(folder["to the teacher"]) == pytest.approx(
            float(full["to the teacher"]), abs=1e-5
        )


def test_a_rank_is_a_number_or_full(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        two_files.main(["teacher", "student", "x.parquet", "features", "--ranks", "0"])
    assert "a rank must be a whole number above 0 or 'full', got '0'" in capsys.readouterr().err
