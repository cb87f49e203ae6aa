"""Where cells pile up while a search runs: neighbours that have most of the error, inside pieces and at their ends.

The other body is the kernel's ``piles.c``, for which the tests check that it does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import locate
from quadgrad._core.mesh.interval import LINEAR

__all__ = [
    "LASTS",
    "MOST",
    "TOGETHER",
    "UNFINISHED",
    "WORST",
    "WORST_AT_END",
    "AtHand",
    "Ends",
    "Piled",
    "look_for_piles",
]

WORST = 1e-6
"""A cell is among the worst if its error is above this part of the largest of its integral."""

WORST_AT_END = 1e-4
"""As :data:`WORST`; an oscillation that decays leaves less error farther out."""

MOST = 64
"""More places are not looked for at once in one integral."""

TOGETHER = 4
"""Cells in a row in which there may be one place; where more are to be split f is rough all over."""

UNFINISHED, LASTS = 100.0, 8
"""Before so many rounds an integral is looked at if its error is more than so many times what it may be: else a few
rounds end it."""


@dataclass(slots=True)
class AtHand:
    """Cells of a search that were evaluated and not yet judged: columns ``(n,)``."""

    row: Tensor
    start: Tensor
    stop: Tensor
    error: Tensor
    kind: Tensor


@dataclass(slots=True)
class Ends:
    """Ends of pieces at which much of the error is left: columns ``(k,)``, ascending.

    Of each the ``row``, whether it is the ``upper`` end, from what fraction of the piece on that is, and whether
    the cell there has logarithmic nodes, as one has at the end of which f is not rough all over.
    """

    row: Tensor
    upper: Tensor
    distance: Tensor
    singular: Tensor

    def take(self, index: Tensor) -> Ends:
        """Return some of them, by their places."""
        return Ends(*(t.index_select(0, index) for t in (self.row, self.upper, self.distance, self.singular)))


@dataclass(slots=True)
class Piled:
    """Stretches in which bisection closes in on something, ascending, and ends of pieces.

    Of each stretch its ``row``, and ``start`` and ``stop`` ``(2, k)`` of its first and its last cell.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    ends: Ends


def look_for_piles(cells: AtHand, count: int, unfinished: Tensor) -> Piled:
    """Look at the cells of the integrals ``(batch,)`` that are not near their end, with ``count`` pieces each.

    A stretch is few neighbouring cells with most of the error. Integrals with many such cells in a row are left
    out, and cells at an end of their piece, which has nodes of its own.
    """
    owner, error = cells.row // count, cells.error.nan_to_num(torch.inf)
    worst = torch.zeros_like(unfinished, dtype=error.dtype).scatter_reduce_(0, owner, error, "amax")[owner]
    looked_at = unfinished[owner] & (error > 0.0)
    bad = looked_at & (error >= WORST * worst)
    number = torch.zeros_like(unfinished, dtype=torch.int64).index_add_(0, owner, bad.to(torch.int64))
    bad = bad & (number[owner] <= TOGETHER * MOST)
    large = looked_at & (error >= WORST_AT_END * worst)
    at_end = large & _touches(cells.start, cells.stop)
    n, n_ends = torch.stack((bad.sum(), at_end.sum())).tolist()
    ends = _ends(cells, large, locate(at_end, n_ends), count * len(unfinished))
    index = locate(bad, n)
    row, start, stop, linear = (t[index] for t in (cells.row, cells.start, cells.stop, cells.kind == LINEAR))
    if not n:
        return Piled(row, start.expand(2, 0), stop.expand(2, 0), ends)
    # In ascending order, measured from the lower end: a neighbour begins where a cell ends, but in the middle.
    half = 2 * row + (start < 0.0)
    order = start.argsort(stable=True)
    order = order[half[order].argsort(stable=True)]
    row, start, stop, linear = row[order], start[order], stop[order], linear[order]
    joined = (row[1:] == row[:-1]) & ((start[1:] == stop[:-1]) | ((stop[:-1] == 0.5) & (start[1:] == -0.5)))
    first = torch.nn.functional.pad(~joined, (1, 0), value=True)
    group = first.cumsum(0) - 1
    counted = torch.stack((torch.ones_like(group), (_touches(start, stop) | ~linear).to(group.dtype)))
    size, touching = torch.zeros_like(counted).index_add_(1, group, counted).index_select(1, group)
    rough = torch.zeros_like(number).index_add_(0, row // count, (size > TOGETHER).to(number.dtype))
    good = first & (touching == 0) & (rough[row // count] == 0)
    begin = locate(good, int(good.sum()))
    sides = torch.stack((begin, begin + size[begin] - 1))
    return Piled(row[begin], start[sides], stop[sides], ends)


def _touches(start: Tensor, stop: Tensor) -> Tensor:
    """Tell which cells are at an end of their piece."""
    return (start == 0.0) | (stop == 0.0) | (stop == 1.0)


def _ends(cells: AtHand, large: Tensor, index: Tensor, rows: int) -> Ends:
    """Return the ends at which cells ``index`` are, and how far cells of ``large`` error reach from there."""
    side, inner = 2 * cells.row + (cells.start < 0.0), torch.where(cells.start < 0.0, cells.start, cells.stop).abs()
    distance = torch.zeros(2 * rows, dtype=inner.dtype, device=inner.device)
    distance.scatter_reduce_(0, side, inner * large, "amax")
    side, order = (2 * cells.row + (cells.start != 0.0))[index].sort()
    return Ends(side // 2, side % 2 > 0, distance[side], cells.kind[index][order] != LINEAR)
