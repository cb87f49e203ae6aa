"""Integrals that did not converge on a kept plan: they are looked at again, and not refined again.

What keeps an integral from converging, noise or a budget that is spent, is there in the next call, too. To refine
its cells in each call would make the plan grow, call by call, and buy nothing.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import total
from quadgrad._core.search.rounds import Bodies, Watcher, finish_rounds
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status

__all__ = ["Stallable", "search_cells", "search_on"]

GROWN = 4.0
"""By how much the error of what has stalled may grow before its cells are refined again."""

REGION = 3
"""Where values are not finite in so many cells of a plan, and in half of them, that is a region and no place."""


class Stallable(Bodies[Found], Protocol):
    """Bodies that tell what the cells of a plan are worth, and may be told to leave some integrals alone."""

    dtype: torch.dtype

    def first_errors(self) -> tuple[Tensor, Tensor]:
        """Return the integral and the error of each cell of the plan, which were just evaluated."""
        ...

    def spent(self) -> Tensor:
        """Return the nodes spent on each integral so far, to be written to."""
        ...


def search_cells(
    bodies: Stallable, problem: Problem, first: IntervalPlan | None, watcher: Watcher | None = None
) -> Found:
    """Search from cells, or from whole pieces."""
    bodies.open(first)
    bodies.evaluate()
    return search_on(bodies, problem, first, watcher)


def search_on(
    bodies: Stallable, problem: Problem, first: IntervalPlan | None, watcher: Watcher | None = None
) -> Found:
    """Search from cells that have been evaluated; those that refinement does not help are left as they are."""
    if first is None or not len(first):
        return finish_rounds(bodies, watcher)
    owner, error = bodies.first_errors()
    lost, count = error.isinf(), problem.batch
    stalled = first.stalled
    if torch.finfo(bodies.dtype).eps < torch.finfo(first.error.dtype).eps:
        stalled = None  # in less precision than now
    if stalled is None and not bool(lost.any()):
        return finish_rounds(bodies, watcher)
    bad, cells = total(lost.long(), owner, count), total(torch.ones_like(owner), owner, count)
    ends = torch.zeros_like(bad) if stalled is None else stalled
    ends = ends.masked_fill((bad >= REGION) & (2 * bad >= cells), int(Status.NONFINITE))
    grown = total(error, owner, count) > GROWN * total(first.error.double(), first.owner, count)
    # What was not finite and is so now is searched: it may need other cells than before.
    held = (ends > 0) & ((bad > 0) | (~grown & (ends != int(Status.NONFINITE))))
    spent = bodies.spent()
    nfev = spent.clone()
    spent.masked_fill_(held, problem.max_nfev)  # which leaves nothing to refine with
    found = finish_rounds(bodies, watcher)
    found.nfev = torch.where(held, nfev, found.nfev)
    failed = held & (found.status != int(Status.CONVERGED))
    found.status = torch.where(failed, ends, found.status)
    return found
