"""Places inside a piece where cells pile up: jumps, kinks and singularities that nobody marked.

Bisection closes in on such a place by one bit a round. Once a few rounds have, the place is found from f alone, and
search starts anew with a breakpoint there (:mod:`quadgrad._core.search.reach`). That a breakpoint lies where there
is nothing costs a cell, so that what is found here decides about nothing but nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import lay_out
from quadgrad._core.problem import Problem
from quadgrad._core.search.ends.components import find_tail_of_all
from quadgrad._core.search.ends.decay import count_nodes_left
from quadgrad._core.search.ends.tails import are_quiet
from quadgrad._core.search.ends.towards import Line
from quadgrad._core.search.piles.corners import SEVERAL, corners_first
from quadgrad._core.search.piles.stretches import LASTS, UNFINISHED, Ends, Piled
from quadgrad._core.search.piles.zoom import Zoom
from quadgrad._core.search.task import Found, Places, Tail, hear_anew

__all__ = ["ZOOMED", "Piles", "watched"]

FIRST, EVERY = 3, 1
"""The round after which cells are looked at, and how many rounds later again; earlier, 20,000 peaks cost more."""

TRIALS = 3
"""How often an integral is looked at."""

STOPPED = 2**40
"""Nodes that an integral is charged with to have it end as beyond its budget."""

LATE, LATER = 5, 8
"""The rounds from which on ends are looked at whose cells do not get better; those with logarithmic nodes later."""

ENDS_TRIED = 2
"""How often each."""

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

AT_END = 1e-9
"""A place closer to the end of its piece, relative to the piece, is none."""


Look = tuple[int, bool, float, bool, float]
"""The row of a piece, whether its upper end, from which distance, whether for a wave, and the integral so far."""


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

    def charge(self, owner: Tensor, nodes: Tensor) -> None:
        """Have running integrals pay for further nodes."""
        ...


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
    ends_tried: dict[tuple[int, bool], int] = field(default_factory=dict[tuple[int, bool], int])
    left_until: dict[tuple[int, bool], float] = field(default_factory=dict[tuple[int, bool], float])

    def _see_tails(self, search: Stoppable, ends: Ends) -> None:
        """Look for integrals whose cells pile up at an end all the same, and sum up what is there another way."""
        problem, owner = self.problem, ends.row // self.problem.pieces.count
        columns = (
            ends.row, ends.upper, ends.distance, ends.singular, search.settled_values(owner), search.cost(owner),
            *(end.expand(owner.shape) for end in problem.pieces.ends(ends.row)),
        )  # fmt: skip
        integrand = problem.integrand
        one = integrand.event == () and not (integrand.output_dtype or torch.float64).is_complex
        least, most = CHEAP if one else CHEAP_OF_SEVERAL, problem.max_nfev - DEAR
        costs, lines = [0] * len(owner), dict[int, Line]()
        looks, has_cost = dict[int, Look](), dict[int, float]()
        # The host reads all at once.
        for i, told in enumerate(torch.stack([t.double() for t in columns], 1).tolist()):
            row, upper, distance, singular, value, spent, *limits = told
            row, upper = int(row), bool(upper)
            times, wave = self.ends_tried.get((row, upper), 0), math.isinf(limits[upper]) or not singular
            due = times < ENDS_TRIED and not (times and self.rounds % 2)
            due = due and spent >= self.left_until.get((row, upper), 0.0)
            if due and least <= spent <= most and (wave or self.rounds >= LATER):
                looks[i] = row, upper, distance, wave, value
                if wave:
                    lines[i] = Line(problem, row, upper, tuple(limits), again=times > 0)
                    has_cost[i] = spent
        quiet = dict[int, bool]()
        if one:  # of several components no wave is told by one of them
            quiet = dict(zip(lines, are_quiet([*lines.values()], [looks[i][2] for i in lines]), strict=True))
        for i in self._leave_to_bisection(looks, {i: lines[i] for i in lines if not quiet.get(i)}, has_cost):
            costs[i] = lines[i].spent
            del looks[i]
        for i, (row, upper, distance, wave, value) in looks.items():
            again = (row, upper) in self.ends_tried
            self.ends_tried[row, upper] = self.ends_tried.get((row, upper), 0) + 1
            if quiet.get(i):
                costs[i] = lines[i].spent
            else:
                costs[i] = self._see_tail(row, upper, distance, wave, value, again)
        if any(costs):
            search.charge(owner, torch.tensor(costs, device=owner.device))

    def _leave_to_bisection(
        self, looks: dict[int, Look], lines: dict[int, Line], has_cost: dict[int, float]
    ) -> list[int]:
        """Return at which ends waves decay so soon that bisection will be done before a series paid."""
        some = [i for i, line in lines.items() if line.infinite and has_cost[i] < BISECTED]
        left = count_nodes_left([lines[i] for i in some], [looks[i][2] for i in some])
        done = {i: has_cost[i] + nodes for i, nodes in zip(some, left, strict=True)}
        soon = {i: nodes for i, nodes in done.items() if nodes <= BISECTED}
        self.left_until.update({looks[i][:2]: nodes for i, nodes in soon.items()})
        return list(soon)

    def _see_tail(self, row: int, upper: bool, distance: float, wave: bool, value: float, again: bool) -> int:
        """Look for a tail at one end; return what the integral is to be charged."""
        tail, nodes = find_tail_of_all(self.problem, row, upper, distance, abs(value), again, wave)
        if tail is None:
            return nodes
        self.tails.append(tail)
        return nodes + STOPPED

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
        row = piled.row
        if not len(row):
            self.before = None
            return
        stays = self._stays(
            *(row + torch.where(end < 0.0, 1.0 + end, end) for end in (piled.start[0], piled.stop[1]))
        )
        self._close_in(search, piled, stays)

    def _close_in(self, search: Stoppable, piled: Piled, stays: Tensor) -> None:
        """Look closely at stretches that stay, and at those of integrals with several."""
        row, pieces = piled.row, self.problem.pieces
        owner = row // pieces.count
        size = _count(owner, torch.ones_like(stays))
        several = size >= SEVERAL
        looks = stays | several
        here = (_count(owner, looks) > 0).nonzero().squeeze(1)
        if not len(here):
            return
        piled = Piled(row[here], piled.start[:, here], piled.stop[:, here], piled.ends)
        row, owner, looks, several = piled.row, owner[here], looks[here], several[here]
        low, high = _ends_of(self.problem, piled)
        known, cost = self._holds(owner, low, high), search.cost(owner)
        if self.tried is None:
            self.tried = torch.zeros(self.problem.batch, dtype=torch.int64, device=row.device)
        afford = cost + ZOOMED * size[here] <= self.problem.max_nfev
        fresh = ~known & (self.tried[owner] < TRIALS) & afford & looks
        fresh &= IN_VAIN * _count(owner, fresh) <= PART * cost
        index = fresh.nonzero()[:, 0]
        if not len(index):
            return
        place, found, doubt, spent, (beside, more) = corners_first(
            self.zoom, self.problem, row[index], low[index], high[index], several[index]
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
            self._stop(search, owner, known.index_copy(0, index, found))

    def _stop(self, search: Stoppable, owner: Tensor, known: Tensor) -> None:
        """Stop the integrals in all stretches of which a place is known, unless little is left to do."""
        saved = torch.zeros(self.problem.batch, dtype=torch.int64, device=owner.device)
        for whose, strong in zip(self.owner, self.doubt, strict=True):
            saved.index_add_(0, whose, torch.where(strong > 0.0, SAVES_STRONG, SAVES))
        stops = (_count(owner, ~known) == 0) & (search.cost(owner) <= saved[owner])
        stopped = owner[stops].unique()
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


def watched(
    problem: Problem,
    search: Callable[[Piles | None], Found],
    zoom: Zoom,
) -> Found:
    """Run a search, watched if that is wanted, and enter in its outcome what was found; one body is to zoom."""
    if not problem.reaches:
        return search(None)
    piles = Piles(problem, zoom)
    found = search(piles)
    if piles.tails:
        found.tails = piles.tails
    if piles.owner or piles.tails:
        found.nfev = found.nfev % STOPPED
    if piles.owner:
        found.found_places = Places(torch.cat(piles.owner), torch.cat(piles.place), torch.cat(piles.doubt))
    return found


def _count(owner: Tensor, mask: Tensor) -> Tensor:
    """Return how many entries of each one's owner are in a mask; owners ascend."""
    before = torch.nn.functional.pad(mask.cumsum(0), (1, 0))
    return before[torch.searchsorted(owner, owner, right=True)] - before[torch.searchsorted(owner, owner)]


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
