"""The search on boxes: which geometry, which estimate, and what is handed over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from quadgrad._core.estimates.boxes import BoxEstimate
from quadgrad._core.estimates.null_rules import FLOOR
from quadgrad._core.mesh.boxes import HINTS, Boxes
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.boxes.bodies import BoxBodies
from quadgrad._core.search.boxes.held_out import DOUBTS, doubted_places
from quadgrad._core.search.boxes.kernel import BoxKernel
from quadgrad._core.search.boxes.native import NativeBoxBodies
from quadgrad._core.search.kernel.values import UnreadableError
from quadgrad._core.search.rounds import search_rounds
from quadgrad._core.search.task import Found, noise
from quadgrad._core.search.tensors import TurnsComplexError

__all__ = ["BoxFound", "box_parts", "search_boxes"]


def search_boxes(problem: Problem, first: BoxPlan | None, alone: bool = False, native: bool = True) -> BoxFound:
    """Search boxes from their whole, or from the cells of a plan; ``alone``: only the integrals that it has.

    ``native`` tells whether the compiled kernel is to do what it can.
    """
    try:
        mesh, estimate = box_parts(problem)
        mesh.alone = alone
        bodies = NativeBoxBodies if native and BoxKernel.can(mesh) else BoxBodies
        return search_rounds(bodies(problem, mesh, estimate, partial(record_boxes, problem)), first)
    except TurnsComplexError:
        integrand = replace(problem.integrand, output_dtype=problem.integrand.sum_dtype.to_complex())
        return search_boxes(replace(problem, integrand=integrand), first, alone, native)
    except UnreadableError:
        return search_boxes(problem, first, alone, native=False)


def box_parts(problem: Problem) -> tuple[Boxes, BoxEstimate]:
    """Return a problem's geometry and estimate."""
    domain = problem.pieces
    mesh = Boxes(domain, problem.rule, problem.batch, domain.marks[0].device)
    return mesh, BoxEstimate(problem.rule, domain.x_dtype, not domain.infinite)


def record_boxes(
    problem: Problem, cells: Cells, value: Tensor, error: Tensor, status: Tensor, nfev: Tensor
) -> BoxFound:
    """Return the cells sorted by integral."""
    row, order = cells.whole[2].sort(stable=True)
    d = problem.rule.d
    level, place = (cells.whole[i : i + d, order].T.contiguous() for i in (HINTS, HINTS + d))
    plan = BoxPlan.of(
        problem.rule, problem.pieces.infinite, problem.batch_shape, row, level, place,
        cells.sums[-2, order].to(error.dtype), cells.real[2, order],
    )  # fmt: skip
    n = problem.batch
    height = value.new_zeros(n, dtype=torch.float64).scatter_reduce_(0, cells.whole[2], cells.real[0], "amax")
    modulus = sum_by_owner(cells.sums[-1:], cells.whole[2], n)[0] / (FLOOR * noise(problem))
    nothing = value.new_zeros((n, 2, d), dtype=torch.float64)
    doubt = torch.zeros_like(height).scatter_reduce_(0, cells.whole[2], cells.real[-DOUBTS], "amax")
    most = ((cells.real[-DOUBTS] >= doubt[cells.whole[2]]) & (cells.real[-DOUBTS] > 0.0)).nonzero().squeeze(1)
    doubted = value.new_zeros((n, d), dtype=torch.float64)
    if len(most):
        doubted[cells.whole[2, most]] = doubted_places(problem.rule, cells.take(most))
    return BoxFound(
        plan, value, error, status, nfev, height=height, modulus=modulus, top=height, corner=nothing, doubt=doubt,
        doubted=doubted,
    )  # fmt: skip


@dataclass(slots=True)
class BoxFound(Found):
    """What a search on boxes hands over, and what it has seen of each integral.

    ``modulus`` is the integral of abs(f), ``height`` the largest size of f times the volume element at the nodes of
    the cells handed over. ``doubt`` is how far f is off what is expected at the place ``doubted`` ``(batch, d)`` in
    the unit cube, 0 if that is no more than may be. ``top`` is the largest size at any node seen, in the cell of
    the unit cube with lower corner and width ``corner`` ``(batch, 2, d)``.
    """

    modulus: Tensor = field(kw_only=True)
    height: Tensor = field(kw_only=True)
    top: Tensor = field(kw_only=True)
    doubt: Tensor = field(kw_only=True)
    doubted: Tensor = field(kw_only=True)
    corner: Tensor = field(kw_only=True)
