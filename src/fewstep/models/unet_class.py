"""Class-conditional pixel models: a stock UNet2DConditionModel on the native clock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided, Traits
from fewstep.errors import FolderError, RangeError, ShapeError
from fewstep.models.card import Card
from fewstep.models.native import timestep_from_phi
from fewstep.models.w_input import w_features

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

FAMILY = "unet-class"
MOST = 16_384  # of channels or features; more would only fill the memory
Channels: TypeAlias = Annotated[int, Field(ge=1, le=MOST)]


class UNetConfig(BaseModel):
    """Size of the network.

    Attributes:
        channels: of each level, finest first; each level halves the resolution.
        layers: resnets a level.
        attention: which levels have self-attention, one flag a level; none by default.
        head_dim: channels of an attention head.
        groups: of the group norms; must divide every number of channels.
        time_dim: of the embedding of angle, class and w; 4 times the finest level by default.
        w_dim: features of w (even); a quarter of them are slow enough to be used.
        w_band: features of w that turn faster than so many radians a unit of w are left zero;
            null keeps all (decision 0003).
        dropout: in the resnets.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    channels: tuple[Channels, ...] = Field((32, 64), min_length=1, max_length=10)
    layers: int = Field(1, ge=1, le=100)
    attention: tuple[bool, ...] = ()
    head_dim: int = Field(8, ge=1, le=MOST)
    groups: int = Field(8, ge=1, le=MOST)
    time_dim: int | None = Field(None, ge=8, le=MOST)
    w_dim: int = Field(128, ge=8, le=MOST)
    w_band: float | None = Field(1.0, gt=0.0, le=1e6)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _fits(self) -> UNetConfig:
        for c in self.channels:
            if c % self.groups:
                raise ValueError(f"groups = {self.groups} must divide every level; {c} is not")
        if self.attention and len(self.attention) != len(self.channels):
            raise ValueError("attention needs one true/false a level of channels")
        if self.w_dim % 2:
            raise ValueError(f"w_dim = {self.w_dim} must be even")
        return self


def build_unet(
    config: UNetConfig, shape: tuple[int, ...], num_classes: int
) -> UNet2DConditionModel:
    """Return a fresh network for examples of shape (C, H, W); class id num_classes is the null."""
    from diffusers import UNet2DConditionModel

    channels, height, width = shape
    scale = 2 ** (len(config.channels) - 1)
    if height % scale or width % scale:
        raise ShapeError(
            f"images of {height}x{width} cannot be halved {len(config.channels) - 1} times; give "
            "network.channels fewer levels."
        )
    flags = config.attention or (False,) * len(config.channels)
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=height if height == width else (height, width),
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in flags),
        mid_block_type="UNetMidBlock2D",
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(flags)),
        attention_head_dim=config.head_dim,
        norm_num_groups=config.groups,
        resnet_time_scale_shift="scale_shift",
        time_embedding_dim=config.time_dim,
        num_class_embeds=num_classes + 1,
        dropout=config.dropout,
    )
    return unet


class UNetModel(nn.Module):
    """A denoiser made of a stock network: v = model(z, phi, cond, w), one pass.

    cond: (B,) class ids, `card.null_class` for none. A network without a w input ignores w;
    wrap it in `Guided` (as `load` does for a teacher).

    Attributes:
        source: folder of the parts that surround the network, an autoencoder at least; None
            where states are images.
    """

    passes = 1
    source: Path | None = None
    part: ClassVar[str] = "unet"  # of the folder that holds the network

    def __init__(self, unet: UNet2DConditionModel, card: Card) -> None:
        """Wrap a UNet2DConditionModel and say with a card what it is."""
        super().__init__()
        self.unet = unet
        self.card = card

    @property
    def traits(self) -> Traits:
        """What the card says, as the core understands it."""
        card = self.card
        return Traits(
            shape=card.shape,
            w_range=card.w_range,
            steps=None if card.steps is None else (card.steps,),
            sampler=card.sampler,
            device=self.unet.device,
            dtype=self.unet.dtype,
            check_cond=self._check_cond,
        )

    def _check_cond(self, cond: Cond) -> None:
        if not isinstance(cond, Tensor) or cond.ndim != 1 or cond.is_floating_point():
            raise ShapeError("this model's condition is a (B,) integer tensor of class ids.")
        last = max(self.card.num_classes - 1, self.card.null_class)
        if not bool(((cond >= 0) & (cond <= last)).all()):
            worst = int(cond.max()) if int(cond.max()) > last else int(cond.min())
            raise RangeError(
                f"class {worst}; this model draws the classes 0 to {self.card.num_classes - 1} "
                f"({self.card.null_class} for any). Choose one of them."
            )

    def like(self, unet: UNet2DConditionModel, card: Card) -> UNetModel:
        """Return another model of this kind."""
        return UNetModel(unet, card)

    def with_w(self, w: tuple[float, float], w_dim: int) -> Any:
        """Return a copy of the network that can be told the w of a range: see `with_w_input`."""
        del w
        return with_w_input(self, w_dim)

    def takes_w(self, w: tuple[float, float]) -> bool:
        """Whether students of this family are told w. Raises RangeError where one w is needed."""
        del w
        return True

    def checkpoint_activations(self) -> None:
        """From now on compute activations again in the backward pass, to save memory."""
        self.unet.enable_gradient_checkpointing()

    @property
    def null_cond(self) -> Cond:
        """The null condition, a batch of 1."""
        return torch.tensor([self.card.null_class])

    @property
    def w_dim(self) -> int | None:
        """Number of w features, None where the network has no w input."""
        dim: int | None = self.unet.config.time_cond_proj_dim
        return dim

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return v (B, C, H, W)."""
        if not isinstance(cond, Tensor):
            raise ShapeError("this model's condition is a (B,) tensor of class ids, not a dict.")
        features = (
            None if self.w_dim is None else w_features(w, self.w_dim, self.card.w_band).to(z.dtype)
        )
        out = self.unet(
            z,
            timestep_from_phi(phi),
            None,
            class_labels=cond,
            timestep_cond=features,
            return_dict=False,
        )
        v: Tensor = out[0]
        return v.to(z.dtype)  # autocast's answer is shorter


def network_of(model: UNetModel | Guided) -> UNetModel:
    """Return the network of what `load` gave: itself, or the one inside a guided pair.

    Raises ShapeError where it does not come from a model folder.
    """
    inner = model.denoiser if isinstance(model, Guided) else model
    if not isinstance(inner, UNetModel):
        raise ShapeError("this denoiser does not come from a model folder; it has no network.")
    return inner


def with_w_input(teacher: UNetModel, w_dim: int) -> UNet2DConditionModel:
    """Return a copy of the teacher's network that is told w and, at first, ignores it.

    Its one new weight, `time_embedding.cond_proj.weight`, is zero, so the copy equals the
    teacher bit for bit at every w, and the weight still gets a gradient at once (math.md 4).
    A network that has the input already is copied as it is.
    """
    from diffusers import UNet2DConditionModel

    old = teacher.unet
    config: dict[str, Any] = {k: v for k, v in old.config.items() if not k.startswith("_")}
    told = config["time_cond_proj_dim"] is not None
    unet: UNet2DConditionModel = UNet2DConditionModel.from_config(
        config if told else {**config, "time_cond_proj_dim": w_dim}
    )
    unet.to(old.device)
    if unet.dtype != old.dtype:
        unet.to(old.dtype)
    missing, unexpected = unet.load_state_dict(old.state_dict(), strict=False)
    if list(unexpected) or list(missing) != ([] if told else ["time_embedding.cond_proj.weight"]):
        raise FolderError(
            f"the teacher's network does not fit its own configuration: missing {missing}, "
            f"unexpected {unexpected}. Its folder is damaged or from another library version."
        )
    if not told:
        nn.init.zeros_(unet.time_embedding.cond_proj.weight)
    return unet
