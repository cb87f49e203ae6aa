"""The gradient of integrals over boxes: that of the sum over their cells, and of the sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.gradient.derivative import Variables, differentiate, make_variables, variables_of
from quadgrad._core.gradient.mode import Differentiated
from quadgrad._core.gradient.parameters import Parameters, refuse_undeclared
from quadgrad._core.gradient.sides import Faces, search_faces
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.boxes import NewBoxes
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import total
from quadgrad._core.replay import REPLAY_BLOCK, replay_plan
from quadgrad._core.result import Derivative
from quadgrad._core.search.boxes.groups import search_groups
from quadgrad._core.search.boxes.search import box_parts
from quadgrad._core.search.task import Found
from quadgrad._core.tolerance import make_tolerance

__all__ = ["BoxPrimal", "column_errors", "face_errors", "replay_boxes"]


def replay_boxes(integrand: Integrand, plan: BoxPlan, domain: Any, chunk_size: int | None) -> Tensor:
    """Return the integrals ``(batch, *event)`` as a differentiable sum over the cells of a plan."""
    return replay_plan(integrand, plan, domain, chunk_size or REPLAY_BLOCK, chunk_size is not None)


@dataclass(slots=True)
class BoxPrimal:
    """A problem after its search: all that a gradient mode may need.

    Attributes
    ----------
    problem : Problem
        Domain and arguments may require grad.
    found : Found
        What search found, and its plan.
    faces : Faces, optional
        Of the boxes, where derivatives with respect to their sides are asked for.
    """

    problem: Problem
    found: Found
    faces: Faces | None = None

    @property
    def plan(self) -> BoxPlan:
        """The cells on which search found the integrals."""
        return self.found.plan

    @property
    def value(self) -> Tensor:
        """The integrals without gradient."""
        return self.found.value

    def replay(self, plan: BoxPlan | None = None) -> Tensor:
        """Return the integrals as a differentiable sum over a plan's cells, by default the value's own.

        The first time faces are searched, if derivatives with respect to the sides are asked for.
        """
        problem = self.problem
        if self.faces is None:
            self.faces = search_faces(problem)
        domain = self.faces.domain(problem.limits)
        value = replay_boxes(problem.integrand, self.plan if plan is None else plan, domain, problem.chunk_size)
        return value + self.faces.boundary_sum(problem)

    def resolve(self, parameters: Parameters, rtol: float | None, atol: float) -> Differentiated:
        """Return the value with derivatives on cells that were refined until they meet a tolerance of their own."""
        problem = self.problem
        if problem.batch:
            points = problem.limits.detach().inner_points(problem.batch)[:1]
            refuse_undeclared(problem.integrand, parameters, points)
        variables = variables_of(problem.integrand, parameters)
        tolerance = make_tolerance(rtol, atol, problem.tolerance.eps)
        with problem.outside() as plain:
            derivative = _search_derivative(replace(plain, tolerance=tolerance), variables, parameters, self.plan)
        replayed = self.replay(derivative.plan)
        return Differentiated(self.value + (replayed - replayed.detach()), derivative)


def _search_derivative(problem: Problem, variables: Variables, parameters: Parameters, plan: BoxPlan) -> Derivative:
    """Refine a plan for the derivative by one variable after the other."""
    shape, errors = problem.batch_shape, list[Tensor]()
    status, nfev = (torch.zeros(problem.batch, dtype=torch.int64, device=plan.row.device) for _ in range(2))
    places = [(i,) for i in variables.arguments] + [()] * len(variables.parameters.tensors)
    for number, place in enumerate(places):
        own = Parameters() if place else variables.parameters.one(number - len(variables.arguments))
        one = make_variables(problem.integrand, place, own)
        integrand = differentiate(problem.integrand, one, parameters)
        part = replace(problem, integrand=integrand)
        # Each goes on from the cells of the one before, which serve all.
        found = search_groups(part, plan)
        plan, nfev, status = found.plan, nfev + found.nfev, torch.maximum(status, found.status)
        errors.append(found.error)
    error = torch.stack(errors, dim=-1) if errors else plan.error.new_zeros((problem.batch, 0))
    return Derivative(
        variables.names, error.reshape((*shape, len(variables.names))), status.reshape(shape), nfev.reshape(shape),
        plan,
    )  # fmt: skip


def column_errors(problem: Problem, plan: BoxPlan, integrand: Integrand, columns: int) -> Tensor:
    """Return the errors ``(batch, columns)`` of integrals on the cells of a plan, by the rule's own estimate."""
    with torch.no_grad():
        fixed = replace(problem, limits=problem.limits.detach(), stretches=None)
        mesh, estimate = box_parts(fixed)
        errors = plan.error.new_zeros((problem.batch, columns), dtype=torch.float64)
        step = max(1, (problem.chunk_size or REPLAY_BLOCK) // (problem.rule.rows * columns))
        for first in range(0, len(plan), step):
            cells = plan.take(slice(first, first + step))
            row, level, place = cells.row, cells.level.T, cells.position.T
            new = NewBoxes(row, row, level, place, problem.rule.rows)
            places = mesh.place(new)
            y = integrand(places.x, row).detach()
            each = [
                estimate(new, places, y[..., k].double(), problem.tolerance.eps).sums[-2] for k in range(columns)
            ]
            errors = errors + total(torch.stack(each, dim=1), row, problem.batch)
        return errors


def face_errors(primal: BoxPrimal, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the errors of the derivatives by the sides, each with the corners that they belong to."""
    box, faces = primal.problem.limits, primal.faces
    if faces is None:
        return []
    size = weight.abs().reshape(weight.shape[0], -1).sum(1)
    pairs = list[tuple[Tensor, Tensor]]()
    for side, mark in enumerate(box.marks):
        if mark.requires_grad:
            error = faces.errors(side, box.d).to(size) * size[:, None]
            pairs.append((error.sum_to_size(mark.shape), mark))
    return pairs
