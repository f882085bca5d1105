"""What a recipe says about its images."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fewstep.data.captions import check_templates


class DataConfig(BaseModel):
    """Which images, and what is done to them.

    Attributes:
        name: a data set in `fewstep.data.DATASETS`, or the path of a parquet file, an image
            folder with a folder a class, or anything else that `datasets` loads from the disk.
            The fields below are for paths.
        size: height and width in pixels; images are cropped to their central square and shrunk
            to it, never enlarged. None wants all images of one size and leaves them alone.
        channels: 3 for RGB, 1 for grey.
        label: column of the classes, or of the images' own captions; by default `label`, `labels`,
            `class`, `text` or `caption`, the first that is there.
        captions: of each image, for text-to-image models: templates with {} for the name of its
            class, or for its own caption. One of them is chosen by the image's number.
        held_out: share of the images, chosen by a hash of their place, kept from training.
        skip_bad: leave out images that cannot be used, with a count, instead of stopping.
        stream: read parquet shards as they are needed instead of decoding all once; needs size.
        flip: mirror every other image, a new choice each epoch.
        crop: shift images by up to so many pixels each way, reflecting at the border.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "digits"
    size: int | None = Field(None, ge=1)
    channels: Literal[1, 3] = 3
    label: str | None = None
    captions: tuple[str, ...] = Field(("{}",), min_length=1)
    held_out: float = Field(0.05, ge=0.0, lt=1.0)
    skip_bad: bool = False
    stream: bool = False
    flip: bool = False
    crop: int = Field(0, ge=0)

    @field_validator("captions")
    @classmethod
    def _templates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_templates(value)
        return value
