"""Short formats: networks compute in them, and what is mixed and compared stays in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tests.train.test_memory import transformer
from torch import Tensor, nn

from fewstep.core.cond import Cond
from fewstep.core.denoiser import Guided, guide
from fewstep.distill.guidance import GuidanceDistillation
from fewstep.distill.problem import Problem, Regression
from fewstep.distill.steps import StepDistillation
from fewstep.models import Model
from fewstep.models.families.packed import unpack
from fewstep.train import TrainConfig, loop, train

NULL = torch.tensor([2])
COND = torch.arange(8) % 2


class Linear(nn.Module):
    """A denoiser that is one matrix product, and keeps the dtype in which it came out."""

    passes = 1

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.by_class = nn.Linear(4, 4), nn.Embedding(3, 4)
        self.seen: set[torch.dtype] = set()

    def forward(self, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
        """Return what the layer says, as autocast left it."""
        assert isinstance(cond, Tensor)
        out: Tensor = self.layer(z + self.by_class(cond) + phi[:, None] + w[:, None])
        self.seen.add(out.dtype)
        return out


def test_guidance_mixes_in_the_dtype_of_z() -> None:
    inner, z, w = Linear(), torch.randn(8, 4), torch.full((8,), 7.0)
    phi = torch.full((8,), 0.5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        v = Guided(inner, NULL)(z, phi, COND, w)
        both = [inner(z, phi, c, torch.zeros(8)) for c in (COND, NULL.expand(8))]
    assert [b.dtype for b in both] == [torch.bfloat16] * 2
    assert v.dtype == torch.float32
    torch.testing.assert_close(v, guide(both[0].float(), both[1].float(), w), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_transformers_compute_in_bf16_and_their_velocity_is_float32(kind: str) -> None:
    """Beside the prediction itself nothing is rounded: neither its conversion nor the mixture."""
    pair = transformer(kind)
    model = pair.denoiser
    assert isinstance(model, Model)
    out: list[Tensor] = []
    hook = model.network.register_forward_hook(lambda _, given, found: out.append(found[0]))
    draws = torch.Generator().manual_seed(0)
    z, phi = torch.randn(2, 4, 8, 8, generator=draws), torch.tensor([0.4, 1.2])
    cond = {k: torch.randn(2, *t.shape[1:], generator=draws) for k, t in pair.null_cond.items()}
    w = torch.full((2,), 7.0)
    with torch.no_grad():
        exact = pair(z, phi, cond, w)
        with torch.autocast("cpu", torch.bfloat16):
            v = pair(z, phi, cond, w)
    hook.remove()
    whole, short = out
    assert (whole.dtype, short.dtype, v.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    predicted = short.float() if kind == "sd3" else unpack(short.float(), torch.Size((4, 4, 8, 8)))
    twice = torch.cat([z, z])
    both = model.clock.velocity(predicted, twice, torch.cat([phi, phi]))
    torch.testing.assert_close(v, guide(*both.chunk(2), w), rtol=0, atol=1e-5)
    assert 0 < float((v - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize(
    "stage",
    [
        lambda teacher: GuidanceDistillation(Guided(teacher, NULL), w_range=(0.0, 4.0)),
        lambda teacher: StepDistillation(Guided(teacher, NULL), 4, w_range=(0.0, 4.0), order=2),
        lambda teacher: StepDistillation(teacher, 4, w_range=(0.0, 4.0)),
    ],
)
def test_the_teacher_of_a_bf16_run_computes_in_bf16(
    stage: Callable[[nn.Module], Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, where such a run is refused for its speed, and can be seen all the same."""

    def on_cpu(student: nn.Module, config: TrainConfig, device: str | None) -> Accelerator:
        del student, device
        AcceleratorState._reset_state()
        return Accelerator(cpu=True, mixed_precision=config.precision)

    monkeypatch.setattr(loop, "_accelerator", on_cpu)
    teacher, student = Linear(), Linear()
    student.load_state_dict(teacher.state_dict())
    targets: list[torch.dtype] = []
    problem = stage(teacher)

    def watched(x: Tensor, cond: Cond, generator: torch.Generator) -> Regression:
        r = problem(x, cond, generator)
        targets.append(r.v_target.dtype)
        return r

    def batch(update: int, part: int, parts: int) -> tuple[Tensor, Cond]:
        return torch.full((8, 4), 0.1), COND

    config = TrainConfig(updates=3, batch_size=8, precision="bf16", warmup=0)
    try:
        result = train(student, watched, batch, config, tmp_path, device="cpu", progress=False)
    finally:
        AcceleratorState._reset_state()
    assert teacher.seen == student.seen == {torch.bfloat16}
    assert set(targets) == {torch.float32}
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in student.parameters())
    assert result.update == 3
