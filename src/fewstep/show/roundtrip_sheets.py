"""Sheets of round trips: the images, and what each encoder and its student make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewstep.measure.roundtrip import SHOWN, RoundTrip, Way
from fewstep.show.sheet import rows_of


def sheets(trip: RoundTrip, ways: Sequence[Way], w: float) -> dict[str, tuple[Any, list[str]]]:
    """Return two sheets, "back" and "transfer", each with the labels of its rows.

    The first row holds the images themselves, then each way has a row.
    """
    shown = [trip.shown(way, w) for way in ways]
    images = trip.images[0][:SHOWN]
    labels = ["source", *(s.label for s in shown)]
    back, moved = [images, *(s.back for s in shown)], [images, *(s.moved for s in shown)]
    return {
        "back": (rows_of(back, SHOWN, 4), labels),
        "transfer": (rows_of(moved, SHOWN, 4), labels),
    }
