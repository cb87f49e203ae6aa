"""Cells of the unit cube in d dimensions, halved along one axis at a time, and where they lie in a domain.

A cell is a *level* and a *place* for each axis, both integers: along it the cell goes from ``place`` to ``place +
1`` times ``2**-level``. So cells of any depth are exact, and what they are in x follows from a domain alone: a box,
or anything else that maps the unit cube (``domain.place(u)``) and says how its cells lie
(``domain.lay_out(cells)``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from quadgrad._core.mesh.protocol import Cells, EvenMesh, EvenMoves
from quadgrad._core.rules import BoxRule

__all__ = [
    "DEEPEST",
    "FARTHEST",
    "HINTS",
    "Boxes",
    "CubeMap",
    "FlatLayout",
    "MappedLayout",
    "NewBoxes",
    "unit_corners",
]

DEEPEST, FARTHEST = 80, 2**50
"""No axis is halved more often, and no cell farther along it: places have to be exact in double precision, which
they are to any depth close to the lower corner, and volumes must not underflow."""

HINTS = 4
"""Rows of a cell's whole numbers before levels and places: integral, can be split, integral among all, axis."""


class CubeMap(Protocol):
    """A domain that is an image of the unit cube."""

    def take(self, owner: Any) -> Any:
        """Return the domains of some integrals, one for each cell."""
        ...

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return x ``(m, n, d)`` at points u of the cube, and the volume element, ``(1 or m, 1 or n)``."""
        ...

    def lay_out(self, cells: Any) -> Any:
        """Return the layout of cells that have an ``owner``, and ``low`` and ``width`` ``(d, n)`` in the cube."""
        ...


@dataclass(slots=True)
class MappedLayout:
    """Cells of the unit cube in domains that map it somehow; one of each for each cell, or one for all.

    ``low`` and ``width`` have shape ``(d, n)``.
    """

    domain: CubeMap
    low: Tensor
    width: Tensor

    def nodes(self, tau: Tensor, part: slice | None = None) -> tuple[Tensor, Tensor]:
        """Return x ``(m, n, d)`` at the nodes ``tau`` ``(m, d)`` of some cells, and f's factor there."""
        part = part or slice(None)  # which torch 2.11 does not compile as a default
        low, width = self.low[:, part], self.width[:, part]
        u = torch.addcmul(low[:, None], width[:, None], tau.T[:, :, None]).movedim(0, 2)
        whole = part.start in (0, None) and (part.stop is None or part.stop >= self.low.shape[1])
        x, factor = (self.domain if whole else self.domain.take(part)).place(u)
        return x, factor * width.prod(0)


@dataclass(slots=True)
class FlatLayout:
    """Cells in boxes without infinite sides: their corner and sides in x, ``(d, n)``, and their volume, ``(1, n)``.

    Nodes stay away from the sides of their cell, and cells are never so narrow that rounding could move one there.
    """

    corner: Tensor
    side: Tensor
    volume: Tensor

    def nodes(self, tau: Tensor, part: slice | None = None) -> tuple[Tensor, Tensor]:
        """Return x ``(m, n, d)`` at the nodes ``tau`` ``(m, d)`` of some cells, and f's factor there."""
        part = part or slice(None)
        corner, side = self.corner[:, part], self.side[:, part]
        # One coordinate after another in memory: sums over the coordinates, and functions of one, are quicker.
        x = torch.addcmul(corner[:, None], side[:, None], tau.T[:, :, None])
        return x.movedim(0, 2), self.volume[:, part]


def unit_corners(level: Tensor, place: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return the lower corners and the widths of cells in the unit cube."""
    width = torch.exp2(-level.to(dtype))
    return place.to(dtype) * width, width


@dataclass(slots=True)
class NewBoxes:
    """Cells on which f was not yet called; ``level`` and ``place`` have shape ``(d, n)``.

    ``row`` is the integral of each among all of the call. The children of one cell stand next to each other.
    ``trust`` ``(n,)`` is what is known of the estimate from a plan.
    """

    owner: Tensor
    row: Tensor
    level: Tensor
    place: Tensor
    rows: int
    trust: Tensor | None = None

    def __len__(self) -> int:
        return self.row.shape[0]

    def part(self, cells: slice) -> NewBoxes:
        """Return some of the cells."""
        trust = None if self.trust is None else self.trust[cells]
        return NewBoxes(
            self.owner[cells], self.row[cells], self.level[:, cells], self.place[:, cells], self.rows, trust
        )


@dataclass(slots=True)
class BoxCells:
    """What a domain asks of cells to lay them out."""

    owner: Tensor
    low: Tensor
    width: Tensor


@dataclass(slots=True)
class BoxPlaces:
    """Where f is called on new cells: ``x`` ``(m, n, d)``, for which integrals, and its factor ``(1 or m, n)``."""

    x: Tensor
    owner: Tensor
    factor: Tensor
    layout: Any


@dataclass
class Boxes(EvenMesh):
    """The geometry of a search over images of the unit cube; see :class:`~.protocol.Mesh`.

    ``domain`` is that of all ``batch`` integrals; those without volume get no cell, and where a plan is searched
    ``alone`` none that has no cell there.
    """

    domain: Any
    rule: BoxRule
    batch: int
    device: torch.device
    alone: bool = False

    def start(self, first: Any) -> Sequence[NewBoxes]:
        """Return the whole cube of every integral, or the cells of a plan."""
        if first is not None:
            kept = ~self.domain.empty.expand(self.batch)[first.owner]
            row = first.owner[kept]
            level, place = (t[kept].T.contiguous() for t in (first.level, first.position))
            if self.alone:
                return [NewBoxes(row, row, level, place, self.rule.rows, first.trust[kept])]
            new = self._whole(torch.isin(torch.arange(self.batch, device=self.device), row, invert=True))
            row, order = torch.cat((row, new.row)).sort(stable=True)
            level, place = (torch.cat(t, 1)[:, order] for t in ((level, new.level), (place, new.place)))
            trust = torch.cat((first.trust[kept], torch.ones_like(first.trust[:1]).expand(len(new))))[order]
            return [NewBoxes(row, row, level, place, self.rule.rows, trust)]
        return [self._whole(torch.ones(self.batch, dtype=torch.bool, device=self.device))]

    def _whole(self, wanted: Tensor) -> NewBoxes:
        """Return the whole cubes of integrals that have any volume."""
        row = (wanted & ~self.domain.empty).nonzero().squeeze(1)
        zero = torch.zeros((self.rule.d, len(row)), dtype=torch.int64, device=self.device)
        return NewBoxes(row, row, zero, zero, self.rule.rows)

    def lay_out(self, new: NewBoxes) -> Any:
        """Return how cells lie in their domains."""
        return self.domain.lay_out(BoxCells(new.row, *unit_corners(new.level, new.place)))

    def place(self, new: NewBoxes) -> BoxPlaces:
        """Place the nodes of cells, and those close to the centres of their faces."""
        layout = self.lay_out(new)
        x, factor = self.nodes(layout)
        return BoxPlaces(x, new.row, factor, layout)

    def nodes(self, layout: Any, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the places of f's values for some cells that are laid out, and its factor there."""
        return layout.nodes(self.rule.tensors(torch.float64, self.device, self.domain.x_dtype).nodes, part)

    def split(self, cells: Cells, moves: EvenMoves, counts: list[int]) -> Sequence[NewBoxes]:
        """Return the halves of the cells that are split."""
        parent = torch.nonzero_static(moves.splits, size=counts[0]).squeeze(1)
        whole = cells.whole.index_select(1, parent)
        axis = whole[3]
        d = self.rule.d
        level, place = whole[HINTS : HINTS + d], whole[HINTS + d :]
        along = axis == torch.arange(d, device=axis.device)[:, None]
        level, place = level + along, torch.where(along, 2 * place, place)
        places = torch.stack((place, place + along), dim=2).flatten(1)
        owner, row = whole[0].repeat_interleave(2), whole[2].repeat_interleave(2)
        return [NewBoxes(owner, row, level.repeat_interleave(2, dim=1), places, self.rule.rows)]

    def part(self, first: int, last: int) -> Boxes:
        """Return the geometry of some of the integrals."""
        return replace(self, domain=self.domain.part(first, last), batch=last - first)
