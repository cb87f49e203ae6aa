"""Close in on the greatest bend of f in a stretch, and tell whether f is not smooth there.

The other body of each step is the kernel's ``zoom.c``, for which the tests check that it does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from math import nextafter

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
    eps, ulp, narrow = noise(problem), problem.pieces.rounding.eps, problem.pieces.rounding.tiny**0.5
    steps, around = divisions(low), torch.arange(-1, 2, device=owner.device)[:, None]
    parts, between = steps[:, 0], steps[[1, 2, 3, 5, 6, 7]]
    order = owner.new_tensor([0, 3, 4, 5, 1, 6, 7, 8, 2])  # of three values that are known, and six between them
    spent, ended = torch.zeros_like(owner), low.new_zeros(6, len(owner))
    index = torch.stack((torch.arange(len(owner), device=owner.device), owner))
    width = high - low
    y = call_places(problem, owner, low + width * steps)
    size = y.abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
    scale, largest = size.masked_fill(size == 0.0, 1.0), size.amax(1)
    whole, place, *bends = width, low, *[low] * SURE  # no bends yet
    for step in count():
        bend, at = bends_of(y, scale)
        middle = low + width * parts.index_select(0, at)
        # As close as numbers are: what is left is the bend between neighbours.
        reach = torch.maximum(low.abs(), high.abs()).mul_(0.5 * DIVISIONS * ulp)
        close, even = width <= reach.clamp_min_(nextafter(narrow, 0.0)), bend <= 16.0 * eps
        nothing = (bend * (width / whole) <= 4.0 * eps) > even  # as an integral
        # A bend that rounding hides is that of a kink, or of something smooth.
        known, ends = close > even, close | even
        if step >= SURE:
            first, _, last = bends
            falls = bend < SMOOTH**SURE * first
            known = known | ((nothing | (even & (last > SMOOTH ** (SURE - 1) * first))) > falls)
            ends = ends | falls | nothing
        hidden, left = torch.stack((nothing, ~ends)).sum(1).tolist()
        now = torch.where(nothing, _corner(low, width, y, at, middle), middle) if hidden else middle
        place = torch.where(even, place, now)
        if left < len(at):
            ended.index_copy_(1, index[0], torch.stack((place, known, close, bend, width, middle)))
            spent.index_fill_(0, index[0], DIVISIONS + 1 + step * (DIVISIONS - 2))
        if not left:
            break
        beside = width / DIVISIONS
        reals = torch.stack((middle - beside, middle + beside, whole, place, *bends[1:], bend))
        seen = y.gather(0, (at + around)[..., None].expand(3, *y.shape[1:]))
        if left < len(at):
            kept = locate(~ends, left)
            reals, seen, index = (t.index_select(1, kept) for t in (reals, seen, index))
            scale = scale.index_select(0, kept)
        low, high, whole, place, *bends = reals.unbind()
        width = high - low
        y = torch.cat((seen, call_places(problem, index[1], low + width * between))).index_select(0, order)
    place, known, close, bend, width, middle = ended.unbind()
    # Between the neighbours beside a jump it may be anywhere; a singularity is where f is largest.
    apart = 2.0 * torch.maximum(width / DIVISIONS, ulp * middle.abs()) * largest
    doubt = (apart * bend).masked_fill(bend > BOUNDED, 0.0).clamp_min(torch.finfo(apart.dtype).tiny)
    return place, known > 0.0, doubt.masked_fill(known * close == 0.0, 0.0), spent


def divisions(like: Tensor) -> Tensor:
    """Return where f is called as parts of a stretch, ``(DIVISIONS + 1, 1)``."""
    return torch.arange(DIVISIONS + 1, dtype=like.dtype, device=like.device)[:, None] / DIVISIONS


def bends_of(y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest second difference of values ``(m, k, c)``, relative to a scale, and at which node."""
    before, here, after = y[:-2], y[1:-1], y[2:]
    most = torch.finfo(scale.dtype).max
    bends = after.sub(here, alpha=2.0).add_(before).abs_().div_(scale).nan_to_num_(most, most)
    # Of values that are not finite the pole itself is meant rather than its neighbours.
    bend, at = torch.where(here.abs() < torch.inf, bends, torch.inf).amax(2).max(0)
    return bend, at + 1


def _corner(low: Tensor, width: Tensor, y: Tensor, at: Tensor, otherwise: Tensor) -> Tensor:
    """Return where straight lines through values left and right of the greatest bend meet, if that is beside it.

    Of a kink this close they are straight, and its place is what derivatives see of it.
    """
    x = low + width * divisions(low)
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
