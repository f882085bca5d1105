"""Class-conditional pixel models: a stock UNet2DConditionModel on the native clock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.files.parts import is_count
from fewstep.models.families.classes import check_classes, class_ids
from fewstep.models.families.family import Family


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    out: Tensor = network(
        z, timestep, None, class_labels=class_ids(cond), timestep_cond=w, return_dict=False
    )[0]
    return out


def _conditions(index: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    embeddings: Any = config.get("num_class_embeds")  # of the classes, and of the null class
    classes = embeddings - 1 if is_count(embeddings) else 0
    return {"num_classes": classes, "null_class": classes}


UNET_CLASS = Family(
    name="unet-class",
    native=True,
    pipelines=("ClassConditionalPipeline",),
    call=_call,
    slot="features",
    conditions=_conditions,
    check_cond=check_classes,
)
