"""Print what a recipe costs before it runs: evaluations, operations, GPU-hours, memory.

    python -m studies cost imagenet64 --gpus 8
    python -m studies cost cifar10 --classes 10 --gpus 1

Operations are counted on the recipe's own network. GPU-hours are operations divided by the
sustained rate of --teraflops, which is an assumption until it has been measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.models import build_unet
from fewstep.recipes.config import Recipe, load_recipe
from studies.common import StudyError, argument_parser, markdown

GIB = 2**30


def main(arguments: Sequence[str]) -> None:
    """Print the cost of one recipe."""
    parser = argument_parser("cost", __doc__)
    parser.add_argument("recipe", help="a built-in recipe or a YAML file")
    parser.add_argument(
        "--teraflops", type=float, default=150.0, help="sustained rate of one GPU; default 150"
    )
    parser.add_argument("--gpus", type=int, default=8, help="number of GPUs; default 8")
    parser.add_argument("--classes", type=int, default=1000, help="of the data; default 1000")
    given = parser.parse_args(arguments)
    recipe = load_recipe(given.recipe)
    parameters, operations = network(recipe, given.classes)
    print(
        f"network: {parameters / 1e6:.0f} million parameters, {operations / 1e9:.1f} GFLOP per "
        "evaluation of one image"
    )
    print(stages(recipe, operations, given.teraflops))
    # Weights, gradient, two moments and the average in float32; the frozen teacher beside them.
    whole = 24 * parameters / GIB
    print(
        f"state: {whole:.1f} GiB with the frozen teacher, or {whole / given.gpus:.1f} GiB on each "
        f"of {given.gpus} when shared (shard: true)"
    )


def network(recipe: Recipe, classes: int) -> tuple[int, int]:
    """Return the number of parameters, and the floating-point operations per evaluation.

    Raises StudyError if the recipe does not say how large its images are.
    """
    size = recipe.data.size
    if size is None:
        raise StudyError(
            f"the recipe must set data.size, the size of its images in pixels; {recipe.name} has "
            "none. Write it into a copy of the recipe and pass that file."
        )
    shape = (recipe.data.channels, size, size)
    unet = build_unet(recipe.network, shape, classes)
    x, t = torch.zeros(1, *shape), torch.zeros(1)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        unet(x, t, None, class_labels=torch.zeros(1, dtype=torch.long))
    return sum(p.numel() for p in unet.parameters()), int(counted.get_total_flops())


def stages(recipe: Recipe, operations: int, teraflops: float) -> str:
    """Return the table of the stages: evaluations, operations and GPU-hours, and their sums."""
    counts = {"teacher": 3 * recipe.teacher.updates * recipe.teacher.batch_size}
    for stage in recipe.distill.plan():
        counts[stage.name] = stage.cost(recipe.distill.batch_size).evaluations
    counts["all"] = sum(counts.values())
    rows = []
    for name, evaluations in counts.items():
        work = evaluations * operations
        hours = work / (teraflops * 1e12) / 3600
        rows.append([name, f"{evaluations:,}", f"{work / 1e15:,.0f}", f"{hours:,.0f}"])
    return markdown(["stage", "evaluations", "PFLOP", "GPU-hours"], rows, numbers=range(1, 4))
