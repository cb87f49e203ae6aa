"""What a search is asked, and what it hands over."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import FLOOR
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.nesting import current_record
from quadgrad._core.rules import Rule
from quadgrad._core.tolerance import Tolerance

__all__ = ["BLOCK", "Found", "Task", "noise"]

BLOCK = 2**17
"""Nodes evaluated at a time without a ``chunk_size``; more than in a replay, which keeps what f makes."""


@dataclass(slots=True)
class Task:
    """All that stays the same during one search.

    ``block`` is the number of nodes evaluated at a time, ``tile`` that of integrals searched together, ``opening``
    what is known of the first cell already, see :mod:`quadgrad._core.search.kernel.native`.
    """

    integrand: Integrand
    pieces: Pieces
    rule: Rule
    tolerance: Tolerance
    max_nfev: int
    block: int
    tile: int
    batch: int
    opening: Any = None

    def part(self, first: int, last: int) -> Task:
        """Return the task of the integrals from ``first`` to before ``last``."""
        pieces, integrand = self.pieces.part(first, last), self.integrand.part(first, last)
        return replace(self, pieces=pieces, integrand=integrand, batch=last - first)


@dataclass(slots=True)
class Found:
    """What search hands over: the cells sorted by row, and each integral's totals and end.

    ``kind`` is None where all cells have linear nodes.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    cell_error: Tensor
    kind: Tensor | None
    value: Tensor
    error: Tensor
    status: Tensor
    nfev: Tensor

    @staticmethod
    def join(parts: list[Found]) -> Found:
        """Return what was found on the tiles as one."""
        return Found(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Found)))


def noise(task: Any) -> float:
    """Return the relative noise of f: that of its dtype, or the error of integrals inside it."""
    inner = current_record()
    return max(task.tolerance.eps, inner.noise / FLOOR) if inner else task.tolerance.eps
