"""Places that search has found by itself, when derivatives are asked for: whether they move with a parameter.

Their equation is not known, so that nothing differentiates them. Where f is continuous that is right: the pieces on
both sides lose and gain the same. Where it jumps or is singular, a place that moves takes part of the derivative
with it, which the sum over fixed cells does not have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.breakpoints.crossings import look
from quadgrad._core.breakpoints.unmarked import nudge
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.gradient.boundary import reading_distance
from quadgrad._core.problem import Problem

__all__ = ["find_moving_place"]

FARTHER = 2.0**30
"""How many times farther from a place f is read again, if there is room: where it is singular it has changed by then."""

GROWN = 1.5
"""By how much: |x|^-0.1 grows to 8, log |x| to 2.5 times what it was."""

CONTINUOUS = 1e-6
"""A smaller difference across a place, relative to f there, is none."""

MOVED = 0.1
"""What f beside a place changes by, relative to itself, when arguments are changed a little and the place with them."""


def find_moving_place(problem: Problem) -> str:
    """Return where f jumps or is singular at a place that may move with what derivatives are asked for, as a phrase.

    Arguments are changed a little to see. What f closes over cannot be; nor can anything inside a transform: there
    any such place counts.
    """
    first = len(problem.limits.marks) - problem.limits.found
    with problem.outside() as fixed, torch.no_grad():
        for i in range(first - 2, len(fixed.limits.marks) - 2):
            x = _sides(fixed, i)
            before = look(fixed.integrand, x, slice(0, fixed.batch))
            rough = _is_rough(before) & ~fixed.limits.marks[2 + i].expand(fixed.batch).isnan()
            if not bool(rough.any()):
                continue
            if not _depends_on_more(problem):
                rough = rough & _moves(problem, x, before)
            for index in rough.nonzero()[:1, 0].tolist():
                which = f" (integral {index})" if fixed.batch > 1 else ""
                return f"x = {float(fixed.limits.marks[2 + i].expand(fixed.batch)[index]):.6g}{which}"
    return ""


def _sides(problem: Problem, i: int) -> Tensor:
    """Return places right beside a mark and farther from it, ``(4, batch)``; harmless ones where there is no mark."""
    limits, batch = problem.limits, problem.batch
    place, away = limits.marks[2 + i].expand(batch), reading_distance(limits, i)
    lower, upper = torch.minimum(limits.a, limits.b), torch.maximum(limits.a, limits.b)
    room = 0.25 * torch.minimum(place - lower, upper - place)
    far = torch.minimum(FARTHER * away, room)
    x = torch.stack((place - far, place - away, place + away, place + far))
    inside = ((x > lower) & (x < upper)).all(0)
    return torch.where(inside, x, limits.inner_points(batch))


def _is_rough(y: Tensor) -> Tensor:
    """Tell where f jumps or grows towards a place, from values ``(4, batch, components)``."""
    size = y.abs()
    jump = (y[2] - y[1]).abs() > CONTINUOUS * size.amax(0)
    grows = (size[1:3] > GROWN * torch.stack((size[0], size[3]))).any(0)
    return (jump | grows | ~y.isfinite().all(0)).any(1)


def _depends_on_more(problem: Problem) -> bool:
    """Whether derivatives are asked for with respect to anything but arguments."""
    if in_transform():
        return True
    still = problem.integrand.with_still_arguments()
    with torch.enable_grad():
        y = still.probe(problem.limits.detach().inner_points(problem.batch)[:1])[1]
    return y.requires_grad


def _moves(problem: Problem, x: Tensor, before: Tensor) -> Tensor:
    """Tell where f beside a place changes much when the arguments change little."""
    moved = [i for i, a in enumerate(problem.integrand.arguments) if isinstance(a.value, Tensor) and a.value.requires_grad]
    delta = problem.limits.rounding.eps**0.5
    answer = torch.zeros_like(x[0], dtype=torch.bool)
    size = largest_component(before[1:3].abs().amax(0))
    for change in (delta, -delta) if moved else ():
        after = look(nudge(problem.integrand, moved, change), x, slice(0, x.shape[1]))
        apart = (after - before)[1:3].abs().amax(0)
        answer |= ~(largest_component(apart) <= MOVED * size)
    return answer
