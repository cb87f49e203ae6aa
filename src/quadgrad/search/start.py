"""The cells a search starts from: whole pieces, or those of an earlier plan."""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad.lanes import somewhere
from quadgrad.limits import Limits
from quadgrad.maps import Pieces
from quadgrad.plan import Plan
from quadgrad.rules import Rule

__all__ = ["first_cells"]


def first_cells(
    limits: Limits, pieces: Pieces, batch_shape: tuple[int, ...], batch: int, rule: Rule, plan: Plan | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, start and stop of the first cells, sorted by row; empty pieces get none."""
    occupied = somewhere(pieces.upper > pieces.lower)
    if plan is None and occupied.shape[0] == 1 and bool(occupied):  # shared limits that differ
        row = torch.arange(batch, device=occupied.device)
        start = torch.zeros(batch, dtype=torch.float64, device=occupied.device)
        return row, start, torch.ones_like(start)
    occupied = occupied.expand(batch * pieces.count)
    if plan is None:
        row = occupied.nonzero().squeeze(1)
        start = torch.zeros(row.shape, dtype=torch.float64, device=row.device)
        return row, start, torch.ones_like(start)
    _check_plan(plan, pieces, batch_shape, rule)
    row, start, stop = plan.row, plan.start, plan.stop
    if plan.batch_shape != batch_shape:
        shift = torch.arange(batch, device=row.device) * pieces.count
        row = (row[None, :] + shift[:, None]).reshape(-1)
        start, stop = start.repeat(batch), stop.repeat(batch)
    keep = occupied.index_select(0, row)
    row, start, stop = row[keep], start[keep], stop[keep]
    missing = occupied.clone()
    missing[row] = False
    extra = missing.nonzero().squeeze(1)
    row, order = torch.cat([row, extra]).sort(stable=True)
    whole = torch.zeros(extra.shape, dtype=start.dtype, device=row.device)
    return row, torch.cat([start, whole])[order], torch.cat([stop, whole + 1.0])[order]


def _check_plan(plan: Plan, pieces: Pieces, batch_shape: tuple[int, ...], rule: Rule) -> None:
    if plan.rule != rule.name:
        raise ValueError(f"the plan was made with rule {plan.rule!r}, the call asks for {rule.name!r}")
    if plan.pieces != pieces.count:
        raise ValueError(
            f"the plan has {plan.pieces - 1} breakpoints for each integral, the call has {pieces.count - 1}"
        )
    if plan.infinite != pieces.infinite:
        kinds = {True: "infinite", False: "finite"}
        raise ValueError(
            f"the plan was made for {kinds[plan.infinite]} limits, the call has {kinds[pieces.infinite]} ones"
        )
    if plan.batch_shape not in ((), batch_shape):
        raise ValueError(f"the plan's batch shape {plan.batch_shape} is neither () nor the call's {batch_shape}")
