"""Where f has a kink: cubics through f on both sides of a stretch meet there.

Halving a stretch around the greatest bend of f takes 81 calls until numbers are too close. Beside a kink f is
smooth on either side. Where the polynomials of both sides meet f is looked at so closely that a bend as large as
their slopes differ by can be nothing else. Of what is no kink that is seen after 8 calls, at most 17.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.problem import Problem
from quadgrad._core.search.piles.zoom import Zoom
from quadgrad._core.search.task import call_places, noise

__all__ = ["CORNER", "SEVERAL", "corners_first", "find_corners"]

SEVERAL = 4
"""Corners are looked for in integrals with so many stretches: where there is one, most often f has a peak."""

SIDE = 4
"""Places on either side: of the parts of the stretch that they are in, those are the outer tenths."""

MARGIN = 0.1
CLOSE = 2.0**-20
"""How far around the place, as a part of the stretch, f is looked at."""

PROVES = 0.5
"""The bend there that proves a kink, of that which the slopes of both sides make expect."""

DIVISIONS = 8
NEWTON = 6

STRAIGHT = 1e-10
"""Values on a side that are off a straight line by no more than this part of their size are on it."""

DEEPEST, COSTS = 12, 1_000
"""Where one corner of several is between straight lines f is a table, whose others are looked for: in what is
between those known, halved so often at most, and for so many calls."""

ROUGH, SMOOTH, CORNER, STRAIGHT_CORNER = range(4)
"""What a stretch is: none of the others; one polynomial; a corner between two; one between straight lines."""


def corners_first(
    zoom: Zoom, problem: Problem, row: Tensor, low: Tensor, high: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Close in on stretches ``(k,)`` as ``zoom`` does, looking for corners first in those ``index`` of several.

    Returned beside what ``zoom`` returns are corners of tables elsewhere in their pieces: a stretch of the same
    piece, and the place.
    """
    owner, none = row // problem.pieces.count, (row[:0], low[:0])
    if not len(index):
        return *zoom(problem, owner, low, high), none
    places, kind, calls = find_corners(problem, owner[index], low[index], high[index])
    found = torch.zeros_like(owner, dtype=torch.bool).index_copy(0, index, kind >= CORNER)
    place, doubt = low.index_copy(0, index, places), torch.zeros_like(low)
    spent = torch.zeros_like(owner).index_copy(0, index, calls)
    straight = index[kind == STRAIGHT_CORNER]
    beside, more, calls = _trace(problem, row[straight], place[straight])
    others = straight[beside], more
    spent.index_add_(0, straight, calls)
    # A stretch in which a corner of a table is has been seen to the end.
    at = _holding(problem, row, low, high, *others)
    place = torch.where(found | (at < 0), place, more[at.clamp_min(0)] if len(more) else place)
    found |= at >= 0
    rest = (~found).nonzero()[:, 0]
    if len(rest):
        closer = zoom(problem, owner[rest], low[rest], high[rest])
        place, found = place.index_copy(0, rest, closer[0]), found.index_copy(0, rest, closer[1])
        doubt, spent = doubt.index_copy(0, rest, closer[2]), spent.index_add(0, rest, closer[3])
    return place, found, doubt, spent, others


def _holding(problem: Problem, row: Tensor, low: Tensor, high: Tensor, index: Tensor, place: Tensor) -> Tensor:
    """Return for each of ascending stretches ``(k,)`` one of the places in it, in rows ``row[index]``, or -1."""
    lower, upper = (end.expand(row.shape) if len(end) == 1 else end for end in problem.pieces.ends(row))
    at = torch.full_like(row, -1)
    if not len(index):
        return at
    begins = row + ((low - lower) / (upper - lower)).nan_to_num(0.0)  # of infinite pieces there is no place
    keys = row[index] + (place - lower[index]) / (upper - lower)[index]
    stretch = (torch.searchsorted(begins, keys, right=True) - 1).clamp_min(0)
    inside = (row[stretch] == row[index]) & (low[stretch] <= place) & (place <= high[stretch])
    return at.index_copy(0, stretch[inside], inside.nonzero()[:, 0])


def _trace(problem: Problem, row: Tensor, corner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return further corners of the pieces that are tables, given some: whose neighbours, where, and the calls.

    Between neighbours, and up to the ends of the piece, f is one straight line, or has another corner.
    """
    order = corner.argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    lower, upper = (end.expand(row.shape) if len(end) == 1 else end for end in problem.pieces.ends(row))
    order = order[(lower.isfinite() & upper.isfinite())[order]]
    spent, index, places = torch.zeros_like(row), list[Tensor](), list[Tensor]()
    if not len(order):
        return order, corner[:0], spent
    first = torch.nn.functional.pad(row[order][1:] != row[order][:-1], (1, 0), value=True)
    last = torch.nn.functional.pad(first[1:], (0, 1), value=True)
    at = corner[order]
    which = torch.cat((order, order[first]))
    low = torch.cat((at, lower[order][first].to(at)))
    high = torch.cat((torch.where(last, upper[order].to(at), at.roll(-1)), at[first]))
    piece = row.unique(return_inverse=True)[1]
    for _ in range(DEEPEST):
        place, kind, calls = find_corners(problem, row[which] // problem.pieces.count, low, high)
        spent.index_add_(0, which, calls)
        here = kind >= CORNER
        index.append(which[here])
        places.append(place[here])
        dear = torch.zeros_like(spent).index_add_(0, piece, spent)[piece[which]] > COSTS
        halved = (kind == ROUGH) & ~dear
        if not bool(halved.any()):
            break
        middle = 0.5 * (low + high)[halved]
        which = which[halved].repeat(2)
        low, high = torch.cat((low[halved], middle)), torch.cat((middle, high[halved]))
    return torch.cat(index), torch.cat(places), spent


def find_corners(problem: Problem, owner: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a place in each stretch ``(k,)``, what the stretch is, one of the kinds above, and the calls."""
    eps = noise(problem)
    width = high - low
    tau = torch.linspace(0.0, MARGIN, SIDE, dtype=low.dtype, device=low.device)
    tau = torch.cat((tau, 1.0 - tau.flip(0)))[:, None]
    y = call_places(problem, owner, low + width * tau)
    # As seen from either side: f at distances from its end of the stretch, constant first.
    power = torch.linalg.inv((tau[:SIDE, 0, None] / MARGIN) ** torch.arange(SIDE, device=low.device))
    left, right = (torch.einsum("pm,mkc->pkc", power, side) for side in (y[:SIDE], y[SIDE:].flip(0)))
    size = y.abs().amax(0)
    s, component, jump = _meet(left, right, size, eps)
    inside = (s > MARGIN) & (s < 1.0 - MARGIN)
    place = low + width * s.clamp(0.0, 1.0)
    far = (0.5 / MARGIN) ** torch.arange(SIDE, device=low.device, dtype=low.dtype)[:, None, None]
    agree = ((far * (left - right)).sum(0).abs() <= STRAIGHT * size).all(1)
    straight = (torch.stack((left[2:], right[2:])).abs() <= STRAIGHT * size).flatten(0, 1).all(0).all(1)
    kind = agree.to(torch.int64) * SMOOTH
    spent = torch.full_like(owner, 2 * SIDE)
    index = inside.nonzero()[:, 0]
    if not len(index):
        return place, kind, spent
    spent[index] += DIVISIONS + 1
    steps = torch.arange(DIVISIONS + 1, dtype=low.dtype, device=low.device)[:, None] / DIVISIONS - 0.5
    x = place[index] + steps * (CLOSE * width[index])
    step = CLOSE * width[index] / DIVISIONS
    near = call_places(problem, owner[index], x).gather(2, component[index][None, :, None].expand(len(x), -1, 1))[
        :, :, 0
    ]
    bends = (near[2:] - 2.0 * near[1:-1] + near[:-2]).abs()
    bend, at = bends.max(0)
    # Of the two nodes around it each sees a part, together all.
    both = bend + torch.stack(
        [bends.gather(0, (at + side).clamp(0, len(bends) - 1)[None])[0] for side in (-1, 1)]
    ).amax(0)
    expected = jump[index] * step / width[index]
    proved = (both > PROVES * expected) & (both < expected / PROVES) & (at > 0) & (at < len(bends) - 1)
    proved &= expected > 64.0 * eps * size.gather(1, component[:, None])[index, 0]
    # Straight lines through the outer values on both sides, which this close are f.
    rise, fall = near[1] - near[0], near[-1] - near[-2]
    away = (near[0] - near[-1] + DIVISIONS * fall) / (fall - rise)
    proved &= (away > 1.0) & (away < DIVISIONS - 1.0)
    place[index] = torch.where(proved, x[0] + away * step, place[index])
    kind[index] = torch.where(proved, CORNER + straight[index].to(torch.int64), kind[index])
    return place, kind, spent


def _meet(left: Tensor, right: Tensor, size: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return where cubics ``(4, k, components)`` from both ends of the unit interval meet, and by what they bend.

    That is of the component of which slopes differ most, relative to its size, and that difference.
    """
    power = torch.arange(SIDE, device=left.device)[:, None, None]

    def at(cubic: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        u = s / MARGIN
        value = (cubic * u**power).sum(0)
        return value, (cubic[1:] * power[1:] * u ** (power[1:] - 1)).sum(0) / MARGIN

    s = torch.full_like(left[0], 0.5)
    gap = slope = torch.zeros_like(s)
    for _ in range(NEWTON):
        (a, rise), (b, fall) = at(left, s), at(right, 1.0 - s)
        gap, slope = a - b, rise + fall
        s = (s - gap / slope).nan_to_num(0.0, 0.0, 0.0).clamp(-1.0, 2.0)
    settled = gap.abs() <= 1e-3 * slope.abs() * MARGIN
    share = torch.where(settled, slope.abs() / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
    component = share.argmax(1, keepdim=True)
    place, bend = s.gather(1, component)[:, 0], slope.abs().gather(1, component)[:, 0]
    return torch.where(share.gather(1, component)[:, 0] > eps**0.5, place, 0.0), component[:, 0], bend
