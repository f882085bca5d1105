"""Hub ids: what was fetched before is found offline, and nothing else is looked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from tests.models.pipelines import sd_folder

import fewstep
from fewstep.errors import FolderError
from fewstep.files.hub import local
from fewstep.folders import encode_prompts, load_vae


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in a hub cache, as a download leaves it."""
    cache = tmp_path / "hub"
    model = cache / "models--someone--small-sd"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    sd_folder(tmp_path / "made")
    shutil.copytree(tmp_path / "made", model / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    real = huggingface_hub.snapshot_download

    def there(name: str, **told: object) -> str:
        return real(name, cache_dir=cache, local_files_only=True, **told)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", there)
    return tmp_path / "made"


def test_a_model_that_was_fetched_is_found_by_its_id(cached: Path) -> None:
    by_id, by_path = fewstep.load("someone/small-sd"), fewstep.load(cached)
    cond = encode_prompts("someone/small-sd", ["a cat"])
    assert torch.equal(cond, encode_prompts(cached, ["a cat"]))
    a, b = (fewstep.sample(m, cond, w=2.0, steps=2, seed=1) for m in (by_id, by_path))
    assert torch.equal(a, b)
    assert load_vae("someone/small-sd").config.scaling_factor == 0.5


@pytest.mark.parametrize("name", [None, 3])
def test_what_is_no_path_is_refused(name: object) -> None:
    with pytest.raises(FolderError, match="must be a folder's path or the id"):
        fewstep.load(name)  # type: ignore[arg-type]


def test_a_model_that_is_not_there_is_said(cached: Path) -> None:
    with pytest.raises(FolderError, match="nobody/nothing is neither a folder here nor a model"):
        fewstep.load("nobody/nothing")


@pytest.mark.parametrize("name", ["no-such-folder", "here/missing", "a/b/c", "../x/y", "/x/y"])
def test_what_is_no_id_is_a_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert local(name) == Path(name)
    with pytest.raises(FolderError, match="does not exist"):
        fewstep.load(name)
