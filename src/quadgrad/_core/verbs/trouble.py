"""Where an integral that failed is hard, and what to write for it: a sentence behind its status."""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.precision import half_inside
from quadgrad._core.problem import Problem
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status

__all__ = ["offending_point", "plain_numbers"]

HALVINGS = 64
"""So many times an x at which f is NaN is halved to find one at which f is 0."""

BESIDE = (2.0**-20, 2.0**-10)
"""How far from an x, relative to the interval, f is looked at to tell whether it fails there alone."""

MOST, NARROW, CORE = 0.5, 2.0**-10, 0.01
"""The share of the error that makes a place the hard one, how wide a stretch of the interval a place may be, and
the share of the largest error that a cell of it has at least."""

HALF = 0.5
"""What has spent no more of its budget was given up early."""

LARGER = 1e3
"""So many times larger is the part of a complex integrand that an integral is said to fail for."""


def offending_point(problem: Problem, found: Found, status: Tensor, first: int = 0, log: bool = False) -> str:
    """Return what more is known of the first integral that failed: an x, and a remedy; empty if nothing is.

    Integrals are counted from ``first``; with ``log`` f is taken for a logarithm.
    """
    plan = found.plan
    text = _not_finite(problem, plan, status, first)
    if not text:
        failed = (status.reshape(-1) != int(Status.CONVERGED)).nonzero()[:1, 0].tolist()
        text = "".join(_hard_place(problem, plan, index, first) for index in failed)
    if log and bool((status == int(Status.DIVERGENT)).any()):
        text += " With log=True f returns the logarithm of the integrand: of a density log_prob(x), without exp."
    text += _need(found, status, problem.max_nfev, first)
    return text + _one_part(problem, plan, status, first) + _too_coarse(problem, plan, status)


def _need(found: Found, status: Tensor, most: int, first: int) -> str:
    """Say how many nodes the first integral seemed to need that has run out of its budget, or would have."""
    late = (status.reshape(-1) == int(Status.MAX_NFEV)).nonzero()[:1, 0].tolist()
    if not late or found.need is None:
        return ""
    (index,) = late
    need, spent = float(found.need[index]), int(found.nfev[index])
    if not need >= most:
        return ""
    early = f", and search ended after {spent:,}" if spent <= HALF * most else ""
    return f" It seems to need {need:.0e} nodes or more, of {most:,} in max_nfev{early} (integral {first + index})."


def plain_numbers(problem: Problem) -> bool:
    """Tell whether nobody chose single precision: it is torch's default for plain numbers."""
    if not problem.integrand.call_dtype == torch.float32 == torch.get_default_dtype():
        return False
    # Of tensors in double precision, which points of plain numbers are, x would have had the dtype.
    each = (t for t in (*problem.sources, *problem.given) if t is not None and t.dtype != torch.float64)
    return not any(t.is_floating_point() or t.is_complex() for t in each)


def _not_finite(problem: Problem, plan: IntervalPlan, status: Tensor, first: int) -> str:
    """Return a sentence with an x at which f is not finite, for the first integral that failed for it."""
    owners = (status.reshape(-1) == int(Status.NONFINITE)).nonzero()
    if owners.numel() == 0:
        return ""
    index = int(owners[0])
    column = ((plan.owner == index) & plan.error.isinf()).nonzero()[:1, 0]
    with problem.outside() as plain:
        cell = plan.take(column)
        x, _ = cell.place(plain.pieces)
        y = plain.integrand(x, cell.owner)
        bad = ~y.isfinite()
        bad = bad.flatten(2).any(2) if bad.ndim > 2 else bad
        places, values = x[bad][:1], y[bad].flatten()[:1].tolist()
        if not values:
            return ""
        place = float(places[0])
        text = f" For example f(x) = {values[0]} at x = {place:.6g} (integral {first + index})."
        if values[0] != values[0] and plain.pieces.infinite:
            text += (
                " Infinity times 0, or less infinity, is NaN: put factors that overflow and underflow into one "
                "exponential, exp(u - v) for exp(u) * exp(-v), or end the interval where f is "
                f"0{_zero(plain, places, index)}."
            )
        if _is_alone(plain, places, index):
            text += f" Beside it f is finite: if it is this x alone, name it, points=[{place!r}]."
        elif values[0] == values[0] and plain.integrand.call_dtype == torch.float32:
            text += " In single precision what exceeds 3.4e38 is infinite: compute in float64, or in other units."
    return text


def _zero(problem: Problem, place: Tensor, index: int) -> str:
    """Name an x closer to 0 than a place, from which on f is 0 until it is not finite, if there is one."""
    low, high = _ends(problem, index)
    x = place * torch.exp2(-torch.arange(1.0, HALVINGS + 1.0, dtype=place.dtype, device=place.device))
    x = x[(x > low) & (x < high)]
    if not len(x):
        return ""
    y = problem.integrand(x[:, None], torch.full_like(place, index, dtype=torch.int64))
    known = y.isfinite().flatten(1).all(1)
    x, y = x[known], y[known]
    x = x[: int((y == 0).flatten(1).all(1).long().cumprod(0).sum())]
    return f", as at x = {float(x[-1]):.3g}" if len(x) else ""


def _is_alone(problem: Problem, place: Tensor, index: int) -> bool:
    """Tell whether f is finite on both sides of a place, near and not so near."""
    low, high = _ends(problem, index)
    width = torch.nan_to_num(high - low, posinf=1.0)
    away = width * torch.tensor([-s for s in BESIDE] + list(BESIDE), dtype=place.dtype, device=place.device)
    x = (place + away).clamp(low, high)
    if not bool(((x > low) & (x < high)).all()):
        return False
    y = problem.integrand(x[:, None], torch.full_like(x[:1], index, dtype=torch.int64))
    return bool(y.isfinite().all())


def _one_part(problem: Problem, plan: IntervalPlan, status: Tensor, first: int) -> str:
    """Say which part of a complex integrand it is that an integral fails for, if the other is far smaller there."""
    failed = (status.reshape(-1) == int(Status.DIVERGENT)) | (status.reshape(-1) == int(Status.NONFINITE))
    owners = failed.nonzero()[:1, 0]
    if not owners.numel() or not (problem.integrand.output_dtype or torch.float32).is_complex:
        return ""
    with problem.outside() as plain:
        mine = ((plan.owner == owners) & (plan.error > 0.0)).nonzero()[:, 0]
        cells = plan.take(mine[plan.error[mine].argmax()[None]]) if len(mine) else plan.take(mine)
        y = plain.integrand(cells.place(plain.pieces)[0], cells.owner)
    sizes = [
        float(part.abs().nan_to_num(nan=torch.inf).max()) if part.numel() else 0.0 for part in (y.real, y.imag)
    ]
    names = ("real", "imaginary"), (".real", ".imag")
    worse = int(sizes[1] > sizes[0])
    if not sizes[worse] > LARGER * sizes[1 - worse]:
        return ""
    return (
        f" It is the {names[0][worse]} part of f that is large there (integral {first + int(owners)}): if the "
        f"{names[0][1 - worse]} one alone is wanted, return {names[1][1 - worse]} of it."
    )


def _ends(problem: Problem, index: int) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper limit of an integral."""
    a, b = (end.detach() for end in problem.limits.marks[:2])
    a, b = (end[0 if end.shape[0] == 1 else index] for end in (a, b))
    return torch.minimum(a, b), torch.maximum(a, b)


def _hard_place(problem: Problem, plan: IntervalPlan, index: int, first: int) -> str:
    """Name the place inside an interval where most of the error is, if it is one place and not marked."""
    with problem.outside() as plain:
        mine = (plan.owner == index).nonzero()[:, 0]
        if mine.numel() == 0:
            return ""
        cells = plan.take(mine)
        x, _ = cells.place(plain.pieces)
        left, right, error = x.amin(0), x.amax(0), cells.error.nan_to_num(posinf=1e300)
        worst = int(error.argmax())
        low, high = _ends(plain, index)
        width = torch.nan_to_num(high - low, posinf=1.0)
        singular = _found_place(plan, index, left[worst], right[worst], NARROW * width)
        if singular:
            return (
                f" Most of the error is at x = {singular} (integral {first + index}), where f was found to be "
                "singular: check that the integral exists."
            )
        near = (left <= right[worst] + NARROW * width) & (right >= left[worst] - NARROW * width)
        near = near & (right - left <= NARROW * width)
        core = near & (error >= CORE * error[worst])  # on both sides of a place that cells end at
        marks = [float(m[0 if m.shape[0] == 1 else index]) for m in plain.limits.marks]
        if not bool(near[worst]):
            return ""
        lower, upper = float(left[core].min()), float(right[core].max())
        reach = 2.0 * NARROW * float(width)
        inside = all(not lower - reach <= mark <= upper + reach for mark in marks)
        if not (inside and float(error[near].sum()) >= MOST * float(error.sum())):
            return ""
    return (
        f" Most of the error is at x = {_simplest(lower, upper)} (integral {first + index}): if f is "
        "singular, jumps "
        f"or has a kink there, name it, points=[{_simplest(lower, upper)}]."
    )


def _found_place(plan: IntervalPlan, index: int, left: Tensor, right: Tensor, near: Tensor) -> str:
    """Return the place beside a cell that search itself made a breakpoint, or nothing."""
    if plan.places is None:
        return ""
    places = plan.places[0 if len(plan.places) == 1 else index]
    apart = torch.maximum(left - places, places - right).nan_to_num(nan=torch.inf)
    return f"{float(places[apart.argmin()]):.9g}" if bool((apart <= near).any()) else ""


def _simplest(low: float, high: float) -> str:
    """Return the number with fewest digits in a stretch, or at its middle."""
    middle = 0.5 * (low + high)
    if low <= 0.0 <= high:
        return "0.0"
    for digits in range(1, 17):
        text = f"{middle:.{digits}g}"
        if low <= float(text) <= high:
            return repr(float(text))
    return repr(middle)


def _too_coarse(problem: Problem, plan: IntervalPlan, status: Tensor) -> str:
    """Say what precision the integrals that failed for rounding were computed in, and how to have another."""
    missed = (status == int(Status.ROUNDOFF)) | (status == int(Status.MAX_NFEV))
    if not bool(missed.any()):
        return ""
    with problem.outside() as plain:
        half = half_inside(plain.integrand, plain.limits.inner_points(plain.batch)[None, :1], slice(0, 1))
    if half is not None:
        name, eps = str(half).removeprefix("torch."), torch.finfo(half).eps
        return (
            f" f computes in {name}, of which a step is {eps:.1g} of a value: ask for no less than "
            f"rtol={4 * eps:.1g}."
        )
    if bool((status == int(Status.ROUNDOFF)).any()) and plain_numbers(problem):
        return (
            " The limits are plain numbers, for which f was called in float32, the default dtype: with a limit "
            "torch.tensor(0.0, dtype=torch.float64) it is called in float64."
        )
    coarse = [i for i, t in enumerate(problem.given) if t is not None and t.dtype in (torch.float32, torch.float16)]
    if coarse and problem.integrand.call_dtype == torch.float64:
        return f" args[{coarse[0]}] is not in double precision, which f may need: pass it as .double()."
    return ""
