"""The networks that fewstep trains from scratch: a stock UNet2DConditionModel of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fewstep.errors import ShapeError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

MOST = 16_384  # of channels or features; more would only fill the memory
Channels: TypeAlias = Annotated[int, Field(ge=1, le=MOST)]


class UNetConfig(BaseModel):
    """Size of the network.

    Attributes:
        channels: channels of each level, finest first; each level halves the resolution.
        layers: resnets per level.
        attention: which levels have self-attention, one flag per level; none by default.
        head_dim: channels of an attention head.
        groups: groups of the group norms; must divide every number of channels.
        time_dim: width of the embedding of angle, class and w; by default 4 times the channels of
            the finest level.
        w_dim: number of sinusoidal features of w (even); w_band leaves a quarter of them.
        w_band: features of w with a higher frequency (in radians per unit of w) are set to zero;
            null keeps all (decision 0003).
        w_features: "slow": those that w_band keeps; "one": sin(0.1 w) alone, so that the w input
            can be exported as a LoRA.
        dropout: dropout probability in the resnets.
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
    w_features: Literal["slow", "one"] = "slow"
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _fits(self) -> UNetConfig:
        for c in self.channels:
            if c % self.groups:
                raise ValueError(
                    f"groups = {self.groups} must divide the channels of every level, got {c}"
                )
        if self.attention and len(self.attention) != len(self.channels):
            raise ValueError("attention needs one true/false per level of channels")
        if self.w_dim % 2:
            raise ValueError(f"w_dim = {self.w_dim} must be even")
        if self.w_features == "one" and self.w_band != 1.0:
            raise ValueError(
                f"w_band must be left out with w_features: one, got {self.w_band}; remove either"
            )
        return self

    @property
    def band(self) -> float | Literal["one"] | None:
        """Which features of w a student is fed, as its card has it."""
        return "one" if self.w_features == "one" else self.w_band


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
