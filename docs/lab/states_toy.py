"""Compare noised states with trajectories on the exact mixture of the tests: a minute a seed.

    PYTHONPATH=. python docs/lab/states_toy.py [SEED ...]

Prints, for each seed, the states of stage one and of the students, and at w = 0, 1, 2, 4 the
paired distance of the 4-step student to the teacher's 256 steps, as a part of DDIM-4's own.
"""

from __future__ import annotations

import sys

from tests.distill.test_mixture_distillation import W, data, draw
from tests.distill.toy import Net, fit

from fewstep.distill.halve import Halve
from fewstep.distill.match import Match
from fewstep.distill.trajectory import States
from fewstep.metrics import paired_rms

PAIRS: list[tuple[States, States]] = [
    ("noised", "noised"),
    ("noised", "trajectory"),
    ("trajectory", "trajectory"),
]


def main(seeds: list[int]) -> None:
    mixture = data()
    teacher = mixture.guided()
    for seed in seeds:
        ones: dict[States, Net] = {}
        for states in ("noised", "trajectory"):
            problem = Match(teacher, w=W, states=states)
            ones[states] = fit(Net(), problem, mixture, 1500, seed, lr=3e-3)
        for first, second in PAIRS:
            student = ones[first]
            for steps, substeps in ((8, 4), (4, 2)):
                stage = Halve(student, steps, substeps=substeps, w=W, states=second)
                student = fit(student, stage, mixture, 500, seed + steps, lr=2e-3)
            ratios = []
            for w in (0.0, 1.0, 2.0, 4.0):
                reference = draw(teacher, w, 256)
                ours, own = (paired_rms(draw(d, w, 4), reference) for d in (student, teacher))
                ratios.append(f"{ours / own:.2f}")
            print(seed, first, second, *ratios, flush=True)


if __name__ == "__main__":
    main([int(s) for s in sys.argv[1:]] or [0, 1])
