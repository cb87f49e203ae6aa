"""The search on boxes by the compiled kernel: the same decisions as :mod:`.bodies` makes in tensor operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from quadgrad._core.mesh.boxes import NewBoxes
from quadgrad._core.mesh.cells import locate
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.problem import Problem
from quadgrad._core.search.books import Running
from quadgrad._core.search.boxes.bodies import BoxBodies
from quadgrad._core.search.boxes.kernel import BoxKernel, NativeLook, NativeRound, part
from quadgrad._core.search.decide import RUN
from quadgrad._core.search.task import hear, hear_anew, noise
from quadgrad._core.search.tensors import Count

__all__ = ["NativeBoxBodies"]

R = TypeVar("R")


class NativeBoxBodies(BoxBodies[R]):
    """The state of a search on the CPU; see :class:`.bodies.BoxBodies`."""

    def __init__(self, task: Problem, mesh: Any, estimate: Any, record: Any) -> None:
        super().__init__(task, mesh, estimate, record)
        self.kernel = BoxKernel(task, mesh, self.dtype)
        self.room: Cells | None = None
        """The cells that are held, and behind them room for those that are new."""

    def open(self, first: Any) -> None:
        """Take the cells to start with, and call f at the points that are held out."""
        super().open(first)
        self.kernel.hold_out(self.held_out)

    def evaluate(self) -> None:
        """Call f on the new cells, a block of nodes at a time, and estimate them."""
        kernel, mesh, task = self.kernel, self.mesh, self.task
        (new,) = cast("Sequence[NewBoxes]", self.new)
        n, step = len(new), max(1, task.block // new.rows)
        cells = kernel.cells(n) if self.room is None else part(self.room, len(self.room) - n, n)
        layout = kernel.lay_out(new) if kernel.flat else mesh.lay_out(new)
        kernel.open_round(new, layout, cells)
        for low in range(0, max(1, n), step):
            block = slice(low, min(n, low + step))
            x, factor = kernel.nodes(layout, block) if kernel.flat else mesh.nodes(layout, block)
            hear_anew()
            y = self.widen(task.integrand(x, new.row if n <= step else new.row[block]).detach())
            task.advance(y.shape[0] * y.shape[1])
            kernel.estimate(y, factor, low, noise(task))
            if (off := hear(y)) is not None:
                cells.sums[-2:, block] += self.inner_error(off, factor)
        kernel.remember(cells, self.top, self.corner)
        if self.room is None:
            self.cells = self.gather(cells)
        else:
            assert self.parents is not None
            kernel.compare(cells, self.parents)
            self.cells, self.room, self.parents = self.room, None, None

    def close(self) -> R:
        """Return the totals, all cells, and where each integral was seen to be highest."""
        found = super().close()
        self.kernel.memory.leave()
        return found

    def compare(self, new: Cells, parents: Cells) -> None:
        """Correct the errors of new cells by what those of their parents turned out to be."""
        self.kernel.compare(new, parents)

    def remember(self, new: Cells) -> None:
        """Need not do again what the kernel has done."""

    def decide(self) -> Count:
        """Judge all running integrals, put away what has settled, and halve the other cells."""
        if self.task.max_cells is not None:
            self.kernel.compare_held_out(self.cells, None)
            return super().decide()
        kernel, cells, running, who = self.kernel, self.cells, self.running, self.running.whole[0]
        round, n = NativeRound(kernel, cells, running, self.reopened), len(running)
        if round.n_ready:
            look = NativeLook(round)
            if look.mark_blind() and (sample := self.sample(look.ready > 0)) is not None:
                look.mark_unseen(sample)
        n_run, n_wait, halved = round.finish()
        kernel.compare_held_out(cells, round.marked)
        self.waiting, self.reopened = self.waiting + n_wait, False
        if n_run < n:
            self.books.enter(who, round.code, running.whole[2], round.totals)
        parents, held, settled = round.group(halved)
        if n_run:
            self.room = kernel.cells(len(held) + 2 * halved)
            kernel.copy(cells, held, self.room)
            self.parents = kernel.copy(cells, parents, kernel.cells(halved, "parents"))
            new, going = kernel.halve(self.parents), Running(round.next, running.sums)
            if n_run < n:
                runs = round.code == RUN
                going, place = going.take(locate(runs, n_run)), runs.cumsum(0) - 1
                new.owner = place.index_select(0, new.owner)
                first = self.room.whole[0, : len(held)]
                first.copy_(place.index_select(0, first))
            self.running, self.new = going, [new]
        if n_run < n or not n:
            ended = cells.take(settled)
            self.books.settle(ended, who.index_select(0, ended.whole[0]))
        return Count(n_run, self.waiting)
