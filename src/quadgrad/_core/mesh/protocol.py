"""What the search asks of a geometry: nodes in its cells, how cells are split, and what that costs.

A geometry knows neither tolerances nor integrals' sums: which cells are split, and when that ends, is decided in
:mod:`quadgrad._core.search`. What f's values say about a cell comes from an *estimate* that is made for the
geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Cells", "Estimate", "Mesh", "Moves", "NewCells", "Places"]


@dataclass(slots=True)
class Cells:
    """Cells and what was estimated on them, one column each: few tensors, so that to choose and join them is quick.

    Attributes
    ----------
    sums : Tensor, shape (components + 2, n)
        The value's real components, the error, and the part of it that rounding explains, which no splitting mends.
    whole : Tensor of int64, shape (2 + more, n)
        The integral among those still running; 1 where splitting can help, -1 where it would if cells could be
        narrower, else 0; and what the geometry adds.
    real : Tensor of float64, shape (any, n)
        Where the cells are, and hints for splitting them: the geometry's own business.
    """

    sums: Tensor
    whole: Tensor
    real: Tensor

    def __len__(self) -> int:
        return self.sums.shape[1]

    def take(self, index: Tensor) -> Cells:
        """Return the cells at ``index``."""
        return Cells(*(t.index_select(1, index) for t in (self.sums, self.whole, self.real)))

    @staticmethod
    def join(parts: list[Cells]) -> Cells:
        """Return all parts as one."""
        if len(parts) == 1:
            return parts[0]
        columns = ([part.sums for part in parts], [part.whole for part in parts], [part.real for part in parts])
        return Cells(*(torch.cat(column, dim=1) for column in columns))


class NewCells(Protocol):
    """Cells on which f was not yet called; ``owner`` is the integral of each among those still running.

    ``rows`` is at how many places f is called for each.
    """

    owner: Tensor
    rows: int

    def __len__(self) -> int: ...

    def part(self, cells: slice) -> Any:
        """Return some of the cells."""
        ...


class Places(Protocol):
    """Where f is to be called: ``x`` ``(m, n)`` or ``(m, n, d)``, and for which integrals of the call, ``(n,)``."""

    x: Tensor
    owner: Tensor


class Moves(Protocol):
    """How the cells marked for it would be split.

    ``price`` ``(4, n)``, int64, is what that costs each cell at least: how many children, how many nodes; and how
    many children and nodes more if the integral can afford what the geometry thinks best. ``splits`` ``(n,)`` tells
    which cells are split.
    """

    price: Tensor

    @property
    def splits(self) -> Tensor: ...

    def restrict(self, keep: Tensor, afford: Tensor) -> Tensor:
        """Split only cells where ``keep``, and the best way only where ``afford``; return numbers that count them.

        The first is how many cells are split. Search hands all numbers back to :meth:`Mesh.split`, read by the
        host.
        """
        ...


class Mesh(Protocol):
    """A geometry, with the domains of all integrals of a call."""

    def start(self, first: Any) -> Sequence[NewCells]:
        """Return the cells to start with, in groups that differ in their nodes."""
        ...

    def beside(self, new: Any) -> Places | None:
        """Return places ``(k,)`` that several cells share, where f is needed, too."""
        ...

    def enter(self, new: Any, places: Any, y: Tensor) -> None:
        """Take note of f there, ``(k, *event)``."""
        ...

    def place(self, new: Any) -> Places:
        """Place the nodes of cells."""
        ...

    def propose(self, cells: Cells, marked: Tensor) -> Moves:
        """Say how the marked cells would be split."""
        ...

    def split(self, cells: Cells, moves: Any, counts: list[int]) -> Sequence[NewCells]:
        """Return the children of the cells that are split; ``counts`` as :meth:`Moves.restrict` returned it."""
        ...

    def recall(self, cells: Cells) -> Cells:
        """Return cells that had settled as they are taken back."""
        ...


class Estimate(Protocol):
    """What f's values ``(rows, n, *event)`` say about new cells, given the relative noise of one value of f."""

    def __call__(self, new: Any, places: Any, y: Tensor, noise: float) -> Cells: ...
