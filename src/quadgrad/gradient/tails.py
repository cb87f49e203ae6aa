"""Cells that close in on an end of their piece: derivatives there, and how far replay's are from them.

Each derivative's terms are a series of their own, which is extrapolated to the end as search would. Replay instead
extrapolates the terms of f; its derivative is the sum of the derivative's terms times the weights that f's terms have
in the limit. Where the two differ the *gap* is part of the error. It depends on the column of the epsilon table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad.extrapolation import COLUMNS, extrapolate
from quadgrad.gradient.plans import cells_of, with_cells
from quadgrad.lanes import largest
from quadgrad.maps import DEPTH, EndFrame
from quadgrad.plan import Ends, Plan
from quadgrad.reduce import total
from quadgrad.search.ends import NEAREST, _blur, _estimate
from quadgrad.search.task import Task, noise

__all__ = ["EndSample", "Tails", "choose_columns", "draw_closer", "measure_ends", "split_outputs"]

CLOSE = 0.01
"""A gap below this part of the tolerance is good enough: higher columns are not looked at."""

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

    ``value`` ``(k, columns)`` is the largest modulus of the derivative, ``gap`` ``(COLUMNS, k, columns)`` is how far
    replay is off in each column of the epsilon table; ``room`` ``(k,)`` the octaves left before nodes coincide.
    """

    owner: Tensor
    value: Tensor
    gap: Tensor
    room: Tensor

    def error(self, ends: Ends, batch: int) -> Tensor:
        """Return what the gaps in a plan's columns add to the error of each integral."""
        chosen = ends.column.clamp_min(0).to(torch.int64)[None, :, None].expand(1, *self.gap.shape[1:])
        return total(self.gap.gather(0, chosen)[0], self.owner, batch)


def split_outputs(y: Tensor, outputs: int, is_complex: bool) -> Tensor:
    """Return the columns of a derivative integrand, one set for each real output, as those of each output of f."""
    if not is_complex:
        return y.unflatten(2, (outputs, -1))
    return torch.view_as_complex(y.unflatten(2, (outputs, 2, -1)).movedim(3, -1).contiguous())


def _join_outputs(y: Tensor, weight: Tensor | None) -> Tensor:
    """Undo :func:`split_outputs`, or sum the outputs ``(..., n, outputs, columns)`` with weights ``(n, outputs)``."""
    if weight is not None:
        y = (y * weight.conj()[..., None]).sum(-2)
        return y.real if y.is_complex() else y
    return torch.view_as_real(y).movedim(-1, -2).flatten(-3) if y.is_complex() else y.flatten(-2)


def measure_ends(
    task: Task,
    plan: Plan,
    layout: EndFrame,
    sample: EndSample,
    weight: Tensor | None,
    groups: Sequence[Tensor] | None,
) -> tuple[Tensor, Tensor, Tails]:
    """Return the value ``(k, columns)``, error, floor and noise ``(3, k, groups)``, and what is known beside.

    With ``weight`` ``(batch, outputs)`` each column is the weighted sum over the outputs of f.
    """
    assert plan.ends is not None
    rule = task.rule.tensors(layout.scale.dtype, plan.row.device)
    owner, touches = plan.owner[plan.ends.cell], plan.ends.column >= 0
    places = torch.cat((rule.nodes.new_zeros(1), rule.nodes, rule.nodes.new_ones(1)))
    step = max(1, task.block // places.shape[0])
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for first in range(0, owner.shape[0], step):
        part = slice(first, min(owner.shape[0], first + step))
        f, y, slope = sample(places, part)
        weights = None if weight is None else weight[owner[part]]
        own = _join_outputs(y, weights)
        width = own.shape[2]
        own, slopes = own.flatten(1), slope.repeat_interleave(width, 1)
        columns, reaches = _spread(layout, part, width), touches[part].repeat_interleave(width)
        value, error, floor, *_ = _estimate(task, rule, own, slopes, columns, reaches, slice(None))
        blur = _blur(task, rule, own[1:-1] * (slopes * columns.scale)[1:-1], columns, slice(None))
        errors = torch.stack((error, floor, floor + blur.nan_to_num(0.0, 0.0))).unflatten(1, (-1, width))
        value = value.unflatten(0, (-1, width))
        factor = (slope * layout.scale[part])[1:-1, :, None]
        terms, changes = (_shares(rule.shares, t) for t in (f[1:-1] * factor, y[1:-1] * factor[..., None]))
        limits, doubts = (_join_outputs(t, weights) for t in _replay(terms, changes, noise(task)))
        gap = ((limits - value).abs() + doubts.abs()).nan_to_num(torch.inf, torch.inf)
        parts.append((value, errors, torch.where(touches[part, None], gap, 0.0)))
    values, errors, gaps = (
        torch.cat(column, dim) for column, dim in zip(zip(*parts, strict=True), (0, 1, 1), strict=True)
    )
    sizes = values.abs()
    if groups is not None:
        sizes, errors, gaps = (
            torch.stack([t.index_select(-1, group).amax(-1) for group in groups], dim=-1)
            for t in (sizes, errors, gaps)
        )
    return values, errors, Tails(owner, sizes, gaps, _room(layout, touches))


def _spread(layout: EndFrame, part: slice, width: int) -> EndFrame:
    """Treat each column as a cell of its own."""
    columns = (layout.left, layout.scale, layout.reach, layout.outer, layout.rate, layout.span)
    return EndFrame(*(t[part].repeat_interleave(width) for t in columns), None)


def _shares(shares: Tensor, y: Tensor) -> Tensor:
    return (shares.to(y.dtype) @ y.flatten(1)).unflatten(1, y.shape[1:])


def _replay(terms: Tensor, changes: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return what the limit in each column changes by, and what rounding of f does to that.

    ``terms`` ``(s, n, outputs)`` are those of f, ``changes`` ``(s, n, outputs, columns)`` their derivatives.
    """
    signs = torch.tensor([1.0 if k % 4 in (0, 3) else -1.0 for k in range(terms.shape[0])], device=terms.device)
    off = terms * (1.0 + WOBBLE * eps * signs.to(terms.dtype)).reshape(-1, 1, 1)
    weights = torch.stack([_weights(terms, column) for column in range(COLUMNS)])
    moved = torch.stack([_weights(off, column) for column in range(COLUMNS)]) - weights
    limit, doubt = ((w[..., None] * changes).sum(1) for w in (weights, moved))
    return limit, doubt


def _weights(terms: Tensor, column: int) -> Tensor:
    """Return the derivative of the limit by each term."""
    limit, pull = torch.func.vjp(lambda *terms: extrapolate(terms, column)[column][-1], *terms.unbind(0))
    return torch.stack(pull(torch.ones_like(limit))).conj()


def _room(layout: EndFrame, touches: Tensor) -> Tensor:
    """Return how many octaves closer the nodes may come."""
    info = torch.finfo(layout.outer.dtype)
    nearest = torch.maximum(4.0 * info.eps * layout.reach / layout.span, layout.span.new_tensor(NEAREST))
    nearest = nearest.clamp_min(info.tiny**0.5)
    return torch.where(touches, torch.log2(layout.outer.abs() / nearest) - DEPTH, 0.0).floor().clamp_min(0.0)


def choose_columns(plan: Plan, tails: Tails | None, asked: Tensor) -> Plan:
    """Let replay extrapolate in the lowest column whose gap is small for all groups, or smallest.

    ``asked`` ``(batch, groups)`` is the error that each derivative may have.
    """
    if plan.ends is None or tails is None:
        return plan
    excess = _excess(tails, asked)
    best, column = excess[0], torch.zeros_like(plan.ends.column)
    for k in range(1, COLUMNS):
        better = (excess[k] < best) & (best > CLOSE)
        best, column = torch.where(better, excess[k], best), column.masked_fill(better, k)
    return replace(plan, ends=replace(plan.ends, column=torch.where(plan.ends.column < 0, -1, column)))


def _excess(tails: Tails, asked: Tensor) -> Tensor:
    """Return the largest gap of each cell in each column, as a part of what is asked, shape ``(COLUMNS, k)``."""
    asked = asked[tails.owner]
    return largest(torch.where(asked.isinf(), 0.0, tails.gap / asked).amax(2))


def draw_closer(plan: Plan, tails: Tails | None, asked: Tensor) -> Plan:
    """Part the cells where no column is good, so close to the end that the plain sum is.

    How close follows from what the plain sum misses now: over DEPTH octaves it has come down from the whole value.
    """
    if plan.ends is None or tails is None:
        return plan
    excess = _excess(tails, asked)
    aim, missed = AIM * asked[tails.owner], tails.gap[0]
    tiny = torch.finfo(missed.dtype).tiny
    decay = torch.log2(tails.value.clamp_min(tiny) / missed.clamp_min(tiny)).clamp_min(1e-2) / DEPTH
    octaves = largest((torch.log2((missed / aim).clamp_min(1.0)) / decay).amax(1)).nan_to_num(0.0).ceil()
    octaves = torch.minimum(octaves, tails.room)
    parted = (excess.amin(0) > AIM) & (octaves > 0.0)
    if not bool(parted.any()):
        return plan
    cells, chosen = cells_of(plan), plan.ends.cell[parted]
    middle = (cells.start + cells.stop)[chosen] * torch.exp2(-octaves[parted]).to(cells.start.dtype)
    start, stop = cells.start.index_copy(0, chosen, middle), cells.stop.index_copy(0, chosen, middle)
    return with_cells(plan, replace(cells, stop=stop).join(replace(cells, start=start).take(chosen)))
