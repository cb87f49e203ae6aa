"""What single nodes saw and no cell explains: f is called closer and closer around them.

Search keeps a value that its cells resolve. A value that one node alone saw, the foot of a narrow feature, may lie
between the nodes of all cells that are accepted in the end, or be so small that their errors meet the tolerance. So
each such place is looked at once, when all else is done: unless cells narrower than the distance of nodes at that
time lie around it, f is compared with the interpolating polynomials of the cells there. See ADR 45.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import BESIDE_END, WHOLE, bisect
from quadgrad._core.mesh.interval import LINEAR, lay_out
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import total
from quadgrad._core.search.kernel.opening import suits_native
from quadgrad._core.search.looks.gaps import MATTERS, ROUNDING, find_gaps
from quadgrad._core.search.looks.open_spikes import CellMap, Pairs, find_open, from_lower, rank
from quadgrad._core.search.looks.spikes_native import find_gaps_native, find_open_native
from quadgrad._core.search.task import Found, join_places, replace_some
from quadgrad._core.status import Status

__all__ = ["cells_around", "follow_spikes", "join_spikes", "search_from"]

OCTAVES = 10
"""So many times is the distance halved in which f is called on both sides."""

HIGHER = 100.0
"""What is so many times as high beside a place as there is looked for again where it is highest."""

PASSES = 5
"""How often the places of one search are followed."""

SHARES = 16
"""What a search has spent is counted in so many parts of the budget."""

Search = Callable[[Problem, IntervalPlan], Found]


def follow_spikes(problem: Problem, found: Found, search: Search, carried: Tensor | None = None) -> Found:
    """Look around what single nodes saw, and search on where f is more than cells make of it.

    Also around what was ``carried`` over from a search on other pieces. What was seen of integrals that are to be
    searched again from places that were found is left for that.
    """
    kept = None
    if carried is not None and len(found.plan):
        pairs = find_open(found.plan, carried, found.status == int(Status.CONVERGED), carried=True)
        if pairs is not None:
            others, found = found.spikes, _follow(problem, found, pairs, search)
            found.spikes = join_spikes(found.spikes, others)
    for _ in range(PASSES):
        if found.spikes is None or 0 in found.value.shape or not len(found.plan):
            break
        pairs = _find_open(problem, found, found.spikes)
        if pairs is None:
            break
        if found.found_places is not None:
            waits = found.status != int(Status.CONVERGED)
            kept = join_spikes(kept, found.spikes[waits[found.spikes[:, 0].long() // problem.pieces.count]])
        found = _follow(problem, found, pairs, search)
    return found if kept is None else replace(found, spikes=join_spikes(found.spikes, kept))


def _find_open(problem: Problem, found: Found, spikes: Tensor) -> Pairs | None:
    if suits_native(problem):
        return find_open_native(found.plan, spikes, found.status)
    return find_open(found.plan, spikes, found.status == int(Status.CONVERGED))


def _follow(problem: Problem, found: Found, pairs: Pairs, search: Search) -> Found:
    """Call f around places, and search on where cells do not explain what it is there."""
    plan, tolerance = found.plan, problem.tolerance
    tau, away, scale, inside = _places(plan, pairs)
    owner = plan.owner[pairs.cell]
    price = torch.zeros_like(found.nfev).index_add_(
        0, owner, torch.full_like(owner, len(tau) + problem.rule.nodes.size)
    )
    afford = found.nfev + price <= problem.max_nfev
    status = found.status.masked_fill(~afford, int(Status.MAX_NFEV))
    found = replace(found, status=status, nfev=found.nfev + price * afford, spikes=None)
    kept = afford[owner].nonzero().squeeze(1)
    if not len(kept):
        return found
    cell, owner = pairs.cell[kept], owner[kept]
    tau, away, scale, inside = (t[:, kept] for t in (tau, away, scale, inside))
    missed, height = _unexplained(problem, plan, cell, tau, inside)
    most, at = (missed * (2.0 * away / scale)).max(0)
    higher = height.gather(0, at[None])[0] > HIGHER * height[OCTAVES + 1]
    size = found.value.abs().double().reshape(len(found.nfev), -1).amax(1)
    allowed = (tolerance.rtol * size).clamp_min(max(tolerance.atol, tolerance.nothing))
    # What the error covers that is reported need not be found.
    matters = most > torch.maximum(MATTERS * allowed, found.error.double())[owner]
    # What matters less is not found, but is an error all the same.
    rest = most.masked_fill(matters, 0.0).to(found.error)
    found = replace(found, error=found.error.scatter_reduce(0, owner, rest, "amax"))
    # It may be higher still: closer around the highest place it is looked for again.
    index = (higher & ~matters & (most > 0.0)).nonzero().squeeze(1)
    further: Tensor | None = None
    if len(index):
        where = CellMap(plan, cell[index]).place(tau[at[index], index])
        further = torch.stack((plan.row[cell[index]].double(), where, away[at[index], index]), 1)
    index = matters.nonzero().squeeze(1)
    if not len(index):
        return replace(found, spikes=further)
    index = index[most[index].argsort(descending=True, stable=True)]
    index = index[rank(cell[index]) == 0]
    at, cell = at[index], cell[index]
    place, step = from_lower(CellMap(plan, cell).place(tau[at, index])), 0.25 * away[at, index]
    new = cells_around(plan.row[cell], place, step, plan.start[cell], plan.stop[cell])
    # What only the place itself shows may be narrower still: it is open until a cell there is halved again.
    alone = (at == OCTAVES + 1).nonzero().squeeze(1)
    closer = torch.stack((plan.row[cell], place, 0.5 * step), 1)[alone]
    others = torch.ones_like(plan.row, dtype=torch.bool).index_fill_(0, cell, False)
    found = search_from(problem, found, new, others, search)
    return replace(found, spikes=join_spikes(found.spikes, further, closer))


def join_spikes(*spikes: Tensor | None) -> Tensor | None:
    """Return what all have seen."""
    given = [some for some in spikes if some is not None]
    return torch.cat(given) if given else None


def _places(plan: IntervalPlan, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return places ``(m, k)`` in the unit interval of cells, and what belongs to them.

    That is how far they are from the middle one, the cells' scale there, and which are in the cell.
    """
    halved = torch.exp2(-torch.arange(OCTAVES + 1, dtype=torch.float64, device=pairs.place.device))
    offsets = torch.cat((-halved, halved.new_zeros(1), halved.flip(0)))[:, None]
    cells, place = CellMap(plan, pairs.cell), pairs.place + offsets * pairs.apart
    place = torch.where((pairs.place < 0.0) & (place >= 0.0), 2.0, place)  # beyond the end of the piece
    tau, away = cells.tau(place), offsets.abs().clamp_min(2.0**-OCTAVES) * pairs.apart
    # A cell with logarithmic nodes at an end goes on beyond the innermost one.
    inside = (tau > 0.0) & (tau < torch.where(cells.at_end, torch.inf, 1.0))
    return torch.where(inside, tau, 0.5), away, cells.scale(place), inside


def _unexplained(
    problem: Problem, plan: IntervalPlan, cell: Tensor, tau: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Return how far f at places in cells is from the cells' polynomials, and f's size, ``(m, k)``.

    See :func:`quadgrad._core.search.looks.gaps.find_gaps`.
    """
    nodes = problem.rule.tensors(torch.float64, tau.device).nodes
    row, m = plan.row[cell], len(nodes)
    layout = lay_out(problem.pieces, row, plan.start[cell], plan.stop[cell], None if plan.even else plan.kind[cell])
    missed, height, step = torch.zeros_like(tau), torch.zeros_like(tau), max(1, problem.block // (m + len(tau)))
    find = find_gaps_native if suits_native(problem) else find_gaps
    for low in range(0, len(row), step):
        part = slice(low, low + step)
        x, factor = layout.nodes(torch.cat((nodes[:, None].expand(-1, len(row[part])), tau[:, part])), part)
        y = problem.integrand(x, row[part] // problem.pieces.count).detach()
        y = y.to(torch.complex128 if y.is_complex() else torch.float64)
        rounding = ROUNDING * problem.tolerance.eps
        missed[:, part], height[:, part] = find(problem.rule, y, factor, tau[:, part], inside[:, part], rounding)
    return missed, height


def cells_around(
    row: Tensor, place: Tensor, step: Tensor, start: Tensor | None = None, stop: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, start and stop of cells that are halved towards places until they are as narrow as the steps.

    They are parts of given cells, by default of whole pieces.
    """
    index = torch.arange(len(row), device=row.device)
    start = torch.zeros_like(place) if start is None else start
    stop = torch.ones_like(place) if stop is None else stop
    settled: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(index):
        begin = from_lower(start)
        near = (place[index] >= begin) & (place[index] <= begin + (stop - start)) & (stop - start > step[index])
        settled.append((row[index[~near]], start[~near], stop[~near]))
        index = index[near].repeat_interleave(2)
        start, stop = bisect(start[near], stop[near])
    columns = [torch.cat(column) for column in zip(*settled, strict=True)]
    return columns[0], columns[1], columns[2]


def search_from(
    problem: Problem, found: Found, cells: tuple[Tensor, Tensor, Tensor], kept: Tensor, search: Search
) -> Found:
    """Search on from new cells, and from those of the same integrals that are ``kept`` ``(len(plan),)``."""
    row, start, stop = cells
    plan, count = found.plan, problem.pieces.count
    again = torch.zeros_like(found.status, dtype=torch.bool)
    again[row // count] = True
    first = plan.with_cells(row, start, stop, torch.full_like(row, LINEAR, dtype=torch.int8))
    first = first.join(plan.take(again[plan.owner] & kept))
    # All these cells are evaluated before the budget is asked for: an integral that cannot afford it has failed.
    price = torch.full_like(first.row, problem.rule.nodes.size + BESIDE_END)
    most, least = problem.max_nfev, (problem.rule.nodes.size + WHOLE) * count
    afford = found.nfev + total(price, first.owner, len(again)).clamp_min(least) <= most
    status = found.status.masked_fill(again & ~afford, int(Status.MAX_NFEV))
    found, again = replace(found, status=status), again & afford
    if not bool(again.any()):
        return found
    # By what they have spent, not by what another one has: integrals of a batch are those of single calls.
    parts, spikes = torch.ceil(found.nfev * (SHARES / most)).long(), [found.spikes]
    for part in parts[again].unique().tolist():
        mine = again & (parts == part)
        left = max(least, most - most * part // SHARES)
        mended = search(replace(problem, budget=left, opening=None), first.take(mine[first.owner]))
        places = join_places((found.found_places, mended.found_places))
        tails = [*(found.tails or []), *(mended.tails or [])]
        spikes.append(mended.spikes)
        found = replace(replace_some(found, mended, mine), tails=tails, found_places=places)
    return replace(found, spikes=join_spikes(*spikes))
