"""Adaptive search in the compiled kernel: real scalar integrands on the CPU, outside transforms.

The rounds of :mod:`quadgrad._core.search.adaptive` with the same decisions, which the tests check. From here f is
called, nodes are placed on infinite pieces, and memory is set aside.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from ctypes import addressof, byref, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from quadgrad._core._torch import in_transform
from quadgrad._core.estimates.endpoint_values import call_with_edges, edges_inside, seen
from quadgrad._core.estimates.singular_ends import place_ends
from quadgrad._core.integrand import Argument, Integrand
from quadgrad._core.mesh.cells import BESIDE, LINEAR
from quadgrad._core.mesh.interval import Pieces, frame
from quadgrad._core.mesh.poles import ellipse
from quadgrad._core.rules import Rule
from quadgrad._core.search.adaptive import WAIT
from quadgrad._core.search.kernel.library import (
    CELL,
    INTEGRAL,
    SHARE,
    EndNumbers,
    PieceEnds,
    Round,
    Tally,
    load,
    rule_numbers,
)
from quadgrad._core.search.kernel.memory import BYTES, INTEGERS, REALS, Memory, numbers
from quadgrad._core.search.start import First
from quadgrad._core.search.task import Found, Task, noise

__all__ = ["Opening", "open_native", "search_native", "suits_native"]

START, STOP, AT_START, ROW, FLAGS = 0, 1, 5, 8, 9
"""Columns of a cell: its place, f where it is known (three), the row as an integer, bytes (first the kind)."""

NFEV = 5
"""Column of an integral: the evaluations, as an integer."""


def suits_native(task: Task) -> bool:
    """Whether the kernel can search this."""
    dtype = task.integrand.output_dtype
    real = dtype is not None and not dtype.is_complex and task.integrand.event == () and task.rule.mirrored
    within = not in_transform() and _in_memory(task.pieces.lower) and _in_memory(task.pieces.upper)
    return real and within and load() is not None


@dataclass(slots=True)
class Opening:
    """A single integral's first cell, where it is, and f there as f returned it, which may carry a gradient."""

    ends: PieceEnds
    room: Tensor
    integral: int
    layout: int
    y: Tensor


def open_native(integrand: Integrand, pieces: Pieces, rule: Rule) -> tuple[Integrand, Opening] | None:
    """Call f on the first cell of a single integral, not knowing yet what it returns; None where that is no cell.

    Returned with it is the integrand that knows its output.
    """
    if in_transform() or not (_in_memory(pieces.lower) and _in_memory(pieces.upper)):
        return None
    if pieces.count > 1 or pieces.infinite or not rule.mirrored or not load():
        return None
    kernel, m, ends, room = load(), rule.nodes.size, PieceEnds.of(pieces), numbers(3, CELL)
    cell = room.data_ptr()
    integral, layout = cell + 8 * CELL, cell + 16 * CELL
    if kernel.begin(byref(ends), 1, m, cell, integral) == 0:
        return None
    x = numbers(m + BESIDE, 1)
    kernel.place_first(byref(ends), byref(rule_numbers(rule)), cell, 1, x.data_ptr(), layout)
    integrand, y = integrand.probe(_as(x, pieces.lower.dtype))
    return integrand, Opening(ends, room, integral, layout, y)


def search_native(task: Task, first: First | None) -> Found | None:
    """Search from the given cells, by default from whole pieces; None where f returns what the kernel cannot read.

    That shows in its values only: they need not be of the dtype that the first one had, nor be in memory at all.
    """
    try:
        return _Search(task).run(first)
    except _UnreadableError:
        return None


class _UnreadableError(Exception):
    """What f returns are no real numbers in memory."""


@dataclass(slots=True)
class _Cells:
    """``n`` cells in memory that is kept for them, from row ``at`` on."""

    room: Tensor
    n: int
    at: int = 0

    @property
    def pointer(self) -> int:
        return self.room.data_ptr() + 8 * CELL * self.at

    def part(self, low: int, high: int) -> _Cells:
        return _Cells(self.room, min(high, self.n) - low, self.at + low)

    def numbers(self) -> Tensor:
        """Return the cells as rows of numbers."""
        return self.room[self.at : self.at + self.n]

    def place(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, start and stop of each."""
        cells = self.numbers()
        start, stop = cells[:, [START, STOP]].T.to(dtype).contiguous()
        return cells.view(torch.int64)[:, ROW].contiguous(), start, stop


class _Search:
    """One search: the task as the kernel takes it, the settled cells, and the totals."""

    def __init__(self, task: Task) -> None:
        batch, count = task.batch, task.pieces.count
        self.task, self.kernel, self.real = task, load(), task.pieces.lower.dtype
        self.dtype = task.integrand.output_dtype or self.real
        self.ends = PieceEnds.of(task.pieces) if task.opening is None else task.opening.ends
        self.rule = byref(rule_numbers(task.rule))
        self.pieces, self.m, self.count = byref(self.ends), task.rule.nodes.size, count
        self.value, self.error = numbers(batch), numbers(batch)
        self.status, self.nfev = INTEGERS.new_empty(batch), INTEGERS.new_empty(batch)
        self.counts = INTEGERS.new_zeros(batch * count)
        self.memory, self.mixed, self.withdrawn = Memory.take(), False, 0
        self.layout = self.between = REALS
        arguments = () if batch == 1 or task.pieces.infinite else task.integrand.arguments
        self.own = [_spreads(a) for a in arguments]
        spread = [a.value.data_ptr() for a, own in zip(arguments, self.own, strict=True) if own]
        self.spread = (c_void_p * len(spread))(*spread) if spread else ()

    def run(self, first: First | None) -> Found:
        """Search from the given cells, or whole pieces."""
        task, tolerance, whole = self.task, self.task.tolerance, True
        if task.opening is not None:
            integrals, linear, ends = self._opened(task.opening)
        else:
            books, linear, ends = self._whole_pieces() if first is None else self._given(first)
            integrals, whole = books.data_ptr(), first is None and self.count == 1 and linear.n == task.batch
            self._measure_first(linear, whole)
            self._measure_ends(ends)
        tiny, budget = torch.finfo(self.dtype).tiny, int(min(task.max_nfev, sys.maxsize))
        totals = (self.value, self.error, self.status, self.nfev, self.counts)
        round = Round(
            tolerance.rtol, tolerance.atol, tolerance.eps, tiny, *ellipse(tolerance.rtol, self.m), budget, 0,
            (self.m + BESIDE) * whole, self.ends.threads, self.count, task.batch, 0, 0,
            addressof(rule_numbers(task.rule)), integrals, 0, 0, 0, 0, *[t.data_ptr() for t in totals],
        )  # fmt: skip
        tally = Tally()
        while True:
            linear, ends = self._judge(round, tally, linear, ends)
            round.reopened, round.fresh, round.running = 0, 0, tally.running
            if tally.running:
                if tally.pairs:
                    self._ask_between(linear)
                self._measure(linear)
                self._measure_ends(ends)
            elif tally.waiting:
                books, linear, ends = self._withdraw()
                round.integrals, round.running, round.reopened = books.data_ptr(), books.shape[0], 1
                tally.waiting = 0
            else:
                return self._close()

    def _whole_pieces(self) -> tuple[Tensor, _Cells, _Cells]:
        batch = self.task.batch
        integrals, room = self.memory.books(batch), self.memory.room(batch * self.count)
        n = self.kernel.begin(self.pieces, batch, self.m, room.data_ptr(), integrals.data_ptr())
        return integrals, _Cells(room, n), _Cells(room, 0)

    def _opened(self, opening: Opening) -> tuple[int, _Cells, _Cells]:
        cells, y = _Cells(opening.room, 1), _plain(opening.y.detach())
        self.kernel.measure(
            self.pieces, self.rule, 1, noise(self.task), cells.pointer, 1, y.data_ptr(), opening.layout + 8,
            opening.layout,
        )  # fmt: skip
        return opening.integral, cells, _Cells(opening.room, 0)

    def _given(self, first: First) -> tuple[Tensor, _Cells, _Cells]:
        cells = numbers(first.row.shape[0], CELL).zero_()
        cells[:, START], cells[:, STOP] = first.start, first.stop
        cells.view(torch.int64)[:, ROW] = first.row
        if first.kind is not None:
            cells.view(torch.int8)[:, 8 * FLAGS] = first.kind
            cells[first.kind != LINEAR, AT_START : AT_START + 3] = torch.nan
        return self._open(cells)

    def _open(self, cells: Tensor) -> tuple[Tensor, _Cells, _Cells]:
        """Return all integrals of cells that are to be searched, and the cells of either kind."""
        linear = cells.view(torch.int8)[:, 8 * FLAGS] == LINEAR
        evenly, ends = cells[linear], cells[~linear]
        batch = self.task.batch
        integrals = numbers(batch, INTEGRAL)
        self.kernel.open_books(
            evenly.data_ptr(), len(evenly), ends.data_ptr(), len(ends), self.count, batch, self.m,
            integrals.data_ptr(),
        )  # fmt: skip
        self.mixed = self.mixed or len(ends) > 0
        return integrals, _Cells(evenly, len(evenly)), _Cells(ends, len(ends))

    def _judge(self, round: Round, tally: Tally, linear: _Cells, ends: _Cells) -> tuple[_Cells, _Cells]:
        """Decide on all cells; return the new ones."""
        old, shares, memory = linear.n + ends.n, SHARE * self.ends.threads, self.memory
        round.linear, round.n_linear, round.ends, round.n_ends = linear.pointer, linear.n, ends.pointer, ends.n
        round.shares = memory.scratch(shares + old // 8 + 1)
        round.moves = round.shares + 8 * shares
        self.kernel.judge(byref(round), byref(tally))
        room = memory.room(tally.linear + tally.ends)
        linear, ends = _Cells(room, tally.linear), _Cells(room, tally.ends, tally.linear)
        self.layout = memory.layout(tally.linear) if tally.linear else REALS
        self.between = memory.between(tally.pairs) if tally.pairs else REALS
        self.kernel.carry_on(
            byref(round), None if self.task.pieces.infinite else self.pieces, linear.pointer, ends.pointer,
            self.layout.data_ptr(), self.between.data_ptr(), *memory.leaves_for(tally.settled), memory.settled,
        )  # fmt: skip
        memory.settled += tally.settled
        self.mixed = self.mixed or ends.n > 0
        return linear, ends

    def _measure_first(self, cells: _Cells, whole: bool) -> None:
        """Apply the rule to first cells, a block of nodes at a time, and call f at their edges, too.

        ``whole``: one cell for each integral.
        """
        task, rows = self.task, self.m + BESIDE
        for low, part in self._blocks(cells, rows):
            layout = numbers(3, part.n)
            if task.pieces.infinite:
                y = self._call_mapped(part, True, layout)
            else:
                x = numbers(rows, part.n)
                self.kernel.place_first(
                    self.pieces, self.rule, part.pointer, part.n, x.data_ptr(), layout.data_ptr()
                )
                y = self._call(x, _shared(task, low, part.n if whole else 0) or layout[2].view(torch.int64))
            self._weigh(part, y, layout, 0, True)

    def _measure(self, cells: _Cells) -> None:
        """Apply the rule to new cells with evenly spread nodes, a block of nodes at a time."""
        layout = self.layout
        for low, part in self._blocks(cells, self.m):
            if self.task.pieces.infinite:
                layout = numbers(3, part.n)
                self._weigh(part, self._call_mapped(part, False, layout), layout, 0, False)
                continue
            x, left = numbers(self.m, part.n), layout.data_ptr() + 8 * low
            self.kernel.place(self.rule, left, left + 8 * cells.n, part.n, x.data_ptr(), self.ends.threads)
            self._weigh(part, self._call(x, layout[2, low : low + part.n]), layout, low, False)

    def _blocks(self, cells: _Cells, rows: int) -> Iterator[tuple[int, _Cells]]:
        step = max(1, self.task.block // rows)
        for low in range(0, cells.n, step):
            yield low, cells.part(low, low + step)

    def _weigh(self, cells: _Cells, y: Tensor, layout: Tensor, low: int, first: bool) -> None:
        """Apply the rule to f's values on cells that lie where ``layout`` says from column ``low`` on."""
        left = layout.data_ptr() + 8 * low
        self.kernel.measure(
            self.pieces, self.rule, first, noise(self.task), cells.pointer, cells.n, y.data_ptr(),
            left + 8 * layout.shape[1], left,
        )  # fmt: skip

    def _call_mapped(self, cells: _Cells, edges: bool, layout: Tensor) -> Tensor:
        """Return f times the slope where some pieces are infinite, and lay the cells out."""
        task, (row, start, stop) = self.task, cells.place(self.real)
        mapped, owner = frame(task.pieces, row, start, stop), row // self.count
        layout[0], layout[1] = mapped.reach, mapped.scale  # as far from 0 as left ends are
        known: tuple[Tensor, ...] = ()
        if edges:
            y, slope, beside = call_with_edges(task, mapped, edges_inside(start, stop), slice(None), owner)
            known = beside.split(1)
        else:
            x, slope = mapped.nodes(task.rule.tensors(self.real, row.device).nodes, slice(None))
            y = task.integrand(x, owner).detach()
        y = y if slope is None else y * slope
        return _plain(torch.cat((known[0], y, known[1])) if known else y)

    def _measure_ends(self, cells: _Cells) -> None:
        """Apply the rule to cells with logarithmic nodes, a block of nodes at a time."""
        task = self.task
        for _, part in self._blocks(cells, self.m + BESIDE):
            n = part.n
            if task.pieces.infinite:
                row, start, stop = part.place(self.real)
                x, slope, layout, steps = place_ends(task, row, start, stop)
                owner, slope = (row // self.count).view(torch.float64), _plain(slope)
                columns = torch.broadcast_tensors(layout.scale, layout.reach, layout.rate, layout.span, steps)
                ends = EndNumbers.of(_plain(torch.stack(columns)))
            else:
                x, slope = numbers(self.m + 2, n), numbers(self.m + 2, n)
                owner, ends = numbers(n), EndNumbers.of(numbers(5, n))
                self.kernel.place_ends(
                    self.pieces, self.rule, part.pointer, n, x.data_ptr(), slope.data_ptr(), byref(ends),
                    owner.data_ptr(),
                )  # fmt: skip
            y = self._call(x, owner)
            self.kernel.measure_ends(
                self.pieces, self.rule, noise(task), task.tolerance.rtol, part.pointer, n, y.data_ptr(),
                slope.data_ptr(), byref(ends),
            )  # fmt: skip

    def _ask_between(self, cells: _Cells) -> None:
        """Call f between some cells and the ones before them, a block of nodes at a time."""
        task = self.task
        for between in self.between.split(task.block, dim=1):
            pairs, x, whose = between
            if task.pieces.infinite:
                row, start, stop = _Cells(cells.numbers()[pairs.view(torch.int64)], len(pairs)).place(self.real)
                mapped = frame(task.pieces, row, start, stop)
                x, slope = mapped.nodes(mapped.scale.new_zeros(1), slice(None))
                y = task.integrand(x, row // self.count).detach()[0]
                y = _plain(seen(y, None if slope is None else slope[0]))
            else:
                y = self._call(x.clone()[None], whose)  # f may keep what it is given
            self.kernel.enter_starts(cells.pointer, pairs.data_ptr(), len(pairs), y.data_ptr(), self.ends.threads)

    def _call(self, x: Tensor, owner: Tensor | slice) -> Tensor:
        """Return f at x; whose columns they are is a slice, or numbers that are to be read as integers."""
        integrand, x = self.task.integrand, _as(x, self.real)
        whose = owner if isinstance(owner, slice) else owner.view(torch.int64)
        if isinstance(owner, slice) or not self.spread:
            return _plain(integrand(x, whose).detach())
        n, k = x.shape[1], len(self.spread)
        columns = numbers(k, n)
        self.kernel.spread(self.spread, k, owner.data_ptr(), n, columns.data_ptr(), self.ends.threads)
        column = iter(columns.unbind())
        args = [
            next(column).view(a.value.dtype) if own else a.at(whose)
            for a, own in zip(integrand.arguments, self.own, strict=True)
        ]
        return _plain(integrand.evaluate(x, args).detach())

    def _withdraw(self) -> tuple[Tensor, _Cells, _Cells]:
        """Take back the integrals that wait, with all their cells."""
        memory, waits = self.memory, self.status == WAIT
        n = int(self.counts.view(-1, self.count)[waits].sum())
        cells = numbers(n, CELL)
        self.kernel.withdraw(
            *memory.leaves_for(0), memory.settled, self.count, self.status.data_ptr(), self.counts.data_ptr(),
            cells.data_ptr(), n,
        )  # fmt: skip
        self.withdrawn += n
        owner = cells.view(torch.int64)[:, ROW] // self.count
        integrals, linear, ends = self._open(cells[owner.argsort(stable=True)])
        integrals = integrals[waits]
        integrals.view(torch.int64)[:, NFEV] = self.nfev[waits]
        return integrals, linear, ends

    def _close(self) -> Found:
        """Return the totals with the plan's cells, sorted by row; those of one row as they settled."""
        memory, n = self.memory, self.memory.settled - self.withdrawn
        row, kind = INTEGERS.new_empty(n), BYTES.new_empty(n) if self.mixed else None
        start, stop, error = numbers(n), numbers(n), numbers(n)
        ends = self.kernel.collect(
            *memory.leaves_for(0), memory.settled, self.counts.shape[0], self.counts.data_ptr(), row.data_ptr(),
            start.data_ptr(), stop.data_ptr(), error.data_ptr(), None if kind is None else kind.data_ptr(),
            self.ends.threads,
        )  # fmt: skip
        memory.leave()
        value, total, error = _as(self.value, self.dtype), _as(self.error, self.dtype), _as(error, self.dtype)
        return Found(row, start, stop, error, kind if ends else None, value, total, self.status, self.nfev)


def _spreads(argument: Argument) -> bool:
    """Whether the kernel can spread an argument over cells: plain numbers of eight bytes, one for each integral."""
    value = argument.value
    if argument.shared or type(value) not in (Tensor, Parameter):
        return False
    plain = value.ndim == 1 and value.element_size() == 8 and value.is_contiguous() and not value.is_neg()
    return plain and not value.is_conj() and _in_memory(value)


def _shared(task: Task, low: int = 0, n: int = 0) -> slice | None:
    """Return the integrals of cells where that is simple: there is but one, or ``n`` cells have one each."""
    if task.batch == 1:
        return slice(0, 1)
    return slice(low, low + n) if n else None


def _plain(y: Tensor) -> Tensor:
    """Return numbers as the kernel reads them."""
    if y.is_complex():
        raise _UnreadableError
    y = _as(y.resolve_neg(), torch.float64).contiguous()
    if not _in_memory(y):
        raise _UnreadableError
    return y


def _in_memory(t: Tensor) -> bool:
    """Whether there is memory behind a tensor to read from: subclasses, too, may have none."""
    return t.is_cpu and (t.data_ptr() != 0 or t.numel() == 0)


def _as(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype == dtype else t.to(dtype)
