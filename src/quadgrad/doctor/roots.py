"""Where margins vanish along a line: between two runs, by interpolation; beyond all of them, by secants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from quadgrad.doctor.program import Run

__all__ = ["WIDTH", "Point", "changed", "root_of", "slope_beside", "zeros_of"]

WIDTH = 1e-7
"""As close to a crossing runs are brought, of its distance."""


class Point(NamedTuple):
    """A run along the direction, and a margin there."""

    t: float
    run: Run
    margin: float


def zeros_of(before: Tensor, beyond: Iterable[tuple[float, Tensor | None]]) -> tuple[Tensor, Tensor]:
    """Return how far away each margin is zero, infinity where nothing tells, and which lie between no two runs.

    ``before`` are the margins at the point, ``beyond`` those further out, the nearest first.
    """
    sign, places = before > 0.0, torch.full_like(before, torch.inf)
    near, slope = 0.0, torch.zeros_like(before)
    for t, margin in beyond:
        if margin is None:
            break
        slope = (margin - before) / (t - near)
        crossed = ((margin > 0.0) != sign) & places.isinf()
        places = torch.where(crossed, near - before / slope, places)
        near, before = t, margin
    guess = near - before / slope
    guessed = places.isinf() & (guess > near) & (slope != 0.0)
    return torch.where(guessed, guess, places), guessed


def changed(points: list[Point]) -> int:
    """Return which one is the first to the other side of zero; 0 if none is."""
    return next((i for i, p in enumerate(points) if (p.margin > 0.0) != (points[0].margin > 0.0)), 0)


def slope_beside(points: list[Point], far: int) -> float:
    """Return how fast the output changes at most, before and behind a crossing."""
    beside = [pair for pair in itertools.pairwise(points) if pair[0] is not points[far - 1]]
    return max((abs((b.run.value - a.run.value) / (b.t - a.t)) for a, b in beside), default=0.0)


def root_of(points: list[Point], far: int) -> float | None:
    """Return where the margin is zero: between two points, by a parabola through a third; else by the secant."""
    if not far:
        before, last = points[-2:]
        slope = (last.margin - before.margin) / (last.t - before.t)
        root = last.t - last.margin / slope if slope else math.inf
        return root if math.isfinite(root) and abs(root) > abs(last.t) and root * last.t >= 0.0 else None
    a, b = points[far - 1], points[far]
    others = (*points[max(0, far - 2) : far - 1], *points[far + 1 : far + 2])
    secant = a.t - a.margin * (b.t - a.t) / (b.margin - a.margin)
    for c in sorted(others, key=lambda p: abs(p.t - secant)):
        if c.margin not in (a.margin, b.margin):
            ya, yb, yc = a.margin, b.margin, c.margin
            root = (
                a.t * yb * yc / ((ya - yb) * (ya - yc))
                + b.t * ya * yc / ((yb - ya) * (yb - yc))
                + c.t * ya * yb / ((yc - ya) * (yc - yb))
            )
            if min(a.t, b.t) < root < max(a.t, b.t):
                return root
    return secant if min(a.t, b.t) < secant < max(a.t, b.t) else 0.5 * (a.t + b.t)
