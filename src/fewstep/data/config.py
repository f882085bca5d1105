"""The settings of a recipe's images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fewstep.data.captions import check_templates
from fewstep.errors import DataError

Side = Annotated[int, Field(ge=1, le=16_384)]
ColumnName = Annotated[str, Field(min_length=1, max_length=200)]


class DataConfig(BaseModel):
    """Which images to use, and how to read them.

    A path is a parquet file; a folder with a folder of images for each class; a folder of images
    with captions, in a .txt or .caption file beside each image (one caption per line, of which one
    is chosen) or in a metadata.jsonl, .csv or .parquet with `file_name`; a folder of parquet files;
    or a folder that `datasets.Dataset.save_to_disk` wrote. Nothing is fetched.

    Where all folders beside each other, or all parquet files, are named after splits (train, test,
    validation, ...: test/, test.parquet, test-00000-of-00001.parquet), those of `train` are read.
    Otherwise such names mean nothing: a folder called train, beside bus and car, is a class.

    Attributes:
        name: a data set in `fewstep.data.DATASETS`, or a path. The fields below are for paths.
        size: height and width in pixels; images are cropped to their central square and shrunk
            to it, never enlarged. None wants all images of one size and leaves them alone.
        buckets: sizes to train at, each a height and a width in pixels. Each image is shrunk and
            cropped to the bucket that is nearest in shape. All images of a batch come from one
            bucket. `size` is then the model's own size, at which figures are measured.
        channels: 3 for RGB, 1 for grey.
        image: column of the images, or of their paths; by default the first column of images.
        label: column of the classes; by default one with declared class names, else `label`,
            `labels` or `class`, else that of the captions. With prompts it may name the captions.
        caption: column of the captions, texts or lists of texts; by default `text`, `caption`,
            `captions` or `prompt`.
        captions: templates of prompts with {} for the caption of the image, as it is written, or
            for the name of its class. One of them is chosen by a hash of the image's number. A
            single text without {} names the column of captions, as `caption` does.
        cond: what the model is conditioned on. For "prompt" a column of captions is preferred to
            one of classes, and one caption for all images will do. A recipe sets it from
            `latents.cond`.
        background: colour that transparent images are composed on: a name, or "#rrggbb".
        max_pixels: largest image that is decoded, width x height.
        held_out: share of the images, chosen by a hash of their place, kept from training.
        skip_bad: leave out images that cannot be used, with a count, instead of stopping.
        stream: read parquet files as they are needed instead of decoding all once; needs size.
        flip: mirror half of the images, a new choice each epoch.
        crop: shift images by up to this many pixels each way, reflecting at the border.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("digits", min_length=1, max_length=4000)
    size: Side | None = None
    buckets: tuple[tuple[Side, Side], ...] = Field((), max_length=1000)
    channels: Literal[1, 3] = 3
    image: ColumnName | None = None
    label: ColumnName | None = None
    caption: ColumnName | None = None
    captions: tuple[str, ...] = Field(("{}",), min_length=1, max_length=10_000)
    cond: Literal["class", "prompt"] = "class"
    background: str = "white"
    max_pixels: int = Field(178_956_970, ge=1, le=2**31 - 1)
    held_out: float = Field(0.05, ge=0.0, lt=1.0)
    skip_bad: bool = False
    stream: bool = False
    flip: bool = False
    crop: int = Field(0, ge=0, le=16_383)

    @model_validator(mode="before")
    @classmethod
    def _column_of_captions(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("captions"), str):
            return given
        text = given["captions"]
        if "{}" in text:
            return {**given, "captions": [text]}
        if given.get("caption") not in (None, text):
            raise ValueError(
                f"captions and caption name two columns, {text!r} and {given['caption']!r}. Pass "
                "one of them"
            )
        return {**{k: v for k, v in given.items() if k != "captions"}, "caption": text}

    @field_validator("captions")
    @classmethod
    def _templates(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_templates(value)
        return value

    @field_validator("background")
    @classmethod
    def _colour(cls, value: str) -> str:
        from PIL import ImageColor

        try:
            opaque = len(ImageColor.getrgb(value)) == 3
        except ValueError:
            opaque = False
        if not opaque:
            raise ValueError(
                f"{value!r} is not a colour; use a name such as white, or '#rrggbb' in quotes"
            )
        return value

    @field_validator("name")
    @classmethod
    def _path(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError("a path cannot hold a zero byte")
        return value

    @model_validator(mode="after")
    def _check_buckets(self) -> DataConfig:
        if not self.buckets:
            return self
        if self.size is None:
            raise ValueError("buckets need size beside them, the model's own size in pixels")
        if self.stream:
            raise ValueError("buckets need stream=false: images are sorted before they are read")
        if len(set(self.buckets)) < len(self.buckets):
            raise ValueError("buckets must differ from each other; leave one of the equal ones out")
        if self.crop >= min(min(bucket) for bucket in self.buckets):
            raise ValueError(f"crop = {self.crop} must be smaller than all sides of the buckets")
        return self

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if self.size is not None and self.crop >= self.size:
            raise ValueError(
                f"crop = {self.crop} must be smaller than size = {self.size}: the border is "
                "reflected"
            )
        return self


def check_data(given: dict[str, Any]) -> DataConfig:
    """Return settings of data from their fields. Raises DataError, in one line, for a wrong one."""
    try:
        return DataConfig.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["data", *map(str, first["loc"])])
        message = str(first["msg"]).removeprefix("Value error, ")
        value = "" if first["type"] == "value_error" else f", got {first['input']!r}"
        raise DataError(f"{where}: {message}{value}.") from None
