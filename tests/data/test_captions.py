"""Captions: templates with class names, columns of text, prompts alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from fewstep.data import DataConfig, Images, Prompts, Shards, caption, captions_of
from fewstep.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def png(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("template", "name", "said"),
    [
        ("a photo of a {}", "cat", "a photo of a cat"),
        ("a photo of a {}", "airplane", "a photo of an airplane"),
        ("A {} at sea", "Ship", "A Ship at sea"),
        ("{}", "two dogs on a beach", "two dogs on a beach"),
        ("one {}.", "great_grey_owl", "one great grey owl."),
    ],
)
def test_a_caption_is_its_template_with_the_name(template: str, name: str, said: str) -> None:
    assert caption(template, name) == said


def test_an_example_keeps_its_template_and_all_are_used() -> None:
    templates = ["a {}", "one {}", "{}"]
    index = torch.arange(300)
    said = captions_of(templates, ["cat"] * 300, index)
    back = captions_of(templates, ["cat"] * 300, index.flip(0))
    assert said == back[::-1]
    counts = [said.count(caption(t, "cat")) for t in templates]
    assert sum(counts) == 300
    assert min(counts) > 70


@pytest.mark.parametrize("template", ["a cat", "{} and {}"])
def test_a_template_without_its_place_is_refused(template: str) -> None:
    with pytest.raises(ValidationError, match=r"must have one \{\}"):
        DataConfig(captions=(template,))


def test_a_column_of_captions_is_read_as_one_class_each(tmp_path: Path) -> None:
    texts = ["a red ball", "a blue ball", "a red ball"]
    rows = {"image": [{"bytes": png(k), "path": None} for k in range(3)], "text": texts}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    path = tmp_path / "captioned.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    for kind in (Images, Shards):
        data = kind(DataConfig(name=str(path), size=8, held_out=0.0))
        _, label = data.batch(torch.arange(3))
        assert [data.class_names[k] for k in label.tolist()] == texts


def test_a_folder_with_metadata_has_captions(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    texts = ["a hill", "a lake"]
    for k in range(2):
        (folder / f"{k}.png").write_bytes(png(k))
    lines = [json.dumps({"file_name": f"{k}.png", "text": texts[k]}) for k in range(2)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    data = Images(DataConfig(name=str(folder), held_out=0.0))
    _, label = data.batch(torch.arange(2))
    assert [data.class_names[k] for k in label.tolist()] == texts


def test_the_column_can_be_named_and_a_wrong_name_is_said(tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": png(k), "path": None} for k in range(2)],
        "label": ["x", "y"],
        "alt": ["one thing", "another thing"],
    }
    path = tmp_path / "two.parquet"
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Value("string"),
            "alt": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    named = Images(DataConfig(name=str(path), label="alt", held_out=0.0))
    assert named.class_names == ("another thing", "one thing")
    assert Images(DataConfig(name=str(path), held_out=0.0)).class_names == ("x", "y")
    with pytest.raises(DataError, match="no column of the name 'altt'; its columns are image"):
        Images(DataConfig(name=str(path), label="altt"))


def test_prompts_alone(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  two dogs \n")
    prompts = Prompts(path)
    assert prompts.texts(torch.tensor([1, 0])) == ["two dogs", "a cat"]
    path.write_text("a cat\ntwo dogs")
    assert Prompts(path).content_hash() == prompts.content_hash()
    path.write_text(" \n")
    with pytest.raises(DataError, match="is empty"):
        Prompts(path)
    with pytest.raises(DataError, match="cannot be read as text"):
        Prompts(tmp_path / "none.txt")
