"""Where the logarithm of an integrand is large: cells around its peaks, and the scale of its integral.

Search cannot see what underflows: of ``exp(-1e8 * (x - c)**2)`` it finds a zero at every node. Its logarithm
shows from afar which way is up. Here cells are halved where it may be much larger between nodes than at them, and
as large as it is anywhere, until search can see the peaks. Nothing is integrated yet: sums only give the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.integrand import Integrand
from quadgrad._core.logspace.modes import find_modes
from quadgrad._core.mesh.cells import LIMIT, ULPS, bisect
from quadgrad._core.mesh.interval import LINEAR, lay_out
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align, concatenate, take, total
from quadgrad._core.rules import RuleTensors

__all__ = ["climb", "log_of_sum"]

RISE = 20.0
"""How much larger log f may be between nodes than at them where search can be left alone with a peak."""

GENTLE = 0.25
"""Differences from node to node of at most this part of that hide no such peak: spacings differ by less than 4."""

ALONE = 40.0
"""How far log f may fall from one node to both its neighbours; the cell's halves might see nothing of it."""

CONVEX = 0.005
"""How much slopes must differ, as a part of both, for a function to be taken for convex between them."""

REACH = 40.0
"""What stays that far below the largest log f is lost in rounding."""

FINEST = 2.0**-50
"""The narrowest cell that is halved here, as a part of its piece."""

BUDGET = 0.25
"""The part of ``max_nfev`` that may be spent here on one integral."""


@dataclass(frozen=True)
class LogPeaks:
    """The cells from which to search, sorted by row, the logarithm of the rule's sum over them, the nodes it took.

    ``size`` has shape ``(batch, *event)``; it is -inf where f was zero, or not finite, at all nodes.
    """

    first: IntervalPlan
    size: Tensor
    nfev: Tensor


@dataclass(frozen=True)
class _Slopes:
    """Cells ``(n,)`` with what log f is on them, shape ``(n, *event)``: the log of its integral, its largest value.

    ``promise`` is what it may be between nodes where that is much more, or is at a single one, -inf if nowhere;
    ``wide`` tells where the nodes of halves would still be apart, ``calls`` how often f was called.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    kind: Tensor
    size: Tensor
    top: Tensor
    promise: Tensor
    wide: Tensor
    calls: Tensor


def climb(task: Problem, first: IntervalPlan) -> LogPeaks:
    """Halve the cells where log f, the task's integrand, may rise to its peaks; sum it up on all cells."""
    cells = _survey(task, first)
    modes = find_modes(task, first) if task.pieces.infinite else None
    cost, budget = 2 * task.rule.nodes.size, BUDGET * task.max_nfev
    spent = total(cells.calls, cells.row // task.pieces.count, task.batch)
    spent = spent if modes is None else spent + modes.calls
    while True:
        owner = cells.row // task.pieces.count
        peak = _largest(cells.top, owner, task.batch)
        rises = (cells.promise > peak[owner] - REACH).to(torch.int8)
        fits = spent + cost <= budget
        hot = largest_component(rises) > 0
        hot = hot if modes is None else hot | modes.are_in(cells.row, cells.start, cells.stop)
        hot = hot & (cells.kind == LINEAR) & cells.wide & fits[owner]
        if not bool(hot.any()):
            break
        start, stop = bisect(cells.start[hot], cells.stop[hot])
        row = cells.row[hot].repeat_interleave(2)
        halves = _survey(task, first.with_cells(row, start, stop))
        spent = spent + total(halves.calls, row // task.pieces.count, task.batch)
        cells = concatenate([take(cells, ~hot), halves])
    size = _log_total(cells.size, cells.row // task.pieces.count, task.batch)
    if cells.row.shape == first.row.shape:
        return LogPeaks(first, size, spent)
    cells = take(cells, cells.row.argsort(stable=True))
    return LogPeaks(first.with_cells(cells.row, cells.start, cells.stop, cells.kind), size, spent)


def log_of_sum(integrand: Integrand, plan: IntervalPlan, x: Tensor, weights: Tensor, block: int) -> Tensor:
    """Return the logarithm of the weighted sum of exp of the integrand over a plan's nodes, ``(batch, *event)``."""
    step, owner = max(1, block // plan.tau.shape[0]), plan.owner
    parts: list[Tensor] = []
    for first in range(0, max(1, len(plan)), step):
        part = slice(first, min(len(plan), first + step))
        y = _finite(integrand(x[:, part], owner[part]).detach())
        parts.append(torch.logsumexp(y + align(weights[:, part].log().to(y.dtype), y), 0))
    return _log_total(parts[0] if len(parts) == 1 else torch.cat(parts), owner, plan.batch)


def _log_total(logs: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sum over the cells of each owner what is given by its logarithm, ``(n, *event)`` to ``(count, *event)``."""
    peak = _largest(logs, owner, count)
    peak = peak.masked_fill(peak == -torch.inf, 0.0)
    return total(torch.exp(logs - peak[owner]), owner, count).log() + peak


def _largest(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Return the largest value of each owner, -inf where there is none."""
    lowest = values.new_full((count, *values.shape[1:]), -torch.inf)
    index = align(owner, values).expand(values.shape)
    return lowest.scatter_reduce(0, index, values, "amax")


def _survey(task: Problem, first: IntervalPlan) -> _Slopes:
    """Evaluate log f on cells, a block of nodes at a time, and beside limits that evenly spread nodes leave out."""
    row, pieces = first.row, task.pieces
    linear, layout = first.linear, pieces.lay_out(first)
    rule, owner = task.rule.tensors(layout.scale.dtype, row.device), row // pieces.count
    step = max(1, task.block // task.rule.nodes.size)
    parts: list[tuple[Tensor, ...]] = []
    for begin in range(0, max(1, row.shape[0]), step):
        part = slice(begin, min(row.shape[0], begin + step))
        x, factor = layout.nodes(rule.nodes, part)
        y = _finite(task.integrand(x, owner[part]).detach())
        parts.append(_describe(rule, y, factor, layout.scale[part]))
    size, top, promise, *outermost = (torch.cat(column) for column in zip(*parts, strict=True))
    calls = torch.full_like(row, task.rule.nodes.size)
    finest = 4.0 * pieces.rounding.eps / float(task.rule.nodes[0])
    wide = (first.stop - first.start > FINEST) & (layout.scale > layout.reach * finest)
    middle = layout.nodes(rule.nodes.new_tensor([0.5]))[0][0]
    at_limits = (linear & (first.start == 0.0), linear & ((first.stop == 0.0) | (first.stop == 1.0)))
    for lower, touches, inner in zip((True, False), at_limits, outermost, strict=True):
        calls, cell = calls + touches, touches.nonzero().squeeze(1)
        y = _beside_limit(task, row[cell], middle[cell], lower)
        rises = torch.where(y - inner[cell] > RISE, y, -torch.inf)
        top = top.index_copy(0, cell, torch.maximum(top[cell], y))
        promise = promise.index_copy(0, cell, torch.maximum(promise[cell], rises))
    return _Slopes(row, first.start, first.stop, first.kind, size, top, promise, wide, calls)


def _beside_limit(task: Problem, row: Tensor, middle: Tensor, lower: bool) -> Tensor:
    """Return log f right beside one end of pieces, as close as search calls f; -inf where that cannot be."""
    eps = task.pieces.rounding.eps
    near = torch.full_like(middle, max(LIMIT, ULPS * eps))
    ends = (near * 0.0, near) if lower else (-near, near * 0.0)
    layout = lay_out(task.pieces, row, *ends, None)
    x, factor = layout.nodes(near.new_tensor([1.0 if lower else 0.0]))
    end, other = task.pieces.ends(row)[:: 1 if lower else -1]
    usable = end.isfinite() & (layout.scale > 4.0 * eps * (end.abs() + layout.scale / near)) & (end != other)
    x, owner = torch.where(usable, x, middle), row // task.pieces.count
    blocks = (slice(i, i + task.block) for i in range(0, max(1, row.shape[0]), task.block))
    y = _finite(torch.cat([task.integrand(x[:, part], owner[part]).detach() for part in blocks], dim=1))
    y = y + align((factor / layout.scale).log().to(y.dtype), y)
    return torch.where(align(usable, y[0]), y[0], -torch.inf)


def _describe(rule: RuleTensors, y: Tensor, factor: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Return the log of the sum, the largest value and the promise of cells, and log f at their outermost nodes.

    But for the sum f is taken in the cell's own unit of length: what cells hold is compared, not their width.
    """
    y = y if factor.shape[0] == 1 else y + align((factor / scale).log().to(y.dtype), y)
    size = torch.logsumexp(y + align((rule.weights[:, None] * scale).log().to(y.dtype), y), 0)
    promise = torch.full_like(size, -torch.inf)
    rise = (y[1:] - y[:-1]).abs().amax(0)
    rough = (largest_component((~(rise <= RISE * GENTLE)).to(torch.int8)) > 0).nonzero().squeeze(1)
    if rough.shape[0] > 0:
        promise = promise.index_copy(0, rough, _promise(y.index_select(1, rough), rule.nodes.to(y.dtype)))
    return size, y.amax(0), promise, y[0], y[-1]


def _promise(y: Tensor, tau: Tensor) -> Tensor:
    """Return how large log f may be where that is much more than at the nodes, or is at one node only."""
    peak, gain = _between(y, tau)
    alone = torch.where(_fall(y) > ALONE, y, -torch.inf).amax(0)
    return torch.maximum(torch.where(gain > RISE, peak, -torch.inf).amax(0), alone)


def _fall(y: Tensor) -> Tensor:
    """Return how far log f falls from each node to the higher of its neighbours; 0 of zeros of f."""
    lowest = torch.full_like(y[:1], -torch.inf)
    beside = torch.maximum(torch.cat((lowest, y[:-1])), torch.cat((y[1:], lowest)))
    return torch.where(y > -torch.inf, y - beside, 0.0)


def _between(y: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Return how large log f may be between nodes, and how much more that is than at the nodes on both sides.

    Between two nodes a concave function lies below the lines through the two before and through the two behind,
    as in adaptive rejection sampling. A line counts where the values are concave there; where neither does, between
    peaks and far from them, nothing is expected. Beside zeros of f there may be no line at all, and no bound.
    """
    outside = torch.full_like(y[:1], torch.nan)
    width = align(tau.diff()[:, None], y)
    slope = (y[1:] - y[:-1]) / width
    slope = torch.where(slope.isfinite(), slope, torch.nan)
    before, behind = torch.cat((outside, slope[:-1])), torch.cat((-slope[1:], outside))
    alone = before.isnan() & behind.isnan()
    before, behind = (torch.where(_bends(t, u), torch.nan, t) for t, u in ((before, slope), (behind, -slope)))
    left, right = y[:-1], y[1:]
    from_left = left + before.clamp_min(0.0) * width
    from_right = right + behind.clamp_min(0.0) * width
    steepness = before.clamp_min(0.0) + behind.clamp_min(0.0)
    meet = ((from_right - left) / steepness).nan_to_num(0.0).clamp_min(0.0)
    crossing = left + before.clamp_min(0.0) * torch.minimum(meet, width)
    higher = torch.maximum(left, right)
    peak = torch.where(before.isnan(), from_right, torch.where(behind.isnan(), from_left, crossing))
    peak = torch.maximum(torch.where(peak.isnan(), higher, peak), higher).masked_fill(alone, torch.inf)
    # Up to the cell's own ends, as its outermost nodes tell.
    lower = y[:1] - slope[:1].clamp_max(0.0) * tau[0]
    upper = y[-1:] + slope[-1:].clamp_min(0.0) * (1.0 - tau[-1])
    higher = torch.cat((y[:1], higher, y[-1:]))
    peak = torch.cat((lower, peak, upper)).nan_to_num(-torch.inf, torch.inf)
    return peak, torch.where(higher > -torch.inf, peak - higher, 0.0)


def _bends(before: Tensor, here: Tensor) -> Tensor:
    """Tell where a slope grows on the way inward, by more than rounding: convex, not concave."""
    return here - before > CONVEX * (here.abs() + before.abs())


def _finite(y: Tensor) -> Tensor:
    """Return log f with what is no value left out: NaN and infinity count as zeros of f here."""
    return torch.where(y < torch.inf, y, -torch.inf)
