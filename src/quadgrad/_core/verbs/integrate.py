"""What every verb does with a problem: search, plan, replay, gradient, result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.breakpoints.jumps import note_found_places, note_second_derivatives, note_unmarked_jumps
from quadgrad._core.breakpoints.unmarked import Least
from quadgrad._core.closure import with_no_share_of
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.gradient import Differentiated, GradientMode, Primal, Reuse, Scaled
from quadgrad._core.gradient.pathwise import choose_treatment
from quadgrad._core.gradient.watched import Watched
from quadgrad._core.lanes import plain
from quadgrad._core.logspace.scaling import LogSearch, take_logarithm
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.ranks import Ranks
from quadgrad._core.rehearsal import Rehearsal, current_rehearsal
from quadgrad._core.result import Result
from quadgrad._core.search.decide import Totals, allowed_error
from quadgrad._core.search.noisy import is_noisy
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status
from quadgrad._core.tolerance import Tolerance, epsilon, make_tolerance, real_dtype, returned_dtype
from quadgrad._core.verbs.deal import integrate_dealt
from quadgrad._core.verbs.door import lower, open_call
from quadgrad._core.verbs.noise import ReplacedRows, refuse_disagreement, refuse_noise
from quadgrad._core.verbs.report import any_failed, did_fail, report, severed, warn_if_severed
from quadgrad._core.verbs.solve import follow_jumps, oriented_value, replay_kept, search, search_all
from quadgrad._core.verbs.trouble import offending_point, plain_numbers

__all__ = ["integrate", "least_jump"]


ROOM, LEAST = 0.1, 100.0
"""An integral inside another aims at this part of its tolerance, but at no less than so many eps."""


def integrate(
    problem: Problem,
    tolerances: tuple[float | None, float],
    gradient: GradientMode = Reuse(),
    *,
    plan: IntervalPlan | None = None,
    jumps: Callable[..., Any] | None = None,
    log: bool = False,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
    ranks: Ranks | None = None,
) -> Result:
    """Integrate what was checked and flattened, in any geometry; the options are those of :func:`quadgrad.quad`.

    ``ranks`` share the batch.
    """
    if (run := current_rehearsal()) is not None:
        return _rehearse(run, problem, tolerances, gradient, jumps, log)
    outer = current_record()
    with InnerRecord() as inner, WithoutAutocast() as unaided:
        problem.integrand.function = unaided.restore(problem.integrand.function)
        jumps = None if jumps is None else unaided.restore(jumps)
        alone = plan is None and jumps is None and not log
        problem.depth = inner.depth
        problem, probe, lanes = open_call(problem, tolerances, jumps, alone, ranks, plan is not None)
        asked = problem.tolerance
        if outer is not None and outer.depth:
            # Its tolerance, most often the same, has to have room for what is off here.
            share, least = ROOM**outer.depth, min(asked.rtol, LEAST * asked.eps)
            problem.tolerance = replace(asked, rtol=max(share * asked.rtol, least), atol=share * asked.atol)
        if problem.opening is None:
            inner.heard.clear()
        if ranks is None or ranks.alone or problem.batch == 0:
            result, failed = _integrate(problem, probe, gradient, plan, log)
        else:
            one = lambda part, mode, cells, first: _integrate(part, probe, mode, cells, log, first)[0]
            result = integrate_dealt(problem, gradient, plan, ranks, one)
            result = replace(result, primal=None) if log else result
            failed = bool(result.status.any())
        if failed and outer is not None:
            result = _forgive(result, asked, log)
    if failed or inner.failures or inner.jump or outer is not None or result.derivative is not None:
        report(result, inner, outer, on_failure, log)
    return lower(result, lanes)


def _forgive(result: Result, asked: Tolerance, log: bool) -> Result:
    """Return the result of an integral inside another, which aimed at less than was asked for, judged by that."""
    value, batch = plain(result.value).detach().abs(), result.status.numel()
    size = value.reshape(batch, -1).amax(1) if value.numel() else value.new_zeros(batch)
    size = torch.ones_like(size) if log else size
    met = plain(result.error).reshape(-1) <= (asked.rtol * size).clamp_min(asked.atol)
    met = met.reshape(result.status.shape) & did_fail(result.status)
    return replace(result, status=result.status.masked_fill(met, int(Status.CONVERGED)))


def _rehearse(
    run: Rehearsal, problem: Problem, tolerances: tuple[float | None, float], gradient: GradientMode,
    jumps: Callable[..., Any] | None, log: bool,
) -> Result:  # fmt: skip
    """Integrate in one of several runs that are compared: on the cells of the first one, and seen by who compares.

    What a first call finds is checked and reported where the program runs by itself.
    """
    with InnerRecord(), WithoutAutocast() as unaided:
        problem.integrand.function = unaided.restore(problem.integrand.function)
        jumps = None if jumps is None else unaided.restore(jumps)
        problem.chunk_size = None  # parts are computed again in the backward pass, where nobody sees them
        with run.thinking():
            problem, probe, lanes = open_call(problem, tolerances, jumps, False)
        problem.flowing = True
        call = run.begin(max(problem.tolerance.rtol, problem.tolerance.eps**0.5))
        logs, kept = LogSearch(problem, probe) if log else None, run.found(call)
        if kept is None:
            primal = search_all(problem, logs.search if logs else search, None)
            run.keep(call, (primal.found, logs and (logs.shift, logs.noise)))
        else:
            primal = follow_jumps(problem, kept[0])
        if logs:
            if kept is not None:
                logs.shift, logs.noise = kept[1]
            primal.problem = logs.shifted(primal.problem)
            primal.scaled = Scaled(primal.found.error, logs.noise)
        primal.value = oriented_value(primal.found, primal.problem.limits.detach(), False)
        with run.thinking():
            primal.treatment = choose_treatment(primal.problem, primal.plan)
        if not gradient.replays_value:  # but takes the value that search found, which here is another run's
            primal.value = primal.replay().detach()
        value = gradient.apply(primal).value
        value = take_logarithm(value, logs.shift) if logs else value
        dtype = returned_dtype(problem.integrand.call_dtype, probe.dtype)
        value = value.to(dtype.to_complex() if value.is_complex() else dtype)
        shape, found = problem.batch_shape, primal.found
        value, error, status, nfev = (_unflatten(t, shape) for t in (value, found.error, found.status, found.nfev))
        return lower(Result(value, error, status, nfev, found.plan, "", None, None), lanes)


def _integrate(
    problem: Problem, probe: Tensor, gradient: GradientMode, plan: IntervalPlan | None, log: bool,
    first: int | None = None,
) -> tuple[Result, bool]:  # fmt: skip
    """Return the integrals, and whether any failed; of a part of a batch, those from the ``first`` on."""
    watched = Watched(problem.integrand)
    problem.integrand = watched.integrand
    logs, primal = LogSearch(problem, probe) if log else None, None
    problem.series = gradient.takes_series or not problem.flowing
    if plan is not None and problem.flowing and gradient.replays_value and logs is None:
        primal = replay_kept(problem, plan)
    primal = primal or search_all(problem, logs.search if logs else search, plan)
    if logs:
        primal.problem = logs.shifted(primal.problem)
        primal.scaled = Scaled(primal.found.error, logs.noise)
    found, limits = primal.found, primal.problem.limits.detach()
    failed = any_failed(found.status)
    if failed:
        _tell_rounding(primal)
    asked = _warn_of_lost_gradients(primal, probe, apart=first is not None)
    primal.value = oriented_value(found, limits, failed)
    watched.told(primal)
    derived = _differentiate(primal, gradient) if problem.flowing else Differentiated(primal.value)
    if problem.flowing:
        watched.follow(derived.value)
    value, error, status = derived.value, found.error, found.status
    if problem.flowing and not primal.unfollowed:
        note_second_derivatives(primal.problem, found.plan, value)
    if problem.flowing and len(found.plan) == 0 and not in_transform():
        value = with_no_share_of(probe, value)
    if logs:
        value = take_logarithm(value, logs.shift)
        error, status = logs.finish(found)
        failed = any_failed(status)
    shape = problem.batch_shape
    if asked and not found.plan.inspected:
        found.plan = replace(found.plan, inspected=True)
    dtype = returned_dtype(problem.integrand.call_dtype, probe.dtype)
    if value.dtype != dtype:
        value, error, status, beyond = _narrow(value, error, status, dtype)
        failed |= beyond
    result = Result(
        _unflatten(value, shape),
        _unflatten(error, shape),
        _unflatten(status, shape),
        _unflatten(found.nfev, shape),
        found.plan,
        offending_point(primal.problem, found, status, first or 0, log) if failed else "",
        derived.derivative,
        primal if problem.flowing and not in_transform() else None,
        plain_numbers(problem) and problem.tolerance.rtol == make_tolerance(None, 0.0, epsilon(torch.float32)).rtol,
    )
    return result, failed


def _narrow(
    value: Tensor, error: Tensor, status: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Return the sums in the narrower dtype of what was passed, and whether any is beyond its largest number."""
    wide, value = value, value.to(dtype.to_complex() if value.is_complex() else dtype)
    error, beyond = error.to(real_dtype(dtype)), plain(value).isinf() & plain(wide).isfinite()
    if not bool(beyond.any()):
        return value, error, status, False
    beyond = beyond.flatten(1).any(1) if beyond.ndim > 1 else beyond
    return value, error.masked_fill(beyond, torch.inf), status.masked_fill(beyond, int(Status.ROUNDOFF)), True


def _tell_rounding(primal: Primal) -> None:
    """Say of integrals whose budget ran out which are made of rounding: no larger one would help them.

    Where the error would do, it was what may be missed that could not be looked for.
    """
    found = primal.found
    size, none = largest_component(found.value.abs().double()), torch.zeros_like(found.error)
    missed = found.error > allowed_error(primal.problem.tolerance, Totals(size, size, found.error, none))
    late = (found.status == int(Status.MAX_NFEV)) & missed & found.error.isfinite()
    if bool(late.any()):
        with primal.problem.outside() as problem, InnerRecord():
            found.status = found.status.masked_fill(is_noisy(problem, primal.plan, late), int(Status.ROUNDOFF))


def _unflatten(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what has one entry for each integral in the shape of the batch."""
    if not shape:
        return values[0]
    return values if len(shape) == 1 else values.reshape(shape + tuple(values.shape[1:]))


def _differentiate(primal: Primal, gradient: GradientMode) -> Differentiated:
    """Return the value as a differentiable tensor, and what a mode says of the derivative."""
    if primal.replayed is not None:
        return Differentiated(primal.replayed)
    problem, searched, found = primal.problem, primal.value, primal.found
    with problem.outside() as plain:
        refuse_noise(plain, primal.plan)
    primal.treatment = choose_treatment(problem, primal.plan)
    # What was turned around or put on another scale is not what a replay sums up.
    if primal.scaled is None and searched is primal.found.value and problem.chunk_size is not None:
        primal.rows = ReplacedRows(searched, found)
    derived = gradient.apply(primal)
    primal.rows = None
    refuse_disagreement(derived.value, searched, found, problem.block)
    if primal.scaled is None and not in_transform():
        primal.value = derived.value.detach()  # search's value is held no longer
    return derived


def _warn_of_lost_gradients(primal: Primal, probe: Tensor, apart: bool) -> bool:
    """Tell what the gradient lacks, a dependence on an argument or a jump; return whether one was asked for."""
    problem = primal.problem
    lost = severed(problem, probe)
    if not (problem.flowing or lost):
        return False
    if problem.batch:
        primal.unfollowed = note_found_places(problem, silent=primal.uninspected is None)
    least = least_jump(primal.found, problem.tolerance)
    if not note_unmarked_jumps(problem, primal.uninspected, least) and not InnerRecord.current().jump:
        if apart:
            InnerRecord.current().severed = tuple(lost)
        else:
            warn_if_severed(lost)
    return True


def least_jump(found: Found, tolerance: Tolerance) -> Least:
    """Return the smallest jump that counts: above noise and the integral's error."""
    record = current_record()
    noise = max(tolerance.eps**0.5, 10.0 * record.largest if record else 0.0)
    return lambda owner: torch.maximum(noise * largest_component(found.value[owner].abs()), found.error[owner])
