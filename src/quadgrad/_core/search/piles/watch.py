"""Places inside a piece where cells pile up: jumps, kinks and singularities that nobody marked.

Bisection closes in on such a place by one bit a round. Once a few rounds have, the place is found from f alone, and
search starts anew with a breakpoint there (:mod:`quadgrad._core.search.reach`). That a breakpoint lies where there
is nothing costs a cell, so that what is found here decides about nothing but nodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import locate
from quadgrad._core.mesh.interval import from_lower, lay_out
from quadgrad._core.problem import Problem
from quadgrad._core.search.ends.components import find_tail_of_all, is_single
from quadgrad._core.search.ends.decay import count_nodes_left
from quadgrad._core.search.ends.tails import are_quiet, find_tails
from quadgrad._core.search.ends.towards import Line
from quadgrad._core.search.piles.corners import SEVERAL, corners_first
from quadgrad._core.search.piles.stretches import LASTS, UNFINISHED, Ends, Piled
from quadgrad._core.search.piles.zoom import Zoom
from quadgrad._core.search.projection import AtHand, project
from quadgrad._core.search.task import Found, Places, Tail, hear_anew

__all__ = ["ZOOMED", "Piles", "watched"]

FIRST = 3
"""The round from which on cells are looked at; earlier, 20,000 peaks cost more."""

TRIALS = 3
"""How often an integral is looked at."""

STOPPED = 2**40
"""Nodes that an integral is charged with to have it end as beyond its budget."""

LATE, LATER = 5, 8
"""The rounds from which on ends are looked at whose cells do not get better; those with logarithmic nodes later."""

ENDS_TRIED = 2
"""How often each."""

ROUGH = 0.25
"""A piece is rough from one end on if much of the error is in cells up to this part of it."""

ZOOMED, DEAR = 220, 1_600
"""Most nodes that a place costs, and that a series does."""

CHEAP, CHEAP_OF_SEVERAL = 250, 600
"""An end is not looked at before an integral has cost so many nodes; of several components it is dearer."""

BISECTED = 3_000
"""Waves that have decayed by when an integral has cost so many nodes are left to bisection."""

IN_VAIN, PART = 27, 0.33
"""Nodes that it takes to see that f is smooth somewhere; in all they may cost this part of what was spent."""

SAVES, SAVES_STRONG = 600, 2_000
"""Nodes that bisection towards a kink, and a jump, would still take: an integral that has cost more goes on."""

TENTH, LEAST, AT_ENDS = 0.1, 1_500, 0.1
"""What part of the budget, and how many nodes, an integral has cost before it is given up as hopeless; once half of
the budget is spent the rest is, too. It goes on while ends with more than that part of the error are not tried."""

AT_END = 1e-9
"""A place closer to the end of its piece, relative to the piece, is none."""


class Stoppable(Protocol):
    """A search that can be looked at between its rounds."""

    def look_for_piles(self, far: float) -> Piled:
        """Look at the cells not judged yet of integrals whose error is ``far`` times what it may be, or more.

        See :mod:`quadgrad._core.search.piles.stretches`.
        """
        ...

    def settled_values(self, owner: Tensor) -> Tensor:
        """Return what the settled cells of some running integrals add up to, of one real component."""
        ...

    def cost(self, owner: Tensor) -> Tensor:
        """Return the nodes that some running integrals have cost."""
        ...

    def at_hand(self, least: int, most: int) -> AtHand | None:
        """Return the integrals that run, and have cost from ``least`` to below ``most``; None if there is none."""
        ...

    def charge(self, owner: Tensor, nodes: Tensor) -> None:
        """Have running integrals pay for further nodes."""
        ...


class _End(NamedTuple):
    """An end at which cells pile up, the ``number``-th at hand, and what is known of its integral so far.

    They reach from there over a ``distance``, a fraction of the piece.
    """

    number: int
    row: int
    upper: bool
    distance: float
    singular: bool
    value: float
    has_cost: float
    limits: tuple[float, float]

    @property
    def key(self) -> tuple[int, bool]:
        """The row of the piece, and whether it is its upper end."""
        return self.row, self.upper

    @property
    def infinite(self) -> bool:
        """Whether it is at infinity."""
        return math.isinf(self.limits[self.upper])

    def opposite(self) -> _End:
        """Return the other end of the piece, as if cells piled up in half of it."""
        return self._replace(upper=not self.upper, distance=0.5)


@dataclass(slots=True)
class _Look:
    """A look at an end, for a wave or for what falls steadily; the ``line`` there counts what it costs."""

    end: _End
    line: Line
    wave: bool
    quiet: bool = False


@dataclass
class Piles:
    """Looks at one search from time to time; what it found: integrals, places, and whether f is rough there."""

    problem: Problem
    zoom: Zoom
    rounds: int = 0
    owner: list[Tensor] = field(default_factory=list[Tensor])
    place: list[Tensor] = field(default_factory=list[Tensor])
    doubt: list[Tensor] = field(default_factory=list[Tensor])
    tried: Tensor | None = None
    before: tuple[Tensor, Tensor] | None = None
    tails: list[Tail] = field(default_factory=list[Tail])
    ends_tried: Counter[tuple[int, bool]] = field(default_factory=Counter[tuple[int, bool]])
    left_until: dict[tuple[int, bool], float] = field(default_factory=dict[tuple[int, bool], float])
    pending: set[int] = field(default_factory=set[int])
    need: Tensor | None = None  # nodes that integrals which were looked at seem to need, or NaN

    def _see_tails(self, search: Stoppable, ends: Ends) -> None:
        """Look for integrals whose cells pile up at an end all the same, and sum up what is there another way."""
        one, owner = is_single(self.problem.integrand), ends.row // self.problem.pieces.count
        looks = self._choose_looks(search, ends, owner, CHEAP if one else CHEAP_OF_SEVERAL)
        waves = [look for look in looks if look.wave]
        if one:  # of several components no wave is told by one of them
            still = are_quiet([look.line for look in waves], [look.end.distance for look in waves])
            for look, quiet in zip(waves, still, strict=True):
                look.quiet = quiet
        left = _left_to_bisection([look for look in waves if not look.quiet])
        self.left_until.update(left)
        self.pending.update(row // self.problem.pieces.count for row, _ in left)
        tried = [look for look in looks if look.end.key not in left]
        self.ends_tried.update(look.end.key for look in tried)
        tried = [look for look in tried if not look.quiet]
        asked = [(look.line, look.end.distance, abs(look.end.value), look.wave) for look in tried]
        if one and asked:
            tails = find_tails(*map(list, zip(*asked, strict=True)))
        else:
            tails = [find_tail_of_all(*each) for each in asked]
        costs = [0] * len(owner)
        for look in looks:
            costs[look.end.number] += look.line.spent
        for look, tail in zip(tried, tails, strict=True):
            if tail is not None:
                self.tails.append(tail)
                costs[look.end.number] += STOPPED
        if any(costs):
            search.charge(owner, torch.tensor(costs, device=owner.device))

    def _choose_looks(self, search: Stoppable, ends: Ends, owner: Tensor, least: int) -> list[_Look]:
        """Return the looks that are due, at ends of integrals that have cost so many nodes at ``least``."""
        problem, looks = self.problem, list[_Look]()
        columns = (
            ends.row, ends.upper, ends.distance, ends.singular, search.settled_values(owner), search.cost(owner),
            *(end.expand(owner.shape) for end in problem.pieces.ends(ends.row)),
        )  # fmt: skip
        # The host reads all at once.
        told = torch.stack([t.double() for t in columns], 1).tolist()
        at_hand = [
            _End(i, int(row), bool(upper), distance, bool(singular), value, cost, (low, high))
            for i, (row, upper, distance, singular, value, cost, low, high) in enumerate(told)
        ]
        for end in at_hand + self._beyond(at_hand):
            times, wave = self.ends_tried[end.key], end.infinite or not end.singular
            due = times < ENDS_TRIED and not (times and self.rounds % 2)
            due = due and max(least, self.left_until.get(end.key, 0.0)) <= end.has_cost <= problem.max_nfev - DEAR
            due = due and (wave or self.rounds >= LATER)
            if times + due < ENDS_TRIED:
                self.pending.add(end.row // problem.pieces.count)
            if due:
                looks.append(_Look(end, Line(problem, *end.key, end.limits, again=times > 0), wave))
        return looks

    def _beyond(self, at_hand: list[_End]) -> list[_End]:
        """Return ends at infinity where no cells pile up, of pieces that are rough from their other end on.

        Waves that decay leave little error at their end: what is rough may go there.
        """
        if (
            not self.problem.reaches_inside
        ):  # they are before a series that is searched, which may stand for the end
            return []
        known = {end.key for end in at_hand}
        opposite = [end.opposite() for end in at_hand if end.distance >= ROUGH]
        return [end for end in opposite if end.infinite and end.key not in known]

    def see(self, search: Stoppable) -> None:
        """Look at a search whose cells are evaluated, and stop the integrals of which all places were found."""
        self.rounds += 1
        self.pending.clear()
        self._look(search)
        self._give_up(search)
        hear_anew()  # integrals inside f that were called here are none of a cell's

    def _give_up(self, search: Stoppable) -> None:
        """Stop integrals that need many times the nodes they may cost; each is looked at once."""
        most = self.problem.max_nfev
        cells = None if self.rounds < LATE else search.at_hand(max(round(TENTH * most), LEAST), most // 2)
        if cells is None:
            return
        if self.need is None:
            self.need = torch.full((self.problem.batch,), torch.nan, dtype=torch.float64, device=cells.who.device)
        fresh = self.need[cells.who].isnan()
        if self.pending:  # a series may stand for what is at an end yet
            waits = torch.isin(cells.who, torch.tensor(sorted(self.pending), device=cells.who.device))
            fresh &= ~(waits & (cells.share_at_ends() > AT_ENDS))
        if not bool(fresh.any()):
            return
        cells = cells.take(fresh)
        self.need[cells.who], hopeless, spent = project(self.problem, cells)
        search.charge(cells.who, spent + STOPPED * hopeless)

    def _look(self, search: Stoppable) -> None:
        if self.rounds < FIRST:
            return
        piled = search.look_for_piles(UNFINISHED if self.rounds < LASTS else 1.0)
        if self.rounds >= LATE and self.problem.series and len(piled.ends.row):
            self._see_tails(search, piled.ends)
        if not self.problem.reaches_inside:
            return
        row = piled.row
        if not len(row):
            self.before = None
            return
        self._close_in(search, piled, self._stays(piled))

    def _close_in(self, search: Stoppable, piled: Piled, stays: Tensor) -> None:
        """Look closely at stretches that stay, and at those of integrals with several."""
        row, pieces = piled.row, self.problem.pieces
        owner = row // pieces.count
        before = torch.searchsorted(owner, owner)
        size = torch.searchsorted(owner, owner, right=True) - before
        several = size >= SEVERAL
        known, cost, looks = self._holds(owner, piled), search.cost(owner), stays | several
        if self.tried is None:
            self.tried = torch.zeros(self.problem.batch, dtype=torch.int64, device=row.device)
        fresh = looks & ~known & (self.tried[owner] < TRIALS) & (cost + ZOOMED * size <= self.problem.max_nfev)
        fresh &= IN_VAIN * _count(fresh, before, size) <= PART * cost
        n, n_several = torch.stack((fresh, fresh & several)).sum(1).tolist()
        if not n:
            return
        index = locate(fresh, n)
        low, high = _ends_of(self.problem, row[index], piled.start[:, index], piled.stop[:, index])
        place, found, doubt, spent, (beside, more) = corners_first(
            self.zoom, self.problem, row[index], low, high, locate(several[index], n_several)
        )
        mine = owner[index]
        search.charge(mine, spent)
        # So close to an end a singular one is steeper still: what was closed in on is the end.
        lower, upper = pieces.ends(row[index])
        found &= torch.minimum(place - lower, upper - place) > AT_END * (upper - lower).nan_to_num(posinf=0.0)
        rough = found.nonzero().squeeze(1)
        if len(rough):
            self.owner.append(mine[rough])
            self.place.append(place[rough])
            self.doubt.append(doubt[rough])
        if len(more):
            self.owner.append(mine[beside])
            self.place.append(more)
            self.doubt.append(torch.zeros_like(more))
        # In vain: sooner or later it is given up.
        vain = torch.zeros_like(self.tried).index_add_(0, mine, (~found).to(self.tried.dtype))
        self.tried += vain > 0
        if self.owner:
            left = ~known.index_copy(0, index, found)
            self._stop(search, owner[(_count(left, before, size) == 0) & (_count(looks, before, size) > 0)])

    def _stop(self, search: Stoppable, owner: Tensor) -> None:
        """Stop integrals of which places are known in all stretches, unless little is left to do."""
        saved = torch.zeros(self.problem.batch, dtype=torch.int64, device=owner.device)
        for whose, strong in zip(self.owner, self.doubt, strict=True):
            saved.index_add_(0, whose, torch.where(strong > 0.0, SAVES_STRONG, SAVES))
        stopped = owner[search.cost(owner) <= saved[owner]].unique()
        search.charge(stopped, torch.full_like(stopped, STOPPED))

    def _stays(self, piled: Piled) -> Tensor:
        """Tell which stretches are in one of the round before: what is smooth is resolved when that is halved."""
        before, ends = self.before, torch.stack((piled.start[0], piled.stop[1]))
        low, high = (from_lower(ends) + piled.row).unbind()
        self.before = low, high  # ascending
        if before is None or not len(before[0]):
            return torch.zeros_like(low, dtype=torch.bool)
        at = torch.searchsorted(before[0], high) - 1
        return (at >= 0) & (before[1][at.clamp_min(0)] > low)

    def _holds(self, owner: Tensor, piled: Piled) -> Tensor:
        """Tell in which stretches a place was found already."""
        known = torch.zeros_like(owner, dtype=torch.bool)
        if self.owner:
            low, high = _ends_of(self.problem, piled.row, piled.start, piled.stop)
            for whose, place in zip(self.owner, self.place, strict=True):
                known |= ((owner[:, None] == whose) & (low[:, None] <= place) & (place <= high[:, None])).any(1)
        return known


def watched(problem: Problem, search: Callable[[Piles | None], Found], zoom: Zoom) -> Found:
    """Run a search, watched if that is wanted, and enter in its outcome what was found; one body is to zoom."""
    if not problem.reaches:
        return search(None)
    piles = Piles(problem, zoom)
    found = search(piles)
    if piles.tails:
        found.tails = piles.tails
    if piles.owner or piles.tails or piles.need is not None:
        found.nfev = found.nfev % STOPPED
    found.need = piles.need
    if piles.owner:
        found.found_places = Places(torch.cat(piles.owner), torch.cat(piles.place), torch.cat(piles.doubt))
    return found


def _left_to_bisection(looks: list[_Look]) -> dict[tuple[int, bool], float]:
    """Return ends with waves that decay before a series would pay, and what integrals will have cost by then."""
    some = [look for look in looks if look.line.infinite and look.end.has_cost < BISECTED]
    left = count_nodes_left([look.line for look in some], [look.end.distance for look in some])
    until = {look.end.key: look.end.has_cost + nodes for look, nodes in zip(some, left, strict=True)}
    return {key: nodes for key, nodes in until.items() if nodes <= BISECTED}


def _count(mask: Tensor, before: Tensor, size: Tensor) -> Tensor:
    """Return how many of the ``size`` entries of each one's owner, which begin after ``before``, are in a mask."""
    count = torch.nn.functional.pad(mask.cumsum(0), (1, 0))
    return count[before + size] - count[before]


def _ends_of(problem: Problem, row: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Return lower and upper end in x of stretches from one cell to another, and a little beyond."""
    layout = lay_out(problem.pieces, row.repeat(2), start.flatten(), stop.flatten(), None)
    x, _ = layout.nodes(start.new_tensor([0.0, 1.0]))
    (low, before), (after, high) = x.unflatten(1, start.shape).unbind()
    # What lies on the edge of two cells may be seen by one of them alone.
    beside = 0.25 * torch.stack((after - low, high - before))
    lower, upper = problem.pieces.ends(row)
    beside = torch.minimum(beside, 0.5 * torch.stack((low - lower, upper - high)))
    return low - beside[0], high + beside[1]
