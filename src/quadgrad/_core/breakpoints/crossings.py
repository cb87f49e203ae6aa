"""Where the functions given as ``jumps`` change sign: a scan, then one zero between each two signs.

The scan looks at given cells: first at a few that stand closer near the ends of each piece, later at a plan's,
which are narrow where the integrand jumps. A zero the first scan has missed is seen there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from quadgrad._core.breakpoints.roots import Bracket, Dip, find_zeros, follow_dips
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.interval import place
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.reduce import concatenate, take, total

__all__ = ["Zeros", "look", "scan_pieces", "scan_plan"]

_ENDS = (0.0, 2.0**-48, 2.0**-24, 2.0**-12, 2.0**-6, 2.0**-3, 0.25, 0.5)
_NODES = 12

VANISHED = 1e-3
"""A change of sign is a zero if the value there is below this share of those in its neighbourhood."""


@dataclass(frozen=True)
class Zeros:
    """The zeros of each integral, ascending, shape ``(batch, k)``; NaN pads where an integral has fewer.

    ``component`` is the function's; ``width`` how closely the place is known; ``reach`` the width of the stretch in
    which it was found and ``size`` the function's magnitude there; ``vanishes`` is False where the sign changes
    over a jump or pole. ``touching`` ``(n,)`` are places where a function reaches 0 without a change of sign, NaN
    where it does not.
    """

    place: Tensor
    component: Tensor
    width: Tensor
    reach: Tensor
    size: Tensor
    vanishes: Tensor
    touching: Tensor

    @property
    def count(self) -> int:
        """The largest number of zeros of one integral."""
        if self.place.numel() == 0:
            return 0
        return int((~self.place.isnan()).sum(1).max())

    def join(self, other: Zeros) -> Zeros:
        """Return the zeros of both."""
        columns = (torch.cat(pair, dim=1) for pair in zip(self._columns(), other._columns(), strict=True))
        return Zeros(*columns, touching=torch.cat((self.touching, other.touching))).trim()

    def trim(self) -> Zeros:
        """Return the zeros in ascending order without columns that are empty everywhere."""
        order = self.place.argsort(dim=1)[:, : self.count]  # NaN last
        return Zeros(*(t.gather(1, order) for t in self._columns()), touching=self.touching)

    def pad(self, count: int) -> Zeros:
        """Return the zeros with at least ``count`` columns."""
        missing = (0, max(0, count - self.place.shape[1]))
        place, *others = self._columns()
        return Zeros(
            pad(place, missing, value=torch.nan), *(pad(t, missing) for t in others), touching=self.touching
        )

    def _columns(self) -> list[Tensor]:
        return [getattr(self, f.name) for f in fields(self)[:-1]]


@dataclass(frozen=True)
class _Crossings(Bracket):
    """Brackets of the functions' components, with the integrals that they belong to."""

    owner: Tensor
    component: Tensor


def scan_pieces(g: Integrand, limits: Limits, batch: int, block: int) -> Zeros:
    """Scan every piece of the integrals, most closely near its ends."""
    pieces = limits.pieces()
    occupied = (pieces.upper > pieces.lower).expand(batch * pieces.count)
    row = occupied.nonzero().squeeze(1)
    ends = torch.tensor(_ENDS, dtype=torch.float64, device=row.device)
    start = torch.cat((ends[:-1], -ends.flip(0)[:-1]))
    stop = torch.cat((ends[1:], -ends.flip(0)[1:]))
    n = start.shape[0]
    tau = (torch.arange(_NODES, dtype=torch.float64, device=row.device) + 0.5) / _NODES
    row, start, stop = row.repeat_interleave(n), start.repeat(row.shape[0]), stop.repeat(row.shape[0])
    x = place(pieces, row, start, stop, None, tau)[0].to(pieces.lower.dtype)
    zeros = _scan(g, x, row // pieces.count, row // pieces.count, batch, block)
    near, edge = _nearest_edge(zeros, limits)
    return replace(zeros, place=torch.where(near, edge, zeros.place))


def scan_plan(g: Integrand, limits: Limits, plan: IntervalPlan, block: int) -> Zeros:
    """Scan the nodes of a plan for zeros that are not breakpoints of it."""
    order = plan.order
    x = plan.place(limits.pieces())[0][:, order].sort(dim=0).values  # nodes that close in on an end may descend
    zeros = _scan(g, x, plan.owner[order], plan.row[order], plan.batch, block)
    # Rounding may move a change of sign across the breakpoint that was made of it.
    near, _ = _nearest_edge(zeros, limits)
    return replace(zeros, place=torch.where(near, torch.nan, zeros.place)).trim()


def _nearest_edge(zeros: Zeros, limits: Limits) -> tuple[Tensor, Tensor]:
    """Return where rounding does not tell zeros from a limit or breakpoint, and the nearest one, ``(batch, k)``."""
    edges = limits.edges().expand(zeros.place.shape[0], -1)
    distance = (zeros.place[:, :, None] - edges[:, None, :]).abs()
    nearest = distance.argmin(2)
    noise = 64.0 * torch.finfo(distance.dtype).eps * zeros.place.abs() + zeros.width
    return distance.gather(2, nearest[:, :, None]).squeeze(2) <= noise, edges.gather(1, nearest)


def _scan(g: Integrand, x: Tensor, owner: Tensor, stretch: Tensor, batch: int, block: int) -> Zeros:
    """Find zeros between nodes ``(m, n)`` that ascend in each cell, and from cell to cell of one ``stretch``."""
    m = x.shape[0]
    y = look(g, x, owner, block).transpose(0, 1).flatten(0, 1)
    x, owner, column = x.T.reshape(-1), owner.repeat_interleave(m), stretch.repeat_interleave(m)
    together = (column[1:] == column[:-1])[:, None]
    crossings = [_crossings(x, y, owner, together)]
    dips, at, component = _dips(x, y, together)
    touching = x.new_zeros(0)
    if at.shape[0]:
        bottom, crosses, touches = follow_dips(_columns(g, owner[at], component, block), dips)
        touching = torch.where(touches, bottom.x[1], torch.nan)
        y = bottom.y.masked_fill(~crosses, torch.nan)
        for left, right in ((0, 1), (1, 2)):
            sides = (bottom.x[left], bottom.x[right], y[left], y[right])
            crossings.append(_Crossings(*sides, owner[at], component))
    return _collect(g, concatenate(crossings), touching, batch, block)


def look(g: Integrand, x: Tensor, owner: Tensor | slice, block: int | None = None) -> Tensor:
    """Return a function's values at nodes ``(m, n)``, ``(m, n, components)``, a block at a time."""
    if isinstance(owner, slice) or block is None:
        y = g(x, owner).detach()
        return y.reshape(*x.shape, math.prod(y.shape[2:]))
    step = max(1, block // x.shape[0])
    parts = (slice(first, first + step) for first in range(0, max(1, x.shape[1]), step))
    return torch.cat([look(g, x[:, part], owner[part]) for part in parts], dim=1)


def _crossings(x: Tensor, y: Tensor, owner: Tensor, together: Tensor) -> _Crossings:
    """Return neighbours of opposite sign."""
    changes = ((y[1:] >= 0) != (y[:-1] >= 0)) & ~y[1:].isnan() & ~y[:-1].isnan() & together
    at, component = changes.nonzero().unbind(1)
    return _Crossings(x[at], x[at + 1], y[at, component], y[at + 1, component], owner[at], component)


def _dips(x: Tensor, y: Tensor, together: Tensor) -> tuple[Dip, Tensor, Tensor]:
    """Return neighbours of equal sign the middle of which is nearest to 0, its index and the component."""
    size, sign = y.abs(), y >= 0
    middle = size[1:-1]
    rise = torch.maximum(size[:-2], size[2:]) - middle
    dips = (middle <= size[:-2]) & (middle <= size[2:]) & (rise > 0) & (middle <= rise)
    dips = dips & (sign[1:-1] == sign[:-2]) & (sign[1:-1] == sign[2:]) & together[1:] & together[:-1]
    before, component = dips.nonzero().unbind(1)
    around = torch.stack((before, before + 1, before + 2))
    return Dip(x[around], y[around, component]), before + 1, component


def _columns(g: Integrand, owner: Tensor, component: Tensor, block: int) -> Callable[[Tensor], Tensor]:
    """Return the components of g for one column each, without gradient, evaluated a block at a time."""

    def function(x: Tensor) -> Tensor:
        which = component.expand(x.shape[0], -1)[:, :, None]
        return look(g, x, owner, block).gather(2, which).squeeze(2)

    return function


def _collect(g: Integrand, crossings: _Crossings, touching: Tensor, batch: int, block: int) -> Zeros:
    """Find the zeros between all brackets and set them out by integral."""
    crossings = take(crossings, crossings.owner.argsort(stable=True))
    owner, component, left, right = crossings.owner, crossings.component, crossings.at_left, crossings.at_right
    valid = ((left >= 0) != (right >= 0)) & ~left.isnan() & ~right.isnan()
    n = owner.shape[0]
    counts = total(torch.ones_like(owner), owner, batch)
    k = int(counts.max()) if n else 0
    size = torch.maximum(left.abs(), right.abs())
    size = torch.where(size.isinf(), torch.minimum(left.abs(), right.abs()), size)
    place, width, value = crossings.left, size, size
    if n:
        place, width, value = find_zeros(_columns(g, owner, component, block), crossings)
    reach = (crossings.right - crossings.left).abs()
    # Nothing can be told of a stretch that is hardly wider than rounding, next to a breakpoint say.
    vanishes = (value.abs() <= VANISHED * size) | (reach <= 64.0 * torch.finfo(reach.dtype).eps * place.abs())
    slot = owner, torch.arange(n, device=owner.device) - (counts.cumsum(0) - counts)[owner]
    columns = (torch.where(valid, place, torch.nan), component, width, reach, size, vanishes)
    table = [values.new_zeros((batch, k)).index_put(slot, values) for values in columns]
    table[0] = place.new_full((batch, k), torch.nan).index_put(slot, columns[0])
    return Zeros(*table, touching=touching).trim()
