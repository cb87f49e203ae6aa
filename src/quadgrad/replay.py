"""Plan, integrand and limits to value, in ordinary torch: whatever differentiates torch differentiates this."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quadgrad._torch import forward_mode_open, in_transform
from quadgrad.integrand import Integrand
from quadgrad.maps import Frame, Pieces, frame
from quadgrad.plan import Plan
from quadgrad.reduce import total
from quadgrad.search.recheck import Watch

__all__ = ["BLOCK", "replay_plan"]

BLOCK = 2**17
"""Nodes evaluated at a time where the caller sets no ``chunk``: the arrays stay in the processor's cache."""


def replay_plan(
    integrand: Integrand, plan: Plan, pieces: Pieces, block: int, thrifty: bool, watch: Watch | None = None
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
    """
    dtype = pieces.lower.dtype
    layout = frame(pieces, plan.row, plan.start.to(dtype), plan.stop.to(dtype))
    tau, weight, owner = plan.tau.to(dtype), plan.weight.to(dtype), plan.owner
    size = max(1, block // plan.tau.shape[0])
    thrifty = thrifty and torch.is_grad_enabled() and not (in_transform() or forward_mode_open())
    parts: list[Tensor] = []
    for first in range(0, max(1, len(plan)), size):
        part = slice(first, min(len(plan), first + size))
        if thrifty:
            sums, *estimates = checkpoint(
                _cell_sums, integrand, layout, tau, weight, owner, part, watch,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
        else:
            sums, *estimates = _cell_sums(integrand, layout, tau, weight, owner, part, watch)
        parts.append(sums)
        if watch is not None:
            watch.parts.append(tuple(estimates))
    values = parts[0] if len(parts) == 1 else torch.cat(parts)
    return total(values, owner, plan.batch)


def _cell_sums(
    integrand: Integrand,
    layout: Frame,
    tau: Tensor,
    weight: Tensor,
    owner: Tensor,
    part: slice,
    watch: Watch | None,
) -> tuple[Tensor, ...]:
    """Return the integral over each cell of ``part``, shape ``(n, *event)``, and what ``watch`` makes of it."""
    x, slope = layout.nodes(tau, part)
    y = integrand(x, owner[part])
    event = y.shape[2:]
    estimates = () if watch is None else watch.estimate(y, slope)
    if slope is not None:
        y = y * slope.reshape(slope.shape + (1,) * len(event))
    sums = (weight.to(y.dtype) @ y.flatten(1)).reshape(y.shape[1:])
    return sums * layout.scale[part].reshape(y.shape[1:2] + (1,) * len(event)), *estimates
