"""A consistency student's folder: stock pipelines draw with it, with LCMScheduler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.pipelines import draw_apart, sd_folder, w_student
from torch import Tensor

import fewstep
from fewstep.core.samplers import get_sampler, run
from fewstep.core.seed import Noise, generator
from fewstep.errors import FolderError, RangeError
from fewstep.folders import encode_prompts, load_model, save_model
from fewstep.models import Model, fold_w
from fewstep.models.pipeline import ClassConditionalPipeline

STAGE = fewstep.Stage(
    None, "teacher", kind="consistency-distillation", substeps=8, order=2, updates=1
)
PROMPTS = ["a cat", "two dogs", "rain"]


def jumping(student: Model) -> Model:
    student.card = student.card.model_copy(update={"stage": STAGE, "name": "consistency"})
    return student


def scheduler_in(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "LCMScheduler"
    found: dict[str, Any] = config
    return found


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_its_pipeline_draws_the_images_of_sample(student: Model, tmp_path: Path, n: int) -> None:
    card = save_model(jumping(student), tmp_path / "m")
    assert (card.steps, card.sampler) == (None, "consistency")
    loaded = load_model(tmp_path / "m")
    assert loaded.card == card
    assert scheduler_in(tmp_path / "m")["original_inference_steps"] == 1024
    ours = fewstep.sample(loaded, torch.arange(10), w=1.5, steps=n, seed=0)
    pipe = ClassConditionalPipeline.from_pretrained(tmp_path / "m")
    pipe.set_progress_bar_config(disable=True)
    streams = [generator("cpu", 0, "image", k) for k in range(10)]
    theirs = pipe(range(10), n, guidance_scale=2.5, generator=streams, output_type="pt").images
    assert float((ours - theirs).abs().max()) < 1e-4


class Drawn(Noise):
    """The noise that a stock pipeline draws for a whole batch from one generator."""

    def __init__(self, seed: int) -> None:
        self.draws = torch.Generator().manual_seed(seed)

    def like(self, z: Tensor) -> Tensor:
        return torch.randn(z.shape, generator=self.draws)


@pytest.fixture(scope="module")
def folders(sd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("consistency")
    zero_snr = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    parents = {"sd": sd, "v": sd_folder(path / "teacher", **zero_snr)}
    folders = {name: path / name for name in (*parents, "folded")}
    for name, parent in parents.items():
        save_model(jumping(w_student(parent)), folders[name])
    save_model(fold_w(load_model(folders["sd"]), 4.0), folders["folded"])
    return folders


def test_stock_pipelines_draw_its_images_without_fewstep(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    start = Noise(0, range(3)).draw((4, 8, 8), torch.float32, torch.device("cpu"))
    jobs = {}
    for name, folder in folders.items():
        assert scheduler_in(folder)["original_inference_steps"] == 1000
        for n in (1, 2, 4):
            call = {"prompt": PROMPTS, "num_inference_steps": n, "latents": start, "seed": n}
            scale = 1.0 if name == "folded" else 5.0
            asked = {**call, "guidance_scale": scale}
            pipeline = "StableDiffusionPipeline"
            jobs[f"{name} {n}"] = {"folder": str(folder), "pipeline": pipeline, "call": asked}
    results = draw_apart(jobs, tmp_path)
    for name, folder in folders.items():
        model, cond = load_model(folder), encode_prompts(folder, PROMPTS)
        for n in (1, 2, 4):
            w, grid = torch.full((3,), 4.0), model.traits.clock(n)
            z = run(get_sampler("consistency"), model, start, cond, w, grid, Drawn(n))
            got, largest = results[f"{name} {n}"], float(z.abs().max())
            assert got["batches"] == [3] * n
            assert float((z - got["latents"]).abs().max()) < 1e-4 * max(1.0, largest), (name, n)


def test_a_stock_folder_with_its_scheduler_is_not_taken_for_a_teacher(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["folded"], tmp_path / "m")
    (tmp_path / "m" / "fewstep.json").unlink()
    with pytest.raises(FolderError, match="LCMScheduler"):
        fewstep.load(tmp_path / "m")


def test_the_readme_says_how_it_is_drawn(folders: dict[str, Path]) -> None:
    text = (folders["sd"] / "README.md").read_text()
    assert "StableDiffusionPipeline.from_pretrained" in text
    assert "each a jump to clean and fresh noise for the next" in text


def test_it_takes_no_given_noise_to_decode(student: Model) -> None:
    model = jumping(student)
    z = torch.zeros(2, 1, 8, 8)
    with pytest.raises(RangeError, match="requires the deterministic sampler"):
        fewstep.decode(model, z, torch.tensor([0, 1]), w=0.0, steps=2)
