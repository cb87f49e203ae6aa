"""The cells a search starts from: whole pieces, or those of an earlier plan."""

from __future__ import annotations

from dataclasses import replace

import torch

from quadgrad._core.errors import PlanError
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem

__all__ = ["first_cells", "refuse_misfit"]


def first_cells(problem: Problem, plan: IntervalPlan | None) -> IntervalPlan:
    """Return the whole pieces, or an earlier plan's cells; empty pieces get none."""
    pieces, batch = problem.pieces, problem.batch
    occupied = pieces.upper > pieces.lower
    if plan is not None:
        _check_plan(plan, problem)
        if plan.batch_shape == problem.batch_shape and bool(occupied.all()) and _covers(plan):
            return plan
    if plan is None and occupied.shape[0] == 1 and bool(occupied):  # shared limits that differ
        row = torch.arange(batch, device=occupied.device)
    else:
        occupied = occupied.expand(batch * pieces.count)
        row = occupied.nonzero().squeeze(1)
    start = torch.zeros(row.shape, dtype=torch.float64, device=row.device)
    whole = IntervalPlan.of(problem.rule, pieces, problem.batch_shape, row, start, start + 1.0)
    if plan is None:
        return whole
    if plan.batch_shape != problem.batch_shape:
        shift = torch.arange(batch, device=row.device) * pieces.count
        cells = {name: getattr(plan, name).repeat(batch) for name in plan.columns}
        cells["row"] += shift.repeat_interleave(len(plan))
        places = None if plan.places is None else plan.places.expand(batch, -1)
        plan = replace(plan, batch_shape=problem.batch_shape, places=places, stalled=None, **cells)
    plan = plan.take(occupied.index_select(0, plan.row))
    return plan.join(whole.take(~torch.isin(row, plan.row)))


def _covers(plan: IntervalPlan) -> bool:
    """Whether every piece has a cell."""
    pieces = plan.batch * plan.pieces
    return len(plan) > 0 if pieces == 1 else bool(torch.bincount(plan.row, minlength=pieces).all())


def refuse_misfit(plan: IntervalPlan, batch_shape: tuple[int, ...]) -> None:
    """Refuse what is no plan of intervals, or one of another batch."""
    if not isinstance(plan, IntervalPlan):
        raise PlanError(f"a plan of quadgrad.quad is needed, not {type(plan).__name__}")
    if plan.batch_shape not in ((), batch_shape):
        error = PlanError(f"the plan's batch shape {plan.batch_shape} is neither () nor the call's {batch_shape}")
        error.batch_shape = batch_shape
        raise error


def _check_plan(plan: IntervalPlan, problem: Problem) -> None:
    pieces = problem.pieces
    refuse_misfit(plan, problem.batch_shape)
    if plan.rule != problem.rule.name:
        raise PlanError(f"the plan was made with rule {plan.rule!r}, the call asks for {problem.rule.name!r}")
    if plan.pieces != pieces.count:
        raise PlanError(
            f"the plan has {plan.pieces - 1} breakpoints for each integral, the call has {pieces.count - 1}"
        )
    if plan.infinite != pieces.infinite:
        kinds = {True: "infinite", False: "finite"}
        raise PlanError(
            f"the plan was made for {kinds[plan.infinite]} limits, the call has {kinds[pieces.infinite]} ones"
        )
