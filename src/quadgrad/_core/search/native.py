"""Adaptive search on intervals in the compiled kernel, whatever the integrand returns.

The body of :mod:`quadgrad._core.search.rounds` for the CPU, with the same decisions as the tensor operations, which
the tests check. From here f is called, and memory is set aside.
"""

from __future__ import annotations

import math
from ctypes import addressof, byref, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.estimates.spikes import RISES
from quadgrad._core.mesh.cells import BESIDE, BESIDE_END, WHOLE
from quadgrad._core.mesh.interval import EXTRAPOLATED, LINEAR
from quadgrad._core.mesh.poles import ellipse
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.rules.rule import LOOKS
from quadgrad._core.search.decide import WAIT
from quadgrad._core.search.kernel.library import (
    CELL,
    END_LAYOUT,
    INTEGRAL,
    LAYOUT,
    LEAF,
    SHARE,
    Round,
    Setting,
    Tally,
    WitnessNumbers,
    load,
)  # fmt: skip
from quadgrad._core.search.kernel.memory import (
    BYTES,
    INTEGERS,
    REALS,
    CellMemory,
    Memory,
    numbers,
    pointer,
)
from quadgrad._core.search.kernel.values import UnreadableError, as_dtype, read, spreads
from quadgrad._core.search.kernel.zoom import zoom_native
from quadgrad._core.search.looks.witnesses import Witnesses
from quadgrad._core.search.looks.witnesses_native import numbers_of
from quadgrad._core.search.native_watched import (
    AT_START,
    ERROR,
    FLAGS,
    NFEV,
    ROW,
    START,
    STOP,
    WatchedBodies,
)  # fmt: skip
from quadgrad._core.search.piles.watch import watched
from quadgrad._core.search.stalled import search_cells
from quadgrad._core.search.task import Found, hear, hear_anew, inner_error, noise

__all__ = ["NativeBodies", "search_native"]

MOST = 2**62
"""No budget is larger: what a round would cost is added to what is spent."""

HELD = 64
"""Added to the kind of a cell whose column is held, see ``kernel.h``."""

SPIKE = 3
"""Numbers that tell of a spike: the row, the place, how far nodes are apart there."""


def search_native(task: Problem, first: IntervalPlan | None, witnesses: Witnesses | None = None) -> Found | None:
    """Search from the given cells, by default from whole pieces; None where f returns what the kernel cannot read.

    That shows in its values only: they need not be of the dtype that the first one had, nor be in memory at all.
    """
    try:
        bodies = lambda watcher: search_cells(NativeBodies(task, witnesses), task, first, watcher)
        return watched(task, bodies, zoom_native)
    except UnreadableError:
        return None


class NativeBodies(WatchedBodies):
    """One search: the cells at hand, the settled ones and the totals, as the kernel works on them.

    See :class:`quadgrad._core.search.rounds.Bodies`.
    """

    def __init__(self, task: Problem, witnesses: Witnesses | None = None) -> None:
        integrand, batch, count = task.integrand, task.batch, task.pieces.count
        self.task, self.kernel, self.memory = task, load(), Memory.take()
        self.dtype = integrand.output_dtype or integrand.sum_dtype
        self.parts = 2 if self.dtype.is_complex else 1
        self.columns = math.prod(integrand.event or ()) * self.parts
        self.width = self.columns if self.columns > 1 else 0
        opening = task.opening
        setting = opening.setting if opening else Setting.of(task.pieces, task.rule)
        setting.columns, setting.parts = self.columns, self.parts
        self.setting, self.threads, self.m = byref(setting), setting.threads, task.rule.nodes.size
        self.value, self.error = numbers(batch * self.columns), numbers(batch)
        self.held = numbers(batch * self.width).zero_() if self.width else REALS
        self.status, self.nfev = INTEGERS.new_empty(batch), INTEGERS.new_empty(batch)
        self.counts = INTEGERS.new_zeros(batch * count)
        self.settled = self.withdrawn = self.pairs = 0
        self.mixed, self.first, self.planned, self.tally = False, True, False, Tally()
        self.spiky, self.spikes = c_int64(), list[Tensor]()
        self.waiting = list[tuple[Tensor, Tensor, Tensor | None]]()
        tolerance, most = task.tolerance, task.max_nfev if witnesses is None else witnesses.most
        totals = (self.held, self.value, self.error, self.status, self.nfev, self.counts)
        self.round = Round(
            tolerance.rtol, tolerance.atol, tolerance.eps, tolerance.nothing,
            *ellipse(tolerance.rtol, self.m), int(min(most, MOST)), 0, 0, batch, 0, 0,
            addressof(setting), 0, 0, 0, 0, 0, *[t.data_ptr() for t in totals],
        )  # fmt: skip
        self.asks = None if witnesses is None else numbers_of(witnesses, self.parts)
        # Plain numbers of eight bytes are spread over cells by all threads; torch's index_select uses one.
        arguments = () if batch == 1 or integrand.captured else integrand.arguments
        self.own = [spreads(a) for a in arguments]
        spread = [a.value.data_ptr() for a, own in zip(arguments, self.own, strict=True) if own]
        self.spread = (c_void_p * len(spread))(*spread) if spread else ()

    def open(self, first: IntervalPlan | None) -> None:
        """Take the given cells, or whole pieces."""
        batch, count, opening, memory = self.task.batch, self.task.pieces.count, self.task.opening, self.memory
        whole = first is None and count == 1
        if first is not None:
            self.planned = True
            n, width = first.row.shape[0], CELL + self.width
            cells = memory.cells(n * width)[: n * width].view(n, width).zero_()
            cells[:, START], cells[:, STOP] = first.start, first.stop
            cells.view(torch.int64)[:, ROW] = first.row
            if not first.even:
                cells.view(torch.int8)[:, 8 * FLAGS] = first.kind
                cells[~first.linear, AT_START : AT_START + 3] = torch.nan
            self._enter(cells, first.even)
        elif opening is not None:
            self.layout, self.books = opening.room[CELL:], numbers(INTEGRAL)
            self._hold(torch.cat((opening.room[:CELL], self.held)) if self.width else opening.room, 1, 0)
        else:
            self.books = memory.room("books", batch * INTEGRAL)
            self.layout = memory.room("layout", batch * count * LAYOUT)
            room = memory.cells(batch * count * (CELL + self.width))
            n = self.kernel.begin(
                self.setting, batch, room.data_ptr(), self.books.data_ptr(), self.layout.data_ptr()
            )
            whole = whole and n == batch
            self._hold(room, n, 0)
        self.round.integrals = self.books.data_ptr()
        self.round.fresh = (self.m + WHOLE) * whole
        self.one_each = whole

    def _enter(self, cells: Tensor, even: bool) -> None:
        """Take cells, sorted by row, and open the books of all integrals as if they never had others."""
        room, n = cells, len(cells)
        if not even:
            linear = cells.view(torch.int8)[:, 8 * FLAGS] == LINEAR
            room, n = torch.cat((cells[linear], cells[~linear])), int(linear.sum())
        self._hold(room.flatten(), n, len(cells) - n)
        self.books, self.layout = numbers(self.task.batch, INTEGRAL), self.memory.room("layout", n * LAYOUT)
        self.kernel.open_books(
            self.setting, self.linear.pointer, n, self.ends.pointer, self.ends.n, self.task.batch,
            self.books.data_ptr(), self.layout.data_ptr(),
        )  # fmt: skip

    def _hold(self, room: Tensor, linear: int, ends: int) -> None:
        """Have so many cells of either kind at hand, which stand one after the other."""
        width = CELL + self.width
        self.linear, self.ends = CellMemory(room, linear, width), CellMemory(room, ends, width, linear * width)
        self.mixed = self.mixed or ends > 0

    def evaluate(self) -> None:
        """Call f between cells, at the nodes of those with evenly spread ones, and of the others."""
        if self.pairs:
            self._call_between()
        if self.first and self.planned:
            self._measure_planned()
        else:
            self._measure(self.linear, self.layout, self.first, self.first)
        self._measure_ends(self.ends)
        self.first = self.one_each = False

    def see(self, low: int, y: Tensor) -> None:
        """Measure cells of a plan, from the number ``low`` on, by f at their nodes, ``(m, n, *event)``.

        Those with evenly spread nodes come first, and none is in a block with others. What is extrapolated is so in
        the columns of the plan. Whole pieces wait for one another, so that few among many cost no calls of f.
        """
        off, y, n, ends = hear(y), read(y, self.parts), y.shape[1], low - self.linear.n
        if ends >= 0:
            width = self.ends.width
            cells = CellMemory(self.ends.room, n, width, self.ends.at + ends * width)
            kind = cells.room[cells.at :][: n * width].view(n, width).view(torch.int8)[:, 8 * FLAGS]
            kind += HELD * (kind >= EXTRAPOLATED)
            self._measure_ends(cells, y)
            self._add_inner_error(cells, off)
            return
        whole = self._whole(low, low + n)
        count = int(whole.sum())
        if count in (0, n):
            self._measure_some(slice(low, low + n), count > 0, y, off)
            return
        here, others = whole.nonzero().squeeze(1), (~whole).nonzero().squeeze(1)
        pick = lambda index: (low + index, y[:, index], None if off is None else off[:, index])
        self.waiting.append(pick(here))
        index, y, off = pick(others)
        self._measure_some(index, False, y, off)

    def restart(self) -> None:
        """Forget what was seen: all of it comes again."""
        self.waiting.clear()

    def close_first(self) -> None:
        """Measure what waits; take note that all cells of a plan are measured."""
        if self.waiting:
            index, y, off = (list(parts) for parts in zip(*self.waiting, strict=True))
            exact = all(o is None for o in off)
            off = [REALS.new_zeros(t.shape[:2]) if o is None else o for o, t in zip(off, y, strict=True)]
            self._measure_some(torch.cat(index), True, torch.cat(y, 1), None if exact else torch.cat(off, 1))
            self.waiting.clear()
        self.first = self.one_each = False

    def first_errors(self) -> tuple[Tensor, Tensor]:
        """Return the integral and the error of each cell of a plan."""
        n, width = self.linear.n + self.ends.n, self.linear.width
        cells = self.linear.room[: n * width].view(n, width)
        return cells.view(torch.int64)[:, ROW] // self.task.pieces.count, cells[:, ERROR]

    def spent(self) -> Tensor:
        """Return the nodes spent on each integral so far, to be written to."""
        return self.books.view(torch.int64)[:, NFEV]

    def _whole(self, low: int, high: int) -> Tensor:
        """Tell which of a plan's cells with evenly spread nodes are whole pieces."""
        cells = self.linear.room[: self.linear.n * self.linear.width].view(-1, self.linear.width)[low:high]
        return cells[:, STOP] - cells[:, START] == 1.0

    def _measure_planned(self) -> None:
        """Measure all cells of a plan with evenly spread nodes: whole pieces with looks, others without."""
        n = self.linear.n
        whole = self._whole(0, n)
        count = int(whole.sum())
        if count in (0, n):  # no need to take cells out and put them back
            self._measure_some(slice(0, n), count > 0)
            return
        for looks, mine in ((True, whole), (False, ~whole)):
            self._measure_some(mine.nonzero().squeeze(1), looks)

    def _measure_some(
        self, index: slice | Tensor, looks: bool, y: Tensor | None = None, off: Tensor | None = None
    ) -> None:
        """Measure some cells of a plan; ``y`` is f at their nodes, if known, and off by ``off``."""
        n, width = self.linear.n, self.linear.width
        if isinstance(index, slice):
            low, high = index.start, index.stop
            some = CellMemory(self.linear.room, high - low, width, low * width)
            self._measure(some, self.layout, True, looks, y, (low, n))
            self._add_inner_error(some, off)
            return
        cells, layout = self.linear.room[: n * width].view(n, width), self.layout[: n * LAYOUT].view(LAYOUT, n)
        taken = cells[index]
        some = CellMemory(taken.view(-1), len(index), width)
        self._measure(some, layout[:, index].view(-1), True, looks, y)
        self._add_inner_error(some, off)
        cells[index] = taken

    def _measure(
        self, cells: CellMemory, layouts: Tensor, first: bool, looks: bool, at_nodes: Tensor | None = None,
        among: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        """Apply the rule to cells with evenly spread nodes; to first ones with edges, to whole pieces with looks.

        Where f is known at the nodes, ``at_nodes``, it is called beside and between them alone. ``layouts`` are
        those of the cells, or of more: the number of the first among how many.
        """
        task, opening, low = self.task, self.task.opening, 0
        start, n = among or (0, cells.n)
        rows = self.m + (WHOLE if looks else BESIDE * first)
        for part in cells.parts(max(1, task.block // rows)):
            layout = layouts.data_ptr() + 8 * (start + low)
            if first and opening is not None:
                slope, y = pointer(opening.slope), read(opening.y.detach(), self.parts)
            else:
                x, slope = numbers(rows, part.n), self._slope(rows * part.n)
                self.kernel.place(self.setting, first, looks, part.pointer, part.n, x.data_ptr(), slope, layout, n)
                whose = slice(start + low, start + low + part.n)
                owner = whose if self.one_each else layouts[2 * n :][whose]
                y = self._call_unknown(x, owner, None if at_nodes is None else at_nodes[:, low : low + part.n])
            off = None if at_nodes is not None else hear(y)
            self.kernel.measure(
                self.setting, first, looks, noise(task), part.pointer, part.n, y.data_ptr(), slope, layout, n,
                *self._room_for_spikes(part.n),
            )  # fmt: skip
            self._keep_spikes()
            if off is not None:
                self._add_inner_error(part, off[1 : self.m + 1] if len(off) > self.m else off)
            if self.asks is not None and self.asks.left:
                self._ask(self.asks, False, part, y, slope, (layout, n), first)
            low += part.n

    def _ask(
        self,
        asks: WitnessNumbers,
        logarithmic: bool,
        cells: CellMemory,
        y: Tensor,
        slope: int | None,
        layout: tuple[int, int],
        first: bool,
    ) -> None:
        """Add what witnesses hold against cells to their errors; of first ones a row stands before the nodes."""
        row = 8 * cells.n if first else 0
        self.kernel.ask(
            self.setting, byref(asks), noise(self.task), logarithmic, cells.pointer, cells.n,
            y.data_ptr() + row * self.columns, None if slope is None else slope + row, *layout,
        )  # fmt: skip

    def _measure_ends(self, cells: CellMemory, at_nodes: Tensor | None = None) -> None:
        """Apply the rule to cells with logarithmic nodes; f is known at the nodes, ``at_nodes``, or not at all."""
        task, rows, low = self.task, self.m + BESIDE_END, 0
        for part in cells.parts(max(1, task.block // rows)):
            n = part.n
            x, layout = numbers(rows, n), self.memory.room("ends", n * (END_LAYOUT + 6 * self.columns))
            slope, at = self.memory.room("slope", rows * n).data_ptr(), layout.data_ptr()
            self.kernel.place_ends(self.setting, part.pointer, n, x.data_ptr(), slope, at)
            y = self._call_unknown(
                x, layout[2 * n : 3 * n], None if at_nodes is None else at_nodes[:, low : low + n]
            )
            off = None if at_nodes is not None else hear(y)
            self.kernel.measure_ends(
                self.setting, noise(task), task.tolerance.rtol, part.pointer, n, y.data_ptr(), slope, at,
                *self._room_for_spikes(n),
            )  # fmt: skip
            self._keep_spikes()
            self._add_inner_error(part, None if off is None else off[1 : self.m + 1])
            if self.asks is not None and self.asks.left:
                self._ask(self.asks, True, part, y, slope, (at, n), True)
            low += n

    def _room_for_spikes(self, n: int) -> tuple[Any, int]:
        """Return where those of n cells are counted, and where they are written."""
        self.spiky.value = 0
        room = self.memory.room("spikes", SPIKE * (RISES + LOOKS + 1) * n * self.columns)
        return byref(self.spiky), room.data_ptr()

    def _keep_spikes(self) -> None:
        """Keep what was written."""
        n = self.spiky.value
        if n:
            self.spikes.append(self.memory.room("spikes", 0)[: SPIKE * n].view(n, SPIKE).clone())

    def _add_inner_error(self, cells: CellMemory, off: Tensor | None) -> None:
        """Add what integrals inside f are off at the nodes to the errors of cells: refinement does not mend it."""
        if off is not None:
            columns = cells.room[cells.at :][: cells.n * cells.width].view(cells.n, cells.width)
            row, kind = columns.view(torch.int64)[:, ROW], columns.view(torch.int8)[:, 8 * FLAGS]
            more = inner_error(self.task, off, row, columns[:, START], columns[:, STOP], kind)
            columns[:, ERROR : ERROR + 2] += more[:, None]

    def _call_unknown(self, x: Tensor, owner: Tensor | slice, at_nodes: Tensor | None) -> Tensor:
        """Return f at x; at the nodes, which come second, it may be known."""
        if at_nodes is None:
            return self._call(x, owner)
        beside = self._call(torch.cat((x[:1], x[self.m + 1 :])), owner)
        return torch.cat((beside[:1], at_nodes, beside[1:]))

    def _call_between(self) -> None:
        """Call f between some new cells and the ones before them."""
        block, cells, layout = self.task.block, self.linear, self.layout.data_ptr()
        for low in range(0, self.pairs, block):
            n, index = min(block, self.pairs - low), self.asked + 8 * low
            x, slope, owner = numbers(1, n), self._slope(n), self.memory.room("owner", n)[:n]
            self.kernel.place_starts(
                self.setting, cells.pointer, index, n, x.data_ptr(), slope, owner.data_ptr(), layout, cells.n
            )
            y = self._call(x, owner)
            self.kernel.enter_starts(self.setting, cells.pointer, index, n, y.data_ptr(), slope)

    def _slope(self, n: int) -> int | None:
        """Return where dx/dfraction goes, if that varies."""
        return self.memory.room("slope", n).data_ptr() if self.task.pieces.infinite else None

    def _call(self, x: Tensor, owner: Tensor | slice) -> Tensor:
        """Return f at x as the kernel reads it; ``owner`` is a slice, or numbers to be read as integers."""
        integrand = self.task.integrand
        hear_anew()
        if not isinstance(owner, slice):
            owner = slice(0, 1) if self.task.batch == 1 else owner.view(torch.int64)
        if isinstance(owner, slice) or not self.spread:
            return read(integrand(x, owner).detach(), self.parts)
        n, k = x.shape[1], len(self.spread)
        columns = numbers(k, n)
        self.kernel.spread(self.spread, k, owner.data_ptr(), n, columns.data_ptr(), self.threads)
        column = iter(columns.unbind())
        args = [
            next(column).view(a.value.dtype) if own else a.at(owner)
            for a, own in zip(integrand.arguments, self.own, strict=True)
        ]
        return read(integrand.evaluate(x, args).detach(), self.parts)

    def decide(self) -> Tally:
        """Decide on all cells; have the new ones at hand."""
        linear, ends, memory, round, tally = self.linear, self.ends, self.memory, self.round, self.tally
        shares, width, leaf = SHARE * self.threads, CELL + self.width, LEAF + self.width
        round.linear, round.n_linear, round.ends, round.n_ends = linear.pointer, linear.n, ends.pointer, ends.n
        round.shares = memory.room("decisions", shares + (linear.n + ends.n) // 8 + 1).data_ptr()
        round.moves = round.shares + 8 * shares
        self.kernel.judge(byref(round), byref(tally))
        room, settled = memory.cells((tally.linear + tally.ends) * width), self.settled + tally.settled
        self._hold(room, tally.linear, tally.ends)
        leaves = memory.room("leaves", settled * leaf, self.settled * leaf)
        self.leaves = leaves.data_ptr(), memory.room("tags", settled, self.settled).data_ptr()
        self.asked = memory.room("asked", tally.pairs).data_ptr()
        self.layout = memory.room("layout", tally.linear * LAYOUT)
        self.kernel.carry_on(
            byref(round), self.linear.pointer, self.ends.pointer, self.layout.data_ptr(), self.asked, *self.leaves,
            self.settled,
        )  # fmt: skip
        self.settled, self.pairs = settled, tally.pairs
        round.reopened, round.fresh, round.running = 0, 0, tally.running
        return tally

    def withdraw(self) -> None:
        """Take back the integrals that wait, with all their cells."""
        waits = self.status == WAIT
        n = int(self.counts.view(-1, self.task.pieces.count)[waits].sum())
        cells = numbers(n, CELL + self.width)
        self.kernel.withdraw(
            self.setting, *self.leaves, self.settled, self.status.data_ptr(), self.counts.data_ptr(),
            cells.data_ptr(), n,
        )  # fmt: skip
        self.withdrawn += n
        owner = cells.view(torch.int64)[:, ROW] // self.task.pieces.count
        self._enter(cells[owner.argsort(stable=True)], not self.mixed)
        self.books = self.books[waits]
        self.books.view(torch.int64)[:, NFEV] = self.nfev[waits]
        self.held.zero_()
        self.round.integrals, self.round.running, self.round.reopened = self.books.data_ptr(), len(self.books), 1
        self.tally.waiting = 0

    def close(self) -> Found:
        """Return the totals with the plan's cells, sorted by row; those of one row as they settled."""
        n, event = self.settled - self.withdrawn, self.task.integrand.event
        row, kind = INTEGERS.new_empty(n), BYTES.new_empty(n) if self.mixed else None
        start, stop, error = numbers(n), numbers(n), numbers(n)
        several = self.columns > 1 or self.task.pieces.count > 1
        seen = numbers(self.counts.shape[0], self.columns).zero_() if several else None
        ends = self.kernel.collect(
            self.setting, *self.leaves, self.settled, self.counts.shape[0], self.counts.data_ptr(), row.data_ptr(),
            start.data_ptr(), stop.data_ptr(), error.data_ptr(), None if kind is None else kind.data_ptr(),
            None if seen is None else seen.data_ptr(),
        )  # fmt: skip
        self.memory.leave()
        value = self.value if self.parts == 1 else self.value.view(torch.complex128)
        if event:
            value = value.view(self.task.batch, *event)
        real = self.dtype.to_real() if self.parts == 2 else self.dtype
        value, total, error = as_dtype(value, self.dtype), as_dtype(self.error, real), as_dtype(error, real)
        cells = (row, start, stop, error, kind if ends else None)
        plan = IntervalPlan.of(self.task.rule, self.task.pieces, self.task.batch_shape, *cells)
        faint = self.tally.faint > 0 if seen is None else None
        spikes = torch.cat(self.spikes) if self.spikes else None
        return Found(plan, value, total, self.status, self.nfev, faint=faint, seen=seen, spikes=spikes)
