"""What a model's images depend on, as plain values: a part of the key of every measured cell."""

from __future__ import annotations

import hashlib
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided
from fewstep.files.weights import part_sha256
from fewstep.folders import encoders_sha256
from fewstep.measure.database import Inputs
from fewstep.models import Model, model_of

# Facts of a card on which images depend, beside the weights.
PLAIN = ("family", "shape", "num_classes", "null_class", "null_prompt", "w_band")
FACTS: dict[str, Any] = {
    **dict.fromkeys(PLAIN, True),
    "stage": {"kind", "pair", "steps", "stride", "direction"},
}

# Hashing gigabytes takes seconds, and a model is measured in many cells.
_hashes: WeakKeyDictionary[Model, tuple[str, str | None]] = WeakKeyDictionary()


def identity_of(model: Model | Guided) -> Inputs:
    """Return everything that the model's images depend on, but noise, condition, steps and w.

    "weights", "base" of an adapter that is kept apart, "encoders" (autoencoder and text encoders
    of a latent model), "clock", "prediction", "guidance" (what the unconditional pass is
    conditioned on), and the "card" for the rest. Models with equal identities draw equal images.
    """
    inner = model_of(model)
    card = inner.card
    facts = card.model_dump(mode="json", include=FACTS)
    if card.stage.any_steps:
        facts["any_steps"] = card.stage.counts
    # Left out where it is not set, so that what was measured before there was a choice is found.
    if card.max_sequence_length is not None:
        facts["max_sequence_length"] = card.max_sequence_length
    if inner not in _hashes:
        _hashes[inner] = (_weights(inner), _encoders(inner))
    weights, encoders = _hashes[inner]
    return {
        "weights": weights,
        "base": None if card.lora is None or card.lora.merged else card.lora.base_sha256,
        "encoders": encoders,
        "clock": _clock(inner),
        "prediction": card.prediction,
        "guidance": _guidance(model, inner),
        "card": facts,
    }


def _weights(inner: Model) -> str:
    if inner.card.weights_sha256:
        return inner.card.weights_sha256
    if inner.source is not None and not inner.family.native:  # a stock folder without a card
        return part_sha256(inner.source / inner.family.part)
    digest = hashlib.sha256()
    for name, tensor in inner.network.state_dict().items():
        digest.update(f"{name} {_hash(tensor)}\n".encode())
    return digest.hexdigest()


def _encoders(inner: Model) -> str | None:
    if inner.source is None:
        return None
    return encoders_sha256(inner.source, prompts=inner.family.takes_prompts)


def _clock(inner: Model) -> list[str]:
    # Two tables of betas may agree at both ends, which is all that the name of a clock holds.
    phis = [] if inner.family.native else [_hash(inner.clock.phis)]
    return [inner.card.clock, *phis]


def _guidance(model: Model | Guided, inner: Model) -> Inputs | None:
    if model is inner:
        return None
    assert not isinstance(model, Model)
    threshold = model.threshold
    return {
        "null": None if _equal(model.null_cond, inner.null_cond) else _hash_cond(model.null_cond),
        "interval": None if model.interval is None else list(model.interval),
        "threshold": threshold and getattr(threshold, "__qualname__", type(threshold).__name__),
    }


def _equal(a: Cond, b: Cond) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a.cpu() == b.cpu()).all())
    return False


def _hash_cond(cond: Cond) -> str:
    if isinstance(cond, Tensor):
        return _hash(cond)
    parts = "\n".join(f"{key} {_hash(value)}" for key, value in sorted(cond.items()))
    return hashlib.sha256(parts.encode()).hexdigest()


def _hash(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    shape = f"{plain.dtype} {tuple(plain.shape)}\n".encode()
    return hashlib.sha256(shape + plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
