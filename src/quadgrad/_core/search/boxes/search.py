"""The search on boxes: which geometry, which estimate, what they are blind to, and what is handed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.boxes.held_out import COARSE, DOUBTS, SEED, Drawn, HeldOut, compare_nodes, doubted_places
from quadgrad._core.search.boxes.holding import HoldingBodies
from quadgrad._core.search.boxes.neighbours import SHARE_SEEN, find_blind, find_unseen
from quadgrad._core.search.decide import Totals, Verdict, allowed_error
from quadgrad._core.search.rounds import search_rounds
from quadgrad._core.search.task import Found, hear, hear_anew, noise
from quadgrad._core.search.tensors import TurnsComplexError

__all__ = ["BoxBodies", "BoxFound", "box_parts", "search_boxes"]

BISECTIONS = 2
"""No cell is believed before so many halvings: one alone may be blind to all of f."""


def search_boxes(problem: Problem, first: BoxPlan | None, alone: bool = False) -> BoxFound:
    """Search boxes from their whole, or from the cells of a plan; ``alone``: only the integrals that it has."""
    try:
        mesh, estimate = box_parts(problem)
        mesh.alone = alone
        return search_rounds(BoxBodies(problem, mesh, estimate, partial(record_boxes, problem)), first)
    except TurnsComplexError:
        integrand = replace(problem.integrand, output_dtype=problem.integrand.sum_dtype.to_complex())
        return search_boxes(replace(problem, integrand=integrand), first, alone)


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

    def __init__(self, task: Problem, mesh: Any, estimate: Any, record: Any) -> None:
        super().__init__(task, mesh, estimate, record)
        self.top = torch.zeros(task.batch, dtype=torch.float64, device=mesh.device)
        self.corner = self.top.new_zeros((task.batch, 2, mesh.rule.d))
        self.looked = torch.zeros(task.batch, dtype=torch.int64, device=mesh.device)

    def open(self, first: Any) -> None:
        """Take the cells to start with, and call f at the points that are held out."""
        super().open(first)
        some, spent = self.running.whole[1] > 0, self.running.whole[2]
        self.held_out = HeldOut(self.task, self.mesh, some.nonzero().squeeze(1), spent)
        self.looked += self.held_out.count
        spent += self.held_out.count * some

    def evaluate(self) -> None:
        """Call f on the new cells, a block of nodes at a time, and estimate all of them together."""
        mesh, estimate, parts = self.mesh, self.estimate, list[Cells]()
        for new in cast("Sequence[NewBoxes]", self.new):
            layout, step = mesh.lay_out(new), max(1, self.task.block // new.rows)
            seen: Readings | None = None
            coarse = len(new) == 0 or int(new.level.sum(0).min()) <= COARSE
            drawn, inner = list[Drawn](), torch.zeros_like(new.row, dtype=torch.float64)
            for low in range(0, max(1, len(new)), step):
                part = slice(low, low + step)
                x, factor = mesh.nodes(layout, part)
                hear_anew()
                y = self.widen(self.task.integrand(x, new.row[part]).detach())
                self.task.advance(y.shape[0] * y.shape[1])
                readings = estimate.read(factor, y)
                seen = readings.room(len(new)) if seen is None else seen
                seen.put(part, readings)
                if coarse and (fits := self.held_out.draw(new, part, y, factor)) is not None:
                    drawn.append(fits)
                if (off := hear(y)) is not None:
                    inner[part] = self._inner_error(off, factor)
            assert seen is not None
            cells = estimate.judge(new, layout, seen, self.dtype.is_complex, noise(self.task))
            cells.sums[-2:] += inner
            told = self.held_out.compare(new, drawn, noise(self.task))
            cells.real = torch.cat((cells.real, told))
            parts.append(cells)
        self.cells = self.gather(Cells.join(parts))

    def _inner_error(self, off: Tensor, factor: Tensor) -> Tensor:
        """Return what integrals inside f, ``off`` at the nodes of cells, add to the cells' errors."""
        weight = self.mesh.rule.tensors(torch.float64, off.device).sizes
        weighted = weight[:, None] * off[: len(weight)] * factor[: len(weight)].abs()
        return weighted.sum(0).nan_to_num(0.0, 0.0, 0.0)

    def gather(self, new: Cells) -> Cells:
        """Return the new cells, compared with their parents, and those that were held."""
        self._remember(new)
        return super().gather(new)

    def compare(self, new: Cells, parents: Cells) -> None:
        """Correct the errors of new cells by what those of their parents turned out to be."""
        compare_with_parents(new, parents)
        compare_nodes(new.real[-DOUBTS:], parents.real[-DOUBTS:])

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
            marked = marked | (self._unseen(cells, target, ready) & splittable)
        return marked | (super().mark(verdict, totals, cells, True) & verdict.done[owner]) if follow else marked

    def _unseen(self, cells: Cells, allowed: Tensor, ready: Tensor) -> Tensor:
        """Tell which cells are blind to what f is at points anywhere, of integrals that are ``ready`` to end."""
        mesh, running = self.mesh, self.running
        mine = ready.nonzero().squeeze(1)
        row = running.whole[0, mine]
        spent, before = running.whole[2, mine], self.looked[row]
        count = torch.minimum((spent * SHARE_SEEN).long() - before, self.task.max_nfev - spent).clamp_min(0)
        self.looked[row] += count
        running.whole[2, mine] += count
        first, last = int(before.min()), int((before + count).max())
        if not int(count.sum()):
            return torch.zeros_like(cells.whole[0], dtype=torch.bool)
        sequence = make_sequence("sobol", mesh.rule.d, SEED, 1, mesh.device).points(first, last - first)[0].double()
        whose = torch.arange(len(mine), device=row.device).repeat_interleave(count)
        number = torch.arange(len(whose), device=row.device) - (count.cumsum(0) - count - before)[whose] - first
        point, parts = sequence[number], list[Tensor]()
        for low in range(0, len(whose), self.task.block):
            part = slice(low, low + self.task.block)
            x, factor = mesh.domain.take(row[whose[part]]).place(point[None, part])
            y = self.task.integrand(x, row[whose[part]]).detach()[0]
            y = largest_component(reals(y, 1).abs().double())
            parts.append((y * factor.abs()[0]).nan_to_num(0.0, 0.0, 0.0))
        share = (self.looked[row].double().reciprocal())[whose]
        return find_unseen(cells, mesh.rule.d, allowed, mine[whose], point.T, torch.cat(parts), share)
