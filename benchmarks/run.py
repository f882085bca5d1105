"""Ratios of speed, each taken within one run by turns, so that a noisy machine cancels out.

    make bench        # or: python benchmarks/run.py [NAME ...]

Every benchmark times two ways to do the same thing, A and B, alternately, and prints the median of
the ratios A/B with the smallest and the largest.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import fewstep
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided, guide
from fewstep.core.seed import Noise, generator
from fewstep.data import indices, open_dataset
from fewstep.distill.pretrain import Pretrain
from fewstep.distill.problem import loss
from fewstep.models import Card, UNetModel, build_unet, with_w_input
from fewstep.models.native import CLOCK, native_scheduler
from fewstep.models.unet_class import FAMILY
from fewstep.models.w_input import w_features
from fewstep.recipes.config import load_recipe
from fewstep.train import TrainConfig, train

Work = Callable[[], object]
RECIPE = load_recipe("digits")
DATA = open_dataset("digits", "train")


def compare(name: str, a: Work, b: Work, rounds: int) -> None:
    """Time A and B by turns; print how many times as long A takes."""
    a(), b()
    ratios, times = [], []
    for _ in range(rounds):
        seconds = []
        for work in (a, b):
            begun = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begun)
        ratios.append(seconds[0] / seconds[1])
        times.append(seconds)
    middle = [1e3 * statistics.median(t[i] for t in times) for i in (0, 1)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(
        f"{name:<58} {statistics.median(ratios):7.2f}   ({spread}; {middle[0]:.1f} ms / "
        f"{middle[1]:.1f} ms)",
        flush=True,
    )


def model(student: bool) -> UNetModel:
    """Return a network of the digits recipe with random weights."""
    card = Card(
        fewstep=fewstep.__version__,
        family=FAMILY,
        name="bench",
        stage="teacher",
        clock=CLOCK,
        shape=DATA.shape,
        num_classes=10,
        null_class=10,
    )
    teacher = UNetModel(build_unet(RECIPE.network, DATA.shape, 10), card).eval()
    return (
        UNetModel(with_w_input(teacher, RECIPE.network.w_dim), card).eval() if student else teacher
    )


def teacher_against_student() -> None:
    """What distillation is for: 256 guided steps, two passes each, against four single ones."""
    teacher, student, cond = model(False), model(True), torch.arange(100) % 10
    guided = Guided(teacher, teacher.null_cond)
    compare(
        "teacher, 256 guided steps / student, 4 steps",
        lambda: fewstep.sample(guided, cond, w=1.0, steps=256),
        lambda: fewstep.sample(student, cond, w=1.0, steps=4),
        3,
    )


def sample_against_stock_loop() -> None:
    """fewstep.sample's own overhead: against a loop over stock diffusers objects."""
    student, cond = model(True), torch.arange(64) % 10
    scheduler = native_scheduler()

    def stock() -> Tensor:
        z = Noise(0, range(64)).draw(DATA.shape, torch.float32, torch.device("cpu"))
        told = w_features(torch.ones(64), RECIPE.network.w_dim, band=None)
        scheduler.set_timesteps(16)
        with torch.no_grad():
            for t in scheduler.timesteps:
                v = student.unet(z, t, None, class_labels=cond, timestep_cond=told).sample
                z = scheduler.step(v, t, z).prev_sample
        return z

    compare(
        "fewstep.sample / loop over stock objects, 16 steps",
        lambda: fewstep.sample(student, cond, w=1.0, steps=16),
        stock,
        15,
    )


def one_batch_against_two() -> None:
    """Guidance as one batch of 2B, against two batches of B."""
    teacher = model(False)
    guided = Guided(teacher, teacher.null_cond)
    z, phi, cond, w = (
        torch.randn(64, *DATA.shape),
        torch.rand(64),
        torch.arange(64) % 10,
        torch.ones(64),
    )

    def two(z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        null = torch.full((64,), 10)
        return guide(teacher(z, phi, cond, w), teacher(z, phi, null, w), w)

    def quietly(call: Callable[..., Tensor]) -> Work:
        def work() -> None:
            with torch.no_grad():
                for _ in range(5):
                    call(z, phi, cond, w)

        return work

    compare("Guided, one batch of 2B / two batches of B", quietly(guided), quietly(two), 15)


def loop_against_bare() -> None:
    """The training loop with its average, log and checkpoints, against forward, backward, step."""
    updates, problem = 60, Pretrain(torch.tensor([10]))
    looped, bare = model(False), model(False).train()
    optimizer = torch.optim.AdamW(bare.parameters(), fused=True)

    def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
        return DATA.batch(indices(0, update, 64 // parts, len(DATA), rank=part, world=parts))

    def loop() -> None:
        config = TrainConfig(updates=updates, checkpoint_every=250)
        with tempfile.TemporaryDirectory() as folder:
            train(looped, problem, batch, config, Path(folder), device="cpu", progress=False)

    def plain() -> None:
        for update in range(updates):
            r = problem(*batch(update, 0, 1), generator("cpu", update))
            loss(bare(r.z, r.phi, r.cond, r.w), r.v_target, r.phi).backward()
            torch.nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    compare("training loop / bare forward, backward, step; 60 updates", loop, plain, 5)


BENCHMARKS: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (
        teacher_against_student,
        sample_against_stock_loop,
        one_batch_against_two,
        loop_against_bare,
    )
}


def main(names: list[str]) -> None:
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(f"no benchmark named {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    print(f"{'A / B':<58} {'median':>7}   (smallest to largest; medians of A and B)")
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
