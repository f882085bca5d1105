"""`check_denoiser`: is this function the denoiser that samplers and stages take it for?"""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core import cond as conds
from fewstep.core.cond import Cond
from fewstep.core.denoiser import Denoiser, inside, traits_of
from fewstep.core.seed import generator
from fewstep.testing.report import Findings, largest

LARGEST = 1e3  # times the size of v at other angles; a division by cos(pi/2) gives 1e7
TOLERANCE = 1e-4  # of float32 networks: a batch of another size is summed in another order


def check_denoiser(
    denoiser: Denoiser,
    cond: Cond,
    *,
    null_cond: Cond | None = None,
    shape: tuple[int, ...] | None = None,
    w_range: tuple[float, float] = (0.0, 4.0),
    tolerance: float = TOLERANCE,
) -> list[str]:
    """Put a denoiser through its laws; return those that hold.

    Args:
        denoiser: yours.
        cond: a condition batch of B >= 2, no two alike if possible.
        null_cond: of a guided pair, a batch of 1: w = 0 must be the conditional pass, w = -1 the
            unconditional one, and v linear in w.
        shape: of one example, where the denoiser's traits do not say it.
        w_range: that it should be good for.
        tolerance: largest absolute difference that counts as equal.

    Raises:
        CheckFailed: lists every broken law and what to do about it.
    """
    found = Findings("this denoiser")
    passes = getattr(denoiser, "passes", None)
    found.note(
        "it says how many passes a call costs",
        isinstance(passes, int) and passes >= 1,
        f"passes is {passes!r}; set the attribute to 1, or 2 for a guided pair",
    )
    shape = shape or traits_of(denoiser).shape
    if not found.note(
        "its shape is known", shape is not None, "pass shape=(3, 32, 32) to this check, for example"
    ):
        return found.finish()
    assert shape is not None
    state = _state(denoiser, cond, shape, w_range)
    before = tuple(t.clone() for t in (state[0], state[1], state[3]))
    v = found.attempt("it answers", lambda: _ask(denoiser, *state))
    if v is None:
        return found.finish()
    z = state[0]
    same = found.note(
        "v has the shape, dtype and device of z",
        (v.shape, v.dtype, v.device) == (z.shape, z.dtype, z.device),
        f"v is {tuple(v.shape)} {v.dtype} {v.device}, z {tuple(z.shape)} {z.dtype} {z.device}",
    )
    found.note(
        "it leaves its inputs alone",
        all(torch.equal(a, b) for a, b in zip(before, (z, state[1], state[3]), strict=True)),
        "z, phi or w was changed in place; work on a copy",
    )
    if same:
        _values(found, denoiser, state, v)
        _batch(found, denoiser, state, v, tolerance)
        _takes_w(found, denoiser, state)
    if same and null_cond is not None:
        _guidance(found, denoiser, state, null_cond, tolerance)
    return found.finish()


State = tuple[Tensor, Tensor, Cond, Tensor]


def _state(
    denoiser: Denoiser, cond: Cond, shape: tuple[int, ...], w_range: tuple[float, float]
) -> State:
    traits, size = traits_of(denoiser), conds.batch_size(cond)
    device, dtype = traits.device or torch.device("cpu"), traits.dtype or torch.float32
    draws = generator("cpu", 0, "check_denoiser")
    z = torch.randn(size, *shape, generator=draws).to(device, dtype)
    phi = (0.05 + 1.4 * torch.rand(size, generator=draws)).to(device)
    low, high = w_range
    some_w = (low + (high - low) * torch.rand(size, generator=draws)).to(device)
    return z, phi, conds.to(cond, device), some_w


def _ask(denoiser: Denoiser, z: Tensor, phi: Tensor, cond: Cond, w: Tensor) -> Tensor:
    with torch.no_grad():
        return denoiser(z, phi, cond, w)


def _values(found: Findings, denoiser: Denoiser, state: State, v: Tensor) -> None:
    z, phi, cond, w = state
    again = _ask(denoiser, *state)
    found.note(
        "the same question has the same answer",
        torch.equal(v, again),
        f"two calls differ by {largest(v, again):.3g}; call .eval() if it has dropout",
    )
    # All sampling starts at the first angle of the clock.
    for name, angle in (("clean", 1e-3), ("noise", traits_of(denoiser).clock(1)[0])):
        there = torch.full_like(phi, angle)
        end = found.attempt(
            f"it answers at the {name} end, phi = {angle:.4g}",
            lambda there=there: _ask(denoiser, z, there, cond, w),  # type: ignore[misc]
        )
        if end is not None:
            _end(found, f"the {name} end, phi = {angle:.4g}", end, v)


def _end(found: Findings, where: str, end: Tensor, v: Tensor) -> None:
    """Note whether the answer at an end is finite, and of the size of v at other angles."""
    size, there = max(1.0, float(v.abs().max())), float(end.abs().max())
    reason = "a division by cos(phi) or sin(phi) is the usual reason"
    if bool(end.isfinite().all()):
        reason = (
            f"it reaches {there:.3g}, and {size:.3g} at other angles; a division by cos(phi) is "
            "the usual reason: an eps-network knows nothing of the image at pi/2. Give it the "
            "clock and the phi_range of its own table in `traits`, or wrap the network in "
            "fewstep.models.BetaDenoiser"
        )
    found.note(
        f"v is finite at {where}", bool(end.isfinite().all()) and there <= LARGEST * size, reason
    )


def _batch(found: Findings, denoiser: Denoiser, state: State, v: Tensor, tolerance: float) -> None:
    z, phi, cond, w = state
    order = torch.arange(len(z) - 1, -1, -1, device=z.device)
    turned = _ask(denoiser, z[order], phi[order], conds.take(cond, order), w[order])
    found.note(
        "permuting a batch permutes the answer",
        largest(turned, v[order]) <= tolerance,
        f"they differ by {largest(turned, v[order]):.3g}; phi, w and cond must be used per "
        "example, not from the first one alone",
    )
    alone = found.attempt(
        "it takes a batch of one",
        lambda: _ask(denoiser, z[:1], phi[:1], conds.take(cond, slice(0, 1)), w[:1]),
    )
    if alone is not None:
        found.note(
            "an example does not depend on its batch",
            largest(alone, v[:1]) <= tolerance,
            f"alone it differs by {largest(alone, v[:1]):.3g}; look for batch statistics",
        )


def _takes_w(found: Findings, denoiser: Denoiser, state: State) -> None:
    """Note whether a student for a range of w has an input for it.

    Before its training v is the same at every w, since the input's weights are zero: autograd
    shows whether v is computed from w at all.
    """
    z, phi, cond, w = state
    w_range = traits_of(denoiser).w_range
    if denoiser.passes != 1 or w_range is None or w_range[0] == w_range[1]:
        return
    with torch.enable_grad():
        given = w.clone().requires_grad_(True)
        v = denoiser(z, phi, cond, given)
        used = v.requires_grad and (
            torch.autograd.grad(v.sum(), given, allow_unused=True)[0] is not None
        )
    low, high = (_ask(denoiser, z, phi, cond, torch.full_like(w, end)) for end in w_range)
    found.note(
        "w is an input of a student for a range of w",
        used or not torch.equal(low, high),
        f"v does not depend on w, and w_range is [{w_range[0]:g}, {w_range[1]:g}]; use w in "
        "forward(z, phi, cond, w), or train it for one w",
    )


def _guidance(
    found: Findings, denoiser: Denoiser, state: State, null_cond: Cond, tolerance: float
) -> None:
    z, phi, cond, _ = state
    size = len(z)

    def at(value: float, c: Cond = cond) -> Tensor:
        return _ask(denoiser, z, phi, c, torch.full_like(phi, value))

    null = conds.repeat_null(conds.to(null_cond, z.device), size)
    plain, none, two = at(0.0), at(-1.0), at(2.0)
    alone = inside(denoiser)
    if alone is not denoiser:
        # The passes of the pair itself, in its own batch of 2B: nothing is left but the mixing.
        both = conds.concat(cond, null)
        zeros = torch.zeros(2 * size, dtype=phi.dtype, device=phi.device)
        pair = _ask(alone, torch.cat([z, z]), torch.cat([phi, phi]), both, zeros)
        v_cond, v_uncond = pair.chunk(2)
        found.note(
            "w = 0 is the conditional pass, bit for bit",
            torch.equal(plain, v_cond),
            f"they differ by {largest(plain, v_cond):.3g}; w = 0 means no guidance here",
        )
        found.note(
            "w = -1 is the unconditional pass, bit for bit",
            torch.equal(none, v_uncond),
            f"they differ by {largest(none, v_uncond):.3g}; a guidance scale is 1 + w",
        )
    of_null = at(1.5, null)
    found.note(
        "under the null condition w does nothing",
        largest(of_null, none) <= tolerance * 10,
        f"v moves by {largest(of_null, none):.3g}; null_cond is not the one that it mixes with",
    )
    line = plain + 2 * (plain - none)
    scale = max(1.0, float(line.abs().max()))
    found.note(
        "v is (1 + w) v_cond - w v_uncond",
        largest(two, line) <= tolerance * scale * 10,
        f"at w = 2 it is off by {largest(two, line):.3g}; mix v, and threshold x after mixing",
    )
