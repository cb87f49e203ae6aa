"""What f is at the edges of first cells, where no node of theirs would tell what lies before the outermost one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import BESIDE, DEEPEST, LIMIT, ULPS
from quadgrad._core.mesh.interval import DEPTH, EndFrame, Frame, end_frame, frame
from quadgrad._core.reduce import one_number
from quadgrad._core.rules.rule import SHARES
from quadgrad._core.search.task import Task

__all__ = ["call_with_edges", "edges_inside", "look_at_edges", "seen"]


def call_with_edges(
    task: Task, layout: Frame, inside: Tensor, part: slice, owner: Tensor | slice
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return f at first cells' nodes, what to multiply it by, and what f is at their edges, ``(2, n)``."""
    nodes = task.rule.tensors(layout.scale.dtype, layout.scale.device).nodes
    x, slope, known = _place(layout, inside, nodes, part)
    y = task.integrand(x, owner).detach()
    return y[1:-1], None if slope is None else slope[1:-1], _known(y, slope, known)


def look_at_edges(task: Task, row: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Return what f is at the edges of cells, ``(2, n)``, NaN where it must not be called."""
    real = task.pieces.lower.dtype
    layout = frame(task.pieces, row, start.to(real), stop.to(real))
    inside, middle, owner = edges_inside(start, stop), layout.scale.new_tensor([0.5]), row // task.pieces.count
    parts: list[Tensor] = []
    step = max(1, task.block // BESIDE)
    for first in range(0, max(1, row.shape[0]), step):
        part = slice(first, first + step)
        x, slope, known = _place(layout, inside, middle, part)
        y = task.integrand(x[[0, -1]], owner[part]).detach()
        parts.append(_known(y, slope, known))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def edges_inside(start: Tensor, stop: Tensor) -> Tensor:
    """Tell of cells' starts and stops which are no ends of their pieces, bool of shape ``(2, n)``."""
    return torch.stack((start != 0.0, (stop != 0.0) & (stop != 1.0)))


def seen(y: Tensor, slope: Tensor | None) -> Tensor:
    """Return one number for f at one place of each cell, times the slope there."""
    y = y if slope is None else y * slope.reshape(slope.shape + (1,) * (y.ndim - 1))
    return one_number(y)


def _place(layout: Frame, inside: Tensor, tau: Tensor, part: slice) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the places ``tau`` between two at the edges ``(m + 2, n)``, the slopes, and where these two are so.

    At the end of a piece it is one right beside it, because f must not be called there. Where rounding would move
    it onto the end, and where that is infinite (so far out ``exp(x)`` overflows), it is in the middle instead.
    """
    eps = torch.finfo(tau.dtype).eps
    near = max(LIMIT, ULPS * eps)
    x, slope = layout.nodes(torch.cat((tau.new_tensor([0.0, near]), tau, tau.new_tensor([1.0 - near, 1.0]))), part)
    left, scale, inside = layout.left[part], layout.scale[part], inside[:, part]
    beside_limit = near * scale > 4.0 * eps * (left.abs() + scale)
    if layout.tail is not None:
        infinite = layout.tail.infinite
        beside_limit = beside_limit & ~torch.stack((infinite.no_lower[part], infinite.no_upper[part]))
    known = inside | beside_limit

    def choose(t: Tensor) -> Tensor:
        edges, beside, middle = t[[0, -1]], t[[1, -2]], t[t.shape[0] // 2]
        first, last = torch.where(inside, edges, torch.where(known, beside, middle)).split(1)
        return torch.cat((first, t[2:-2], last))

    return choose(x), None if slope is None else choose(slope), known


def _known(y: Tensor, slope: Tensor | None, known: Tensor) -> Tensor:
    values = [seen(y[i], None if slope is None else slope[i]) for i in (0, -1)]
    return torch.where(known, torch.stack(torch.broadcast_tensors(*values)), torch.nan)


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
