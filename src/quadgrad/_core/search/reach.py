"""Search on between the places that a search has found: jumps, kinks and singularities that nobody marked.

They become breakpoints of the integrals in which they were found, which are searched afresh: beside a breakpoint
nothing of what was wrong is left, and an end of a piece has nodes made for singularities. The others keep their cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.start import first_cells
from quadgrad._core.search.task import Found, Places
from quadgrad._core.search.tiles import search_tiles
from quadgrad._core.status import Status

__all__ = ["search_reaching"]

AGAIN = 4
"""Searches at most after the first: not all places show at once."""

Search = Callable[[Problem, "IntervalPlan | None"], Found]


def search_reaching(problem: Problem, search: Search, plan: IntervalPlan | None) -> Found:
    """Search a problem, from the cells of a plan if one is given, and between the places that this finds."""
    places = None if plan is None or plan.places is None else plan.places.expand(problem.batch, -1)
    stale = places is not None
    found = search(replace(problem.with_found(places), reaches=True), plan)
    for trial in range(AGAIN):
        if found.found_places is None:
            break
        found, places = _between(problem, found, places, trial + 1 < AGAIN, stale)
    found.plan = found.plan.with_places(places)
    return found


def _between(
    problem: Problem, found: Found, places: Tensor | None, reaches: bool, stale: bool
) -> tuple[Found, Tensor | None]:
    """Search the integrals again in which places were found."""
    new = found.found_places
    assert new is not None
    stopped = found.status == int(Status.MAX_NFEV)
    again = torch.zeros_like(stopped)
    again[new.owner] = True
    again &= stopped
    mine = again[new.owner]
    new = Places(new.owner[mine], new.place[mine], new.strong[mine])
    found.found_places = None
    if not len(new.owner):
        return found, places
    spent = int(found.nfev[again].max())
    old = places.masked_fill(again[:, None], torch.nan) if places is not None and stale else places
    places = _join(old, new, problem.batch)
    marked = problem.with_found(places)
    left, least = problem.max_nfev - spent, (problem.rule.nodes.size + 8) * marked.pieces.count
    if left <= least:
        return found, old
    whole = first_cells(marked, None)
    mended = search_tiles(
        replace(marked, budget=left, opening=None, reaches=reaches), whole.take(again[whole.owner])
    )
    kept = found.plan.take(~again[found.plan.owner])
    kept = replace(kept, pieces=marked.pieces.count, row=kept.owner * marked.pieces.count + kept.piece, places=None)
    value = torch.where(again.reshape(-1, *(1,) * (found.value.ndim - 1)), mended.value, found.value)
    error, status = (torch.where(again, getattr(mended, name), getattr(found, name)) for name in ("error", "status"))
    nfev = found.nfev + torch.where(again, mended.nfev, 0)
    return Found(kept.join(mended.plan), value, error, status, nfev, found_places=mended.found_places), places


def _join(places: Tensor | None, new: Places, batch: int) -> Tensor:
    """Return places ``(batch, k)`` with new ones among them, ascending, NaN last."""
    order = new.place.argsort(stable=True)
    order = order[new.owner[order].argsort(stable=True)]
    owner, place = new.owner[order], new.place[order]
    count = torch.bincount(owner, minlength=batch)
    column = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner]
    table = place.new_full((batch, int(count.max())), torch.nan)
    table[owner, column] = place
    if places is not None:
        table = torch.cat((places.to(table.dtype), table), dim=1)
    table = table.sort(dim=1).values
    # Equal ones say the same.
    twice = torch.nn.functional.pad(table[:, 1:] == table[:, :-1], (1, 0))
    table = table.masked_fill(twice, torch.nan).sort(dim=1).values
    return table[:, : int((~table.isnan()).sum(1).max())]
