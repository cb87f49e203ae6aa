"""The cells of an interval: their columns, and the numbers that say where one may be bisected, and where not."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import Layout
from quadgrad._core.rules.rule import LOOKS

__all__ = ["BESIDE", "BESIDE_END", "WHOLE", "NewIntervals", "bisect", "locate"]

STEP = 2.0**-6
"""The part of a cell at an end that is left to the extrapolation when the cell is refined."""

BESIDE = 2
"""Calls of f for a cell that a search starts with beside those at its nodes: at its edges."""

WHOLE = BESIDE + LOOKS
"""The same for a whole piece: at its edges and at :data:`LOOKS` places between the nodes."""

BESIDE_END = WHOLE + 1
"""The same for a cell with logarithmic nodes: at :data:`LIMIT`, too."""

LIMIT = 2.0**-44
"""How close to a limit f is called for the first cell, as a part of it: a thin layer there must not hide.

At least :data:`ULPS` eps, and not at all where rounding would move it onto the limit."""

ULPS = 16.0


@dataclass(slots=True)
class NewIntervals:
    """New cells, all of which have evenly spread nodes, or all of which have logarithmic ones.

    ``row`` is the piece among all pieces of the call, ``start`` and ``stop`` are fractions of it. ``at_edges``
    ``(2, n)`` is f there, as one number, times the slope; NaN where it is not known. It is to be asked for
    between the cells ``asked`` for and the ones before them. ``rows`` is at how many places f is called for each.
    """

    owner: Tensor
    row: Tensor
    start: Tensor
    stop: Tensor
    at_edges: Tensor
    rows: int
    logarithmic: bool
    asked: Tensor | None
    layout: Layout

    def __len__(self) -> int:
        return self.row.shape[0]

    def part(self, cells: slice) -> NewIntervals:
        """Return some of the cells."""
        columns = {name: getattr(self, name)[..., cells] for name in ("owner", "row", "start", "stop", "at_edges")}
        return replace(self, **columns, layout=self.layout.part(cells))


def locate(mask: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` true entries; the count being known, no device is waited for."""
    return torch.nonzero_static(mask, size=count).squeeze(1)


def bisect(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Halve cells: start and stop of the two children of each, which stand next to each other.

    Halves of a whole piece are measured from different ends, see :mod:`quadgrad._core.mesh.interval`.
    """
    middle = 0.5 * (start + stop)
    turn = (middle >= 0.5).to(middle.dtype)
    return (
        torch.stack((start, middle - turn), dim=1).flatten(),
        torch.stack((middle, stop - turn), dim=1).flatten(),
    )
