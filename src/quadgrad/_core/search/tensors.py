"""The search in tensor operations, for cells of any geometry and on any device.

What a round does with one integral is done for all at once, and what the host has to know of it is read at once: it
is how many operations there are, and how often the host waits, that a small round on a fast device costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.cells import locate
from quadgrad._core.mesh.protocol import Cells, Estimate, Mesh, NewCells, Places
from quadgrad._core.problem import Problem
from quadgrad._core.search.books import Books, Running, add_by_owner, sum_by_owner
from quadgrad._core.search.decide import RUN, WAIT, Totals, Verdict, allowed_error, finish, judge, mark, stuck
from quadgrad._core.search.piles.stretches import Evaluated, Piled, look_for_piles
from quadgrad._core.search.projection import AtHand
from quadgrad._core.search.task import hear, hear_anew, inner_error, noise

__all__ = ["TensorBodies", "TurnsComplexError", "add_inner_error", "call_beside", "unpack"]


R = TypeVar("R")


class TurnsComplexError(Exception):
    """f returned complex values where the first one was real: all has to be done again with complex sums."""


@dataclass(slots=True)
class Count:
    """See :class:`quadgrad._core.search.rounds.Tally`."""

    running: int
    waiting: int


class TensorBodies(Generic[R]):
    """The state of one search, see :class:`quadgrad._core.search.rounds.Bodies`.

    ``record`` makes what is handed over of the settled cells and of value, error, status and nfev of all integrals.
    """

    def __init__(self, task: Problem, mesh: Mesh, estimate: Estimate, record: Callable[..., R]) -> None:
        self.task, self.mesh, self.estimate, self.record = task, mesh, estimate, record
        self.dtype = task.integrand.output_dtype or task.integrand.sum_dtype
        self.waiting, self.reopened = 0, False
        self.new: Sequence[NewCells] = ()
        self.added: tuple[Tensor, Totals] | None = None

    def open(self, first: Any) -> None:
        """Take the cells to start with."""
        self.new, n = self.mesh.start(first), self.task.batch
        owner = torch.cat([new.owner for new in self.new])
        components = math.prod(self.task.integrand.event or ()) * (1 + self.dtype.is_complex)
        sums = torch.zeros((components + 2, n), dtype=torch.float64, device=owner.device)
        count = sum_by_owner(torch.ones_like(owner)[None], owner, n)[0]
        who = torch.arange(n, device=owner.device)
        rows = torch.cat([new.owner.new_full((len(new),), new.rows) for new in self.new])
        whole = torch.stack((who, count, sum_by_owner(rows[None], owner, n)[0], torch.zeros_like(who)))
        self.running, self.books = Running(whole, sums), Books(n, sums)

    def first_errors(self) -> tuple[Tensor, Tensor]:
        """Return the integral and the error of each cell that the search starts with."""
        return self.cells.whole[0], self.cells.sums[-2]

    def spent(self) -> Tensor:
        """Return the nodes spent on each integral that runs, to be written to."""
        return self.running.whole[2]

    def evaluate(self) -> None:
        """Call f on the new cells, a block of nodes at a time, and estimate."""
        mesh, parts = self.mesh, list[Cells]()
        for group in self.new:
            beside = mesh.beside(group)
            if beside is not None:
                mesh.enter(group, beside, self.widen(call_beside(self.task, beside)))
            for new in _cut(group, max(1, self.task.block // group.rows)):
                places = mesh.place(new)
                hear_anew()
                y = self.widen(_still(self.task.integrand(places.x, places.owner)))
                off = hear(y)
                parts.append(self.hear(self.estimate(new, places, y, noise(self.task)), places, off))
        self.cells = self.gather(Cells.join(parts))

    def hear(self, cells: Cells, places: Any, off: Tensor | None) -> Cells:
        """Return cells with what integrals inside f are off at their nodes."""
        return add_inner_error(self.task, cells, off)

    def gather(self, new: Cells) -> Cells:
        """Return the cells at hand, given those that are new."""
        return new

    def mark(self, verdict: Verdict, totals: Totals, cells: Cells, follow: bool) -> Tensor:
        """Tell which cells are to be split; see :func:`quadgrad._core.search.decide.mark`."""
        return mark(verdict, totals, cells, self.dtype.is_complex, follow)

    def set_aside(self, cells: Cells, splits: Tensor, count: int, runs: Tensor) -> Cells:
        """Return the cells that settle: all but the ``count`` that are split."""
        return cells.take(locate(~splits, len(cells) - count)) if count else cells

    def renumber(self, place: Tensor) -> None:
        """Take note of the new numbers of the integrals that run on."""

    def widen(self, y: Tensor) -> Tensor:
        """Return values in double precision."""
        if y.is_complex() and not self.dtype.is_complex:
            raise TurnsComplexError
        dtype = torch.complex128 if self.dtype.is_complex else torch.float64
        return y if y.dtype == dtype else y.to(dtype)

    def decide(self) -> Count:
        """Judge all running integrals, put away what has settled, and split the other cells."""
        task, mesh, cells, running = self.task, self.mesh, self.cells, self.running
        owner, (who, count, nfev, bad) = cells.whole[0], running.whole.unbind()
        n = len(running)
        (sums, totals), self.added = self.add_up(), None
        verdict = judge(task.tolerance, totals, count, bad, self.reopened)
        follow, rest = False, self._stuck(totals) if self.reopened else WAIT
        while True:
            moves = mesh.propose(cells, self.mark(verdict, totals, cells, follow))
            children, spent, more, dear = sum_by_owner(moves.price, owner, n).unbind()
            spent = spent + nfev
            afford = spent + dear <= task.max_nfev  # else as few children as can be
            children, spent = children.addcmul(more, afford), spent.addcmul(dear, afford)
            code = finish(verdict, children, spent > task.max_nfev, rest)
            runs = code == RUN
            counts = moves.restrict(*torch.stack((runs, afford)).index_select(1, owner).unbind())
            integrals = torch.stack((runs, code == WAIT, verdict.faint)).sum(1)
            n_run, n_wait, n_faint, *counts = torch.cat((integrals, counts)).tolist()
            if not n_faint or follow:
                break
            follow = True  # which is rare, and known only now
        self.waiting, self.reopened = self.waiting + n_wait, False
        if n_run < n:
            self.books.enter(who, code, nfev, sums)  # of those that run on, too: they will be entered again
        settled = self.set_aside(cells, moves.splits, counts[0], runs)
        owner = settled.whole[0]
        if n_run:
            sums = add_by_owner(running.sums, settled.sums, owner)
            going = Running(torch.stack((who, children, spent, verdict.bad)), sums)
            self.new = mesh.split(cells, moves, counts)
            if n_run < n:
                going = going.take(locate(runs, n_run))
                place = runs.cumsum(0) - 1
                for new in self.new:
                    new.owner = place.index_select(0, new.owner)
                self.renumber(place)
            self.running = going
        self.books.settle(settled, who.index_select(0, owner))
        return Count(n_run, self.waiting)

    def add_up(self) -> tuple[Tensor, Totals]:
        """Return what running integrals add up to with the cells at hand, as sums and as totals."""
        if self.added is None:
            cells, running = self.cells, self.running
            sums = add_by_owner(running.sums, cells.sums, cells.whole[0])
            self.added = sums, Totals.of(sums, self.dtype.is_complex)
        return self.added

    def look_for_piles(self, far: float) -> Piled:
        """Look at the cells not judged yet of integrals whose error is ``far`` times what it may be, or more."""
        owner, _, row, kind, *_ = self.cells.whole.unbind()
        _, totals = self.add_up()
        finished = totals.error <= far * allowed_error(self.task.tolerance, totals)
        evaluated = Evaluated(owner, row, self.cells.real[:2], self.cells.sums[-2], kind)
        return look_for_piles(evaluated, self.task.batch * self.task.pieces.count, finished)

    def settled_values(self, owner: Tensor) -> Tensor:
        """Return what the settled cells of some running integrals add up to, of one real component."""
        return self.running.sums[0, torch.searchsorted(self.running.whole[0], owner)]

    def cost(self, owner: Tensor) -> Tensor:
        """Return the nodes that some running integrals have cost."""
        return self.running.whole[2, torch.searchsorted(self.running.whole[0], owner)]

    def charge(self, owner: Tensor, nodes: Tensor) -> None:
        """Have running integrals pay for further nodes."""
        self.running.whole[2].index_add_(0, torch.searchsorted(self.running.whole[0], owner), nodes)

    def at_hand(self, least: int, most: int) -> AtHand | None:
        """Return the integrals that run, and have cost from ``least`` to below ``most``; None if there is none."""
        cells, tolerance = self.cells, self.task.tolerance
        owner, (who, _, spent, _) = cells.whole[0], self.running.whole.unbind()
        late = (spent >= least) & (spent < most)
        if not bool(late.any()):
            return None
        _, totals = self.add_up()
        index = ((cells.whole[1] > 0) & late[owner]).nonzero().squeeze(1)
        columns = (late.cumsum(0) - 1)[owner], cells.whole[2], *cells.real[:2], cells.sums[-2]
        return AtHand(who[late], spent[late], allowed_error(tolerance, totals)[late], *(t[index] for t in columns))

    def _stuck(self, totals: Totals) -> Tensor:
        """Say how integrals end of which all cells are at hand, and none can be split."""
        owner, splittable, *_ = self.cells.whole.unbind()
        errors = self.cells.sums[-2].masked_fill(splittable >= 0, 0.0)
        return stuck(self.task.tolerance, totals, sum_by_owner(errors[None], owner, len(self.running))[0])

    def withdraw(self) -> None:
        """Take the integrals that wait back, with all their cells."""
        self.running, cells = self.books.withdraw()
        self.cells, self.waiting, self.reopened = self.mesh.recall(cells), 0, True

    def close(self) -> R:
        """Return the totals and all settled cells."""
        value, error = unpack(self.task.integrand, self.dtype, self.books.sums)
        return self.record(Cells.join(self.books.settled), value, error, *self.books.whole.unbind())


def add_inner_error(problem: Problem, cells: Cells, off: Tensor | None) -> Cells:
    """Add to the errors of cells what integrals inside f are off at their nodes: refinement does not mend it."""
    if off is not None:
        m = problem.rule.nodes.size
        off = off[1 : m + 1] if len(off) > m else off
        more = inner_error(problem, off, cells.whole[2], cells.real[0], cells.real[1], cells.whole[3])
        cells.sums[-2:] += more
    return cells


def _cut(new: NewCells, size: int) -> Iterator[NewCells]:
    """Yield cells, so many at a time."""
    if len(new) <= size:
        yield new
    else:
        yield from (new.part(slice(low, low + size)) for low in range(0, len(new), size))


def call_beside(task: Problem, places: Places) -> Tensor:
    """Return f at single places, a block of them at a time, ``(k, *event)``."""
    x, owner, size = places.x, places.owner, task.block
    if x.shape[0] <= size:
        return _still(task.integrand(x[None], owner))[0]
    blocks = (slice(low, low + size) for low in range(0, x.shape[0], size))
    return torch.cat([_still(task.integrand(x[None, block], owner[block]))[0] for block in blocks])


def _still(y: Tensor) -> Tensor:
    """Return values without a gradient."""
    return y.detach() if y.requires_grad else y


def unpack(integrand: Integrand, dtype: torch.dtype, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return value ``(n, *event)`` and error of sums, see :class:`quadgrad._core.mesh.protocol.Cells`."""
    value, error = sums[:-2].T, sums[-2]
    value = torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous()) if dtype.is_complex else value
    value = value.reshape(sums.shape[1], *(integrand.event or ())).to(dtype)
    return value, error.to(value.real.dtype)
