"""Text encoders of a pipeline folder, one at a time in memory unless they are asked to stay."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep.core.finite import check_finite
from fewstep.errors import FewstepWarning, FolderError
from fewstep.files.parts import is_number, read_json, reading
from fewstep.files.weights import load_part

SHORTEST = 2  # tokens: the start and the end of a prompt


class Encoded(NamedTuple):
    """What one encoder makes of B prompts, in float32.

    last: (B, L, D) of the last layer, normed. penultimate: (B, L, D) of the layer before it.
    pooled: (B, P) where the encoder projects; None elsewhere.
    """

    last: Tensor
    penultimate: Tensor
    pooled: Tensor | None


# Encoders that stay open, by the path of the part and the device; None: each is opened and dropped.
_OPEN: ContextVar[dict[tuple[Path, str], Any] | None] = ContextVar("open encoders", default=None)


@contextlib.contextmanager
def encoders_kept() -> Iterator[None]:
    """Keep the text encoders that are opened inside in memory, to the end of it."""
    before = _OPEN.set({})
    try:
        yield
    finally:
        _OPEN.reset(before)


def encode(
    folder: Path,
    prompts: Sequence[str],
    *,
    tokenizer: str,
    encoder: str,
    device: str = "cpu",
    batch_size: int = 64,
) -> Encoded:
    """Return what the encoder in `folder/encoder` makes of the prompts; see `encoders_kept`.

    tokenizer, encoder: names of parts. Prompts are padded to the tokenizer's length; longer ones
    are cut, as by stock pipelines, with a warning. Raises FolderError for a part that is missing,
    pickled or damaged.
    """
    words, network = _tokenizer(folder / tokenizer), _opened(folder / encoder, device)
    length = _length(words, network, folder / tokenizer)
    with reading(folder / tokenizer):
        ids, mask = _ids(words, list(prompts), length)
    _check_ids(ids, network, folder, tokenizer, encoder)
    told = mask if getattr(network.config, "use_attention_mask", False) else None
    parts = []
    with torch.no_grad():
        for first in range(0, len(ids), batch_size):
            few = slice(first, first + batch_size)
            out = network(
                ids[few].to(device),
                attention_mask=None if told is None else told[few].to(device),
                output_hidden_states=True,
            )
            pooled = out[0] if out[0].ndim == 2 else None
            parts.append((out.last_hidden_state, out.hidden_states[-2], pooled))
    last, penultimate, pooled_parts = zip(*parts, strict=True)
    pooled = None if pooled_parts[0] is None else torch.cat(pooled_parts)
    encoded = Encoded(torch.cat(last), torch.cat(penultimate), pooled)
    for tensor in (encoded.last, encoded.penultimate, encoded.pooled):
        if tensor is not None:
            check_finite(tensor, f"the text embeddings of {folder / encoder}")
    return encoded


def _length(words: Any, network: Any, path: Path) -> int:
    """Return to how many tokens prompts are padded: the tokenizer's length, or the encoder's.

    A tokenizer without a length of its own has a huge one.
    """
    most = int(network.config.max_position_embeddings)
    own = words.model_max_length
    if not is_number(own) or own != int(own) or own < SHORTEST:
        raise FolderError(
            f"{path / 'tokenizer_config.json'}: model_max_length must be a whole number from "
            f"{SHORTEST} to {most}, got {own!r}. Write {most}, or leave it out."
        )
    return min(int(own), most)


def _check_ids(ids: Tensor, network: Any, folder: Path, tokenizer: str, encoder: str) -> None:
    known, most = int(network.config.vocab_size), int(ids.max())
    if most >= known:
        raise FolderError(
            f"{folder}: {tokenizer} must have the words of {encoder}, got token {most} and "
            f"{known} embeddings. They are of different models: copy both from one folder."
        )


def _ids(words: Any, prompts: list[str], length: int) -> tuple[Tensor, Tensor]:
    short = words(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    cut = [
        p
        for p, i in zip(prompts, words(prompts, verbose=False).input_ids, strict=True)
        if len(i) > length
    ]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(prompts)} prompts are longer than {length} tokens and are cut, "
            f"the first is {cut[0][:60]!r}",
            FewstepWarning,
            stacklevel=4,
        )
    return short.input_ids, short.attention_mask


def _tokenizer(path: Path) -> Any:
    from transformers import CLIPTokenizer

    if not path.is_dir():
        raise FolderError(f"{path} is missing; copy the whole folder again.")
    with reading(path):
        words = CLIPTokenizer.from_pretrained(path, local_files_only=True)
        if len(words) < SHORTEST:
            raise FolderError(f"{path} has no words; copy the whole folder again.")
        return words


def _opened(path: Path, device: str) -> Any:
    kept = _OPEN.get()
    if kept is None:
        return _network(path, device)
    if (path, device) not in kept:
        kept[path, device] = _network(path, device)
    return kept[path, device]


def _network(path: Path, device: str) -> Any:
    import transformers

    if not path.is_dir():
        raise FolderError(f"{path} is missing; copy the whole folder again.")
    # The class is the caller's to check, from model_index.json; here it is how to read it.
    names = read_json(path / "config.json").get("architectures")
    kind = transformers.CLIPTextModel
    if isinstance(names, list) and names[:1] == ["CLIPTextModelWithProjection"]:
        kind = transformers.CLIPTextModelWithProjection
    return load_part(kind, path).to(device).eval()
