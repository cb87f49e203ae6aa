"""The check of a kept plan by the values that its replay computes: one pass gives value, gradient and error.

Replay hands each block of values to :class:`Watch`, which keeps a few numbers a cell; :func:`recheck` sums them up
and says whether every integral may stop. Otherwise search goes on from the plan's cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quadgrad.lanes import largest
from quadgrad.maps import frame
from quadgrad.reduce import total
from quadgrad.search.adaptive import allowed_error
from quadgrad.search.estimate import apply_rule, scale_estimates
from quadgrad.search.task import Found, Task, noise
from quadgrad.status import Status

__all__ = ["Watch", "recheck"]


@dataclass(frozen=True)
class Watch:
    """What replay reports: estimates for unit width, see :func:`quadgrad.search.estimate.apply_rule`."""

    task: Task
    parts: list[tuple[Tensor, ...]] = field(default_factory=list[tuple[Tensor, ...]])

    def estimate(self, y: Tensor, slope: Tensor | None) -> tuple[Tensor, ...]:
        """Return value, error, size and variation of a block of cells from the values at their nodes."""
        rule = self.task.rule.tensors(self.task.pieces.lower.dtype, y.device)
        with torch.no_grad():
            slope = None if slope is None else slope.detach()
            return apply_rule(rule, y.detach(), slope, self.task.rule.order_gap, noise(self.task))[:4]


def recheck(watch: Watch, row: Tensor, start: Tensor, stop: Tensor) -> Found | None:
    """Judge the cells that were replayed; None if an integral has to be refined."""
    task = watch.task
    dtype = task.pieces.lower.dtype
    layout = frame(task.pieces, row, start.to(dtype), stop.to(dtype))
    value, error, size, variation = (torch.cat(column) for column in zip(*watch.parts, strict=True))
    value, error, floor, _ = scale_estimates(value, error, size, variation, layout, noise(task))
    owner = row // task.pieces.count
    sums = [total(t, owner, task.batch) for t in (value, error, floor)]
    allowed = allowed_error(task.tolerance, sums[0], sums[2])
    met = largest(sums[1] / allowed) <= 1.0
    # As in search: where rounding alone exceeds the tolerance, near it is near enough.
    done = largest(sums[1] / torch.maximum(allowed, 2.0 * sums[2])) <= 1.0
    if not bool(done.all()):
        return None
    status = torch.where(met, int(Status.CONVERGED), int(Status.ROUNDOFF))
    nfev = total(torch.ones_like(owner), owner, task.batch) * task.rule.nodes.size
    return Found(row, start, stop, error, sums[0], sums[1], sums[2], status, nfev)
