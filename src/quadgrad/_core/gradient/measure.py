"""How well a plan integrates many columns at once: the value and the error of each, or of groups of them.

The columns are those of a derivative integrand: the derivatives of f with respect to single numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import PLACE, bound_error, null_rule_error, weigh
from quadgrad._core.gradient.singular_ends import EndSample, Tails, measure_ends, split_outputs
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.cells import bisect
from quadgrad._core.mesh.interval import LINEAR, EndFrame, Frame, end_frame, frame
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.reduce import total
from quadgrad._core.rules import RuleTensors
from quadgrad._core.search.task import Task, noise

__all__ = ["Measured", "Replayed", "Sample", "Sampler", "measure", "measure_samples"]

STEEP = 0.5
"""Decay per pair of degrees below which a cell's error falls so fast under bisection that its halves show it."""

CAUTION = 3.0
"""How many times the difference between a smooth cell and its halves its error is taken for."""


@dataclass(frozen=True)
class Measured:
    """Integrals on a plan, shape ``(batch, columns)``, and their errors, one for each column or group of columns.

    ``floor`` is the part of the error that rounding of f explains, ``noise`` that of f and x together. ``error`` is
    without the cells that close in on an end (``tails``): there it depends on the plan's columns.
    """

    value: Tensor
    error: Tensor
    floor: Tensor
    noise: Tensor
    tails: Tails | None = None

    def error_on(self, plan: IntervalPlan) -> Tensor:
        """Return the error of the replayed plan's derivative, that of all cells."""
        if self.tails is None or plan.even:
            return self.error
        return self.error + self.tails.error_on(plan)


Sample = Callable[[slice], tuple[Tensor, Tensor | None]]
"""Values at the nodes of some cells, shape ``(m, n, columns)``, and what to multiply them by, ``(m, n)``."""


@dataclass(frozen=True)
class Sampler:
    """Where values come from: for a plan without ends, and for the ends of a plan."""

    linear: Callable[[IntervalPlan], tuple[Frame, Sample]]
    ends: Callable[[IntervalPlan], tuple[EndFrame, EndSample]]


@dataclass(frozen=True)
class Replayed:
    """What replay sums up: f, all its derivatives (a set of columns for each real output), the outputs' weights.

    ``weight`` has shape ``(batch, outputs)``; without it, columns of the outputs are kept apart.
    """

    integrand: Integrand
    derivative: Integrand
    weight: Tensor | None = None


def measure(
    task: Task, plan: IntervalPlan, replayed: Replayed, groups: Sequence[Tensor] | None = None, sharp: bool = False
) -> Measured:
    """Integrate each column of the task's integrand on the cells of a plan, and estimate the error.

    With ``groups``, on each cell the largest error among the columns of a group counts. For ``sharp`` see
    :func:`measure_samples`.
    """
    real = task.pieces.lower.dtype
    nodes = task.rule.tensors(real, plan.row.device).nodes

    def linear(plan: IntervalPlan) -> tuple[Frame, Sample]:
        layout, owner = frame(task.pieces, plan.row, plan.start.to(real), plan.stop.to(real)), plan.owner

        def sample(part: slice) -> tuple[Tensor, Tensor | None]:
            x, slope = layout.nodes(nodes, part)
            return task.integrand(x, owner[part]).detach(), slope

        return layout, sample

    def ends(plan: IntervalPlan) -> tuple[EndFrame, EndSample]:
        layout, owner = end_frame(task.pieces, plan.row, plan.start.to(real), plan.stop.to(real)), plan.owner

        def sample(places: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
            x, slope = layout.nodes(places, part)
            f = replayed.integrand(x, owner[part]).detach()
            f = f.reshape(*x.shape, -1)
            y = replayed.derivative(x, owner[part]).detach()
            return f, split_outputs(y, f.shape[2], f.is_complex()), slope

        return layout, sample

    return measure_samples(task, plan, Sampler(linear, ends), replayed.weight, groups, sharp)


def measure_samples(
    task: Task,
    plan: IntervalPlan,
    sampler: Sampler,
    weight: Tensor | None = None,
    groups: Sequence[Tensor] | None = None,
    sharp: bool = False,
) -> Measured:
    """Do what :func:`measure` does with values from anywhere; of the task's integrand only the event counts.

    The null rules' estimate is safe, and for a smooth integrand several decades too large. With ``sharp``, cells
    are compared with their own halves, for which the integrand is called at twice as many nodes again. Cells that
    close in on an end are not.
    """
    ends = plan.kind != LINEAR
    value, errors = _measure_linear(task, plan if plan.even else plan.take(~ends), sampler, groups, sharp)
    tails = None
    if not plan.even:
        plan = plan.take(ends)
        end_value, rounding, tails = measure_ends(task, plan, *sampler.ends(plan), weight, groups)
        value = value + total(end_value, tails.owner, task.batch)
        sums = [total(t, tails.owner, task.batch) for t in rounding]
        errors = errors + torch.stack((torch.zeros_like(sums[0]), *sums))
    error, floor, rounding = errors.unbind(0)
    return Measured(value, error, floor, rounding, tails)


def _measure_linear(
    task: Task, plan: IntervalPlan, sampler: Sampler, groups: Sequence[Tensor] | None, sharp: bool
) -> tuple[Tensor, Tensor]:
    """Return the values ``(batch, columns)``, and error, floor and noise ``(3, batch, groups)``."""
    real, owner = task.pieces.lower.dtype, plan.owner
    rule = task.rule.tensors(real, plan.row.device)
    step = max(1, task.block // task.rule.nodes.size)
    width = (task.integrand.event or (0,))[0]
    layout, sample = sampler.linear(plan)
    halves = sampler.linear(_halved(plan)) if sharp else None
    value_sum = layout.scale.new_zeros((task.batch, width))
    error_sums = layout.scale.new_zeros((task.batch, 3, width if groups is None else len(groups)))
    for first in range(0, len(plan), step):
        part = slice(first, min(len(plan), first + step))
        y, slope = _columns(*sample(part))
        columns = _spread(layout, part, width)
        eps = noise(task)
        value, error, floor, rounding, steep = _estimate(rule, y, slope, eps, columns)
        if halves is not None:
            sharper = _compare_halves(rule, value, steep, *halves, part, width, eps)
            error = torch.minimum(error, sharper + floor + rounding)
        errors = torch.stack((error, floor, floor + rounding)).unflatten(1, (-1, width)).movedim(0, 1)
        if groups is not None:
            errors = torch.stack([errors.index_select(2, group).amax(2) for group in groups], dim=2)
        value_sum = value_sum + total(value.unflatten(0, (-1, width)), owner[part], task.batch)
        error_sums = error_sums + total(errors, owner[part], task.batch)
    return value_sum, error_sums.movedim(1, 0)


def _spread(layout: Frame, part: slice, width: int) -> Frame:
    """Treat each column as a cell of its own."""
    left, scale, reach = (t[part].repeat_interleave(width) for t in (layout.left, layout.scale, layout.reach))
    return Frame(left, scale, reach)


def _estimate(
    rule: RuleTensors, y: Tensor, slope: Tensor | None, eps: float, layout: Frame
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return value, error, floor, what rounding of x adds, and whether the null rules fall off."""
    values = y * (layout.scale if slope is None else slope * layout.scale)
    sums = weigh(rule, values, values.abs())
    pairs = sums.nulls[0::2].abs() + sums.nulls[1::2].abs()
    steep = ((pairs[:-1] - 2.0 * eps * sums.size) <= STEEP * pairs[1:]).all(0)
    spread = layout.reach / layout.scale * (PLACE * torch.finfo(layout.scale.dtype).eps)
    blur = sums.variation * spread
    unseen = sums.size.add(sums.variation * spread.clamp_max(1.0), alpha=0.5 / eps)
    error, floor, _ = bound_error(null_rule_error(rule, sums.nulls, unseen, eps)[0], sums.size, blur, eps)
    rounding = torch.minimum(blur, sums.size).nan_to_num(0.0, 0.0, 0.0)
    return sums.value.masked_fill(error.isinf(), 0.0), error, floor, rounding, steep


def _columns(y: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Treat each column as a cell of its own: shape ``(m, n * columns)``."""
    return y.flatten(1), None if slope is None else slope.repeat_interleave(y.shape[2], 1)


def _halved(plan: IntervalPlan) -> IntervalPlan:
    """Return the plan with every cell bisected; halves stand next to each other."""
    start, stop = bisect(plan.start, plan.stop)
    row, error, kind = (t.repeat_interleave(2) for t in (plan.row, plan.error, plan.kind))
    return replace(plan, row=row, start=start, stop=stop, error=error, kind=kind)


def _compare_halves(
    rule: RuleTensors, value: Tensor, smooth: Tensor, layout: Frame, sample: Sample, part: slice, width: int,
    eps: float,
) -> Tensor:  # fmt: skip
    """Return the error of cells by comparison with their halves, shape ``(n * columns,)``.

    A cell is off by the difference, and by the error of the halves, which counts unless they or the cell are
    smooth: then it is a small part of the difference.
    """
    both = slice(2 * part.start, 2 * part.stop)
    y, slope = _columns(*sample(both))
    half, error, _, _, steep = _estimate(rule, y, slope, eps, _spread(layout, both, width))
    halves, errors, steep = (t.unflatten(0, (-1, 2, width)) for t in (half, error, steep))
    difference = CAUTION * (value - halves.sum(1).flatten()).abs()
    smooth = smooth | steep.all(1).flatten()
    return (difference + errors.sum(1).flatten().masked_fill(smooth, 0.0)).nan_to_num(torch.inf, torch.inf)

