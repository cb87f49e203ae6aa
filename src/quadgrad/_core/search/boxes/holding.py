"""What searches in several dimensions share: cells are held until an integral is done, and the largest are halved.

A halving takes away only a part of a cell's error there, and errors differ by many orders. So cells are not settled
one by one: those with the largest errors are halved, as many as are needed for the rest to have half the tolerance.
Where only so many may be held, those with the smallest errors retire: they settle, with value and error, and are
taken back when nothing else is left to be halved, or before the integral is believed.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import locate
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.problem import Problem
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.decide import SHARE, Verdict
from quadgrad._core.search.tensors import TensorBodies

__all__ = ["HoldingBodies"]

NEGLIGIBLE = 0.01
"""Cells are not halved for less than this part of their even share of the allowed error."""

KEPT, ENOUGH = 0.05, 0.95
"""Halves are taken to keep this part of a cell's error. If the error is close to what is allowed, as many cells are
halved as make it this part of that: to halve more of them would be paid for without need."""

R = TypeVar("R")


class HoldingBodies(TensorBodies[R]):
    """The state of a search that holds its cells until an integral is done."""

    mesh: Any

    def __init__(self, task: Problem, mesh: Any, estimate: Any, record: Any) -> None:
        super().__init__(task, mesh, estimate, record)
        self.held: Cells | None = None
        self.parents: Cells | None = None
        self.retired = torch.zeros(task.batch, dtype=torch.bool, device=task.limits.marks[0].device)

    @abstractmethod
    def compare(self, new: Cells, parents: Cells) -> None:
        """Correct the errors of new cells, halves side by side, by what those of their parents turned out to be."""

    def gather(self, new: Cells) -> Cells:
        """Return the new cells, compared with their parents, and those that were held."""
        if self.parents is not None:
            self.compare(new, self.parents)
        cells = new if self.held is None else Cells.join([self.held, new])
        self.held = self.parents = None
        return cells

    def largest(self, owner: Tensor, error: Tensor, whole: Tensor, counts: Tensor, target: Tensor) -> Tensor:
        """Tell which cells have the errors that are to be made less.

        ``error`` ``(n,)`` is what halving each cell may take away; ``whole`` ``(integrals,)`` what all cells have
        together, ``counts`` how many they are, ``target`` what is allowed.
        """
        least = (SHARE * NEGLIGIBLE) * target / counts.clamp_min(1.0)
        many = (error > least[owner]).nonzero().squeeze(1)  # what is less comes last, and is not to be sorted
        order = many[error[many].argsort(descending=True, stable=True)]
        order = order[owner[order].argsort(stable=True)]  # by integral, the largest first
        chosen = torch.zeros_like(owner, dtype=torch.bool)
        if not len(order):
            return chosen
        mine, largest = owner[order], error[order]
        these = torch.bincount(mine, minlength=len(counts))
        first = these.cumsum(0) - these
        before = largest.cumsum(0) - largest
        before = before - before[first.clamp_max(len(order) - 1)][mine]
        left = whole[mine] - before
        room = (self.task.max_nfev - self.running.whole[2]) // (2 * self.mesh.rule.rows)
        rank = torch.arange(len(order), device=order.device) - first[mine]
        # Where little is to be taken away less may be left to chance: what halves keep is about known.
        share = ((ENOUGH - KEPT * whole / target) / (1.0 - KEPT)).clamp(SHARE, ENOUGH)
        large = (left > (share * target)[mine]) & (rank < room.clamp_min(1)[mine])
        return chosen.index_put((order,), large)

    def set_aside(self, cells: Cells, splits: Tensor, count: int, runs: Tensor) -> Cells:
        """Hold the cells that are not halved of integrals that run on; return those that settle."""
        if not count:
            return cells
        self.parents = cells.take(locate(splits, count))
        keep = runs.index_select(0, cells.whole[0]) & ~splits
        if self.task.max_cells is not None:
            keep = self._retire(cells, splits, keep, self.task.max_cells)
        held = int(keep.sum())
        self.held = cells.take(locate(keep, held)) if held else None
        return cells.take(locate(~(keep | splits), len(cells) - held - count))

    def _retire(self, cells: Cells, splits: Tensor, keep: Tensor, most: int) -> Tensor:
        """Return which cells are held still: ``most`` of each integral, with those that are new."""
        n, owner = len(self.running), cells.whole[0]
        room = most - 2 * sum_by_owner(splits[None].long(), owner, n)[0]
        order = (cells.sums[-2] * keep).argsort(descending=True)
        order = order[(owner + n * ~keep)[order].argsort(stable=True)]  # what is kept by integral, then the rest
        counts = sum_by_owner(keep[None].long(), owner, n)[0]
        rank = (
            torch.empty_like(owner).index_put((order,), torch.arange(len(order), device=owner.device))
            - (counts.cumsum(0) - counts)[owner]
        )
        leave = keep & (rank >= room[owner])
        who = self.running.whole[0]
        self.retired[who] |= sum_by_owner(leave[None].long(), owner, n)[0] > 0
        return keep & ~leave

    def doubt_retired(self, verdict: Verdict) -> None:
        """Have integrals with retired cells go on with all cells, before they are believed."""
        if self.task.max_cells is not None:
            verdict.done &= ~self.retired[self.running.whole[0]]

    def withdraw(self) -> None:
        """Take the integrals that wait back, with all their cells."""
        super().withdraw()
        self.retired[self.running.whole[0]] = False

    def renumber(self, place: Tensor) -> None:
        """Take note of the integrals' new numbers."""
        if self.held is not None:
            self.held.whole[0] = place.index_select(0, self.held.whole[0])
