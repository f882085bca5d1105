"""ONNX exports, drawn with where neither torch nor fewstep can be imported."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tests.models.conftest import card
from tests.models.pipelines import xl_folder
from tests.models.test_export_single import with_network
from tests.models.test_families import FOUR, live
from torch import Tensor

import fewstep
from fewstep.distill.plan import Stage
from fewstep.errors import FewstepError, MissingError, RangeError
from fewstep.folders import encode_prompts, load, to_images
from fewstep.folders.export import onnx as export_onnx
from fewstep.models import Model, UNetConfig, build_unet, student_of, with_w_input
from fewstep.models.clocks.betas import PREDICTIONS, BetaClock
from fewstep.models.clocks.flow import FlowClock

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_sampler.py"
ALONE = (
    "import runpy, sys; sys.modules.update(torch=None, fewstep=None); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def draw(folder: Path, **options: object) -> subprocess.CompletedProcess[str]:
    settings = [f"--{key}={value}" for key, value in options.items()]
    return subprocess.run(
        [sys.executable, "-c", ALONE, EXAMPLE, folder, *settings],
        capture_output=True, text=True, check=False, cwd=folder, timeout=120,
    )  # fmt: skip


def noise(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))


def class_student() -> Model:
    """A four-step student of one resolution, since the time of an export is that of the nodes."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        config = UNetConfig(channels=(8,), groups=4, w_dim=32)
        teacher = Model(build_unet(config, (1, 8, 8), 10), card())
    network = with_w_input(teacher, 32)
    weight = network.time_embedding.cond_proj.weight
    weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return Model(network, card(stage=FOUR, w_range=(0.0, 4.0))).eval()


def small_xl(path: Path) -> Path:
    """An SDXL folder with a network of one resolution."""
    with_network(
        xl_folder(path), block_out_channels=(8,), transformer_layers_per_block=(1,),
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    return path


def settings_in(folder: Path) -> dict[str, Any]:
    model = onnx.load(folder / "model.onnx")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    return {p.key: json.loads(p.value) for p in model.metadata_props}


def test_a_class_model_draws_without_torch(tmp_path: Path) -> None:
    student = class_student()
    folder, z = tmp_path / "onnx", noise(1, 8, 8)
    (line,) = fewstep.export(student, folder, to="onnx")
    assert "inputs sample, timestep, w, class_labels;" in line
    assert [p.name for p in folder.iterdir()] == ["model.onnx"]
    settings = settings_in(folder)
    assert settings["w_range"] == [0, 4]
    assert settings["grids"]["4"]["timesteps"] == [1023, 767, 511, 255]
    np.save(tmp_path / "z.npy", z.numpy())
    given = {"classes": "3,0,7", "noise": tmp_path / "z.npy", "out": tmp_path / "x.npy"}
    done = draw(folder, w=2.5, **given)
    assert done.returncode == 0, done.stderr
    wanted, other = (
        fewstep.sample(student, torch.tensor([3, 0, 7]), w=w, z=z).numpy() for w in (2.5, 0.0)
    )
    assert float(np.abs(np.load(tmp_path / "x.npy") - wanted).max()) < 1e-4
    assert float(np.abs(other - wanted).max()) > 1e-2
    done = draw(folder, w=1, classes="0-9", columns=5, out=tmp_path / "sheet.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (40, 16)
    assert "--w must lie in [0, 4]" in draw(folder, w=5).stderr


def test_a_model_of_latents_with_one_w_draws_without_torch(tmp_path: Path) -> None:
    xl = small_xl(tmp_path / "xl")
    student, folder, z = live(xl), tmp_path / "onnx", noise(4, 8, 8)
    lines = fewstep.export(student, folder, to="onnx", w=2.5)
    assert "sample, timestep, text_embeds, encoder_hidden_states, time_ids;" in lines[0]
    assert lines[1].startswith("decoder.onnx: images within")
    settings = settings_in(folder)
    assert (settings["w_range"], settings["w"], settings["latents"]["scale"]) == (None, 2.5, [2.0])
    cond = encode_prompts(xl, ["a cat", "two dogs", ""])
    assert isinstance(cond, dict)
    names = {"text": "encoder_hidden_states", "pooled": "text_embeds", "time_ids": "time_ids"}
    np.savez(tmp_path / "c.npz", **{names[k]: t.numpy() for k, t in cond.items()})
    np.save(tmp_path / "z.npy", z.numpy())
    given = {"conditions": tmp_path / "c.npz", "noise": tmp_path / "z.npy"}
    done = draw(folder, **given, out=tmp_path / "x.npy")
    assert done.returncode == 0, done.stderr
    wanted = to_images(student, fewstep.sample(student, cond, w=2.5, z=z))
    found = np.load(tmp_path / "x.npy").clip(-1, 1)
    assert float(np.abs(found - wanted.numpy()).max()) < 1e-4
    assert "w = 2.5 is fixed in the weights" in draw(folder, **given, w=1).stderr


def test_the_example_converts_what_networks_predict_as_the_clocks_do() -> None:
    example = runpy.run_path(str(EXAMPLE))
    z, out = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    betas = torch.linspace(1e-4, 0.02, 1000)
    clocks = [FlowClock(3.0), *(BetaClock.from_betas(betas, p) for p in PREDICTIONS)]
    for clock in clocks:
        phi = torch.full((2,), 0.9)
        angle, prediction = float(phi[0]), clock.prediction
        given = z.numpy() * example["scale_of"](prediction, angle)
        np.testing.assert_allclose(given, clock.state(z, phi).numpy(), rtol=1e-5)
        v = example["velocity"](prediction, out.numpy(), z.numpy(), angle)
        np.testing.assert_allclose(v, clock.velocity(out, z, phi).numpy(), rtol=1e-4, atol=1e-5)


def test_what_does_not_become_onnx(
    student: Model, sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load(sd)
    pair = student_of(teacher, Stage("p", "teacher", steps=4, pair=True), (0.0, 4.0))
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (teacher, {}, "guided by two passes"),
        (pair, {}, "guided by two passes"),
        (student_of(teacher, FOUR, (0.0, 4.0)), {"w": 9.0}, r"w must lie in \[0, 4\]"),
        (torch.nn.Linear(1, 1), {}, "does not come from a model folder"),
    ]
    for model, options, wrong in cases:
        with pytest.raises(FewstepError, match=wrong):
            fewstep.export(model, tmp_path / "out", to="onnx", **options)

    def fails(*_: object, **__: object) -> None:
        raise ValueError("aten::strange is\nnot supported")

    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", fails)
        with pytest.raises(RangeError, match=r"UNet2DConditionModel cannot be.*strange is not"):
            fewstep.export(student, tmp_path / "out", to="onnx")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingError, match=r'pip install -e "\.\[onnx\]"'):
            fewstep.export(student, tmp_path / "out", to="onnx")
    with monkeypatch.context() as patch:
        patch.setattr(export_onnx, "_write", lambda *_: None)
        patch.setattr(export_onnx, "_answer", lambda *_: np.full((3, 1, 8, 8), 9.0, np.float32))
        with pytest.raises(RangeError, match="must answer in onnxruntime as in torch"):
            fewstep.export(student, tmp_path / "out", to="onnx")
    assert not (tmp_path / "out").exists()
