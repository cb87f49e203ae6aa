"""From a problem to what search found: afresh, from a plan, or by one pass over a plan that still serves."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.breakpoints.jumps import Search, Switches
from quadgrad._core.gradient.boundary import replay_with_limits
from quadgrad._core.gradient.mode import Primal
from quadgrad._core.gradient.pathwise import choose_treatment
from quadgrad._core.mesh.interval import LINEAR
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.following import follow
from quadgrad._core.search.reach import search_on, search_reaching
from quadgrad._core.search.recheck import Watch
from quadgrad._core.search.single import settle_single
from quadgrad._core.search.start import first_cells
from quadgrad._core.search.task import Found
from quadgrad._core.search.tiles import search_tiles
from quadgrad._core.verbs.noise import refuse_disagreement, refuse_noise

__all__ = ["follow_jumps", "oriented_value", "replay_kept", "search", "search_all"]


def search(problem: Problem, plan: IntervalPlan | None) -> Found:
    """Search a problem that is outside of all transforms, from whole pieces or the cells of a plan."""
    return search_tiles(problem, None if plan is None else first_cells(problem, plan))


def search_all(problem: Problem, find: Search, plan: IntervalPlan | None) -> Primal:
    """Search every integral, between the zeros of ``jumps`` too, from the cells of a plan if one was passed."""
    with problem.outside() as plain:
        if problem.opening is not None and (settled := settle_single(plain)) is not None:
            found, switches = settled, None
        elif problem.jumps is None and find is search:
            found, switches = search_reaching(plain, find, plan), None
        elif problem.jumps is None:
            found, switches = find(plain, plan), None
        else:
            switches, found = Switches.open(plain).search(find, plan)
    problem = problem.with_found(found.plan.places) if switches is None else switches.attach(problem)
    return Primal(problem, found, found.value, uninspected=found.plan)


def follow_jumps(problem: Problem, found: Found) -> Primal:
    """Return what was found for other inputs as it is for these: its cells, between the same marks."""
    if problem.jumps is not None:
        with problem.outside() as plain:
            switches, fitted = Switches.open(plain).fit(found.plan)
        problem = switches.attach(problem)
        found = found if fitted is None else replace(found, plan=fitted)
    else:
        problem = problem.with_found(found.plan.places)
    return Primal(problem, found, found.value)


def replay_kept(problem: Problem, plan: IntervalPlan) -> Primal | None:
    """Replay the plan that was passed, and check it by the values seen; None if all of it must be searched.

    Where an error is too large search goes on from what was seen. For the integrals that need no refinement that
    saves a search, and the checks of what search found: where f is not deterministic, the values themselves show a
    large error. The others are replayed again.
    """
    if len(plan) == 0 or plan.term is not None:
        return None
    start, switches = None, None
    with problem.outside() as plain:
        if problem.jumps is None:
            start = follow(plain, plan)
        else:
            switches, fitted = Switches.open(plain).fit(plan)
            plan = fitted or plan
    between = switches.attach(problem) if switches else problem.with_found(start.places if start else None)
    with between.outside() as plain:
        task, cells = (start.task, start.plan) if start else (plain, plan)
        watch = Watch(task, first_cells(task, cells))
    first = watch.first
    treatment = choose_treatment(between, first)
    value = replay_with_limits(between.integrand, first, between.limits, treatment, problem.chunk_size, watch)
    with between.outside():
        found = watch.search()
        if found is not None and start is not None:
            found = search_on(start, found)
    if found is None:
        return None
    problem = between if start is None else problem.with_found(found.plan.places)
    refined = _refined(first, found.plan)
    if refined is None:
        found.plan = found.plan.noted(inspected=plan.inspected)
        return Primal(problem, found, found.value, None if plan.inspected else found.plan, treatment, value)
    if start is None:  # zeros of jumps have to be looked for on the new cells
        return None
    # What is infinite would give NaN where it is replaced; a series is summed up as a whole.
    lost = bool(found.plan.error.isinf().any())
    if treatment is not None or found.plan.term is not None or lost or bool(refined.all()):
        return Primal(problem, found, found.value, found.plan)
    mended = found.plan.take(refined[found.plan.owner])
    with problem.outside() as plain:
        refuse_noise(plain, mended)
        known = oriented_value(found, plain.limits, bool(found.status.any()))
    again = replay_with_limits(problem.integrand, mended, problem.limits, None, problem.chunk_size)
    compared = replace(found, error=found.error.masked_fill(~refined, torch.inf))
    refuse_disagreement(again, known, compared, problem.block)
    value = torch.where(align(refined, value), again, value)
    return Primal(problem, found, found.value, mended if plan.inspected else found.plan, None, value)


def _refined(first: IntervalPlan, plan: IntervalPlan) -> Tensor | None:
    """Tell which integrals have other cells than before, ``(batch,)``; None if none has. Search only refines.

    A cell that turned to logarithmic nodes is as wide as it was.
    """
    if first.even and plan.even and len(first) == len(plan) and first.places is plan.places:
        return None
    # Cells of either kind are counted apart: what one has lost the other may have won.
    kinds = (torch.stack((p.kind == LINEAR, p.kind != LINEAR)).long() for p in (first, plan))
    before, after = (sum_by_owner(k, p.owner, p.batch) for k, p in zip(kinds, (first, plan), strict=True))
    refined = (before != after).any(0)
    if plan.places is not first.places:  # search has found others: few integrals, mostly one
        refined |= _differ(first.places, plan.places)
    return refined if bool(refined.any()) else None


def _differ(old: Tensor | None, new: Tensor | None) -> Tensor | bool:
    """Tell of which integrals places ``(batch, k)``, or NaN, are others than before."""
    if old is None or new is None or old.shape != new.shape:
        return True
    return ~torch.isclose(old, new, rtol=0.0, atol=0.0, equal_nan=True).all(1)


def oriented_value(found: Found, limits: Limits, failed: bool) -> Tensor:
    """Return the value with the sign of the limits' order, NaN where f was not finite."""
    value = limits.orient(found.value)
    if failed:
        value = value.masked_fill(align(found.error.isinf(), value), torch.nan)
    return value
