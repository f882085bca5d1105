"""DiT: a class-conditional transformer of latents; its learned sigma is ignored.

It has no input for w, and its stock pipeline none to fill (decision 0018). A student for one fixed
w is stock: `DiTPipeline` draws with it without guidance of its own. One for a range of w has an
input of ours, `w_input`, and loads through fewstep alone.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

from safetensors import safe_open
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.finite import check_finite
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.models.card import Card
from fewstep.models.parts import is_count, reading
from fewstep.models.pipeline_model import PipelineModel
from fewstep.models.table import Table
from fewstep.models.w_input import w_features
from fewstep.models.weights import find_weights, load_part

W_INPUT = "w_input"
W_WEIGHT = f"{W_INPUT}.weight"
LIVE = "DiTWithW"  # its class in model_index.json, which stock pipelines cannot find


class AddW:
    """A forward hook: adds the embedding of w to that of timestep and class, in every block.

    The embedding stays until the next call, so that activations can be computed again backward.
    """

    embedding: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AddW:
        """Return a hook without an embedding: that of the last call belongs to its graph."""
        return AddW()

    def __call__(self, module: nn.Module, arguments: Any, out: Tensor) -> Tensor:
        """Return the conditioning (B, D) of a block, told w."""
        del module, arguments
        return out if self.embedding is None else out + self.embedding


def add_w_input(unet: Any, w_dim: int) -> None:
    """Give a DiT an input for w that it at first ignores: a projection whose weight is zero."""
    unet.add_module(W_INPUT, nn.Linear(w_dim, unet.inner_dim, bias=False))
    nn.init.zeros_(unet.w_input.weight)
    unet.w_input.to(unet.device, unet.dtype)
    unet.add_w = AddW()
    for block in unet.transformer_blocks:
        block.norm1.emb.register_forward_hook(unet.add_w)


class DiT(PipelineModel):
    """A denoiser of DiT's latents; cond: (B,) class ids, `card.null_class` for none."""

    family = "dit"
    part = "transformer"
    pipelines = ("DiTPipeline",)
    parts: ClassVar = {
        # The second in old folders, the third with an input for w.
        "transformer": ("DiTTransformer2DModel", "Transformer2DModel", LIVE),
        "vae": ("AutoencoderKL",),
    }

    def __init__(self, unet: Any, card: Card, table: Table, source: Path) -> None:
        """Wrap a DiTTransformer2DModel and say with a card what it is."""
        super().__init__(unet, card, table, source)
        for block in unet.transformer_blocks:
            # In training it would drop labels of its own accord, in every block another one.
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    @property
    def w_dim(self) -> int | None:
        """Number of w features, None where the network has no w input."""
        told = getattr(self.unet, W_INPUT, None)
        return None if told is None else int(told.in_features)

    @property
    def network_class(self) -> list[str]:
        """Where `model_index.json` says that the network's class is."""
        return ["diffusers", super().network_class[1]] if self.w_dim is None else [__name__, LIVE]

    def with_w(self, w: tuple[float, float], w_dim: int) -> Any:
        """Return a copy of the network: as it is for one w, with an input for a range of them."""
        unet = copy.deepcopy(self.unet)
        if w[0] != w[1] and self.w_dim is None:
            add_w_input(unet, w_dim)
        return unet

    def takes_w(self, w: tuple[float, float]) -> bool:
        """Return False: an adapter is for one fixed w. Raises RangeError for a range."""
        if w[0] != w[1]:
            raise RangeError(
                f"w = {w}; an adapter of a DiT network is for one w: give ({w[1]:g}, {w[1]:g}), "
                "say, or train all of it, without lora."
            )
        return False

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, C, h, w), converted from the network's own prediction (math.md 1)."""
        if not isinstance(cond, Tensor):
            raise ShapeError("this model's condition is a (B,) tensor of class ids, not a dict.")
        inside, timestep = self.table.place(phi)
        if self.w_dim is not None:
            features = w_features(w, self.w_dim, self.card.w_band).to(z.dtype)
            self.unet.add_w.embedding = self.unet.w_input(features)
        out = self.unet(z, timestep=timestep, class_labels=cond, return_dict=False)[0]
        return self.table.velocity(out[:, : z.shape[1]], z, inside)

    @classmethod
    def check_network(cls, config: dict[str, Any], path: Path) -> None:
        """Raise FolderError unless it is a DiT whose output is the prediction, then the sigma."""
        classes = config.get("num_embeds_ada_norm")
        if classes is None:
            raise FolderError(f"{path}: num_embeds_ada_norm is missing; a DiT has classes.")
        if not is_count(classes):
            raise FolderError(
                f"{path}: num_embeds_ada_norm must be a whole number above 0, got "
                f"{str(classes)[:40]!r}. Copy the file again."
            )
        channels, out = config.get("in_channels"), config.get("out_channels")
        if channels is None or out not in (None, channels, 2 * channels):
            raise FolderError(
                f"{path}: in_channels: {channels} and out_channels: {out}; they must be as many, "
                "or twice as many with a learned sigma."
            )

    @classmethod
    def read_network(cls, folder: Path) -> Any:
        """Return the folder's DiTTransformer2DModel, in float32. Raises FolderError."""
        from diffusers import DiTTransformer2DModel

        path = folder / "transformer"
        unet = load_part(DiTTransformer2DModel, path, extra=[W_WEIGHT])
        with reading(path):
            weight = _w_weight(path)
            if weight is not None:
                add_w_input(unet, weight.shape[1])
                unet.w_input.weight.data.copy_(check_finite(weight, f"{path}: {W_WEIGHT}"))
        return unet

    @classmethod
    def conditions(cls, index: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        """Return the classes; their names where the folder tells one of each."""
        count = int(config["num_embeds_ada_norm"])
        told = index.get("id2label")
        told = told if isinstance(told, dict) else {}
        known = len(told) == count and all(str(k) in told for k in range(count))
        names = tuple(str(told[str(k)]) for k in range(count)) if known else ()
        return {"num_classes": count, "null_class": count, "class_names": names}


def _w_weight(path: Path) -> Tensor | None:
    for file in find_weights(path).files:
        with safe_open(file, framework="pt") as opened:
            if W_WEIGHT in opened.keys():  # noqa: SIM118
                weight: Tensor = opened.get_tensor(W_WEIGHT)
                return weight
    return None
