"""The check of a kept plan by the values that its replay computes: one pass gives value, gradient and error.

Replay shows each block of values to :class:`Watch`, which keeps what search would have found on the cells;
:func:`recheck` sums it up and says whether every integral may stop. Otherwise search goes on from the plan's cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quadgrad._core._torch import outside_transforms, without_derivatives
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.interval import EXTRAPOLATED, LINEAR
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.decide import Totals, judge, mark
from quadgrad._core.search.intervals import interval_parts, record
from quadgrad._core.search.look import is_faint
from quadgrad._core.search.task import Found, noise
from quadgrad._core.search.tensors import unpack
from quadgrad._core.status import Status

__all__ = ["Recheck", "Watch", "recheck"]


FEW = 6
"""Cells of a piece that is searched anew, not from them, when its error is too large."""


@dataclass
class Watch:
    """Sees the values of a replay of the cells ``first``, until it is closed: a backward pass may repeat them."""

    task: Problem
    first: IntervalPlan
    closed: bool = False
    parts: list[tuple[Tensor, Cells]] = field(default_factory=list[tuple[Tensor, Cells]])
    spent: list[Tensor] = field(default_factory=list[Tensor])

    def see(self, index: Tensor, y: Tensor, factor: Tensor) -> None:
        """Look at the values on some cells, and call f at their edges, too."""
        if self.closed:
            return
        task, first, y = self.task, self.first, plain(y)
        with without_derivatives(), outside_transforms():
            y = y.to(torch.complex128 if y.is_complex() else torch.float64)
            kind = first.kind[index]
            whole, linear, m = first.stop[index] - first.start[index] == 1.0, kind == LINEAR, len(y)
            for mine in (whole & linear, ~whole & linear, ~linear):
                here, own = index[mine], kind[mine]
                if not len(here):
                    continue
                mesh, estimate = interval_parts(task, own.to(torch.int64) - EXTRAPOLATED)
                (new,) = mesh.start(first.take(here))
                places = mesh.place(new)
                beside = task.integrand(torch.cat((places.x[:1], places.x[m + 1 :])), places.owner).detach()
                seen = torch.cat((beside[:1], y[:, mine], beside[1:]))
                self.spent.append(torch.full_like(here, new.rows))
                self.parts.append((here, estimate(new, places, seen, noise(task))))

    def restart(self) -> None:
        """Forget what was seen: all of it comes again."""
        self.parts.clear()
        self.spent.clear()

    def close(self) -> tuple[Cells, Tensor]:
        """Return all cells in the order of ``first``, and at how many places f was called for each."""
        self.closed = True
        index, cells = torch.cat([index for index, _ in self.parts]), Cells.join([cells for _, cells in self.parts])
        order = index.argsort()
        return cells.take(order), torch.cat(self.spent)[order]


@dataclass(frozen=True)
class Recheck:
    """What the cells that were replayed are worth.

    ``done`` ``(batch,)`` tells which integrals may stop, ``coarse`` which cells have too large an error.
    """

    found: Found
    done: Tensor
    coarse: Tensor

    def unfinished(self) -> IntervalPlan:
        """Return the cells of the integrals that may not stop; linear ones that are too coarse are halved.

        Pieces of few cells start anew: that costs little more, and does not keep cells that are needed no longer.
        """
        plan = self.found.plan
        mine, few = ~self.done[plan.owner], torch.bincount(plan.row)[plan.row] <= FEW
        anew, split = plan.row[mine & few].unique(), mine & self.coarse & plan.linear & ~few
        whole = torch.zeros(anew.shape, dtype=plan.start.dtype, device=anew.device)
        stays = plan.take(mine & ~split & ~few).join(plan.take(split).halved())
        return plan.with_cells(anew, whole, whole + 1.0).join(stays)

    def join(self, mended: Found) -> Found:
        """Return what was found here of the integrals that are done, and what search has found of the others."""
        first, again = self.found, ~self.done
        plan = first.plan.take(self.done[first.plan.owner]).join(mended.plan)
        value = torch.where(again.reshape(-1, *(1,) * (first.value.ndim - 1)), mended.value, first.value)
        error, status = (
            torch.where(again, getattr(mended, name), getattr(first, name)) for name in ("error", "status")
        )
        return Found(plan, value, error, status, first.nfev + torch.where(again, mended.nfev, 0))


def recheck(watch: Watch) -> Recheck:
    """Judge the cells that were replayed, as search does."""
    task, (cells, spent) = watch.task, watch.close()
    owner, n = cells.whole[0], task.batch
    dtype = task.integrand.output_dtype or task.integrand.sum_dtype
    sums, count = sum_by_owner(cells.sums, owner, n), sum_by_owner(torch.ones_like(owner)[None], owner, n)[0]
    totals, each = (Totals.of(t, dtype.is_complex) for t in (sums, cells.sums))
    verdict = judge(task.tolerance, totals, count, torch.zeros_like(count))
    marked = mark(verdict, totals, cells, each, True)
    # Of what is done a cell is marked only where that is faint, and more might be between the nodes.
    done = verdict.done & (sum_by_owner(marked.to(torch.int64)[None], owner, n)[0] == 0)
    status = torch.where(verdict.met, int(Status.CONVERGED), int(Status.ROUNDOFF))
    value, error = unpack(task.integrand, dtype, sums)
    nfev = sum_by_owner(spent[None], owner, n)[0]
    found = record(task, cells, value, error, status, nfev)
    return Recheck(found, done & ~is_faint(task, found), marked)
