"""Where f has a kink: cubics through f on both sides of a stretch meet there.

Halving a stretch around the greatest bend of f takes 81 calls until numbers are too close. Beside a kink f is
smooth on either side. Where the polynomials of both sides meet f is looked at so closely that a bend as large as
their slopes differ by can be nothing else. Of what is no kink that is seen after 8 calls, at most 17.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quadgrad._core.problem import Problem
from quadgrad._core.search.task import noise

__all__ = ["SEVERAL", "call_places", "corners_first", "find_corners"]

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


Zoom = Callable[[Problem, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def corners_first(
    zoom: Zoom, problem: Problem, owner: Tensor, low: Tensor, high: Tensor, several: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Close in on stretches ``(k,)`` as ``zoom`` does, looking for corners first in those that are of ``several``.

    Where there is none, there may be two: once one place is known they are looked for on both sides of it. Returned
    beside what ``zoom`` returns are the stretches and the places of such others.
    """
    index, none = several.nonzero()[:, 0], (owner[:0], low[:0])
    if not len(index):
        return *zoom(problem, owner, low, high), none
    places, there, calls = find_corners(problem, owner[index], low[index], high[index])
    rest = torch.ones_like(several).index_copy(0, index, ~there).nonzero()[:, 0]
    place, found, doubt = low.index_copy(0, index, places), torch.ones_like(several), torch.zeros_like(low)
    spent = torch.zeros_like(owner).index_copy(0, index, calls)
    if not len(rest):
        return place, found, doubt, spent, none
    closer = zoom(problem, owner[rest], low[rest], high[rest])
    place, found = place.index_copy(0, rest, closer[0]), found.index_copy(0, rest, closer[1])
    doubt, spent = doubt.index_copy(0, rest, closer[2]), spent.index_add(0, rest, closer[3])
    split = rest[found[rest] & several[rest]].repeat(2)
    half = len(split) // 2
    at = place[split[:half]]
    places, there, calls = find_corners(
        problem, owner[split], torch.cat((low[split[:half]], at)), torch.cat((at, high[split[:half]]))
    )
    return place, found, doubt, spent.index_add(0, split, calls), (split[there], places[there])


def find_corners(problem: Problem, owner: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a place in each stretch ``(k,)``, whether f has a kink there and is smooth around, and the calls."""
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
    place, found = low + width * s.clamp(0.0, 1.0), torch.zeros_like(inside)
    spent = torch.full_like(owner, 2 * SIDE)
    index = inside.nonzero()[:, 0]
    if not len(index):
        return place, found, spent
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
    found[index] = proved
    return place, found, spent


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


def call_places(problem: Problem, owner: Tensor, x: Tensor) -> Tensor:
    """Return f at places ``(m, k)`` of integrals, ``(m, k, components)``."""
    step = max(1, problem.block // len(x))
    parts = [
        problem.integrand(x[:, low : low + step], owner[low : low + step]).detach()
        for low in range(0, x.shape[1], step)
    ]
    y = torch.cat(parts, 1)
    y = y.reshape(*x.shape, -1)
    return torch.view_as_real(y.to(torch.complex128)).flatten(2) if y.is_complex() else y.double()
