"""Cells that close in on an end of their piece, where the integrand may be singular.

Their nodes are spread evenly over the logarithm of the distance from the end. There an algebraic singularity is an
exponential, which the rule integrates as well as any smooth function. A cell that touches the end has nodes on its
outer :data:`quadgrad._core.mesh.interval.DEPTH` octaves; the integrals over equal shares of them are the terms of
a series that the epsilon algorithm sums to the end (:mod:`quadgrad._core.estimates.epsilon`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import COLUMNS, extrapolate
from quadgrad._core.estimates.null_rules import (
    BEYOND,
    EDGES,
    FLOOR,
    NULLS,
    PLACE,
    SAFETY,
    UNRESOLVED,
    largest_component,
    null_rule_error,
)
from quadgrad._core.lanes import largest, somewhere
from quadgrad._core.mesh.cells import GEOMETRIC, STEP, ULPS, Cells
from quadgrad._core.mesh.interval import DEPTH, EndFrame, end_frame
from quadgrad._core.rules import RuleTensors
from quadgrad._core.rules.rule import SHARES
from quadgrad._core.search.task import Task, noise

__all__ = ["NEAREST", "blur_of_ends", "estimate_ends", "evaluate_ends", "place_ends", "to_the_end"]

CLOSE = 0.1
"""A lower column is taken when its error is below this part of the relative tolerance."""

NEAREST = 2.0**-480
"""No node is closer to an end than this part of its piece: squares would underflow."""

DEEPEST = 2.0**-400
"""How close to an end f is called to see whether the series goes on as it seems to, as a part of the piece."""

LAWLESS = math.log(1e6)
"""How far f may be there from what the series makes of it, as a logarithm: powers of logarithms are less far."""

SHORTEST = 2.0**-20
"""Cells with logarithmic nodes are not refined when the logarithms of their ends are closer."""


def evaluate_ends(task: Task, row: Tensor, start: Tensor, stop: Tensor) -> Cells:
    """Apply the rule to cells with nodes spread over the logarithm of the distance from an end.

    f is called at :data:`quadgrad._core.mesh.cells.BESIDE` places more for each cell: where its nodes begin and
    end, or, where it touches the end, as close to it as numbers allow.
    """
    rule = task.rule.tensors(task.pieces.lower.dtype, row.device)
    touches = (start == 0) | (stop == 0)
    step = max(1, task.block // task.rule.nodes.size)
    parts: list[Cells] = []
    for first in range(0, row.shape[0], step):
        part = slice(first, min(row.shape[0], first + step))
        x, slope, layout, steps = place_ends(task, row[part], start[part], stop[part])
        y = task.integrand(x, row[part] // task.pieces.count).detach()
        found = estimate_ends(task, rule, y, slope, layout, touches[part], slice(None), steps=steps)
        parts.append(Cells(row[part], start[part], stop[part], *found))
    return Cells.join(parts)


def place_ends(task: Task, row: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor, EndFrame, Tensor]:
    """Return the places ``(m + 2, n)`` where f is called, what to multiply it by there, the layout, and the steps.

    The first place is where the nodes begin, the last where they end or, where steps is not 0, that many terms of
    the series beyond.
    """
    real = task.pieces.lower.dtype
    nodes = task.rule.tensors(real, row.device).nodes
    layout = end_frame(task.pieces, row, start.to(real), stop.to(real))
    deeper = _look_deeper(task, row, layout)
    deep = ((start == 0) | (stop == 0)) & deeper.usable
    x, slope = layout.nodes(torch.cat((nodes.new_zeros(1), nodes, nodes.new_ones(1))), slice(None))
    x = torch.cat((x[:-1], torch.where(deep, deeper.x, x[-1])[None]))
    slope = torch.cat((slope[:-1], torch.where(deep, deeper.slope, slope[-1])[None]))
    return x, slope, layout, torch.where(deep, deeper.steps, 0.0)


def estimate_ends(
    task: Task, rule: RuleTensors, y: Tensor, slope: Tensor, layout: EndFrame, touches: Tensor, part: slice,
    held: Tensor | None = None, steps: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return value, error, floor, refinable, lean, pole, height and kind; see :class:`.Cells`.

    The column that extrapolates is chosen here, or ``held`` ``(n,)``. With ``steps`` ``(n,)`` the last row of ``y``
    is that many terms of the series beyond the nodes, unless that is 0.
    """
    tail = (1,) * (y.ndim - 2)
    eps, scale = noise(task), layout.scale[part]
    weighted = y * (slope * scale).reshape(slope.shape + tail)
    outer, flat, inner = weighted[0].flatten(), weighted[1:-1].flatten(1), weighted[-1].flatten()
    y = y[1:-1]
    functionals = rule.functionals.to(flat.dtype)
    size = _mean(rule, flat.abs())
    blur = blur_of_ends(task, rule, y, layout, part)
    nulls = functionals[NULLS] @ flat
    if nulls.is_complex():
        nulls = nulls.abs()
    # Decay is looked for above the rounding of x, too, which is larger here than that of f.
    unseen, decay = null_rule_error(nulls, size + blur / (2.0 * eps), task.rule.order_gap, eps)
    event = y.shape[1:]
    # As in evenly spread cells the interpolating polynomial must meet f at the edges, unless it is singular there.
    at_outer, at_inner = functionals[EDGES] @ flat
    gaps = [((at - f).abs() - BEYOND * nulls[0]).clamp_min(0.0) for at, f in ((at_outer, outer), (at_inner, inner))]
    gap_outer, gap_inner = (gap.reshape(event) for gap in gaps)
    hidden = rule.nodes[0] * (gap_outer + torch.where(touches.reshape(-1, *tail), 0.0, gap_inner))
    unseen, decay, size, blur = (largest_component(t.reshape(event)) for t in (unseen, decay, size, blur))
    value = (functionals[0] @ flat).reshape(event)
    terms = (rule.shares.to(flat.dtype) @ flat).reshape(SHARES, *event)
    beyond, doubt, gain, column = to_the_end(terms, task.tolerance.rtol, held)
    open_end = touches.reshape(-1, *tail)
    value = torch.where(open_end, beyond, value)
    doubt, gain = torch.where(touches, doubt, 0.0), torch.where(touches, gain, 1.0)
    if steps is not None:
        lawless = _breaks_the_law(terms, inner.reshape(event), steps) & touches
        doubt = torch.where(
            lawless, torch.maximum(doubt, SAFETY * largest_component((beyond - terms.sum(0)).abs())), doubt
        )
    size = torch.maximum(size, largest_component(value.abs()))
    floor = FLOOR * eps * size
    blur = torch.minimum(gain * blur, size)
    rounding = floor + blur
    curable = doubt + gain * unseen + largest_component(hidden)
    error = torch.maximum(curable + blur, rounding).nan_to_num(torch.inf, posinf=torch.inf)
    lost = error.isinf()
    value = value.masked_fill(lost.reshape(-1, *tail), 0.0)
    floor = floor.masked_fill(lost, 0.0)
    # Closer to the end rounding of x weighs more: there the extrapolation may be worse.
    worth = (curable > rounding) & (torch.where(touches, blur / STEP, 0.0) < 0.5 * error)
    refinable = somewhere((lost | worth) & _wide(layout, touches, part))
    rough = (largest(decay) >= UNRESOLVED).to(error.dtype)
    kind = torch.where(touches, column + (GEOMETRIC + 1), GEOMETRIC).to(torch.int8)
    unseen = torch.zeros_like(rough), torch.full_like(rough, torch.inf)
    return value, error, floor, refinable, rough, *unseen, kind


@dataclass(frozen=True)
class _Deeper:
    """One place for each cell, much closer to the end than its nodes, and what f has to be multiplied by there.

    ``steps`` is how many terms of the series it is beyond the nodes; ``usable`` tells where there is such a place.
    """

    x: Tensor
    slope: Tensor
    steps: Tensor
    usable: Tensor


def _look_deeper(task: Task, row: Tensor, layout: EndFrame) -> _Deeper:
    info = torch.finfo(layout.reach.dtype)
    depth = torch.maximum(
        ULPS * info.eps * layout.reach / layout.span, layout.reach.new_tensor(max(DEEPEST, info.tiny**0.5))
    )
    depth = torch.where(layout.span > 0, depth, 1.0).to(layout.outer.dtype)
    from_lower = layout.outer > 0
    place = end_frame(task.pieces, row, torch.where(from_lower, 0.0, -depth), torch.where(from_lower, depth, 0.0))
    x, slope = place.nodes(layout.reach.new_zeros(1), slice(None))
    octaves = torch.log2(layout.outer.abs() / depth) - DEPTH
    usable = octaves > DEPTH
    if layout.infinite is not None:  # that far out exp(x) overflows
        usable = usable & ~torch.where(from_lower, layout.infinite.no_lower, layout.infinite.no_upper)
    return _Deeper(x[0], slope[0], octaves * (SHARES / DEPTH), usable)


def _breaks_the_law(terms: Tensor, deep: Tensor, steps: Tensor) -> Tensor:
    """Tell where f far closer to the end is not at all what the series' last terms make of it, shape ``(n,)``.

    A second scale hides there: the series decays as it should only down to some distance from the end.
    """
    earlier, before, last = terms[-3:].abs().log()
    steps = steps.reshape(-1, *(1,) * (last.ndim - 1))
    rate, drift = last - before, (last - 2.0 * before + earlier).abs()
    expected = last + math.log(SHARES) + steps * rate
    # A power of the logarithm lets the rate drift: by so much, at most, until it settles.
    off = (deep.abs().log() - expected).abs() > LAWLESS + 2.0 * SHARES * steps * drift
    off = off & (steps > 0) & expected.isfinite()
    return somewhere(off.flatten(1).any(1) if off.ndim > 1 else off)


def blur_of_ends(task: Task, rule: RuleTensors, y: Tensor, layout: EndFrame, part: slice) -> Tensor:
    """Return what rounding of x adds to the error: near a singularity f changes as much as the distance does."""
    eps = torch.finfo(layout.reach.dtype).eps
    blur = (PLACE * eps) * layout.reach[part] * -layout.rate[part]
    return _mean(rule, (y.abs() * blur.reshape(-1, *(1,) * (y.ndim - 2))).flatten(1))


def _mean(rule: RuleTensors, y: Tensor) -> Tensor:
    return rule.weights.to(y.dtype) @ y  # f may return another dtype than that of x


def to_the_end(terms: Tensor, rtol: float, held: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Extrapolate a series: its limit, the limit's error, what multiplies the terms' errors, and the column taken.

    The lowest column that is good enough is taken: in higher ones rounding is amplified, in the gradient above all.
    Where a column is ``held``, that one is.
    """
    table = extrapolate(terms, COLUMNS)
    limits = [column[-1] for column in table]
    doubts = [_doubt(table[k], table[k + 1]) for k in range(COLUMNS)]
    last, before = terms[-1].abs(), terms[-2].abs()
    ratio = largest_component(
        torch.where(before > 0, last / torch.where(before > 0, before, 1.0), (last > 0).to(last.dtype) * 2.0)
    )
    diverges = somewhere(ratio >= 1.0)
    gain = (1.0 - ratio).clamp_min(1e-8) ** -2
    total = SAFETY * largest_component(terms.abs().sum(0))
    value, doubt = limits[0], doubts[0]
    column = torch.zeros(doubt.shape, dtype=torch.int64, device=doubt.device)
    for k in range(1, COLUMNS):
        if held is None:
            good = largest(doubt - CLOSE * rtol * largest_component(value.abs())) <= 0.0
            better = somewhere(doubts[k] < doubt) & ~(good | diverges)
        else:
            better = held == k
        tail = (1,) * (value.ndim - 1)
        value = torch.where(better.reshape(-1, *tail), limits[k], value)
        doubt, column = torch.where(better, doubts[k], doubt), column.masked_fill(better, k)
    return value, torch.where(diverges, total, doubt), torch.where(diverges | (column == 0), 1.0, gain), column


def _doubt(column: Tensor, higher: Tensor) -> Tensor:
    """Return the error of a column's last entry: how far the entries around it in the table are apart.

    Two of them may agree by accident, hence three differences.
    """
    steps = (
        (higher[-1] - column[-1], higher[-1] - higher[-2])
        if len(higher) > 1
        else (higher[-1] - column[-1], column[-1] - column[-2], (column[-2] - column[-3]) / SAFETY)
    )
    return SAFETY * largest_component(torch.stack([step.abs() for step in steps]).sum(0))


def _wide(layout: EndFrame, touches: Tensor, part: slice) -> Tensor:
    """Tell where there is room for finer cells."""
    rate, outer = layout.rate[part], layout.outer[part]
    nearest = (outer * torch.exp(rate)).abs() * torch.where(touches, STEP, 1.0)
    info = torch.finfo(outer.dtype)
    told_apart = nearest * layout.span[part] > 4.0 * info.eps * layout.reach[part]
    return told_apart & (nearest > max(NEAREST, info.tiny**0.5)) & (-rate > SHORTEST)
