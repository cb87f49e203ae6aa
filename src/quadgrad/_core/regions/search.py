"""The search over what functions cut out of boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.plans.cut import CutPlan
from quadgrad._core.problem import Problem
from quadgrad._core.regions.bodies import CutBodies
from quadgrad._core.regions.lines import Level
from quadgrad._core.regions.mesh import CutMesh
from quadgrad._core.search.rounds import search_rounds
from quadgrad._core.search.task import Found
from quadgrad._core.search.tensors import TurnsComplexError

__all__ = ["counts_of", "level_of", "search_cut"]


def level_of(problem: Problem) -> Level:
    """Return the functions that cut the boxes of a problem."""
    assert problem.jumps is not None
    return Level(problem.jumps, problem.limits)


def search_cut(problem: Problem, lipschitz: Tensor | None, first: CutPlan | None) -> Found:
    """Search a problem that is outside of all transforms, from a coarse grid or the cells of a plan."""
    rtol, block = problem.tolerance.rtol, problem.block
    mesh = CutMesh(level_of(problem), problem.batch, problem.rule, lipschitz, rtol, block)

    def record(cells: Cells, value: Tensor, error: Tensor, status: Tensor, nfev: Tensor) -> Found:
        assert problem.jumps is not None and problem.jumps.event is not None
        plan = mesh.record(cells, problem.batch_shape, problem.jumps.event[0])
        return Found(plan, value, error, status, mesh.spent)

    try:
        return search_rounds(CutBodies(problem, mesh, record), first)
    except TurnsComplexError:
        integrand = replace(problem.integrand, output_dtype=problem.integrand.sum_dtype.to_complex())
        return search_cut(replace(problem, integrand=integrand), lipschitz, first)


def counts_of(g: Integrand, point: Tensor, functions: tuple[Any, ...]) -> list[int]:
    """Return how many functions each of several is, called at a point ``(1, d)``."""
    return [replace(g, function=one, event=None).probe(point)[1].shape[-1] for one in functions]
