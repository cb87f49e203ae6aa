"""Derivatives of series towards ends: of what is beyond the cells that search refines.

The limit is a function of the terms, and its derivative the sum of the terms' derivatives with the weights that
they have in it. How good that is tell limits that do without the last terms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import SAFETY
from quadgrad._core.estimates.series import DROPPED, limits_of, series_of
from quadgrad._core.gradient.columns import Sampler, look
from quadgrad._core.gradient.measure import Measured
from quadgrad._core.gradient.singular_ends import join_outputs, largest_of_groups
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align, total

__all__ = ["add_measured", "measure_series"]


def measure_series(
    problem: Problem, plan: IntervalPlan, sampler: Sampler, groups: Sequence[Tensor] | None
) -> Measured:
    """Return the derivatives of the limits of a plan's series, and their errors; see :func:`.measure`."""
    rule = problem.rule.tensors(plan.start.dtype, plan.row.device)
    owners: list[Tensor] = []
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for mine in series_of(plan.terms, plan.row):
        cells = plan.take(mine)
        cell = look(problem, rule, cells, sampler, alone=False)
        x, factor = problem.pieces.lay_out(cells).nodes(rule.nodes)
        y, changes = sampler.outputs(cells, rule.nodes, x, factor)
        terms, changes = _sums(rule.weights, y, factor), _sums(rule.weights, changes, factor)
        weights = [_weights(terms, cells.terms, dropped) for dropped in range(DROPPED + 1)]
        values = [join_outputs((w[..., None].conj() * changes).sum(0, keepdim=True), None) for w in weights]
        beyond = torch.cat([(values[0] - other).abs() for other in values[1:]]).amax(0)
        shaken, blurred = (_reach(weights[0], part, changes) for part in (cell.error + cell.floor, cell.rounding))
        error = SAFETY * beyond + shaken
        floor = _reach(weights[0], cell.floor, changes) + blurred
        owners.append(cells.owner[:1])
        found.append((values[0][0], error.nan_to_num(torch.inf, torch.inf), floor))
    owner = torch.cat(owners)
    value, error, floor = (torch.stack(parts) for parts in zip(*found, strict=True))
    errors, floors = (total(largest_of_groups(t, groups), owner, plan.batch) for t in (error, floor))
    return Measured(total(value, owner, plan.batch), errors, floors, floors)


def add_measured(one: Measured, other: Measured) -> Measured:
    """Return the sum of what is known of two parts of the same integrals."""
    value, error, floor, noise = (getattr(one, n) + getattr(other, n) for n in ("value", "error", "floor", "noise"))
    return Measured(value, error, floor, noise, one.layers, one.doubts, one.ends)


def _reach(weights: Tensor, errors: Tensor, changes: Tensor) -> Tensor:
    """Return what errors of cells ``(n, columns)`` make of the derivatives of a limit, ``(columns,)``."""
    outputs, columns = changes.shape[1:]
    errors = errors.reshape(len(errors), outputs, -1, columns)  # real and imaginary parts, which a limit mixes
    return (weights.abs()[:, :, None, None] * errors.sum(2, keepdim=True).expand_as(errors)).sum(0).flatten()


def _sums(weights: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """Return the integrals of ``y`` ``(m, n, ...)`` over each cell, in double precision."""
    values = y * align(factor, y).to(torch.promote_types(y.dtype, factor.dtype))
    return torch.tensordot(weights.to(values.dtype), values, 1)


def _weights(terms: Tensor, codes: Tensor, dropped: int) -> Tensor:
    """Return the derivative by each term ``(n, outputs)`` of the limit that does without the last ones."""
    kept = len(terms) - dropped

    def limit(terms: Tensor) -> Tensor:
        return limits_of(terms[:kept], codes[:kept])

    value, pull, *_ = torch.func.vjp(limit, terms)
    return pull(torch.ones_like(value))[0]
