"""When the cells of a kept plan are merged: as soon as that may help, and ever more seldom where it did not.

What is merged is what the next call starts from: if it was too much, search refines it again, and merging is left
alone for longer. So nothing is evaluated only to find out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quadgrad._core.plans.cells import CellPlan
from quadgrad._core.search.kernel.merging import merge_native

__all__ = ["Merging", "merge_worthwhile"]

WORTH = 0.1
"""Merging must save this share of an integral's cells to be tried, and to be kept up."""

FIRST, PAUSE, LONGER = 3, 10, 3
"""Calls until merging is looked at; until it is tried again where it did not help; by how much longer each time."""

GROWN = 1.25
"""An integral that has this many times the cells it had when merging did not help may be merged at once."""


@dataclass
class Merging:
    """For each integral ``(batch,)``: calls to wait, how long the last wait was, and numbers of cells.

    ``before`` is that before a merger which is on trial, else 0, ``failed`` that when one did not help, ``size``
    that after the last call.
    """

    wait: Tensor
    pause: Tensor
    before: Tensor
    failed: Tensor
    size: Tensor

    def __post_init__(self) -> None:
        """Know of no calls in which nothing is due if cells stay, nor of any that were not counted."""
        self._idle = self._missed = 0

    @staticmethod
    def start(batch: int, device: torch.device) -> Merging:
        """Return what holds for integrals that were searched from scratch."""
        zero = torch.zeros(batch, dtype=torch.int64, device=device)
        return Merging(zero + FIRST, zero + PAUSE, zero, zero, zero)

    def to(self, device: torch.device) -> Merging:
        """Return the same on another device."""
        if self.wait.device == device:
            return self
        return Merging(*(column.to(device) for column in self.columns()))

    def columns(self) -> tuple[Tensor, ...]:
        """Return all of it."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def rest(self, stays: bool) -> bool:
        """Tell whether there is nothing to do after a call whose cells are those it started from, if they are."""
        rests = stays and self._idle > 0
        self._idle, self._missed = self._idle - rests, self._missed + rests
        return rests

    def merge(self, plan: CellPlan, allowed: Tensor) -> tuple[CellPlan, int]:
        """Return the plan to start the next call from, and how many mergers have proved worth it since the last."""
        owner, batch = plan.owner, plan.batch
        size = torch.bincount(owner, minlength=batch)
        trial = self.before > 0
        useless = trial & (size > (1.0 - WORTH) * self.before)
        proved = trial & ~useless
        self.failed = torch.where(useless, size, self.failed)
        grown = (size > self.size) & ~useless & (size > GROWN * self.failed) & (self.size > 0)
        self.pause = torch.where(proved | grown, PAUSE, torch.where(useless, LONGER * self.pause, self.pause))
        wait = torch.where(useless, self.pause // LONGER, self.wait - 1 - self._missed)
        self.wait, self.before = torch.where(proved | grown, 0, wait), torch.zeros_like(size)
        due = self.wait <= 0
        if bool(due.any()):
            self.wait = torch.where(due, FIRST, self.wait)
            plan, size = self._try(plan, torch.where(due, allowed, -1.0), size)
        self.size, self._missed = size, 0
        tries, next_due, proven = torch.stack((self.before.sum(), self.wait.min(), proved.sum())).tolist()
        self._idle = 0 if tries else max(0, next_due - 1)
        return plan, proven

    def _try(self, plan: CellPlan, allowed: Tensor, size: Tensor) -> tuple[CellPlan, Tensor]:
        """Merge what seems to be finer than needed, of those integrals of which that saves enough."""
        merged, fewer = merge_native(plan, allowed, WORTH, size) or merge_worthwhile(plan, allowed, WORTH, size)
        self.before = torch.where(fewer < size, size, 0)
        return merged, fewer


def merge_worthwhile(plan: CellPlan, allowed: Tensor, worth: float, size: Tensor) -> tuple[CellPlan, Tensor]:
    """Return a plan with cells merged where that saves at least the part ``worth``, and the integrals' sizes then.

    Each has ``size`` cells and may have an error ``allowed``, ``(batch,)``; where that is below 0 it is left alone.
    """
    merged = plan.coarser(allowed)
    if len(merged) == len(plan):
        return plan, size
    fewer = torch.bincount(merged.owner, minlength=plan.batch)
    helps = fewer <= (1.0 - worth) * size
    if not bool(helps.all()):
        merged = plan.take(~helps[plan.owner]).join(merged.take(helps[merged.owner]))
    return merged, torch.where(helps, fewer, size)
