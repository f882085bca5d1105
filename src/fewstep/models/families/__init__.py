"""All families, in one list: a new one is a file beside this one, and a line here."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import FolderError
from fewstep.files.parts import INDEX, read_json
from fewstep.models.families.chroma import CHROMA
from fewstep.models.families.dit import DIT
from fewstep.models.families.family import Family
from fewstep.models.families.flux import FLUX, FLUX_GUIDED
from fewstep.models.families.latent_class import LATENT_CLASS
from fewstep.models.families.own import OWN
from fewstep.models.families.pixart import PIXART_ALPHA, PIXART_SIGMA
from fewstep.models.families.qwen_image import QWEN_IMAGE
from fewstep.models.families.sana import SANA
from fewstep.models.families.sd3 import STABLE_DIFFUSION_3
from fewstep.models.families.stable_diffusion import STABLE_DIFFUSION
from fewstep.models.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from fewstep.models.families.unet_class import UNET_CLASS

__all__ = ["FAMILIES", "Family", "family_named", "stock_family"]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        UNET_CLASS,
        LATENT_CLASS,
        STABLE_DIFFUSION,
        STABLE_DIFFUSION_XL,
        DIT,
        PIXART_SIGMA,
        PIXART_ALPHA,
        STABLE_DIFFUSION_3,
        SANA,
        FLUX,
        FLUX_GUIDED,
        CHROMA,
        QWEN_IMAGE,
        OWN,
    )
}


def family_named(name: str, where: object) -> Family:
    """Return the family of a card. Raises FolderError, naming `where`, for an unknown one."""
    if name not in FAMILIES:
        known = ", ".join(repr(n) for n in FAMILIES if n != OWN.name)
        raise FolderError(f"{where}: family {name!r} is unknown; there are {known}.")
    return FAMILIES[name]


def stock_family(folder: Path) -> Family | None:
    """Return the family of a stock pipeline's folder, by its index and network; None: unknown.

    Raises FolderError where a file that says so is missing or damaged.
    """
    name = read_json(folder / INDEX).get("_class_name")
    found = [f for f in FAMILIES.values() if not f.native and name in f.pipelines]
    if len(found) < 2:
        return next(iter(found), None)
    return next((f for f in found if f.owns(read_json(folder / f.part / "config.json"))), None)
