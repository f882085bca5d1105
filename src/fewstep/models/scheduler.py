"""Clocks and schedulers of stock pipeline folders: read, and chosen for a model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeAlias

from fewstep.errors import FolderError, MissingError, did_you_mean
from fewstep.files.parts import INDEX, read_json
from fewstep.models.card import CARD
from fewstep.models.clocks import betas, flow
from fewstep.models.clocks.betas import BetaClock, beta_clock
from fewstep.models.clocks.clock import Clock
from fewstep.models.clocks.flow import FlowClock, flow_clock, is_flow
from fewstep.models.families import stock_family

CONFIG = Path("scheduler") / "scheduler_config.json"
StockClock: TypeAlias = "BetaClock | FlowClock"
LCM = "LCMScheduler"
UNDERSTOOD = tuple(dict.fromkeys((*betas.UNDERSTOOD, *flow.UNDERSTOOD)))


def read_clock(folder: Path, base: Path | None = None) -> StockClock:
    """Return the clock of a pipeline folder's scheduler.

    base: the folder with index and network, where they are not in the same one.

    Raises FolderError: no such file, not JSON, or a scheduler or settings that are not understood;
    MissingError: a scheduler that this diffusers is too old to have.
    """
    path = folder / CONFIG
    given = read_json(path, infinities=True)
    name = str(given.get("_class_name"))
    # Without a card nobody knows that the network jumps to clean.
    if name not in UNDERSTOOD and not (name == LCM and (folder / CARD).is_file()):
        raise FolderError(
            f"{path}: _class_name: {name!r} is not understood; fewstep knows networks trained on "
            "betas or on rectified flow, that is "
            f"{', '.join(UNDERSTOOD)}.{did_you_mean(name, UNDERSTOOD)}"
        )
    config = _with_defaults(name, given)
    base = base or folder
    family = stock_family(base) if (base / INDEX).is_file() else None
    if is_flow(config) != (family is not None and family.flow is not None):
        trained = "betas" if is_flow(config) else "rectified flow"
        raise FolderError(
            f"{path}: _class_name: {name!r} is not understood in a folder of this pipeline, whose "
            f"networks are trained on {trained}; see {base / INDEX}. Copy both files again."
        )
    if family is None or family.flow is None:
        return beta_clock(config, path)
    network = base / family.part / "config.json"
    tokens = family.tokens(read_json(network), network) if family.tokens else None
    return flow_clock(config, tokens, family.flow == "spaced", path)


def stock_scheduler(clock: Clock, sampler: str | None) -> Any:
    """Return the stock scheduler that makes the steps of a model of a clock and a sampler.

    That of consistency sampling is LCMScheduler, on networks that were trained on betas.
    """
    stock = clock.scheduler()
    if not is_lcm(clock, sampler):
        return stock
    from diffusers import LCMScheduler

    # Every timestep may be one of N, and the boundary conditions that LCM's networks were trained
    # with are the identity.
    return LCMScheduler.from_config(
        stock.config, original_inference_steps=len(clock), timestep_scaling=1e6
    )


def is_lcm(clock: Clock, sampler: str | None) -> bool:
    """Whether LCMScheduler makes the steps of a model of this clock and sampler."""
    return sampler == "consistency" and clock.prediction != "flow"


def _with_defaults(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings, with the defaults of that scheduler for those that are not set."""
    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None:
        raise MissingError(f"{name} needs a newer diffusers: pip install -U diffusers")
    known = inspect.signature(kind.__init__).parameters
    found = {k: p.default for k, p in known.items() if p.default is not inspect.Parameter.empty}
    settings = {k: v for k, v in given.items() if not k.startswith("_")}
    return {**found, **settings, "_class_name": name}
