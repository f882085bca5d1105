"""Prompts to conditions, by `encode_prompt` of the stock pipeline without its network and VAE."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fewstep.core.cond import Cond
from fewstep.core.finite import check_finite_cond
from fewstep.errors import FewstepWarning, FolderError, MissingError, RangeError
from fewstep.files.parts import is_number, read_json, reading
from fewstep.files.weights import load_part, quietly
from fewstep.models.families import Family

SHORTEST = 2  # tokens: the start and the end of a prompt
NO_LIMIT = int(1e30)  # tokens, as transformers writes that a tokenizer has no length of its own
ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # how the names of these parts start
PROJECTION = "text_projection.weight"  # some folders keep it for encoders that do not use it

# Pipelines that stay open, by folder and device; None: each is opened and dropped.
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
    family: Family,
    folder: Path,
    prompts: Sequence[str],
    *,
    device: str = "cpu",
    batch_size: int = 64,
    unconditional: bool = False,
    max_sequence_length: int | None = None,
) -> Cond:
    """Return the condition batch of the prompts, in float32; see `encoders_kept`.

    Args:
        family: its first pipeline's `encode_prompt` is called, with the folder's parts that are
            named tokenizer... and text_encoder..., of the first class that the family gives them.
        folder: of a stock pipeline of the family.
        prompts: at least one. Longer ones than the pipeline reads are cut, with a warning.
        device: of the encoders and of the condition batch.
        batch_size: prompts per call of `encode_prompt`.
        unconditional: whether they are for the unconditional pass, as negative prompts are.
        max_sequence_length: argument of the stock pipeline; by default the pipeline's own.

    Raises:
        RangeError: max_sequence_length for a pipeline without it.
        FolderError: a part that is missing, pickled, damaged, or does not fit the others.
        MissingError: a tokenizer that needs SentencePiece where it is not installed.
        NonFiniteError: embeddings that are NaN or infinite.
    """
    assert family.condition is not None
    pipe = _opened(folder, family, device)
    encoders = [name for name in family.parts_in(folder) if name.startswith(ENCODER)]
    own = inspect.signature(pipe.encode_prompt).parameters
    called = inspect.signature(type(pipe).__call__).parameters
    defaults = () if unconditional else family.prompt_defaults
    needed = {k: None for k, p in own.items() if p.default is p.empty and k != "prompt"}
    needed |= {name: called[name].default for name in defaults}
    limit = "max_sequence_length"
    most = called[limit].default if limit in called else NO_LIMIT
    if max_sequence_length is not None:
        if limit not in called:
            raise RangeError(
                f"{limit} must be left out for {type(pipe).__name__}, whose prompts are as long as "
                f"its tokenizer has them, got {max_sequence_length}."
            )
        most = max_sequence_length
    # As a stock pipeline calls it, without guidance. Captions are cleaned where bs4 and ftfy are
    # installed, there and here.
    asked = {"do_classifier_free_guidance": False, "clean_caption": True, limit: most}
    plain = {key: value for key, value in asked.items() if key in own}
    for encoder in encoders:
        kind = family.parts[encoder.replace(ENCODER, TOKENIZER)][0]
        # CLIP's prompts have the length of its tokenizer, whatever T5's have beside it.
        longest = NO_LIMIT if kind == "CLIPTokenizer" else most
        _check_prompts(pipe, list(prompts), encoder, folder, longest)
    batches = []
    with torch.no_grad(), quietly():
        for first in range(0, len(prompts), batch_size):
            few = list(prompts[first : first + batch_size])
            given = {**needed, "prompt": few, "device": device, "num_images_per_prompt": 1}
            made = pipe.encode_prompt(**{**given, **plain})
            batches.append(family.fill(family.condition(made, folder), most))
    where = ", ".join(str(folder / name) for name in encoders)
    return check_finite_cond(_joined(batches), f"the text embeddings of {where}")


def null_condition(
    family: Family, folder: Path, prompt: str | None, max_sequence_length: int | None = None
) -> Cond:
    """Return the condition of the unconditional pass, a batch of 1.

    prompt: of that pass; None: zeros in place of the text. max_sequence_length: as in `encode`.
    """
    cond = encode(
        family, folder, [prompt or ""], unconditional=True, max_sequence_length=max_sequence_length
    )
    return cond if prompt is not None else family.zeros(cond)


def _joined(batches: list[Any]) -> Cond:
    if isinstance(batches[0], dict):
        return {key: torch.cat([cond[key] for cond in batches]) for key in batches[0]}
    return torch.cat(batches)


def _opened(folder: Path, family: Family, device: str) -> Any:
    kept = _OPEN.get()
    if kept is None:
        return _pipeline(folder, family, device)
    if (folder, device) not in kept:
        kept[folder, device] = _pipeline(folder, family, device)
    return kept[folder, device]


def _pipeline(folder: Path, family: Family, device: str) -> Any:
    """Return the stock pipeline of the folder's text parts; its other parts are None."""
    import diffusers

    parts = family.parts_in(folder)
    opened: dict[str, Any] = {}
    lengths: dict[str, dict[str, int]] = {}
    for encoder in (name for name in parts if name.startswith(ENCODER)):
        name = encoder.replace(ENCODER, TOKENIZER)
        words = _tokenizer(folder / name, family.parts[name][0])
        network = _encoder(folder / encoder, parts[encoder][0], device)
        words.model_max_length = _length(words, network, folder / name)
        opened |= {name: words, encoder: network}
        lengths.setdefault(family.parts[name][0], {})[name] = words.model_max_length
    for same in lengths.values():
        _check_lengths(folder, same)
    with quietly():
        kind = getattr(diffusers, family.pipelines[0])
        needed = inspect.signature(kind).parameters.items()
        others = {name: None for name, p in needed if p.default is p.empty and name not in opened}
        pipe = kind(**opened, **others)
    if len(parts) < len(family.parts):
        # In place of a missing encoder's embeddings it makes zeros of the size in this file.
        config = read_json(folder / family.part / "config.json")
        setattr(pipe, family.part, SimpleNamespace(config=SimpleNamespace(**config)))
    return pipe


def _check_lengths(folder: Path, lengths: dict[str, int]) -> None:
    """Raise FolderError unless tokenizers of one class, whose embeddings are joined, agree."""
    if len(set(lengths.values())) > 1:
        given = " and ".join(str(length) for length in lengths.values())
        again = " and ".join(f"{name}/" for name in lengths)
        raise FolderError(
            f"{folder}: both tokenizers must have one model_max_length, got {given}. Copy {again} "
            "again."
        )


def _length(words: Any, network: Any, path: Path) -> int:
    """Return to how many tokens prompts are padded: the tokenizer's length, or the encoder's.

    A tokenizer without a length of its own has a huge one, and so has an encoder that takes
    prompts of any length, whose pipeline says where they are cut.
    """
    most = getattr(network.config, "max_position_embeddings", None)
    if most is None:
        return NO_LIMIT
    own = words.model_max_length
    if not is_number(own) or own != int(own) or own < SHORTEST:
        raise FolderError(
            f"{path / 'tokenizer_config.json'}: model_max_length must be a whole number from "
            f"{SHORTEST} to {most}, got {own!r}. Write {most}, or leave it out."
        )
    return min(int(own), int(most))


def _check_prompts(pipe: Any, prompts: list[str], encoder: str, folder: Path, most: int) -> None:
    """Raise FolderError for tokens that the encoder lacks; warn of prompts that will be cut."""
    tokenizer = encoder.replace(ENCODER, TOKENIZER)
    words = getattr(pipe, tokenizer)
    with reading(folder / tokenizer):
        ids = words(prompts, verbose=False).input_ids
    known = int(getattr(pipe, encoder).get_input_embeddings().num_embeddings)
    last = max(words.pad_token_id or 0, *(max(row, default=0) for row in ids))
    if last >= known:
        raise FolderError(
            f"{folder}: {tokenizer} must have the words of {encoder}, got token {last} and "
            f"{known} embeddings. They are of different models: copy both from one folder."
        )
    length = min(words.model_max_length, most)
    cut = [prompt for prompt, row in zip(prompts, ids, strict=True) if len(row) > length]
    if cut:
        warnings.warn(
            f"{len(cut)} of {len(prompts)} prompts are longer than {length} tokens and are cut, "
            f"the first is {cut[0][:60]!r}",
            FewstepWarning,
            stacklevel=4,
        )


def _tokenizer(path: Path, kind: str) -> Any:
    import transformers

    if not path.is_dir():
        raise FolderError(f"{path} is missing; copy the whole folder again.")
    if not (path / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        for file in path.glob("*.model"):
            raise MissingError(
                f"{file} needs SentencePiece, which is not installed: "
                "pip install sentencepiece protobuf"
            )
    with reading(path):
        words = getattr(transformers, kind).from_pretrained(path, local_files_only=True)
        if len(words) < SHORTEST:
            raise FolderError(f"{path} has no words; copy the whole folder again.")
        return words


def _encoder(path: Path, kind: str, device: str) -> Any:
    import transformers

    if not path.is_dir():
        raise FolderError(f"{path} is missing; copy the whole folder again.")
    extra = [PROJECTION] if kind == "CLIPTextModel" else []
    return load_part(getattr(transformers, kind), path, extra=extra).to(device).eval()
