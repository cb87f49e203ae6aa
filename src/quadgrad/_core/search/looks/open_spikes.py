"""Places that single nodes saw and no narrow cell is around.

The other body is the kernel's ``open_spikes.c``, for which the tests check that it does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import DEPTH, LINEAR, from_lower
from quadgrad._core.plans.interval import IntervalPlan

__all__ = ["CELLS", "MOST", "RESOLVED", "SAME", "CellMap", "Pairs", "find_open", "from_lower", "rank"]

RESOLVED = 1.0
"""What was seen is resolved where a cell around it is less than so many distances of nodes wide."""

MOST = 16
"""How many places of one integral are followed at most at a time."""

CELLS = 4
"""More cells than these around one place are narrow ones."""

SAME = 0.25
"""Places closer than so many distances of nodes are one."""


@dataclass(slots=True)
class Pairs:
    """Places, measured as those of cells are, and cells of the plan around them: one of each, ``(k,)``."""

    cell: Tensor
    place: Tensor
    apart: Tensor


class CellMap:
    """The unit intervals of cells, as places of their pieces."""

    def __init__(self, plan: IntervalPlan, cell: Tensor) -> None:
        self.start, self.width = plan.start[cell], plan.stop[cell] - plan.start[cell]
        self.from_lower = self.start >= 0.0
        stop = plan.stop[cell]
        self.outer = torch.where(self.from_lower, stop, self.start)
        inner = torch.where(self.from_lower, self.start, stop)
        self.logarithmic = plan.kind[cell] != LINEAR
        self.at_end = self.logarithmic & (inner == 0.0)
        ratio = torch.where(inner == 0.0, 2.0**-DEPTH, inner / self.outer)
        self.rate = torch.where(self.logarithmic, ratio, 0.5).log()

    def _fraction(self, place: Tensor) -> Tensor:
        """Return places measured from the end that a cell is measured from."""
        other = torch.where(self.from_lower, place < 0.0, place >= 0.0)
        return torch.where(other, place - torch.where(self.from_lower, -1.0, 1.0), place)

    def tau(self, place: Tensor) -> Tensor:
        """Return places in the unit interval of cells."""
        fraction = self._fraction(place)
        along = torch.log((fraction / self.outer).clamp_min(0.0)) / self.rate
        return torch.where(self.logarithmic, along, (fraction - self.start) / self.width)

    def scale(self, place: Tensor) -> Tensor:
        """Return how wide cells are, by their scale at places or as near to these as they come."""
        fraction = torch.minimum(torch.maximum(self._fraction(place), self.start), self.start + self.width)
        along = torch.maximum(fraction.abs(), self.outer.abs() * torch.exp(self.rate)) * self.rate.abs()
        return torch.where(self.logarithmic, along, self.width)

    def place(self, tau: Tensor) -> Tensor:
        """Return places of the piece, from the end that cells are measured from."""
        along = self.outer * torch.exp(tau * self.rate)
        return torch.where(self.logarithmic, along, self.start + tau * self.width)


def find_open(plan: IntervalPlan, spikes: Tensor, done: Tensor, carried: bool = False) -> Pairs | None:
    """Return the spikes that no narrow cell is around, and the cells there, in integrals that are ``done``.

    ``spikes`` ``(k, 3)`` are rows, places and distances of nodes. Those widest apart come first. What is carried
    over from a search whose cells are gone is open in cells of any width: these may have closed in on the place, an
    end of their piece, without seeing what was seen.
    """
    count = plan.pieces
    spikes = spikes[done[spikes[:, 0].long() // count]]
    if not len(spikes):
        return None
    order = _by_row(spikes[:, 0], from_lower(spikes[:, 1]))
    row, place, apart = spikes[order].unbind(1)
    row, at = row.long(), from_lower(place)
    # Of cells and their children, or their halves, several have seen the same.
    again = (row[1:] == row[:-1]) & (at[1:] - at[:-1] < SAME * torch.minimum(apart[1:], apart[:-1]))
    kept = torch.cat((again.new_ones(1), ~again)).nonzero().squeeze(1)
    row, place, at, apart = (t.index_select(0, kept) for t in (row, place, at, apart))
    mine = torch.zeros_like(done).repeat_interleave(count).index_fill_(0, row, True)
    order = mine[plan.row].nonzero().squeeze(1)
    order = order[_by_row(plan.row[order], from_lower(plan.start[order]))]
    cells, begin = plan.row[order], from_lower(plan.start[order])
    if not len(cells):
        return None
    sides = (0.0, 0.0) if carried else (-1.0, 1.0)
    low, high = _before(cells, begin, row, torch.stack([(at + side * apart).clamp(0.0, 1.0) for side in sides]))
    low = torch.maximum(low, torch.searchsorted(cells, row))
    around = low[:, None] + torch.arange(CELLS, device=low.device)
    inside, around = around <= high[:, None], order[around.clamp_max(len(cells) - 1)]
    width = CellMap(plan, around).scale(place[:, None]).masked_fill(~inside, torch.inf).amin(1)
    apart = torch.minimum(apart, width) if carried else apart
    index = ((high - low < CELLS) & (width >= RESOLVED * apart) & width.isfinite()).nonzero().squeeze(1)
    index = index[apart[index].argsort(descending=True, stable=True)]
    index = index[rank(row[index] // count) < MOST]
    if not len(index):
        return None
    pair, column = inside[index].nonzero().unbind(1)
    return Pairs(around[index][pair, column], place[index][pair], apart[index][pair])


def _by_row(row: Tensor, place: Tensor) -> Tensor:
    """Return the order by rows, and within one by places."""
    order = place.argsort(stable=True)
    return order[row[order].argsort(stable=True)]


def _before(cells: Tensor, begin: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """Return the last of a row's sorted cells that begins no later than a place, or the one before, ``(2, k)``."""
    low, high = (torch.searchsorted(cells, row, right=right).expand_as(place) for right in (False, True))
    # By bisection in each row: there are many more cells than places, and to sort them together takes longer.
    for _ in range(int((high - low).amax()).bit_length()):
        middle = (low + high) // 2
        later = (begin[middle.clamp_max(len(cells) - 1)] > place) | (low == high)
        low, high = torch.where(later, low, middle + 1), torch.where(later, middle, high)
    return low - 1


def rank(owner: Tensor) -> Tensor:
    """Return how many entries before each have the same owner."""
    order = owner.argsort(stable=True)
    ordered = owner[order]
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(order).index_copy_(0, order, place)
