"""Places inside a piece where cells pile up: jumps, kinks and singularities that nobody marked.

Bisection closes in on such a place by one bit a round. Once a few rounds have, the place is found from f alone, and
search starts anew with a breakpoint there (:mod:`quadgrad._core.search.reach`). That a breakpoint lies where there
is nothing costs a cell, so that what is found here decides about nothing but nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.problem import Problem
from quadgrad._core.search.corners import SEVERAL, call_places, corners_first
from quadgrad._core.search.stretches import LASTS, UNFINISHED, Ends, Piled
from quadgrad._core.search.tails import find_tail
from quadgrad._core.search.task import Found, Places, Tail, hear_anew, noise

__all__ = ["Piles", "watched", "zoom"]

FIRST, EVERY = 3, 1
"""The round after which cells are looked at, and how many rounds later again; earlier, 20,000 peaks cost more."""

TRIALS = 3
"""How often an integral is looked at."""

DIVISIONS = 8
"""Intervals between places where f is called: of these the two around the greatest bend are divided next."""

SMOOTH = 1.0 / 10.0
"""The bend of a smooth function falls to 1/16 when intervals are quartered, that of a kink to 1/4."""

SURE = 3
"""So many times they are quartered before that is judged."""

STOPPED = 2**40
"""Nodes that an integral is charged with to have it end as beyond its budget."""

LATE, LATER = 5, 8
"""The rounds from which on ends are looked at whose cells do not get better; those with logarithmic nodes later."""

ENDS_TRIED = 2
"""How often each."""

ZOOMED, DEAR = 220, 1_600
"""Most nodes that a place costs, and that a series does."""

CHEAP = 250
"""An end is not looked at before an integral has cost so many nodes."""

IN_VAIN, PART = 27, 0.33
"""Nodes that it takes to see that f is smooth somewhere; in all they may cost this part of what was spent."""

SAVES, SAVES_STRONG = 600, 2_000
"""Nodes that bisection towards a kink, and a jump, would still take: an integral that has cost more goes on."""

AT_END = 1e-9
"""A place closer to the end of its piece, relative to the piece, is none."""

BOUNDED = 4.0
"""A bend between neighbouring numbers, relative to f around, up to which it is that of a jump."""


class Stoppable(Protocol):
    """A search that can be looked at between its rounds."""

    def look_for_piles(self, far: float) -> Piled:
        """Look at the cells not judged yet of integrals whose error is ``far`` times what it may be, or more.

        See :mod:`quadgrad._core.search.stretches`.
        """
        ...

    def settled_values(self) -> Tensor:
        """Return what the settled cells of each integral add up to, of one real component."""
        ...

    def cost(self) -> Tensor:
        """Return the nodes that each running integral has cost, 0 of the others."""
        ...

    def charge(self, owner: Tensor, nodes: Tensor) -> None:
        """Have integrals pay for further nodes."""
        ...


@dataclass
class Piles:
    """Looks at one search from time to time; what it found: integrals, places, and whether f is rough there."""

    problem: Problem
    rounds: int = 0
    owner: list[Tensor] = field(default_factory=list[Tensor])
    place: list[Tensor] = field(default_factory=list[Tensor])
    doubt: list[Tensor] = field(default_factory=list[Tensor])
    tried: Tensor | None = None
    before: tuple[Tensor, Tensor] | None = None
    tails: list[Tail] = field(default_factory=list[Tail])
    ends_tried: dict[tuple[int, bool], int] = field(default_factory=dict[tuple[int, bool], int])

    def _see_tails(self, search: Stoppable, ends: Ends) -> None:
        """Look for integrals whose cells pile up at an end all the same, and sum up what is there another way."""
        problem, cost = self.problem, search.cost()
        if problem.pieces.rounding.eps > torch.finfo(torch.float64).eps:  # zeros are not known well enough
            return
        if problem.integrand.event != () or (problem.integrand.output_dtype or torch.float64).is_complex:
            return
        lower, higher = problem.pieces.ends(ends.row)
        infinite = torch.where(ends.upper, higher, lower).isinf()
        spent = cost[ends.row // problem.pieces.count]
        ready = (spent >= CHEAP) & (spent + DEAR <= problem.max_nfev)
        if self.rounds < LATER:
            ready &= infinite | ~ends.singular
        ends = ends.take(ready)
        columns = (ends.row, ends.upper, ends.distance, infinite[ready] | ~ends.singular)
        for numbers in torch.stack([column.double() for column in columns], 1).tolist():
            row, upper, distance, wave = int(numbers[0]), bool(numbers[1]), numbers[2], bool(numbers[3])
            times = self.ends_tried.get((row, upper), 0)
            if times >= ENDS_TRIED or (times and self.rounds % 2):
                continue
            owner = torch.tensor([row // problem.pieces.count])
            self.ends_tried[row, upper] = times + 1
            size = abs(float(search.settled_values()[owner[0]]))
            tail, nodes = find_tail(problem, row, upper, distance, size, times > 0, wave)
            search.charge(owner, torch.tensor([nodes]))
            if tail is not None:
                self.tails.append(tail)
                search.charge(owner, torch.tensor([STOPPED]))

    def see(self, search: Stoppable) -> None:
        """Look at a search whose cells are evaluated, and stop the integrals of which all places were found."""
        self.rounds += 1
        self._look(search)
        hear_anew()  # integrals inside f that were called here are none of a cell's

    def _look(self, search: Stoppable) -> None:
        if self.rounds < FIRST or (self.rounds - FIRST) % EVERY:
            return
        piled = search.look_for_piles(UNFINISHED if self.rounds < LASTS else 1.0)
        if self.rounds >= LATE and self.problem.series and len(piled.ends.row):
            self._see_tails(search, piled.ends)
        if not self.problem.reaches_inside:
            return
        row, batch = piled.row, self.problem.batch
        stays = self._stays(
            *(row + torch.where(end < 0.0, 1.0 + end, end) for end in (piled.start[0], piled.stop[1]))
        )
        if not bool(stays.any()) and len(row) < SEVERAL:
            return
        owner = row // self.problem.pieces.count
        stays_or_several = stays | (torch.bincount(owner, minlength=batch) >= SEVERAL)[owner]
        here = torch.zeros(batch, dtype=torch.bool, device=row.device)
        here = here.index_fill_(0, owner[stays_or_several], True)[owner]
        piled, owner, stays = (
            Piled(row[here], piled.start[:, here], piled.stop[:, here], piled.ends),
            owner[here],
            stays[here],
        )
        row = piled.row
        low, high = _ends_of(self.problem, piled)
        tried = torch.zeros(batch, dtype=torch.int64, device=row.device) if self.tried is None else self.tried
        known = self._holds(owner, low, high)
        many = torch.bincount(owner, minlength=batch)
        afford = search.cost() + ZOOMED * many <= self.problem.max_nfev
        several = (many >= SEVERAL)[owner]
        fresh = ~known & (tried[owner] < TRIALS) & afford[owner] & (stays | several)
        number = torch.bincount(owner[fresh], minlength=batch)
        fresh &= (IN_VAIN * number <= PART * search.cost())[owner]
        index = fresh.nonzero()[:, 0]
        if not len(index):
            return
        place, found, doubt, spent, (beside, more) = corners_first(
            zoom, self.problem, row[index], low[index], high[index], several[index]
        )
        mine = owner[index]
        search.charge(mine, spent)
        # So close to an end a singular one is steeper still: what was closed in on is the end.
        lower, upper = self.problem.pieces.ends(row[index])
        found &= torch.minimum(place - lower, upper - place) > AT_END * (upper - lower).nan_to_num(posinf=0.0)
        if bool(found.any()):
            self.owner.append(mine[found])
            self.place.append(place[found])
            self.doubt.append(doubt[found])
        if len(more):
            self.owner.append(mine[beside])
            self.place.append(more)
            self.doubt.append(torch.zeros_like(more))
        # In vain: sooner or later it is given up.
        vain = mine[~found].unique()
        self.tried = tried.index_add(0, vain, torch.ones_like(vain))
        known = known.index_copy(0, index, found)
        saved = torch.zeros(batch, dtype=torch.int64, device=row.device)
        for whose, strong in zip(self.owner, self.doubt, strict=True):
            saved.index_add_(0, whose, torch.where(strong > 0.0, SAVES_STRONG, SAVES))
        open_ = torch.zeros(batch, dtype=torch.bool, device=row.device).index_fill(0, owner[~known], True)
        some = torch.zeros_like(open_).index_fill(0, owner[known], True)
        some &= search.cost() <= saved  # else little is left to do
        stopped = (some & ~open_).nonzero()[:, 0]
        search.charge(stopped, torch.full_like(stopped, STOPPED))

    def _stays(self, low: Tensor, high: Tensor) -> Tensor:
        """Tell which stretches are in one of the round before: what is smooth is resolved when that is halved.

        Both are ascending, measured in pieces.
        """
        before, self.before = self.before, (low, high)
        if before is None or not len(before[0]):
            return torch.zeros_like(low, dtype=torch.bool)
        at = torch.searchsorted(before[0], high) - 1
        return (at >= 0) & (before[1][at.clamp_min(0)] > low)

    def _holds(self, owner: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Tell in which stretches a place was found already."""
        known = torch.zeros_like(owner, dtype=torch.bool)
        for whose, place in zip(self.owner, self.place, strict=True):
            known |= ((owner[:, None] == whose) & (low[:, None] <= place) & (place <= high[:, None])).any(1)
        return known


def watched(problem: Problem, search: Callable[[Piles | None], Found]) -> Found:
    """Run a search, watched if that is wanted, and enter in its outcome what was found."""
    if not problem.reaches:
        return search(None)
    piles = Piles(problem)
    found = search(piles)
    if piles.tails:
        found.tails = piles.tails
    if piles.owner or piles.tails:
        found.nfev = found.nfev % STOPPED
    if piles.owner:
        found.found_places = Places(torch.cat(piles.owner), torch.cat(piles.place), torch.cat(piles.doubt))
    return found


def _ends_of(problem: Problem, piled: Piled) -> tuple[Tensor, Tensor]:
    """Return lower and upper end in x of stretches from one cell to another, and a little beyond."""
    (low, after), (before, high) = (
        lay_out(problem.pieces, piled.row, start, stop, None).nodes(start.new_tensor([0.0, 1.0]))[0]
        for start, stop in zip(piled.start, piled.stop, strict=True)
    )
    # What lies on the edge of two cells may be seen by one of them alone.
    beside = 0.25 * torch.stack((after - low, high - before))
    lower, upper = problem.pieces.ends(piled.row)
    beside = torch.minimum(beside, 0.5 * torch.stack((low - lower, upper - high)))
    return low - beside[0], high + beside[1]


def zoom(problem: Problem, owner: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Close in on the greatest bend of f between ``low`` and ``high`` ``(k,)``.

    Returns the place, whether f is not smooth there, what the integral is in doubt by because numbers have
    spacings, and the nodes spent.
    """
    eps, ulp, k = noise(problem), problem.pieces.rounding.eps, len(owner)
    steps = torch.arange(DIVISIONS + 1, dtype=low.dtype, device=low.device)[:, None] / DIVISIONS
    place, found, doubt = low.clone(), torch.zeros_like(owner, dtype=torch.bool), torch.zeros_like(low)
    spent, index = torch.zeros_like(owner), torch.arange(k, device=owner.device)
    history: list[Tensor] = []
    seen: Tensor | None = None
    size: Tensor | None = None
    whole = high - low
    while len(index):
        x = low + (high - low) * steps
        if seen is None:
            y = call_places(problem, owner, x)
            size = y.abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
        else:
            new = call_places(problem, owner, torch.cat((x[1:4], x[5:8])))
            y = torch.cat((seen[:1], new[:3], seen[1:2], new[3:], seen[2:]))
        assert size is not None
        spent[index] += DIVISIONS + 1 if seen is None else DIVISIONS - 2
        bend, at = _bends(y, size)
        # As close as numbers are: what is left is the bend between neighbours.
        close = (high - low) <= 0.5 * DIVISIONS * ulp * torch.maximum(low.abs(), high.abs())
        close = close | ((high - low) < problem.pieces.rounding.tiny**0.5)
        even = bend <= 16.0 * eps
        nothing = (bend * ((high - low) / whole[index]) <= 4.0 * eps) & ~even  # as an integral
        history.append(bend)
        now = low + (high - low) * (at.to(low.dtype) / DIVISIONS)
        corner = _corner(x, y, at, now) if bool(nothing.any()) else now
        place[index] = torch.where(even, place[index], torch.where(nothing, corner, now))
        falls = torch.zeros_like(even)
        if len(history) > SURE:
            falls = bend < SMOOTH**SURE * history[-1 - SURE]
        # A bend that rounding hides is that of a kink, or of something smooth.
        known = close & ~even
        if len(history) > SURE:
            known = known | (nothing & ~falls)
            known = known | (even & ~falls & (history[-2] > SMOOTH ** (SURE - 1) * history[-1 - SURE]))
        found[index] = known
        # Between the neighbours beside a jump it may be anywhere; a singularity is where f is largest.
        apart = 2.0 * torch.maximum((high - low) / DIVISIONS, ulp * now.abs()) * size.amax(1)
        uncertain = torch.where(bend <= BOUNDED, apart * bend, 0.0).clamp_min(torch.finfo(apart.dtype).tiny)
        doubt[index] = torch.where(known & close, uncertain, 0.0)
        going = ~(close | even | falls | (nothing & (len(history) > SURE)))
        if not bool(going.any()):
            break
        triple = torch.stack((at - 1, at, at + 1))[:, :, None].expand(3, *y.shape[1:])
        seen = y.gather(0, triple)[:, going]
        step = (high - low) / DIVISIONS
        middle = now
        low, high = (middle - step)[going], (middle + step)[going]
        history = [h[going] for h in history]
        owner, index, size = owner[going], index[going], size[going]
    return place, found, doubt, spent


def _bends(y: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest second difference of values ``(m, k, c)``, relative to their sizes, and at which node."""
    scale = torch.where(size > 0.0, size, 1.0)
    bends = ((y[2:] - 2.0 * y[1:-1] + y[:-2]).abs() / scale).nan_to_num(torch.inf, torch.inf).amax(2)
    wild = ~y[1:-1].abs().isfinite().all(2)  # the pole itself rather than its neighbours
    bends = torch.where(wild, torch.inf, bends.clamp_max(torch.finfo(bends.dtype).max))
    most, at = bends.max(0)
    return most, at + 1


def _corner(x: Tensor, y: Tensor, at: Tensor, otherwise: Tensor) -> Tensor:
    """Return where straight lines through values left and right of the greatest bend meet, if that is beside it.

    Of a kink this close they are straight, and its place is what derivatives see of it.
    """
    bends = (y[2:] - 2.0 * y[1:-1] + y[:-2]).abs()
    at = at.clamp(2, DIVISIONS - 2)
    which = bends.gather(0, (at - 1)[None, :, None].expand(1, *y.shape[1:]))[0].argmax(1)
    y = y.gather(2, which[None, :, None].expand(len(y), -1, 1))[:, :, 0]

    def line(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        (x0, y0), (x1, y1) = ([t.gather(0, i[None])[0] for t in (x, y)] for i in (first, last))
        slope = (y1 - y0) / (x1 - x0)
        return y0 - slope * (x0 - otherwise), slope

    none = torch.zeros_like(at)
    (left, rise), (right, fall) = line(none, at - 1), line(at + 1, none + DIVISIONS)
    away = (left - right) / (fall - rise)
    return torch.where(away.abs() <= x[1] - x[0], otherwise + away, otherwise)
