"""The recipes in the guides are valid, and their code and commands run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.models.pipelines import dit_folder, sd_folder
from tests.models.test_single_teacher import checkpoint
from tests.studies.test_latents import write_images
from torch import Tensor

from fewstep.cli.main import main
from fewstep.core import angle
from fewstep.recipes.config import load_recipe
from fewstep.testing.exact import Gaussian

GUIDES = Path(__file__).parents[1] / "docs" / "guide"


def blocks(guide: str, language: str) -> list[str]:
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_a_network_of_ones_own_is_distilled_saved_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    code = blocks("extending", "python")
    assert len(code) == 4
    for block in code:
        exec(compile(block, "extending.md", "exec"), names)
    assert names["points"].shape == (3, 2)
    assert bool(torch.isfinite(names["points"]).all())
    check_wrappers(names)
    capsys.readouterr()
    assert main(["show", "my-student-4"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"parents +\S+ \([0-9a-f]{8}\)", shown)


def check_wrappers(names: dict[str, Any]) -> None:
    """The wrappers of flow and EDM networks have the exact velocity of a Gaussian."""
    exact = Gaussian(mean=0.5, std=0.4)
    z = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    phi = torch.linspace(0.1, 1.5, 16, dtype=torch.float64)
    cond, w = torch.zeros(16, dtype=torch.long), torch.zeros(16, dtype=torch.float64)
    v = exact(z, phi, cond, w)

    def flow(y: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        return angle.eps_from_v(z, v, phi) - angle.x_from_v(z, v, phi)

    def edm(y: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        assert torch.allclose(sigma, phi.tan())
        return angle.x_from_v(y * torch.cos(phi)[:, None], v, phi)

    for wrapper, network in (("Flow", flow), ("Edm", edm)):
        assert torch.allclose(names[wrapper](network)(z, phi, cond, w), v, atol=1e-9)


@pytest.fixture
def sd_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the folder and the checkpoint of the Stable Diffusion guide, and work beside them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    sd_folder(tmp_path / "sd")
    checkpoint(tmp_path / "sd", tmp_path / "dream.safetensors")


@pytest.mark.usefixtures("sd_files")
def test_stable_diffusion_and_dit_run_as_the_guides_say(tmp_path: Path) -> None:
    dit_folder(tmp_path / "dit")
    names: dict[str, Any] = {}
    code = blocks("stable-diffusion", "python")
    assert len(code) > 6
    for block in code:
        exec(compile(block, "stable-diffusion.md", "exec"), names)
    assert names["image"].size == (16, 16)
    for block in blocks("models", "python"):
        if '"dit' in block:
            exec(compile(block, "models.md", "exec"), names)
    assert bool(torch.isfinite(names["z"]).all())
    assert (tmp_path / "dit-4-at-4" / "fewstep.json").is_file()


@pytest.mark.parametrize("guide", ["recipes", "stable-diffusion"])
def test_recipes_that_a_guide_prints_whole_are_valid(guide: str, tmp_path: Path) -> None:
    whole = [b for b in blocks(guide, "yaml") if "name" in yaml.safe_load(b)]
    assert len(whole) == {"recipes": 2, "stable-diffusion": 1}[guide]
    for text in whole:
        path = tmp_path / "printed.yaml"
        path.write_text(text, encoding="utf-8")
        assert len(list(load_recipe(str(path)).distill.plan())) >= 2


def test_a_recipe_needs_a_name_and_data_alone(tmp_path: Path) -> None:
    path = tmp_path / "least.yaml"
    path.write_text("name: least\ndata: {name: digits}\n", encoding="utf-8")
    assert load_recipe(str(path)).name == "least"


SMALL = (
    *("network.channels=[8,8]", "network.groups=4", "network.time_dim=32", "network.head_dim=8"),
    *("network.attention=[false,false]", "teacher.updates=2", "teacher.batch_size=8"),
    *("distill.batch_size=8", "distill.updates=1", "evaluate.samples=12", "evaluate.w=[0,2]"),
    *("evaluate.reference_steps=4", "evaluate.teacher_steps=[4]", "evaluate.fd_to_teacher=false"),
)


FEW = {
    "evaluate": "--samples 12 --reference-steps 4 --no-fd-to-teacher",
    "features": "--epochs 1",
}


def run_commands(block: str, *settings: str) -> list[str]:
    """Run the fewstep and Python lines of a block in this process, tiny; return the commands.

    Variables are those of a shell. Settings go to the commands that take recipes.
    """
    names: dict[str, str] = {}
    ran = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = [re.sub(r"\$(\w+)", lambda m: names[m[1]], w) for w in words]
        if words and all(re.fullmatch(r"[A-Z]=\S+", w) for w in words):
            names.update(w.split("=", 1) for w in words)
        elif words[:2] == ["python", "-c"]:
            exec(compile(words[2], "guide", "exec"), {})
        elif words[:1] == ["fewstep"]:
            command = words[1]
            takes = command in ("train", "distill", "report", "cache")
            more = [p for s in (*SMALL, *settings) if takes for p in ("--set", s)]
            more += shlex.split(FEW.get(command, ""))
            assert main([*words[1:], *more]) == 0, line
            ran.append(command)
    return ran


def test_the_commands_of_the_guide_to_editing_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = "distill.stages=[{parent: teacher}]"
    run_commands("fewstep train digits\nfewstep distill digits", one)
    begin, draw, _prompts, _measure = blocks("editing", "bash")
    run_commands(begin, "distill.stages.4.updates=1", "distill.stages.5.updates=1")
    ran = run_commands(draw)
    assert {"encode", "decode", "transfer", "interpolate", "img2img", "inpaint"} <= set(ran)
    exec(compile("\n".join(blocks("editing", "python")), "editing.md", "exec"), {})
    pack, unpack, _ = next(b for b in blocks("runs", "bash") if "pack" in b).splitlines()
    assert run_commands(f"{pack}\n{unpack.replace('--out runs/digits', '--out runs/again')}")


def test_the_commands_of_the_guide_to_images_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    draws = np.random.default_rng(0)
    for k, name in enumerate(["cat", "dog", "cow"] * 20):
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (40, 36, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{k}.png")
    recipe, _buckets = blocks("images", "yaml")
    (tmp_path / "pets.yaml").write_text(recipe, encoding="utf-8")
    whole, small, draw = blocks("images", "bash")
    size = "data.size=16"
    assert run_commands(whole, size) == ["distill", "train", "distill", "report"]
    plan = shlex.split(small.replace("\\\n", " ").replace("fewstep report", "distill --plan"))
    assert main(plan) == 0
    assert run_commands(draw) == ["sample"]
    assert Image.open(tmp_path / "pets.png").size[0] > 16

    write_images(tmp_path / "train.parquet")
    (tmp_path / "runs" / "mine").symlink_to(tmp_path / "runs" / "pets")
    measure = blocks("evaluation", "bash")[0]
    assert run_commands(measure) == ["features", "evaluate", "evaluate"]


@pytest.mark.usefixtures("sd_files")
def test_the_commands_of_the_guides_to_stable_diffusion_and_export_run(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with (pictures / "metadata.jsonl").open("w") as rows:
        for k in range(40):
            pixels = draws.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).save(pictures / f"{k}.png")
            rows.write(json.dumps({"file_name": f"{k}.png", "text": f"a {k % 4} cat"}) + "\n")
    recipe = blocks("stable-diffusion", "yaml")[0]
    (tmp_path / "my-sd.yaml").write_text(recipe, encoding="utf-8")
    tiny = ("data.size=16", "network.w_features=one", "evaluate.batch_size=6", "evaluate.w=[2,7]")
    tiny += tuple(f"distill.stages.{k}.updates=1" for k in range(3))
    single, whole = blocks("stable-diffusion", "bash")
    assert run_commands(whole, *tiny) == ["cache", "distill", "report", "sample"]
    assert run_commands(f"{single.strip()} --out runs/dream", *tiny) == ["distill"]

    (tmp_path / "runs" / "mine").symlink_to(tmp_path / "runs" / "my-sd")
    (tmp_path / "teacher").symlink_to(tmp_path / "sd")
    for block in blocks("export", "bash")[:3]:
        assert run_commands(block) == ["export"]
    python = blocks("export", "python")
    shutil.rmtree(tmp_path / "student-4-at-6.5")
    for block in (b for b in python if "Flux" not in b):
        exec(compile(block, "export.md", "exec"), {})
    if importlib.util.find_spec("onnxruntime") is not None:
        assert run_commands(blocks("export", "bash")[3]) == ["export"]

    for name in ("student", "encoder"):
        (tmp_path / f"sd-{name}-4").symlink_to(tmp_path / "runs" / "my-sd" / "student-4")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    many, _transfer, edited = blocks("editing", "bash")[2].splitlines()
    assert run_commands(f"{many}\n{edited}") == ["sample", "img2img"]


def test_a_run_stops_and_goes_on_as_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stopped, repeated, _packed, tracked = blocks("runs", "bash")
    few = ("distill.stages=[{parent: teacher, steps: 2}]", "data.held_out=0.9")
    assert run_commands(tracked.replace(",wandb", ""), *few, "track.images_every=1") == ["train"]
    assert run_commands(stopped, *few) == ["report"]
    assert f"until {stopped.strip()}; do" in repeated
