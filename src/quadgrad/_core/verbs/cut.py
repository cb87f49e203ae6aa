"""Integrals over what functions cut out of boxes: input, search, replay, result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.closure import with_no_share_of
from quadgrad._core.errors import IntegrandError, PlanError, UnmarkedJumpWarning, warn
from quadgrad._core.gradient import GradientMode, Resolve
from quadgrad._core.gradient.mode import Differentiated, Primal
from quadgrad._core.lanes import has_lanes
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.cut import CutPlan
from quadgrad._core.problem import Problem
from quadgrad._core.regions.pairs import PAIRS, CutRule, line_rule
from quadgrad._core.regions.primal import CutPrimal
from quadgrad._core.regions.search import counts_of, search_cut
from quadgrad._core.regions.where import Boundary, Together, Where
from quadgrad._core.rehearsal import current_rehearsal, decided, thinking
from quadgrad._core.result import Result
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status
from quadgrad._core.tolerance import epsilon, make_tolerance, returned_dtype
from quadgrad._core.verbs.door import lower, open_call
from quadgrad._core.verbs.inputs import flatten_box, whole_budget
from quadgrad._core.verbs.noise import refuse_disagreement
from quadgrad._core.verbs.report import did_fail, report, severed, warn_if_severed
from quadgrad._core.verbs.results import make_result

__all__ = ["integrate_cut", "replay_cut"]

MOST = 5_000_000
"""Most nodes to spend on one integral, unless the caller says."""

LARGEST = 5
"""Dimensions in which nodes between the places where functions vanish are not too many."""


def integrate_cut(
    f: Any, a: Any, b: Any, args: Any, region: Where | Boundary, tolerances: tuple[float | None, float], *,
    rule: str, max_nfev: int | None, gradient: GradientMode, plan: Plan | None, vectorized: bool,
    chunk_size: int | None, on_failure: Literal["warn", "raise", "ignore"],
) -> Result:  # fmt: skip
    """Integrate over a part of boxes; the options are those of :func:`quadgrad.cubature`."""
    name = type(region).__name__
    if a is None or b is None:
        raise TypeError(f"cubature needs the corners a and b of the boxes that {name} cuts a part out of")
    if isinstance(gradient, Resolve) and in_transform():
        raise ValueError(
            f"Resolve with {name} is not for transforms of torch.func: use gradient=quadgrad.Reuse() there, and a "
            "smaller rtol where the derivative has to be more accurate"
        )
    integrand, box, shape, given = flatten_box(f, a, b, args, vectorized)
    if box.infinite:
        raise ValueError(
            f"{name} needs finite corners a and b: give a box that holds the region, or as much of it as counts"
        )
    if box.d > LARGEST:
        raise ValueError(
            f"d={box.d}: {name} goes up to {LARGEST} dimensions. In more of them use a region that is a map "
            "(quadgrad.Ball, Simplex, Nested), with quadgrad.qmc where there are many"
        )
    tolerance = make_tolerance(*tolerances, epsilon(integrand.call_dtype))
    pair = _choose(box.d, tolerance.rtol) if rule == "auto" else rule
    if pair not in PAIRS:
        raise ValueError(f"rule={rule!r} is not known for {name}: choose 'auto' or one of {', '.join(PAIRS)}")
    chosen = CutRule(pair, box.d, region.surface, line_rule(pair, box.a.device))
    problem = Problem(
        integrand, box, shape, chosen, tolerance, budget=whole_budget(max_nfev) or MOST,
        chunk_size=chunk_size, given=given,
    )  # fmt: skip
    outer = current_record()
    with InnerRecord() as inner, WithoutAutocast() as unaided:
        problem.integrand.function = unaided.restore(problem.integrand.function)
        problem.depth = inner.depth
        with thinking():
            problem, probe, lanes = open_call(problem, tolerances, unaided.restore(region.functions), False)
        inner.heard.clear()
        result = _integrate(problem, probe, gradient, region, _fit(problem, plan))
    told = inner.failures or outer is not None or result.derivative is not None
    if current_rehearsal() is None and (told or bool(did_fail(result.status).any())):
        report(result, inner, outer, on_failure)
    return lower(result, lanes)


def replay_cut(f: Any, plan: CutPlan, a: Any, b: Any, args: Any, region: Where | Boundary) -> Tensor:
    """Return the sum over the plan's cells, as for :func:`quadgrad.replay`."""
    integrand, box, shape, given = flatten_box(f, a, b, args)
    d, name = plan.level.shape[0], type(region).__name__
    if (box.d, region.surface) != (d, plan.surface):
        kind = "Boundary" if plan.surface else "Where"
        raise PlanError(f"the plan is one of a {kind} in {d} dimensions, the call has a {name} in {box.d}")
    if shape != plan.batch_shape:
        raise ValueError(f"the inputs have the batch {shape}, the plan {plan.batch_shape}")
    rule = CutRule(plan.rule, d, plan.surface, line_rule(plan.rule, box.a.device))
    g = replace(integrand, function=region.functions, vectorized=True, name=Together.called)
    tolerance = make_tolerance(None, 0.0, epsilon(integrand.call_dtype))
    points = box.detach().inner_points(max(1, plan.batch))[:1]
    (g, probe), (integrand, _) = g.probe(points), integrand.probe(points)
    if probe.shape[-1] != plan.active.shape[1]:
        raise PlanError(f"the region has {probe.shape[-1]} functions, that of the plan {plan.active.shape[1]}")
    if any(has_lanes(t) for t in (probe, *box.marks)):
        raise ValueError(f"replay over {name} is not for torch.func.vmap: use a batch, or quadgrad.cubature")
    problem = Problem(integrand, box, shape, rule, tolerance, jumps=g, given=given, flowing=True)
    still = box.a.new_zeros(plan.batch)
    found = Found(plan, still, still, still.long(), still.long())
    value = CutPrimal(problem, found, lambda *_: found).replay()
    dtype = returned_dtype(integrand.call_dtype, torch.float32)
    value = value.to(dtype.to_complex() if value.is_complex() else dtype)
    return value.reshape(shape + tuple(value.shape[1:]))


def _choose(d: int, rtol: float) -> str:
    """Return the pair of rules that needs the fewest nodes on the whole."""
    if d >= 3:
        return "gk7"
    return "gk7" if rtol > 1e-5 else "gk11"


def _fit(problem: Problem, plan: Plan | None) -> CutPlan | None:
    """Return a plan that was passed, spread over the batch."""
    if plan is None:
        return None
    if not isinstance(plan, CutPlan):
        raise PlanError(f"a plan of the same region is needed, not {type(plan).__name__}")
    rule = problem.rule
    if (plan.level.shape[0], plan.rule, plan.surface) != (rule.d, rule.name, rule.surface):
        raise PlanError(
            f"the plan was made in {plan.level.shape[0]} dimensions with rule {plan.rule!r}, the call has {rule.d} "
            f"and {rule.name!r}"
        )
    if plan.batch_shape not in ((), problem.batch_shape):
        error = PlanError(
            f"the plan's batch shape {plan.batch_shape} is neither () nor the call's {problem.batch_shape}"
        )
        error.batch_shape = problem.batch_shape
        raise error
    return plan if plan.batch_shape == problem.batch_shape else plan.spread(problem.batch_shape)


def _bounds(problem: Problem, region: Where | Boundary) -> Tensor | None:
    """Return the bounds on how fast the functions change, ``(batch or 1, functions)``."""
    bounds, g = region.bounds, problem.jumps
    assert g is not None and g.event is not None
    if region.surface and g.event[0] != 1:
        raise IntegrandError(f"the function given to Boundary returned {g.event[0]} values for a point, not one")
    if bounds is None:
        return None
    counts = [g.event[0]]
    if len(bounds) > 1:
        point = problem.limits.detach().inner_points(max(1, problem.batch))[:1]
        counts = counts_of(g, point, tuple(Together((one,)) for one in region.functions.functions))
    device, columns = problem.limits.a.device, list[Tensor]()
    for bound, count in zip(bounds, counts, strict=True):
        flat = bound.reshape(1, 1) if bound.ndim == 0 else bound.expand(problem.batch_shape).reshape(-1, 1)
        columns.append(flat.to(device).expand(-1, count))
    rows = max(c.shape[0] for c in columns)
    return torch.cat([c.expand(rows, -1) for c in columns], dim=1)


def _search(problem: Problem, region: Where | Boundary, plan: CutPlan | None) -> Found:
    with problem.outside() as plain:
        return search_cut(plain, _bounds(plain, region), plan)


def _integrate(
    problem: Problem, probe: Tensor, gradient: GradientMode, region: Where | Boundary, plan: CutPlan | None
) -> Result:
    rehearsed = current_rehearsal() is not None
    if rehearsed:  # one of several runs that are compared: only in a replay is seen what f and the region do
        problem.flowing, problem.chunk_size = True, None
    found = decided(lambda: _search(problem, region, plan), max(problem.tolerance.rtol, problem.tolerance.eps**0.5))
    again = lambda plain, plan: search_cut(plain, _bounds(plain, region), plan)
    primal = CutPrimal(problem, found, again)
    if not rehearsed and problem.batch:
        warn_if_severed(_severed(problem, probe))
    derived = gradient.apply(cast(Primal, primal)) if problem.flowing else Differentiated(found.value)
    if problem.flowing and not rehearsed:
        refuse_disagreement(derived.value, found.value, found, problem.block)
        if primal.stuck:
            warn(_STUCK, UnmarkedJumpWarning)
    value = derived.value
    if problem.flowing and not in_transform():
        value = with_no_share_of(probe, value)
    return make_result(problem, probe, found, value, derived, primal, _detail(found))


_STUCK = (
    "the gradient of the function that says where to integrate vanishes on the boundary of the region, at some "
    "places at least: how these move is missing from the gradient. Give a function of the same region whose "
    "gradient does not vanish there, such as a distance"
)


def _severed(problem: Problem, probe: Tensor) -> list[str]:
    """Return the arguments that nothing depends on, neither f nor the region."""
    g = problem.jumps
    assert g is not None
    if not torch.is_grad_enabled() or in_transform() or probe.requires_grad:
        return []
    point = problem.limits.detach().inner_points(problem.batch)[:1]
    return [] if g.probe(point)[1].requires_grad else severed(problem, probe)


def _detail(found: Found) -> str:
    """Say how much of the boxes shows nothing, if that is why an integral failed."""
    plan: CutPlan = found.plan
    if bool(plan.lost.any()):
        index = int(plan.owner[plan.lost][0])
        return f" The function that says where to integrate is NaN at places in the box (integral {index})."
    failed = (found.status != int(Status.CONVERGED))[plan.owner] & plan.blank
    if not bool(failed.any()):
        return ""
    index = int(plan.owner[failed][0])
    share = torch.exp2(-plan.level.sum(0)[failed & (plan.owner == index)].double()).sum()
    return (
        f" The function that says where to integrate is constant, to rounding, over {100.0 * float(share):.2g} % "
        f"of the box (integral {index}), so that nothing tells what else there is. Give lipschitz=, a bound on its "
        "gradient, or the function before it is saturated (without the last tanh, sigmoid or clamp)."
    )
