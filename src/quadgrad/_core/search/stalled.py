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
from quadgrad._core.search.rounds import Bodies, finish_rounds
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status

__all__ = ["Stallable", "search_cells", "search_on"]

GROWN = 4.0
"""By how much the error of what has stalled may grow before its cells are refined again."""


class Stallable(Bodies[Found], Protocol):
    """Bodies that tell of the integrals of a plan what its cells are worth, and may be told to leave some alone."""

    def first_errors(self) -> Tensor:
        """Return the error of each integral, the sum over the cells of the plan, which were just evaluated."""
        ...

    def spent(self) -> Tensor:
        """Return the nodes spent on each integral so far, to be written to."""
        ...


def search_cells(bodies: Stallable, problem: Problem, first: IntervalPlan | None) -> Found:
    """Search from cells, or from whole pieces."""
    bodies.open(first)
    bodies.evaluate()
    return search_on(bodies, problem, first)


def search_on(bodies: Stallable, problem: Problem, first: IntervalPlan | None) -> Found:
    """Search from cells that have been evaluated; those of integrals that have stalled are not refined."""
    if first is None or first.stalled is None or not problem.batch:
        return finish_rounds(bodies)
    before = total(first.error.double(), first.owner, problem.batch)
    held = (first.stalled > 0) & (bodies.first_errors() <= GROWN * before)
    spent = bodies.spent()
    count = spent.clone()
    spent.masked_fill_(held, problem.max_nfev)  # which leaves nothing to refine with
    found = finish_rounds(bodies)
    found.nfev = torch.where(held, count, found.nfev)
    failed = held & (found.status != int(Status.CONVERGED)) & (found.status != int(Status.NONFINITE))
    found.status = torch.where(failed, first.stalled, found.status)
    return found
