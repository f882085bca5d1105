"""DiT: a class-conditional transformer of latents; its learned sigma is ignored.

It has no input for w, and its stock pipeline none to fill (decision 0018). A student for one fixed
w is stock: `DiTPipeline` draws with it without guidance of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.errors import FolderError
from fewstep.files.parts import is_count
from fewstep.models.families.classes import check_classes, class_ids
from fewstep.models.families.family import Family


def _call(network: Any, z: Tensor, timestep: Tensor, cond: Cond, w: Tensor | None) -> Tensor:
    out: Tensor = network(z, timestep=timestep, class_labels=class_ids(cond), return_dict=False)[0]
    return out[:, : z.shape[1]]


def _embedders(network: Any) -> list[Any]:
    return [block.norm1.emb.timestep_embedder for block in network.transformer_blocks]


def _prepare(network: Any) -> None:
    for block in network.transformer_blocks:
        # In training it would drop labels of its own accord, in every block another one.
        block.norm1.emb.class_embedder.dropout_prob = 0.0


def check_output_channels(config: Mapping[str, Any], path: Path) -> None:
    """Raise FolderError unless the output is the prediction, alone or before a learned sigma."""
    channels, out = config.get("in_channels"), config.get("out_channels")
    if channels is None or out not in (None, channels, 2 * channels):
        raise FolderError(
            f"{path}: in_channels: {channels} and out_channels: {out}; they must be as many, "
            "or twice as many with a learned sigma."
        )


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    classes = config.get("num_embeds_ada_norm")
    if classes is None:
        raise FolderError(f"{path}: num_embeds_ada_norm is missing; a DiT has classes.")
    if not is_count(classes):
        raise FolderError(
            f"{path}: num_embeds_ada_norm must be a whole number above 0, got "
            f"{str(classes)[:40]!r}. Copy the file again."
        )
    check_output_channels(config, path)


def _conditions(index: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes; their names where the folder tells one of each."""
    count = int(config["num_embeds_ada_norm"])
    labels = index.get("id2label")
    labels = labels if isinstance(labels, dict) else {}
    known = len(labels) == count and all(str(k) in labels for k in range(count))
    names = tuple(str(labels[str(k)]) for k in range(count)) if known else ()
    return {"num_classes": count, "null_class": count, "class_names": names}


DIT = Family(
    name="dit",
    part="transformer",
    # The second in old folders, the third with an input for w in folders of format 1.
    networks=("DiTTransformer2DModel", "Transformer2DModel", "DiTWithW"),
    pipelines=("DiTPipeline",),
    parts={"vae": ("AutoencoderKL",)},
    call=_call,
    embedders=_embedders,
    prepare=_prepare,
    check_config=_check_config,
    conditions=_conditions,
    check_cond=check_classes,
)
