"""The networks that are measured, random weights in them: digits, CIFAR at 16x16, a small latent.

A `Subject` gives its teacher and student twice: as fewstep's denoisers, and as the bare call of the
stock network inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from measure import Setting
from torch import Tensor, nn

import fewstep
from fewstep.models import Card, Model, build_unet, with_w_input
from fewstep.models.clocks.native import CLOCK, timestep_from_phi
from fewstep.models.families.unet_class import UNET_CLASS
from fewstep.models.w_input import w_features
from fewstep.recipes.config import load_recipe

W_DIM, WORDS, WIDTH = 128, 77, 64


class Latent(nn.Module):
    """A denoiser of latents, told by cross attention: what Stable Diffusion is, but small."""

    passes = 1

    def __init__(self, network: UNet2DConditionModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor, phi: Tensor, cond: Tensor, w: Tensor) -> Tensor:
        """Return v (B, C, H, W) for words cond (B, WORDS, WIDTH)."""
        dim = self.network.config.time_cond_proj_dim
        features = None if dim is None else w_features(w, dim).to(z.dtype)
        out: Tensor = self.network(
            z, timestep_from_phi(phi), cond, timestep_cond=features, return_dict=False
        )[0]
        return out


@dataclass(frozen=True)
class Subject:
    """A teacher, a student that is told w, and what they are asked.

    Attributes:
        batch: examples of an update.
        teacher, student: denoisers in evaluation mode, float32, on the device.
        x, cond, null_cond: data on the device, `batch` of them, and "draw anything".
    """

    name: str
    batch: int
    teacher: Any
    student: Any
    x: Tensor
    cond: Tensor
    null_cond: Tensor

    def fresh(self) -> Any:
        """Return a copy of the student, to be trained."""
        return copy.deepcopy(self.student).train()

    def call(
        self, model: Any, z: Tensor, t: Tensor, cond: Tensor, features: Tensor | None = None
    ) -> Tensor:
        """Return the stock network's answer, at timesteps t (B,)."""
        return bare(model.network, z, t, cond, features)


def bare(
    unet: UNet2DConditionModel, z: Tensor, t: Tensor, cond: Tensor, features: Tensor | None
) -> Tensor:
    """Return the answer of a stock network told by class ids or by cross attention."""
    words, ids = (cond, None) if cond.is_floating_point() else (None, cond)
    out: Tensor = unet(z, t, words, class_labels=ids, timestep_cond=features, return_dict=False)[0]
    return out


def classes(
    recipe_name: str, batch: int | None = None, *, channels: tuple[int, ...] | None = None
) -> Callable[[Setting], Subject]:
    """Return what makes the subject of a recipe. channels: another size of its network."""

    def make(setting: Setting) -> Subject:
        recipe = load_recipe(recipe_name)
        shape = (1, 8, 8) if recipe.data.size is None else (3, recipe.data.size, recipe.data.size)
        network = recipe.network.model_copy(
            update={"channels": channels or recipe.network.channels}
        )
        card = Card(
            fewstep=fewstep.__version__, family=UNET_CLASS.name, name="bench",
            clock=CLOCK, shape=shape, num_classes=10, null_class=10,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            teacher = Model(build_unet(network, shape, 10), card).eval().to(setting.device)
        student = Model(with_w_input(teacher, network.w_dim), card).eval()
        size = batch or recipe.distill.batch_size
        return Subject(
            recipe_name, size, teacher, student, _images((size, *shape), setting),
            (torch.arange(size) % 10).to(setting.device), torch.tensor([10], device=setting.device),
        )  # fmt: skip

    return make


def latent(setting: Setting, channels: tuple[int, int] = (32, 64), batch: int = 16) -> Subject:
    """Return 4x16x16 latents under 77 words, two levels of channels, attention at both."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": channels,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        teacher = UNet2DConditionModel(**config).eval()
        student = UNet2DConditionModel(**config, time_cond_proj_dim=W_DIM).eval()
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert missing == ["time_embedding.cond_proj.weight"]
    assert not unexpected
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    device = setting.device
    drawn = torch.Generator().manual_seed(1)
    words = torch.randn(batch, WORDS, WIDTH, generator=drawn).to(device)
    return Subject(
        "latent", batch, Latent(teacher).to(device), Latent(student).to(device),
        _images((batch, 4, 16, 16), setting), words, torch.zeros(1, WORDS, WIDTH, device=device),
    )  # fmt: skip


SUBJECTS: dict[str, Callable[[Setting], Subject]] = {
    "digits": classes("digits"),
    "cifar10-small": classes("cifar10-small"),
    "latent": latent,
}


def _images(shape: tuple[int, ...], setting: Setting) -> Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return (2.0 * drawn - 1.0).to(setting.device)


def write_images(folder: Path, count: int, side: int, group: int = 1000) -> Path:
    """Write a parquet file of generated PNGs in ten classes; return its path."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng, drawn = np.random.default_rng(0), []
    for _ in range(min(count, 500)):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(out, "PNG")
        drawn.append(out.getvalue())
    which = np.arange(count)
    table = pa.table({"image": [drawn[i % len(drawn)] for i in which], "label": which % 10})
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"images-{count}.parquet"
    pq.write_table(table, path, row_group_size=group)
    return path
