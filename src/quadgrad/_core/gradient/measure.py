"""How well a plan integrates many columns at once: the value and the error of each, or of groups of them.

The columns are those of a derivative integrand: the derivatives of f with respect to single numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import bound_error, null_rule_error, weigh
from quadgrad._core.estimates.sums import blur_of_x
from quadgrad._core.gradient.edges import look_at_edges
from quadgrad._core.gradient.singular_ends import SingularEnds, largest_of_groups, measure_ends
from quadgrad._core.integrand import Integrand
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import concatenate, total
from quadgrad._core.rules import RuleTensors
from quadgrad._core.search.task import noise

__all__ = ["Measured", "Sampler", "look", "measure", "sampler_of", "split_outputs"]

FALLS_OFF = 0.5
"""Decay per pair of degrees below which a cell's error falls so fast under bisection that its halves show it."""

CAUTION = 5.0
"""How many times the difference between a smooth cell and its halves its error is taken for.

A kink of order 3 between the edge and the first node of both left the halves off by two thirds of the cell's error.
"""

CONTRADICTED = 2.0
"""The same at least, where the null rules tell of less: the halves may be off in the same direction."""


@dataclass(frozen=True)
class Measured:
    """Integrals on a plan, shape ``(batch, columns)``, and their errors, one for each column or group of columns.

    ``floor`` is the part of the error that rounding of f explains, ``noise`` that of f and x together. ``error`` is
    without the cells that are extrapolated to an end (``ends``): there it depends on the plan's columns.
    """

    value: Tensor
    error: Tensor
    floor: Tensor
    noise: Tensor
    ends: SingularEnds | None = None

    def error_on(self, plan: IntervalPlan) -> Tensor:
        """Return the error of the replayed plan's derivative, that of all cells."""
        return self.error if self.ends is None else self.error + self.ends.error_on(plan)


@dataclass(frozen=True)
class Sampler:
    """Where values come from, for cells, places tau on them, ``(m,)`` or ``(m, n)``, and x and the factors there.

    ``columns`` are ``width`` columns, ``(m, n, width)``; ``outputs`` f itself, ``(m, n, outputs)``, and what
    replay makes of it when each output changes, ``(m, n, outputs, columns)``. With ``weight`` ``(batch,
    outputs)`` each column is the weighted sum over the outputs; else those of the outputs are kept apart.
    ``block`` is how many nodes are looked at at a time.
    """

    columns: Callable[[IntervalPlan, Tensor, Tensor, Tensor], Tensor]
    outputs: Callable[[IntervalPlan, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    width: int
    block: int
    weight: Tensor | None = None


def sampler_of(
    columns: Integrand, f: Integrand, derivative: Integrand, block: int, weight: Tensor | None = None
) -> Sampler:
    """Return what takes values from functions; ``derivative`` has a set of columns for each real output of f."""

    def outputs(cells: IntervalPlan, _: Tensor, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        y = f(x, cells.owner).detach()
        y = y.reshape(*x.shape, -1)
        return y, split_outputs(derivative(x, cells.owner).detach(), y.shape[2], y.is_complex())

    (width,) = columns.event or (0,)
    return Sampler(lambda cells, _, x, factor: columns(x, cells.owner).detach(), outputs, width, block, weight)


def split_outputs(y: Tensor, outputs: int, is_complex: bool) -> Tensor:
    """Return the columns of a derivative integrand, one set for each real output, as those of each output of f."""
    if not is_complex:
        return y.unflatten(2, (outputs, -1))
    return torch.view_as_complex(y.unflatten(2, (outputs, 2, -1)).movedim(3, -1).contiguous())


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
    What lies between a cell's ends and its outermost nodes is seen by no rule: there the interpolating polynomial
    is compared with the integrand beside the ends.
    """
    rule = problem.rule.tensors(plan.start.dtype, plan.row.device)
    step = max(1, sampler.block // problem.rule.nodes.size)
    value = plan.start.new_zeros((problem.batch, sampler.width))
    errors = plan.start.new_zeros((problem.batch, 3, sampler.width if groups is None else len(groups)))
    rest, extrapolated = plan.part_extrapolated()
    for first in range(0, len(rest), step):
        cells = rest.take(slice(first, first + step))
        cell = look(problem, rule, cells, sampler)
        error = cell.error
        if sharp:
            halves = look(problem, rule, cells.halved(), sampler, alone=False)
            error = _compare(cell, halves)
        each = torch.stack((error + cell.hidden, cell.floor, cell.floor + cell.rounding), dim=1)
        value = value + total(cell.value, cells.owner, problem.batch)
        errors = errors + total(largest_of_groups(each, groups), cells.owner, problem.batch)
    ends = None
    if extrapolated is not None:
        parts = (extrapolated.take(slice(i, i + step)) for i in range(0, len(extrapolated), step))
        ends = concatenate(
            [measure_ends(problem, rule, cells, sampler.outputs, sampler.weight, groups) for cells in parts]
        )
        value = value + total(ends.value, ends.owner, problem.batch)
        each = torch.stack((torch.zeros_like(ends.floor), ends.floor, ends.noise), dim=1)
        errors = errors + total(each, ends.owner, problem.batch)
    error, floor, rounding = errors.unbind(1)
    # What is next to the smallest normal numbers has fewer digits, or was made of what has.
    tiny = torch.finfo(value.dtype).tiny
    coarse = (value != 0.0) & (value.abs() < tiny / torch.finfo(value.dtype).eps)
    error = error + tiny * largest_of_groups(coarse.to(error.dtype), groups)
    return Measured(value, error, floor, rounding, ends)


@dataclass(frozen=True)
class _Look:
    """What the rule makes of cells, shape ``(n, columns)``; ``falls_off`` tells whether the null rules do.

    ``hidden`` is the error of what lies beyond the outermost nodes.
    """

    value: Tensor
    error: Tensor
    floor: Tensor
    rounding: Tensor
    falls_off: Tensor
    hidden: Tensor | float


def look(problem: Problem, rule: RuleTensors, cells: IntervalPlan, sampler: Sampler, alone: bool = True) -> _Look:
    """Look at cells, and unless they are compared with others that did, at their edges, too."""
    layout, eps = problem.pieces.lay_out(cells), noise(problem)
    edges = look_at_edges(rule, layout, problem.pieces.rounding.eps) if alone else None
    tau = rule.nodes if edges is None else torch.cat((rule.nodes[:, None].expand(-1, len(cells)), edges.tau))
    x, factor = layout.nodes(tau)
    y = sampler.columns(cells, tau, x, factor)
    # Sums are formed in double precision, whatever f is called with.
    y = y.to(torch.promote_types(y.dtype, factor.dtype))
    values, m = y * factor[..., None], len(rule.nodes)
    values, beside, y = values[:m], values[m:], y[:m]
    sums = weigh(rule, values, values.abs())
    hidden = 0.0 if edges is None else edges.hidden(rule, sums, beside)
    pairs = sums.nulls[0::2].abs() + sums.nulls[1::2].abs()
    falls_off = ((pairs[:-1] - 2.0 * eps * sums.size) <= FALLS_OFF * pairs[1:]).all(0)
    blur = blur_of_x(rule, layout, y, sums.variation, problem.pieces.rounding.eps)
    error, _, highest = null_rule_error(rule, sums.nulls, sums.size.add(blur, alpha=0.5 / eps), eps)
    # At infinity any power may begin below the coefficients that are seen: there their decay is not continued.
    far = ~layout.nodes(rule.nodes.new_tensor([0.0, 1.0]))[0].isfinite().all(0)[:, None]
    error, falls_off = torch.maximum(error, highest * far), falls_off & ~far
    error, floor, _ = bound_error(error, sums.size, blur, eps)
    rounding = torch.minimum(blur, sums.size).nan_to_num(0.0, 0.0, 0.0)
    return _Look(sums.value.masked_fill(error.isinf(), 0.0), error, floor, rounding, falls_off, hidden)


def _compare(cell: _Look, halves: _Look) -> Tensor:
    """Return the error of cells by comparison with their halves.

    A cell is off by the difference, and by the error of the halves, which counts unless they or the cell are
    smooth: then it is a small part of the difference. The null rules may tell that it is less, but not that it is
    less than the difference.
    """
    value, error, falls_off = (t.unflatten(0, (-1, 2)) for t in (halves.value, halves.error, halves.falls_off))
    difference = (cell.value - value.sum(1)).abs()
    smooth = cell.falls_off | falls_off.all(1)
    compared = CAUTION * difference + error.sum(1).masked_fill(smooth, 0.0) + cell.floor + cell.rounding
    least = torch.minimum(cell.error, compared.nan_to_num(torch.inf, torch.inf))
    return torch.maximum(least, CONTRADICTED * difference.nan_to_num(0.0))
