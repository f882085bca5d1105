"""The settings of a training run. A setting has one name, from the recipe to the loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewstep.distill.problem import MOST_POOLED

MOST_UPDATES = 1_000_000_000
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]

# Settings that a run may change when it resumes.
FREE = {
    *("accumulate", "checkpoint_every", "keep", "log_every"),
    *("checkpoint_activations", "shard", "compile"),
}


class Optimisation(BaseModel):
    """All settings of a training run but its length.

    Attributes:
        batch_size: examples per update, over all processes and accumulated parts.
        optimizer: "adamw", or "adamw8bit" with moments of 8 bits (bitsandbytes), to save memory.
        lr: AdamW's learning rate after warm-up.
        warmup: updates over which the learning rate rises from 0.
        decay: how the learning rate falls after warm-up, to `lr_final` times itself at the last
            update.
        lr_final: the last learning rate, as a fraction of `lr`.
        weight_decay: AdamW's weight decay.
        betas: AdamW's decay rates of the moments.
        grad_clip: largest norm of the gradient.
        ema: decay of the averaged weights (EMA), which are the ones that are saved; the average
            starts faster, at (1 + update) / (10 + update).
        weighting: of the loss, a key of `fewstep.distill.problem.WEIGHTINGS`.
        checkpoint_every: updates between checkpoints.
        keep: how many checkpoints stay. With at least 2, a damaged newest one costs only the
            updates since the one before.
        log_every: updates between readings of the loss, where a non-finite loss is noticed.
        precision: of the network; fp32 on CPU.
        accumulate: parts in which a process computes its share of a batch, to save memory.
        checkpoint_activations: compute activations again in the backward pass, to save memory.
        shard: divide weights, gradients, averages, the optimiser's state and the teacher among the
            processes (FSDP), to save memory.
        compile: compile the network with torch.compile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    batch_size: int = Field(64, ge=1, le=1 << 20)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    lr: float = Field(1e-3, gt=0.0, le=10.0)
    warmup: int = Field(100, ge=0, le=MOST_UPDATES)
    decay: Literal["linear", "cosine", "none"] = "linear"
    lr_final: float = Field(0.0, ge=0.0, le=1.0)
    weight_decay: float = Field(0.0, ge=0.0, le=100.0)
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    grad_clip: float = Field(1.0, gt=0.0, le=1e9)
    ema: float = Field(0.999, ge=0.0, lt=1.0)
    weighting: Literal["truncated-snr", "snr-plus-one"] = "truncated-snr"
    checkpoint_every: int = Field(250, ge=1, le=MOST_UPDATES)
    keep: int = Field(2, ge=1, le=10_000)
    log_every: int = Field(25, ge=1, le=MOST_UPDATES)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(1, ge=1, le=1 << 16)
    checkpoint_activations: bool = False
    shard: bool = False
    compile: bool = False


class TrainConfig(Optimisation):
    """All settings of a training run.

    Attributes:
        updates: of the optimiser.
        pool: how many updates in a row share the examples that are made for them by one call of the
            problem; they are dealt to the updates at random. For problems whose examples come from
            a few trajectories each.
    """

    updates: int = Field(1000, ge=1, le=MOST_UPDATES)
    pool: int = Field(1, ge=1, le=MOST_POOLED)

    def identity(self) -> dict[str, Any]:
        """Return the settings that the result depends on, apart from rounding."""
        # Left out at its default, so that runs from before there was a choice can go on.
        first = {"optimizer": "adamw", "pool": 1}
        usual = {key for key, value in first.items() if getattr(self, key) == value}
        return self.model_dump(mode="json", exclude=FREE | usual)
