"""A denoiser of latents whose network comes from a stock pipeline folder, on its clock."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from fewstep.core.denoiser import Traits
from fewstep.models.card import Card
from fewstep.models.table import Table
from fewstep.models.unet_class import UNetModel


class PipelineModel(UNetModel):
    """What the families have in common: the clock, and the parts that surround the network.

    Attributes:
        table: the clock, and what the network predicts.
        source: the folder of the parts that are not trained.
    """

    source: Path

    family: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]  # stock pipelines whose folders are of this family
    parts: ClassVar[dict[str, tuple[str, ...]]]  # name -> classes of the parts that it must have

    def __init__(self, unet: Any, card: Card, table: Table, source: Path) -> None:
        """Wrap a network and say with a card what it is."""
        super().__init__(unet, card)
        self.table = table
        self.source = source

    @property
    def network_class(self) -> list[str]:
        """Library and class of the network, as `model_index.json` has them."""
        return ["diffusers", type(self.unet).__name__]

    def like(self, unet: Any, card: Card) -> PipelineModel:
        """Return another model of this family, clock and folder."""
        return type(self)(unet, card, self.table, self.source)

    @property
    def traits(self) -> Traits:
        """What the card and the table say, as the core understands it."""
        return replace(
            super().traits,
            clock=self.table.clock,
            split=self.table.split,
            phi_range=self.table.phi_range,
        )

    @classmethod
    @abstractmethod
    def check_network(cls, config: dict[str, Any], path: Path) -> None:
        """Raise FolderError where the network needs something that this family does not tell it."""

    @classmethod
    @abstractmethod
    def read_network(cls, folder: Path) -> Any:
        """Return the network of a folder, in float32. Raises FolderError."""

    @classmethod
    @abstractmethod
    def conditions(cls, index: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
        """Return what the card says of conditions, from `model_index.json` and the network's."""
