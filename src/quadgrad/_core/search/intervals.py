"""The search on intervals in tensor operations: which geometry, which estimate, and what is handed over."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from quadgrad._core.estimates.interval import IntervalEstimate
from quadgrad._core.estimates.spikes import Spikes
from quadgrad._core.mesh.bisection import Intervals
from quadgrad._core.mesh.poles import ellipse
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.looks.witnesses import Witnesses
from quadgrad._core.search.piles.watch import watched
from quadgrad._core.search.piles.zoom import zoom
from quadgrad._core.search.stalled import search_cells
from quadgrad._core.search.task import Found
from quadgrad._core.search.tensors import TensorBodies, TurnsComplexError

__all__ = ["interval_parts", "record", "search"]


def interval_parts(
    task: Problem, held: Tensor | None = None, spikes: Spikes | None = None
) -> tuple[Intervals, IntervalEstimate]:
    """Return a task's geometry and estimate, in double precision; ``spikes`` gathers what single nodes see."""
    pieces, rule, rtol = task.pieces, task.rule, task.tolerance.rtol
    tensors = rule.tensors(torch.float64, pieces.lower.device)
    mesh = Intervals(pieces, rule, ellipse(rtol, rule.nodes.size))
    gathered = spikes or Spikes()
    return mesh, IntervalEstimate(tensors, rtol, pieces.rounding, float(rule.nodes[0]), held, gathered)


def search(task: Problem, first: IntervalPlan, witnesses: Witnesses | None = None) -> Found:
    """Search from the given cells; integrals without a cell are zero and converged."""
    try:
        spikes = Spikes(None if witnesses is None else witnesses.note)
        if witnesses is not None:
            task = replace(task, budget=witnesses.most)
        bodies = TensorBodies(task, *interval_parts(task, spikes=spikes), partial(record, task, spikes))
        return watched(task, lambda watcher: search_cells(bodies, task, first, watcher), zoom)
    except TurnsComplexError:
        integrand = replace(task.integrand, output_dtype=task.integrand.sum_dtype.to_complex())
        return search(replace(task, integrand=integrand, opening=None), first, witnesses)


def record(
    problem: Problem, spikes: Spikes, cells: Cells, value: Tensor, error: Tensor, status: Tensor, nfev: Tensor
) -> Found:
    """Return the cells sorted by row; those of one row as they settled."""
    row, order = cells.whole[2].sort(stable=True)
    columns = (cells.real[0], cells.real[1], cells.sums[-2].to(error.dtype), cells.whole[3].to(torch.int8))
    columns = (column.index_select(0, order) for column in columns)
    plan = IntervalPlan.of(problem.rule, problem.pieces, problem.batch_shape, row, *columns)
    return Found(plan, value, error, status, nfev, seen=_seen(problem, cells), spikes=spikes.close())


def _seen(problem: Problem, cells: Cells) -> Tensor | None:
    """Return the sums of the sizes of cells' real components over each piece, where these are several."""
    count, components = problem.pieces.count, cells.sums[:-2]
    if count == 1 and len(components) == 1:
        return None
    return sum_by_owner(components.abs(), cells.whole[2], problem.batch * count).T
