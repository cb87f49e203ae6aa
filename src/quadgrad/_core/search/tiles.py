"""Search one tile of integrals after another: what is worked with is sized by a tile, whatever the batch.

Only what is handed over grows with the batch. It is written into columns set aside for all tiles, not
collected in parts, which would be held twice while they are joined.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.intervals import search
from quadgrad._core.search.kernel.opening import suits_native
from quadgrad._core.search.looks.needles import look_again
from quadgrad._core.search.looks.spikes import follow_spikes, join_spikes
from quadgrad._core.search.looks.witnesses import Witnesses, pieces_of
from quadgrad._core.search.looks.witnesses_native import find_witnesses
from quadgrad._core.search.native import search_native
from quadgrad._core.search.start import first_cells
from quadgrad._core.search.task import Found, Places, Tail, join_places

__all__ = ["ask_witnesses", "enter_witnesses", "follow_carried", "look_closer", "search_tiles"]

SPARE = 1.5
"""A column that is full grows to this many times what it must hold."""


def search_tiles(problem: Problem, whole: IntervalPlan | None) -> Found:
    """Search ``problem.tile`` integrals at a time, from given cells or else from whole pieces."""
    if problem.batch <= problem.tile:
        return _search(problem, whole)
    columns: dict[str, _Column] = {}
    places, tails, spikes, needs = list[Places](), list[Tail](), list[Tensor](), list[tuple[int, Tensor | None]]()
    for low, found in _tiles(problem, whole):
        if (here := found.found_places) is not None:
            places.append(Places(here.owner + low, here.place, here.doubt))
        tails += [replace(tail, owner=tail.owner + low) for tail in found.tails or ()]
        needs.append((low, found.need))
        if found.spikes is not None:
            spikes.append(found.spikes + found.spikes.new_tensor([low * problem.pieces.count, 0.0, 0.0]))
        totals = (found.value, found.error, found.status, found.nfev)
        cells = [getattr(found.plan, name) for name in IntervalPlan.always]
        for name, part in zip(_COLUMNS, (*totals, *cells), strict=True):
            if name not in columns:
                columns[name] = _Column(part, problem)
            columns[name].append(part)
    *totals, row, start, stop, error, kind = (columns.pop(name).close() for name in _COLUMNS)
    plan = IntervalPlan.of(problem.rule, problem.pieces, problem.batch_shape, row, start, stop, error, kind)
    value, error, status, nfev = totals
    seen = join_spikes(*spikes)
    need: Tensor | None = None
    for low, part in needs:
        if part is not None:
            need = torch.full_like(error, torch.nan, dtype=torch.float64) if need is None else need
            need[low : low + len(part)] = part
    return Found(
        plan, value, error, status, nfev, tails=tails, found_places=join_places(places), spikes=seen, need=need
    )


_COLUMNS = ("value", "total error", "status", "nfev", *IntervalPlan.always)


def _tiles(problem: Problem, whole: IntervalPlan | None) -> Iterator[tuple[int, Found]]:
    count = problem.pieces.count
    for low in range(0, problem.batch, problem.tile):
        high, first = min(problem.batch, low + problem.tile), None
        if whole is not None:
            edges = torch.searchsorted(whole.row, whole.row.new_tensor([low * count, high * count])).tolist()
            first = whole.part(slice(*edges), low, high)
        found = _search(problem.part(low, high), first)
        yield low, replace(found, plan=replace(found.plan, row=found.plan.row + low * count))


def follow_carried(problem: Problem, found: Found, spikes: Tensor) -> Found:
    """Look around what an earlier search has seen, too, and search on where that is not explained."""
    return follow_spikes(problem, found, _search_cells, spikes)


def _search(problem: Problem, first: IntervalPlan | None) -> Found:
    return look_closer(problem, _search_cells(problem, first))


def look_closer(problem: Problem, found: Found) -> Found:
    """Look for what search may have missed, and search on around what is seen."""
    return follow_spikes(problem, look_again(problem, found, _search_cells), _search_cells)


def ask_witnesses(problem: Problem, first: IntervalPlan | None) -> Witnesses | None:
    """Call f where arguments say that something may be, in the pieces that have cells; None where none says so."""
    find = find_witnesses if suits_native(problem) else Witnesses.of
    return find(problem, pieces_of(problem, first))


def _search_cells(problem: Problem, first: IntervalPlan | None) -> Found:
    witnesses = ask_witnesses(problem, first)
    found = search_native(problem, first, witnesses) if suits_native(problem) else None
    if found is None:
        # No cell at all is a start, too: then a kept plan leaves nothing to do.
        found = search(problem, first_cells(problem, None) if first is None else first, witnesses)
    return enter_witnesses(found, witnesses)


def enter_witnesses(found: Found, witnesses: Witnesses | None) -> Found:
    """Return what was found with what no cell explains of what arguments told, and with what that cost."""
    if witnesses is None:
        return found
    spikes = join_spikes(found.spikes, witnesses.lines(found))
    return replace(found, spikes=spikes, nfev=found.nfev + witnesses.cost)


class _Column:
    """A tensor made from parts, in memory that is set aside once, and anew only where that was too little."""

    def __init__(self, part: Tensor, task: Problem) -> None:
        """Set aside what all tiles need if they are like the first one, which has this part."""
        self.size = 0
        room = math.ceil(part.shape[0] * task.batch / min(task.tile, task.batch))
        self.room = part.new_empty((room, *part.shape[1:]))

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
