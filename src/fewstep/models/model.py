"""The one denoiser that is made of a network: network, family and clock, with a card."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.denoiser import AtSteps, Denoiser, Traits, inside
from fewstep.errors import RangeError, ShapeError
from fewstep.models import w_input
from fewstep.models.card import Card
from fewstep.models.clocks.clock import Clock
from fewstep.models.clocks.native import NATIVE_CLOCK
from fewstep.models.families import family_named
from fewstep.models.prompts import null_condition
from fewstep.models.steps_input import STEPS_RATE, steps_features
from fewstep.models.w_input import STEPS


@final
class Model(nn.Module):
    """A denoiser made of a network: v = model(z, phi, cond, w), one pass.

    An any-step student has one argument more, the number of steps of each example, (B,) int64;
    `at_steps` fixes it.

    z: (B, C, H, W) images or latents; cond: a condition batch of the family. A network without an
    input for w ignores it; wrap it in `Guided` (as `load` does for a teacher).

    Attributes:
        network: of diffusers, or a module of the user's own.
        card: what the network is, and what it was made for; it names the family.
        clock: relates angles to the network's timesteps.
        source: folder of the parts that surround the network, an autoencoder at least; None
            where states are images.
        family: how the network is asked.
    """

    def __init__(
        self, network: Any, card: Card, clock: Clock = NATIVE_CLOCK, source: Path | None = None
    ) -> None:
        """Make a denoiser of a network. Raises FolderError for an unknown family."""
        super().__init__()
        self.network = network
        self.card = card
        self.clock = clock
        self.source = source
        self.family = family_named(card.family, "the card")
        self._null: Cond | None = None
        self.family.prepare(network)

    @property
    def passes(self) -> int:
        """Network evaluations that one call costs: 1, or what a module of the user's own says."""
        return int(getattr(self.network, "passes", 1)) if self.family.slot == "value" else 1

    @property
    def traits(self) -> Traits:
        """What clock and card say, as the core understands it."""
        card, known = self.card, self.clock.traits(self.network)
        first = _state_like(self.network)
        return Traits(
            shape=card.shape or known.shape,
            w_range=card.w_range or known.w_range,
            steps=card.stage.counts or known.steps,
            sampler=card.sampler or known.sampler,
            clock=known.clock,
            split=known.split,
            phi_range=known.phi_range,
            device=known.device or (None if first is None else first.device),
            dtype=known.dtype or (None if first is None else first.dtype),
            check_cond=known.check_cond or self._check_cond,
        )

    def _check_cond(self, cond: Cond) -> None:
        self.family.check_cond(self.network, self.card, cond)

    @property
    def null_cond(self) -> Cond:
        """The condition of the unconditional pass, a batch of 1; made when first asked for.

        Raises ShapeError where it is not known: of a module of the user's own.
        """
        if self._null is None:
            self._null = self._made_null()
        return self._null

    def _made_null(self) -> Cond:
        if self.family.takes_prompts and self.source is not None:
            prompt, length = self.card.null_prompt, self.card.max_sequence_length
            return null_condition(self.family, self.source, prompt, length)
        if self.card.num_classes:
            return torch.tensor([self.card.null_class])
        raise ShapeError(
            "a module of your own must be given its null condition, and none is known. Use "
            "fewstep.Guided(model, null_cond)."
        )

    @property
    def w_dim(self) -> int | None:
        """Number of features of w that the network takes, None where it takes none."""
        return None if self.family.slot == "value" else w_input.features_of(self.network)

    @property
    def takes_w(self) -> bool:
        """Whether w is an input of the network."""
        return self.family.slot == "value" or self.w_dim is not None

    @property
    def can_fold(self) -> bool:
        """Whether one w can be fixed in the weights, by `fewstep.models.fold_w`."""
        return self.family.fix is not None or self.w_dim is not None

    @property
    def has_unused_weights(self) -> bool:
        """Whether some weights have no effect on the output, and so get no gradient."""
        return self.family.unused

    @property
    def takes_steps(self) -> bool:
        """Whether the number of steps is an input of the network."""
        return bool(self.card.stage.any_steps)

    @property
    def lr_scales(self) -> Mapping[str, float] | None:
        """Factors of the learning rate by names of modules; None where all weights have one rate.

        The input for the number of steps learns faster. Only one of its features is not zero, where
        w has dozens. At the common rate an any-step student is therefore slow to tell its numbers
        of steps apart, and is worst at the largest and the smallest (docs/lab/any-step.md).
        """
        return {f"network.{STEPS}": STEPS_RATE} if self.takes_steps else None

    def at_steps(self, steps: int) -> Denoiser:
        """Return an any-step student at one number of steps; any other model is returned as it is.

        Raises RangeError for a number that the student was not made for.
        """
        if not self.takes_steps:
            return self
        if steps not in self.card.stage.any_steps:
            raise RangeError(
                f"steps must be one of {list(self.card.stage.counts)}, the numbers that "
                f"{self.card.name} was made for, got {steps}. Use one of them."
            )
        return AtSteps(self, steps)

    def like(self, network: Any, card: Card) -> Model:
        """Return another model of this clock and folder."""
        return Model(network, card, self.clock, self.source)

    def checkpoint_activations(self) -> None:
        """From now on compute activations again in the backward pass, to save memory.

        Raises RangeError for a module of the user's own, and for networks that diffusers would
        compute in another way then.
        """
        if not hasattr(self.network, "enable_gradient_checkpointing"):
            raise RangeError(
                "activation checkpointing must be off for a module of your own. Call "
                "torch.utils.checkpoint inside the module instead."
            )
        if not getattr(self.network, "_supports_gradient_checkpointing", True):
            raise RangeError(
                f"activation checkpointing must be off for {type(self.network).__name__}, which "
                "does not support it in this diffusers. Train fewer examples per step."
            )
        w_input.checkpoint_activations(self.network)

    def forward(
        self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor, steps: Tensor | None = None
    ) -> Tensor:
        """Return v (B, C, H, W), converted from what the network predicts (math.md 1).

        Raises RangeError for an any-step student without the numbers of steps.
        """
        asked, timestep = self.clock.place(phi)
        out = self.predict(self.clock.state(z, asked), timestep, cond, w, steps)
        return self.clock.velocity(out, z, asked)

    def predict(
        self, state: Tensor, timestep: Tensor, cond: Cond, w: Tensor, steps: Tensor | None = None
    ) -> Tensor:
        """Return what the network predicts (B, C, H, W), of the clock's state and timestep (B,)."""
        features = self._features(w, state)
        slot = {"value": w, "features": features, None: None}[self.family.slot]
        added = features if self.family.slot is None else None
        with w_input.adding(self.network, added, self._steps_features(steps, state)):
            return self.family.call(self.network, state, timestep, cond, slot)

    def _features(self, w: Tensor, z: Tensor) -> Tensor | None:
        """Return the features of w (B,) that the network takes, if any."""
        dim = self.w_dim
        return None if dim is None else w_input.w_features(w, dim, self.card.w_band).to(z.dtype)

    def _steps_features(self, steps: Tensor | None, z: Tensor) -> Tensor | None:
        """Return the features of numbers of steps (B,), where they are an input."""
        if not self.takes_steps:
            return None
        if steps is None:
            raise RangeError(
                f"the number of steps is an input of {self.card.name}, and none was given. Use "
                "fewstep.sample(student, ..., steps=N), or student.at_steps(N)."
            )
        return steps_features(steps, self.card.stage.counts).to(z.dtype)


def model_of(denoiser: Denoiser) -> Model:
    """Return the model of what `load` gave: itself, or the one inside a guided pair.

    Raises ShapeError where it does not come from a model folder.
    """
    model = inside(denoiser)
    if not isinstance(model, Model):
        raise ShapeError("this denoiser does not come from a model folder; it has no network.")
    return model


def card_of(denoiser: Denoiser) -> Card:
    """Return the card of what `load` gave. Raises ShapeError as `model_of` does."""
    return model_of(denoiser).card


def _state_like(network: nn.Module) -> Tensor | None:
    """Return a weight of the dtype and device that states have; None where there is no weight.

    It is a trained one if there is any: frozen weights under an adapter may be held in bf16.
    """
    tensors = itertools.chain(network.parameters(), network.buffers())
    floats = [t for t in tensors if t.is_floating_point()]
    return next((t for t in floats if t.requires_grad), floats[0] if floats else None)
