"""The search over cells of which functions cut off a part: a geometry, and what f's values say about its cells.

All cells of the box are kept, those outside of the region too: they are what a later search starts from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.mesh.boxes import HINTS, unit_corners
from quadgrad._core.mesh.protocol import Cells, EvenMesh, EvenMoves
from quadgrad._core.plans.cut import CutPlan
from quadgrad._core.reduce import reals, total
from quadgrad._core.regions.known import Known, inspect
from quadgrad._core.regions.lines import Level
from quadgrad._core.regions.pairs import CutRule
from quadgrad._core.regions.recursion import Cut, Nodes, trace
from quadgrad._core.regions.scouts import Scouts, send_scouts
from quadgrad._core.regions.surface import ROUGH, element

__all__ = ["CutMesh", "CutPlaces", "cut_cells"]

START = {1: 4, 2: 2}
"""Halvings of each axis that a search starts with; one in three dimensions or more."""

DEEPEST = 50
"""Halvings of a cell, all axes together, after which it is as good as nothing: 2^-50 of the box.

Of one axis there are fewer by :data:`SPARE` than x has binary digits: the functions' lattices need some of them.
"""

SPARE = 4

BLANK = 2
"""Halvings of each axis, beyond the first cells, after which a cell that shows nothing is not halved again."""

CAUTION, LEAST = 10.0, 0.01
"""The difference to the first lower rule is the error if that is so many times as far off as the second one; where
it is less it is believed to be less in proportion, down to this part of it."""

KINK = 0.02
"""Where boundaries may cross in a cell and no stretch ends, the integral over its last axis has a kink, which rules
may not see: its error is at least this part of the volume times the largest abs(f)."""

ROUNDING = 10.0
"""The floor of an error is so many times the noise of f times the integral of abs(f)."""


@dataclass(slots=True)
class CutPlaces:
    """Where f is called: ``x`` ``(1, n, d)`` for the integrals ``owner`` ``(n,)``, and what that makes of cells.

    ``factor`` ``(n,)`` is the element of volume, or of a surface; ``kinked`` tells in which cells boundaries may
    cross where no stretch ends.
    """

    x: Tensor
    owner: Tensor
    nodes: Nodes
    known: Known
    factor: Tensor
    kinked: Tensor


@dataclass(slots=True)
class NewCuts:
    """Cells on which f was not yet called; ``level`` and ``place`` ``(d, n)`` are those of boxes.

    ``row`` is the integral of each among all of the call, ``peak`` the largest abs(f) that was seen around.
    """

    owner: Tensor
    row: Tensor
    level: Tensor
    place: Tensor
    rows: int
    peak: Tensor

    def __len__(self) -> int:
        return self.row.shape[0]

    def part(self, cells: slice) -> NewCuts:
        """Return some of the cells."""
        level, place = self.level[:, cells], self.place[:, cells]
        return NewCuts(self.owner[cells], self.row[cells], level, place, self.rows, self.peak[cells])


def cut_cells(new: NewCuts | CutPlan) -> tuple[Tensor, Tensor]:
    """Return the lower corners and sides of cells in the unit cube, ``(n, d)``."""
    low, side = unit_corners(new.level, new.place)
    return low.T.contiguous(), side.T.contiguous()


class CutMesh(EvenMesh):
    """The boxes of all integrals of a call, and the functions that cut them.

    Parameters
    ----------
    level : Level
        Outside of all transforms.
    batch : int
        The number of integrals.
    rule : CutRule
    lipschitz : Tensor, shape ``(batch or 1, functions)``, optional
    rtol : float
    block : int
        Evaluations at a time.
    """

    def __init__(
        self, level: Level, batch: int, rule: CutRule, lipschitz: Tensor | None, rtol: float, block: int
    ) -> None:  # fmt: skip
        self.level, self.batch, self.rule = level, batch, rule
        self.lipschitz, self.rtol, self.block = lipschitz, rtol, block
        self.scouts: Scouts | None = None
        device = level.box.a.device
        self.finest = 1 - SPARE - round(math.log2(torch.finfo(level.g.call_dtype).eps))
        self.seen = torch.zeros(batch, dtype=torch.float64, device=device)
        self.spent = torch.zeros(batch, dtype=torch.int64, device=device)

    def start(self, first: CutPlan | None) -> Sequence[NewCuts]:
        """Return the cells to start with: those of a plan, or a coarse grid."""
        d, device = self.rule.d, self.seen.device
        halvings = START.get(d, 1)
        line = torch.arange(2**halvings, device=device)
        place = torch.stack(torch.meshgrid(*[line] * d, indexing="ij")).reshape(d, -1)
        level = torch.full_like(place, halvings)
        if self.lipschitz is None and self.batch:
            grid = torch.stack([t.T for t in unit_corners(level, place)], dim=1)
            self.scouts = send_scouts(self.level, self.batch, grid, self.rtol, self.block)
        if first is not None:
            row, level, place = first.owner, first.level, first.place
        else:
            row = torch.arange(self.batch, device=device).repeat_interleave(place.shape[1])
            level, place = level.repeat(1, self.batch), place.repeat(1, self.batch)
        return [NewCuts(row, row, level, place, self.rule.rows, self.seen[row])]

    def place(self, new: NewCuts) -> CutPlaces:
        """Look at the cells, and place nodes where f is to be called."""
        low, side = cut_cells(new)
        known = inspect(self.level, new.row, low, side, self.lipschitz, self.scouts)
        none = known.outside | known.lost
        if self.rule.surface:
            none = none | ~known.active.any(1)
        inside = (~none).nonzero().squeeze(1)
        cut = Cut(new.row, low, side, known.order, known.active).take(inside)
        nodes, skeleton = trace(self.level, cut, self.rule.line, self.rule.surface)
        x, factor = element(self.level, nodes, cut, self.rule.surface)
        nodes = replace(nodes, cell=inside[nodes.cell])
        owner = new.row[nodes.cell]
        self.spent.index_add_(0, owner, torch.ones_like(owner))
        kinked = torch.zeros_like(none).index_put((inside,), skeleton.kinked)
        return CutPlaces(x, owner, nodes, known, factor, kinked)

    def __call__(self, new: NewCuts, places: CutPlaces, y: Tensor, noise: float) -> Cells:
        """Return the cells with what f's values ``(1, nodes, *event)`` say of them: this is the estimate."""
        n, nodes, known = len(new), places.nodes, places.known
        y = reals(y[0], 1)
        y = y[:, None] if y.ndim == 1 else y
        weighted = y * places.factor[:, None]
        sums = total(nodes.weight[:, :, None] * weighted[:, None], nodes.cell, n)
        value = sums[:, 0]
        along = _largest(sums[:, 1:] - value[:, None]).unflatten(1, (2, -1))  # by the lower rules, along each axis
        sizes = (nodes.weight[:, :1] * weighted).abs()
        size = total(_largest(sizes), nodes.cell, n)
        peak = new.peak.scatter_reduce(0, nodes.cell, _largest(y), "amax")
        self.seen.scatter_reduce_(0, new.row, peak.nan_to_num(0.0, 0.0, 0.0), "amax")
        # What lattice and lines may have missed is of the size of the cell times what f is around.
        doubtful = known.active.any(1) & ~known.clear
        height = torch.where(peak > 0.0, peak, self.seen[new.row])
        missed = torch.where(height > 0.0, height, 1.0) * self._measure(new)
        several = known.active.sum(1) > 1
        deep = (new.level.sum(0) >= DEEPEST) | (new.level.amax(0) >= self.finest)
        if self.rule.surface and self.level.g.stack is not None:
            noise = max(noise, ROUGH / ROUNDING)
        floor = ROUNDING * noise * size
        floor = torch.where(doubtful & deep, torch.maximum(floor, missed), floor)
        least = torch.where(doubtful, missed, torch.where(places.kinked, KINK * missed, floor))
        error = torch.maximum(torch.where(several, along[:, 0].sum(1), _error(along)), least)
        lost = ~error.isfinite() | known.lost
        value, floor = value.masked_fill(lost[:, None], 0.0), floor.masked_fill(lost, 0.0)
        error = error.masked_fill(lost, torch.inf)
        blank = known.blank & (new.level.sum(0) >= self.rule.d * (START.get(self.rule.d, 1) + BLANK))
        can = (~deep & ~blank).long()
        axis = self._axis(new, along[:, 0], doubtful | places.kinked)
        bits = torch.arange(known.active.shape[1], device=value.device)
        active = (known.active.long() << bits).sum(1)
        whole = torch.stack((new.owner, can, new.row, axis))
        more = torch.stack((known.outside.long(), active, known.blank.long(), known.lost.long()))
        whole = torch.cat((whole, new.level, new.place, known.order.T, more))
        return Cells(torch.cat((value.T, error[None], floor[None])), whole, peak[None])

    def _measure(self, new: NewCuts) -> Tensor:
        """Return the volume of cells in x, or how large a surface through one may be taken for."""
        sides = (self.level.box.b - self.level.box.a).abs()
        sides = (sides if sides.shape[0] == 1 else sides[new.row]) * cut_cells(new)[1]
        return sides.prod(1) / sides.amin(1) if self.rule.surface else sides.prod(1)

    def _axis(self, new: NewCuts, error: Tensor, doubtful: Tensor) -> Tensor:
        """Return the axis to halve: the one along which the rule does worst; of doubtful cells the longest."""
        longest = -new.level.T.to(error.dtype)
        worst = torch.where(doubtful[:, None] | ~error.isfinite(), longest, error)
        return torch.where(worst == worst.amax(1, keepdim=True), longest, -torch.inf).argmax(1)

    def split(self, cells: Cells, moves: EvenMoves, counts: list[int]) -> Sequence[NewCuts]:
        """Return the halves of the cells that are split, next to each other."""
        d = self.rule.d
        parent = torch.nonzero_static(moves.splits, size=counts[0]).squeeze(1).repeat_interleave(2)
        whole = cells.whole.index_select(1, parent)
        along = whole[3] == torch.arange(d, device=whole.device)[:, None]
        level, place = whole[HINTS : HINTS + d] + along, whole[HINTS + d : HINTS + 2 * d]
        upper = along * (torch.arange(parent.shape[0], device=whole.device) % 2)
        place = torch.where(along, 2 * place, place) + upper
        return [NewCuts(whole[0], whole[2], level, place, self.rule.rows, cells.real[0, parent])]

    def record(self, cells: Cells, batch_shape: tuple[int, ...], functions: int) -> CutPlan:
        """Return the settled cells as a plan."""
        d = self.rule.d
        row, index = cells.whole[2].sort(stable=True)
        level, place, order = (cells.whole[HINTS + k * d : HINTS + (k + 1) * d, index] for k in range(3))
        outside, active, blank, lost = cells.whole[HINTS + 3 * d :, index]
        bits = torch.arange(functions, device=row.device)
        return CutPlan(
            batch_shape=batch_shape, rule=self.rule.name, surface=self.rule.surface, owner=row,
            error=cells.sums[-2, index], level=level, place=place, order=order, outside=outside > 0,
            active=(active[:, None] >> bits) % 2 > 0, blank=blank > 0, lost=lost > 0,
        )  # fmt: skip


def _largest(values: Tensor) -> Tensor:
    """Return the size of the largest component."""
    return values.abs().amax(-1) if values.shape[-1] else values.new_zeros(values.shape[:-1])


def _error(along: Tensor) -> Tensor:
    """Return the error of cells where rules of two lower degrees are off by ``along`` ``(n, 2, d)``, axis by axis.

    The higher of these is off by much more than the rule itself where the integrand is smooth, which is where it is
    off by much less than the lower one.
    """
    high, low = along.sum(2).unbind(1)
    return high * (CAUTION * high / low).nan_to_num(1.0).clamp(LEAST, 1.0)
