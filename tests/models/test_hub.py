"""Hub ids: what was fetched before is found offline, and nothing else is looked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import RepoUrl
from tests.cli.inside import fewstep as run_command
from tests.models.pipelines import sd_folder

import fewstep
from fewstep.errors import FolderError
from fewstep.files.hub import local
from fewstep.folders import encode_prompts, load_model, load_vae
from fewstep.models import Model


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

    def there(name: str, **options: object) -> str:
        return real(name, cache_dir=cache, local_files_only=True, **options)

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


class Hub:
    """A stand-in for huggingface_hub.HfApi that keeps repositories in a folder."""

    root = Path()
    refuses = False

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> RepoUrl:
        assert exist_ok
        repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"  # the owner of the token
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        (self.root / repo_id / "about").write_text(f"{private} {self.token}")
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.refuses:
            raise ConnectionError("the hub is away\nand more")
        (self.root / repo_id / "message").write_text(commit_message)
        shutil.copytree(folder_path, self.root / repo_id / "files", dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(Hub, "root", tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "secret")
    return Hub


def test_a_saved_model_is_pushed_when_asked(hub: type[Hub], teacher: Model, tmp_path: Path) -> None:
    fewstep.save_model(teacher, tmp_path / "plain")
    assert not hub.root.exists()
    fewstep.save_model(
        teacher, tmp_path / "model", push_to_hub=True, repo_id="me/model", private=True,
        token="mine", commit_message="First",
    )  # fmt: skip
    assert (hub.root / "me/model/about").read_text() == "True mine"
    assert (hub.root / "me/model/message").read_text() == "First"
    pushed = load_model(hub.root / "me/model/files").state_dict()
    assert all(torch.equal(pushed[k], v) for k, v in teacher.state_dict().items())
    fewstep.save_model(teacher, tmp_path / "model", push_to_hub=True)
    assert (hub.root / "me/model/about").read_text() == "None None"


def test_what_cannot_be_pushed_is_one_line(
    hub: type[Hub], teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FolderError, match="must be owner/name, got 'a/b/c'"):
        fewstep.save_model(teacher, tmp_path / "a", push_to_hub=True, repo_id="a/b/c")
    monkeypatch.setattr(Hub, "refuses", True)
    with pytest.raises(FolderError, match=r"is saved, and could not be pushed.*the hub is away[)]"):
        fewstep.save_model(teacher, tmp_path / "b", push_to_hub=True, repo_id="me/b")
    assert fewstep.load(tmp_path / "b") is not None
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(FolderError, match="needs a token of the hub, and there is none"):
        fewstep.save_model(teacher, tmp_path / "c", push_to_hub=True, repo_id="me/c")
    done = run_command("train", "digits", "--push-to-hub", "me/t", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "needs a token of the hub" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_commands_push_what_they_trained(hub: type[Hub], tmp_path: Path) -> None:
    settings = ("data.name=digits", "network.channels=[8, 16]", "network.groups=4",
                "teacher.updates=1", "teacher.batch_size=8", "distill.updates=1",
                "distill.batch_size=8", "distill.stages=[{parent: teacher}]")  # fmt: skip
    given = [part for s in settings for part in ("--set", s)]
    for command in ("train", "distill"):
        done = run_command(
            command, "digits", *given, "--out", "run", "--push-to-hub", "me/digits", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    assert "pushed: https://huggingface.co/me/digits-stage-one" in done.stderr
    assert sorted(p.name for p in (hub.root / "me").iterdir()) == ["digits", "digits-stage-one"]
    assert fewstep.load(hub.root / "me/digits-stage-one/files") is not None
