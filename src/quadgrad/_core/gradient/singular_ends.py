"""Cells that close in on an end of their piece: derivatives there, and how far replay's are from them.

Each derivative's terms are a series of their own, which is extrapolated to the end as search would. Replay instead
extrapolates the terms of f; its derivative is the sum of the derivative's terms times the weights that f's terms
have in the limit. How far the two are apart, the *gap*, depends on the column of the epsilon table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import COLUMNS, extrapolate
from quadgrad._core.estimates.null_rules import BEYOND, PLACE, SAFETY, null_rule_error, weigh
from quadgrad._core.estimates.singular_ends import NEAREST, conclude
from quadgrad._core.lanes import largest
from quadgrad._core.mesh.interval import DEPTH, EXTRAPOLATED, LINEAR, EndFrame
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.reduce import total
from quadgrad._core.rules import RuleTensors
from quadgrad._core.search.task import Task, noise

__all__ = ["EndSample", "Tails", "choose_columns", "draw_closer", "measure_ends", "split_outputs"]

CLOSE = 0.01
"""An error below this part of the tolerance is good enough: higher columns are not looked at."""

AIM = 0.1
"""Cells are drawn closer to their end until the gap is this part of the tolerance."""

WOBBLE = 4.0
"""Weights are compared with those of terms that are off by this many eps: high columns amplify rounding."""

EndSample = Callable[[Tensor, slice], tuple[Tensor, Tensor, Tensor]]
"""At the places ``(m,)`` of some cells: f ``(m, n, outputs)``, what replay makes of it when each output changes,
``(m, n, outputs, columns)``, and what to multiply both by, ``(m, n)``."""


@dataclass(frozen=True)
class Tails:
    """What is known of the cells that close in on an end, ``k`` of them, of columns or groups of columns.

    ``value`` ``(k, columns)`` is the largest modulus of the derivative. ``error`` and ``gap``, of shape
    ``(COLUMNS, k, columns)``, are replay's error and how far it is from the derivative's own limit, in each column
    of the epsilon table. ``room`` ``(k,)`` are the octaves left before nodes coincide.
    """

    owner: Tensor
    value: Tensor
    error: Tensor
    gap: Tensor
    room: Tensor

    def error_on(self, plan: IntervalPlan) -> Tensor:
        """Return the error of these cells, summed for each integral, in the plan's columns."""
        column = (plan.kind[plan.kind != LINEAR] - EXTRAPOLATED).clamp_min(0).to(torch.int64)
        chosen = column[None, :, None].expand(1, *self.error.shape[1:])
        return total(self.error.gather(0, chosen)[0], self.owner, plan.batch)


def split_outputs(y: Tensor, outputs: int, is_complex: bool) -> Tensor:
    """Return the columns of a derivative integrand, one set for each real output, as those of each output of f."""
    if not is_complex:
        return y.unflatten(2, (outputs, -1))
    return torch.view_as_complex(y.unflatten(2, (outputs, 2, -1)).movedim(3, -1).contiguous())


def _join_outputs(y: Tensor, weight: Tensor | None) -> Tensor:
    """Undo :func:`split_outputs`, or sum the outputs ``(..., n, outputs, columns)``, weighted ``(n, outputs)``."""
    if weight is not None:
        y = (y * weight.conj()[..., None]).sum(-2)
        return y.real if y.is_complex() else y
    return torch.view_as_real(y).movedim(-1, -2).flatten(-3) if y.is_complex() else y.flatten(-2)


def measure_ends(
    task: Task,
    plan: IntervalPlan,
    layout: EndFrame,
    sample: EndSample,
    weight: Tensor | None,
    groups: Sequence[Tensor] | None,
) -> tuple[Tensor, Tensor, Tails]:
    """Return the value ``(k, columns)``, floor and noise ``(2, k, groups)``, and what is known beside.

    With ``weight`` ``(batch, outputs)`` each column is the weighted sum over the outputs of f.
    """
    rule = task.rule.tensors(layout.scale.dtype, plan.row.device)
    owner, touches = plan.owner, plan.kind >= EXTRAPOLATED
    places = torch.cat((rule.nodes.new_zeros(1), rule.nodes, rule.nodes.new_ones(1)))
    step = max(1, task.block // places.shape[0])
    parts: list[tuple[Tensor, ...]] = []
    for first in range(0, owner.shape[0], step):
        part = slice(first, min(owner.shape[0], first + step))
        f, y, slope = sample(places, part)
        weights = None if weight is None else weight[owner[part]]
        own = _own_series(task, rule, _join_outputs(y, weights), slope, layout, touches, part)
        factor = (slope * layout.scale[part])[1:-1, :, None]
        terms, changes = (_shares(rule.shares, t) for t in (f[1:-1] * factor, y[1:-1] * factor[..., None]))
        error, gap = _replayed(terms, changes, weights, own, noise(task))
        open_end = touches[part, None]
        error, gap = torch.where(open_end, error, own.error), torch.where(open_end, gap, 0.0)
        parts.append((own.value, error, gap, own.floor, own.floor + own.blur))
    dims = (0, 1, 1, 0, 0)
    value, error, gap, floor, rounding = (
        torch.cat(column, dim) for column, dim in zip(zip(*parts, strict=True), dims, strict=True)
    )
    size = value.abs()
    if groups is not None:
        size, error, gap, floor, rounding = (
            torch.stack([t.index_select(-1, group).amax(-1) for group in groups], dim=-1)
            for t in (size, error, gap, floor, rounding)
        )
    return value, torch.stack((floor, rounding)), Tails(owner, size, error, gap, _room(layout, touches))


@dataclass(frozen=True)
class _Own:
    """What each column's own series gives, shape ``(n, columns)``; ``rest`` is the error but for the limit's.

    ``part`` is the error of a term: on a part of the cell the first coefficient that the nodes do not show counts.
    """

    value: Tensor
    error: Tensor
    rest: Tensor
    floor: Tensor
    blur: Tensor
    part: Tensor


def _own_series(
    task: Task, rule: RuleTensors, y: Tensor, slope: Tensor, layout: EndFrame, touches: Tensor, part: slice
) -> _Own:
    """Estimate the columns ``y`` ``(m, n, columns)`` as search would, each by itself."""
    width = y.shape[2]
    y, slope = y.flatten(1), slope.repeat_interleave(width, 1)
    columns, touches = _spread(layout, part, width), touches[part].repeat_interleave(width)
    eps, spread = noise(task), PLACE * torch.finfo(layout.scale.dtype).eps * columns.reach * -columns.rate
    weighted = y * slope * columns.scale
    outer, values, inner = weighted[0], weighted[1:-1], weighted[-1]
    sums, mean = weigh(rule, values, values.abs()), rule.weights.to(values.dtype) @ y[1:-1].abs()
    unseen, decay = null_rule_error(rule, sums.nulls, sums.size.add(spread * mean, alpha=0.5 / eps), eps)
    at_outer, at_inner = ((edge - f).abs().sub(sums.nulls[0], alpha=BEYOND).clamp_min(0.0)
                          for edge, f in zip(sums.edges, (outer, inner), strict=True))  # fmt: skip
    hidden = rule.nodes[0] * (at_outer + at_inner.masked_fill(touches, 0.0))
    terms = _shares(rule.shares, values)
    errors = (unseen, hidden, spread * mean)
    end = conclude(sums.value, terms, touches, errors, sums.size, (task.tolerance.rtol, eps))
    lost = end.error.isinf()
    value, floor = end.value.masked_fill(lost, 0.0), end.floor.masked_fill(lost, 0.0)
    blur = (spread * (rule.weights.to(values.dtype) @ (y * slope)[1:-1].abs())).nan_to_num(0.0, 0.0)
    rest = torch.maximum(end.error - end.doubt, floor + blur).nan_to_num(torch.inf)
    part = sums.nulls[0] * decay
    return _Own(*(t.unflatten(0, (-1, width)) for t in (value, end.error, rest, floor, blur, part)))


def _spread(layout: EndFrame, part: slice, width: int) -> EndFrame:
    """Treat each column as a cell of its own."""
    columns = (layout.left, layout.scale, layout.reach, layout.outer, layout.rate, layout.span)
    left, scale, reach, outer, rate, span = (t[part].repeat_interleave(width) for t in columns)
    return EndFrame(left, scale, reach, outer, rate, span, None)


def _shares(shares: Tensor, y: Tensor) -> Tensor:
    return (shares.to(y.dtype) @ y.flatten(1)).unflatten(1, y.shape[1:])


def _replayed(
    terms: Tensor, changes: Tensor, weights: Tensor | None, own: _Own, eps: float
) -> tuple[Tensor, Tensor]:
    """Return replay's error and gap in each column of the epsilon table, shape ``(COLUMNS, n, columns)``.

    ``terms`` ``(s, n, outputs)`` are those of f, ``changes`` ``(s, n, outputs, columns)`` their derivatives. The
    error follows from the gap, or from how far replay's last entries in that column are apart: the smaller counts.
    """
    signs = torch.tensor([1.0 if k % 4 in (0, 3) else -1.0 for k in range(terms.shape[0])], device=terms.device)
    off = terms * (1.0 + WOBBLE * eps * signs.to(terms.dtype)).reshape(-1, 1, 1)
    last, before = terms[-1].abs(), terms[-2].abs()
    ratio = torch.where(before > 0, last / torch.where(before > 0, before, 1.0), 2.0 * (last > 0)).amax(-1)
    rest = own.rest / (1.0 - ratio.clamp(0.0, 0.999)[:, None]) ** 2
    errors: list[Tensor] = []
    gaps: list[Tensor] = []
    grows = torch.zeros_like(rest, dtype=torch.bool)
    for column in range(COLUMNS):
        entries = [_weights(terms, column, back) for back in (1, 2, 3)]
        entries.append(_weights(off, column, 1))
        limit, once, twice, other = (_join_outputs((w[..., None] * changes).sum(0), weights) for w in entries)
        doubt = (other - limit).abs()
        gap = ((limit - own.value).abs() + doubt).nan_to_num(torch.inf, torch.inf)
        step, earlier = (limit - once).abs(), (once - twice).abs()
        decay = (step / earlier.clamp_min(torch.finfo(step.dtype).tiny)).clamp_max(0.99)
        drift = SAFETY * step * (decay / (1.0 - decay)).clamp_min(1.0) + earlier
        # Column 2 may sum even what grows towards the end, but to a number that is no integral.
        grown = (step >= earlier) & (step > rest + own.part)
        grows = grows | (grown & (column > 0))
        apart = drift.masked_fill(grown | grows, torch.inf) + doubt + rest
        errors.append(torch.minimum(own.error + gap, apart.nan_to_num(torch.inf, torch.inf)))
        gaps.append(gap)
    return torch.stack(errors), torch.stack(gaps)


def _weights(terms: Tensor, column: int, back: int) -> Tensor:
    """Return the derivative of a column's last entry, or one further ``back``, by each term."""

    def limit(terms: Tensor) -> Tensor:
        return extrapolate(terms, column)[column][-back]

    value, pull, *_ = torch.func.vjp(limit, terms)
    return pull(torch.ones_like(value))[0].conj()


def _room(layout: EndFrame, touches: Tensor) -> Tensor:
    """Return how many octaves closer the nodes may come."""
    info = torch.finfo(layout.outer.dtype)
    nearest = torch.maximum(4.0 * info.eps * layout.reach / layout.span, layout.span.new_tensor(NEAREST))
    nearest = nearest.clamp_min(info.tiny**0.5)
    return torch.where(touches, torch.log2(layout.outer.abs() / nearest) - DEPTH, 0.0).floor().clamp_min(0.0)


def choose_columns(plan: IntervalPlan, tails: Tails | None, asked: Tensor) -> IntervalPlan:
    """Let replay extrapolate in the lowest column whose error is small for all groups, or else the smallest.

    ``asked`` ``(batch, groups)`` is the error that each derivative may have.
    """
    if plan.even or tails is None:
        return plan
    excess, cell = _excess(tails, tails.error, asked), (plan.kind != LINEAR).nonzero().squeeze(1)
    old = plan.kind[cell]
    best, column = excess[0], torch.zeros_like(old)
    for k in range(1, COLUMNS):
        better = (excess[k] < best) & (best > CLOSE)
        best, column = torch.where(better, excess[k], best), column.masked_fill(better, k)
    kind = torch.where(old < EXTRAPOLATED, old, column + EXTRAPOLATED)
    return replace(plan, kind=plan.kind.index_copy(0, cell, kind))


def _excess(tails: Tails, error: Tensor, asked: Tensor) -> Tensor:
    """Return the largest error of each cell in each column, as a part of what is asked, shape ``(COLUMNS, k)``."""
    asked = asked[tails.owner]
    return largest(torch.where(asked.isinf(), 0.0, error / asked).amax(2))


def draw_closer(plan: IntervalPlan, tails: Tails | None, asked: Tensor, late: Tensor) -> IntervalPlan:
    """Part the cells of ``late`` integrals where no column is good, so close to the end that the plain sum is.

    How close follows from what the plain sum misses now: over DEPTH octaves it has come down from the whole value.
    """
    if plan.even or tails is None:
        return plan
    aim, missed = AIM * asked[tails.owner], tails.gap[0]
    tiny = torch.finfo(missed.dtype).tiny
    decay = torch.log2(tails.value.clamp_min(tiny) / missed.clamp_min(tiny)).clamp_min(1e-2) / DEPTH
    octaves = largest((torch.log2((missed / aim).clamp_min(1.0)) / decay).amax(1)).nan_to_num(0.0).ceil()
    octaves = torch.minimum(octaves, tails.room)
    excess = torch.stack([_excess(tails, error, asked) for error in (tails.gap, tails.error)])
    parted = (excess.amin((0, 1)) > AIM) & (octaves > 0.0) & late[tails.owner]
    if not bool(parted.any()):
        return plan
    chosen = (plan.kind != LINEAR).nonzero().squeeze(1)[parted]
    middle = (plan.start + plan.stop)[chosen] * torch.exp2(-octaves[parted]).to(plan.start.dtype)
    start, stop = plan.start.index_copy(0, chosen, middle), plan.stop.index_copy(0, chosen, middle)
    return replace(plan, stop=stop).join(replace(plan, start=start).take(chosen))
