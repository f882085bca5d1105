"""What the models of a table are asked for: class ids, prompts of classes, or real captions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core.cond import Cond, take
from fewstep.core.denoiser import Guided
from fewstep.data import DataConfig, Dataset, captions_of
from fewstep.data.captions import fill
from fewstep.folders import encode_prompts
from fewstep.models import Model, card_of, encoders_kept, model_of
from fewstep.train import rank_and_count

AT_ONCE = 2_000  # prompts whose encodings are kept in memory; of more, those of a part
ENOUGH = {"class": 2, "prompt": 10}  # images per class, on average, by what models are given


def has_classes(data: Dataset, config: DataConfig) -> bool:
    """Whether the images of a data set have classes, rather than captions.

    A data set numbers its captions as it numbers classes. Captions that few images share, or one
    caption for all of them, are no classes: a classifier could learn nothing from them.
    """
    return data.num_classes > 1 and len(data) >= ENOUGH[config.cond] * data.num_classes


def evenly(count: int, of: int) -> Tensor:
    """Return `count` numbers from 0 to of - 1, evenly spread and rising; some twice if need be."""
    return torch.linspace(0, of - 1, count, dtype=torch.float64).round().long()


@dataclass(frozen=True)
class Conditions:
    """The same conditions for every cell of a table, so that cells compare image by image.

    Attributes:
        config: of the images; its caption templates turn classes into prompts.
        data: the training images.
        samples: images per cell.
        device: of the text encoders.
    """

    config: DataConfig
    data: Dataset
    samples: int
    device: str = "cpu"

    @cached_property
    def labels(self) -> Tensor | None:
        """The class of each sample (samples,), in turn; None where the images have no classes.

        Of more classes than half the samples, evenly chosen ones come twice each.
        """
        classes = has_classes(self.data, self.config)
        return self._turns(self.data.num_classes) if classes else None

    def _turns(self, classes: int) -> Tensor:
        asked = max(1, min(classes, self.samples // 2))
        return evenly(asked, classes)[torch.arange(self.samples) % asked]

    def labels_for(self, model: Model | Guided) -> Tensor | None:
        """Return the class of each sample of a model; None for prompts that are no classes.

        A class-conditional model on images without classes draws its own classes in turn.
        """
        classes = card_of(model).num_classes
        if not classes:
            return self.labels
        return self._turns(classes) if self.labels is None else self.labels

    @cached_property
    def texts(self) -> list[str]:
        """The prompt of each sample: the first template of its class, or a real image's caption.

        Captions are those of training images that are spread evenly over the data set.
        """
        texts, templates = self.data.class_texts, self.config.captions
        if self.labels is not None:
            return [fill(templates[0], texts[k]) for k in self.labels.tolist()]
        index = evenly(self.samples, len(self.data))
        ids: list[int] = []
        for part in index.split(64):  # the images come along and are dropped
            _, labels = self.data.batch(part)
            assert isinstance(labels, Tensor)
            ids += labels.tolist()
        return captions_of(templates, [texts[k] for k in ids], index)

    def kind(self, model: Model | Guided) -> str:
        """Return what a model's samples are conditioned on, for the key of a cell."""
        if card_of(model).num_classes:
            return "classes"
        if self.labels is not None:
            return f"template {self.config.captions[0]}"
        return f"captions {' | '.join(self.config.captions)}"

    def of(self, model: Model | Guided, part: range) -> Cond:
        """Return a model's conditions of the samples in part: class ids, or encoded prompts."""
        labels = self.labels_for(model)
        if card_of(model).num_classes and labels is not None:
            return labels[part.start : part.stop]
        inner = model_of(model)
        assert inner.source is not None
        encoded = self._encoded.get(inner.source)
        if encoded is None or not set(part) <= set(encoded.covers):
            encoded = self._encoded[inner.source] = self._encode(inner.source, part)
        index = torch.tensor([encoded.places[text] for text in self._texts_in(part)])
        return take(encoded.cond, index)

    def opened(self, model: Model | Guided) -> AbstractContextManager[None]:
        """Keep a model's text encoders in memory where each part is encoded by itself."""
        asked = not card_of(model).num_classes and self._are_many and rank_and_count()[1] > 1
        return encoders_kept() if asked else nullcontext()

    @cached_property
    def _are_many(self) -> bool:
        return len(set(self.texts)) > AT_ONCE

    def _encode(self, source: Path, part: range) -> Encoded:
        """Return the encoded prompts of the part, and of as many more as are worth keeping.

        Of many prompts several processes encode the part alone: the next one is another's.
        """
        covers = range(self.samples)
        if self._are_many and rank_and_count()[1] > 1:
            covers = part
        elif self._are_many:
            covers = range(part.start, max(part.stop, min(part.start + AT_ONCE, self.samples)))
        asked = sorted(set(self._texts_in(covers)))
        cond = encode_prompts(source, asked, device=self.device)
        return Encoded(covers, {text: k for k, text in enumerate(asked)}, cond)

    def _texts_in(self, part: range) -> list[str]:
        return self.texts[part.start : part.stop]

    @cached_property
    def _encoded(self) -> dict[Path, Encoded]:
        """The prompts that the text encoders of a folder encoded last."""
        return {}


class Encoded(NamedTuple):
    """Distinct prompts of the samples `covers`, each with its place in the condition batch."""

    covers: range
    places: dict[str, int]
    cond: Cond
