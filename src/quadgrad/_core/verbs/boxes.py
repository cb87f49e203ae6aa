"""What the verbs over images of the unit cube do with a problem: search, plan, replay, gradient, result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

import torch

from quadgrad._core._torch import in_transform
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.closure import with_no_share_of
from quadgrad._core.errors import IntegrationWarning, PlanError, warn
from quadgrad._core.gradient import GradientMode
from quadgrad._core.gradient.boxes import BoxPrimal
from quadgrad._core.gradient.mode import Differentiated, Primal
from quadgrad._core.gradient.sides import search_faces
from quadgrad._core.lanes import Lanes
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.problem import Problem
from quadgrad._core.progress import show_progress
from quadgrad._core.ranks import Ranks
from quadgrad._core.rehearsal import current_rehearsal, decided, thinking
from quadgrad._core.result import Result
from quadgrad._core.rules import get_box_rule
from quadgrad._core.search.boxes.groups import search_groups
from quadgrad._core.search.task import Found
from quadgrad._core.tolerance import epsilon, make_tolerance
from quadgrad._core.verbs.deal import integrate_dealt
from quadgrad._core.verbs.door import lower, open_call
from quadgrad._core.verbs.inputs import flatten_box, whole_budget
from quadgrad._core.verbs.noise import refuse_disagreement
from quadgrad._core.verbs.report import did_fail, report, severed, warn_if_severed
from quadgrad._core.verbs.results import make_result

__all__ = ["MOST", "integrate_boxes", "prepare_boxes"]

MOST = 5_000_000
"""Most nodes to spend on one integral, unless the caller says."""

_FACES = (
    "{} integrals over faces of the boxes, which are the derivatives with respect to their sides, did not "
    "converge: loosen rtol, raise max_nfev, or pass detached limits if these derivatives are not wanted"
)

LARGEST = 12
"""Dimensions in which halving boxes still gets anywhere."""


def prepare_boxes(
    f: Callable[..., Any], a: Any, b: Any, args: Any, vectorized: bool, tolerances: tuple[float | None, float],
    rule: str, max_nfev: int | None, chunk_size: int | None, max_cells: int | None = None,
) -> Problem | None:  # fmt: skip
    """Check and flatten the integrand, boxes and arguments; None where there is one dimension, which is quad's."""
    integrand, box, shape, given = flatten_box(f, a, b, args, vectorized)
    if box.d == 1:
        return None
    if box.d > LARGEST:
        raise ValueError(
            f"d={box.d}: boxes are halved in up to {LARGEST} dimensions. In more of them use quadgrad.qmc, or "
            "quadgrad.vegas where f has peaks"
        )
    tolerance = make_tolerance(*tolerances, epsilon(integrand.call_dtype))
    known = get_box_rule(choose_rule(box.d, tolerance.rtol) if rule == "auto" else rule, box.d)
    budget = min(whole_budget(max_nfev) or MOST, 2**62)  # that integers of tensors hold, and a round more
    if budget < known.rows:
        raise ValueError(f"max_nfev={budget} is less than one box needs with {known.name}: {known.rows} nodes")
    return Problem(
        integrand, box, shape, known, tolerance, budget=budget, chunk_size=chunk_size, given=given,
        max_cells=max_cells,
    )  # fmt: skip


def choose_rule(d: int, rtol: float) -> str:
    """Return the name of the rule that needs the fewest nodes on the whole, as measured in ADR 49."""
    if d == 2 and rtol < 1e-10:
        return "gk21"
    for most, finest, fine, coarse in (
        (2, 3e-4, "gm11", "gm9"),
        (3, 3e-5, "gm11", "gm9"),
        (5, 3e-8, "gm11", "gm9"),
    ):
        if d <= most:
            return fine if rtol < finest else coarse
    return "gm9" if d <= 8 and rtol < 3e-3 else "gm7"


def integrate_boxes(
    problem: Problem,
    tolerances: tuple[float | None, float],
    gradient: GradientMode,
    plan: Plan | None,
    on_failure: Literal["warn", "raise", "ignore"],
    progress: bool = False,
    ranks: Ranks | None = None,
) -> Result:
    """Integrate what was checked and flattened; the options are those of :func:`quadgrad.cubature`.

    ``ranks`` share the batch.
    """
    outer, most = current_record(), problem.max_nfev * problem.batch
    with InnerRecord() as inner, WithoutAutocast() as unaided, show_progress(progress, most) as problem.advance:
        problem.integrand.function = unaided.restore(problem.integrand.function)
        problem.depth = inner.depth
        with thinking():
            problem, probe, lanes = open_call(problem, tolerances, None, False, ranks)
        inner.heard.clear()
        cells = _fit(problem, plan, lanes)
        if ranks is None or ranks.alone or problem.batch == 0:
            result = _integrate(problem, probe, gradient, cells, on_failure)
        else:
            one = lambda part, mode, cells, _: _integrate(part, probe, mode, cells, on_failure, apart=True)
            result = integrate_dealt(problem, gradient, cells, ranks, one)
            result = replace(result, primal=None)  # what gradient_error needs of faces is not gathered
    told = inner.failures or outer is not None or result.derivative is not None
    if current_rehearsal() is None and (told or bool(did_fail(result.status).any())):
        report(result, inner, outer, on_failure)
    return lower(result, lanes)


def _fit(problem: Problem, plan: Plan | None, lanes: Lanes | None) -> BoxPlan | None:
    """Return a plan that was passed, spread over the batch."""
    if plan is None:
        return None
    if not isinstance(plan, BoxPlan):
        raise PlanError(f"a plan of quadgrad.cubature is needed, not {type(plan).__name__}")
    if plan.d != problem.limits.d:
        raise PlanError(f"the plan has {plan.d} dimensions, the integral {problem.limits.d}")
    if plan.batch_shape not in ((), problem.batch_shape):
        error = PlanError(
            f"the plan's batch shape {plan.batch_shape} is neither () nor the call's {problem.batch_shape}"
        )
        error.batch_shape = problem.batch_shape
        raise error
    if plan.rule != problem.rule.name:
        raise PlanError(f"the plan was made with rule {plan.rule!r}, the call asks for {problem.rule.name!r}")
    if plan.infinite != problem.pieces.infinite:
        kinds, here = {True: "infinite", False: "finite"}, problem.pieces.infinite
        raise PlanError(f"the plan was made for {kinds[plan.infinite]} sides, the call has {kinds[here]} ones")
    return plan if plan.batch_shape == problem.batch_shape else plan.spread(problem.batch_shape)


def _search(problem: Problem, plan: BoxPlan | None) -> Found:
    with problem.outside() as plain:
        return search_groups(plain, plan)


def _integrate(
    problem: Problem, probe: torch.Tensor, gradient: GradientMode, plan: BoxPlan | None, on_failure: str,
    apart: bool = False,
) -> Result:  # fmt: skip
    """Return the integrals of a batch, or of a part of one, ``apart`` from the others."""
    rehearsed = current_rehearsal() is not None
    if rehearsed:  # one of several runs that are compared: only in a replay is seen what f does
        problem.flowing, problem.chunk_size = True, None
    found = decided(lambda: _search(problem, plan), max(problem.tolerance.rtol, problem.tolerance.eps**0.5))
    primal = BoxPrimal(problem, found)
    if rehearsed:
        primal.faces = decided(lambda: search_faces(problem))
    elif problem.batch:
        lost = severed(problem, probe)
        if apart:
            InnerRecord.current().severed = tuple(lost)
        else:
            warn_if_severed(lost)
    derived = gradient.apply(cast(Primal, primal)) if problem.flowing else Differentiated(found.value)
    if primal.faces is not None and primal.faces.failed and on_failure != "ignore":
        warn(_FACES.format(primal.faces.failed), IntegrationWarning)
    if problem.flowing and not rehearsed:
        refuse_disagreement(derived.value, found.value, found, problem.block)
    value = derived.value
    if problem.flowing and len(found.plan) == 0 and not in_transform():
        for unused in (probe, *problem.limits.marks):
            value = with_no_share_of(unused, value)
    return make_result(problem, probe, found, value, derived, primal, "")
