"""What the sampling verbs do with a problem: sample, plan, replay, gradient, result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.closure import with_no_share_of
from quadgrad._core.errors import PlanError
from quadgrad._core.gradient import GradientMode
from quadgrad._core.gradient.mode import Differentiated, Primal
from quadgrad._core.gradient.samples import SampledPrimal
from quadgrad._core.integrand import Argument, Integrand
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.points import make_sequence
from quadgrad._core.points.sequence import is_whole
from quadgrad._core.problem import Problem
from quadgrad._core.ranks import Ranks
from quadgrad._core.rehearsal import current_rehearsal
from quadgrad._core.result import Result
from quadgrad._core.search.samples.importance import Training, judge_maps, train_maps
from quadgrad._core.search.samples.sampling import BLOCK, Sample, hold_memory, search_samples
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status
from quadgrad._core.verbs.door import lower, open_call
from quadgrad._core.verbs.noise import refuse_unequal
from quadgrad._core.verbs.report import did_fail, report, severed, warn_if_severed
from quadgrad._core.verbs.results import make_result

__all__ = ["FIRST", "MOST", "Guide", "integrate_samples", "make_sample", "refuse_log"]

Guide = Callable[[Problem], tuple[Argument, ...]]

FIRST = 2**11
"""Points of all replicates in the first round."""

MOST = 2**22
"""Points of all replicates at most, unless n says."""


LIMIT = 2**52
"""Points that can be told apart."""


def make_sample(
    problem: Problem, sequence: str, n: int | None, tolerances: tuple[float | None, float], replicates: int,
    confidence: float, seed: int | None, plan: Plan | None, ranks: Ranks,
) -> tuple[Sample, str]:  # fmt: skip
    """Return how to sample a problem, and a sentence if n was rounded up."""
    if not is_whole(replicates) or replicates < 2:
        raise ValueError(
            f"replicates={replicates!r} must be a whole number, 2 at least: their scatter is the error"
        )
    if not isinstance(confidence, Real) or not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence!r} must be between 0 and 1")
    if n is not None and (not is_whole(n) or n < 1):
        raise ValueError(f"n={n!r} must be a positive whole number of points, in all replicates together")
    n = None if n is None else int(n)
    if n is not None and n > LIMIT:
        raise ValueError(f"n={n:,} is more than 2**52: so many points cannot be told apart")
    kept, replicates = _check_plan(problem, plan), int(replicates)
    device, d = problem.limits.a.device, problem.limits.d
    if kept is not None:
        sequence, replicates = kept.sequence, kept.replicates
        seed = kept.seed if seed is None else seed
    points = make_sequence(sequence, d, 0 if seed is None else seed, replicates, device)
    fixed = n is not None and tolerances == (None, 0.0)
    wanted = -(-(MOST if n is None else n) // replicates)
    most = points.rounded(wanted)
    first = min(most, points.rounded(-(-FIRST // replicates)))
    if kept is not None and len(kept.n) and not fixed:
        first = min(most, max(first, int(kept.n.amax()) // 2))
    if fixed:
        first = most
    count = torch.full((problem.batch,), 0, dtype=torch.int64, device=device)
    fresh = PointsPlan(
        batch_shape=problem.batch_shape, sequence=sequence, d=d, seed=0 if seed is None else seed,
        replicates=replicates, n=count, grid=None if kept is None else kept.grid,
    )  # fmt: skip
    said = ""
    if n is not None and most * replicates != n:
        said = f" n={n:,} was rounded up to {most * replicates:,}: {replicates} replicates of {most:,} points."
    return Sample(fresh, first, most, fixed, confidence, ranks), said


def refuse_log(log: bool) -> None:
    """Say what to do instead of sampling a logarithm."""
    if log:
        raise ValueError(
            "log=True is for quad, which finds the peaks of each integral and scales it. For points pass f itself, "
            "divided by exp(c) with c near its largest logarithm: lambda x: torch.exp(log_f(x) - c), and add c to "
            "the value's logarithm"
        )


def _check_plan(problem: Problem, plan: Plan | None) -> PointsPlan | None:
    if plan is None:
        return None
    if not isinstance(plan, PointsPlan):
        raise TypeError(f"a plan of points is needed, as in quadgrad.qmc(...).plan, not {type(plan).__name__}")
    d = problem.limits.d
    if plan.d != d:
        raise PlanError(f"the plan has {plan.d} dimensions, the integral {d}")
    if plan.batch_shape not in ((), problem.batch_shape):
        raise PlanError(f"the plan's batch is {plan.batch_shape}, the call's {problem.batch_shape}")
    return plan


def integrate_samples(
    problem: Problem,
    gradient: GradientMode,
    sample: Sample,
    said: str,
    on_failure: Literal["warn", "raise", "ignore"],
    training: Training | None = None,
    guide: Guide | None = None,
) -> Result:
    """Sample what was checked and flattened; the options are those of :func:`quadgrad.qmc`.

    With ``training`` the points go through maps that are learnt first (:func:`quadgrad.vegas`). A ``guide`` returns
    further arguments for the integrand, which are found out before it is sampled.
    """
    with sample.ranks:
        return _share(problem, gradient, sample, said, on_failure, training, guide)


def _share(
    problem: Problem,
    gradient: GradientMode,
    sample: Sample,
    said: str,
    on_failure: Literal["warn", "raise", "ignore"],
    training: Training | None,
    guide: Guide | None,
) -> Result:
    outer = current_record()
    with InnerRecord() as inner, WithoutAutocast() as unaided:
        problem.integrand.function = unaided.restore(problem.integrand.function)
        problem.depth = inner.depth
        tolerances = (problem.tolerance.rtol, problem.tolerance.atol)
        run = current_rehearsal()
        with nullcontext() if run is None else run.thinking():
            problem, probe, lanes = open_call(problem, tolerances, None, False, sample.ranks)
        if lanes is not None:
            n = sample.plan.n.new_zeros(problem.batch)
            grid = sample.plan.grid
            grid = grid if grid is None or grid.shape[0] == 1 else grid.repeat(lanes.count, 1, 1)
            plan = replace(sample.plan, batch_shape=problem.batch_shape, n=n, grid=grid)
            sample = replace(sample, plan=plan)
            if training is not None and training.kept is not None and training.kept.shape[0] > 1:
                training = replace(training, kept=training.kept.repeat(lanes.count))
        result = _integrate(problem, probe, gradient, sample, said, training, guide)
    told = inner.failures or outer is not None or result.derivative is not None
    if run is None and (told or bool(did_fail(result.status).any())):
        report(result, inner, outer, on_failure)
    return lower(result, lanes)


def _integrate(
    problem: Problem, probe: Tensor, gradient: GradientMode, sample: Sample, said: str, training: Training | None,
    guide: Guide | None,
) -> Result:  # fmt: skip
    run = current_rehearsal()
    if run is not None:  # one of several that are compared: only in a replay is seen what f does
        problem.flowing, problem.chunk_size = True, None
    call = -1 if run is None else run.begin(problem.tolerance.eps**0.5)
    given = problem.integrand.arguments
    kept = None if run is None else run.found(call)
    if kept is None:
        if guide is not None:
            problem.integrand = _guided(problem, guide)
        sample, found, said = _search(problem, sample, said, training)
        if run is not None:
            run.keep(call, (sample, found, problem.integrand.arguments[len(given) :]))
    else:
        sample, found, more = kept
        problem.integrand = replace(problem.integrand, arguments=(*given, *more))
    primal = SampledPrimal(problem, found, sample)
    if run is None and problem.batch:
        warn_if_severed(severed(problem, probe))
    derived = gradient.apply(cast(Primal, primal)) if problem.flowing else Differentiated(found.value)
    value = derived.value
    if problem.flowing and problem.batch == 0 and not in_transform():
        value = with_no_share_of(probe, value)
    return make_result(problem, probe, found, value, derived, primal, said + _lost(found))


def _guided(problem: Problem, guide: Guide) -> Integrand:
    """Return the integrand with what a guide adds to its arguments."""
    with problem.outside() as plain:
        more = guide(plain)
    return replace(problem.integrand, arguments=(*problem.integrand.arguments, *more))


def _search(problem: Problem, sample: Sample, said: str, training: Training | None) -> tuple[Sample, Found, str]:
    """Return the sample, its maps learnt, what it gave, and what is said of it."""
    with problem.outside() as plain:
        hold_memory(sample.plan.n.device)
        if training is not None:
            sample = train_maps(plain, sample, training)
        found = search_samples(plain, sample)
        if training is not None:
            found, more = judge_maps(found, training, plain.pieces.empty)
            said += more
        if problem.flowing and plain.batch:
            some = min(plain.batch, plain.chunk_size or BLOCK)
            refuse_unequal(plain, plain.limits.inner_points(plain.batch)[None, :some], slice(0, some))
    return sample, found, said


def _lost(found: Found) -> str:
    """Say at how many points f was not finite, or that it was 0 at all, of the first integral where it was."""
    lost: Any = found.lost
    said = ""
    for i in (lost > 0).nonzero().flatten()[:1].tolist():
        said += f" f was NaN or infinite at {int(lost[i]):,} of {int(found.nfev[i]):,} points (integral {i})."
    unseen = (found.status == int(Status.MAX_NFEV)) & (found.error == 0.0)
    for i in unseen.nonzero().flatten()[:1].tolist():
        said += (
            f" f was 0 at all {int(found.nfev[i]):,} points (integral {i}): where it is not may lie between them."
        )
    return said
