"""Places that an earlier search has found, looked for again where they were: they move as the arguments do.

Cells are parts of pieces and move along with the places between these. So where all places of an integral are found
again its cells serve, whatever has moved. To find that out from the cells alone would be dear, and would not be
safe: what lies between an old place and the new one, in front of the first node, may be as narrow as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.kernel.opening import suits_native
from quadgrad._core.search.kernel.zoom import zoom_native
from quadgrad._core.search.piles.corners import CORNER, find_corners
from quadgrad._core.search.piles.watch import ZOOMED
from quadgrad._core.search.piles.zoom import BOUNDED, bends_of, zoom
from quadgrad._core.search.start import first_cells, refuse_misfit
from quadgrad._core.search.task import call_places, hear_anew

__all__ = ["Start", "follow"]

REACH = 0.125
"""A place is looked for so far on either side of where it was, as a part of the way to the next one."""

STAYS = 0.125
"""The bend between neighbouring numbers, relative to f there, that shows that a place is where it was."""

BESIDE = 2
"""So many numbers on either side are looked at for that."""

DEAREST = 30 + ZOOMED
"""No place costs more nodes."""


@dataclass(frozen=True)
class Start:
    """The cells that a search starts from, None if from whole pieces, and places ``(batch, k)`` as they are now.

    ``doubt`` and ``nodes`` ``(batch,)`` are what the places leave in doubt of the integrals, and what they cost.
    ``task`` is the ``problem`` between the places, with the budget that is left.
    """

    problem: Problem
    task: Problem
    plan: IntervalPlan | None
    places: Tensor | None = None
    doubt: Tensor | float = 0.0
    nodes: Tensor | int = 0

    @property
    def unproved(self) -> Tensor | None:
        """Which integrals start from cells between places, but for those that are left as they are."""
        if self.places is None:
            return None
        has = self.places.isfinite().any(1)
        return has if self.plan is None or self.plan.stalled is None else has & (self.plan.stalled == 0)


def follow(problem: Problem, plan: IntervalPlan | None) -> Start:
    """Look for the places of a plan again. An integral of which one is lost starts from scratch."""
    task = replace(problem, reaches=True)
    if plan is None or plan.places is None or not problem.batch:
        return Start(problem, task, plan)
    refuse_misfit(plan, problem.batch_shape)
    places = plan.places.expand(problem.batch, -1)
    plan = first_cells(problem.with_found(places), plan)
    known = places.isfinite()
    low, high = _around(problem, places)
    afford = DEAREST * known.sum(1) <= problem.max_nfev // 2
    looked = known & (high > low) & afford[:, None]
    owner, column = looked.nonzero().unbind(1)
    place, found, doubts, nodes = _find(problem, owner, places[looked].double(), low[looked], high[looked])
    hear_anew()  # integrals inside f that were called here are none of a cell's
    spent = torch.zeros_like(known[:, 0], dtype=torch.int64).index_add_(0, owner, nodes)
    doubt = torch.zeros_like(spent, dtype=torch.float64).index_add_(0, owner, doubts)
    now = torch.full_like(places, torch.nan)
    now[owner, column] = torch.where(found, place, torch.nan).to(places.dtype)
    lost = (known & now.isnan()).any(1)
    now, doubt = now.masked_fill(lost[:, None], torch.nan), doubt.masked_fill(lost, 0.0)
    task = replace(task.with_found(now), budget=problem.max_nfev - int(spent.max()))
    kept = first_cells(task, plan.take(~lost[plan.owner]).with_places(now))
    return Start(problem, task, kept, now, doubt, spent)


def _around(problem: Problem, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far down and up each place is looked for, in x; nowhere where it is no longer between limits."""
    batch = problem.batch
    pieces = problem.with_found(places).pieces
    lower, upper = (
        end.double().expand(batch * pieces.count).view(batch, 1, -1) for end in pieces.ends(slice(None))
    )
    width, at = upper - lower, places.double()[..., None]
    before, after = (torch.where(end == at, width, 0.0).amax(2) for end in (upper, lower))
    least = torch.minimum(before, after)
    least = torch.where(least.isinf(), at[..., 0].abs(), least)
    before, after = (torch.where(gap.isinf(), least, gap) for gap in (before, after))
    share = torch.where(least > 0.0, REACH, 0.0)
    return at[..., 0] - share * before, at[..., 0] + share * after


def _find(
    problem: Problem, owner: Tensor, place: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return where places are now, whether that was found, the doubt they leave, and the nodes spent."""
    if not len(owner):
        return place, place.bool(), place, owner
    now, kind, nodes = find_corners(problem, owner, low, high)
    found, doubt = kind >= CORNER, torch.zeros_like(place)
    rest = (~found).nonzero()[:, 0]
    if len(rest):
        now[rest], found[rest], doubt[rest] = _see_again(problem, owner[rest], place[rest])
        nodes[rest] += 2 * BESIDE + 1
        rest = (~found).nonzero()[:, 0]
    if len(rest):
        closer = zoom_native if suits_native(problem) else zoom
        now[rest], found[rest], doubt[rest], spent = closer(problem, owner[rest], low[rest], high[rest])
        nodes[rest] += spent
    return now, found, doubt, nodes


def _see_again(problem: Problem, owner: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Look at the numbers beside a place: return where f bends most, whether it bends enough, and the doubt."""
    step = problem.pieces.rounding.eps * place.abs().clamp_min(problem.pieces.rounding.tiny**0.5)
    x = place + step * torch.arange(-BESIDE, BESIDE + 1, device=place.device)[:, None]
    y = call_places(problem, owner, x)
    size = y.abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
    bend, at = bends_of(y, size.masked_fill(size == 0.0, 1.0))
    doubt = torch.where(bend <= BOUNDED, 2.0 * step * size.amax(1) * bend, 0.0)
    return x.gather(0, at[None])[0], bend >= STAYS, doubt.clamp_min(torch.finfo(doubt.dtype).tiny)
