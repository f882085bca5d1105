"""Pictures of runs and labelled sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from studies.common import StudyError

from fewstep.show.sheet import contact_sheet, save_sheet
from studies import picture


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_run_is_drawn_one_row_per_model(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.png"
    picture.main(["run", str(run_folder), str(out), "--w", "1", "--steps", "8"])
    drawn = pixels(out)
    assert drawn.shape == (253, 990, 3)
    dark = (drawn < 128).any(axis=2)
    # Seven rows of images to the right of 27 % of the width, each with a label to the left.
    rows = np.diff(dark[:, 275:].any(axis=1).astype(int))
    assert (rows == 1).sum() == 7
    assert dark[:, 10:260].any()
    again = tmp_path / "again.png"
    picture.main(["run", str(run_folder), str(again), "--w", "4", "--steps", "8"])
    assert (pixels(again)[:, 300:] != drawn[:, 300:]).any()


def test_the_labels_of_a_sheet_stand_beside_its_rows(tmp_path: Path) -> None:
    images = torch.stack([torch.full((3, 8, 8), v) for v in (-1.0, -1.0, 0.0, 0.0)])
    sheet, out = tmp_path / "sheet.png", tmp_path / "out.png"
    save_sheet(contact_sheet(images, 2, scale=4), sheet, {"rows": ["black", "grey"]})
    picture.main(["sheet", str(sheet), str(out)])
    drawn = pixels(out)
    height = drawn.shape[0]
    assert drawn.shape[1] == 792
    assert (drawn[height // 4, 300] == 0).all()
    assert abs(drawn[3 * height // 4, 300] - 128).max() <= 1
    for half in (drawn[: height // 2, :198], drawn[height // 2 :, :198]):
        assert (half < 128).any()  # a label


def test_an_image_without_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(StudyError, match=r"plain\.png has none"):
        picture.main(["sheet", str(path), str(tmp_path / "out.png")])
