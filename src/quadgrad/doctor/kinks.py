"""Decisions that can only bend the output: told from runs at the point and beside it, without one at a crossing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quadgrad.doctor.trace import Decision
from quadgrad.doctor.values import plain_copy

__all__ = ["bends_only", "gap_between"]

_ORDERS = (1, 2, 3)
"""Powers of what decides that the gap between two branches may be proportional to: a relu's 1, a Huber loss's 2."""

_GAPS: dict[str, Callable[..., Any]] = {
    "where": lambda mask, a, b: a - b,
    "masked_fill": lambda x, mask, value: x - value,
    "mul": lambda a, b: b if a.dtype == torch.bool else a,
}
_GAPS["__mul__"] = _GAPS["__rmul__"] = _GAPS["mul"]


def gap_between(name: str, args: Any, kwargs: Any, mask: Tensor) -> Tensor | None:
    """Return how far apart the values are between which an operation chooses by a mask; None if it does not."""
    if name not in _GAPS or kwargs or mask.dtype != torch.bool:
        return None
    if name == "where" and len(args) == 3 and args[1] is mask:  # x.where(mask, y)
        args = (args[1], args[0], args[2])
    with torch.no_grad():
        try:
            gap = _GAPS[name](*args)
        except (TypeError, AttributeError):
            return None
    return plain_copy(gap)[0] if isinstance(gap, Tensor) and gap.is_floating_point() else None


def bends_only(point: Decision, sides: tuple[Decision, Decision]) -> Tensor | None:
    """Return which elements of a decision only bend the output: what they choose between comes together there.

    The gap is a power of what decides, times a constant: at the point, and to both sides of it. None where
    that cannot be told; of what was not read nothing does more than bend.
    """
    runs = (point, *sides)
    if not any(d.read or d.gaps for d in runs):
        return torch.ones((), dtype=torch.bool)
    margins = [d.quantity for d in runs]
    known = point.levels == "zero" and all(isinstance(m, Tensor) for m in margins)
    if not known or any(d.read or len(d.gaps) != len(point.gaps) for d in runs):
        return None
    fits = [_is_power([d.gaps[i] for d in runs], margins) for i in range(len(point.gaps))]
    return torch.stack([each for each in fits if each is not None]).all(0) if None not in fits else None


def _is_power(gaps: list[Tensor], margins: list[Tensor]) -> Tensor | None:
    if any(each.shape != margins[0].shape for each in (*gaps, *margins)):
        return None
    gap, margin = gaps[0].double(), margins[0]
    eps = torch.finfo(gaps[0].dtype).eps
    powers: list[Tensor] = []
    for order in _ORDERS:
        fits = torch.ones_like(margin, dtype=torch.bool)
        for there, moved in zip(gaps[1:], margins[1:], strict=True):
            change = (moved**order - margin**order).abs()
            off = (there.double() * margin**order - gap * moved**order).abs()
            # Of what hardly moves nothing is told; what stands still does not cross.
            told = (change > 1e-9 * margin.abs() ** order) | (moved == margin)
            fits &= told & (off <= gap.abs() * (1e-6 * change + 8.0 * eps * margin.abs() ** order))
        powers.append(fits)
    return torch.stack(powers).any(0)
