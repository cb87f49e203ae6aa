"""Close in on the greatest bend of f in a stretch, and tell whether f is not smooth there.

The other body of each step is the kernel's ``zoom.c``, for which the tests check that it does the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import locate
from quadgrad._core.problem import Problem
from quadgrad._core.search.task import call_places, noise

__all__ = ["BOUNDED", "DIVISIONS", "SMOOTH", "SURE", "Zoom", "Zoomed", "bends_of", "divisions", "zoom"]

DIVISIONS = 8
"""Intervals between places where f is called: of these the two around the greatest bend are divided next."""

SMOOTH = 1.0 / 10.0
"""The bend of a smooth function falls to 1/16 when intervals are quartered, that of a kink to 1/4."""

SURE = 3
"""So many times they are quartered before that is judged."""

BOUNDED = 4.0
"""A bend between neighbouring numbers, relative to f around, up to which it is that of a jump."""

Zoomed = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of each stretch the place, whether f is not smooth there, what that leaves in doubt, and the nodes spent."""

Zoom = Callable[[Problem, Tensor, Tensor, Tensor], Zoomed]


def zoom(problem: Problem, owner: Tensor, low: Tensor, high: Tensor) -> Zoomed:
    """Close in on the greatest bend of f between ``low`` and ``high`` ``(k,)``.

    Returns the place, whether f is not smooth there, what the integral is in doubt by because numbers have
    spacings, and the nodes spent.
    """
    eps, ulp, k = noise(problem), problem.pieces.rounding.eps, len(owner)
    steps = divisions(low)
    place, found, doubt = low.clone(), torch.zeros_like(owner, dtype=torch.bool), torch.zeros_like(low)
    spent, index = torch.zeros_like(owner), torch.arange(k, device=owner.device)
    history: list[Tensor] = []
    seen: Tensor | None = None
    size: Tensor | None = None
    whole = high - low
    while len(index):
        x = low + (high - low) * steps
        if seen is None:
            y = call_places(problem, owner, x)
            size = y.abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
        else:
            new = call_places(problem, owner, torch.cat((x[1:4], x[5:8])))
            y = torch.cat((seen[:1], new[:3], seen[1:2], new[3:], seen[2:]))
        assert size is not None
        spent[index] += DIVISIONS + 1 if seen is None else DIVISIONS - 2
        bend, at = bends_of(y, size)
        # As close as numbers are: what is left is the bend between neighbours.
        close = (high - low) <= 0.5 * DIVISIONS * ulp * torch.maximum(low.abs(), high.abs())
        close = close | ((high - low) < problem.pieces.rounding.tiny**0.5)
        even = bend <= 16.0 * eps
        nothing = (bend * ((high - low) / whole[index]) <= 4.0 * eps) & ~even  # as an integral
        history.append(bend)
        now = low + (high - low) * (at.to(low.dtype) / DIVISIONS)
        falls = torch.zeros_like(even)
        if len(history) > SURE:
            falls = bend < SMOOTH**SURE * history[-1 - SURE]
        # A bend that rounding hides is that of a kink, or of something smooth.
        known, going = close & ~even, ~(close | even | falls | (nothing & (len(history) > SURE)))
        if len(history) > SURE:
            known = known | (nothing & ~falls)
            known = known | (even & ~falls & (history[-2] > SMOOTH ** (SURE - 1) * history[-1 - SURE]))
        hidden, left = torch.stack((nothing.sum(), going.sum())).tolist()
        corner = _corner(x, y, at, now) if hidden else now
        place[index] = torch.where(even, place[index], torch.where(nothing, corner, now))
        found[index] = known
        # Between the neighbours beside a jump it may be anywhere; a singularity is where f is largest.
        apart = 2.0 * torch.maximum((high - low) / DIVISIONS, ulp * now.abs()) * size.amax(1)
        uncertain = torch.where(bend <= BOUNDED, apart * bend, 0.0).clamp_min(torch.finfo(apart.dtype).tiny)
        doubt[index] = torch.where(known & close, uncertain, 0.0)
        if not left:
            break
        kept = locate(going, left)
        triple = torch.stack((at - 1, at, at + 1))[:, :, None].expand(3, *y.shape[1:])
        seen = y.gather(0, triple).index_select(1, kept)
        step = (high - low) / DIVISIONS
        low, high, owner, index = (t.index_select(0, kept) for t in (now - step, now + step, owner, index))
        size, history = size.index_select(0, kept), [h.index_select(0, kept) for h in history[-SURE - 1 :]]
    return place, found, doubt, spent


def divisions(like: Tensor) -> Tensor:
    """Return where f is called as parts of a stretch, ``(DIVISIONS + 1, 1)``."""
    return torch.arange(DIVISIONS + 1, dtype=like.dtype, device=like.device)[:, None] / DIVISIONS


def bends_of(y: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest second difference of values ``(m, k, c)``, relative to their sizes, and at which node."""
    scale = torch.where(size > 0.0, size, 1.0)
    bends = ((y[2:] - 2.0 * y[1:-1] + y[:-2]).abs() / scale).nan_to_num(torch.inf, torch.inf).amax(2)
    wild = ~y[1:-1].abs().isfinite().all(2)  # the pole itself rather than its neighbours
    bends = torch.where(wild, torch.inf, bends.clamp_max(torch.finfo(bends.dtype).max))
    most, at = bends.max(0)
    return most, at + 1


def _corner(x: Tensor, y: Tensor, at: Tensor, otherwise: Tensor) -> Tensor:
    """Return where straight lines through values left and right of the greatest bend meet, if that is beside it.

    Of a kink this close they are straight, and its place is what derivatives see of it.
    """
    bends = (y[2:] - 2.0 * y[1:-1] + y[:-2]).abs()
    at = at.clamp(2, DIVISIONS - 2)
    which = bends.gather(0, (at - 1)[None, :, None].expand(1, *y.shape[1:]))[0].argmax(1)
    y = y.gather(2, which[None, :, None].expand(len(y), -1, 1))[:, :, 0]

    def line(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        (x0, y0), (x1, y1) = ([t.gather(0, i[None])[0] for t in (x, y)] for i in (first, last))
        slope = (y1 - y0) / (x1 - x0)
        return y0 - slope * (x0 - otherwise), slope

    none = torch.zeros_like(at)
    (left, rise), (right, fall) = line(none, at - 1), line(at + 1, none + DIVISIONS)
    away = (left - right) / (fall - rise)
    return torch.where(away.abs() <= x[1] - x[0], otherwise + away, otherwise)
