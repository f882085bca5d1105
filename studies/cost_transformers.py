"""Print what Stable Diffusion 3 medium and Flux.1-dev cost: operations, GPU-hours, memory.

    python -m studies cost_transformers --gpus 8

Nothing is computed: operations and memory are counted on networks of the published sizes without
weights. GPU-hours are operations divided by the sustained rate of --teraflops, an assumption.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.core.denoiser import Denoiser, Guided
from fewstep.distill.plan import STAGE_ONE, TEACHER
from fewstep.models import Card, Lora, Model, student_of
from fewstep.models.clocks.flow import FlowClock
from fewstep.models.families.flux import DISTILLED, GUIDED_RANGE
from fewstep.recipes.config import Recipe, load_recipe
from fewstep.recipes.teachers import hold_matrices
from fewstep.train import Estimate, TrainConfig, estimate
from fewstep.train.optimizer import state_bytes
from studies.common import argument_parser, markdown

GIB = 2**30
SHAPE = (16, 128, 128)  # latents of a picture of 1024 x 1024
RANK = 16


@dataclass(frozen=True)
class Published:
    """A published network by its sizes.

    Attributes:
        title: of the section.
        family: in fewstep.
        kind, sizes: class of diffusers and its arguments.
        text, pooled: numbers of tokens and features of the prompt, features of the pooled prompt.
        guided: whether the teacher takes two passes; else its guidance is in its weights already.
    """

    title: str
    family: str
    kind: Any
    sizes: dict[str, Any]
    text: tuple[int, int]
    pooled: int
    guided: bool

    def model(self) -> Model:
        """Return the model without weights, on the meta device."""
        with torch.device("meta"):
            network = self.kind(**self.sizes)
        card = Card(
            fewstep="0", family=self.family, name=TEACHER, clock="flow", shape=SHAPE, null_prompt=""
        )
        if not self.guided:
            changes = {"name": STAGE_ONE, "stage": DISTILLED, "w_range": GUIDED_RANGE}
            card = card.model_copy(update=changes)
        return Model(network, card, FlowClock(3.0))

    def cond(self) -> dict[str, Tensor]:
        """Return the condition of one picture, on the meta device."""
        return {
            "text": torch.empty(1, *self.text, device="meta"),
            "pooled": torch.empty(1, self.pooled, device="meta"),
        }


SD3 = Published(
    "Stable Diffusion 3 medium",
    "stable-diffusion-3",
    SD3Transformer2DModel,
    {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
        "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64,
        "joint_attention_dim": 4096, "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
    },
    (333, 4096),
    2048,
    guided=True,
)  # fmt: skip
FLUX = Published(
    "Flux.1-dev",
    "flux-guided",
    FluxTransformer2DModel,
    {
        "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24,
        "attention_head_dim": 128, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
        "guidance_embeds": True,
    },
    (512, 4096),
    768,
    guided=False,
)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Print the sections of the page."""
    parser = argument_parser("cost_transformers", __doc__)
    parser.add_argument(
        "--teraflops", type=float, default=400.0, help="sustained rate of one GPU; default 400"
    )
    parser.add_argument("--gpus", type=int, default=8, help="that share the model; default 8")
    given = parser.parse_args(arguments)
    for published in (SD3, FLUX):
        print("\n\n".join(section(published, given.teraflops, given.gpus)), end="\n\n")


def section(published: Published, teraflops: float, gpus: int) -> list[str]:
    """Return the paragraphs and tables of one network."""
    model = published.model()
    operations = forward(model, published.cond())
    return [
        f"### {published.title}",
        sizes(model, operations),
        stages(plan(published), operations, teraflops),
        memory(published, model, gpus),
    ]


def sizes(model: Model, operations: int) -> str:
    """Return how large a network is and how many operations an evaluation has."""
    weights = sum(p.numel() for p in model.parameters())
    return (
        f"Network: {weights / 1e9:.2f} billion parameters, {operations / 1e12:.1f} TFLOP per "
        "evaluation of one picture of 1024×1024."
    )


def plan(published: Published) -> Recipe:
    """Return the recipe for text models; a network of stage one takes the teacher's place in it."""
    recipe = load_recipe("stable-diffusion")
    if published.guided:
        return recipe
    own = tuple(
        s.model_copy(update={"parent": STAGE_ONE}) if s.parent == TEACHER else s
        for s in recipe.distill.stages
    )
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"stages": own})})


def forward(model: Model, cond: dict[str, Tensor]) -> int:
    """Return the floating-point operations of one evaluation."""
    z, one = torch.empty(1, *SHAPE, device="meta"), torch.empty(1, device="meta")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(z, one, cond, one)
    return int(counted.get_total_flops())


def stages(recipe: Recipe, operations: int, teraflops: float) -> str:
    """Return the table of the stages: evaluations, operations and GPU-hours, and their sums."""
    rows = []
    total = [0, 0]
    for stage in recipe.distill.plan():
        cost = stage.cost(recipe.distill.batch_size)
        # A backward pass counts as two evaluations; checkpointing computes the forward pass again.
        counts = [cost.evaluations, cost.evaluations + cost.student]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        rows.append(_row(str(stage.name), counts, operations, teraflops))
    rows.append(_row("all", total, operations, teraflops))
    head = ["stage", "evaluations", "EFLOP", "GPU-hours", "GPU-hours, checkpointed"]
    return markdown(head, rows, numbers=range(1, 5))


def _row(name: str, counts: list[int], operations: int, teraflops: float) -> list[str]:
    hours = [count * operations / (teraflops * 1e12) / 3600 for count in counts]
    work = counts[0] * operations / 1e18
    return [name, f"{counts[0]:,}", f"{work:,.0f}", *(f"{h:,.0f}" for h in hours)]


def memory(published: Published, model: Model, gpus: int) -> str:
    """Return the table of what one GPU holds, in GiB, where it takes one trajectory at a time."""
    again = {"checkpoint_activations": True}
    plain, checkpointed, lora = (
        counted(published, model, settings, lora=adapter)
        for settings, adapter in (({}, None), (again, None), (again, Lora(rank=RANK)))
    )
    cut = counted(published, model, {**again, "shard": True}, gpus)
    short, short_lora = (
        counted(published, model, again, lora=adapter, teacher_dtype=torch.bfloat16)
        for adapter in (None, Lora(rank=RANK))
    )
    small = TrainConfig(batch_size=1, optimizer="adamw8bit")
    rows = [
        held("all weights", plain),
        held("checkpointing", checkpointed),
        held("checkpointing, 8-bit AdamW", replace(checkpointed, optimiser=moments(model, small))),
        held("checkpointing, teacher in bf16", short),
        held(f"checkpointing, sharded by {gpus}", cut),
        held(f"checkpointing, LoRA of rank {RANK}", lora),
        held(f"checkpointing, LoRA of rank {RANK}, teacher in bf16", short_lora),
    ]
    head = ["what is trained, and how", "weights", "gradients", "optimiser", "average",
            "activations", "GiB per GPU"]  # fmt: skip
    return "\n".join([*markdown(head, (), numbers=range(1, 7)).splitlines(), *rows])


def moments(model: Model, config: TrainConfig) -> int:
    """Return the bytes of the optimiser's state where every weight is trained."""
    return sum(state_bytes(p.numel(), config) for p in model.parameters())


def counted(
    published: Published,
    model: Model,
    settings: dict[str, Any],
    gpus: int = 1,
    lora: Lora | None = None,
    teacher_dtype: torch.dtype = torch.float32,
) -> Estimate:
    """Return what fewstep foresees of the first stage, with the teacher beside the student.

    Each GPU takes its part of a batch one trajectory after the other.
    """
    model = copy.deepcopy(model)
    stage = next(iter(plan(published).distill.plan()))
    at_once = 2 * gpus * (stage.steps or 1)
    config = TrainConfig(batch_size=at_once, accumulate=2, precision="bf16", **settings)
    cond = published.cond()
    teacher: Denoiser = Guided(model, cond) if published.guided else model
    student = student_of(teacher, stage, (2.0, 9.0), lora=lora)
    hold_matrices(model, teacher_dtype)
    problem = stage.problem(teacher, (2.0, 9.0), cond)
    x = torch.empty(1, *SHAPE, device="meta")
    return estimate(student, problem, config, x, cond, processes=gpus)


def held(name: str, found: Estimate) -> str:
    """Return a row of the table of memory."""
    parts = (found.weights, found.gradients, found.optimiser, found.ema, found.activations)
    return " | ".join([f"| {name}", *(f"{p / GIB:.1f}" for p in (*parts, found.total))]) + " |"
