"""Compare noised states with trajectories on the exact mixture of the tests: a minute per seed.

    python -m studies mixture_states 0 1

Prints one line per seed and kind of states: the seed, the states of stage one, the states of the
students, then one ratio for each of w = 0, 1, 2, 4. The ratio is the paired distance of the 4-step
student to the teacher's 256 steps, divided by that of the teacher's own 4 DDIM steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.distill.test_mixture_distillation import W, data, draw
from tests.distill.toy import Net, fit

from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.steps import StepDistillation
from fewstep.distill.trajectory import States
from fewstep.metrics import paired_rms
from studies.common import argument_parser

WS = (0.0, 1.0, 2.0, 4.0)
REFERENCE_STEPS = 256
# The states of stage one, and those of the students.
KINDS: tuple[tuple[States, States], ...] = (
    ("noised", "noised"),
    ("noised", "trajectory"),
    ("trajectory", "trajectory"),
)


def main(arguments: Sequence[str]) -> None:
    """Print the lines of every seed."""
    parser = argument_parser("mixture_states", __doc__)
    parser.add_argument("seeds", nargs="*", type=int, default=[0, 1], help="default 0 and 1")
    parser.add_argument(
        "--updates",
        nargs=2,
        type=int,
        default=(1500, 500),
        metavar=("STAGE_ONE", "STUDENT"),
        help="updates of stage one, and of each student; default 1500 and 500",
    )
    given = parser.parse_args(arguments)
    for seed in given.seeds:
        for first, second, ratios in compare(seed, *given.updates):
            print(seed, first, second, *(f"{ratio:.2f}" for ratio in ratios), flush=True)


def compare(
    seed: int, stage_one_updates: int, student_updates: int
) -> Iterator[tuple[States, States, list[float]]]:
    """Yield the states of stage one, those of the students, and the ratio at each w of `WS`."""
    mixture = data()
    teacher = mixture.guided()
    references = {w: draw(teacher, w, REFERENCE_STEPS) for w in WS}
    own = {w: paired_rms(draw(teacher, w, 4), references[w]) for w in WS}
    ones: dict[States, Net] = {}
    for first, second in KINDS:
        if first not in ones:
            stage_one = GuidanceDistillation(teacher, w_range=W, states=first)
            ones[first] = fit(Net(), stage_one, mixture, stage_one_updates, seed, lr=3e-3)
        student = ones[first]
        for steps, substeps in ((8, 4), (4, 2)):
            stage = StepDistillation(student, steps, substeps=substeps, w_range=W, states=second)
            student = fit(student, stage, mixture, student_updates, seed + steps, lr=2e-3)
        yield first, second, [paired_rms(draw(student, w, 4), references[w]) / own[w] for w in WS]
