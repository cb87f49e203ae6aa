"""The search over what functions cut out of boxes, and the gradient of what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quadgrad._core._torch import forward_mode_open, in_transform
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.plans.cut import CutPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align, total
from quadgrad._core.regions.bodies import CutBodies
from quadgrad._core.regions.lines import Level
from quadgrad._core.regions.mesh import CutMesh, cut_cells
from quadgrad._core.regions.recursion import Cut, Skeleton, rebuild, trace
from quadgrad._core.regions.surface import element
from quadgrad._core.rehearsal import decided
from quadgrad._core.replay import REPLAY_BLOCK
from quadgrad._core.search.rounds import search_rounds
from quadgrad._core.search.task import Found
from quadgrad._core.search.tensors import TurnsComplexError
from quadgrad._core.status import Status

__all__ = ["CutPrimal", "search_cut"]


def level_of(problem: Problem) -> Level:
    """Return the functions that cut the boxes of a problem."""
    assert problem.jumps is not None
    return Level(problem.jumps, problem.limits)


def search_cut(problem: Problem, lipschitz: Tensor | None, first: CutPlan | None) -> Found:
    """Search a problem that is outside of all transforms, from a coarse grid or the cells of a plan."""
    mesh = CutMesh(level_of(problem), problem.batch, problem.rule, lipschitz, problem.block)

    def record(cells: Cells, value: Tensor, error: Tensor, status: Tensor, nfev: Tensor) -> Found:
        assert problem.jumps is not None and problem.jumps.event is not None
        plan = mesh.record(cells, problem.batch_shape, problem.jumps.event[0])
        return Found(plan, value, error, status, mesh.spent)

    try:
        return search_rounds(CutBodies(problem, mesh, record), first)
    except TurnsComplexError:
        integrand = replace(problem.integrand, output_dtype=problem.integrand.sum_dtype.to_complex())
        return search_cut(replace(problem, integrand=integrand), lipschitz, first)


@dataclass(slots=True)
class CutPrimal:
    """A problem after its search: all that a gradient mode may need.

    Attributes
    ----------
    problem : Problem
        Corners and arguments may require grad.
    found : Found
        What search found, and its plan.
    stuck : bool
        Whether the region has a boundary, or a part of one, that does not move as it should: g is flat there.
    """

    problem: Problem
    found: Found
    stuck: bool = False

    @property
    def plan(self) -> CutPlan:
        """The cells on which search found the integrals."""
        return self.found.plan

    @property
    def value(self) -> Tensor:
        """The integrals without gradient."""
        return self.found.value

    def replay(self, plan: CutPlan | None = None) -> Tensor:
        """Return the integrals ``(batch, *event)`` as a differentiable sum over a plan's cells."""
        problem, plan = self.problem, self.plan if plan is None else plan
        cells, owners = _cells_of(plan), list[Tensor]()
        size = max(1, (problem.chunk_size or REPLAY_BLOCK) // problem.rule.rows)
        thrifty = problem.chunk_size is not None and torch.is_grad_enabled()
        thrifty = thrifty and not (in_transform() or forward_mode_open())
        values: list[Tensor] = []
        for low in range(0, max(1, len(cells)), size):
            part = cells.take(slice(low, low + size))
            if thrifty:
                start = cells.low.new_zeros(())
                value = checkpoint(
                    lambda _, part: self._sums(part), start, part, use_reentrant=False, preserve_rng_state=False
                )
            else:
                value = self._sums(part)
            values.append(value)
            owners.append(part.owner)
        return total(torch.cat(values), torch.cat(owners), plan.batch)

    def _trace(self, cells: Cut) -> Skeleton:
        """Return where nodes are placed."""
        rule = self.problem.rule
        with self.problem.outside() as plain:
            return trace(level_of(plain), cells, rule.line, rule.surface)[1]

    def _sums(self, cells: Cut) -> Tensor:
        """Return the integrals over some cells, ``(n, *event)``."""
        return self._by_rules(cells, 1)[:, 0]

    @torch.enable_grad()
    def gradient_errors(self, tensors: Sequence[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
        """Return how far off the gradient of the weighted integrals by tensors is.

        It is compared with those by the next lower rule along each axis. What lattices and lines have not seen of a
        cell that is not steep, or blank, they do not see of its derivative: it is infinite where search has failed.
        """
        problem, cells = self.problem, _cells_of(self.plan)
        d, size = problem.rule.d, max(1, (problem.chunk_size or REPLAY_BLOCK) // problem.rule.rows)
        errors = [torch.zeros_like(t.detach().abs()) for t in tensors]
        lost = bool((self.found.status != int(Status.CONVERGED)).any())
        for low in range(0, len(cells), size):
            part = cells.take(slice(low, low + size))
            sums = self._by_rules(part, 1 + 2 * d)
            sums = sums * weight[part.owner][:, None].conj()
            for axis in range(d):
                off = (sums[:, 0] - sums[:, 1 + axis]).real.sum()
                if not off.requires_grad:
                    continue
                gradients = torch.autograd.grad(off, tensors, retain_graph=True, materialize_grads=True)
                for error, gradient in zip(errors, gradients, strict=True):
                    error += gradient.abs()
        return tuple(torch.full_like(e, torch.inf) if lost else e for e in errors)

    def _by_rules(self, cells: Cut, columns: int) -> Tensor:
        """Return the integrals over some cells by each of the rules, ``(n, columns, *event)``."""
        problem, surface = self.problem, self.problem.rule.surface
        rule = problem.rule.line
        skeleton = decided(lambda: self._trace(cells))
        level = level_of(problem)
        nodes, stuck = rebuild(level, skeleton, rule, columns)
        self.stuck = self.stuck or bool(stuck.any())
        x, factor = element(level, nodes, cells, surface)
        y = problem.integrand(x, cells.owner[nodes.cell])[0]
        weight = nodes.weight * factor[:, None]
        return total(y[:, None] * align(weight, y[:, None]), nodes.cell, len(cells))


def _cells_of(plan: CutPlan) -> Cut:
    """Return the cells of a plan that are not outside of the region."""
    low, side = cut_cells(plan)
    cells = Cut(plan.owner, low, side, plan.order.T, plan.active)
    keep = ~plan.outside & plan.error.isfinite()
    if plan.surface:
        keep &= plan.active.any(1)
    return cells.take(keep.nonzero().squeeze(1))


def counts_of(g: Integrand, point: Tensor, functions: tuple[Any, ...]) -> list[int]:
    """Return how many functions each of several is, called at a point ``(1, d)``."""
    return [replace(g, function=one, event=None).probe(point)[1].shape[-1] for one in functions]
