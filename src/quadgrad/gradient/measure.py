"""How well a plan integrates many columns at once: the value and the error of each, or of groups of them.

Called with derivative integrands, whose columns are the derivatives with respect to single numbers. It knows
nothing of derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad.maps import Frame, frame
from quadgrad.plan import Plan
from quadgrad.reduce import total
from quadgrad.rules import RuleTensors
from quadgrad.search.cells import bisect
from quadgrad.search.estimate import PLACE, apply_rule, scale_estimates
from quadgrad.search.task import Task, noise

__all__ = ["Measured", "Sample", "measure", "measure_samples"]

STEEP = 0.5
"""Decay per pair of degrees below which a cell's error falls so fast under bisection that its halves show it."""

CAUTION = 3.0
"""How many times the difference between a smooth cell and its halves its error is taken for."""


@dataclass(frozen=True)
class Measured:
    """Integrals on a plan, shape ``(batch, columns)``, and their errors, one for each column or group of columns.

    ``floor`` is the part of the error that rounding of f explains, ``noise`` that of f and x together.
    """

    value: Tensor
    error: Tensor
    floor: Tensor
    noise: Tensor


Sample = Callable[[slice], tuple[Tensor, Tensor | None]]
"""Values at the nodes of some cells, shape ``(m, n, columns)``, and what to multiply them by, ``(m, n)``."""


def measure(task: Task, plan: Plan, groups: Sequence[Tensor] | None = None, sharp: bool = False) -> Measured:
    """Integrate each column of the task's integrand on the cells of a plan, and estimate the error.

    With ``groups``, on each cell the largest error among the columns of a group counts. For ``sharp`` see
    :func:`measure_samples`.
    """
    real = task.pieces.lower.dtype
    nodes = task.rule.tensors(real, plan.row.device).nodes

    def sampler(plan: Plan) -> tuple[Frame, Sample]:
        layout, owner = frame(task.pieces, plan.row, plan.start.to(real), plan.stop.to(real)), plan.owner

        def sample(part: slice) -> tuple[Tensor, Tensor | None]:
            x, slope = layout.nodes(nodes, part)
            return task.integrand(x, owner[part]).detach(), slope

        return layout, sample

    return measure_samples(task, plan, sampler, groups, sharp)


def measure_samples(
    task: Task,
    plan: Plan,
    sampler: Callable[[Plan], tuple[Frame, Sample]],
    groups: Sequence[Tensor] | None = None,
    sharp: bool = False,
) -> Measured:
    """Do what :func:`measure` does with values from anywhere; of the task's integrand only the event counts.

    The null rules' estimate is safe, and for a smooth integrand several decades too large. With ``sharp``, cells
    are compared with their own halves, for which the integrand is called at twice as many nodes again.
    """
    real, owner = task.pieces.lower.dtype, plan.owner
    rule, gap = task.rule.tensors(real, plan.row.device), task.rule.order_gap
    place = PLACE * torch.finfo(real).eps
    step = max(1, task.block // task.rule.nodes.size)
    width = (task.integrand.event or (0,))[0]
    layout, sample = sampler(plan)
    halves = sampler(_halved(plan)) if sharp else None
    value_sum = layout.scale.new_zeros((task.batch, width))
    error_sums = layout.scale.new_zeros((task.batch, 3, width if groups is None else len(groups)))
    for first in range(0, len(plan), step):
        part = slice(first, min(len(plan), first + step))
        y, slope = _columns(*sample(part))
        left, scale, reach = (t[part].repeat_interleave(width) for t in (layout.left, layout.scale, layout.reach))
        columns = Frame(left, scale, reach)
        eps = noise(task)
        value, error, size, variation, _ = apply_rule(rule, y, slope, gap, eps)
        rounding = torch.minimum(variation * columns.reach * place, size * columns.scale).nan_to_num(0.0, 0.0, 0.0)
        value, error, floor, _ = scale_estimates(value, error, size, variation, columns, eps)
        if halves is not None:
            smooth = _falls_off(rule, y, slope, size, eps)
            sharper = _compare_halves(rule, gap, value, smooth, *halves, part, width, eps)
            error = torch.minimum(error, sharper + floor + rounding)
        errors = torch.stack((error, floor, floor + rounding)).unflatten(1, (-1, width)).movedim(0, 1)
        if groups is not None:
            errors = torch.stack([errors.index_select(2, group).amax(2) for group in groups], dim=2)
        value_sum = value_sum + total(value.unflatten(0, (-1, width)), owner[part], task.batch)
        error_sums = error_sums + total(errors, owner[part], task.batch)
    return Measured(value_sum, *error_sums.unbind(1))


def _columns(y: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Treat each column as a cell of its own: shape ``(m, n * columns)``."""
    return y.flatten(1), None if slope is None else slope.repeat_interleave(y.shape[2], 1)


def _halved(plan: Plan) -> Plan:
    """Return the plan with every cell bisected; halves stand next to each other."""
    start, stop = bisect(plan.start, plan.stop)
    row, error = (t.repeat_interleave(2) for t in (plan.row, plan.error))
    return replace(plan, row=row, start=start, stop=stop, error=error)


def _compare_halves(
    rule: RuleTensors, gap: int, value: Tensor, smooth: Tensor, layout: Frame, sample: Sample, part: slice,
    width: int, eps: float,
) -> Tensor:  # fmt: skip
    """Return the error of cells by comparison with their halves, shape ``(n * columns,)``.

    A cell is off by the difference, and by the error of the halves, which counts unless they or the cell are
    smooth: then it is a small part of the difference.
    """
    both = slice(2 * part.start, 2 * part.stop)
    y, slope = _columns(*sample(both))
    scale = layout.scale[both].repeat_interleave(width)
    half, error, size, _, _ = apply_rule(rule, y, slope, gap, eps)
    steep = _falls_off(rule, y, slope, size, eps)
    halves, errors, steep = (t.unflatten(0, (-1, 2, width)) for t in (half * scale, error * scale, steep))
    difference = CAUTION * (value - halves.sum(1).flatten()).abs()
    smooth = smooth | steep.all(1).flatten()
    return (difference + errors.sum(1).flatten().masked_fill(smooth, 0.0)).nan_to_num(torch.inf, torch.inf)


def _falls_off(rule: RuleTensors, y: Tensor, slope: Tensor | None, size: Tensor, eps: float) -> Tensor:
    """Tell where each pair of null rules is at most ``STEEP`` times the one before, or rounding."""
    nulls = (rule.functionals[1:-4] @ (y if slope is None else y * slope)).abs()
    pairs = nulls[0::2] + nulls[1::2]
    return ((pairs[:-1] - 2.0 * eps * size) <= STEEP * pairs[1:]).all(0)
