"""How well a plan integrates many columns at once: the value and the error of each, or of groups of them.

The columns are those of a derivative integrand: the derivatives of f with respect to single numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.gradient.columns import Look, Sampler, look
from quadgrad._core.gradient.layers import look_into_gaps
from quadgrad._core.gradient.singular_ends import SingularEnds, largest_of_groups, measure_ends
from quadgrad._core.mesh.cells import BESIDE
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import concatenate, total
from quadgrad._core.rules import RuleTensors

__all__ = ["Measured", "measure"]

CAUTION = 5.0
"""How many times the difference between a smooth cell and its halves its error is taken for.

A kink of order 3 between the edge and the first node of both left the halves off by two thirds of the cell's error.
"""

HELPED = 0.02
"""Halving is of help where the error falls below this part of what it was.

Of peaks a thousandth as wide as the only cell, which no value asks to refine, 1 in 30 was understated without."""

CONTRADICTED = 2.0
"""The same at least, where the null rules tell of less: the halves may be off in the same direction."""


@dataclass(frozen=True)
class Measured:
    """Integrals on a plan, shape ``(batch, columns)``, and their errors, one for each column or group of columns.

    ``floor`` is the part of the error that rounding of f explains, ``noise`` that of f and x together. ``error`` is
    without the cells that are extrapolated to an end (``ends``): there it depends on the plan's columns. ``layers``
    ``(n, columns)`` is the part of each cell's error that lies between its nodes and an end of its piece,
    ``doubts`` that of which halves tell, and the null rules do not.
    """

    value: Tensor
    error: Tensor
    floor: Tensor
    noise: Tensor
    layers: Tensor | None = None
    doubts: Tensor | None = None
    ends: SingularEnds | None = None

    def error_on(self, plan: IntervalPlan) -> Tensor:
        """Return the error of the replayed plan's derivative, that of all cells."""
        return self.error if self.ends is None else self.error + self.ends.error_on(plan)


def measure(
    problem: Problem,
    plan: IntervalPlan,
    sampler: Sampler,
    groups: Sequence[Tensor] | None = None,
    sharp: bool = False,
) -> Measured:
    """Integrate each column on the cells of a plan, and estimate the error.

    With ``groups``, on each cell the largest error among the columns of a group counts. The null rules' estimate is
    safe, and for a smooth integrand several decades too large. With ``sharp``, cells are compared with their own
    halves, for which the integrand is called at twice as many nodes again; those that are extrapolated are not.
    Without, whole pieces are, which no search has parted: that raises their error, or nothing.
    What lies between a cell's ends and its outermost nodes is seen by no rule: there the interpolating polynomial
    is compared with the integrand beside the ends.
    """
    rule = problem.rule.tensors(plan.start.dtype, plan.row.device)
    step = sampler.cells_at_once(problem.rule.nodes.size + BESIDE)
    value = plan.start.new_zeros((problem.batch, sampler.width))
    errors = plan.start.new_zeros((problem.batch, 3, sampler.width if groups is None else len(groups)))
    rest, extrapolated = plan.part_extrapolated()
    layers, doubts = errors.new_zeros((2, len(plan), errors.shape[2]))
    at = torch.arange(len(plan), device=plan.row.device)
    at = at if plan.extrapolated is None else at[~plan.touches]
    for first in range(0, len(rest), step):
        cells = rest.take(slice(first, first + step))
        cell = look(problem, rule, cells, sampler)
        if sharp:
            error = _compare(cell, look(problem, rule, cells.halved(), sampler, alone=False))
        else:
            error = cell.error + _doubt(problem, rule, cells, cell, sampler)
            doubts[at[first : first + step]] = largest_of_groups(error - cell.error, groups).nan_to_num(0.0)
        layer = look_into_gaps(problem, cells, cell, sampler)
        layers[at[first : first + step]] = largest_of_groups(layer, groups)
        each = torch.stack((error + cell.hidden + layer, cell.floor, cell.floor + cell.rounding), dim=1)
        value = value + total(cell.value, cells.owner, problem.batch)
        errors = errors + total(largest_of_groups(each, groups), cells.owner, problem.batch)
    ends = None
    if extrapolated is not None:
        parts = (extrapolated.take(slice(i, i + step)) for i in range(0, len(extrapolated), step))
        ends = concatenate([measure_ends(problem, rule, cells, sampler, groups) for cells in parts])
        value = value + total(ends.value, ends.owner, problem.batch)
        layers[plan.touches] = ends.layer
        each = torch.stack((torch.zeros_like(ends.floor), ends.floor, ends.noise), dim=1)
        errors = errors + total(each, ends.owner, problem.batch)
    error, floor, rounding = errors.unbind(1)
    # What is next to the smallest normal numbers has fewer digits, or was made of what has.
    tiny = torch.finfo(value.dtype).tiny
    coarse = (value != 0.0) & (value.abs() < tiny / torch.finfo(value.dtype).eps)
    error = error + tiny * largest_of_groups(coarse.to(error.dtype), groups)
    return Measured(value, error, floor, rounding, layers, doubts, ends)


def _doubt(problem: Problem, rule: RuleTensors, cells: IntervalPlan, cell: Look, sampler: Sampler) -> Tensor:
    """Return by how much more than their errors whole pieces differ from their halves, ``(n, columns)``.

    A kink of the value far below what a steep integrand is elsewhere is a jump of the derivative, and its highest
    coefficients go on from those of the rest as if nothing were there.
    """
    doubt, at = torch.zeros_like(cell.value), (cells.whole & cells.linear).nonzero()[:, 0]
    if len(at):
        halves = look(problem, rule, cells.take(at).halved(), sampler, alone=False)
        difference = (cell.value[at] - halves.value.unflatten(0, (-1, 2)).sum(1)).abs()
        doubt[at] = (CONTRADICTED * difference - cell.error[at]).clamp_min(0.0).nan_to_num(0.0, 0.0)
    return doubt


def _compare(cell: Look, halves: Look) -> Tensor:
    """Return the error of cells by comparison with their halves.

    A cell is off by the difference, and by the error of the halves, which counts unless they or the cell are
    smooth: then it is a small part of the difference. The null rules may tell that it is less, but not that it is
    less than the difference. Where halving is of no help the larger counts: of a peak between two nodes the null
    rules see but the tails, those of the cell or those of the halves.
    """
    value, error, falls_off = (t.unflatten(0, (-1, 2)) for t in (halves.value, halves.error, halves.falls_off))
    difference = (cell.value - value.sum(1)).abs()
    smooth = cell.falls_off | falls_off.all(1)
    rough = error.sum(1).masked_fill(smooth, 0.0)
    compared = (CAUTION * difference + rough + cell.floor + cell.rounding).nan_to_num(torch.inf, torch.inf)
    larger = torch.where(compared.isinf(), cell.error, torch.maximum(cell.error, compared))
    error = torch.where(rough > HELPED * cell.error, larger, torch.minimum(cell.error, compared))
    return torch.maximum(error, CONTRADICTED * difference.nan_to_num(0.0))
