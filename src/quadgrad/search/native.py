"""Adaptive search in the compiled kernel: real scalar integrands on the CPU, outside transforms.

The rounds of :mod:`quadgrad.search.adaptive` with the same decisions, which the tests check; f, the map of infinite
pieces and the cells that close in on an end are called from here. A cell is a row of :data:`~.kernel.CELL` numbers.
"""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from quadgrad._torch import in_transform
from quadgrad.maps import frame
from quadgrad.search.adaptive import WAIT
from quadgrad.search.cells import BESIDE, LINEAR
from quadgrad.search.edges import call_with_edges, edges_inside, seen
from quadgrad.search.ends import place_ends
from quadgrad.search.kernel import CELL, INTEGRAL, LEAF, Asked, EndNumbers, PieceEnds, Tally, load, rule_numbers
from quadgrad.search.start import First
from quadgrad.search.task import Found, Task, noise

__all__ = ["search_native", "suits_native"]

START, STOP, VALUE, ERROR, FLOOR, AT_START, AT_STOP, AT_MIDDLE, ROW, FLAGS = range(CELL)
KIND, LEAN, REFINABLE = (8 * FLAGS + place for place in range(3))
"""Columns of a cell: of numbers, of integers (the row), and of bytes."""

WHO, COUNT, NFEV = 3, 4, 5
"""Columns of integers of an integral."""


def suits_native(task: Task) -> bool:
    """Whether the kernel can search this."""
    dtype = task.integrand.output_dtype
    real = dtype is not None and not dtype.is_complex
    plain = task.integrand.event == () and task.pieces.lower.device.type == "cpu" and not in_transform()
    return real and plain and load() is not None


def search_native(task: Task, first: First | None) -> Found:
    """Search from the given cells, by default from whole pieces."""
    return _Search(task).run(first)


class _Search:
    """One search: the task as the kernel takes it, the settled cells, the totals."""

    def __init__(self, task: Task) -> None:
        self.task, self.library = task, load()
        self.pieces = PieceEnds.of(task.pieces)
        self.rule = rule_numbers(task.rule)
        self.sums = torch.empty((2, task.batch), dtype=torch.float64)
        self.ends = torch.zeros((2, task.batch), dtype=torch.int64)
        self.settled: list[Tensor] = []
        self.counts = torch.zeros(task.batch * task.pieces.count, dtype=torch.int64)
        self.rooms: dict[str, Tensor] = {}
        self.turn = False
        self.tally = Tally(running=task.batch)

    def run(self, first: First | None) -> Found:
        """Search from the given cells, or whole pieces."""
        task, library, tally = self.task, self.library, self.tally
        tiny = torch.finfo(task.pieces.lower.dtype).tiny
        tolerance = task.tolerance
        asked = Asked(tolerance.rtol, tolerance.atol, tolerance.eps, tiny, task.max_nfev, 0)
        linear, ends = self._whole_pieces() if first is None else _given(first)
        whole = first is None and task.pieces.count == 1 and len(linear) == task.batch
        integrals = self._open(linear, ends)
        self._measure(linear, edges=True, whole=whole)
        self._measure_ends(ends)
        while True:
            linear, ends, pairs = self._judge(asked, integrals, linear, ends)
            if tally.running:
                asked.reopened = 0
            elif tally.waiting:
                integrals, linear, ends = self._withdraw()
                asked.reopened = 1
                continue
            else:
                return self._close()
            if tally.pairs:
                self._ask_between(linear, pairs)
            self._measure(linear)
            self._measure_ends(ends)

    def _whole_pieces(self) -> tuple[Tensor, Tensor]:
        task = self.task
        cells = torch.empty((task.batch * task.pieces.count, CELL), dtype=torch.float64)
        n = self.library.begin(byref(self.pieces), task.batch, cells.data_ptr())
        return cells[:n], cells[:0]

    def _open(self, linear: Tensor, ends: Tensor) -> Tensor:
        """Return the integrals of cells that were not yet searched."""
        task = self.task
        integrals = torch.empty((task.batch, INTEGRAL), dtype=torch.float64)
        self.library.open_books(
            linear.data_ptr(), len(linear), ends.data_ptr(), len(ends), task.pieces.count, task.batch,
            task.rule.nodes.size, integrals.data_ptr(),
        )  # fmt: skip
        return integrals

    def _judge(
        self, asked: Asked, integrals: Tensor, linear: Tensor, ends: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decide on all cells; return the new ones and which to ask f for between them and those before."""
        tally, n_linear, n_ends = self.tally, len(linear), len(ends)
        n = n_linear + n_ends
        settled = torch.empty((n, LEAF), dtype=torch.float64)
        self.turn = not self.turn
        finer = self._room(f"linear {self.turn}", 3 * n_linear + 2 * n_ends)
        closer = self._room(f"ends {self.turn}", n_linear + 2 * n_ends)
        pairs = torch.empty(n, dtype=torch.int64)
        moves = torch.empty(n, dtype=torch.int8)
        self.library.judge(
            byref(asked), self.task.rule.nodes.size, self.task.pieces.count, integrals.data_ptr(),
            linear.data_ptr(), n_linear, ends.data_ptr(), n_ends, finer.data_ptr(), closer.data_ptr(),
            pairs.data_ptr(), moves.data_ptr(), settled.data_ptr(), self.counts.data_ptr(), self.sums[0].data_ptr(),
            self.sums[1].data_ptr(), self.ends[0].data_ptr(), self.ends[1].data_ptr(), byref(tally),
        )  # fmt: skip
        if tally.settled:
            self.settled.append(settled[: tally.settled])
        return finer[: tally.linear], closer[: tally.ends], pairs[: tally.pairs]

    def _room(self, name: str, n: int) -> Tensor:
        """Return room for ``n`` cells, the same for the same name: new memory costs more than what is done with it."""
        room = self.rooms.get(name)
        if room is None or len(room) < n:
            room = self.rooms[name] = torch.empty((n, CELL), dtype=torch.float64)
        return room

    def _measure(self, cells: Tensor, edges: bool = False, whole: bool = False) -> None:
        """Apply the rule to cells with evenly spread nodes, a block of nodes at a time.

        With ``edges`` f is called at the cells' edges, too; ``whole``: one cell for each integral.
        """
        step = max(1, self.task.block // (self.task.rule.nodes.size + BESIDE * edges))
        for low in range(0, len(cells), step):
            part = cells if len(cells) <= step else cells[low : low + step]
            owner = slice(low, low + len(part)) if whole or self.task.batch == 1 else None
            if self.task.pieces.infinite:
                self._measure_mapped(part, owner, edges)
            else:
                self._measure_finite(part, owner, edges)

    def _measure_finite(self, cells: Tensor, owner: slice | None, edges: bool) -> None:
        n, m = len(cells), self.task.rule.nodes.size
        x = torch.empty((m + BESIDE * edges, n), dtype=torch.float64)
        left, scale, reach = layout = torch.empty((3, n), dtype=torch.float64)
        index = torch.empty(n, dtype=torch.int64)
        self.library.place(
            byref(self.pieces), cells.data_ptr(), n, self.rule.nodes, m, edges, x.data_ptr(), left.data_ptr(),
            scale.data_ptr(), reach.data_ptr(), index.data_ptr(),
        )  # fmt: skip
        y = self._call(x, index if owner is None else owner)
        place = y.data_ptr()
        del layout
        if edges:
            self._weigh(cells, place + 8 * n, scale, reach, (place, place + 8 * n * (m + 1)))
        else:
            self._weigh(cells, place, scale, reach)

    def _measure_mapped(self, cells: Tensor, owner: slice | None, edges: bool) -> None:
        """Apply the rule where some pieces are infinite."""
        task, real = self.task, self.task.pieces.lower.dtype
        start, stop, row = cells[:, START], cells[:, STOP], _integers(cells, ROW)
        layout = frame(task.pieces, row, start.to(real), stop.to(real))
        where = row // task.pieces.count if owner is None else owner
        known = None
        if edges:
            y, slope, known = call_with_edges(task, layout, edges_inside(start, stop), slice(None), where)
            known = known.double().contiguous()
        else:
            x, slope = layout.nodes(task.rule.tensors(real, row.device).nodes, slice(None))
            y = task.integrand(x, where).detach()
        y = _plain(y if slope is None else y * slope)
        scale, reach = layout.scale.double().contiguous(), layout.reach.double().contiguous()
        if known is None:
            self._weigh(cells, y.data_ptr(), scale, reach)
        else:
            cells[:, AT_START : AT_STOP + 1] = 0.0
            self._weigh(cells, y.data_ptr(), scale, reach, (known[0].data_ptr(), known[1].data_ptr()))

    def _weigh(
        self,
        cells: Tensor,
        y: int,
        scale: Tensor,
        reach: Tensor,
        edges: tuple[int, int] | tuple[None, None] = (None, None),
    ) -> None:
        self.library.measure(
            byref(self.rule), byref(self.pieces), noise(self.task), cells.data_ptr(), len(cells), y, *edges,
            scale.data_ptr(), reach.data_ptr(),
        )  # fmt: skip

    def _measure_ends(self, cells: Tensor) -> None:
        """Apply the rule to cells with logarithmic nodes."""
        if len(cells) == 0:
            return
        step = max(1, self.task.block // (self.task.rule.nodes.size + BESIDE))
        for low in range(0, len(cells), step):
            self._measure_close(cells[low : low + step])

    def _measure_close(self, cells: Tensor) -> None:
        task, n, m = self.task, len(cells), self.task.rule.nodes.size
        if task.pieces.infinite:
            row, ends = _integers(cells, ROW), cells[:, [START, STOP]].to(task.pieces.lower.dtype)
            x, slope, layout, steps = place_ends(task, row, ends[:, 0], ends[:, 1])
            owner, slope = row // task.pieces.count, slope.double().contiguous()
            numbers = (layout.scale, layout.reach, layout.rate, layout.span, steps)
            frame = EndNumbers.of(torch.stack(torch.broadcast_tensors(*numbers)).double())
        else:
            x, slope = torch.empty((2, m + 2, n), dtype=torch.float64)
            owner, frame = (
                torch.empty(n, dtype=torch.int64),
                EndNumbers.of(torch.empty((5, n), dtype=torch.float64)),
            )
            self.library.place_ends(
                byref(self.pieces), cells.data_ptr(), n, self.rule.nodes, m, x.data_ptr(), slope.data_ptr(),
                byref(frame), owner.data_ptr(),
            )  # fmt: skip
        y = self._call(x, owner)
        self.library.measure_ends(
            byref(self.rule), byref(self.pieces), noise(task), task.tolerance.rtol, cells.data_ptr(), n,
            y.data_ptr(), slope.data_ptr(), byref(frame),
        )  # fmt: skip

    def _ask_between(self, cells: Tensor, pairs: Tensor) -> None:
        """Call f between the cells at ``pairs`` and the ones before them."""
        n, task = len(pairs), self.task
        if task.pieces.infinite:
            chosen, real = cells[pairs], task.pieces.lower.dtype
            row = _integers(chosen, ROW)
            layout = frame(task.pieces, row, chosen[:, START].to(real), chosen[:, STOP].to(real))
            x, slope = layout.nodes(layout.scale.new_zeros(1), slice(None))
            y = task.integrand(x, row // task.pieces.count).detach()[0]
            y = _plain(seen(y, None if slope is None else slope[0]).expand(n))
        else:
            x, owner = torch.empty((1, n), dtype=torch.float64), torch.empty(n, dtype=torch.int64)
            self.library.place_starts(
                byref(self.pieces), cells.data_ptr(), pairs.data_ptr(), n, x.data_ptr(), owner.data_ptr()
            )
            y = self._call(x, owner)
        self.library.enter_starts(cells.data_ptr(), pairs.data_ptr(), n, y.data_ptr())

    def _call(self, x: Tensor, owner: Tensor | slice) -> Tensor:
        real = self.task.pieces.lower.dtype
        return _plain(self.task.integrand(x if real == torch.float64 else x.to(real), owner).detach())

    def _withdraw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Take back the integrals that wait, with all their cells."""
        tally, status, nfev, count = self.tally, *self.ends, self.task.pieces.count
        parts: list[Tensor] = []
        for i, settled in enumerate(self.settled):
            room = torch.empty((len(settled), CELL), dtype=torch.float64)
            n = self.library.withdraw(
                settled.data_ptr(), len(settled), count, status.data_ptr(), self.counts.data_ptr(), room.data_ptr()
            )
            self.settled[i] = settled[: len(settled) - n]
            parts.append(room[:n])
        cells = torch.cat(parts)
        cells = cells[(_integers(cells, ROW) // count).argsort(stable=True)]
        waits = status == WAIT
        linear = cells.view(torch.int8)[:, KIND] == LINEAR
        evenly, ends = cells[linear], cells[~linear]
        integrals = self._open(evenly, ends)[waits]
        integrals.view(torch.int64)[:, NFEV] = nfev[waits]
        tally.running, tally.waiting = len(integrals), 0
        return integrals, evenly, ends

    def _close(self) -> Found:
        """Return the totals with the plan's cells, sorted by row; those of one row as they settled."""
        task, sizes = self.task, [len(part) for part in self.settled]
        n, rows, real = sum(sizes), task.batch * task.pieces.count, task.pieces.lower.dtype
        parts = torch.tensor([[part.data_ptr() for part in self.settled], sizes], dtype=torch.int64)
        row = torch.empty(n, dtype=torch.int64)
        start, stop, error = (torch.empty(n, dtype=torch.float64) for _ in range(3))
        kind = torch.empty(n, dtype=torch.int8)
        close = self.library.collect(
            parts[0].data_ptr(), parts[1].data_ptr(), len(sizes), rows, self.counts.data_ptr(), row.data_ptr(),
            start.data_ptr(), stop.data_ptr(), error.data_ptr(), kind.data_ptr(),
        )  # fmt: skip
        value, (status, nfev) = self.sums[0].to(task.integrand.output_dtype or real), self.ends
        return Found(
            row, start, stop, error.to(real), kind if close else None, value, self.sums[1].to(real), status, nfev
        )


def _given(first: First) -> tuple[Tensor, Tensor]:
    """Return the given cells, those with evenly and those with logarithmically spread nodes."""
    cells = torch.zeros((len(first.row), CELL), dtype=torch.float64)
    cells[:, START], cells[:, STOP] = first.start, first.stop
    cells.view(torch.int64)[:, ROW] = first.row
    if first.kind is None:
        return cells, cells[:0]
    cells.view(torch.int8)[:, KIND] = first.kind
    linear = first.kind == LINEAR
    ends = cells[~linear]
    ends[:, AT_START : AT_MIDDLE + 1] = torch.nan
    return cells[linear], ends


def _integers(rows: Tensor, column: int) -> Tensor:
    return rows.view(torch.int64)[:, column].contiguous()


def _plain(y: Tensor) -> Tensor:
    """Return f's values as the kernel reads them."""
    return y.resolve_neg().to(torch.float64).contiguous()
