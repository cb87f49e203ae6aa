"""What a run left at a place of the direction: value, slope, and one number of each operation's result.

A result's number moves with any of its entries. Between two places that are close the first operation whose number
moves much faster than beside them is where the program jumps, whatever it does there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import belongs_to_transform, flatten_tree
from quadgrad.doctor.places import Place
from quadgrad.doctor.values import plain_copy

__all__ = ["Look", "Print", "first_to_jump", "print_of"]

_WIDTH = 4093
"""Results are folded to so many entries, each of which has a weight of its own: orders are seen, too."""

_FASTER, _LEAST = 8.0, 1e-7
"""So much faster than beside it a number moves that jumps; by so much of its size at least."""


class Print(NamedTuple):
    """An operation of a run: its name, its line and its number."""

    op: str
    place: Place
    number: float


class Look(NamedTuple):
    """A run at ``t``: the output, autograd's derivative along the direction, the operations."""

    t: float
    value: float
    slope: float
    prints: Sequence[Print]


def print_of(result: Any) -> float:
    """Return the number of a result."""
    total = 0.0
    for k, leaf in enumerate(flatten_tree(result)[0]):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            total += (1.0 + 0.1 * k) * _weighed(leaf)
        elif isinstance(leaf, int | float | np.ndarray | np.generic) and np.asarray(leaf).dtype.kind in "biuf":
            total += (1.0 + 0.1 * k) * _weighed(torch.as_tensor(np.asarray(leaf, dtype=np.float64)))
    return total


def _weighed(tensor: Tensor) -> float:
    x = plain_copy(tensor)[0] if belongs_to_transform(tensor) else tensor.detach()
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    x = x.flatten().double()
    if len(x) > _WIDTH:
        rest = len(x) % _WIDTH
        x = torch.cat([x[:rest].sum()[None], x[rest:].reshape(-1, _WIDTH).sum(0)])
    weights = 1.0 + torch.arange(len(x), dtype=x.dtype, device=x.device).mul(0.618033988749895).frac()
    return math.log2(2.0 + tensor.numel()) + float(x.nan_to_num(-1.0, 1e30, -1e30) @ weights)


def first_to_jump(near: Look, far: Look, beside: Sequence[Look]) -> Print | None:
    """Return the first operation that jumps between two looks; None if none shows it.

    ``beside`` are looks further out, to both sides: they tell how fast an operation's number moves.
    """
    pairs = [(near if abs(b.t - near.t) < abs(b.t - far.t) else far, b) for b in beside]
    for k, (one, other) in enumerate(zip(near.prints, far.prints, strict=False)):
        if one[:2] != other[:2]:
            return other
        rates = [
            abs(a.prints[k].number - b.prints[k].number) / abs(a.t - b.t)
            for a, b in pairs
            if k < min(len(a.prints), len(b.prints)) and a.prints[k][:2] == b.prints[k][:2]
        ]
        allowed = _FASTER * abs(far.t - near.t) * max(rates, default=0.0) + _LEAST * abs(one.number)
        if rates and abs(other.number - one.number) > allowed:
            return one
    return None
