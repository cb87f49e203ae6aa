"""Plan, integrand and limits to value, in ordinary torch: whatever differentiates torch differentiates this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quadgrad._core._torch import forward_mode_open, in_transform
from quadgrad._core.estimates.epsilon import COLUMNS, extrapolate
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.interval import EndFrame, Frame, Pieces, end_frame, frame
from quadgrad._core.plans.interval import Ends, Plan
from quadgrad._core.recompute import Rows, Work, recompute
from quadgrad._core.reduce import total
from quadgrad._core.search.recheck import Watch

__all__ = ["BLOCK", "replay_plan"]

BLOCK = 2**16
"""Nodes evaluated at a time where the caller sets no ``chunk_size``: the arrays stay in the processor's cache."""


def replay_plan(
    integrand: Integrand,
    plan: Plan,
    pieces: Pieces,
    block: int,
    thrifty: bool,
    watch: Watch | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Return the weighted sum over the plan's cells, shape ``(batch, *event)``.

    Parameters
    ----------
    integrand : Integrand
    plan : Plan
    pieces : Pieces
        In the dtype of the sums; may carry gradients.
    block : int
        Nodes evaluated at a time.
    thrifty : bool
        Recompute each block in the backward pass instead of keeping its intermediate values. Ignored
        inside transforms and forward mode, where torch refuses the hooks this needs.
    watch : Watch, optional
        Is shown the values, to tell the error of the cells.
    rows : Rows, optional
        Collect the sums of a thrifty replay, where it can be one function: part by part, in ascending order.
    """
    size = max(1, block // plan.tau.shape[0])
    kept = not thrifty or not torch.is_grad_enabled() or in_transform() or forward_mode_open()
    if kept or plan.batch == 0:
        return _replay(integrand, plan, pieces, size, watch)

    def sums(work: Work, first: int, watch: Watch | None = watch) -> Tensor:
        return _replay(work.integrand, work.plan, work.pieces, size, watch, first)

    work = Work(integrand, plan, pieces)
    value = recompute(work, size, sums, lambda work, first: sums(work, first, None), rows)
    if value is not None:
        return value
    if watch is not None:
        watch.restart()
    rows = Rows(plan.batch)
    for cells, low, high in work.cuts(size):
        part = work.part(cells, low, high)
        rows.add(low, checkpoint(sums, part, cells.start, use_reentrant=False, preserve_rng_state=False))
    value = rows.join()
    assert value is not None
    return value


def _replay(
    integrand: Integrand, plan: Plan, pieces: Pieces, size: int, watch: Watch | None, first: int = 0
) -> Tensor:
    """Return the sums over a plan that begins with the cell ``first`` of the one that is watched."""
    dtype = pieces.lower.dtype
    owner, start, stop = plan.owner, plan.start.to(dtype), plan.stop.to(dtype)
    given = (integrand, plan.tau.to(dtype), plan.weight.to(dtype))
    index = torch.arange(first, first + len(plan), device=owner.device) if watch is not None else owner
    ends = plan.ends
    if ends is None:
        layout = frame(pieces, plan.row, start, stop)
        values = _in_blocks(len(plan), size, _cell_sums, *given, layout, owner, watch, index)
        return total(values, owner, plan.batch)
    row, linear, close = plan.row, ends.others, ends.cell
    layout = frame(pieces, row[linear], start[linear], stop[linear])
    end = end_frame(pieces, row[close], start[close], stop[close])
    values = _in_blocks(
        linear.shape[0], size, _cell_sums, *given, layout, owner[linear], watch, index[linear]
    )  # fmt: skip
    beyond = _in_blocks(
        close.shape[0], size, _end_sums, *given, end, owner[close], watch, index[close], ends
    )  # fmt: skip
    return total(torch.cat((values, beyond)), torch.cat((owner[linear], owner[close])), plan.batch)


def _in_blocks(count: int, size: int, sums: Callable[..., Tensor], *given: Any) -> Tensor:
    """Return ``sums(*given, part)`` for all cells, ``size`` of them at a time."""
    blocks = (slice(first, min(count, first + size)) for first in range(0, max(1, count), size))
    parts = [sums(*given, part) for part in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cell_sums(
    integrand: Integrand,
    tau: Tensor,
    weight: Tensor,
    layout: Frame,
    owner: Tensor,
    watch: Watch | None,
    index: Tensor,
    part: slice,
) -> Tensor:
    """Return the integral over each cell of ``part``, shape ``(n, *event)``; show the values to ``watch``."""
    x, slope = layout.nodes(tau, part)
    y = integrand(x, owner[part])
    event = y.shape[2:]
    if watch is not None:
        watch.see(index[part], y, slope)
    if slope is not None:
        y = y * slope.reshape(slope.shape + (1,) * len(event))
    sums = (weight.to(y.dtype) @ y.flatten(1)).reshape(y.shape[1:])
    return sums * layout.scale[part].reshape(y.shape[1:2] + (1,) * len(event))


def _end_sums(
    integrand: Integrand,
    tau: Tensor,
    weight: Tensor,
    layout: EndFrame,
    owner: Tensor,
    watch: Watch | None,
    index: Tensor,
    ends: Ends,
    part: slice,
) -> Tensor:
    """Return the integral over each cell of ``part`` that closes in on an end, shape ``(n, *event)``."""
    x, slope = layout.nodes(tau, part)
    y = integrand(x, owner[part])
    if watch is not None:
        watch.see_ends(index[part], y)
    tail = (1,) * (y.ndim - 2)
    y = y * (slope * layout.scale[part]).reshape(slope.shape + tail)
    event, flat = y.shape[1:], y.flatten(1)
    value = (weight.to(y.dtype) @ flat).reshape(event)
    terms = (ends.shares.to(y.dtype) @ flat).reshape(ends.shares.shape[0], *event)
    harmless = 0.5 ** torch.arange(terms.shape[0], dtype=tau.dtype, device=tau.device).reshape(-1, 1, *tail)
    for column in range(1, COLUMNS):
        chosen = (ends.column[part] == column).reshape(-1, *tail)
        # Where another column is taken, what this one cannot sum must not reach the gradient.
        limit = extrapolate(torch.where(chosen, terms, harmless), column)[column][-1]
        value = torch.where(chosen, limit, value)
    return value
