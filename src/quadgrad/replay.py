"""Plan, integrand and limits to value, in ordinary torch: whatever differentiates torch differentiates this."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quadgrad._torch import forward_mode_open, in_transform
from quadgrad.extrapolation import COLUMNS, extrapolate
from quadgrad.integrand import Integrand
from quadgrad.maps import EndFrame, Frame, Pieces, end_frame, frame
from quadgrad.plan import Ends, Plan
from quadgrad.reduce import total

__all__ = ["BLOCK", "replay_plan"]

BLOCK = 2**17
"""Nodes evaluated at a time where the caller sets no ``chunk``: the arrays stay in the processor's cache."""


def replay_plan(integrand: Integrand, plan: Plan, pieces: Pieces, block: int, thrifty: bool) -> Tensor:
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
    """
    size = max(1, block // plan.tau.shape[0])
    if not thrifty or not torch.is_grad_enabled() or in_transform() or forward_mode_open():
        return _replay(integrand, plan, pieces, size, thrifty=False)
    parts: list[Tensor] = []
    for cells, low, high in _cut(plan, size):
        part = (integrand, plan, pieces, size, cells, low, high)
        if cells.stop - cells.start <= size:
            parts.append(checkpoint(_replay_part, *part, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_replay_part(*part, thrifty=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cut(plan: Plan, size: int) -> Iterator[tuple[slice, int, int]]:
    """Cut a plan between integrals into parts of at most ``size`` cells; one integral alone may have more."""
    low = first = 0
    while low < plan.batch:
        high, last = plan.batch, len(plan)
        if last - first > size:
            high = max(low + 1, int(plan.row[first + size]) // plan.pieces)
            last = int(torch.searchsorted(plan.row, high * plan.pieces))
        yield slice(first, last), low, high
        low, first = high, last


def _replay_part(
    integrand: Integrand,
    plan: Plan,
    pieces: Pieces,
    size: int,
    cells: slice,
    low: int,
    high: int,
    thrifty: bool = False,
) -> Tensor:
    """Return the sums of the integrals from ``low`` to before ``high``, which have these cells."""
    part = plan.part(cells, low, high)
    return _replay(integrand.part(low, high), part, pieces.part(low, high), size, thrifty)


def _replay(integrand: Integrand, plan: Plan, pieces: Pieces, size: int, thrifty: bool) -> Tensor:
    dtype = pieces.lower.dtype
    owner, start, stop = plan.owner, plan.start.to(dtype), plan.stop.to(dtype)
    tau, weight, ends = plan.tau.to(dtype), plan.weight.to(dtype), plan.ends
    if ends is None:
        layout = frame(pieces, plan.row, start, stop)
        values = _in_blocks(len(plan), size, thrifty, _cell_sums, integrand, layout, tau, weight, owner)
        return total(values, owner, plan.batch)
    row, linear, close = plan.row, ends.others, ends.cell
    layout = frame(pieces, row[linear], start[linear], stop[linear])
    values = _in_blocks(
        linear.shape[0], size, thrifty, _cell_sums, integrand, layout, tau, weight, owner[linear]
    )  # fmt: skip
    end = end_frame(pieces, row[close], start[close], stop[close])
    beyond = _in_blocks(
        close.shape[0], size, thrifty, _end_sums, integrand, end, tau, weight, owner[close], ends
    )  # fmt: skip
    return total(torch.cat((values, beyond)), torch.cat((owner[linear], owner[close])), plan.batch)


def _in_blocks(count: int, size: int, thrifty: bool, sums: Callable[..., Tensor], *given: Any) -> Tensor:
    """Return ``sums(*given, part)`` for all cells, ``size`` of them at a time."""
    parts: list[Tensor] = []
    for first in range(0, max(1, count), size):
        part = slice(first, min(count, first + size))
        if thrifty:
            parts.append(checkpoint(sums, *given, part, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(sums(*given, part))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cell_sums(
    integrand: Integrand, layout: Frame, tau: Tensor, weight: Tensor, owner: Tensor, part: slice
) -> Tensor:
    """Return the integral over each cell of ``part``, shape ``(n, *event)``."""
    x, slope = layout.nodes(tau, part)
    y = integrand(x, owner[part])
    event = y.shape[2:]
    if slope is not None:
        y = y * slope.reshape(slope.shape + (1,) * len(event))
    sums = (weight.to(y.dtype) @ y.flatten(1)).reshape(y.shape[1:])
    return sums * layout.scale[part].reshape(y.shape[1:2] + (1,) * len(event))


def _end_sums(
    integrand: Integrand, layout: EndFrame, tau: Tensor, weight: Tensor, owner: Tensor, ends: Ends, part: slice
) -> Tensor:
    """Return the integral over each cell of ``part`` that closes in on an end, shape ``(n, *event)``."""
    x, slope = layout.nodes(tau, part)
    y = integrand(x, owner[part])
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
