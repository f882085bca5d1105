"""A family of networks as a value: all that fewstep has to know of it beyond its clock.

A new family is one file like those beside this one, and one line in `families/__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError, ShapeError
from fewstep.files.parts import INDEX, components, is_count, read_json, size_of
from fewstep.models.card import Card


def network_shape(config: Mapping[str, Any], path: Path) -> tuple[int, int, int]:
    """Return (C, H, W) of a network's states, from its `in_channels` and `sample_size`.

    Raises FolderError.
    """
    channels: Any = config.get("in_channels")
    if not is_count(channels):
        raise FolderError(
            f"{path}: in_channels must be a whole number above 0, got {channels!r}. The folder is "
            "damaged: copy it again."
        )
    return (int(channels), *size_of(config, path))


def _nothing_to_check(config: Mapping[str, Any], path: Path) -> None:
    """Accept every configuration."""


def _nothing_to_say(index: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _no_zeros(cond: Cond) -> Cond:
    raise ShapeError("the unconditional pass of this family needs a prompt, and none is known.")


def _as_long(cond: Cond, length: int) -> Cond:
    return cond


def _only_one(config: Mapping[str, Any]) -> bool:
    return True


def _of_a_unet(network: Any) -> Sequence[Any]:
    return [network.time_embedding]


def _as_it_is(network: Any) -> None:
    """Leave the network alone."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the networks of one kind are read, asked, and given a guidance weight.

    Attributes:
        name: in cards.
        part: of a folder that holds the network, and its name in the stock pipeline.
        networks: classes of diffusers that the part may have; the first is loaded.
        pipelines: stock pipelines whose folders are of this family; the first opens a student.
        parts: name -> allowed classes of the other parts that a folder must have.
        optional: names of those parts that a folder may have as null.
        refused: stock pipelines of the same networks whose folders are no teachers -> why.
        owns: (config.json of the network) -> whether it is of this family, where several families
            have the same pipeline.
        native: trained by fewstep from scratch, on the native clock; else the clock is read from
            the folder's scheduler.
        flow: of networks trained on rectified flow: "spaced" where the stock pipeline gives the
            scheduler the sigmas 1, ..., 1/N itself, "own" where it leaves them to the scheduler.
        tokens: (config.json of the network, its path) -> number of tokens of an image, from which
            the stock pipeline computes the shift mu; None where it computes none.
        shape: (config.json of the network, its path) -> (C, H, W) of its states. Raises
            FolderError.
        call: (network, z (B, *D), timestep (B,), cond, w) -> what the network predicts (B, *D).
            z is what the clock's `state` returns; the timestep is the clock's, 0 to 1000 as a rule.
            w is what `slot` says, None for a network without an input for it.
        slot: where the stock network takes w: "features" (B, dim), as `timestep_cond` of a U-Net;
            "value" (B,), w itself, which `call` converts to what the network is given; None: it has
            no such input, and one is added to its timestep embedders.
        fix: (network whose slot takes w itself, w) -> the changes to its config and the weights of
            the network in which this w is fixed; None: w cannot be fixed.
        fixed: name of the family of that network.
        embedders: network -> its `TimestepEmbedding`s, or what it has in their place, to whose
            input w is added.
        check_config: (config.json of the network, its path); raises FolderError where the network
            needs something that `call` does not give it.
        time_features: (network, timesteps (N,)) -> (M, D), what the first layer of the `embedders`
            is given at these timesteps, without w; where it is given many tokens, the part that all
            have in common, the rest being 0. None where stock pipelines load no LoRA files.
        true_cfg: whether the stock pipeline guides by two passes where it is given
            `true_cfg_scale` and a `negative_prompt`.
        rescale: of guidance by two passes, where the stock pipeline does more than mix the two
            predictions: as in `fewstep.Guided`.
        conditions: (model_index.json, config.json) -> what the card of a stock folder says of
            conditions, and of guidance that is in the weights already.
        check_cond: (network, card, cond); raises a FewstepError for a condition that `call` cannot
            use.
        prompt_defaults: names of arguments of that `encode_prompt` for which the pipeline has a
            default of its own when it is called; not for the unconditional pass.
        condition: (what the first pipeline's `encode_prompt` returns for B prompts without
            guidance, folder) -> condition batch of B; None where conditions are class ids.
        fill: (condition, L) -> the same with L tokens, where the stock pipeline makes only as many
            as its longest prompt has.
        zeros: condition -> the same with zeros in place of the text, for the unconditional
            pass where the card's null prompt is None.
        unused: whether some of the network's weights have no effect on what it predicts, which
            training by several processes must know.
        prepare: (network); called once when a model is made of it, to switch off what the stock
            network does of its own accord in training.
        lora: whether an adapter can be trained over the network.
    """

    name: str
    call: Callable[[Any, Tensor, Tensor, Cond, Tensor | None], Tensor]
    check_cond: Callable[[Any, Card, Cond], None]
    check_config: Callable[[Mapping[str, Any], Path], None] = _nothing_to_check
    conditions: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = _nothing_to_say
    part: str = "unet"
    networks: tuple[str, ...] = ("UNet2DConditionModel",)
    pipelines: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    owns: Callable[[Mapping[str, Any]], bool] = _only_one
    native: bool = False
    flow: Literal["spaced", "own"] | None = None
    tokens: Callable[[Mapping[str, Any], Path], int] | None = None
    shape: Callable[[Mapping[str, Any], Path], tuple[int, int, int]] = network_shape
    slot: Literal["features", "value"] | None = None
    fix: Callable[[Any, float], tuple[dict[str, Any], dict[str, Tensor]]] | None = None
    fixed: str = ""
    embedders: Callable[[Any], Sequence[Any]] = _of_a_unet
    time_features: Callable[[Any, Tensor], Tensor] | None = None
    true_cfg: bool = False
    rescale: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    condition: Callable[[tuple[Any, ...], Path], Cond] | None = None
    prompt_defaults: tuple[str, ...] = ()
    fill: Callable[[Cond, int], Cond] = _as_long
    zeros: Callable[[Cond], Cond] = _no_zeros
    unused: bool = False
    prepare: Callable[[Any], None] = _as_it_is
    lora: bool = True

    @property
    def takes_prompts(self) -> bool:
        """Whether conditions are made of prompts; else they are class ids."""
        return self.condition is not None

    def parts_in(self, folder: Path) -> dict[str, tuple[str, ...]]:
        """Return the parts of a stock pipeline's folder, without optional ones that are null."""
        there = components(read_json(folder / INDEX)) if self.optional else {}
        return {k: kinds for k, kinds in self.parts.items() if k not in self.optional or k in there}
