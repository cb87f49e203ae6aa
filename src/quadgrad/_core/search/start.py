"""The cells a search starts from: whole pieces, or those of an earlier plan."""

from __future__ import annotations

import torch

from quadgrad._core.errors import PlanError
from quadgrad._core.mesh.cells import First
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.rules import Rule

__all__ = ["First", "first_cells"]


def first_cells(
    pieces: Pieces, batch_shape: tuple[int, ...], batch: int, rule: Rule, plan: IntervalPlan | None
) -> First:
    """Return the whole pieces, or an earlier plan's cells; empty pieces get none."""
    occupied = pieces.upper > pieces.lower
    if plan is None and occupied.shape[0] == 1 and bool(occupied):  # shared limits that differ
        row = torch.arange(batch, device=occupied.device)
        start = torch.zeros(batch, dtype=torch.float64, device=occupied.device)
        return First(row, start, torch.ones_like(start))
    occupied = occupied.expand(batch * pieces.count)
    if plan is None:
        row = occupied.nonzero().squeeze(1)
        start = torch.zeros(row.shape, dtype=torch.float64, device=row.device)
        return First(row, start, torch.ones_like(start))
    _check_plan(plan, pieces, batch_shape, rule)
    row, start, stop, kind = plan.row, plan.start, plan.stop, plan.kind
    if plan.batch_shape != batch_shape:
        shift = torch.arange(batch, device=row.device) * pieces.count
        row = (row[None, :] + shift[:, None]).reshape(-1)
        start, stop, kind = (t.repeat(batch) for t in (start, stop, kind))
    keep = occupied.index_select(0, row)
    row, start, stop, kind = (t[keep] for t in (row, start, stop, kind))
    missing = occupied.clone()
    missing[row] = False
    extra = missing.nonzero().squeeze(1)
    row, order = torch.cat([row, extra]).sort(stable=True)
    whole = torch.zeros(extra.shape, dtype=start.dtype, device=row.device)
    start, stop, kind = (
        torch.cat(pair)[order] for pair in ((start, whole), (stop, whole + 1.0), (kind, whole.to(torch.int8)))
    )
    return First(row, start, stop, None if plan.even else kind)


def _check_plan(plan: IntervalPlan, pieces: Pieces, batch_shape: tuple[int, ...], rule: Rule) -> None:
    if plan.rule != rule.name:
        raise PlanError(f"the plan was made with rule {plan.rule!r}, the call asks for {rule.name!r}")
    if plan.pieces != pieces.count:
        raise PlanError(
            f"the plan has {plan.pieces - 1} breakpoints for each integral, the call has {pieces.count - 1}"
        )
    if plan.infinite != pieces.infinite:
        kinds = {True: "infinite", False: "finite"}
        raise PlanError(
            f"the plan was made for {kinds[plan.infinite]} limits, the call has {kinds[pieces.infinite]} ones"
        )
    if plan.batch_shape not in ((), batch_shape):
        raise PlanError(f"the plan's batch shape {plan.batch_shape} is neither () nor the call's {batch_shape}")
