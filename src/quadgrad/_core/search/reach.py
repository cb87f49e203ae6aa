"""Search on with what a search has found that bisection does not reach.

Places inside pieces where f jumps, bends or is singular become breakpoints of their integrals, which are searched
afresh: beside a breakpoint nothing of what was wrong is left, and ends of pieces have nodes made for singularities.
Series towards ends stand for what is beyond their first cell; what is before it is searched. The other integrals
keep their cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.mesh.cells import WHOLE
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.decide import Totals, allowed_error
from quadgrad._core.search.following import Start, follow
from quadgrad._core.search.looks.carried import Sights
from quadgrad._core.search.looks.spikes import join_spikes
from quadgrad._core.search.start import first_cells
from quadgrad._core.search.task import Found, Places, Tail, join_needs, join_places
from quadgrad._core.search.tiles import follow_carried, search_tiles
from quadgrad._core.status import Status

__all__ = ["search_on", "search_reaching"]

AGAIN = 5
"""Searches at most after the first: not all places show at once."""

PARTS = 16
"""What a search has spent is counted in so many parts of the budget."""

MOST_CANCELLED = 20
"""What is before a series may be 2^20 times the whole; of more cancellation no digits are left to ask for."""

LOOKS = 8
"""So many places at most beside its nodes does a first cell look at."""

Search = Callable[[Problem, "IntervalPlan | None"], Found]


def search_reaching(problem: Problem, search: Search, plan: IntervalPlan | None) -> Found:
    """Search a problem, from the cells of a plan if one is given, and again with what this finds."""
    # What was summed up as a series is not in a plan's cells.
    start = follow(problem, None if plan is not None and plan.term is not None else plan)
    return search_on(start, search(start.task, start.plan))


def search_on(start: Start, found: Found) -> Found:
    """Search again with what a search has found, as long as that finds more."""
    if start.places is None and found.found_places is None and not found.tails:
        return found
    reach = _Reach(start, found)
    for trial in range(AGAIN):
        if not reach.go_on(trial + 1 < AGAIN):
            break
    reach.tighten()
    return reach.close()


class _Reach:
    """The state of a search: what was found so far, of all integrals, the places, and the series."""

    def __init__(self, start: Start, found: Found) -> None:
        found.nfev = found.nfev + start.nodes
        self.problem, self.found, self.places = start.problem, found, start.places
        self.doubt = torch.zeros_like(found.error, dtype=torch.float64) + start.doubt
        self.unproved = start.unproved
        self.tails = list[Tail]()
        self.sights: Sights | None = None

    def go_on(self, reaches: bool) -> bool:
        """Search the integrals again of which something new is known; return whether there were any."""
        found, most = self.found, self.problem.max_nfev
        # By what they have spent, not by what another one has: integrals of a batch are those of single calls.
        parts = torch.ceil(found.nfev * (PARTS / most)).long()
        new, places = found.tails or [], found.found_places
        spikes, found.spikes = found.spikes, None
        found.tails = found.found_places = None
        pieces = torch.full_like(parts, self.problem.with_found(self.places).pieces.count + 2)
        if places is not None:
            pieces += torch.bincount(places.owner, minlength=len(pieces))
        left = most - most * parts // PARTS
        stopped = (found.status != int(Status.CONVERGED)) & (left > pieces * (self.problem.rule.nodes.size + LOOKS))
        taken = {(tail.owner, tail.piece, tail.upper) for tail in self.tails}  # which no second one is to stand for
        new = [t for t in new if (t.owner, t.piece, t.upper) not in taken]
        if places is not None and self.problem.batch > 1:
            marked = stopped & ~_mask(stopped, [tail.owner for tail in new])
            stopped &= left >= self._first_round(_of(places, marked))
        new = [tail for tail in new if bool(stopped[tail.owner])]
        ends = _mask(stopped, [tail.owner for tail in new])
        inside = torch.zeros_like(ends)
        if places is not None:
            inside[places.owner] = True
            inside &= stopped & ~ends
        self.tails += new
        if bool(inside.any()):
            assert places is not None
            if spikes is not None:
                self.sights = Sights.of(self.problem.with_found(self.places), spikes, inside, self.sights)
            self._mark(inside, _of(places, inside))
        if self.unproved is not None:
            inside |= self._forget_places(stopped & self.unproved & ~(inside | ends))
        for again, inner in ((inside, True), (ends, False)):
            for part in parts[again].unique().tolist():
                self._search(again & (parts == part), reaches, inner, most - most * part // PARTS)
        return bool((inside | ends).any())

    def _first_round(self, new: Places | None = None) -> int:
        """Return what a first round costs, with new places marked: all have as many pieces as who has the most."""
        places = self.places if new is None or not len(new.owner) else _join(self.places, new, self.problem.batch)
        problem = self.problem.with_found(places)
        return (problem.rule.nodes.size + WHOLE) * problem.pieces.count

    def _forget_places(self, failed: Tensor) -> Tensor:
        """Forget the places of integrals that did not converge on kept cells between them, and return these."""
        self.unproved = None
        if self.places is not None and bool(failed.any()):
            self.places = self.places.masked_fill(failed[:, None], torch.nan)
            self.doubt = self.doubt.masked_fill(failed, 0.0)
            self.found.plan = self.found.plan.take(~failed[self.found.plan.owner])
        return failed

    def _mark(self, again: Tensor, new: Places) -> None:
        """Take places among the breakpoints, and the plan's rows with them."""
        self.doubt = self.doubt.index_add(0, new.owner, new.doubt)
        self.places = _join(self.places, new, self.problem.batch)
        count, plan = self.problem.with_found(self.places).pieces.count, self.found.plan
        plan = plan.take(~again[plan.owner])
        self.found.plan = replace(plan, pieces=count, row=plan.owner * count + plan.piece)

    def tighten(self) -> None:
        """Search what is before series again where both cancel: its tolerance is that of their sum."""
        if not self.tails:
            return
        value, error = self._sums()
        whole, before = (largest_component(t.abs()).double() for t in (value, self.found.value))
        short = self._are_short(value, error) & (whole > 0.0)
        times = torch.where(short, (before / whole).log2().ceil(), 0.0).clamp_max(MOST_CANCELLED)
        most = self.problem.max_nfev
        parts = torch.ceil(self.found.nfev * (PARTS / most)).long()
        due = short & (times > 0.0) & (parts < PARTS) & (most - most * parts // PARTS >= self._first_round())
        key = torch.where(due, times.long() * PARTS + parts, 0)
        for each in key[key > 0].unique().tolist():
            part = each % PARTS
            self._search(key == each, False, False, most - most * part // PARTS, 0.5 ** (each // PARTS))

    def _sums(self) -> tuple[Tensor, Tensor]:
        """Return the integrals, and their errors, with the series added."""
        value, error = self.found.value.clone(), self.found.error.clone()
        for tail in self.tails:
            value[tail.owner] += tail.value
            error[tail.owner] += tail.error
        return value, error

    def _are_short(self, value: Tensor, error: Tensor) -> Tensor:
        """Tell which integrals with series miss their tolerance although what is before the series met it."""
        mine = _mask(self.found.status, [tail.owner for tail in self.tails])
        size = largest_component(value.abs().double())
        allowed = allowed_error(self.problem.tolerance, Totals(size, size, error, torch.zeros_like(size)))
        return mine & (self.found.status == int(Status.CONVERGED)) & ~(error <= allowed)

    def _search(self, again: Tensor, reaches: bool, inside: bool, left: int, part: float = 1.0) -> None:
        problem, found = self.problem.with_found(self.places), self.found
        count = problem.pieces.count
        whole = first_cells(problem, None)
        first = whole.take(again[whole.owner])
        heads = [tail for tail in self.tails if bool(again[tail.owner])]
        if heads:
            rows = torch.tensor([tail.owner * count + tail.piece for tail in heads], device=first.row.device)
            first = first.take(~torch.isin(first.row, rows))
            for row in rows.unique().tolist():
                start, stop = _head([tail for tail in heads if tail.owner * count + tail.piece == row], first.start)
                first = first.join(first.with_cells(torch.full_like(start, row, dtype=torch.int64), start, stop))
        tolerance = problem.tolerance
        if not inside:
            tolerance = replace(tolerance, rtol=0.5 * part * tolerance.rtol)
        task = replace(
            problem, budget=left, opening=None, reaches=reaches, reaches_inside=inside, tolerance=tolerance
        )
        mended = search_tiles(task, first)
        spikes = None
        if self.sights is not None and self.places is not None:
            spikes = self.sights.spikes(problem, again, self.places)
        if spikes is not None:
            mended = follow_carried(task, mended, spikes)
        plan = found.plan.take(~again[found.plan.owner]).join(mended.plan)
        value = torch.where(again.reshape(-1, *(1,) * (found.value.ndim - 1)), mended.value, found.value)
        error, status = (
            torch.where(again, getattr(mended, name), getattr(found, name)) for name in ("error", "status")
        )
        nfev = found.nfev + torch.where(again, mended.nfev, 0)
        self.found = Found(
            plan, value, error, status, nfev, tails=[*(found.tails or []), *(mended.tails or [])],
            found_places=join_places([found.found_places, mended.found_places]),
            spikes=join_spikes(found.spikes, mended.spikes), need=join_needs(found.need, mended.need),
        )  # fmt: skip

    def close(self) -> Found:
        """Return all of it, with the series added."""
        found, count = self.found, self.problem.with_found(self.places).pieces.count
        plan = found.plan.with_places(self.places)
        found.error = found.error + self.doubt.to(found.error)
        if not self.tails:
            found.plan = plan
            return found
        value, error = self._sums()
        each = [(t.owner * count + t.piece, t.kind) for t in self.tails]
        sizes = torch.tensor([len(t.code) for t in self.tails], device=plan.row.device)
        row, kind = torch.tensor(each, device=plan.row.device).repeat_interleave(sizes, 0).unbind(1)
        start, stop, code, errors = (
            torch.cat([getattr(t, name) for t in self.tails]) for name in ("start", "stop", "code", "errors")
        )
        cells = plan.with_cells(row, start, stop, kind.to(torch.int8))
        plan = plan.join(replace(cells, term=code, error=errors))
        status = found.status.masked_fill(self._are_short(value, error), int(Status.ROUNDOFF))
        return Found(plan, value, error, status, found.nfev, need=found.need)


def _mask(like: Tensor, owners: list[int]) -> Tensor:
    mask = torch.zeros_like(like, dtype=torch.bool)
    mask[owners] = True
    return mask


def _head(tails: list[Tail], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return start and stop of cells that cover a piece up to its series."""
    edges = {tail.upper: tail.edge for tail in tails}
    low, high = edges.get(False, 0.0), edges.get(True, 0.0)
    if low < 0.5 < 1.0 - high:
        start, stop = [low, -0.5], [0.5, -high]
    elif low >= 0.5:
        start, stop = [low - 1.0], [-high]
    else:
        start, stop = [low], [1.0 - high]
    return like.new_tensor(start), like.new_tensor(stop)


def _of(places: Places, whose: Tensor) -> Places:
    """Return the places of some integrals, given by a mask."""
    mine = whose[places.owner]
    return Places(places.owner[mine], places.place[mine], places.doubt[mine])


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
