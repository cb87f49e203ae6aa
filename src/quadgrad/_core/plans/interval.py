"""What search found on intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from quadgrad._core.lanes import plain
from quadgrad._core.mesh.cells import bisect
from quadgrad._core.mesh.interval import LOGARITHMIC, Pieces, lay_out
from quadgrad._core.mesh.limits import Limits, stack_points
from quadgrad._core.plans.cells import CellPlan
from quadgrad._core.reduce import total
from quadgrad._core.rules import Rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["IntervalPlan"]

MERGED = 5e-4
"""Siblings are tried as one cell if the error of each is below this share of an even part of the allowed error."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class IntervalPlan(CellPlan, geometry="interval"):
    """The cells on which a rule integrates every element of a batch over its interval; see :class:`quadgrad.Plan`.

    Attributes
    ----------
    infinite : bool
        Whether any limit was infinite.
    start, stop : Tensor, shape (n,)
        Ends of each cell as fractions of its piece: measured from the piece's lower end where
        ``start >= 0``, from its upper end where ``start < 0``. :meth:`cells` gives them in x.
    places : Tensor, shape (batch, k), optional
        Where search itself found f to jump, to bend or to be singular: in x, NaN where an integral has fewer. They
        part pieces as breakpoints do, and stay where they are when limits and breakpoints move.
    """

    infinite: bool
    start: Tensor
    stop: Tensor
    places: Tensor | None = None

    always: ClassVar[tuple[str, ...]] = ("row", "start", "stop", "error", "kind")
    of_integrals: ClassVar[tuple[str, ...]] = ("places",)
    if TYPE_CHECKING:
        plot: ClassVar[Callable[..., Axes]]  # quadgrad._plots puts it here, so that nothing below calls it

    @staticmethod
    def of(
        rule: Rule, pieces: Pieces, batch_shape: tuple[int, ...], row: Tensor, start: Tensor, stop: Tensor,
        error: Tensor | None = None, kind: Tensor | None = None,
    ) -> IntervalPlan:  # fmt: skip
        """Return a plan of cells that are sorted by row, by default with evenly spread nodes and no error yet."""
        on, even = rule.tensors(torch.float64, row.device), kind is None
        kind = row.new_zeros(row.shape, dtype=torch.int8) if kind is None else kind
        error = torch.zeros_like(start) if error is None else error
        if torch.is_inference_mode_enabled():  # it may outlive that
            row, start, stop, error, kind = map(plain, (row, start, stop, error, kind))
        plan = object.__new__(IntervalPlan)  # a frozen class's own way costs a single integral 3 us
        vars(plan).update(
            rule=rule.name, batch_shape=batch_shape, pieces=pieces.count, infinite=pieces.infinite, inspected=False,
            stalled=None, row=row, start=start, stop=stop, error=error, kind=kind, tau=on.nodes, weight=on.weights,
            shares=on.shares, places=None, term=None, even=even, crowded=0, extrapolated=None,
        )  # fmt: skip
        if not even:
            plan.__post_init__()
        return plan

    def with_cells(self, row: Tensor, start: Tensor, stop: Tensor, kind: Tensor | None = None) -> IntervalPlan:
        """Return the plan with other cells, by default with evenly spread nodes, of which no error is known."""
        kind = torch.zeros_like(row, dtype=torch.int8) if kind is None else kind
        error = torch.zeros_like(start)
        return replace(self, row=row, start=start, stop=stop, kind=kind, error=error, term=None)

    @property
    def found(self) -> int:
        """The number of breakpoints of each integral that search has found."""
        return 0 if self.places is None else self.places.shape[1]

    def with_places(self, places: Tensor | None) -> IntervalPlan:
        """Return the plan with other places that search has found."""
        return self if places is None else replace(self, places=places)

    @property
    def whole(self) -> Tensor:
        """Which cells are whole pieces, bool of shape ``(n,)``."""
        return self.stop - self.start == 1.0

    @property
    def level(self) -> Tensor:
        """How often a piece was halved to give each cell, shape ``(n,)``."""
        return torch.log2(self.stop - self.start).neg().round().to(torch.int64)

    @property
    def order(self) -> Tensor:
        """Indices that put the cells in ascending order of their place, shape ``(n,)``."""
        order = self.start.argsort(stable=True)
        half = 2 * self.row + (self.start < 0)
        return order[half[order].argsort(stable=True)]

    def cells(self, a: Any, b: Any, points: Any = None) -> Tensor:
        """Return the ends of each cell in x for the given limits, ascending, shape ``(n, 2)``.

        Parameters
        ----------
        a, b : float or Tensor
            Limits, broadcast over the plan's batch.
        points : Tensor, optional
            As many breakpoints as the plan was made with, along the last dimension.
        """
        mesh = self.mesh(a, b, points)
        return lay_out(mesh, self.row, self.start, self.stop, None).nodes(self.start.new_tensor([0.0, 1.0]))[0].T

    def mesh(self, a: Any, b: Any, points: Any = None) -> Pieces:
        """Return the pieces of all integrals."""
        return self.flatten_limits(a, b, points).pieces()

    def flatten_limits(self, a: Any, b: Any, points: Any = None) -> Limits:
        """Broadcast limits and breakpoints over the plan's batch."""
        dtype, device = self.start.dtype, self.row.device
        ends = [torch.as_tensor(end, device=device).to(dtype) for end in (a, b)]
        flat = [end.expand(self.batch_shape).reshape(-1) for end in ends]
        marks = None
        if points is not None:
            marks = stack_points(points).to(device, dtype)
            marks = marks.expand(*self.batch_shape, self.pieces - 1 - self.found).reshape(self.batch, -1)
        return Limits(flat[0], flat[1], marks, self.infinite).with_found(self.places, self.batch)

    def coarser(self, allowed: Tensor) -> IntervalPlan:
        """Return the plan with siblings merged whose errors are far below their share of what is allowed.

        What is merged may be merged again: cells that have closed in on a peak offer but one pair of siblings.
        """
        count = total(torch.ones_like(self.error), self.owner, self.batch)
        limit, plan = MERGED * allowed / count, self
        while True:
            merged = plan.merge(plan.error <= limit[plan.owner])
            if len(merged) == len(plan):
                return plan
            plan = merged

    def common(self) -> IntervalPlan | None:
        """Return the cells of one integral that are halved where at least half of the integrals have halved them.

        Those beside singular ends count as whole: where others are singular, search finds out. Places that search
        has found are each integral's own: pieces between them have nothing in common.
        """
        if self.places is not None:
            return None
        linear = self.take(self.linear)
        row, start, level, owner = linear.piece, linear.start, linear.level, linear.owner
        halved = level.new_zeros((0, 2))  # piece and number of a cell, all of one width
        row_, start_, stop_ = [], [], []
        depth, whole = 0, torch.arange(self.pieces, device=row.device)
        cells = torch.stack((whole, torch.zeros_like(whole)), dim=1)
        while len(cells):
            width = 2.0**-depth
            inside = level > depth
            place = torch.stack((row, (start / width).floor().to(torch.int64) if depth else 0 * row, owner), dim=1)
            ancestors, votes = place[inside].unique(dim=0)[:, :2].unique(dim=0, return_counts=True)
            halved = ancestors[2 * votes >= self.batch]
            split = (cells[:, None] == halved[None]).all(2).any(1)
            rest = cells[~split]
            row_.append(rest[:, 0])
            start_.append(rest[:, 1] * width)
            stop_.append((rest[:, 1] + 1) * width)
            piece, number = cells[split].unbind(1)
            second = 2 * number + 1 if depth else number - 1  # beyond the middle from the upper end
            cells = torch.stack((torch.cat((piece, piece)), torch.cat((2 * number, second))), dim=1)
            depth += 1
        row, order = torch.cat(row_).sort(stable=True)
        if len(row) == self.pieces:
            return None
        start, stop = (torch.cat(ends)[order].to(self.start.dtype) for ends in (start_, stop_))
        return replace(self, batch_shape=(), inspected=False, stalled=None).with_cells(row, start, stop)

    def merge(self, mask: Tensor) -> IntervalPlan:
        """Return the plan with siblings merged: each pair of halves of one cell, both of which are in ``mask``.

        Cells with logarithmic nodes have no siblings. The cells of the returned plan stand in ascending order; a
        merged one has its halves' errors added.
        """
        if len(self) < 2:
            return self
        order = self.order
        plan, mask = self.take(order), (mask & self.linear)[order]
        row, start, stop, error = plan.row, plan.start, plan.stop, plan.error
        width = stop - start
        whole = (start[:-1] == 0) & (stop[:-1] == 0.5) & (start[1:] == -0.5)
        # A left half begins at an even multiple of its width, from either end of its piece.
        even = torch.remainder(start[:-1] / width[:-1], 2.0) == 0
        halves = whole | (even & (start[1:] == stop[:-1]))
        left = halves & (row[1:] == row[:-1]) & (width[1:] == width[:-1]) & mask[1:] & mask[:-1]
        no = left.new_zeros(1)
        first, second = torch.cat((left, no)), torch.cat((no, left))
        next_stop = torch.where(torch.cat((whole, no)), 1.0, stop.roll(-1))
        stop = torch.where(first, next_stop, stop)
        error = torch.where(first, error + error.roll(-1), error)
        return replace(plan, stop=stop, error=error, inspected=False).take(~second)

    def halved(self) -> IntervalPlan:
        """Return the plan with every cell parted in the middle of its nodes; none may touch a singular end.

        Halves stand next to each other.
        """
        start, stop = bisect(self.start, self.stop)
        row, error, kind = (t.repeat_interleave(2) for t in (self.row, self.error, self.kind))
        term = None if self.term is None else self.term.repeat_interleave(2)
        halves = replace(self, row=row, start=start, stop=stop, error=error, kind=kind, term=term)
        if self.even:
            return halves
        mean = (self.start.abs().sqrt() * self.stop.abs().sqrt()).copysign(self.stop + self.start)
        ends = (torch.stack(pair, dim=1).flatten() for pair in ((self.start, mean), (mean, self.stop)))
        start, stop = (
            torch.where(halves.linear, one, other) for one, other in zip((start, stop), ends, strict=True)
        )
        return replace(halves, start=start, stop=stop)

    def close_in(self, cells: Tensor, octaves: Tensor) -> IntervalPlan:
        """Return the plan with cells at these places, which touch an end, parted so many octaves closer to it."""
        if not len(cells):
            return self
        start, stop = self.start[cells], self.stop[cells]
        middle, at_lower = (start + stop) * torch.exp2(-octaves), start == 0.0
        away = replace(
            self.take(cells), start=torch.where(at_lower, middle, start), stop=torch.where(at_lower, stop, middle),
            kind=torch.full_like(self.kind[cells], LOGARITHMIC),
        )  # fmt: skip
        start, stop = torch.where(at_lower, start, middle), torch.where(at_lower, middle, stop)
        start, stop = self.start.index_copy(0, cells, start), self.stop.index_copy(0, cells, stop)
        return replace(self, start=start, stop=stop).join(away)
