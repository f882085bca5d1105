"""Originals, made once in each process."""

from __future__ import annotations

import pytest
from tests.fuzz import originals
from tests.fuzz.originals import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Folders of models of every family and of images of every kind; not to be changed."""
    home = tmp_path_factory.mktemp("originals")
    data = {name: make(home / name) for name, make in originals.DATA.items()}
    return World(originals.models(home), data)


@pytest.fixture(scope="module", autouse=True)
def _features(trained_once: None) -> None:
    """The features of the digits are the same in every case."""
