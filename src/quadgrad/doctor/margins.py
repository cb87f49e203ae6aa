"""How far decisions are from falling otherwise: signed numbers, of which each is zero where one of them does."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quadgrad.doctor.names import SELECTIONS
from quadgrad.doctor.trace import Decision
from quadgrad.doctor.values import Held, same_outcome

__all__ = ["Margins", "margins_of"]

_TINY = 1e-300
_ZERO_IS_POSITIVE = frozenset(("__ge__", "__lt__", "ge", "ge_", "greater_equal", "less", "lt", "lt_"))
"""``x >= 0`` and ``x < 0`` change below zero, others above it; a choice stays what it is among equals."""

_ALL_PAIRS = 64
"""Of so many numbers each is compared with all others: they are at most 32 times as many pairs as neighbours."""


@dataclass(eq=False)
class Margins:
    """The margins of one decision, one of each element (or pair of elements) and level it may reach next.

    ``columns`` are which margins belong to the same choice, or the same integral; ``levels`` where the numbers that
    decide have to get, in rows, ``order`` how those of a selection stood at the point instead. Where the outcome
    alone is known, the margin is positive at the point's and at those ``passed`` since.
    """

    decision: Decision
    columns: Tensor
    levels: Tensor | None = None
    order: Tensor | None = None
    passed: list[Held] = field(default_factory=lambda: [])

    def at(self, decision: Decision) -> Tensor | None:
        """Return the margins in another run; None where it decides on something of another shape."""
        if self.decision.levels == "outcome":
            known = any(same_outcome(each, decision.out) for each in (self.decision.out, *self.passed))
            return torch.tensor([1.0 if known else -1.0], dtype=torch.float64)
        quantity = _numbers(decision)
        here = _numbers(self.decision)
        if quantity is None or here is None or quantity.shape != here.shape:
            return None
        if self.order is not None:
            margins, stays = (
                _ranked(quantity, self.order, self.decision.levels),
                _goes_first(self.order, self.decision.levels),
            )
        else:
            assert self.levels is not None
            margins, stays = quantity.flatten() - self.levels, torch.tensor(self.decision.op in _ZERO_IS_POSITIVE)
        # Those that are zero get the sign of the side to which zero belongs.
        return torch.where(margins == 0.0, torch.where(stays, _TINY, -_TINY).to(margins), margins).flatten()


def margins_of(decision: Decision, integrates: bool) -> Margins | None:
    """Return the margins of a decision at the point; None where it decides on nothing."""
    if decision.levels == "outcome":
        return Margins(decision, torch.zeros(1, dtype=torch.long))
    x = _numbers(decision)
    if x is None or x.numel() == 0:
        return None
    if decision.op in SELECTIONS and decision.levels != "zero":
        order = x.argsort(dim=-1, descending=True, stable=True)
        if decision.levels == "rank-1":  # of equals the first one is the smallest
            order = x.argsort(dim=-1, stable=True).flip(-1)
        columns = torch.arange(_ranked(x, order, decision.levels).numel())
        if decision.levels.startswith("rank"):  # the one of a row that has a rank is one choice
            columns = columns // max(1, x.shape[-1] - 1)
        return Margins(decision, columns, order=order)
    # Of an integral's nodes any one tells of a place that it crosses; of other tensors each element for itself.
    columns = torch.arange(x.numel())
    if integrates and x.ndim > 0:
        columns = columns % (x.shape[-1] if x.ndim > 1 else 1)
    x = x.flatten()
    if decision.levels == "zero":
        return Margins(decision, columns, torch.zeros_like(x))
    shift = 0.5 if decision.levels == "halves" else 0.0
    low = (x - shift).floor() + shift
    below = torch.where(low == x, low - 1.0, low)
    return Margins(decision, columns.repeat(2), torch.stack([low + 1.0, below]))


def _numbers(decision: Decision) -> Tensor | None:
    quantity = decision.quantity
    return None if quantity is None else torch.as_tensor(quantity, dtype=torch.float64)


def _ranked(x: Tensor, order: Tensor, levels: str) -> Tensor:
    """Return how far apart numbers are whose order counts, positive while it is what it was at the point."""
    x = x.gather(-1, order)
    if levels == "order":
        first, second = _pairs(x.shape[-1])
        return x[..., first] - x[..., second]
    if levels.startswith("top"):
        k = int(levels[3:])
        return torch.cat([x[..., : k - 1] - x[..., 1:k], x[..., k - 1 : k] - x[..., k:]], -1)
    rank = int(levels[4:]) % x.shape[-1]
    one = x[..., rank : rank + 1]
    return torch.cat([x[..., :rank] - one, one - x[..., rank + 1 :]], -1)


def _goes_first(order: Tensor, levels: str) -> Tensor:
    """Tell, of each margin of a selection, whether among equals it falls as it did at the point.

    The first of equals is the largest, or the smallest; of other ranks it is not known.
    """
    if levels == "order":
        first, second = _pairs(order.shape[-1])
        return order[..., first] < order[..., second]
    if levels == "rank0":
        return order[..., :1] < order[..., 1:]
    if levels == "rank-1":
        return order[..., -1:] < order[..., :-1]
    return torch.tensor(True)


def _pairs(count: int) -> Tensor:
    """Return which places in an order are compared, ``(2, k)``: all, or of many the neighbours.

    What changes places with a neighbour first may meet one farther away then.
    """
    if count <= _ALL_PAIRS:
        return torch.triu_indices(count, count, 1)
    return torch.stack([torch.arange(count - 1), torch.arange(1, count)])
