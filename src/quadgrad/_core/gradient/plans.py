"""Plans made from other plans' cells."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from quadgrad._core.lanes import export
from quadgrad._core.mesh.cells import GEOMETRIC, LINEAR
from quadgrad._core.plans.interval import Ends, Plan
from quadgrad._core.rules import get_rule
from quadgrad._core.search.start import First

__all__ = ["CellList", "cells_of", "with_cells"]

NO_COLUMN = -2
"""The column of cells with evenly spread nodes; see :attr:`.Ends.column` for the others."""


@dataclass(frozen=True)
class CellList:
    """A plan's cells, one entry for each cell, as :class:`quadgrad._core.plans.interval.Plan` has them."""

    row: Tensor
    start: Tensor
    stop: Tensor
    error: Tensor
    column: Tensor

    def take(self, index: Tensor) -> CellList:
        """Return the cells at ``index``, or where a mask is true."""
        return CellList(*(getattr(self, f.name)[index] for f in fields(self)))

    def first(self) -> First:
        """Return the cells for a search to start from; integrals without a cell are not searched."""
        kind = torch.where(self.column == NO_COLUMN, LINEAR, GEOMETRIC).to(torch.int8)
        return First(self.row, self.start, self.stop, kind)

    def join(self, other: CellList) -> CellList:
        """Return the cells of both."""
        return CellList(*(torch.cat((getattr(self, f.name), getattr(other, f.name))) for f in fields(self)))


def cells_of(plan: Plan) -> CellList:
    """Return all cells of a plan."""
    column = torch.full_like(plan.row, NO_COLUMN, dtype=torch.int8)
    if plan.ends is not None:
        column = column.index_copy(0, plan.ends.cell, plan.ends.column)
    return CellList(plan.row, plan.start, plan.stop, plan.error, column)


def with_cells(plan: Plan, cells: CellList) -> Plan:
    """Return the plan with other cells, which are sorted by row; those of one row stay in their order."""
    cells = cells.take(cells.row.argsort(stable=True))
    close = cells.column != NO_COLUMN
    ends = None
    if bool(close.any()):
        shares = export(get_rule(plan.rule).tensors(torch.float64, plan.row.device).shares)
        cell, others = (mask.nonzero().squeeze(1) for mask in (close, ~close))
        ends = Ends(cell, others, cells.column[close], shares)
    return replace(plan, row=cells.row, start=cells.start, stop=cells.stop, error=cells.error, ends=ends)
