"""A single integral that its first cell settles, as most smooth ones are: one call of the kernel, and no search.

To get a search ready, and to ask what it has found, takes longer than all there is to do for such an integral.
"""

from __future__ import annotations

from ctypes import byref
from functools import cache
from typing import Any

import torch

from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.mesh.poles import ellipse
from quadgrad._core.nesting import current_record
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.rules import Rule
from quadgrad._core.search.kernel.library import load
from quadgrad._core.search.kernel.memory import INTEGERS, REALS, numbers, pointer
from quadgrad._core.search.kernel.values import UnreadableError, read
from quadgrad._core.search.looks.witnesses import named
from quadgrad._core.search.looks.witnesses_native import one_of_each
from quadgrad._core.search.task import Found, noise

__all__ = ["settle_single"]


def settle_single(problem: Problem) -> Found | None:
    """Return what a search would find of an integral that was opened; None if that takes more than a cell."""
    opening, tolerance, record = problem.opening, problem.tolerance, current_record()
    if problem.integrand.event != () or (record is not None and record.heard) or torch.is_inference_mode_enabled():
        return None
    if one_of_each(problem, named(problem)):  # f is to be called at places that arguments name
        return None
    try:
        y = read(opening.y.detach(), 1)
    except UnreadableError:
        return None
    totals = numbers(1), numbers(1), INTEGERS.new_empty(1), INTEGERS.new_empty(1)
    settled = load().settle_single(
        byref(opening.setting), tolerance.rtol, tolerance.atol, tolerance.eps, tolerance.nothing,
        *ellipse(tolerance.rtol, problem.rule.nodes.size), problem.max_nfev, noise(problem),
        opening.room.data_ptr(), y.data_ptr(), pointer(opening.slope), *[t.data_ptr() for t in totals],
    )  # fmt: skip
    if not settled:
        return None
    plan = object.__new__(IntervalPlan)
    vars(plan).update(_whole_piece(problem.rule, problem.pieces.infinite), error=totals[1].clone())
    return Found(plan, *totals, faint=False)


@cache
def _whole_piece(rule: Rule, infinite: bool) -> dict[str, Any]:
    """Return what is the same in all plans of one cell: its numbers are shared, as those of a rule are."""
    start = REALS.new_zeros(1)
    pieces = Pieces(start, start + 1.0, 1, infinite)
    return vars(IntervalPlan.of(rule, pieces, (), INTEGERS.new_zeros(1), pieces.lower, pieces.upper))
