"""Derivatives with respect to limits and breakpoints, in ordinary torch.

A limit b that requires grad adds ``d * sum_i w_i f(c + d t_i)`` with ``d = b - b.detach()``, which is 0, and
c the neighbour of b inside the interval: the m-point Gauss rule on the sliver between the old limit
and the moved one. Its value is 0 and its derivatives are those of the integral up to order 2 m, mixed
ones included. An ``autograd.Function`` that returns 0 and backpropagates ``g * f(b)`` is right to first
order only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import carries_derivative, forward_mode_open, in_transform
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.recompute import Rows
from quadgrad._core.replay import BLOCK, Observer, replay_plan

__all__ = [
    "Treatment",
    "carries_gradient",
    "reading_distance",
    "reading_errors",
    "replay_with_limits",
    "singular_marks",
    "sliver_sum",
]

_GAUSS = np.polynomial.legendre.leggauss(3)
_ROUNDING = 10.0
_NODES, _WEIGHTS = (0.5 + 0.5 * _GAUSS[0]).tolist(), (0.5 * _GAUSS[1]).tolist()


@dataclass(frozen=True)
class Treatment:
    """How each of ``Limits.marks`` is differentiated, as bool tensors of shape ``(batch,)``.

    Where ``pathwise``, the nodes move with the mark and f is differentiated in x; where ``endless``, the
    derivative is infinite, with the sign of f; elsewhere the boundary moves alone.
    """

    pathwise: tuple[Tensor, ...]
    endless: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Sliver:
    """A stretch of zero width: f is averaged over ``start + move * [0, 1]`` and multiplied by ``width``.

    Where ``endless``, only the width is differentiated: f's own derivative may be infinite there too. Where not
    ``usable`` the mark has no derivative here, and start is some harmless place.
    """

    start: Tensor
    move: Tensor
    width: Tensor
    endless: Tensor
    usable: Tensor


def _sliver(start: Tensor, move: Tensor, sign: Tensor | float, endless: Tensor, usable: Tensor) -> _Sliver:
    steep = torch.where(endless, move, 1.0).sqrt()  # 0 with an infinite derivative
    return _Sliver(
        start, torch.where(endless, 0.0, move), sign * torch.where(endless, steep, move), endless, usable
    )


def carries_gradient(mark: Tensor) -> bool:
    """Whether derivatives with respect to this tensor may be asked for."""
    if torch.compiler.is_compiling():  # which cannot follow a look at the levels
        return mark.requires_grad or in_transform() or forward_mode_open()
    return carries_derivative(mark)


def singular_marks(integrand: Integrand, limits: Limits, batch: int) -> tuple[Tensor, ...]:
    """Tell for each of ``limits.marks`` where f is not finite right at it, shape ``(batch,)``, without gradient.

    Only asked of marks that carry a gradient; the others are all False.
    """
    fixed = limits.detach()
    inner = fixed.inner_points(batch)
    asked = [i for i, mark in enumerate(limits.marks) if carries_gradient(mark)]
    no = torch.zeros_like(inner, dtype=torch.bool)
    found = [no] * len(limits.marks)
    if asked:
        marks = fixed.marks
        x = torch.stack([torch.where(marks[i].isfinite(), marks[i], inner) for i in asked])
        with torch.no_grad():
            y = integrand(x, slice(0, inner.shape[0])).detach()
        good = y.isfinite()
        good = good.flatten(2).all(2) if good.ndim > 2 else good
        for place, i in enumerate(asked):
            found[i] = ~good[place]
    return tuple(found)


def sliver_sum(integrand: Integrand, limits: Limits, batch: int, treatment: Treatment | None) -> Tensor | float:
    """Return a zero of shape ``(batch, *event)`` with the derivatives with respect to limits and breakpoints."""
    terms = [term for _, term in _terms(limits, batch, treatment, 1)]
    if not terms:
        return 0.0
    inner = limits.a.detach()
    tau = torch.tensor(_NODES, dtype=inner.dtype, device=inner.device)[:, None]
    weight = torch.tensor(_WEIGHTS, dtype=inner.dtype, device=inner.device)
    x = torch.cat([(term.start + term.move * tau).expand(-1, batch) for term in terms])
    y = integrand(x, slice(0, batch))
    y = y.reshape(len(terms), len(_NODES), *y.shape[1:])
    tail = (1,) * (y.ndim - 3)
    means = (y * weight.reshape(1, -1, 1, *tail)).sum(1)
    endless = torch.stack([term.endless.expand(batch) for term in terms]).reshape(len(terms), batch, *tail)
    # The sign is enough where the derivative is infinite, and f itself may be too: infinity times 0 is NaN.
    means = torch.where(endless, torch.sgn(means.detach().nan_to_num()), means)
    widths = torch.stack([term.width.expand(batch) for term in terms])
    return (means * widths.reshape(len(terms), batch, *tail)).sum(0)


def reading_errors(
    integrand: Integrand,
    limits: Limits,
    batch: int,
    treatment: Treatment | None,
    weight: Tensor,
    relative: Tensor | None = None,
) -> list[Tensor]:
    """Estimate the error of the derivative with respect to each of ``limits.marks``, shape ``(batch,)``.

    f is read beside the mark, not at it: read once more at twice the distance, it tells what that costs. ``weight``
    ``(batch, *event)`` multiplies the derivative, and has the error ``relative`` ``(batch,)`` itself. Where the
    derivative is infinite the error is, too.
    """
    found = [limits.a.detach().new_zeros(batch) for _ in limits.marks]
    near, far = (_terms(limits, batch, treatment, reach) for reach in (1, 2))
    with torch.no_grad():
        for (index, term), (_, other) in zip(near, far, strict=True):
            places = torch.stack([t.start.detach().expand(batch) for t in (term, other)])
            y, again = (integrand(places, slice(0, batch)).detach() * weight.conj()).reshape(2, batch, -1)
            rounding = (_ROUNDING * torch.finfo(limits.a.dtype).eps) * y.abs()
            rounding = rounding if relative is None else rounding + relative[:, None] * y.abs()
            error = (2.0 * (y - again).abs() + rounding).sum(1).masked_fill(~term.usable, 0.0)
            found[index] = found[index] + error.masked_fill(term.endless, torch.inf)
    return found


def _terms(limits: Limits, batch: int, treatment: Treatment | None, reach: int) -> list[tuple[int, _Sliver]]:
    """Return the slivers at all marks that carry a gradient, with the marks' places."""
    fixed = limits.detach()
    inner = fixed.inner_points(batch)
    none = (torch.zeros_like(inner, dtype=torch.bool),) * len(limits.marks)
    treatment = treatment or Treatment(none, none)
    terms: list[tuple[int, _Sliver]] = []
    for i, (other, sign) in enumerate(((fixed.b, -1.0), (fixed.a, 1.0))):
        mark, here, endless = limits.marks[i], fixed.marks[i], treatment.endless[i]
        if carries_gradient(mark):
            usable = here.isfinite() & ~treatment.pathwise[i]
            move = torch.where(usable, mark - here, 0.0)
            for _ in range(reach):
                here = torch.nextafter(here, other)
            terms.append((i, _sliver(torch.where(usable, here, inner), move, sign, endless, usable)))
    return terms + _breakpoint_terms(limits, fixed, inner, treatment, reach)


def _breakpoint_terms(
    limits: Limits, fixed: Limits, inner: Tensor, treatment: Treatment, reach: int
) -> list[tuple[int, _Sliver]]:
    """Return the slivers on both sides of each breakpoint, and the breakpoint's place among the marks.

    They are read at a small distance from it: at a computed root, and even one rounding unit beside
    it, the side is often the wrong one.
    """
    terms: list[tuple[int, _Sliver]] = []
    marks = limits.marks[2:]
    if not any(carries_gradient(mark) for mark in marks):
        return terms
    lower, upper = torch.minimum(fixed.a, fixed.b), torch.maximum(fixed.a, fixed.b)
    seen = fixed.marks[2:]
    for i, (mark, here) in enumerate(zip(marks, seen, strict=True)):
        repeated = torch.zeros_like(here, dtype=torch.bool)
        for earlier in seen[:i]:
            repeated = repeated | (earlier == here)
        usable = (here > lower) & (here < upper) & ~repeated & ~treatment.pathwise[i + 2]
        away = reach * reading_distance(fixed, i)
        move = torch.where(usable, mark - here, 0.0)
        sign, endless = fixed.orient(torch.ones_like(fixed.a)), treatment.endless[i + 2]
        for start, side in ((here - away, sign), (here + away, -sign)):
            terms.append((i + 2, _sliver(torch.where(usable, start, inner), move, side, endless, usable)))
    return terms


def reading_distance(fixed: Limits, index: int) -> Tensor:
    """Return how far from a breakpoint the integrand is read, so that no rounding puts it on the wrong side."""
    here, edges = fixed.marks[index + 2], fixed.edges()
    below = torch.where(edges < here[:, None], edges, -torch.inf).amax(1)
    above = torch.where(edges > here[:, None], edges, torch.inf).amin(1)
    gap = torch.minimum(here - below, above - here)
    gap = torch.where(gap.isfinite(), gap, 1.0 + here.abs())
    ulp = (torch.nextafter(here, torch.full_like(here, torch.inf)) - here).abs()
    least = 64.0 * ulp if fixed.blur is None else torch.maximum(64.0 * ulp, fixed.blur[:, index])
    return torch.minimum(torch.maximum(least, 2.0**-40 * gap), 0.25 * gap)


def replay_with_limits(
    integrand: Integrand,
    plan: IntervalPlan,
    limits: Limits,
    treatment: Treatment | None,
    chunk_size: int | None,
    observer: Observer | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Replay the plan and add the slivers of the limits; without a treatment the boundaries move alone.

    ``observer`` and ``rows`` are those of :func:`quadgrad._core.replay.replay_plan`.
    """
    moving = fixed = limits.detach()
    if treatment is not None:
        marks = zip(treatment.pathwise, limits.marks, fixed.marks, strict=True)
        moving = limits.with_marks(tuple(torch.where(p, mark, still) for p, mark, still in marks))
    total = replay_plan(
        integrand, plan, moving.pieces(), chunk_size or BLOCK, chunk_size is not None, observer, rows
    )
    value = fixed.orient(total)
    if any(carries_gradient(mark) for mark in limits.marks):
        value = value + sliver_sum(integrand, limits, plan.batch, treatment)
    return value
