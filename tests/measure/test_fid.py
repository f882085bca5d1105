"""FID in one command, with a small network in place of the Inception, and its protocol."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from tests.recipes.making import image_folder, student, teacher
from torch import Tensor, nn

import fewstep
from fewstep.atomic import sha256
from fewstep.cli.main import main
from fewstep.data import DataConfig, open_dataset
from fewstep.errors import FolderError, ShapeError
from fewstep.folders import load
from fewstep.metrics import open_features
from fewstep.pixels import to_bytes


class Small(nn.Module):
    """Three numbers of an image of bytes: classes, or features where they are asked for."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        if return_features:
            return (img.float() / 255.0).mean(3).mean(2)
        return img.float().mean(3).mean(2).softmax(1)


@pytest.fixture
def inception(tmp_path: Path) -> Path:
    torch.jit.script(Small()).save(tmp_path / "inception.pt")
    return tmp_path / "inception.pt"


def features_of(x: Tensor) -> np.ndarray:
    return to_bytes(x).double().div(255).mean(dim=(2, 3)).numpy()


def fid_of(a: np.ndarray, b: np.ndarray) -> float:
    (ma, ca), (mb, cb) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b))
    root = scipy.linalg.sqrtm(ca @ cb).real
    return float(((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * root))


def test_fid_is_that_of_a_direct_computation(
    inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    pets, out = image_folder(tmp_path / "pets"), tmp_path / "out"
    model = student(teacher(), tmp_path / "student-4")
    command = ["evaluate", model, "--reference", pets, "--fid", inception, "--w", 1]
    command += ["--samples", 12, "--out", out, "--device", "cpu"]
    assert main([str(part) for part in command]) == 0
    report = json.loads((out / "fid.json").read_text())
    (row,) = report["fid"]

    drawn = fewstep.sample(load(model), [0, 1] * 6, w=1.0)
    splits = [open_dataset(DataConfig(name=str(pets)), split) for split in ("train", "held-out")]
    images = torch.cat([split.batch(torch.arange(len(split)))[0] for split in splits])
    assert len(images) == 24 > len(splits[0])  # held-out images too
    assert row["fid"] == pytest.approx(fid_of(features_of(drawn), features_of(images)), rel=1e-4)
    protocol = report["protocol"]
    assert (protocol["samples"], protocol["reference"]["images"]) == (12, 24)
    assert protocol["features"] == {"file": "inception.pt", "sha256": sha256(inception)}
    assert protocol["departs_from_published"] == [
        "12 samples instead of 50,000",
        "a TorchScript file that is not the published inception-2015-12-05.pt",
    ]

    # The reference is seen once, and a cell of other distances is another cell.
    (kept,) = (out / "reference").iterdir()
    written = kept.stat().st_mtime_ns
    command[command.index("--w") + 1] = 2
    assert main([str(part) for part in command]) == 0
    assert kept.stat().st_mtime_ns == written
    assert len(list((out / "cells").iterdir())) == 2


def test_what_is_no_inception_is_refused(
    inception: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "x", "--fid", str(tmp_path)]) == 1
    assert "--fid must be a file of the published Inception" in capsys.readouterr().err
    assert main(["evaluate", "x", "--fid", str(inception), "--features", "y"]) == 1
    assert "Use one of them" in capsys.readouterr().err
    features = open_features(inception)
    with pytest.raises(ShapeError, match="Inception takes"):
        features(torch.zeros(2, 2, 8, 8))
    torch.jit.script(nn.Identity()).save(tmp_path / "other.pt")
    with pytest.raises(ShapeError, match="must return features"):
        open_features(tmp_path / "other.pt")(torch.zeros(2, 3, 8, 8))
    data = inception.read_bytes()
    (tmp_path / "broken.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(FolderError, match=r"broken\.pt"):
        open_features(tmp_path / "broken.pt")
