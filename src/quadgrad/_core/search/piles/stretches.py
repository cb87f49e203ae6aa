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
    "Ends",
    "Evaluated",
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

CROWD = TOGETHER * MOST
"""An integral with more of the worst cells is rough all over, too."""

UNFINISHED, LASTS = 100.0, 8
"""Before so many rounds an integral is looked at if its error is more than so many times what it may be: else a few
rounds end it."""


@dataclass(slots=True)
class Evaluated:
    """Cells of a search that were evaluated and not yet judged: columns ``(n,)``, start and stop ``(2, n)``.

    The ``owner`` is their integral's number among those that run, the ``row`` that of their piece among all.
    """

    owner: Tensor
    row: Tensor
    ends: Tensor
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


def look_for_piles(cells: Evaluated, rows: int, finished: Tensor) -> Piled:
    """Look at the cells of the running integrals ``(n,)`` that are not ``finished``; pieces have so many ``rows``.

    A stretch is few neighbouring cells with most of the error. Integrals with many such cells in a row are left
    out, and cells at an end of their piece, which has nodes of its own.
    """
    owner, error, start = cells.owner, cells.error, cells.ends[0]
    worst = torch.full_like(finished, torch.finfo(error.dtype).tiny, dtype=error.dtype)
    worst = worst.scatter_reduce_(0, owner, error, "amax").masked_fill_(finished, torch.nan)
    limits = torch.stack((WORST * worst, WORST_AT_END * worst)).index_select(1, owner)
    bad, large = (error >= limits).unbind()
    touching = (cells.ends.frac() == 0.0).any(0)
    at_end, spoils = large & touching, touching | (cells.kind != LINEAR)
    # In ascending order, the others last: a neighbour begins where a cell ends, but in the middle.
    side, order = torch.add(start < 0.0, cells.row, alpha=2), start.argsort(stable=True)
    half, again = side.masked_fill(~bad, 2 * rows).index_select(0, order).sort(stable=True)
    order, row = order.index_select(0, again), half // 2
    ends, owner = cells.ends.index_select(1, order), owner.index_select(0, order)
    bad, spoils = torch.stack((bad, spoils)).index_select(1, order).unbind()
    start, stop = ends.unbind()
    first = (start.masked_fill(start == -0.5, 0.5) != stop.roll(1)) | (row != row.roll(1))
    group, counted = first.cumsum(0), torch.stack((bad, spoils)).to(torch.int64)
    sums = counted.new_zeros(2, len(row) + 1).index_add_(1, group, counted)
    size, spoiled = sums.index_select(1, group).unbind()
    # A stretch too long counts for more cells than there may be, and so does one that is spoiled.
    crowd = torch.add(counted[0], size > TOGETHER, alpha=CROWD)
    crowd = torch.zeros_like(finished, dtype=torch.int64).index_add_(0, owner, crowd).index_select(0, owner)
    good = first & bad & (crowd.add_(spoiled, alpha=CROWD) <= CROWD)
    n, n_ends = torch.stack((good, at_end)).sum(1).tolist()
    begin = locate(good, n)
    start, stop = ends[:, torch.stack((begin, begin + size[begin] - 1))].unbind()
    return Piled(row[begin], start, stop, _ends(cells, side, large, locate(at_end, n_ends), rows))


def _ends(cells: Evaluated, side: Tensor, large: Tensor, index: Tensor, rows: int) -> Ends:
    """Return the ends at which cells ``index`` are, and how far cells of ``large`` error reach from there."""
    start, stop = cells.ends.unbind()
    inner = torch.where(start < 0.0, start, stop).abs()
    distance = inner.new_zeros(2 * rows).scatter_reduce_(0, side, inner * large, "amax")
    side, order = torch.add(start != 0.0, cells.row, alpha=2).index_select(0, index).sort()
    return Ends(side // 2, side % 2 > 0, distance[side], cells.kind[index[order]] != LINEAR)
