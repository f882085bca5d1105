"""Print what a recipe costs before it starts: evaluations, operations, GPU-hours, memory.

python docs/results/cost.py RECIPE [--teraflops 150] [--gpus 8]

Operations are counted on the recipe's network; GPU-hours divide them by the sustained rate that is
given, which is an assumption until it has been measured.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.models import build_unet
from fewstep.recipes.config import Recipe, load_recipe

GIB = 2**30


def network(recipe: Recipe, classes: int) -> tuple[int, float]:
    """Return the number of parameters and the floating-point operations of one evaluation."""
    shape = (recipe.data.channels, recipe.data.size or 0, recipe.data.size or 0)
    unet = build_unet(recipe.network, shape, classes)
    x, t = torch.zeros(1, *shape), torch.zeros(1)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        unet(x, t, None, class_labels=torch.zeros(1, dtype=torch.long))
    return sum(p.numel() for p in unet.parameters()), float(counted.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--teraflops", type=float, default=150.0, help="sustained, of one GPU")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--classes", type=int, default=1000)
    given = parser.parse_args()
    recipe = load_recipe(given.recipe)
    parameters, operations = network(recipe, given.classes)
    print(f"network: {parameters / 1e6:.0f} million parameters, {operations / 1e9:.1f} GFLOP an "
          "evaluation of one image")  # fmt: skip
    teacher = 3 * recipe.teacher.updates * recipe.teacher.batch_size
    rows = [("teacher", teacher)]
    rows += [(s.name, s.cost(recipe.distill.batch_size).evaluations) for s in recipe.distill.plan()]
    rows.append(("all", sum(n for _, n in rows)))
    print("| stage | evaluations | PFLOP | GPU-hours |\n| --- | ---: | ---: | ---: |")
    for name, evaluations in rows:
        work = evaluations * operations
        hours = work / (given.teraflops * 1e12) / 3600
        print(f"| {name} | {evaluations:,} | {work / 1e15:,.0f} | {hours:,.0f} |")
    # Weights, gradient, two moments and the average in float32; the frozen teacher beside them.
    whole, frozen = 20 * parameters / GIB, 4 * parameters / GIB
    print(
        f"state: {whole:.1f} GiB in all, {whole / given.gpus:.1f} GiB on each of {given.gpus} when "
        f"shared (shard: true); the frozen teacher takes {frozen:.1f} GiB on each"
    )


if __name__ == "__main__":
    main()
