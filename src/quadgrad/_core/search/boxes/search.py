"""The search on boxes: which geometry, which estimate, what they are blind to, and what is handed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor

from quadgrad._core.estimates.boxes import BoxEstimate, Readings, compare_with_parents
from quadgrad._core.estimates.null_rules import FLOOR, largest_component
from quadgrad._core.mesh.boxes import HINTS, Boxes, NewBoxes, unit_corners
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.points import make_sequence
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import reals
from quadgrad._core.mesh.cells import locate
from quadgrad._core.search.books import Running, sum_by_owner
from quadgrad._core.search.boxes.held_out import COARSE, DOUBTS, SEED, Drawn, HeldOut, compare_nodes, doubted_places
from quadgrad._core.search.boxes.holding import HoldingBodies
from quadgrad._core.search.boxes.native import BISECTIONS, BoxKernel, NativeLook, NativeRound, part
from quadgrad._core.search.boxes.neighbours import SHARE_SEEN, Sample, find_blind, find_unseen
from quadgrad._core.search.decide import RUN, Totals, Verdict, allowed_error
from quadgrad._core.search.kernel.values import UnreadableError
from quadgrad._core.search.rounds import search_rounds
from quadgrad._core.search.task import Found, hear, hear_anew, noise
from quadgrad._core.search.tensors import Count, TurnsComplexError

__all__ = ["BoxBodies", "BoxFound", "box_parts", "search_boxes"]

def search_boxes(
    problem: Problem, first: BoxPlan | None, alone: bool = False, native: bool = True
) -> BoxFound:
    """Search boxes from their whole, or from the cells of a plan; ``alone``: only the integrals that it has.

    ``native`` tells whether the compiled kernel is to do what it can.
    """
    try:
        mesh, estimate = box_parts(problem)
        mesh.alone = alone
        return search_rounds(BoxBodies(problem, mesh, estimate, partial(record_boxes, problem), native), first)
    except TurnsComplexError:
        integrand = replace(problem.integrand, output_dtype=problem.integrand.sum_dtype.to_complex())
        return search_boxes(replace(problem, integrand=integrand), first, alone, native)
    except UnreadableError:
        return search_boxes(problem, first, alone, native=False)


def box_parts(problem: Problem) -> tuple[Boxes, BoxEstimate]:
    """Return a problem's geometry and estimate."""
    domain = problem.pieces
    mesh = Boxes(domain, problem.rule, problem.batch, domain.marks[0].device)
    return mesh, BoxEstimate(problem.rule, domain.x_dtype, not domain.infinite)


def record_boxes(
    problem: Problem, cells: Cells, value: Tensor, error: Tensor, status: Tensor, nfev: Tensor
) -> BoxFound:
    """Return the cells sorted by integral."""
    row, order = cells.whole[2].sort(stable=True)
    d = problem.rule.d
    level, place = (cells.whole[i : i + d, order].T.contiguous() for i in (HINTS, HINTS + d))
    plan = BoxPlan.of(
        problem.rule, problem.pieces.infinite, problem.batch_shape, row, level, place,
        cells.sums[-2, order].to(error.dtype), cells.real[2, order],
    )  # fmt: skip
    n = problem.batch
    height = value.new_zeros(n, dtype=torch.float64).scatter_reduce_(0, cells.whole[2], cells.real[0], "amax")
    modulus = sum_by_owner(cells.sums[-1:], cells.whole[2], n)[0] / (FLOOR * noise(problem))
    nothing = value.new_zeros((n, 2, d), dtype=torch.float64)
    doubt = torch.zeros_like(height).scatter_reduce_(0, cells.whole[2], cells.real[-DOUBTS], "amax")
    most = ((cells.real[-DOUBTS] >= doubt[cells.whole[2]]) & (cells.real[-DOUBTS] > 0.0)).nonzero().squeeze(1)
    doubted = value.new_zeros((n, d), dtype=torch.float64)
    if len(most):
        doubted[cells.whole[2, most]] = doubted_places(problem.rule, cells.take(most))
    return BoxFound(
        plan, value, error, status, nfev, height=height, modulus=modulus, top=height, corner=nothing, doubt=doubt,
        doubted=doubted,
    )  # fmt: skip


@dataclass(slots=True)
class BoxFound(Found):
    """What a search on boxes hands over, and what it has seen of each integral.

    ``modulus`` is the integral of abs(f), ``height`` the largest size of f times the volume element at the nodes of
    the cells handed over. ``doubt`` is how far f is off what is expected at the place ``doubted`` ``(batch, d)`` in
    the unit cube, 0 if that is no more than may be. ``top`` is the largest size at any node seen, in the cell of
    the unit cube with lower corner and width ``corner`` ``(batch, 2, d)``.
    """

    modulus: Tensor = field(kw_only=True)
    height: Tensor = field(kw_only=True)
    top: Tensor = field(kw_only=True)
    doubt: Tensor = field(kw_only=True)
    doubted: Tensor = field(kw_only=True)
    corner: Tensor = field(kw_only=True)


class BoxBodies(HoldingBodies[BoxFound]):
    """The state of a search that holds its cells until an integral is done."""

    mesh: Boxes
    estimate: BoxEstimate

    def __init__(self, task: Problem, mesh: Any, estimate: Any, record: Any, native: bool = True) -> None:
        super().__init__(task, mesh, estimate, record)
        self.top = torch.zeros(task.batch, dtype=torch.float64, device=mesh.device)
        self.corner = self.top.new_zeros((task.batch, 2, mesh.rule.d))
        self.looked = torch.zeros(task.batch, dtype=torch.int64, device=mesh.device)
        self.kernel = BoxKernel.of(task, mesh, self.dtype) if native else None
        self.room: Cells | None = None

    def open(self, first: Any) -> None:
        """Take the cells to start with, and call f at the points that are held out."""
        super().open(first)
        some, spent = self.running.whole[1] > 0, self.running.whole[2]
        self.held_out = HeldOut(self.task, self.mesh, some.nonzero().squeeze(1), spent)
        self.looked += self.held_out.count
        spent += self.held_out.count * some

    def evaluate(self) -> None:
        """Call f on the new cells, a block of nodes at a time, and estimate all of them together."""
        parts = list[Cells]()
        for new in cast("Sequence[NewBoxes]", self.new):
            layout, step = self._lay_out(new), max(1, self.task.block // new.rows)
            seen: Readings | None = None if self.kernel is None else self.kernel.room(len(new))
            coarse = len(new) == 0 or int(new.level.sum(0).min()) <= COARSE
            drawn, inner = list[Drawn](), torch.zeros_like(new.row, dtype=torch.float64)
            for low in range(0, max(1, len(new)), step):
                part = slice(low, low + step)
                x, factor = self._nodes(layout, low, min(step, len(new) - low))
                hear_anew()
                y = self.widen(self.task.integrand(x, new.row[part]).detach())
                self.task.advance(y.shape[0] * y.shape[1])
                seen = self._read(factor, y, seen, part, len(new))
                if coarse and (fits := self.held_out.draw(new, part, y, factor)) is not None:
                    drawn.append(fits)
                if (off := hear(y)) is not None:
                    inner[part] = self._inner_error(off, factor)
            assert seen is not None
            told = self.held_out.compare(new, drawn, noise(self.task))
            parts.append(self._judge(new, layout, seen, inner, told))
        self.cells = self.gather(Cells.join(parts))

    def _lay_out(self, new: NewBoxes) -> Any:
        """Return how cells lie in their domains."""
        flat = self.kernel is not None and self.kernel.flat
        return self.kernel.lay_out(new) if flat else self.mesh.lay_out(new)

    def _nodes(self, layout: Any, low: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the places of f's values for ``count`` cells from ``low`` on, and its factor there."""
        if self.kernel is not None and self.kernel.flat:
            return self.kernel.nodes(layout, low, count), layout.volume[:, low : low + count]
        return self.mesh.nodes(layout, slice(low, low + count))

    def _read(self, factor: Tensor, y: Tensor, seen: Readings | None, part: slice, n: int) -> Readings:
        """Enter what is kept of f's values on a part of n cells."""
        if self.kernel is not None:
            assert seen is not None
            self.kernel.read(y, factor if len(factor) > 1 else None, seen, part.start)
            return seen
        readings = self.estimate.read(factor, y)
        seen = readings.room(n) if seen is None else seen
        seen.put(part, readings)
        return seen

    def _judge(self, new: NewBoxes, layout: Any, seen: Readings, inner: Tensor, told: Tensor) -> Cells:
        """Return new cells with what was read of f's values, and what is told of doubts."""
        if self.kernel is None:
            cells = self.estimate.judge(new, layout, seen, self.dtype.is_complex, noise(self.task))
            cells.real = torch.cat((cells.real, told))
        else:
            n, room = len(new), self.room
            cells = self.kernel.cells(n) if room is None else part(room, len(room) - n, n)
            flat = self.kernel.flat
            scale = layout.volume if flat else torch.ones_like(inner)
            self.kernel.judge(new, layout if flat else None, scale, seen, noise(self.task), cells)
            cells.real[-DOUBTS:] = told
        cells.sums[-2:] += inner
        return cells

    def _inner_error(self, off: Tensor, factor: Tensor) -> Tensor:
        """Return what integrals inside f, ``off`` at the nodes of cells, add to the cells' errors."""
        weight = self.mesh.rule.tensors(torch.float64, off.device).sizes
        weighted = weight[:, None] * off[: len(weight)] * factor[: len(weight)].abs()
        return weighted.sum(0).nan_to_num(0.0, 0.0, 0.0)

    def gather(self, new: Cells) -> Cells:
        """Return the new cells, compared with their parents, and those that were held."""
        self._remember(new)
        if self.room is None:
            return super().gather(new)
        assert self.kernel is not None and self.parents is not None
        self.kernel.compare(new, self.parents)
        cells, self.room, self.parents = self.room, None, None
        return cells

    def compare(self, new: Cells, parents: Cells) -> None:
        """Correct the errors of new cells by what those of their parents turned out to be."""
        compare_with_parents(new, parents)
        compare_nodes(new.real[-DOUBTS:], parents.real[-DOUBTS:])

    def decide(self) -> Count:
        """Judge all running integrals, put away what has settled, and halve the other cells."""
        if self.kernel is None or self.task.max_cells is not None:
            return super().decide()
        cells, running, who = self.cells, self.running, self.running.whole[0]
        round = self.kernel.round(cells, running, self.reopened)
        if round.n_ready:
            look = NativeLook(round)
            if look.mark_blind() and (sample := self._sample(look.ready > 0)) is not None:
                look.mark_unseen(sample)
        n_run, n_wait, halved = round.finish()
        self.waiting, self.reopened, n = self.waiting + n_wait, False, len(running)
        if n_run < n:
            self.books.enter(who, round.code, running.whole[2], round.totals)
        parents, held, settled = round.group(halved)
        if n_run:
            self.room = self.kernel.cells(len(held) + 2 * halved)
            self.kernel.copy(cells, held, self.room)
            self.parents = self.kernel.copy(cells, parents, self.kernel.cells(halved))
            new = self.kernel.halve(self.parents)
            going = Running(round.next, running.sums)
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

    def _remember(self, new: Cells) -> None:
        """Keep where each integral was seen to be highest."""
        row, height, d = new.whole[2], new.real[0], self.mesh.rule.d
        before = self.top
        self.top = before.scatter_reduce(0, row, height, "amax")
        highest = (height >= self.top[row]) & (height > before[row])
        if bool(highest.any()):
            level, place = new.whole[HINTS : HINTS + d, highest], new.whole[HINTS + d :, highest]
            self.corner[row[highest]] = torch.stack(unit_corners(level, place)).permute(2, 0, 1)

    def close(self) -> BoxFound:
        """Return the totals, all cells, and where each integral was seen to be highest."""
        return replace(super().close(), top=self.top, corner=self.corner)

    def mark(self, verdict: Verdict, totals: Totals, cells: Cells, follow: bool) -> Tensor:
        """Tell which cells are to be halved: of each integral those with the largest errors."""
        owner, splittable = cells.whole[0], cells.whole[1] > 0
        self.doubt_retired(verdict)
        if not len(cells):
            return splittable
        d = self.mesh.rule.d
        error = cells.sums[-2]
        lost = error.isinf()
        finite = error.masked_fill(lost | ~splittable, 0.0)
        n = len(self.running)
        target = torch.maximum(allowed_error(self.task.tolerance, totals), 2.0 * totals.floor)
        whole, counts = sum_by_owner(torch.stack((error.masked_fill(lost, 0.0), torch.ones_like(error))), owner, n)
        marked = self.largest(owner, finite, whole + self.running.sums[-2], counts, target)
        marked = marked & ~verdict.done[owner]
        marked = (marked | (lost & ~verdict.done[owner])) & splittable
        shallow = cells.whole[HINTS : HINTS + d].sum(0) < BISECTIONS
        marked = marked | (shallow & splittable)
        ready = verdict.done & (sum_by_owner(marked[None].long(), owner, n)[0] == 0)
        if bool(ready.any()):
            marked = marked | (find_blind(cells, d, target, ready) & splittable)
            ready = ready & (sum_by_owner(marked[None].long(), owner, n)[0] == 0)
        if bool(ready.any()):
            if (sample := self._sample(ready)) is not None:
                marked = marked | (find_unseen(cells, d, target, sample) & splittable)
        return marked | (super().mark(verdict, totals, cells, True) & verdict.done[owner]) if follow else marked

    def _sample(self, ready: Tensor) -> Sample | None:
        """Call f at points anywhere, of integrals that are ``ready`` to end; None if none has any left to pay."""
        mesh, running = self.mesh, self.running
        mine = ready.nonzero().squeeze(1)
        row = running.whole[0, mine]
        spent, before = running.whole[2, mine], self.looked[row]
        count = torch.minimum((spent * SHARE_SEEN).long() - before, self.task.max_nfev - spent).clamp_min(0)
        self.looked[row] += count
        running.whole[2, mine] += count
        first, last = int(before.min()), int((before + count).max())
        if not int(count.sum()):
            return None
        point = anywhere(mesh.rule.d, mesh.device).points(first, last - first)[0]
        if len(mine) > 1:
            whose = torch.arange(len(mine), device=row.device).repeat_interleave(count)
            number = torch.arange(len(whose), device=row.device) - (count.cumsum(0) - count - before)[whose] - first
            point, row = point.T.index_select(1, number).T, row[whose]
        else:
            row = row.expand(len(point))
        height = list[Tensor]()
        for low in range(0, len(point), self.task.block):
            part = slice(low, low + self.task.block)
            whose = row[part]
            x, factor = mesh.domain.take(whose[:1] if len(mine) == 1 else whose).place(point[None, part])
            y = self.task.integrand(x, whose).detach()[0]
            y = largest_component(reals(y, 1).abs().double())
            height.append((y * factor.abs()[0]).nan_to_num(0.0, 0.0, 0.0))
        share = self.looked[running.whole[0, mine]].double().reciprocal()
        return Sample(mine, count, share, point.T, torch.cat(height))


@cache
def anywhere(d: int, device: torch.device) -> Any:
    """Return points that f is called at wherever its cells are."""
    return make_sequence("sobol", d, SEED, 1, device)
