"""How many nodes integrals still need, told from a few descents into their cells, long before they are spent.

The cells that bisection has yet to make are the nodes of a tree, whose leaves are as exact as a cell has to be. Its
size is that of random descents in the mean: each goes on in one of the halves that are too rough, and what it meets
counts for as many as there were to choose from at every step (D. E. Knuth, *Mathematics of Computation* 29, 1975).
That holds for any tree, however its error falls. Laws fitted to errors that were seen do not: waves that are not
resolved yet, and sums of waves that end somewhere, fall slowly at first, or not at all, and then at once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.problem import Problem
from quadgrad._core.search.decide import SHARE
from quadgrad._core.search.task import estimate_cells

__all__ = ["AtHand", "project"]

DESCENTS, MORE, FAR = 4, 4.0, 12.0
"""An integral is hopeless if so many descents tell, in the mean, of so many times the nodes that are left.

More than :data:`FAR` times counts as that, so that no single descent decides. Of 543 integrals that converged after
3,000 nodes and more, most of them chosen to mislead, none seemed hopeless in ten trials each, and 3 of 1,780 waves,
kinks, steps and peaks of any frequency. See ADR 76.
"""

DOUBT = 0.25
"""After two descents that tell of less than this part of it, no more are made."""

DEEPEST = 30
"""No descent goes farther than that many halves: singular places are not reached at all."""


@dataclass(slots=True)
class AtHand:
    """Integrals that run, ``(k,)``, what they have cost and what error each may have, and their cells ``(n,)``.

    Of each cell the ``number`` of its integral among these, and row, start, stop and error; those alone that can be
    split.
    """

    who: Tensor
    spent: Tensor
    allowed: Tensor
    number: Tensor
    row: Tensor
    start: Tensor
    stop: Tensor
    error: Tensor

    def share_at_ends(self) -> Tensor:
        """Return what part of each integral's error is in cells that touch an end of their piece, ``(k,)``."""
        error, none = self.error.clamp_max(1e300), torch.zeros_like(self.allowed, dtype=torch.float64)
        touches = (self.start == 0.0) | (self.stop == 0.0) | (self.stop == 1.0)
        return none.index_add(0, self.number, error * touches) / none.index_add(0, self.number, error)

    def take(self, mask: Tensor) -> AtHand:
        """Return some of the integrals, with their cells."""
        index = mask[self.number].nonzero().squeeze(1)
        columns = (self.row, self.start, self.stop, self.error)
        number = (mask.cumsum(0) - 1)[self.number[index]]
        return AtHand(self.who[mask], self.spent[mask], self.allowed[mask], number, *(t[index] for t in columns))


@dataclass(slots=True)
class Rough:
    """Cells that are to be split ``(n,)``, ascending by the number of their integral, from 0 to k - 1.

    Of each integral, ``(k,)``, its ``first`` cell and that after its ``last``, what error a cell may have, and what
    is left of the budget.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    error: Tensor
    first: Tensor
    last: Tensor
    limit: Tensor
    left: Tensor

    @staticmethod
    def of(cells: AtHand, budget: int) -> Rough:
        """Choose those cells."""
        k = len(cells.who)
        count = torch.bincount(cells.number, minlength=k).clamp_min(1)
        limit = (SHARE * cells.allowed / count)[cells.number]
        index = ((cells.error > limit) & cells.error.isfinite()).nonzero().squeeze(1)
        index = index[cells.number[index].argsort(stable=True)]
        has = torch.bincount(cells.number[index], minlength=k)
        limit, last = cells.allowed / has.clamp_min(1), has.cumsum(0)
        row, start, stop, error = (t[index] for t in (cells.row, cells.start, cells.stop, cells.error))
        return Rough(row, start, stop, error, last - has, last, limit, (budget - cells.spent).double())


def project(problem: Problem, cells: AtHand) -> tuple[Tensor, Tensor, Tensor]:
    """Return about how many nodes are still needed, ``(k,)``, whether that is hopeless, and the nodes spent."""
    rough = Rough.of(cells, problem.max_nfev)
    most, enough = FAR * rough.left, DESCENTS * MORE * rough.left
    told, spent, made = (torch.zeros_like(rough.limit) for _ in range(3))
    asks = rough.last > rough.first
    dearest = 2.0 * DEEPEST * problem.rule.nodes.size
    for descent in range(DESCENTS):
        asks &= spent + dearest <= rough.left
        who = asks.nonzero().squeeze(1)
        if not len(who):
            break
        size, nodes = _descend(problem, rough, who, random.Random(descent))
        for column, new in ((told, torch.minimum(size, most[who])), (spent, nodes), (made, torch.ones_like(size))):
            column.index_add_(0, who, new)
        asks &= (told < enough) & (told + (DESCENTS - made) * most >= enough)
        asks &= (made < 2.0) | (told >= DOUBT * made * MORE * rough.left)
    return told / made.clamp_min(1.0), told >= enough, spent.long()


def _descend(problem: Problem, rough: Rough, who: Tensor, chance: random.Random) -> tuple[Tensor, Tensor]:
    """Return what one descent from a cell of each says of the nodes it needs, and the nodes that took."""
    each, limit, most = 2.0 * problem.rule.nodes.size, rough.limit[who], FAR * rough.left[who]
    # Chosen in proportion to their errors: a wave towards an end is in one cell of many.
    upto = torch.nn.functional.pad(rough.error.cumsum(0), (1, 0))
    before, whole = upto[rough.first[who]], upto[rough.last[who]] - upto[rough.first[who]]
    cell = torch.searchsorted(upto, before + chance.random() * whole, right=True) - 1
    cell = torch.minimum(torch.maximum(cell, rough.first[who]), rough.last[who] - 1)
    row, start, stop = rough.row[cell], rough.start[cell], rough.stop[cell]
    times = whole / rough.error[cell]
    size, spent = torch.zeros_like(times), torch.zeros_like(times)
    on = torch.arange(len(who), device=who.device)
    for _ in range(DEEPEST):
        middle = 0.5 * (start + stop)
        beyond = (middle >= 0.5).to(middle.dtype)  # and so measured from the upper end
        start, stop = torch.stack((start, middle - beyond)), torch.stack((middle, stop - beyond))
        _, error, rounding = estimate_cells(problem, row.repeat(2), start.flatten(), stop.flatten(), None)
        error = error.view(2, -1)
        # What is not finite is a place, and no tree.
        error = torch.where((error > limit[on]) & (error > 2.0 * rounding.view(2, -1)), error, 0.0)
        error = error.masked_fill(error.isinf(), 0.0)
        whole = error.sum(0)
        size.index_add_(0, on, each * times)
        spent.index_add_(0, on, torch.full_like(times, each))
        keep = ((whole > 0.0) & (size[on] < most[on])).nonzero().squeeze(1)
        if not len(keep):
            break
        row, times, on, whole = row[keep], times[keep], on[keep], whole[keep]
        error, start, stop = error[:, keep], start[:, keep], stop[:, keep]
        half = (chance.random() * whole >= error[0]).long()[None]
        start, stop, error = (t.gather(0, half)[0] for t in (start, stop, error))
        times = times * whole / error
    return size, spent
