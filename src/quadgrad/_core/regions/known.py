"""What the functions that cut show of a cell: that it is inside, outside, or how they cut it.

With a bound on how fast they change this is a proof. Without one, the bound is taken from differences between
points of a lattice, and a look around at the start of a search goes against it: many points in each first cell, and
a climb from the most promising one. A function that is constant over a cell has shown nothing: what it says there
is what a saturated one says where it does not look.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.points import make_sequence
from quadgrad._core.regions.lines import Level

__all__ = ["Known", "Scouts", "inspect", "send_scouts"]

SAFETY = 2.0
"""A function may change so many times as fast as neighbouring points of the lattice say."""

STEEP = 0.25
"""Along the innermost axis differences keep their sign, and the smallest is at least this part of the largest."""

CONSTANT = 16.0
"""Values that differ by less than so many eps of their size are taken to be equal."""

SCOUTS, CLIMB = 4096, 40
"""Points of the look around, for each integral, and steps of a climb."""


FAR, ODD = 0.125, 2
"""The first step of a climb from the most promising point, as a part of a cell's side; and from how many points
that stand out of a trend one climbs besides, in steps of half the distance of points at first. Without these 5 of
24 narrow holes of a slope were seen, with them all."""


@dataclass(frozen=True, eq=False)
class Scouts:
    """Where the functions came closest to changing their sign, and whether they are positive there.

    ``u`` has shape ``(batch, k, d)``, ``positive`` ``(batch, k, functions)``.
    """

    u: Tensor
    positive: Tensor


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of cells, each of shape ``(n, ...)``.

    Attributes
    ----------
    outside : Tensor of bool
        Some function is negative all over the cell.
    active : Tensor of bool, shape (n, functions)
        Which functions may vanish in the cell; none if it is inside or outside.
    order : Tensor of int64, shape (n, d)
        The axes, the outermost first, the steepest last.
    steep : Tensor of bool
        Along the last axis all active functions are monotonic, as far as the lattice shows.
    clear : Tensor of bool
        The same of each active function along an axis of its own.
    blank : Tensor of bool
        All active functions are constant there, as far as the lattice shows.
    lost : Tensor of bool
        A function is NaN there.
    """

    outside: Tensor
    active: Tensor
    order: Tensor
    steep: Tensor
    clear: Tensor
    blank: Tensor
    lost: Tensor


def _lattice(d: int, like: Tensor) -> Tensor:
    """Return the points of a lattice in the unit cube, faces included, ``(q, ..., q, d)``."""
    q = {1: 9, 2: 5, 3: 5}.get(d, 3)
    line = torch.linspace(0.0, 1.0, q, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(*[line] * d, indexing="ij"), dim=-1)


def inspect(
    level: Level, owner: Tensor, low: Tensor, side: Tensor, lipschitz: Tensor | None, scouts: Scouts | None
) -> Known:  # fmt: skip
    """Look at cells ``low``, ``side`` ``(n, d)``.

    ``lipschitz`` ``(batch or 1, functions)`` is how fast the functions change at most, by distance in x.
    """
    n, d = low.shape
    lattice = _lattice(d, low)
    q, shape = lattice.shape[0], lattice.shape[:-1]
    points = lattice.reshape(-1, d)
    u = low[:, None] + side[:, None] * points
    v = level(u.flatten(0, 1), owner.repeat_interleave(len(points))).unflatten(0, (n, len(points)))
    lowest, highest = torch.aminmax(v, dim=1)
    positive, negative = lowest > 0.0, highest < 0.0
    nearest = torch.where(positive, lowest, torch.where(negative, -highest, 0.0))
    grid = v.unflatten(1, shape)
    changes = torch.stack([grid.diff(dim=1 + k).flatten(1, d) for k in range(d)], dim=1)
    low_change, high_change = torch.aminmax(changes, dim=2)  # (n, d, functions)
    largest = torch.maximum(high_change, -low_change)
    if lipschitz is None:
        # Points are at most half a step of the lattice away from one, along each axis.
        reach = 0.5 * SAFETY * largest.sum(1)
        eps = torch.finfo(level.g.call_dtype).eps
        blank = highest - lowest <= CONSTANT * eps * torch.maximum(highest.abs(), lowest.abs())
    else:
        each = lipschitz if lipschitz.shape[0] == 1 else lipschitz[owner]
        sides = (level.box.b - level.box.a).abs()
        sides = sides if sides.shape[0] == 1 else sides[owner]
        reach = each * (0.5 / (q - 1) * (sides * side).norm(dim=1))[:, None]
        blank = torch.zeros_like(positive)
    decided = (nearest > reach) & ~blank
    hidden = torch.zeros_like(decided)
    if scouts is not None:
        hidden = (positive | negative) & _contradicted(scouts, owner, low, side, positive)
        decided &= ~hidden
    outside = (decided & negative).any(1)
    active = ~decided & ~outside[:, None]
    order, steep, clear = _axes(low_change, high_change, largest, active)
    clear &= ~(hidden & active).any(1)  # the lattice has not seen what is there
    blank = (blank | decided).all(1) & active.any(1)
    return Known(outside, active, order, steep, clear, blank, ~v.isfinite().flatten(1).all(1))


def _contradicted(scouts: Scouts, owner: Tensor, low: Tensor, side: Tensor, positive: Tensor) -> Tensor:
    """Tell of which functions a scout in a cell has seen the other sign, ``(n, functions)``."""
    u, seen = scouts.u[owner], scouts.positive[owner]
    within = ((u >= low[:, None]) & (u <= (low + side)[:, None])).all(2)
    return ((seen != positive[:, None]) & within[:, :, None]).any(1)


def _axes(low: Tensor, high: Tensor, largest: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Order the axes; tell if the last is steep for all active functions, and if each of these has such an axis.

    The last one is the steepest, in units of the cell. The others are ordered by how alike the slopes along them
    are: a function that turns along the next to last axis meets the faces of the cell in a curve that turns, too,
    where the integral over that axis has a singularity like that of a square root. (By steepness thin cells would
    have their thin axis outside, whatever the function does.)
    """
    idle = ~active[:, None]
    same = torch.where(low > 0.0, low, torch.where(high < 0.0, -high, 0.0))
    each = (same >= STEEP * largest) & (same > 0.0) | idle
    steep, clear = each.all(2), each.any(1).all(1)
    alike = (same / largest).nan_to_num(0.0).masked_fill(idle, 1.0).amin(2)
    share = (same / largest.sum(1, keepdim=True)).nan_to_num(0.0).masked_fill(idle, 1.0).amin(2)
    best = torch.where(steep, 1.0 + share, alike)
    last = best.argmax(1, keepdim=True)
    order = alike.scatter(1, last, torch.inf).argsort(dim=1, stable=True)
    return order, steep.gather(1, last).squeeze(1), clear


def send_scouts(level: Level, batch: int, start: Tensor, block: int) -> Scouts:
    """Look around in each first cell ``start`` ``(cells, 2, d)`` (low, side), which all integrals have.

    From the point nearest to a change of sign, of each function and in each direction, one climbs on; and from
    those that stand out most of what is smooth in their cell.
    """
    cells, _, d = start.shape
    size = max(1, SCOUTS // cells)
    sequence = make_sequence("sobol", d, 0, 1, start.device)
    points = sequence.points(0, size)[0].to(start.dtype)
    parts: list[Scouts] = []
    for low in range(0, batch, max(1, block // (cells * size))):
        owners = torch.arange(low, min(batch, low + max(1, block // (cells * size))), device=start.device)
        parts.append(_scout(level, owners, start, points))
    return Scouts(torch.cat([p.u for p in parts]), torch.cat([p.positive for p in parts]))


def _scout(level: Level, owners: Tensor, start: Tensor, points: Tensor) -> Scouts:
    n, (cells, _, d), size = owners.shape[0], start.shape, points.shape[0]
    u = start[:, 0, None] + start[:, 1, None] * points
    whose = owners[:, None].expand(n, cells * size).reshape(-1)
    v = level(u.reshape(1, -1, d).expand(n, -1, d).reshape(-1, d), whose).reshape(n, cells, size, -1)
    v = v.nan_to_num(0.0)
    odd = _without_trend(points, v)
    # What stands out of a slope is where a function is no more extreme than elsewhere.
    best = torch.cat([t.topk(k, 2).indices for t, k in ((v, 1), (-v, 1), (odd, ODD), (-odd, ODD))], dim=2)
    best = best.movedim(2, 3)  # (n, cells, functions, k)
    functions = best.shape[2]
    u = u[torch.arange(cells, device=u.device)[:, None, None], best]  # (n, cells, functions, k, d)
    low, side = (start[None, :, k, None, None].expand(u.shape) for k in range(2))
    ups = [1.0, -1.0] + [1.0] * ODD + [-1.0] * ODD
    steps = [FAR, FAR] + [0.5 * size ** (-1.0 / d)] * (2 * ODD)
    sign, step = (u.new_tensor(t).expand(u.shape[:-1]) for t in (ups, steps))
    which = torch.arange(functions, device=u.device)[:, None].expand(u.shape[:-1])
    whose = owners[:, None, None, None].expand(u.shape[:-1])
    u, low, side = (t.reshape(-1, d) for t in (u, low, side))
    sign, step, which, whose = (t.reshape(-1) for t in (sign, step, which, whose))
    u = _climb(level, u, low, side, sign, step, which, whose)
    positive = level(u, whose) > 0.0
    return Scouts(u.reshape(n, -1, d), positive.reshape(n, -1, functions))


def _without_trend(points: Tensor, v: Tensor) -> Tensor:
    """Return values ``(n, cells, size, functions)`` at points less the nearest polynomial of second degree."""
    d = points.shape[1]
    products = [points[:, i] * points[:, j] for i in range(d) for j in range(i, d)]
    basis = torch.linalg.qr(torch.stack((torch.ones_like(points[:, 0]), *points.T, *products), dim=1))[0]
    return v - torch.einsum("sk,nckf->ncsf", basis, torch.einsum("sk,ncsf->nckf", basis, v))


def _climb(
    level: Level, u: Tensor, low: Tensor, side: Tensor, sign: Tensor, step: Tensor, which: Tensor, owner: Tensor
) -> Tensor:  # fmt: skip
    """Climb to where ``sign`` times a function is larger, by steps along the axes, halved where none leads up."""
    n, d = u.shape
    directions = torch.cat(
        (torch.eye(d, dtype=u.dtype, device=u.device), -torch.eye(d, dtype=u.dtype, device=u.device))
    )
    height = sign * level(u, owner).gather(1, which[:, None]).squeeze(1)
    for _ in range(CLIMB):
        tried = u[:, None] + (step[:, None] * side)[:, None] * directions
        tried = torch.minimum(torch.maximum(tried, low[:, None]), (low + side)[:, None])
        each = owner[:, None].expand(n, 2 * d).reshape(-1)
        values = level(tried.reshape(-1, d), each).reshape(n, 2 * d, -1)
        values = sign[:, None] * values.gather(2, which[:, None, None].expand(n, 2 * d, 1)).squeeze(2)
        top, place = values.nan_to_num(-torch.inf).max(1)
        better = top > height
        u = torch.where(better[:, None], tried[torch.arange(n, device=u.device), place], u)
        height, step = torch.where(better, top, height), torch.where(better, step, 0.5 * step)
    return u
