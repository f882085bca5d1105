"""What a training run is told. One name for a setting, from the recipe to the loop."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# Settings that a run may change when it goes on.
FREE = {
    *("accumulate", "checkpoint_every", "keep", "log_every"),
    *("checkpoint_activations", "shard", "compile"),
}


class Optimisation(BaseModel):
    """Everything about a training run but its length.

    Attributes:
        batch_size: examples an update, over all processes and accumulated parts.
        lr: AdamW's learning rate after warm-up.
        warmup: updates over which it rises from 0.
        decay: its fall from there to `lr_final` times itself at the last update.
        weight_decay, betas: AdamW's.
        grad_clip: largest norm of the gradient.
        ema: decay of the averaged weights, which are the ones that are kept; the average starts
            faster, at (1 + update) / (10 + update).
        weighting: of the loss, a key of `fewstep.distill.problem.WEIGHTINGS`.
        checkpoint_every, keep: updates between checkpoints, and how many stay.
        log_every: updates between readings of the loss, where a non-finite one is noticed.
        precision: of the network; fp32 on CPU.
        accumulate: parts in which a process computes its share of a batch, to save memory.
        checkpoint_activations: compute activations again in the backward pass, to save memory.
        shard: share weights, gradients, averages and the optimiser's state among the processes
            (FSDP), to save memory.
        compile: the network, with torch.compile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(64, ge=1)
    lr: float = Field(1e-3, gt=0.0)
    warmup: int = Field(100, ge=0)
    decay: Literal["linear", "cosine", "none"] = "linear"
    lr_final: float = Field(0.0, ge=0.0, le=1.0)
    weight_decay: float = Field(0.0, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.99)
    grad_clip: float = Field(1.0, gt=0.0)
    ema: float = Field(0.999, ge=0.0, lt=1.0)
    weighting: Literal["truncated-snr", "snr-plus-one"] = "truncated-snr"
    checkpoint_every: int = Field(250, ge=1)
    keep: int = Field(2, ge=1)
    log_every: int = Field(25, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(1, ge=1)
    checkpoint_activations: bool = False
    shard: bool = False
    compile: bool = False


class TrainConfig(Optimisation):
    """A whole training run. updates: of the optimiser."""

    updates: int = Field(1000, ge=1)

    def identity(self) -> dict[str, Any]:
        """Return the settings that what is learnt depends on, but for rounding."""
        return self.model_dump(mode="json", exclude=FREE)
