"""The look for what boxes have missed: scouts climb to peaks of which little was seen, or which were lost again.

A small error says that f was sampled well enough between the nodes, unless there is something that no node sees. Of
an integral of which next to nothing was seen that is a guess; and where f was once seen to be far higher than at
any node that is left, a peak has slipped between the cells. There f is called at the points of a Sobol sequence,
and from the highest, or from the cell that saw the peak, a population of points climbs on log abs(f). How far it
spreads when f falls by as much as a Gaussian does within its width tells how wide the peak is. Cells close to it
are halved until they are as narrow, and search goes on from there.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.mesh.boxes import DEEPEST, unit_corners
from quadgrad._core.mesh.cells import locate
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.points import make_sequence
from quadgrad._core.problem import Problem
from quadgrad._core.search.boxes.ascent import Peaks, follow, highest_cost
from quadgrad._core.search.boxes.search import BoxFound, box_parts, search_boxes
from quadgrad._core.search.decide import FAINT
from quadgrad._core.status import Status

__all__ = ["look_for_peaks"]

POINTS = 4096
"""Points of the first look."""

CLIMBERS, ELITE, STEPS = 128, 32, 8
"""Points that climb together, how many of them lead, and how often they move at most.

Of 2,880 narrow bumps in 2 to 4 dimensions 1,392 were right with 1 step, 1,415 with 4, 1,405 with 8, 1,394 with 60;
of 2-D ridges 3e-4 by 1e-5 none with 1, 5 of 40 with 8 and 60, which took up to 40 % more nodes.
"""

LOST = 0.3
"""A peak has been lost if f is nowhere so high at the nodes that are left, as a part of the highest value seen."""

WIDE = 3.0
"""Cells are halved until they are this many times as wide as the peak."""

ROUNDS = 3
"""So many peaks are looked for one after another."""


def look_for_peaks(problem: Problem, found: BoxFound) -> BoxFound:
    """Look at integrals of which little was seen, or a peak or its foot lost, and search on around what is seen."""
    for _ in range(ROUNDS):
        if 0 in found.value.shape:
            return found
        done = (found.status == int(Status.CONVERGED)) & ~problem.pieces.empty
        size = torch.maximum(largest_component(found.value.abs()).double(), found.modulus)
        faint = (size <= problem.tolerance.nothing) | (found.error.double() >= FAINT * size)
        lost = found.height < LOST * found.top
        doubt = done & (found.doubt > 0.0)
        found, (scouted, doubt) = _afford(problem, found, done & (faint | lost) & ~doubt, doubt)
        who = scouted.nonzero().squeeze(1)
        again = None
        if len(who):
            again = _search_on(problem, found, who, *_find_peaks(problem, found, who, lost[who]), lost[who])
        if bool(doubt.any()):
            again, who = again or found, doubt.nonzero().squeeze(1)
            again.doubt[who] = 0.0
            climbed = follow(problem, box_parts(problem)[0], again.plan, who, found.doubted[who])
            again = _search_on(problem, again, who, *climbed, torch.zeros_like(who, dtype=torch.bool)) or again
        if again is None:
            return found
        found = again
    return found


def _afford(
    problem: Problem, found: BoxFound, scouted: Tensor, doubt: Tensor
) -> tuple[BoxFound, tuple[Tensor, Tensor]]:
    """Return which integrals can pay for being looked at; the others may have lost something, and are cut off."""
    climbs = highest_cost(problem, found.plan)
    looks = [(scouted, torch.full_like(climbs, POINTS + STEPS * CLIMBERS)), (doubt, climbs)]
    able = [mask & (found.nfev + cost <= problem.max_nfev) for mask, cost in looks]
    short = (scouted | doubt) & ~(able[0] | able[1])
    found = replace(found, status=found.status.masked_fill(short, int(Status.MAX_NFEV)))
    return found, (able[0], able[1])


def _search_on(
    problem: Problem, found: BoxFound, who: Tensor, peaks: Peaks, cost: Tensor | int, lost: Tensor
) -> BoxFound | None:
    """Search integrals, in which peaks were found at a cost, on from cells around them."""
    found.nfev[who] += cost
    allowed = (problem.tolerance.rtol * largest_component(found.value.abs()).double()).clamp_min(
        problem.tolerance.atol
    )
    # A peak that holds no more than a small part of what the error may be was not lost, or need not be found.
    mass = peaks.height * (math.sqrt(2.0 * math.pi) * peaks.width).prod(1)
    matters = (mass > 0.1 * allowed[who]) & (peaks.height > 0.0)
    # Those that were lost are not to be looked for again and again.
    found = replace(
        found, top=found.top.index_copy(0, who, torch.where(matters | ~lost, found.top[who], found.height[who]))
    )
    if not bool(matters.any()):
        return found if bool(lost.any()) else None
    who, peaks = who[matters], peaks.take(matters)
    mine = torch.zeros_like(found.status, dtype=torch.bool).index_fill(0, who, True)
    plan: BoxPlan = found.plan
    own = plan.take(mine[plan.owner])
    first = _halve_around(own, who, peaks, found.status.shape[0])
    left = problem.max_nfev - int(found.nfev[who].max())
    first_round = int(torch.bincount(first.row).max()) * problem.rule.rows
    if left < first_round:
        return replace(found, status=found.status.masked_fill(mine, int(Status.MAX_NFEV)))
    mended = search_boxes(replace(problem, budget=left), first, alone=True)
    top = torch.maximum(mended.top, found.top.index_copy(0, who, torch.minimum(found.top[who], peaks.height)))
    whole = plan.take(~mine[plan.owner]).join(mended.plan)
    columns = {
        name: torch.where(mine, getattr(mended, name), getattr(found, name))
        for name in ("error", "status", "height", "modulus", "doubt")
    }
    shape = (-1, *(1,) * (found.value.ndim - 1))
    value = torch.where(mine.reshape(shape), mended.value, found.value)
    doubted = torch.where(mine[:, None], mended.doubted, found.doubted)
    corner = torch.where(mine[:, None, None], mended.corner, found.corner)
    nfev = found.nfev + torch.where(mine, mended.nfev, 0)
    return replace(
        found, plan=whole, value=value, nfev=nfev, top=torch.where(mine, top, found.top), corner=corner,
        doubted=doubted, **columns,
    )  # fmt: skip


def _heights(problem: Problem, who: Tensor, u: Tensor) -> Tensor:
    """Return the size of f times the volume element at points u ``(m, k, d)`` of the unit cube, ``(m, k)``."""
    parts: list[Tensor] = []
    step = max(1, problem.block // max(1, u.shape[0]))
    for low in range(0, len(who), step):
        part = slice(low, low + step)
        x, factor = problem.pieces.take(who[part]).place(u[:, part])
        y = problem.integrand(x, who[part]).detach().abs().double()
        y = y.flatten(2).amax(2) if y.ndim > 2 and y[0, 0].numel() else y
        parts.append((y * factor.abs()).nan_to_num(0.0, 0.0, 0.0))
    return torch.cat(parts, dim=1)


def _find_peaks(problem: Problem, found: BoxFound, who: Tensor, lost: Tensor) -> tuple[Peaks, int]:
    """Return the highest places that are found, and at how many points f was called for each."""
    d, device = problem.rule.d, who.device
    points = make_sequence("sobol", d, 0, 1, device)
    grid = points.points(0, POINTS)[0].double()
    u = grid[:, None].expand(-1, len(who), -1)
    heights = torch.cat(
        [_heights(problem, who[i : i + 256], u[:, i : i + 256]) for i in range(0, len(who), 256)], 1
    )
    top, at = heights.max(0)
    place = grid[at]
    width = torch.full_like(place, 0.5 * POINTS ** (-1.0 / d))
    corner = found.corner[who]
    # A peak that was lost was seen in this cell.
    place = torch.where(lost[:, None], corner[:, 0] + 0.5 * corner[:, 1], place)
    width = torch.where(lost[:, None], 0.5 * corner[:, 1], width)
    top = torch.where(lost, _heights(problem, who, place[None])[0], top)
    return _climb(problem, who, place, width, top)


def _climb(problem: Problem, who: Tensor, place: Tensor, width: Tensor, top: Tensor) -> tuple[Peaks, int]:
    """Return the peaks that populations of points reach, each from its place."""
    d = place.shape[1]
    normal = make_sequence("sobol", d, 1, STEPS, who.device).points(0, CLIMBERS).double()
    normal = math.sqrt(2.0) * torch.erfinv(2.0 * normal - 1.0)
    best, mean, spread, size = place, place, width, width
    settled = torch.zeros_like(top, dtype=torch.bool)
    cost = POINTS
    for step in range(STEPS):
        u = (mean + spread * normal[step][:, None]).clamp(1e-12, 1.0 - 1e-12)
        heights = _heights(problem, who, u)
        cost += CLIMBERS
        order = heights.argsort(dim=0, descending=True)[:ELITE]
        elite = u.gather(0, order[..., None].expand(-1, -1, d))
        high = heights.gather(0, order)
        better = high[0] > top
        best, top = torch.where(better[:, None], elite[0], best), torch.where(better, high[0], top)
        seen = high > 0.0
        few = seen.sum(0) < ELITE // 4
        weight = seen.double() / seen.sum(0).clamp_min(1)
        centre = (weight[..., None] * elite).sum(0)
        scatter = (weight[..., None] * (elite - centre) ** 2).sum(0).sqrt()
        # Where f falls by as much as a Gaussian within its width, the population is as wide as the peak.
        fall = (top / heights.median(0).values.clamp_min(torch.finfo(top.dtype).tiny)).log()
        steep = fall > 0.5 * d
        size = torch.where((steep & ~settled)[:, None], spread, size)
        settled = settled | (~steep & ~few)
        if bool((settled | (top <= 0.0)).all()):
            break
        mean = torch.where(few[:, None], best, centre)
        spread = torch.where(few[:, None], 0.5 * spread, torch.maximum(scatter, 0.5 * spread * (1 - step / STEPS)))
    return Peaks(best, size.clamp_min(2.0**-40), top), cost


def _halve_around(plan: BoxPlan, who: Tensor, peaks: Peaks, batch: int) -> BoxPlan:
    """Return a plan whose cells close to the peaks are halved until they are about as narrow."""
    number = torch.zeros(batch, dtype=torch.int64, device=who.device).index_copy(
        0, who, torch.arange(len(who), device=who.device)
    )
    row, level, place = plan.row, plan.level.T, plan.position.T
    rows, levels, places = list[Tensor](), list[Tensor](), list[Tensor]()
    while len(row):
        at, wide = peaks.place[number[row]].T, peaks.width[number[row]].T
        low, width = unit_corners(level, place)
        # Not only the cell with the peak: it may be close to a side, as it is where the cube itself was halved.
        near = ((at >= low - wide) & (at <= low + width + wide)).all(0)
        ratio = width / (WIDE * wide)
        near = near & (ratio.amax(0) > 1.0) & (level.amax(0) < DEEPEST // 2)
        count = int(near.sum())
        rest = locate(~near, len(row) - count)
        rows.append(row[rest])
        levels.append(level[:, rest])
        places.append(place[:, rest])
        mine = locate(near, count)
        along = ratio[:, mine].argmax(0) == torch.arange(len(level), device=row.device)[:, None]
        row = row[mine].repeat_interleave(2)
        level, place = level[:, mine] + along, torch.where(along, 2 * place[:, mine], place[:, mine])
        place = torch.stack((place, place + along), dim=2).flatten(1)
        level = level.repeat_interleave(2, dim=1)
    row, order = torch.cat(rows).sort(stable=True)
    level, place = torch.cat(levels, 1)[:, order].T.contiguous(), torch.cat(places, 1)[:, order].T.contiguous()
    error = plan.error.new_zeros(len(row))
    return replace(
        plan,
        row=row,
        level=level,
        position=place,
        error=error,
        trust=torch.ones_like(error, dtype=torch.float64),
        kind=torch.zeros_like(row, dtype=torch.int8),
    )
