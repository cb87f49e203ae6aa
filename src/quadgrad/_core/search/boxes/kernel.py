"""The compiled kernel at work on boxes: where f is called, what its values say, and which cells are halved.

The same decisions as those of the tensor operations, which the tests check. What is kept stands in the same
matrices, so that all else works on either.
"""

from __future__ import annotations

import math
from ctypes import byref, c_int64
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.mesh.box import Box
from quadgrad._core.mesh.boxes import HINTS, Boxes, FlatLayout, NewBoxes
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import reals
from quadgrad._core.search.books import Running
from quadgrad._core.search.boxes import held_out, holding, neighbours
from quadgrad._core.search.boxes.bodies import BISECTIONS
from quadgrad._core.search.boxes.held_out import (
    BEYOND,
    COARSE,
    DOUBTS,
    ROUNDED,
    SHALLOW,
    HeldOut,
    component_weights,
    held_out_bits,
)  # fmt: skip
from quadgrad._core.search.boxes.neighbours import Sample
from quadgrad._core.search.kernel.box_structures import (
    BoxColumns,
    BoxConstants,
    BoxLook,
    BoxRound,
    BoxSetting,
    Estimating,
    HeldOutNumbers,
)
from quadgrad._core.search.kernel.library import load
from quadgrad._core.search.kernel.memory import BYTES, INTEGERS, Memory, in_memory, numbers, pointer
from quadgrad._core.search.kernel.values import UnreadableError, as_dtype

__all__ = ["BoxKernel", "NativeLook", "NativeRound", "part"]

MOST = 2**62
"""No budget is larger: what a round would cost is added to what is spent."""

TOGETHER = 16
"""Cells in which polynomials are drawn at once, at most; see ``box_held_out.c``."""

READY = 16
"""A bit of what is told of an integral: its error is small enough, and none of its cells is to be halved."""


class BoxKernel:
    """The kernel at work on the boxes of one search."""

    def __init__(self, problem: Problem, mesh: Boxes, dtype: torch.dtype) -> None:
        domain, rule = mesh.domain, mesh.rule
        self.problem, self.library, self.rule, self.d = problem, load(), rule, rule.d
        self.flat = type(domain) is Box and not domain.infinite
        parts = 1 + dtype.is_complex
        self.columns = math.prod(problem.integrand.event or ()) * parts
        constants = BoxConstants.of(
            min(problem.max_nfev, MOST), BISECTIONS=BISECTIONS, ROUGHER=held_out.ROUGHER,
            NEGLIGIBLE=holding.NEGLIGIBLE, KEPT=holding.KEPT, ENOUGH=holding.ENOUGH,
        )  # fmt: skip
        corners = (domain.a, domain.b) if self.flat else None
        self.setting = BoxSetting.of(constants, rule, corners, domain.x_dtype, self.columns, parts)
        self.set, self.memory, self.scale, self.new = byref(self.setting), Memory.take(), numbers(0), 0
        self.rows = 2 + sum(map(len, rule.nulls)) + 6 * rule.d

    @staticmethod
    def can(mesh: Boxes) -> bool:
        """Whether it can do the work: on the CPU, with rules whose nodes share weights."""
        return mesh.device.type == "cpu" and bool(mesh.rule.orbits) and load() is not None

    def lay_out(self, new: NewBoxes) -> FlatLayout:
        """Return how cells lie in boxes without infinite sides."""
        d, n = new.level.shape
        room = self.memory.room("layout", (2 * d + 1) * n)[: (2 * d + 1) * n].view(2 * d + 1, n)
        layout = FlatLayout(room[:d], room[d : 2 * d], room[2 * d :])
        places = (t.data_ptr() for t in (layout.corner, layout.side, layout.volume))
        self.library.lay_out_boxes(
            self.set, new.row.data_ptr(), new.level.data_ptr(), new.place.data_ptr(), n, *places
        )
        return layout

    def nodes(self, layout: FlatLayout, block: slice) -> tuple[Tensor, Tensor]:
        """Return x ``(m, count, d)`` at the nodes of a block of cells, and f's factor there."""
        low, count, n = block.start, block.stop - block.start, layout.side.shape[1]
        x = numbers(self.d, self.rule.rows, count)
        self.library.place_boxes(
            self.set, layout.corner.data_ptr(), layout.side.data_ptr(), n, low, count, x.data_ptr()
        )
        return x.permute(1, 2, 0), layout.volume[:, block]

    def hold_out(self, held_out: HeldOut) -> None:
        """Take the polynomials, and the points at which f is held against them."""
        fit, powers = held_out.fit, held_out.fit.powers
        held = (*held_out.matrices, held_out.values, component_weights(self.columns, held_out.values.device))
        kept = [t.contiguous().numpy() for t in held]
        places, inside = held_out_bits(self.d)
        self.drawing = numbers(2 * self.setting.threads * len(fit.basis) * TOGETHER)
        self.held = HeldOutNumbers(
            ROUNDED, BEYOND, 0.0, SHALLOW, COARSE, len(powers), int(powers.max()), places.shape[1], inside.shape[2],
            0, 0, *(t.ctypes.data for t in (*kept[:2], places, *kept[2:], fit.factors, inside)),
        )  # fmt: skip
        self.asked = held_out.count > 0
        kept += [places, inside, fit]
        self.held.kept = kept

    def compare_held_out(self, cells: Cells, marked: Tensor | None) -> None:
        """Hold f at the points against the polynomials of new cells, the last ones, but for those ``marked``."""
        n, self.new = self.new, 0
        if n and self.held.filled:
            first = len(cells) - n
            skipped = None if marked is None else marked.data_ptr() + first
            self.library.hold_out_boxes(
                self.set, byref(self.held), byref(columns(part(cells, first, n))), n, skipped
            )

    def open_round(self, new: NewBoxes, layout: Any, cells: Cells) -> None:
        """Take the places of new cells, and where what f's values say about them goes."""
        n = len(new)
        scale = layout.volume if self.flat else numbers(n).fill_(1.0)
        corners = (layout.corner.data_ptr(), layout.side.data_ptr()) if self.flat else (None, None)
        self.kept, self.at, self.scale = (new, layout, cells), columns(cells), scale
        # No two cells of an integral overlap: so many of them are no smaller.
        self.new, self.held.filled, self.held.most = n, 0, min(n, self.problem.batch << SHALLOW) * self.asked
        self.held.drawn = self.memory.room("drawn", self.held.most * self.held.k).data_ptr()
        self.held.slots = self.memory.room("slots", n).data_ptr()
        self.estimating = Estimating(
            None, None, None, scale.data_ptr(), *corners, pointer(new.trust), new.owner.data_ptr(),
            new.row.data_ptr(), new.level.data_ptr(), new.place.data_ptr(), 0, 0, n, 0.0,
        )  # fmt: skip

    def estimate(self, y: Tensor, factor: Tensor, low: int, noise: float) -> None:
        """Enter what f's values ``y`` ``(rows, n, *event)``, times ``factor``, say about cells from ``low`` on."""
        y = as_dtype(reals(y, 2).resolve_neg(), torch.float64)
        if not self.flat:
            y = y * (factor if y.ndim == 2 else factor[..., None])
        y, n, to = y.contiguous(), y.shape[1], self.estimating
        if n == 0:
            return
        if not in_memory(y):
            raise UnreadableError
        room = self.memory.room("read", n * (self.rows * self.columns + 1 + 2 * self.d))
        to.y, to.values = y.data_ptr(), room.data_ptr()
        to.sizes = to.values + 8 * n * self.rows * self.columns
        to.n, to.first, to.noise = n, low, noise
        at = BoxColumns(*(place + 8 * low for place in (self.at.sums, self.at.real, self.at.whole)), self.at.stride)
        self.library.estimate_boxes(self.set, byref(to), byref(at))
        self.held.noise = noise
        self.library.draw_boxes(
            self.set, byref(self.held), to.y, self.scale.data_ptr() + 8 * low, low, n, byref(at),
            self.drawing.data_ptr(),
        )  # fmt: skip

    def remember(self, cells: Cells, top: Tensor, corner: Tensor) -> None:
        """Keep how high each integral was seen to be, and the lower corner and width of that cell."""
        before = top.clone()
        self.library.remember_boxes(
            self.set, byref(columns(cells)), len(cells), before.data_ptr(), top.data_ptr(), corner.data_ptr()
        )

    def compare(self, children: Cells, parents: Cells) -> None:
        """Correct the errors of children by those of their parents, and doubt what is rougher than these."""
        self.library.compare_boxes(self.set, byref(columns(children)), byref(columns(parents)), len(parents))

    def cells(self, n: int, name: str | None = None) -> Cells:
        """Return room for n cells: that of a name, or one that the cells asked for before are not in."""
        rows = self.columns + 2, HINTS + 2 * self.d, HINTS + 2 * self.d + DOUBTS
        size = 1 << (sum(rows) * n).bit_length()  # of which what is not needed is not touched
        room = self.memory.cells(size) if name is None else self.memory.room(name, size)
        sums, whole, real = room[: sum(rows) * n].view(sum(rows), n).split(rows)
        return Cells(sums, whole.view(torch.int64), real)

    def copy(self, cells: Cells, index: Tensor, to: Cells) -> Cells:
        """Enter the cells at ``index`` as the first of others, and return these."""
        n = len(index)
        self.library.copy_boxes(self.set, byref(columns(cells)), index.data_ptr(), n, byref(columns(to)))
        return part(to, 0, n)

    def halve(self, parents: Cells) -> NewBoxes:
        """Return the halves of cells."""
        n = 2 * len(parents)
        room = INTEGERS.new_empty((2 + 2 * self.d, n))
        new = NewBoxes(room[0], room[1], room[2 : 2 + self.d], room[2 + self.d :], self.rule.rows)
        places = (t.data_ptr() for t in (new.owner, new.row, new.level, new.place))
        self.library.halve_boxes(self.set, byref(columns(parents)), n // 2, *places)
        return new


class NativeRound:
    """What is decided on all integrals that run, and on their cells."""

    def __init__(self, kernel: BoxKernel, cells: Cells, running: Running, reopened: bool) -> None:
        tolerance, n, integrals = kernel.problem.tolerance, len(cells), len(running)
        rows = kernel.columns + 2
        real, room = numbers(rows + 2, integrals), INTEGERS.new_empty(6 * integrals + 1 + n)
        self.kernel, self.cells, self.columns = kernel, cells, columns(cells)
        self.totals, self.target = real[:rows], real[rows]
        self.next, self.code = room[: 4 * integrals].view(4, -1), room[4 * integrals : 5 * integrals]
        self.order = room[6 * integrals + 1 :]
        self.told, self.marked = BYTES.new_empty(integrals), BYTES.new_empty(n, dtype=torch.bool)
        at = room.data_ptr()
        self.whole, self.sums = running.whole.contiguous(), running.sums.contiguous()
        self.numbers = BoxRound(
            tolerance.rtol, max(tolerance.atol, tolerance.nothing), tolerance.eps, n, integrals, reopened,
            self.sums.data_ptr(), self.whole.data_ptr(), real.data_ptr(), self.target.data_ptr(),
            real[rows + 1].data_ptr(), at, at + 32 * integrals, at + 40 * integrals, self.order.data_ptr(),
            self.told.data_ptr(), self.marked.data_ptr(),
        )  # fmt: skip
        self.n_ready = kernel.library.mark_boxes(kernel.set, byref(self.columns), byref(self.numbers))

    def finish(self) -> tuple[int, int, int]:
        """Decide how integrals end; return how many run on, how many wait, and how many cells are halved."""
        counts = (c_int64 * 2)()
        running = self.kernel.library.finish_boxes(
            self.kernel.set, byref(self.columns), byref(self.numbers), counts
        )
        return running, *counts

    def group(self, halved: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return which cells are halved, which are held, and which settle."""
        held = self.kernel.library.group_boxes(byref(self.columns), byref(self.numbers), halved)
        return self.order[:halved], self.order[halved : halved + held], self.order[halved + held :]


class NativeLook:
    """A closer look at integrals that are ready to end: the cells that are blind are marked to be halved."""

    def __init__(self, round: NativeRound) -> None:
        n, integrals = len(round.cells), len(round.told)
        self.kernel, self.columns, self.marked = round.kernel, round.columns, round.marked
        self.ready, numbers_, each = round.told & READY, INTEGERS.new_empty(n + integrals + 1), numbers(2, n)
        self.kept = (numbers_, each, round)
        self.numbers = BoxLook(
            neighbours.HIGHER, neighbours.ABOVE, neighbours.MATTERS, neighbours.EACH,
            neighbours.LEAST, n, integrals, 2 * round.kernel.d * n, round.target.data_ptr(), self.ready.data_ptr(),
            numbers_.data_ptr(), numbers_.data_ptr() + 8 * n, each.data_ptr(), each.data_ptr() + 8 * n,
            self.marked.data_ptr(),
        )  # fmt: skip
        self.kernel.library.order_boxes(self.kernel.set, byref(self.columns), byref(self.numbers))

    def mark_blind(self) -> bool:
        """Look at the cells' faces; return whether any integral is ready still."""
        looks = self.numbers.looks
        room, point = INTEGERS.new_empty(5 * looks), numbers(self.kernel.d, looks)
        kernel, at = self.kernel, (room.data_ptr(), point.data_ptr(), self.ready.data_ptr())
        return kernel.library.mark_blind_boxes(kernel.set, byref(self.columns), byref(self.numbers), *at) > 0

    def mark_unseen(self, sample: Sample) -> None:
        """Look at points anywhere."""
        many = INTEGERS.new_zeros(len(self.ready)).index_copy_(0, sample.mine, sample.count)
        share = numbers(len(many)).index_copy_(0, sample.mine, sample.share)
        point, height = sample.point.contiguous(), sample.height.contiguous()
        k, kernel = len(height), self.kernel
        room = INTEGERS.new_empty(3 * k)
        kernel.library.mark_unseen_boxes(
            kernel.set, byref(self.columns), byref(self.numbers), point.data_ptr(), k, height.data_ptr(),
            many.data_ptr(), share.data_ptr(), room.data_ptr(),
        )  # fmt: skip


def columns(cells: Cells) -> BoxColumns:
    """Return where the numbers of some cells are."""
    sums, whole, real = cells.sums, cells.whole, cells.real
    return BoxColumns(sums.data_ptr(), real.data_ptr(), whole.data_ptr(), sums.stride(0))


def part(cells: Cells, first: int, n: int) -> Cells:
    """Return n cells where they stand among others."""
    return Cells(*(t.narrow(1, first, n) for t in (cells.sums, cells.whole, cells.real)))
