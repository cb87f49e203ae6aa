"""Search one tile of integrals after another: what is worked with is sized by a tile, whatever the batch.

Only what is handed over grows with the batch. It is written into columns set aside for all tiles, not
collected in parts, which would be held twice while they are joined.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from quadgrad._core.problem import Problem
from quadgrad._core.search.intervals import search
from quadgrad._core.search.kernel.native import search_native, suits_native
from quadgrad._core.search.start import First, first_cells
from quadgrad._core.search.task import Found

__all__ = ["search_tiles"]

SPARE = 1.5
"""A column that is full grows to this many times what it must hold."""


def search_tiles(task: Problem, whole: First | None) -> Found:
    """Search ``task.tile`` integrals at a time, from the cells given for all of them or else from whole pieces."""
    if task.batch <= task.tile:
        return _search(task, whole)
    tiles = _tiles(task, whole)
    first = next(tiles)
    columns = {field.name: _Column(getattr(first, field.name), task) for field in fields(Found)}
    for found in tiles:
        for name, column in columns.items():
            column.append(getattr(found, name))
    return Found(*(columns.pop(field.name).close() for field in fields(Found)))


def _tiles(task: Problem, whole: First | None) -> Iterator[Found]:
    count, device = task.pieces.count, task.pieces.lower.device
    lows = range(0, task.batch, task.tile)
    cuts: list[int] = []
    if whole is not None:
        edges = torch.tensor([low * count for low in lows], device=device)
        cuts = [*torch.searchsorted(whole.row, edges).tolist(), whole.row.shape[0]]
    for i, low in enumerate(lows):
        part = task.part(low, min(task.batch, low + task.tile))
        first = None if whole is None else whole.part(slice(cuts[i], cuts[i + 1]), low * count)
        found = _search(part, first)
        kind = torch.zeros_like(found.row, dtype=torch.int8) if found.kind is None else found.kind
        yield replace(found, row=found.row + low * count, kind=kind)


def _search(task: Problem, first: First | None) -> Found:
    found = search_native(task, first) if suits_native(task) else None
    return found or search(task, first or first_cells(task.pieces, (task.batch,), task.batch, task.rule, None))


class _Column:
    """A tensor made from parts, in memory that is set aside once, and anew only where that was too little."""

    def __init__(self, part: Tensor, task: Problem) -> None:
        """Set aside what all tiles need if they are like the first one, which has this part."""
        self.size = 0
        room = math.ceil(part.shape[0] * task.batch / min(task.tile, task.batch))
        self.room = part.new_empty((room, *part.shape[1:]))
        self.append(part)

    def append(self, part: Tensor) -> None:
        """Add a part."""
        end = self.size + part.shape[0]
        if end > self.room.shape[0]:
            grown = self.room.new_empty((math.ceil(SPARE * end), *part.shape[1:]))
            grown[: self.size] = self.room[: self.size]
            self.room = grown
        self.room[self.size : end] = part
        self.size = end

    def close(self) -> Tensor:
        """Return the parts as one tensor, without room to spare."""
        return self.room if self.size == self.room.shape[0] else self.room[: self.size].clone()
