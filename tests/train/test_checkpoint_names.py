"""Checkpoints of runs that were begun when a model's network was called `unet` go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewstep.errors import CheckpointError
from fewstep.train.checkpoint import Checkpoint
from fewstep.train.optimizer import check_state


def test_old_names_of_a_models_network_are_the_new_ones() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    old = Checkpoint(3, {"unet.conv.weight": one, "scale": two}, {"unet.conv.weight": two}, {})
    new = old.with_names({"network.conv.weight": one, "scale": two})
    assert new.weights == {"network.conv.weight": one, "scale": two}
    assert new.ema == {"network.conv.weight": two}
    assert new.update == 3
    # A module of the user's own may have a part of that name.
    assert old.with_names({"unet.conv.weight": one, "scale": two}) == old


def test_moments_of_another_shape_are_refused_before_an_update(tmp_path: Path) -> None:
    state = {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4, 2)}}
    check_state(state, [torch.zeros(4, 2)], tmp_path)
    for parameters in ([torch.zeros(2, 4)], []):
        with pytest.raises(CheckpointError, match="optimiser's state must fit"):
            check_state(state, parameters, tmp_path)
