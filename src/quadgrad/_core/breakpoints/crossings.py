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

from quadgrad._core.breakpoints.roots import Bracket, Dip, find_zeros, follow_dips
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.interval import place
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.reduce import total

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
        touching = torch.cat((self.touching, other.touching))
        columns = zip(self._columns(), other._columns(), strict=True)
        return Zeros(*(torch.cat(pair, dim=1) for pair in columns), touching=touching).trim()

    def trim(self) -> Zeros:
        """Return the zeros in ascending order without columns that are empty everywhere."""
        order = self.place.argsort(dim=1)[:, : self.count]  # NaN last
        return Zeros(*(t.gather(1, order) for t in self._columns()), touching=self.touching)

    def pad(self, count: int) -> Zeros:
        """Return the zeros with at least ``count`` columns."""
        missing = max(0, count - self.place.shape[1])
        empty = (t.new_zeros((t.shape[0], missing)) for t in self._columns())
        columns = (torch.cat(pair, dim=1) for pair in zip(self._columns(), empty, strict=True))
        padded = Zeros(*columns, touching=self.touching)
        real = torch.arange(padded.place.shape[1], device=self.place.device) < self.place.shape[1]
        return replace(padded, place=torch.where(real, padded.place, torch.nan))

    def _columns(self) -> list[Tensor]:
        return [getattr(self, f.name) for f in fields(self)[:-1]]


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
    found = _scan(g, x, row // pieces.count, row // pieces.count, batch, block)
    near, edge = _nearest_edge(found, limits)
    return replace(found, place=torch.where(near, edge, found.place))


def scan_plan(g: Integrand, limits: Limits, plan: IntervalPlan, block: int) -> Zeros:
    """Scan the nodes of a plan for zeros that are not breakpoints of it."""
    order = plan.order
    x = plan.place(limits.pieces())[0][:, order].sort(dim=0).values  # nodes that close in on an end may descend
    found = _scan(g, x, plan.owner[order], plan.row[order], plan.batch, block)
    if found.place.shape[1] == 0:
        return found
    # Rounding may move a change of sign across the breakpoint that was made of it.
    near, _ = _nearest_edge(found, limits)
    return replace(found, place=torch.where(near, torch.nan, found.place)).trim()


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
    x, owners, column = x.T.reshape(-1), owner.repeat_interleave(m), stretch.repeat_interleave(m)
    together = (column[1:] == column[:-1])[:, None]
    brackets, at, component = _brackets(x, y, together)
    crossing = [(brackets, owners[at], component)]
    dips, at, component = _dips(x, y, together)
    touching = x.new_zeros(0)
    if at.shape[0]:
        bottom, crosses, touches = follow_dips(_columns(g, owners[at], component, block), dips)
        touching = torch.where(touches, bottom.x[1], torch.nan)
        for side in (slice(0, 2), slice(1, 3)):
            ends, values = bottom.x[side], bottom.y[side].masked_fill(~crosses, torch.nan)
            crossing.append((Bracket(ends[0], ends[1], values[0], values[1]), owners[at], component))
    return _collect(g, crossing, touching, batch, block)


def look(g: Integrand, x: Tensor, owner: Tensor | slice, block: int | None = None) -> Tensor:
    """Return a function's values at nodes ``(m, n)``, ``(m, n, components)``, a block at a time."""
    if isinstance(owner, slice) or block is None:
        y = g(x, owner).detach()
        return y.reshape(*x.shape, math.prod(y.shape[2:]))
    step = max(1, block // x.shape[0])
    parts = (slice(first, first + step) for first in range(0, max(1, x.shape[1]), step))
    return torch.cat([look(g, x[:, part], owner[part]) for part in parts], dim=1)


def _brackets(x: Tensor, y: Tensor, together: Tensor) -> tuple[Bracket, Tensor, Tensor]:
    """Return neighbours of opposite sign, the index of the left one and the component."""
    known = ~y.isnan()
    changes = ((y[1:] >= 0) != (y[:-1] >= 0)) & known[1:] & known[:-1] & together
    at, component = changes.nonzero().unbind(1)
    left, right = (torch.where(changes[at, component], y[i, component], torch.nan) for i in (at, at + 1))
    return Bracket(x[at], x[at + 1], left, right), at, component


def _dips(x: Tensor, y: Tensor, together: Tensor) -> tuple[Dip, Tensor, Tensor]:
    """Return neighbours of equal sign the middle of which is nearest to 0, its index and the component."""
    size, sign = y.abs(), y >= 0
    middle = size[1:-1]
    rise = torch.maximum(size[:-2], size[2:]) - middle
    dips = (middle <= size[:-2]) & (middle <= size[2:]) & (rise > 0) & (middle <= rise)
    dips = dips & (sign[1:-1] == sign[:-2]) & (sign[1:-1] == sign[2:]) & together[1:] & together[:-1]
    before, component = dips.nonzero().unbind(1)
    at = before + 1
    around = torch.stack((before, at, at + 1))
    y = torch.where(dips[before, component], y[around, component], torch.nan)
    return Dip(x[around], y), at, component


def _columns(g: Integrand, owner: Tensor, component: Tensor, block: int) -> Callable[[Tensor], Tensor]:
    """Return the components of g for one column each, without gradient, evaluated a block at a time."""

    def function(x: Tensor) -> Tensor:
        which = component.expand(x.shape[0], -1)[:, :, None]
        return look(g, x, owner, block).gather(2, which).squeeze(2)

    return function


def _collect(
    g: Integrand, crossing: list[tuple[Bracket, Tensor, Tensor]], touching: Tensor, batch: int, block: int
) -> Zeros:
    """Find the zeros between all brackets and set them out by integral."""
    owner, order = torch.cat([who for _, who, _ in crossing]).sort(stable=True)
    component = torch.cat([which for _, _, which in crossing])[order]
    bracket = Bracket(*(torch.cat([getattr(b, f.name) for b, _, _ in crossing])[order] for f in fields(Bracket)))
    valid = (bracket.at_left >= 0) != (bracket.at_right >= 0)
    valid = valid & ~bracket.at_left.isnan() & ~bracket.at_right.isnan()
    n = owner.shape[0]
    counts = total(torch.ones_like(owner), owner, batch)
    k = int(counts.max()) if n else 0
    size = torch.maximum(bracket.at_left.abs(), bracket.at_right.abs())
    size = torch.where(size.isinf(), torch.minimum(bracket.at_left.abs(), bracket.at_right.abs()), size)
    place, width, value = bracket.left, size, size
    if n:
        place, width, value = find_zeros(_columns(g, owner, component, block), bracket)
    reach = (bracket.right - bracket.left).abs()
    # Nothing can be told of a stretch that is hardly wider than rounding, next to a breakpoint say.
    vanishes = (value.abs() <= VANISHED * size) | (reach <= 64.0 * torch.finfo(reach.dtype).eps * place.abs())
    slot = owner * k + torch.arange(n, device=owner.device) - (counts.cumsum(0) - counts)[owner]

    def set_out(values: Tensor, empty: float) -> Tensor:
        out = torch.full((batch * k,), empty, dtype=values.dtype, device=values.device)
        return out.index_copy(0, slot, values).reshape(batch, k)

    place = torch.where(valid, place, torch.nan)
    return Zeros(
        set_out(place, torch.nan), set_out(component, 0), set_out(width, 0.0),
        set_out(reach, 0.0), set_out(size, 0.0),
        set_out(vanishes, 0), touching=touching,
    ).trim()  # fmt: skip
