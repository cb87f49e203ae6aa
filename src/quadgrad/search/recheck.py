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
from quadgrad.search.cells import bisect
from quadgrad.search.estimate import apply_rule, scale_estimates
from quadgrad.search.task import SHARE, Found, Task, noise
from quadgrad.status import Status

__all__ = ["Watch", "combine", "recheck", "too_coarse"]


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


def recheck(watch: Watch, row: Tensor, start: Tensor, stop: Tensor) -> tuple[Found, Tensor]:
    """Judge the cells that were replayed; return what was found, and which integrals are done, ``(batch,)``."""
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
    status = torch.where(met, int(Status.CONVERGED), int(Status.ROUNDOFF))
    nfev = total(torch.ones_like(owner), owner, task.batch) * task.rule.nodes.size
    return Found(row, start, stop, largest(error), sums[0], sums[1], sums[2], status, nfev), done


def too_coarse(found: Found, task: Task, again: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cells of the integrals ``again``, halved where search would halve them, sorted by row."""
    owner = found.row // task.pieces.count
    mine = again[owner].nonzero().squeeze(1)
    row, start, stop, owner = (t[mine] for t in (found.row, found.start, found.stop, owner))
    allowed = largest(allowed_error(task.tolerance, found.value, found.floor))
    count = total(torch.ones_like(owner), owner, task.batch).clamp_min(1)
    split = found.cell_error[mine] > SHARE * (allowed / count)[owner]
    halves = bisect(start[split], stop[split])
    row = torch.cat((row[~split], row[split].repeat_interleave(2)))
    row, order = row.sort(stable=True)
    start, stop = (torch.cat((t[~split], h))[order] for t, h in zip((start, stop), halves, strict=True))
    return row, start, stop


def combine(first: Found, second: Found, again: Tensor, pieces: int) -> Found:
    """Return ``second`` for the integrals ``again``, ``first`` for the others."""
    stays = ~again[first.row // pieces]
    row, order = torch.cat((first.row[stays], second.row)).sort(stable=True)
    ends = ((first.start, second.start), (first.stop, second.stop), (first.cell_error, second.cell_error))
    start, stop, cell_error = (torch.cat((old[stays], new))[order] for old, new in ends)
    tail = (1,) * (first.value.ndim - 1)
    value = torch.where(again.reshape(-1, *tail), second.value, first.value)
    totals = ((first.error, second.error), (first.floor, second.floor), (first.status, second.status))
    error, floor, status = (torch.where(again, new, old) for old, new in totals)
    return Found(
        row, start, stop, cell_error, value, error, floor, status, first.nfev + torch.where(again, second.nfev, 0)
    )
