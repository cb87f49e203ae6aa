"""The search over cells of which functions cut off a part: a geometry, and what f's values say about its cells.

All cells of the box are kept, those outside of the region too: they are what a later search starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import locate
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.plans.cut import CutPlan
from quadgrad._core.reduce import reals
from quadgrad._core.regions.known import Known, Scouts, inspect, send_scouts
from quadgrad._core.regions.lines import Level
from quadgrad._core.regions.recursion import Cut, Line, Nodes, trace
from quadgrad._core.tolerance import Tolerance

__all__ = ["CutMesh", "first_cells"]

START = {1: 4, 2: 2}
"""Halvings of each axis that a search starts with; one in three dimensions or more."""

DEEPEST = 50
"""Halvings of a cell, all axes together, after which it is as good as nothing: 2^-50 of the box."""

BLANK = 2
"""Halvings of each axis, beyond the first cells, after which a cell that shows nothing is not halved again."""

ROUNDING = 10.0
"""The floor of an error is so many times the noise of f times the integral of abs(f)."""


@dataclass(slots=True)
class NewCuts:
    """Cells on which f was not yet called.

    ``whose`` is the integral among all of the call, ``level`` ``(n, d)`` how often each axis was halved, ``low``
    ``(n, d)`` the lower corner in the unit cube, ``peak`` the largest abs(f) that was seen around.
    """

    owner: Tensor
    whose: Tensor
    level: Tensor
    low: Tensor
    peak: Tensor
    rows: int

    def __len__(self) -> int:
        return self.owner.shape[0]

    def part(self, cells: slice) -> NewCuts:
        """Return some of the cells."""
        columns = (t[cells] for t in (self.owner, self.whose, self.level, self.low, self.peak))
        return NewCuts(*columns, rows=self.rows)

    @property
    def side(self) -> Tensor:
        """The sides, as parts of the unit cube."""
        return torch.ldexp(torch.ones_like(self.low), -self.level)


@dataclass(slots=True)
class CutPlaces:
    """Where f is called: ``x`` ``(1, n, d)`` for the integrals ``owner`` ``(n,)``, and what that makes of cells."""

    x: Tensor
    owner: Tensor
    nodes: Nodes
    known: Known
    factor: Tensor


@dataclass(slots=True)
class Halved:
    """Which cells are halved."""

    split: Tensor
    rows: int

    @property
    def splits(self) -> Tensor:
        """Which cells are split."""
        return self.split > 0

    @property
    def price(self) -> Tensor:
        """What that costs, see :class:`quadgrad._core.mesh.protocol.Moves`."""
        return self.split * self.split.new_tensor([[2], [2 * self.rows], [0], [0]])

    def restrict(self, keep: Tensor, afford: Tensor) -> Tensor:
        """Split only cells where ``keep``."""
        self.split = self.split * keep
        return self.split.sum()[None]


class CutMesh:
    """The boxes of all integrals of a call, and the functions that cut them.

    Parameters
    ----------
    level : Level
        Outside of all transforms.
    batch : int
        The number of integrals.
    rule : Line
    surface : bool
        Whether the integral is over the surface on which the function vanishes.
    lipschitz : Tensor, shape ``(batch or 1, functions)``, optional
    block : int
        Evaluations at a time.
    """

    def __init__(
        self, level: Level, batch: int, rule: Line, surface: bool, lipschitz: Tensor | None, block: int
    ) -> None:  # fmt: skip
        self.level, self.batch, self.rule, self.surface = level, batch, rule, surface
        self.lipschitz, self.block = lipschitz, block
        self.scouts: Scouts | None = None
        d = level.box.d
        self.rows = max(1, len(rule.nodes) ** (d - surface))
        self.deepest_blank = d * (START.get(d, 1) + BLANK)
        self.seen = torch.zeros(batch, dtype=torch.float64, device=level.box.a.device)
        self.spent = torch.zeros(batch, dtype=torch.int64, device=level.box.a.device)
        self.unseen = torch.zeros(batch, dtype=torch.bool, device=level.box.a.device)

    def start(self, first: CutPlan | None) -> Sequence[NewCuts]:
        """Return the cells to start with: those of a plan, or a coarse grid."""
        grid = first_cells(self.level.box.d, self.seen)
        if self.lipschitz is None and self.batch:
            self.scouts = send_scouts(self.level, self.batch, grid, self.block)
        if first is not None:
            whose, level, low = first.owner, first.level, first.low
        else:
            n, d = grid.shape[0], grid.shape[2]
            whose = torch.arange(self.batch, device=grid.device).repeat_interleave(n)
            low = grid[:, 0].repeat(self.batch, 1)
            level = torch.full_like(low, START.get(d, 1), dtype=torch.int64)
        return [NewCuts(whose, whose, level, low, torch.zeros_like(low[:, 0]), self.rows)]

    def beside(self, new: NewCuts) -> None:
        """No places are shared."""

    def enter(self, new: NewCuts, places: CutPlaces, y: Tensor) -> None:
        """Nothing is asked beside."""

    def recall(self, cells: Cells) -> Cells:
        """Return cells that had settled as they are."""
        return cells

    def place(self, new: NewCuts) -> CutPlaces:
        """Look at the cells, and place nodes where f is to be called."""
        side = new.side
        known = inspect(self.level, new.whose, new.low, side, self.lipschitz, self.scouts)
        none = known.outside | known.lost | (self.surface & ~known.active.any(1))
        inside = (~none).nonzero().squeeze(1)
        active = known.active.clone()
        cut = Cut(new.whose, new.low, side, known.order, active).take(inside)
        nodes, _ = trace(self.level, cut, self.rule, self.surface)
        nodes = replace(nodes, cell=inside[nodes.cell])
        owner = new.whose[nodes.cell]
        x, factor = element_of(self.level, nodes, owner, new.side[nodes.cell], known.order[nodes.cell], self.surface)
        self.spent.index_add_(0, owner, torch.ones_like(owner))
        return CutPlaces(x, owner, nodes, known, factor)

    def __call__(self, new: NewCuts, places: CutPlaces, y: Tensor, noise: float) -> Cells:
        """Return the cells with what f's values ``(1, nodes, *event)`` say of them: this is the estimate."""
        n, d = new.low.shape
        nodes, known = places.nodes, places.known
        y = reals(y[0], 1) if y.ndim > 2 or y.is_complex() else y[0][:, None]
        y = y.reshape(y.shape[0], -1)
        weighted = y * places.factor[:, None]
        sums = y.new_zeros((n, nodes.weight.shape[1], y.shape[1]))
        sums.index_add_(0, nodes.cell, nodes.weight[:, :, None] * weighted[:, None])
        value, lower, along = sums[:, 0], sums[:, 1], sums[:, 2:]
        size = y.new_zeros(n).index_add_(0, nodes.cell, (nodes.weight[:, :1] * weighted).abs().amax(1))
        error = _largest(value - lower)
        tall = _largest(y)
        peak = new.peak.scatter_reduce(0, nodes.cell, tall, "amax")
        self.seen.scatter_reduce_(0, new.whose, peak.nan_to_num(0.0, 0.0, 0.0), "amax")
        # What lattice and lines may have missed is of the size of the cell times what f is around.
        doubtful = known.active.any(1) & ~known.steep
        height = torch.where(peak > 0.0, peak, self.seen[new.whose])
        height = torch.where(height > 0.0, height, 1.0)
        measure = self._measure(new)
        deep = new.level.sum(1) >= DEEPEST
        floor = ROUNDING * noise * size
        error = torch.where(doubtful, torch.maximum(error, height * measure), error)
        floor = torch.where(doubtful & deep, torch.maximum(floor, height * measure), floor)
        error = torch.maximum(error, floor)
        lost = ~error.isfinite() | known.lost
        value, floor = value.masked_fill(lost[:, None], 0.0), floor.masked_fill(lost, 0.0)
        error = error.masked_fill(lost, torch.inf)
        settled = known.blank & (new.level.sum(1) >= self.deepest_blank)
        can = ((error > floor) & ~deep & ~settled).long()
        axis = self._axis(new, _largest(along - value[:, None]), doubtful)
        outside = known.outside.long()
        active = (known.active.long() << torch.arange(known.active.shape[1], device=value.device)).sum(1)
        whole = torch.stack((new.owner, can, new.whose, axis, outside, active, known.blank.long()))
        whole = torch.cat((whole, new.level.T, known.order.T))
        return Cells(torch.cat((value.T, error[None], floor[None])), whole, torch.cat((new.low.T, peak[None])))

    def _measure(self, new: NewCuts) -> Tensor:
        """Return the volume of cells in x, or how large a surface through one may be taken for."""
        sides = (self.level.box.b - self.level.box.a).abs()
        sides = (sides if sides.shape[0] == 1 else sides[new.whose]) * new.side
        if not self.surface:
            return sides.prod(1)
        return sides.prod(1) / sides.amin(1)

    def _axis(self, new: NewCuts, error: Tensor, doubtful: Tensor) -> Tensor:
        """Return the axis to halve: the one along which the rule does worst; of doubtful cells the longest."""
        longest = -new.level.to(error.dtype)
        best = torch.where(doubtful[:, None] | ~error.isfinite(), longest, error)
        best = torch.where(best == best.amax(1, keepdim=True), longest, -torch.inf)
        return best.argmax(1)

    def propose(self, cells: Cells, marked: Tensor) -> Halved:
        """Halve the marked cells."""
        return Halved(marked.long(), self.rows)

    def split(self, cells: Cells, moves: Halved, counts: list[int]) -> Sequence[NewCuts]:
        """Return the halves of the cells that are split."""
        d = self.level.box.d
        parent = locate(moves.splits, counts[0]).repeat_interleave(2)
        whole, real = cells.whole[:, parent], cells.real[:, parent]
        axis, level, low = whole[3][:, None], whole[7 : 7 + d].T.contiguous(), real[:d].T.contiguous()
        level.scatter_add_(1, axis, torch.ones_like(axis))
        upper = torch.arange(parent.shape[0], device=parent.device) % 2
        shift = torch.ldexp(upper.to(low.dtype), -level.gather(1, axis)[:, 0])
        low.scatter_add_(1, axis, shift[:, None])
        return [NewCuts(whole[0], whole[2], level, low, real[d], self.rows)]

    def record(self, cells: Cells, batch_shape: tuple[int, ...], rule: str, functions: int) -> CutPlan:
        """Return the settled cells as a plan."""
        d = self.level.box.d
        whole, order = cells.whole, cells.whole[0].argsort(stable=True)
        whole, real, sums = whole[:, order], cells.real[:, order], cells.sums[:, order]
        bits = torch.arange(functions, device=whole.device)
        return CutPlan(
            batch_shape=batch_shape, rule=rule, surface=self.surface, owner=whole[0], error=sums[-2],
            level=whole[7 : 7 + d].T.contiguous(), low=real[:d].T.contiguous(),
            order=whole[7 + d :].T.contiguous(), outside=whole[4] > 0, active=(whole[5][:, None] >> bits) % 2 > 0,
        )  # fmt: skip


def first_cells(d: int, like: Tensor) -> Tensor:
    """Return the cells that a search starts with, lower corners and sides, ``(n, 2, d)``."""
    each = 2 ** START.get(d, 1)
    line = torch.arange(each, dtype=torch.float64, device=like.device) / each
    low = torch.stack(torch.meshgrid(*[line] * d, indexing="ij"), dim=-1).reshape(-1, d)
    return torch.stack((low, torch.full_like(low, 1.0 / each)), dim=1)


def element_of(
    level: Level, nodes: Nodes, owner: Tensor, side: Tensor, order: Tensor, surface: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return x ``(1, n, d)`` at nodes, and the element of volume there (of a surface of area), ``(n,)``."""
    x, volume = level.box.take(owner).place(nodes.u[None])
    if not surface:
        return x, volume[0].expand(owner.shape[0])
    raise NotImplementedError


def _largest(values: Tensor) -> Tensor:
    """Return the largest component, of real ones (an upper bound for complex values: at most 1.4 times less)."""
    return values.abs().amax(-1) if values.shape[-1] else values.new_zeros(values.shape[:-1])


def _unused(tolerance: Tolerance) -> None:
    """Nothing."""
