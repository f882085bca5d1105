"""Run one study by its name: `python -m studies NAME ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from fewstep.errors import FewstepError

# Name -> what it does, in one line. The module of that name has `main(arguments)`.
STUDIES: dict[str, str] = {
    "table": "tables of one recipe's report.json: cells, and ratios to the teacher",
    "variants": "one student in several runs beside its teacher: orders, states, features of w",
    "comparisons": "tables of the paper's comparisons on the digits",
    "quality": "students against the teacher under several solvers, by number of evaluations",
    "cost": "evaluations, operations, GPU-hours and memory of a recipe, before it runs",
    "cost_transformers": "the same of Stable Diffusion 3 medium and Flux.1-dev, without weights",
    "cost_to_quality": "training cost of several plans to four steps, and what they reach",
    "consistency": "consistency students under both samplers, beside separate students",
    "picture": "the picture of a run, or the labels of a contact sheet written beside its rows",
    "autoencoder": "how far an autoencoder alone takes images from the training images",
    "stock_pipelines": "how far fewstep and stock diffusers pipelines differ on one student",
    "reference": "the pages of recipe keys and of the command line, from the code",
    "notebook": "a notebook of a Markdown page",
    "two_files": "what the two LoRA files of a student cost beside its folder, at several ranks",
    "merged_padding": "a fewstep command that merges Stable Diffusion 3's zero prompt tokens",
    "architecture": "the picture of the packages and their imports, from the code",
    "any_steps": "an any-step student beside separate students, at each number of steps",
    "mixture_states": "noised states against trajectories on an exact Gaussian mixture",
}
USAGE = "usage: python -m studies NAME [ARGUMENT ...]"


def main(arguments: Sequence[str]) -> None:
    """Run the study that the first argument names with the others; without one, list them all."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, STUDIES))
        print(USAGE, "", *(f"  {k:<{width}}  {v}" for k, v in STUDIES.items()), sep="\n")
        return
    name, *others = arguments
    if name not in STUDIES:
        sys.exit(f"NAME must be one of {', '.join(STUDIES)}, got {name}.\n{USAGE}")
    try:
        importlib.import_module(f"studies.{name}").main(others)
    except FewstepError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
