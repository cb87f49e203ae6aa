"""From a problem to what search found: afresh, from a plan, or by one pass over a plan that still serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.breakpoints.marks import Switches
from quadgrad._core.gradient.boundary import replay_with_limits
from quadgrad._core.gradient.mode import Primal
from quadgrad._core.gradient.pathwise import choose_treatment
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.search.recheck import Watch, recheck
from quadgrad._core.search.record import make_plan
from quadgrad._core.search.start import First, first_cells
from quadgrad._core.search.task import Found
from quadgrad._core.search.tiles import search_tiles
from quadgrad._core.verbs.noise import refuse_disagreement, refuse_noise

__all__ = ["oriented_value", "replay_kept", "search", "search_all"]

Search = Callable[[Problem, IntervalPlan | None], tuple[Found, IntervalPlan]]


def search(problem: Problem, plan: IntervalPlan | None) -> tuple[Found, IntervalPlan]:
    """Search a problem that is outside of all transforms, from whole pieces or the cells of a plan."""
    found = search_tiles(problem, None if plan is None else _start(problem, plan))
    return found, _record(problem, found)


def search_all(problem: Problem, find: Search, plan: IntervalPlan | None) -> Primal:
    """Search every integral, between the zeros of ``jumps`` too, from the cells of a plan if one was passed."""
    with problem.outside() as plain:
        if problem.jumps is None:
            found, made = find(plain, plan)
            switches = None
        else:
            switches, found, made = Switches.open(plain).search(find, plan)
    found.kind = None  # the plan has it
    problem = problem if switches is None else switches.attach(problem)
    return Primal(problem, found, made, found.value, uninspected=made)


def replay_kept(problem: Problem, plan: IntervalPlan) -> Primal | None:
    """Replay the plan that was passed, and check it by the values seen; None if all of it must be searched.

    For the integrals that are done it saves the search and the checks of what search found: where f is not
    deterministic, the values themselves show a large error. The others are searched from their cells.
    """
    if problem.jumps is not None:
        with problem.outside() as plain:
            switches, fitted = Switches.open(plain).fit(plan)
        plan = plan if fitted is None else fitted
        problem = switches.attach(problem)
    if len(plan) == 0:
        return None
    with problem.outside() as plain:
        watch = Watch(plain, _start(plain, plan))
    used = _with_cells(plan, watch.first, problem)
    treatment = choose_treatment(problem, used)
    value = replay_with_limits(problem.integrand, used, problem.limits, treatment, problem.chunk_size, watch)
    with problem.outside() as plain:
        checked = recheck(watch)
    found, done = checked.found, checked.done
    if bool(done.all()):
        made = replace(_record(problem, found), inspected=plan.inspected)
        return Primal(problem, found, made, found.value, None if plan.inspected else made, treatment, value)
    # What is infinite would give NaN where it is replaced; zeros of jumps have to be looked for on the new cells.
    easy = problem.jumps is None and treatment is None and bool(done.any())
    if not easy or bool(found.cell_error.isinf().any()):
        return None
    with problem.outside() as plain:
        mended = search_tiles(plain, checked.unfinished())
        refined = _record(plain, mended)
        refuse_noise(plain, refined)
        known = oriented_value(mended, plain.limits)
    again = replay_with_limits(problem.integrand, refined, problem.limits, None, problem.chunk_size)
    refuse_disagreement(again, known, mended.error, problem.block)
    value = torch.where(done.reshape(-1, *(1,) * (value.ndim - 1)), value, again)
    found = checked.join(mended)
    made = _record(problem, found)
    return Primal(problem, found, made, found.value, refined if plan.inspected else made, None, value)


def _start(problem: Problem, plan: IntervalPlan) -> First:
    return first_cells(problem.pieces, problem.batch_shape, problem.batch, problem.rule, plan)


def _record(problem: Problem, found: Found) -> IntervalPlan:
    return make_plan(found, problem.pieces, problem.batch_shape, problem.rule)


def _with_cells(plan: IntervalPlan, first: First, problem: Problem) -> IntervalPlan:
    """Return the plan with other cells."""
    kind = torch.zeros_like(first.row, dtype=torch.int8) if first.kind is None else first.kind
    return replace(
        plan, batch_shape=problem.batch_shape, row=first.row, start=first.start, stop=first.stop, kind=kind,
        error=torch.zeros_like(first.start),
    )  # fmt: skip


def oriented_value(found: Found, limits: Limits) -> Tensor:
    """Return the value with the sign of the limits' order, NaN where f was not finite."""
    value = limits.orient(found.value)
    if bool(found.status.any()):
        unknown = found.error.isinf().reshape(-1, *(1,) * (value.ndim - 1))
        value = value.masked_fill(unknown, torch.nan)
    return value
