"""The state of a search on boxes: what their values say, what is remembered, and which of them are halved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from quadgrad._core.estimates.boxes import BoxEstimate, Readings, compare_with_parents
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.mesh.boxes import HINTS, Boxes, NewBoxes, unit_corners
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.points import make_sequence
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import reals
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.boxes.held_out import COARSE, DOUBTS, SEED, Drawn, HeldOut, compare_nodes
from quadgrad._core.search.boxes.holding import HoldingBodies
from quadgrad._core.search.boxes.neighbours import SHARE_SEEN, Sample, find_blind, find_unseen, halve_widest
from quadgrad._core.search.decide import Totals, Verdict, allowed_error
from quadgrad._core.search.task import hear, hear_anew, noise

__all__ = ["BISECTIONS", "BoxBodies"]

BISECTIONS = 2
"""No cell is believed before so many halvings: one alone may be blind to all of f."""

R = TypeVar("R")


class BoxBodies(HoldingBodies[R]):
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
                    inner[part] = self.inner_error(off, factor)
            assert seen is not None
            cells = estimate.judge(new, layout, seen, self.dtype.is_complex, noise(self.task))
            cells.sums[-2:] += inner
            told = self.held_out.compare(new, drawn, noise(self.task))
            cells.real = torch.cat((cells.real, told))
            parts.append(cells)
        self.cells = self.gather(Cells.join(parts))

    def inner_error(self, off: Tensor, factor: Tensor) -> Tensor:
        """Return what integrals inside f, ``off`` at the nodes of cells, add to the cells' errors."""
        weight = self.mesh.rule.tensors(torch.float64, off.device).sizes
        weighted = weight[:, None] * off[: len(weight)] * factor[: len(weight)].abs()
        return weighted.sum(0).nan_to_num(0.0, 0.0, 0.0)

    def gather(self, new: Cells) -> Cells:
        """Return the new cells, compared with their parents, and those that were held."""
        self.remember(new)
        return super().gather(new)

    def compare(self, new: Cells, parents: Cells) -> None:
        """Correct the errors of new cells by what those of their parents turned out to be."""
        compare_with_parents(new, parents)
        compare_nodes(new.real[-DOUBTS:], parents.real[-DOUBTS:])

    def remember(self, new: Cells) -> None:
        """Keep where each integral was seen to be highest."""
        row, height, d = new.whole[2], new.real[0], self.mesh.rule.d
        before = self.top
        self.top = before.scatter_reduce(0, row, height, "amax")
        highest = (height >= self.top[row]) & (height > before[row])
        if bool(highest.any()):
            level, place = new.whole[HINTS : HINTS + d, highest], new.whole[HINTS + d :, highest]
            self.corner[row[highest]] = torch.stack(unit_corners(level, place)).permute(2, 0, 1)

    def close(self) -> R:
        """Return the totals, all cells, and where each integral was seen to be highest."""
        return replace(cast(Any, super().close()), top=self.top, corner=self.corner)

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
        blind = torch.zeros_like(marked)
        if bool(ready.any()):
            blind = find_blind(cells, d, target, ready) & splittable
            ready = ready & (sum_by_owner(blind[None].long(), owner, n)[0] == 0)
        if bool(ready.any()) and (sample := self.sample(ready)) is not None:
            blind = blind | (find_unseen(cells, d, target, sample) & splittable)
        halve_widest(cells, d, blind)
        marked = marked | blind
        return marked | (super().mark(verdict, totals, cells, True) & verdict.done[owner]) if follow else marked

    def sample(self, ready: Tensor) -> Sample | None:
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
