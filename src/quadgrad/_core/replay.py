"""Plan, integrand and mesh to value, in ordinary torch: whatever differentiates torch differentiates this.

It knows no search: who wants to tell what the cells are worth watches the values as an :class:`Observer`. Nor does
it know a geometry: a mesh places the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quadgrad._core._torch import (
    StopRecomputation,
    carries_derivative,
    forward_mode_open,
    in_backward,
    in_transform,
    outside_transforms,
)
from quadgrad._core.blocks import on_device
from quadgrad._core.estimates.series import add_series
from quadgrad._core.estimates.sums import extrapolated_sums, weighted_sums
from quadgrad._core.integrand import Integrand
from quadgrad._core.lanes import has_lanes, plain
from quadgrad._core.nesting import InnerRecord
from quadgrad._core.plans.cells import CellPlan, Mesh
from quadgrad._core.recompute import Rows, WeightedSum, recompute
from quadgrad._core.reduce import total

__all__ = ["REPLAY_BLOCK", "Observer", "replay_plan"]

REPLAY_BLOCK = 2**16
"""Nodes evaluated at a time where the caller sets no ``chunk_size``: the arrays stay in the processor's cache."""


class Observer(Protocol):
    """Is shown the values that a replay computes, a block of cells at a time."""

    def see(self, index: Tensor, y: Tensor, factor: Tensor) -> None:
        """See f at the nodes of the cells at ``index``, ``(m, n, *event)``, and its factor ``(m or 1, n)``."""
        ...

    def restart(self) -> None:
        """Forget what was seen: all of it comes again."""
        ...


def replay_plan(
    integrand: Integrand,
    plan: CellPlan,
    mesh: Mesh,
    block: int,
    thrifty: bool,
    observer: Observer | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """Return the weighted sum over the plan's cells, shape ``(batch, *event)``.

    Parameters
    ----------
    integrand : Integrand
    plan : CellPlan
    mesh : Mesh
        May carry gradients.
    block : int
        Nodes evaluated at a time.
    thrifty : bool
        Recompute each block in the backward pass instead of keeping its intermediate values. Ignored
        inside transforms and forward mode, where torch refuses the hooks this needs.
    observer : Observer, optional
        Is shown the values, not again in a backward pass.
    rows : Rows, optional
        Collect the sums of a thrifty replay, where it can be one function: part by part, in ascending order.
    """
    block = block if thrifty else on_device(block, plan.row.device)
    size = max(1, block // plan.tau.shape[0])
    kept = not thrifty or not torch.is_grad_enabled() or in_transform() or forward_mode_open()
    if kept or len(plan) == 0 or plan.term is not None:
        return _sum_up(integrand, plan, mesh, size, observer)

    def sums(work: WeightedSum, first: int, observer: Observer | None = observer) -> Tensor:
        with InnerRecord() if in_backward() else nullcontext():  # integrals inside f have told what they are
            return _sum_up(work.integrand, work.plan, work.mesh, size, observer, first)

    work = WeightedSum(integrand, plan, mesh)
    value = recompute(work, size, sums, lambda work, first: sums(work, first, None), rows)
    if value is not None:
        return value
    if observer is not None:
        observer.restart()
    rows = Rows(plan.batch)
    for cells, low, high in work.cuts(size):
        part = work.part(cells, low, high)
        rows.add(low, _checkpointed(sums, part, cells.start))
    value = rows.join()
    assert value is not None
    return value


def _checkpointed(sums: Callable[[WeightedSum, int], Tensor], work: WeightedSum, first: int) -> Tensor:
    """Return sums that the backward pass computes again.

    Where the function raises, torch's checkpoint leaves its hooks in place for as long as the traceback lives, and
    gradients of others would go through them: so it is told of an error when it has ended.
    """
    raised: list[Exception] = []
    ended = False

    def call(work: WeightedSum, first: int) -> Tensor | None:
        try:
            return sums(work, first)
        except Exception as error:
            if ended or isinstance(error, StopRecomputation):  # by which torch ends what it has seen enough of
                raise
            raised.append(error)
            return None

    value = checkpoint(call, work, first, use_reentrant=False, preserve_rng_state=False)
    ended = True
    if raised:
        raise raised[0]
    assert isinstance(value, Tensor)
    return value


def _sum_up(
    integrand: Integrand, plan: CellPlan, mesh: Mesh, size: int, observer: Observer | None, first: int = 0
) -> Tensor:
    """Return the sums over a plan that begins with the cell ``first`` of the one that is observed."""
    values: list[Tensor] = []
    owners: list[Tensor] = []
    rows: list[Tensor] = []
    terms: list[Tensor] = []
    for places, cells in plan.groups():
        if observer is not None and places is None:
            places = torch.arange(len(plan), device=plan.row.device)
        index = None if places is None else places + first
        values.append(_integrate(integrand, cells, mesh, size, observer, index))
        owners.append(cells.owner)
        if plan.term is not None:
            rows.append(cells.row)
            terms.append(cells.terms)
    if terms:
        return add_series(torch.cat(values), torch.cat(owners), torch.cat(rows), torch.cat(terms), plan.batch)
    if len(values) == 1:
        return total(values[0], owners[0], plan.batch)
    return total(torch.cat(values), torch.cat(owners), plan.batch)


def _integrate(
    integrand: Integrand, cells: CellPlan, mesh: Mesh, size: int, observer: Observer | None, places: Tensor | None
) -> Tensor:
    """Return the integral over each cell, ``(n, *event)``, ``size`` at a time; ``places`` are for the observer."""
    place: Callable[[], AbstractContextManager[Any]] = nullcontext
    fixed = in_transform() and not torch.compiler.is_compiling()
    if fixed and not any(has_lanes(t) or carries_derivative(t) for t in mesh.tensors()):
        # What carries no derivative is placed outside: under two levels an operation takes ten times as long.
        place, mesh = outside_transforms, mesh.with_tensors([plain(t) for t in mesh.tensors()])
    with place():
        layout, owner, functionals = mesh.lay_out(cells), cells.owner, cells.functionals
    blocks: list[Tensor] = []
    dtype = None
    for low in range(0, max(1, len(cells)), size):
        part = slice(low, min(len(cells), low + size))
        with place():
            x, factor = layout.nodes(cells.tau, part)
        y = integrand(x, owner[part])
        if observer is not None and places is not None:
            observer.see(places[part], y, factor)
        blocks.append(weighted_sums(functionals, y, factor))
        dtype = y.dtype
    sums = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    value, index, column = sums[0], cells.extrapolated, cells.column
    if index is not None and column is not None:
        ends = sums.index_select(1, index)
        value = value.index_copy(0, index, extrapolated_sums(ends[0], ends[1:], column))
    return value.to(dtype)
