"""What a search hands over, and how noisy it takes f to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import FLOOR
from quadgrad._core.nesting import current_record
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align

__all__ = ["Found", "noise", "replace_some"]


@dataclass(slots=True)
class Found:
    """What search hands over: the cells, and each integral's totals and end."""

    plan: Any
    value: Tensor
    error: Tensor
    status: Tensor
    nfev: Tensor
    lost: Tensor | None = None
    """Of a sample: at how many points of each integral f was not finite."""
    effective: Tensor | None = None
    """Of a sample: the effective number of points."""
    faint: bool | None = None
    """Of intervals: whether search saw next to nothing of any; None if it cannot tell."""
    seen: Tensor | None = None
    """Of several pieces or components: the sums of the sizes of cells' values, ``(pieces, components)``."""


def replace_some(found: Found, again: Found, who: Tensor) -> Found:
    """Return what was found, and of some integrals ``(batch,)`` what was found when they were searched again."""
    plan = found.plan.take(~who[found.plan.owner]).join(again.plan)
    value = torch.where(align(who, found.value), again.value, found.value)
    error, status = (torch.where(who, getattr(again, name), getattr(found, name)) for name in ("error", "status"))
    return Found(plan, value, error, status, found.nfev + torch.where(who, again.nfev, 0))


def noise(problem: Problem) -> float:
    """Return the relative noise of f: that of its dtype, or the error of integrals inside it."""
    inner = current_record()
    return max(problem.tolerance.eps, inner.noise / FLOOR) if inner else problem.tolerance.eps
