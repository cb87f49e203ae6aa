"""Where the cells of a curve lie: from x to a cell and the place in it, and back. Nothing here is differentiated.

In each cell x is told by a coordinate v in which its nodes are spread evenly: x itself, the fraction of an infinite
piece, or the logarithm of the distance from a singular end. A cell that touches such an end is followed by its
*tail*, which lies beyond its nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import DEPTH, EXTRAPOLATED, LINEAR, Pieces, lay_out
from quadgrad._core.plans.interval import IntervalPlan

__all__ = ["Lookup", "Places", "Spots", "running_sums"]


class Lookup:
    """For each of ``count`` owners an ascending list of values, all in one, to find the last not above another.

    The lists of several owners are kept as one list of whole numbers, of owners first and of ranks among all values
    second: no list is padded to the longest.
    """

    def __init__(self, values: Tensor, owner: Tensor, count: int) -> None:
        """Take the values ``(k,)``, sorted by owner, of whom none is without."""
        self.count = count
        self.ranks, self.keys = values, values[1:].contiguous()
        if count > 1:
            self.ranks = values.sort().values
            rank = torch.searchsorted(self.ranks, values, right=True)
            first = torch.ones_like(owner, dtype=torch.bool)
            first[1:] = owner[1:] != owner[:-1]
            self.keys = owner * (len(values) + 1) + rank.masked_fill(first, 0)

    def find(self, value: Tensor, owner: Tensor) -> Tensor:
        """Return the place ``(p,)`` of an owner's last value that is not above the given one, or of its first."""
        value = value.contiguous()
        if self.count == 1:
            return torch.searchsorted(self.keys, value, right=True)
        rank = torch.searchsorted(self.ranks, value, right=True)
        return torch.searchsorted(self.keys, owner * (len(self.ranks) + 1) + rank, right=True) - 1


@dataclass(frozen=True)
class Spots:
    """Points ``(p,)`` of a curve: the cell of each, and how far it is from its ends.

    ``shares`` are parts of the cell, from its lower end where the key is True, and from its upper one.
    Where there are any tails, ``tail`` is the number of the one that a point is in, or -1, and ``depth`` the
    logarithm by which it is closer to the end than the nodes.
    """

    cell: Tensor
    shares: dict[bool, Tensor]
    tail: Tensor | None = None
    depth: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Spots:
        """Return the spots with everything changed in the same way."""
        rest = (None if t is None else change(t) for t in (self.tail, self.depth))
        return Spots(change(self.cell), {side: change(t) for side, t in self.shares.items()}, *rest)


@dataclass(frozen=True)
class Places:
    """The ``k`` cells and tails of a curve in ascending order; of integrals that are empty, one that is as well.

    Attributes
    ----------
    owner : Tensor of int64, shape (k,)
        The integral of each.
    source : Tensor of int64, shape (k,)
        The plan's cell that it is, or whose tail, or -1.
    lookup : Lookup
    number : Tensor of int64, shape (k,)
        The number of a tail among all, or -1; ``tails`` are their places.
    low, high : Tensor, shape (k,)
        v at either end.
    origin : Tensor, shape (k,)
        From where distances are measured: 0 where v is x.
    sign : Tensor, shape (k,)
        1 or -1 where v is a logarithm, of the distance from a lower or upper end, else 0.
    no_lower, no_upper, from_lower : Tensor of bool, shape (k,), optional
        Of infinite pieces, as in :mod:`quadgrad._core.mesh.interval`.
    longest : int
        The largest number of cells of one integral.
    """

    owner: Tensor
    source: Tensor
    lookup: Lookup
    number: Tensor
    tails: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor
    origin: Tensor
    sign: Tensor
    logarithmic: bool
    no_lower: Tensor | None
    no_upper: Tensor | None
    from_lower: Tensor
    longest: int

    @staticmethod
    def of(plan: IntervalPlan, pieces: Pieces) -> Places:
        """Lay out a plan whose cells stand in ascending order."""
        start, stop, kind = plan.start, plan.stop, plan.kind
        from_lower, touches = start >= 0.0, kind >= EXTRAPOLATED
        edges = lay_out(pieces, plan.row, start, stop, None).nodes(start.new_tensor([0.0, 1.0]))[0]
        lower, upper = (end.expand(start.shape) for end in pieces.ends(plan.row))
        no_lower, no_upper = lower.isinf(), upper.isinf()
        unbounded, linear = no_lower | no_upper, kind == LINEAR
        end = torch.where(from_lower, lower, upper)
        outer, inner = torch.where(from_lower, stop, start), torch.where(from_lower, start, stop)
        inner = torch.where(touches, outer * 2.0**-DEPTH, inner)
        unit = torch.where(unbounded, 1.0, upper - lower)
        logs = [(unit * ends).abs().log() * from_lower.to(unit.dtype).mul(2.0).sub(1.0) for ends in (outer, inner)]
        # v grows with x: from the far edge to the end if that is the upper one.
        near = [torch.where(from_lower, logs[1 - i], logs[i]) for i in (0, 1)]
        low, high = (
            torch.where(linear, torch.where(unbounded, fraction, x), log)
            for fraction, x, log in zip((start, stop), edges, near, strict=True)
        )
        sign = torch.where(from_lower, 1.0, -1.0).masked_fill(linear, 0.0).to(low.dtype)
        origin = torch.where(unbounded, torch.where(no_lower, upper, lower), torch.where(linear, 0.0, end))
        origin = origin.masked_fill(origin.isinf(), 0.0)
        # Each touching cell is followed by its tail, or comes after it; x where that ends or begins.
        last = lay_out(pieces, plan.row, inner, inner, None).nodes(start.new_tensor([0.0]))[0][0]
        source = torch.arange(len(plan), device=start.device).repeat_interleave(1 + touches.to(torch.int64))
        again = torch.zeros_like(source, dtype=torch.bool)
        again[1:] = source[1:] == source[:-1]
        twice = touches[source]
        tail = twice & (again != from_lower[source])
        begin = torch.where(twice & again, last[source], edges[0][source])
        return _with_empty(plan, source, tail, begin, (low, high, origin, sign, no_lower, no_upper, from_lower))

    def find(self, x: Tensor, owner: Tensor, sides: Sequence[bool] = (True, False)) -> Spots:
        """Return where points ``(p,)`` are that lie between their integrals' limits, measured from some ends."""
        cell = self.lookup.find(x, owner)
        v = x
        if self.no_lower is not None:
            v = self._fraction(x, cell)
        near = v
        if self.logarithmic:
            sign = self.sign.index_select(0, cell)
            distance = v if self.no_lower is not None else v - self.origin.index_select(0, cell)
            near = torch.log(distance.abs())
            v = torch.where(sign == 0.0, v, sign * near)
        scale = self.scale.index_select(0, cell)
        shares: dict[bool, Tensor] = {}
        for upward in sides:
            away = v - self.low.index_select(0, cell) if upward else self.high.index_select(0, cell) - v
            shares[upward] = away.mul_(scale).clamp_(0.0, 1.0)
        if not len(self.tails):
            return Spots(cell, shares)
        tail = self.number.index_select(0, cell)
        depth = (self.inner(cell) - near).clamp_min(0.0).masked_fill(tail < 0, 0.0)
        return Spots(cell, shares, tail, depth)

    def inner(self, cell: Tensor) -> Tensor:
        """Return the logarithm of the distance at which tails begin, of cells ``(p,)`` that are tails."""
        return torch.where(self.sign.index_select(0, cell) > 0, self.low[cell], -self.high[cell])

    def x(self, cell: Tensor, share: Tensor, upward: bool) -> Tensor:
        """Return x at a part of each cell ``(p,)`` from its lower end, or from its upper one."""
        low, high, scale = (t.index_select(0, cell) for t in (self.low, self.high, self.scale))
        v = low + share / scale if upward else high - share / scale
        sign = self.sign.index_select(0, cell)
        return self.from_coordinate(cell, torch.where(sign == 0.0, v, sign * torch.exp(sign * v)))

    def in_tail(self, cell: Tensor, depth: Tensor) -> Tensor:
        """Return x so deep in the tails at ``cell``."""
        sign = self.sign.index_select(0, cell)
        return self.from_coordinate(cell, sign * torch.exp(self.inner(cell) - depth))

    def from_coordinate(self, cell: Tensor, w: Tensor) -> Tensor:
        """Return x, given x itself, its distance from a singular end, or its fraction of an infinite piece."""
        origin = self.origin.index_select(0, cell)
        if self.no_lower is None or self.no_upper is None:
            return origin + w
        no_lower, no_upper, from_lower = (
            t.index_select(0, cell) for t in (self.no_lower, self.no_upper, self.from_lower)
        )
        p, q = torch.where(from_lower, w, 1.0 + w), torch.where(from_lower, 1.0 - w, -w)
        up, down = torch.where(no_upper, p / q, 0.0), torch.where(no_lower, q / p, 0.0)
        return torch.where(no_lower | no_upper, origin + up - down, origin + w)

    def _fraction(self, x: Tensor, cell: Tensor) -> Tensor:
        """Return the fraction of infinite pieces; elsewhere the distance from a singular end, or x."""
        assert self.no_lower is not None and self.no_upper is not None
        no_lower, no_upper, from_lower = (
            t.index_select(0, cell) for t in (self.no_lower, self.no_upper, self.from_lower)
        )
        away = x - self.origin.index_select(0, cell)
        root = torch.hypot(x, torch.full_like(x, 2.0))
        whole = torch.where(x > 0, 0.5 * (x + root), 2.0 / (root - x))
        ratio = torch.where(no_lower, torch.where(no_upper, whole, -1.0 / away), away)  # p / q
        fraction = torch.where(from_lower, 1.0 / (1.0 + 1.0 / ratio), -1.0 / (1.0 + ratio))
        return torch.where(no_lower | no_upper, fraction, away)


def _with_empty(
    plan: IntervalPlan, source: Tensor, tail: Tensor, begin: Tensor, columns: tuple[Tensor, ...]
) -> Places:
    """Put what cells and tails need together, and add a cell of no width for each integral without any."""
    owner, device = plan.owner.index_select(0, source), source.device
    counts = torch.bincount(owner, minlength=plan.batch)
    empty = (counts == 0).nonzero().squeeze(1)
    if len(empty):
        owner, order = torch.cat((owner, empty)).sort(stable=True)
        source = torch.cat((source, torch.full_like(empty, -1)))[order]
        tail = torch.cat((tail, torch.zeros_like(empty, dtype=torch.bool)))[order]
        begin = torch.cat((begin, torch.zeros_like(empty, dtype=begin.dtype)))[order]
    missing = source < 0
    low, high, origin, sign, no_lower, no_upper, from_lower = (
        t.new_zeros(source.shape) if not len(plan) else t.index_select(0, source.clamp_min(0)) for t in columns
    )
    low, high, origin, sign = (t.masked_fill(missing, 0.0) for t in (low, high, origin, sign))
    no_lower, no_upper = no_lower & ~missing, no_upper & ~missing
    scale = (high - low).masked_fill(missing, 1.0).reciprocal()
    tails = tail.nonzero().squeeze(1)
    number = torch.full_like(source, -1).index_copy(0, tails, torch.arange(len(tails), device=device))
    infinite = bool((no_lower | no_upper).any())
    return Places(
        owner, source, Lookup(begin, owner, plan.batch), number, tails, low, high, scale, origin, sign,
        bool((sign != 0.0).any()), no_lower if infinite else None, no_upper if infinite else None, from_lower,
        max(1, int(counts.max()) if len(counts) else 1),
    )  # fmt: skip


def running_sums(values: Tensor, owner: Tensor, longest: int, upward: bool) -> Tensor:
    """Return for each of an integral's values ``(k, *event)`` the sum of those before it, or of those behind it.

    Summed in pairs, pairs of pairs and so on, of one integral alone: a difference of sums over all integrals would
    lose the digits of what is small.
    """
    sign = 1 if upward else -1
    step, sums = 1, _shifted(values, owner, sign)
    while step < longest:
        sums = sums + _shifted(sums, owner, sign * step)
        step *= 2
    return sums


def _shifted(values: Tensor, owner: Tensor, step: int) -> Tensor:
    """Return the values so many places before each, or 0 where another integral's stand."""
    same = owner.roll(step) == owner
    index = torch.arange(len(owner), device=owner.device)
    same = same & ((index >= step) if step > 0 else (index < len(owner) + step))
    return torch.where(same.reshape((-1,) + (1,) * (values.ndim - 1)), values.roll(step, 0), 0.0)
