"""What search found: a frozen record of cells, without gradient and without limits."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import Pieces, end_frame, frame
from quadgrad._core.mesh.limits import Limits, stack_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Ends", "Plan"]


@dataclass(frozen=True)
class Ends:
    """Which cells of a plan have nodes spread over the logarithm of the distance from an end of their piece.

    Attributes
    ----------
    cell : Tensor of int64, shape (k,)
        Their places in the plan.
    others : Tensor of int64, shape (n - k,)
        The places of the other cells.
    column : Tensor of int8, shape (k,)
        -1 where the cell is away from the end; otherwise the integral is extrapolated to the end, and this is the
        column of the epsilon algorithm that gives it (0 is the plain sum).
    shares : Tensor, shape (s, m)
        What gives the terms of the extrapolated series: the integrals over equal parts of the unit interval.
    """

    cell: Tensor
    others: Tensor
    column: Tensor
    shares: Tensor

    def part(self, first: int, last: int) -> Ends | None:
        """Return the same of the cells from ``first`` to before ``last``, None if there are none of this kind."""
        close, others = (
            slice(*torch.searchsorted(t, t.new_tensor([first, last])).tolist()) for t in (self.cell, self.others)
        )
        if close.start == close.stop:
            return None
        return Ends(self.cell[close] - first, self.others[others] - first, self.column[close], self.shares)

    @staticmethod
    def at(close: Tensor, column: Tensor, shares: Tensor) -> Ends | None:
        """Return those of the cells where ``close``, None if there are none; ``column`` is looked up there."""
        cell = close.nonzero().squeeze(1)
        if cell.shape[0] == 0:
            return None
        return Ends(cell, (~close).nonzero().squeeze(1), column[cell], shares)

    def to(self, device: torch.device | str) -> Ends:
        """Return the same on another device."""
        return Ends(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Plan:
    """The cells on which a rule integrates every element of a batch.

    A plan can be looked at, saved (``torch.save``), moved to a device, passed to a later call
    (``quad(..., plan=plan)``, which re-checks it) or trusted (:func:`quadgrad.replay`). It holds no
    limits: nodes follow from the limits given to it.

    Attributes
    ----------
    rule : str
        The rule's name.
    batch_shape : tuple of int
        Shape of the batch the plan was made for.
    pieces : int
        Pieces of each integral: one more than the number of breakpoints.
    infinite : bool
        Whether any limit was infinite.
    row : Tensor of int64, shape (n,)
        ``owner * pieces + piece``, ascending.
    start, stop : Tensor, shape (n,)
        Ends of each cell as fractions of its piece: measured from the piece's lower end where
        ``start >= 0``, from its upper end where ``start < 0``.
    error : Tensor, shape (n,)
        Estimated error on each cell when it was searched.
    tau, weight : Tensor, shape (m,)
        The rule on the unit interval.
    ends : Ends, optional
        The cells that close in on an end of their piece, if there are any.
    inspected : bool
        Whether an integrand was looked at for jumps between these cells' ends; not done again while they last.
    """

    rule: str
    batch_shape: tuple[int, ...]
    pieces: int
    infinite: bool
    row: Tensor
    start: Tensor
    stop: Tensor
    error: Tensor
    tau: Tensor
    weight: Tensor
    ends: Ends | None = None
    inspected: bool = False

    @property
    def owner(self) -> Tensor:
        """The integral (flattened over the batch) of each cell, shape ``(n,)``."""
        return self.row if self.pieces == 1 else self.row // self.pieces

    @property
    def piece(self) -> Tensor:
        """The piece within its integral of each cell, shape ``(n,)``."""
        return self.row % self.pieces

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

    @property
    def batch(self) -> int:
        """The number of integrals."""
        return math.prod(self.batch_shape)

    def __len__(self) -> int:
        return self.row.shape[0]

    def part(self, cells: slice, low: int, high: int) -> Plan:
        """Return the plan of the integrals from ``low`` to before ``high``, which have these cells."""
        columns = {name: getattr(self, name)[cells] for name in ("start", "stop", "error")}
        ends = None if self.ends is None else self.ends.part(cells.start, cells.stop)
        row = self.row[cells] - low * self.pieces
        return replace(self, batch_shape=(high - low,), row=row, ends=ends, **columns)

    def nodes(self, a: Any, b: Any, points: Any = None) -> Tensor:
        """Return the abscissae for the given limits, shape ``(m, n)``: one column for each cell."""
        return self.place(self.flatten_limits(a, b, points).pieces())[0]

    def weights(self, a: Any, b: Any, points: Any = None) -> Tensor:
        """Return the weights for the given limits, shape ``(m, n)``; positive also where ``a > b``.

        Where a cell touches a singular end they belong to the part that its nodes cover; what
        :func:`quadgrad.replay` extrapolates beyond is no weighted sum.
        """
        return self.place(self.flatten_limits(a, b, points).pieces())[1]

    def place(self, pieces: Pieces) -> tuple[Tensor, Tensor]:
        """Return abscissae and weights on the given pieces, see :meth:`nodes` and :meth:`weights`."""
        dtype, everywhere = pieces.lower.dtype, slice(None)
        tau, weight = self.tau.to(dtype), self.weight.to(dtype)[:, None]
        layout = frame(pieces, self.row, self.start.to(dtype), self.stop.to(dtype))
        x, slope = layout.nodes(tau, everywhere)
        weights = weight * layout.scale if slope is None else weight * layout.scale * slope
        if self.ends is not None:
            end = end_frame(pieces, *self.end_cells(dtype))
            end_x, end_slope = end.nodes(tau, everywhere)
            x = x.index_copy(1, self.ends.cell, end_x)
            weights = weights.index_copy(1, self.ends.cell, weight * end.scale * end_slope)
        return x, weights

    def end_cells(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, start and stop of the cells that close in on an end; ``ends`` must not be None."""
        assert self.ends is not None
        cell = self.ends.cell
        return self.row[cell], self.start[cell].to(dtype), self.stop[cell].to(dtype)

    def flatten_limits(self, a: Any, b: Any, points: Any = None) -> Limits:
        """Broadcast limits and breakpoints over the plan's batch."""
        dtype = self.start.dtype if not isinstance(a, Tensor) and not isinstance(b, Tensor) else None
        ends = [torch.as_tensor(end, dtype=dtype, device=self.row.device) for end in (a, b)]
        dtype = torch.promote_types(*(end.dtype for end in ends))
        flat = [end.to(dtype).expand(self.batch_shape).reshape(-1) for end in ends]
        marks = None
        if points is not None:
            marks = stack_points(points).to(self.row.device, dtype)
            marks = marks.expand(*self.batch_shape, self.pieces - 1).reshape(self.batch, -1)
        return Limits(flat[0], flat[1], marks, self.infinite)

    def merge(self, mask: Tensor) -> Plan:
        """Return the plan with siblings merged: each pair of halves of one cell, both of which are in ``mask``.

        Cells that close in on an end of their piece have no siblings. The cells of the returned plan stand in
        ascending order; a merged one has its halves' errors added.
        """
        if len(self) < 2:
            return self
        close = torch.zeros_like(mask)
        column = torch.zeros(mask.shape, dtype=torch.int8, device=mask.device)
        if self.ends is not None:
            close[self.ends.cell], column[self.ends.cell] = True, self.ends.column
        columns = (self.row, self.start, self.stop, self.error, mask & ~close, close, column)
        order = self.order
        row, start, stop, error, mask, close, column = (t[order] for t in columns)
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
        kept = {"row": row[~second], "start": start[~second], "stop": stop[~second], "error": error[~second]}
        ends = None if self.ends is None else Ends.at(close[~second], column[~second], self.ends.shares)
        return replace(self, **kept, ends=ends, inspected=False)

    def to(self, device: torch.device | str) -> Plan:
        """Return the plan on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor | Ends)})

    def plot(self, f: Any = None, a: Any = 0.0, b: Any = 1.0, args: Any = (), **options: Any) -> Axes:
        """Draw the cells of one integral, and the integrand if given; see :func:`quadgrad._plots.plot_plan`."""
        from quadgrad._plots import plot_plan  # the one import that points down: matplotlib stays at the edge

        return plot_plan(self, f, a, b, args, **options)


torch.serialization.add_safe_globals([Plan, Ends])
