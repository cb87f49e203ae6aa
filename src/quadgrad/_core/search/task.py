"""What a search hands over, and how noisy it takes f to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from quadgrad._core.estimates.null_rules import FLOOR
from quadgrad._core.nesting import current_record
from quadgrad._core.problem import Problem

__all__ = ["Found", "Places", "Tail", "noise"]


@dataclass(frozen=True)
class Places:
    """Places inside the intervals of some integrals, ``(k,)``, where search found f rough.

    Each leaves something in ``doubt`` of its integral.
    """

    owner: Tensor
    place: Tensor
    doubt: Tensor


@dataclass(frozen=True)
class Tail:
    """A series towards an end of a piece: cells, the terms' codes, its limit and error, and where the rest ends.

    ``edge`` is a fraction of the piece, measured from the ``upper`` end, or from the lower one.
    """

    owner: int
    piece: int
    upper: bool
    start: Tensor
    stop: Tensor
    kind: int
    code: Tensor
    errors: Tensor
    value: float
    error: float
    edge: float
    nfev: int


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
    tails: list[Tail] | None = field(default=None, kw_only=True)
    """Series towards ends of pieces, as search has found out."""
    found_places: Places | None = field(default=None, kw_only=True)
    """Where f is rough, as search has found out: :mod:`quadgrad._core.search.piles`."""
    faint: bool | None = field(default=None, kw_only=True)
    """Of intervals: whether search saw next to nothing of any; None if it cannot tell."""
    seen: Tensor | None = field(default=None, kw_only=True)
    """Of several pieces or components: the sums of the sizes of cells' values, ``(pieces, components)``."""


def noise(problem: Problem) -> float:
    """Return the relative noise of f: that of its dtype, or the error of integrals inside it."""
    inner = current_record()
    return max(problem.tolerance.eps, inner.noise / FLOOR) if inner else problem.tolerance.eps
