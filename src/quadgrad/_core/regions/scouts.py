"""The look around before a search over a region: where functions have a sign that lattices of cells do not show.

In each of the first cells the functions are taken at many points and compared with polynomials through them. What
is too narrow for these stands out: the foot of a spike is seen from several times its width, by what is left of a
smooth function without it, and that is what is climbed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from quadgrad._core.points import make_sequence
from quadgrad._core.regions.lines import Level
from quadgrad._core.rules.fit import Fit, fit_points
from quadgrad._core.tolerance import sum_dtype

__all__ = ["Scouts", "send_scouts"]

LEAST, MOST, HITS = 2**12, 2**16, 4.0
"""Points for each integral, at least and at most: as many as put about four in what is as large a part of the box
as the tolerance is of the integral."""

FITTED, NEIGHBOURHOOD = 1024, 256
"""Points of a cell, at most: to fit polynomials to, and to look for the highest among neighbours in."""

REFITS, CLIPPED = 3, 3.0
"""How often polynomials are fitted again to gaps that are cut off at so many times the median one."""

NEIGHBOURS = 3
"""Times the number of dimensions: neighbours a point is compared with."""

ODD, APART, STANDS_OUT, ROUNDING = 3, 4.0, 30.0, 64.0
"""So many points of a cell are climbed from, farther apart than so many distances of points, whose gaps to the
polynomial are so many times the median one, and more than so many eps of the largest value."""

EXTREMES, UNEXPLAINED = 3, 30.0
"""So many of the highest among their neighbours are climbed from, each way, if they are not farther from 0 than so
many times the largest gap in the cell."""

CLIMB = 32
"""Steps of a climb."""

WIDTHS, WIDEST = 24, 4.0
"""How many times the distance at which the sign around a scout is looked at is halved, from so many distances of
points on."""


@dataclass(frozen=True, eq=False)
class Scouts:
    """Points of each integral, and the signs of functions there that too few points have.

    Attributes
    ----------
    u : Tensor, shape (batch, k, d)
        NaN where an integral has fewer.
    positive : Tensor of bool, shape (batch, k, functions)
    extent : Tensor, shape (batch, k, d)
        How far from there the sign of a function changes along each axis; infinite where it is not close.
    """

    u: Tensor
    positive: Tensor
    extent: Tensor


@dataclass(frozen=True, eq=False)
class _Patches:
    """The functions one by one in first cells, with the polynomials that are nearest to their values there.

    ``owner`` and ``which`` ``(p,)`` are the integrals and the functions, ``low`` and ``side`` ``(p, d)`` the cells,
    ``coefficients`` ``(p, k)`` those of the polynomials.
    """

    level: Level
    fit: Fit
    owner: Tensor
    which: Tensor
    low: Tensor
    side: Tensor
    coefficients: Tensor

    def take(self, index: Tensor) -> _Patches:
        """Return some of them, in any order."""
        parts = (self.owner, self.which, self.low, self.side, self.coefficients)
        return _Patches(self.level, self.fit, *(t[index] for t in parts))

    def __call__(self, t: Tensor) -> Tensor:
        """Return the functions less the polynomials at points t ``(p, m, d)`` of the cells, ``(p, m)``."""
        m = t.shape[1]
        u = self.low[:, None] + self.side[:, None] * t
        v = self.level(u.flatten(0, 1), self.owner.repeat_interleave(m)).unflatten(0, (-1, m))
        v = v.gather(2, self.which[:, None, None].expand(-1, m, 1)).squeeze(2)
        products = self.fit.products(t.flatten(0, 1)).unflatten(0, (-1, m))
        return (v - torch.einsum("pmk,pk->pm", products, self.coefficients)).nan_to_num(0.0, 0.0, 0.0)


def send_scouts(level: Level, batch: int, start: Tensor, rtol: float, block: int) -> Scouts:
    """Look around in each first cell ``start`` ``(cells, 2, d)`` (low, side), which all integrals have."""
    cells = len(start)
    wanted = min(max(HITS / max(rtol, HITS / MOST), LEAST), MOST)
    size = 2 ** math.ceil(math.log2(max(1.0, wanted / cells)))
    step = max(1, block // (cells * size))
    parts = [
        _look(level, torch.arange(low, min(batch, low + step), device=start.device), start, size)
        for low in range(0, batch, step)
    ]
    owner, *columns = (torch.cat(each) for each in zip(*parts, strict=True))
    # Those of one integral side by side.
    owner, order = owner.sort(stable=True)
    count = torch.bincount(owner, minlength=batch)
    number = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
    tables: list[Tensor] = []
    for column, empty in zip(columns, (torch.nan, False, torch.inf), strict=True):
        table = column.new_full((batch, int(count.amax()), column.shape[1]), empty)
        table[owner, number] = column[order]
        tables.append(table)
    return Scouts(*tables)


@cache
def _points(d: int, size: int, device: torch.device) -> tuple[Tensor, Fit, Tensor, Tensor]:
    """Return points of a cell, polynomials through the first of them, their products at all, and neighbours."""
    points = make_sequence("sobol", d, 0, 1, device).points(0, size)[0].to(sum_dtype(device))
    fit = fit_points(points[:FITTED].cpu().numpy())
    few = points[:NEIGHBOURHOOD]
    near = torch.cdist(few, few).argsort(dim=1)[:, 1 : 1 + NEIGHBOURS * d]
    return points, fit, fit.products(points), near


def _look(level: Level, owners: Tensor, start: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scouts, one after the other: whose they are, where, the signs there, and how far these reach."""
    n, (cells, _, d) = owners.shape[0], start.shape
    points, fit, products, near = _points(d, size, start.device)
    u = (start[:, 0, None] + start[:, 1, None] * points).reshape(-1, d)
    v = level(u.repeat(n, 1), owners.repeat_interleave(cells * size))
    functions = v.shape[1]
    v = v.to(u.dtype).reshape(n, cells, size, functions).movedim(3, 2).flatten(0, 2).nan_to_num(0.0, 0.0, 0.0)
    coefficients = _fitted(v[:, :FITTED], fit, products[:FITTED])
    cell = torch.arange(cells, device=v.device).repeat_interleave(functions).repeat(n)
    patches = _Patches(
        level, fit, owners.repeat_interleave(cells * functions),
        torch.arange(functions, device=v.device).repeat(n * cells), start[cell, 0], start[cell, 1], coefficients,
    )  # fmt: skip
    gap = v - coefficients @ products.T
    eps = torch.finfo(level.g.call_dtype).eps
    odd, place = _stand_out(gap, ROUNDING * eps * v.abs().amax(1), points)
    patch, top, sign = _extremes(v[:, :NEIGHBOURHOOD], UNEXPLAINED * gap.abs().amax(1), near)
    climbers = patches.take(torch.cat((odd, patch)))
    climbers.coefficients[len(odd) :] = 0.0
    sign = torch.cat((gap[odd, place].sign(), sign))
    if not len(sign):  # a function need not understand that it is asked for nothing
        return climbers.owner, climbers.low, v.new_zeros((0, functions), dtype=torch.bool), climbers.low
    distance = size ** (-1.0 / d)
    t = _climb(climbers, points[torch.cat((place, top))], sign, distance)
    u, extent = climbers.low + climbers.side * t, _extent(climbers, t, distance)
    return climbers.owner, u, level(u, climbers.owner) > 0.0, extent


def _fitted(v: Tensor, fit: Fit, products: Tensor) -> Tensor:
    """Return polynomials ``(p, k)`` close to values ``(p, m)``, among which few that are far off count little.

    One point on a spike in a corner of a cell would bend the polynomial so much that gaps around change their sign.
    """
    matrix = torch.as_tensor(fit.coefficients, dtype=v.dtype, device=v.device).T
    coefficients = v @ matrix
    for _ in range(REFITS):
        gap = v - coefficients @ products.T
        most = CLIPPED * _median(gap)[:, None]
        coefficients = coefficients + torch.minimum(torch.maximum(gap, -most), most) @ matrix
    return coefficients


def _median(gap: Tensor) -> Tensor:
    """Return the median size of gaps ``(p, m)``, ``(p,)``: that of the first of them, sorting is slow."""
    return gap[:, :NEIGHBOURHOOD].abs().median(1).values


def _stand_out(gap: Tensor, rounding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the patches and the numbers of points whose gaps ``(p, size)`` are far larger than most."""
    size, (m, d) = gap.abs(), points.shape
    least = torch.maximum(STANDS_OUT * _median(size), rounding)
    patch = torch.arange(len(gap), device=gap.device)
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(ODD):
        top, place = size.max(1)
        stands = top > least[patch]
        patch, place, size = patch[stands], place[stands], size[stands]
        found.append((patch, place))
        away = (points - points[place][:, None]).abs().amax(2) > APART * m ** (-1.0 / d)
        size = torch.where(away, size, 0.0)
    patch, place = (torch.cat(parts) for parts in zip(*found, strict=True))
    return patch, place


def _extremes(v: Tensor, reach: Tensor, near: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return patches and points that are the highest among their neighbours, or the lowest, and close to 0.

    The last that is returned is 1 or -1 where it is the highest or the lowest.
    """
    around = v[:, near]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for sign, extreme in ((1.0, v >= around.amax(2)), (-1.0, v <= around.amin(2))):
        height = v.abs().masked_fill(~extreme | (v.abs() > reach[:, None]), torch.inf)
        least, place = height.topk(EXTREMES, largest=False)
        patch, number = least.isfinite().nonzero().unbind(1)
        found.append((patch, place[patch, number], torch.full_like(least[patch, number], sign)))
    patch, place, sign = (torch.cat(parts) for parts in zip(*found, strict=True))
    return patch, place, sign


def _climb(patches: _Patches, t: Tensor, sign: Tensor, step: float) -> Tensor:
    """Climb from points t ``(p, d)`` to where ``sign`` ``(p,)`` times a gap is larger.

    By steps along the axes, halved where none leads up.
    """
    p, d = t.shape
    eye = torch.eye(d, dtype=t.dtype, device=t.device)
    moves, each = torch.cat((eye, -eye)), torch.arange(p, device=t.device)
    height, steps = sign * patches(t[:, None])[:, 0], torch.full_like(sign, step)
    for _ in range(CLIMB):
        tried = (t[:, None] + steps[:, None, None] * moves).clamp(0.0, 1.0)
        top, place = (sign[:, None] * patches(tried)).max(1)
        better = top > height
        t = torch.where(better[:, None], tried[each, place], t)
        height, steps = torch.where(better, top, height), torch.where(better, steps, 0.5 * steps)
    return t


def _extent(patches: _Patches, t: Tensor, distance: float) -> Tensor:
    """Return how far from points t ``(p, d)`` of cells the functions' signs change, in the unit cube."""
    d = t.shape[1]
    eye = torch.eye(d, dtype=t.dtype, device=t.device)
    widths = WIDEST * distance * 0.5 ** torch.arange(WIDTHS, dtype=t.dtype, device=t.device)
    moves = torch.stack((eye, -eye), 1)[:, :, None] * widths[:, None]  # (d, 2, widths, d)
    bare = replace(patches, coefficients=torch.zeros_like(patches.coefficients))
    there = bare((t[:, None] + moves.flatten(0, 2)).clamp(0.0, 1.0)).unflatten(1, (d, 2, WIDTHS))
    here = bare(t[:, None])[:, :, None, None]
    same = ((there > 0.0) == (here > 0.0)).flip(3).cumprod(3).sum(3)  # of the widths, from the smallest on
    extent = widths[-1] * 2.0 ** (same.amax(2) - 1.0)
    return patches.side * torch.where(same.amax(2) == WIDTHS, torch.inf, extent)
