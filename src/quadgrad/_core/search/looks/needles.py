"""The look for needles: where search saw next to nothing of a piece, f is called on a grid of places.

A small error says that f was sampled well enough between the nodes, if there is nothing between them that they do
not see at all. Of a piece where f is nothing at every node that is no more than a guess. So each such piece (and
each event component) is looked at once, when all else is done: on a grid that halving meets, so that what is seen
lies on the edge of two cells and stays in sight until it is resolved. How fine the grid is: ADR 36.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import FLOOR, largest_component
from quadgrad._core.mesh.cells import LIMIT
from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import reals
from quadgrad._core.search.decide import FAINT
from quadgrad._core.search.looks.open_spikes import from_lower, rank
from quadgrad._core.search.looks.spikes import cells_around, search_from
from quadgrad._core.search.looks.wide import call_close, cells_towards, depth
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status

__all__ = ["GRID", "look_again"]

GRID, BESIDE, COARSEST = 11, 8, 6
"""A single piece is looked at in 2^11 - 1 places, first in 2^8 - 1 of these. Several share them by their widths,
but each has 2^6 - 1. Beside pieces or components that were seen it is no more than 2^8 - 1: there needles elsewhere
would not be looked for at all."""

INFINITE = 12
"""How many octaves close to an infinite end places come: farther out exp(x) overflows."""

ZOOM, ZOOMS = 16, 8
"""Where something is seen, places are put 16 times as closely around the highest one, until f is level there."""

FEATURES = 16
"""So many places of a piece are looked at more closely."""

LEVEL = 0.5
"""Two neighbours of the highest place that have this part of its height show how wide it is."""

Search = Callable[[Problem, IntervalPlan], Found]


@dataclass
class _Faint:
    """Pieces of which little was seen: their ``row``, and of which components ``(k, components)``."""

    row: Tensor
    components: Tensor


def look_again(problem: Problem, found: Found, search: Search) -> Found:
    """Look at the pieces of which nothing was seen, and search on around what is seen there."""
    if found.faint is False or 0 in found.value.shape:
        return found
    spent = found.nfev.clone(), torch.zeros_like(found.status, dtype=torch.bool)
    faint = _faint_pieces(problem, found, spent)
    if faint is None:
        return found
    found = _look_at(problem, found, faint, spent, search)
    # Where errors underflow the value itself is what is known of them.
    value = largest_component(found.value.abs())
    underflown = value <= problem.tolerance.nothing
    return replace(found, error=torch.where(underflown, torch.maximum(found.error, value), found.error))


def _look_at(problem: Problem, found: Found, faint: _Faint, spent: tuple[Tensor, Tensor], search: Search) -> Found:
    nfev, cut = spent
    features: list[tuple[Tensor, Tensor, Tensor]] = []
    cells: list[tuple[Tensor, Tensor, Tensor]] = []
    levels = _levels(problem, found, faint.row)
    for level in levels.unique().tolist():
        mine = levels == level
        part = _Faint(faint.row[mine], faint.components[mine])
        nowhere = torch.ones_like(part.row, dtype=torch.bool)
        for stage, before in ((min(level, BESIDE), 0), (level, BESIDE)):
            if stage <= before or not len(part.row):
                continue
            afford, seen = _look(problem, part, stage, spent, features, before)
            nowhere &= ~seen.any(1)
            # What was seen of one component says nothing of the others.
            left = (part.components & ~seen).any(1) & afford
            part = _Faint(part.row[left], (part.components & ~seen)[left])
            nowhere = nowhere[left]
        cells += _look_close(problem, _Faint(part.row[nowhere], part.components[nowhere]), spent)
    found = replace(found, nfev=nfev)
    if features:
        cells.append(_cells_around_all(*(torch.cat(column) for column in zip(*features, strict=True))))
    if cells:
        row, start, stop = (torch.cat(column) for column in zip(*cells, strict=True))
        found = search_from(problem, found, (row, start, stop), ~torch.isin(found.plan.row, row), search)
    # What was not looked at may be anything, whatever search makes of the rest.
    cut &= found.status == int(Status.CONVERGED)
    return replace(found, status=found.status.masked_fill(cut, int(Status.MAX_NFEV)))


def _spend(spent: tuple[Tensor, Tensor], owner: Tensor, price: Tensor | int, most: int) -> Tensor:
    """Return what integrals can afford, one after another, of what has a ``price``; note it, and which are cut."""
    (nfev, cut), price = spent, torch.zeros_like(owner) + price
    order = owner.argsort(stable=True)
    up_to = price[order].cumsum(0)
    first = torch.searchsorted(owner[order], owner[order])
    within = torch.empty_like(up_to).index_copy_(0, order, up_to - (up_to - price[order])[first])
    afford = nfev[owner] + within <= most
    cut[owner[~afford]] = True
    nfev.index_add_(0, owner[afford], price[afford])
    return afford


def _cells_around_all(row: Tensor, place: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, start and stop of cells that are halved towards all places of each row."""
    turn = rank(row)
    first = turn == 0
    cells = cells_around(row[first], place[first], step[first])
    for k in range(1, int(turn.max()) + 1):
        mine = turn == k
        begin, width = from_lower(cells[1]), cells[2] - cells[1]
        here = (cells[0] == row[mine, None]) & (begin <= place[mine, None]) & (place[mine, None] <= begin + width)
        at = here.to(torch.int8).argmax(1)
        others = torch.ones_like(cells[0], dtype=torch.bool).index_fill_(0, at, False)
        halved = cells_around(row[mine], place[mine], step[mine], cells[1][at], cells[2][at])
        rows, starts, stops = (torch.cat((old[others], new)) for old, new in zip(cells, halved, strict=True))
        cells = rows, starts, stops
    return cells


def _look_close(
    problem: Problem, faint: _Faint, spent: tuple[Tensor, Tensor]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Look at pieces that are very wide, closer to their ends; note what that costs, and return cells."""
    deep = depth(problem, faint.row)
    afford = _spend(spent, faint.row // problem.pieces.count, 2 * deep, problem.max_nfev)
    kept = ((deep > 0) & afford).nonzero().squeeze(1)
    if not len(kept):
        return []
    row, deep = faint.row[kept], deep[kept]
    y, there = call_close(problem, row, deep)
    height = (_sizes(y).nan_to_num(0.0, 0.0, 0.0) * faint.components[kept]).amax(2) * there
    most, at = height.max(0)
    seen = (most > 0.0).nonzero().squeeze(1)
    return [cells_towards(row[seen], at[seen], len(y) // 2)] if len(seen) else []


def _faint_pieces(problem: Problem, found: Found, spent: tuple[Tensor, Tensor]) -> _Faint | None:
    """Return the pieces whose error is not small beside what was seen of them, or that have components not seen."""
    plan, nothing = found.plan, problem.tolerance.nothing
    count = problem.pieces.count
    done = (found.status == int(Status.CONVERGED)).repeat_interleave(count)
    if found.seen is None:
        sizes, errors = found.value.abs().double().reshape(-1, 1), found.error.double()
    else:
        sizes = found.seen
        errors = torch.zeros_like(sizes[:, 0]).index_add_(0, plan.row, plan.error.double())
    unseen = sizes <= nothing
    rough = errors >= FAINT * sizes.sum(1)
    if problem.limits.found:  # of the caller's piece something was seen there, or it would not have been found
        places = problem.limits.points[:, -problem.limits.found :].expand(problem.batch, -1)
        places = places.repeat_interleave(count, 0)
        ends = problem.pieces.ends(slice(None))
        beside = torch.stack([(end[:, None] == places).any(1) for end in ends]).any(0)
        # But not by this search, if all of a component is nothing.
        nowhere = unseen.reshape(problem.batch, count, -1).all(1).repeat_interleave(count, 0)
        unseen &= ~beside[:, None] | nowhere
        rough &= ~beside | nowhere.any(1)
    candidates = (unseen.any(1) | rough) & done
    if not bool(candidates.any()):
        return None
    occupied = torch.zeros_like(candidates)
    occupied[plan.row] = True
    row = (candidates & occupied).nonzero().squeeze(1)
    row = row[_spend(spent, row // count, len(plan.tau), problem.max_nfev)]
    if not len(row):
        return _Faint(row, unseen[row])
    # What cancels was seen all the same: f at the nodes of the whole piece tells.
    heights, _ = _heights(problem, row, plan.tau[:, None].expand(-1, len(row)), slope=True)
    modulus = torch.einsum("m,mkc->kc", plan.weight.to(heights.dtype), heights)
    rough = rough[row] & (errors[row] >= FAINT * modulus.sum(1))
    # Unless cells that came later have seen nothing of it: errors are never below the floor of what was seen, and
    # what cancels in one cell does not in several.
    dropped = 2.0 * errors[row, None] < FLOOR * problem.tolerance.eps * modulus
    if found.seen is not None:
        dropped = dropped | (torch.bincount(plan.row, minlength=len(candidates))[row] > 1)[:, None]
    components = (unseen[row] & ((modulus <= nothing) | dropped)) | rough[:, None]
    mine = components.any(1)
    return _Faint(row[mine], components[mine])


def _heights(problem: Problem, row: Tensor, tau: Tensor, slope: bool = False) -> tuple[Tensor, Tensor]:
    """Return the sizes of f's real components at places ``(m, k)`` of pieces, ``(m, k, components)``.

    They are 0 where not finite; with the slope, times dx / dplace.
    """
    zeros = torch.zeros_like(tau[0])
    layout = lay_out(problem.pieces, row, zeros, zeros + 1.0, None)
    owner, step = row // problem.pieces.count, max(1, problem.block // max(1, len(tau)))
    parts: list[Tensor] = []
    for low in range(0, len(row), step):
        part = slice(low, low + step)
        x, factor = layout.nodes(tau[:, part], part)
        y = problem.integrand(x, owner[part]).detach()
        size = _sizes(y)
        parts.append(size * factor[..., None] if slope else size)
    heights = torch.cat(parts, 1)
    return heights.nan_to_num(0.0, 0.0, 0.0), owner


def _sizes(y: Tensor) -> Tensor:
    """Return the sizes of real components, ``(m, k, components)``."""
    return reals(y, 2).abs().double().reshape(*y.shape[:2], -1)


def _levels(problem: Problem, found: Found, row: Tensor) -> Tensor:
    """Return how often each piece is halved for its grid: pieces of one integral share what a single one gets."""
    lower, upper = (
        end.double().expand(problem.batch * problem.pieces.count)
        for end in (problem.pieces.lower, problem.pieces.upper)
    )
    width = (upper - lower).reshape(problem.batch, -1)
    finite = torch.where(width.isinf(), 0.0, width)
    share = torch.where(
        width.isinf(), 1.0, finite / finite.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    )
    level = GRID + torch.log2(share.clamp_min(2.0**-GRID)).ceil()
    level = level.clamp(COARSEST, GRID).to(torch.int64).flatten()[row]
    owner = row // problem.pieces.count
    alone = largest_component(found.value.abs())[owner] <= problem.tolerance.nothing
    spent = torch.log2(found.nfev[owner].double()).floor().clamp(BESIDE, GRID).to(torch.int64)
    return torch.where(alone, level, torch.minimum(level, spent))


def _places(level: int, before: int, problem: Problem, row: Tensor) -> Tensor:
    """Return places ``(m, k)``: a grid, and closer and closer to both ends; or what is new after a coarser grid."""
    if before:
        new = torch.arange(1, 2**level, device=row.device)
        new = new[new % 2 ** (level - before) != 0].double() * 2.0**-level
        return new[:, None].expand(-1, len(row))
    even = torch.arange(1, 2**level, dtype=torch.float64, device=row.device) * 2.0**-level
    deepest = round(-math.log2(LIMIT))
    close = torch.exp2(-torch.arange(level + 1, deepest + 1, dtype=torch.float64, device=row.device))
    ends = [end.double() for end in problem.pieces.ends(row)]
    nearest = [
        torch.where(
            end.isinf(),
            2.0**-INFINITE,
            (end.abs() / (ends[1] - ends[0])).nan_to_num(0.0) * (16.0 * problem.pieces.rounding.eps),
        )
        for end in ends
    ]
    middle = torch.full_like(close, 0.5)[:, None]
    lower, upper = (torch.where(close[:, None] > least, close[:, None], middle) for least in nearest)
    n = len(row)
    # Functions without arguments are written around 0.
    origin = (-ends[0] / (ends[1] - ends[0])).expand(n)
    origin = torch.where((origin > 0.0) & (origin < 1.0), origin, 0.5)[None]
    below, above = lower.flip(0).expand(-1, n), (1.0 - upper).expand(-1, n)
    return torch.cat((below, even[:, None].expand(-1, n), above, origin))


def _look(
    problem: Problem, faint: _Faint, level: int, spent: tuple[Tensor, Tensor],
    features: list[tuple[Tensor, Tensor, Tensor]], before: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Look at pieces, and add what is seen to the features: row, place, and how far beside it f is level no more.

    Returned are which pieces ``(k,)`` the budget allows, and of which components something was seen. What is
    ``spent`` is noted: the nodes of each integral, and which are cut.
    """
    row, seen = faint.row, torch.zeros_like(faint.components)
    tau = _places(level, before, problem, row)
    afford = _spend(spent, row // problem.pieces.count, len(tau), problem.max_nfev)
    kept = afford.nonzero().squeeze(1)
    if not len(kept):
        return afford, seen
    row, tau = row[kept], tau[:, kept].sort(0).values
    heights, _ = _heights(problem, row, tau)
    heights = heights.masked_fill(~faint.components[kept], 0.0)
    seen[kept] = heights.amax(0) > 0.0
    at, piece, component = _highest(heights)
    if not len(at):
        return afford, seen
    place, row = tau[at, piece], row[piece]
    below = torch.minimum(place, 1.0 - place)
    step = torch.minimum(torch.exp2(torch.log2(below).floor() - 1.0), place.new_tensor(2.0**-level))
    features.append((row, *_zoom(problem, row, component, place, step, spent)))
    return afford, seen


def _highest(heights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where ``heights`` ``(m, k, components)`` are largest between two places where they are 0.

    Of each piece so many, each component by its own height: one that is small beside the others is not to be lost.
    """
    there = heights > 0.0
    begins = there & ~torch.nn.functional.pad(there, (0, 0, 0, 0, 1, 0))[:-1]
    at, piece, component = there.nonzero().unbind(1)
    height = (heights / heights.amax(0))[at, piece, component]
    run = (piece * heights.shape[2] + component) * len(heights) + begins.cumsum(0)[at, piece, component]
    order = height.argsort(descending=True, stable=True)
    order = order[rank(run[order]) == 0]
    order = order[rank(piece[order]) < FEATURES]
    return at[order], piece[order], component[order]


def _zoom(
    problem: Problem, row: Tensor, component: Tensor, place: Tensor, step: Tensor, spent: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the highest places near the given ones, and how far beside them f is no longer level.

    Where the budget does not allow that, places are left as they are.
    """
    offsets = torch.arange(-ZOOM, ZOOM + 1, dtype=torch.float64, device=row.device)[:, None] / ZOOM
    place, step, owner = place.clone(), step.clone(), row // problem.pieces.count
    open_ = torch.arange(len(row), device=row.device)
    for _ in range(ZOOMS):
        open_ = open_[_spend(spent, owner[open_], len(offsets), problem.max_nfev)]
        if not len(open_):
            break
        tau = place[open_] + offsets * step[open_]
        inside = (tau > 0.0) & (tau < 1.0)
        heights, _ = _heights(problem, row[open_], torch.where(inside, tau, place[open_]))
        height = heights[:, torch.arange(len(open_), device=row.device), component[open_]]
        most, at = height.max(0)
        sides = torch.stack((at - 1, at + 1)).clamp(0, len(offsets) - 1)
        level = height.gather(0, sides).amin(0) >= LEVEL * most
        highest = tau.gather(0, at[None])[0]
        place[open_] = torch.where((highest > 0.0) & (highest < 1.0), highest, 0.5)
        step[open_] /= ZOOM
        finer = step[open_]
        open_ = open_[~(level | (finer < 2.0**-48) | (finer < 2.0**-50 * place[open_]))]
    return place, step
