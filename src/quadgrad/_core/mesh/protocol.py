"""What the search asks of a geometry: nodes in its cells, how cells are split, and what that costs.

A geometry knows neither tolerances nor integrals' sums: which cells are split, and when that ends, is decided in
:mod:`quadgrad._core.search`. What f's values say about a cell comes from an *estimate* that is made for the
geometry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

__all__ = ["Cells", "Domain", "Estimate", "EvenMesh", "EvenMoves", "Mesh", "Moves", "NewCells", "Places"]


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


@dataclass(slots=True)
class EvenMoves:
    """Cells ``splits`` ``(n,)`` that get as many ``children`` each, of so many ``rows``; see :class:`Moves`."""

    splits: Tensor
    children: int
    rows: int

    @property
    def price(self) -> Tensor:
        """What that costs."""
        cost = [[self.children], [self.children * self.rows], [0], [0]]
        return self.splits * self.splits.new_tensor(cost, dtype=torch.int64)

    def restrict(self, keep: Tensor, afford: Tensor) -> Tensor:
        """Split only cells where ``keep``; return how many these are."""
        self.splits = self.splits & keep.to(torch.bool)
        return self.splits.sum()[None]


class EvenMesh:
    """What geometries share of which no cells share places, and all are split into as many; see :class:`Mesh`."""

    rule: Any
    children = 2

    @property
    def rows(self) -> int:
        """At how many places f is called for each cell."""
        return self.rule.rows

    def beside(self, new: Any) -> None:
        """Need no places that several cells share."""
        return

    def enter(self, new: Any, places: Any, y: Tensor) -> None:
        """Take note of nothing."""

    def propose(self, cells: Cells, marked: Tensor) -> EvenMoves:
        """Split the marked cells."""
        return EvenMoves(marked, self.children, self.rows)

    def recall(self, cells: Cells) -> Cells:
        """Return cells as they were estimated."""
        return cells


class Domain(ABC):
    """Where integrals are taken, as it follows from tensors of one row for each integral, the ``marks``."""

    points: ClassVar[None] = None
    count: ClassVar[int] = 1
    shareable: ClassVar[bool] = False

    @property
    @abstractmethod
    def marks(self) -> tuple[Tensor, ...]:
        """All places that can carry a gradient."""

    @abstractmethod
    def with_marks(self, marks: tuple[Tensor, ...]) -> Self:
        """Return the domain with others in their place."""

    @abstractmethod
    def inner_points(self, batch: int, shift: float = 0.0) -> Tensor:
        """Return a harmless point of each integral, ``(batch, d)``."""

    def part(self, first: int, last: int) -> Self:
        """Return the domain of the integrals from ``first`` to before ``last``."""
        return self.with_marks(tuple(mark[first:last] for mark in self.marks))

    def detach(self) -> Self:
        """Return the domain without gradient."""
        return self.with_marks(tuple(mark.detach() for mark in self.marks))

    def pieces(self) -> Self:
        """Return what nodes are placed on: the domain itself."""
        return self

    def tensors(self) -> list[Tensor]:
        """Return what may carry a gradient, for a replay: the marks."""
        return [*self.marks]

    def with_tensors(self, tensors: list[Tensor]) -> Self:
        """Return the domain with others in their place."""
        return self.with_marks(tuple(tensors))


class Estimate(Protocol):
    """What f's values ``(rows, n, *event)`` say about new cells, given the relative noise of one value of f."""

    def __call__(self, new: Any, places: Any, y: Tensor, noise: float) -> Cells: ...
