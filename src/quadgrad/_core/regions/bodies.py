"""The state of a search over cells that are cut: which of them are halved, and which are held.

As on whole boxes, cells are not settled one by one: of each integral those with the largest errors are halved, as
many as are needed for the rest to have half the tolerance. What tells that an estimate is wrong differs, and so
does what a halving is worth: here most cells are halved to know where the boundary is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import total
from quadgrad._core.regions.mesh import CutMesh
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.boxes.holding import HoldingBodies
from quadgrad._core.search.decide import Totals, Verdict, allowed_error
from quadgrad._core.search.task import Found

__all__ = ["CutBodies"]

OFF = 0.25
"""Where halves are together off their parent by more than its error said, each has this part of that at least."""


class CutBodies(HoldingBodies[Found]):
    """A search that holds its cells until an integral is done."""

    mesh: CutMesh

    def __init__(self, task: Problem, mesh: Any, record: Any) -> None:
        super().__init__(task, mesh, mesh, record)

    def compare(self, new: Cells, parents: Cells) -> None:
        """Correct the errors of new cells by what those of their parents turned out to be."""
        new.sums[-2] = _compare(new.sums, parents.sums)

    def mark(self, verdict: Verdict, totals: Totals, cells: Cells, follow: bool) -> Tensor:
        """Tell which cells are to be halved: of each integral those with the largest errors."""
        owner, splittable, n = cells.whole[0], cells.whole[1] > 0, len(self.running)
        if not len(cells):
            return splittable
        lost = cells.sums[-2].isinf()
        # What cannot be halved is no reason to halve the others further.
        error = cells.sums[-2].masked_fill(lost | ~splittable, 0.0)
        target = torch.maximum(allowed_error(self.task.tolerance, totals), 2.0 * totals.floor)
        whole, counts = sum_by_owner(torch.stack((error, torch.ones_like(error))), owner, n)
        marked = self.largest(owner, error, whole, counts, target)
        return (marked | lost) & splittable & ~verdict.done[owner]

    def hear(self, cells: Cells, places: Any, off: Tensor | None) -> Cells:
        """Return cells with what integrals inside f are off at their nodes."""
        if off is not None:
            weight = (places.nodes.weight[:, 0] * places.factor).abs()
            more = total(weight * off[0], places.nodes.cell, len(cells))
            cells.sums[-2:] += more.nan_to_num(0.0, 0.0, 0.0)
        return cells


def _compare(sums: Tensor, parents: Tensor) -> Tensor:
    """Return the errors of halves ``(2 n,)``, which stand next to each other, told by those of their parents.

    ``sums`` ``(components + 2, 2 n)`` and ``parents`` ``(components + 2, n)`` are as in
    :class:`quadgrad._core.mesh.protocol.Cells`.
    """
    pairs = sums.unflatten(1, (-1, 2))
    gap = (pairs[:-2].sum(2) - parents[:-2]).abs()
    gap = gap.amax(0) if len(gap) else torch.zeros_like(parents[-2])
    excess = (gap / parents[-2]).nan_to_num(1.0, 1.0).clamp_min(1.0)
    least = torch.where(excess > 1.0, OFF * gap, 0.0)
    return torch.maximum(pairs[-2] * excess[:, None], least[:, None]).flatten()
