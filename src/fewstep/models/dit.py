"""DiT: a class-conditional transformer of latents; its learned sigma is ignored.

It has no input for w, and its stock pipeline none to fill: a student is for one fixed w, and
`DiTPipeline` draws with it without guidance of its own (decision 0018).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.models.card import Card
from fewstep.models.parts import check_weights, reading
from fewstep.models.pipeline_model import PipelineModel
from fewstep.models.table import Table


class DiT(PipelineModel):
    """A denoiser of DiT's latents; cond: (B,) class ids, `card.null_class` for none."""

    family = "dit"
    part = "transformer"
    pipelines = ("DiTPipeline",)
    parts: ClassVar = {
        "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),  # the latter in old folders
        "vae": ("AutoencoderKL",),
    }

    def __init__(self, unet: Any, card: Card, table: Table, source: Path) -> None:
        """Wrap a DiTTransformer2DModel and say with a card what it is."""
        super().__init__(unet, card, table, source)
        for block in unet.transformer_blocks:
            # In training it would drop labels of its own accord, in every block another one.
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    @property
    def w_dim(self) -> None:
        """None: there is no w input."""
        return

    def with_w(self, w: tuple[float, float], w_dim: int) -> Any:
        """Return a copy of the network, for one fixed w. Raises RangeError for a range."""
        del w_dim
        self.takes_w(w)
        return copy.deepcopy(self.unet)

    def takes_w(self, w: tuple[float, float]) -> bool:
        """Return False: a student is for one fixed w. Raises RangeError for a range."""
        if w[0] != w[1]:
            raise RangeError(
                f"w = {w}; a DiT network has no input for w, so a student is for one: give "
                f"({w[1]:g}, {w[1]:g}), say."
            )
        return False

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, C, h, w), converted from the network's own prediction (math.md 1)."""
        del w
        if not isinstance(cond, Tensor):
            raise ShapeError("this model's condition is a (B,) tensor of class ids, not a dict.")
        inside, timestep = self.table.place(phi)
        out = self.unet(z, timestep=timestep, class_labels=cond, return_dict=False)[0]
        return self.table.velocity(out[:, : z.shape[1]], z, inside)

    @classmethod
    def check_network(cls, config: dict[str, Any], path: Path) -> None:
        """Raise FolderError unless it is a DiT whose output is the prediction, then the sigma."""
        if config.get("num_embeds_ada_norm") is None:
            raise FolderError(f"{path}: num_embeds_ada_norm is missing; a DiT has classes.")
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

        check_weights(folder / "transformer")
        with reading(folder / "transformer"):
            return DiTTransformer2DModel.from_pretrained(
                folder / "transformer", use_safetensors=True, local_files_only=True
            )

    @classmethod
    def conditions(cls, index: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        """Return the classes; their names where the folder tells one of each."""
        count = int(config["num_embeds_ada_norm"])
        told = index.get("id2label") or {}
        names = tuple(str(told[str(k)]) for k in range(count)) if len(told) == count else ()
        return {"num_classes": count, "null_class": count, "class_names": names}
