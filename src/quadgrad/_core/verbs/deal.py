"""A batch that ranks share: each integrates some parts of it, and all get the whole result, to the same bits.

In the backward pass each rank differentiates the parts that it has integrated, whose graphs it has kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import forward_mode_open
from quadgrad._core.closure import Closure, stand_in, uncompiled
from quadgrad._core.errors import IntegrandError
from quadgrad._core.gradient import GradientMode, Primal
from quadgrad._core.gradient.shared import SharedGradient, gradient_of
from quadgrad._core.integrand import Integrand
from quadgrad._core.nesting import InnerRecord
from quadgrad._core.plans.cells import CellPlan
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.ranks import PARTS, Ranks
from quadgrad._core.recompute import with_gradient
from quadgrad._core.result import Result
from quadgrad._core.search.start import refuse_misfit
from quadgrad._core.search.task import Found
from quadgrad._core.verbs.report import warn_if_severed

__all__ = ["integrate_dealt"]

_HIDDEN = (
    "f closes over a tensor that requires grad and hands it to code that torch does not show, or meets it at some "
    "points only: with group, pass it in args"
)

IntegratePart = Callable[[Problem, GradientMode, Any, int], Result]
"""Integrates a part of the batch, which begins with the integral of the given number."""


def integrate_dealt(
    problem: Problem, gradient: GradientMode, plan: CellPlan | None, ranks: Ranks, integrate: IntegratePart
) -> Result:
    """Return all integrals of a problem, each computed by one of the ranks; all say the same of them."""
    if forward_mode_open():
        raise ValueError("group: in forward mode the integrals have to be computed by one process")
    batch = problem.batch
    count = min(batch, PARTS)
    spans = [(batch * i // count, batch * (i + 1) // count) for i in range(count)]
    inputs = _Inputs.of(problem) if problem.flowing else _Inputs([], [], [])
    mode = gradient.with_tensors(inputs.closed, inputs.stand_ins)
    kept: dict[int, tuple[list[Tensor], Tensor]] = {}

    def compute(number: int) -> tuple[Result, InnerRecord]:
        low, high = spans[number]
        part, variables, closure = inputs.part(problem, low, high)
        with InnerRecord(kept_by_a_verb=True) as record, uncompiled:
            result = integrate(part, mode, _part_of_plan(plan, problem, low, high), low)
        if not closure.explains(result.value, variables):
            raise IntegrandError(_HIDDEN)
        if problem.flowing:
            kept[number] = ([*variables, *inputs.stand_ins], result.value)
        return _to(replace(result, value=result.value.detach(), primal=None), "cpu"), record

    found = ranks.deal(count, compute)
    _report([record for _, record in found])
    whole = _to(_join([result for result, _ in found], problem.batch_shape), problem.limits.a.device)
    if not problem.flowing:
        return whole
    return _attach(whole, problem, inputs, SharedParts(ranks, spans, kept))


@dataclass(frozen=True)
class _Inputs:
    """What the integrals may be differentiated with respect to.

    ``places`` are those of limits and arguments that require grad, among :func:`_tensors`; ``closed`` is what f
    closes over, in the order in which all ranks meet it at the first point, ``stand_ins`` what takes its place.
    """

    places: list[int]
    closed: list[Tensor]
    stand_ins: list[Tensor]

    @staticmethod
    def of(problem: Problem) -> _Inputs:
        """Find what f and the function given as ``jumps`` close over."""
        places = [i for i, t in enumerate(_tensors(problem)) if isinstance(t, Tensor) and t.requires_grad]
        closure = Closure()
        x = problem.limits.detach().inner_points(problem.batch)[None, :1]
        with torch.enable_grad(), uncompiled:
            given = [stand_in(_tensors(problem)[i], connected=False) for i in places]
            seen = _seen_by(_with_tensors(problem, places, given), closure)
            for integrand in filter(None, (seen.integrand, seen.jumps)):
                if not closure.explains(integrand(x, slice(0, 1)), given):
                    raise IntegrandError(_HIDDEN)
            return _Inputs(places, closure.tensors, [stand_in(t, connected=False) for t in closure.tensors])

    def part(self, problem: Problem, low: int, high: int) -> tuple[Problem, list[Tensor], Closure]:
        """Return the problem of some integrals, made of stand-ins; these; and what shows f some of them."""
        part = replace(problem.part(low, high), sources=(None,) * len(problem.sources), given=(), opening=None)
        if problem.jumps is not None:
            part.jumps = problem.jumps.part(low, high)
        with torch.enable_grad():
            variables = [stand_in(_tensors(part)[i], connected=False) for i in self.places]
        closure = Closure(zip(self.closed, self.stand_ins, strict=True))
        return _seen_by(_with_tensors(part, self.places, variables), closure), variables, closure


def _tensors(problem: Problem) -> list[Any]:
    """Return limits and arguments."""
    limits = problem.limits
    return [limits.a, limits.b, limits.points, *(a.value for a in problem.integrand.arguments)]


def _is_dealt(problem: Problem, place: int) -> bool:
    """Whether a tensor among these has a row for each integral."""
    if place < 3:
        return _tensors(problem)[place].shape[0] > 1
    return not problem.integrand.arguments[place - 3].shared


def _with_tensors(problem: Problem, places: Sequence[int], tensors: Sequence[Tensor]) -> Problem:
    """Return the problem with others of the same values at these places among its tensors."""
    each = _tensors(problem)
    for place, tensor in zip(places, tensors, strict=True):
        each[place] = tensor
    a, b, points, *values = each

    def with_arguments(integrand: Integrand) -> Integrand:
        pairs = zip(integrand.arguments, values, strict=True)
        return replace(integrand, arguments=tuple(replace(argument, value=value) for argument, value in pairs))

    limits = replace(problem.limits, a=a, b=b, **({} if points is None else {"points": points}))
    return replace(
        problem, limits=limits,
        integrand=with_arguments(problem.integrand), jumps=problem.jumps and with_arguments(problem.jumps),
    )  # fmt: skip


def _seen_by(problem: Problem, closure: Closure) -> Problem:
    """Return the problem with functions whose closed-over tensors are replaced."""

    def around(integrand: Integrand) -> Integrand:
        return replace(integrand, function=closure.around(integrand.function))

    return replace(problem, integrand=around(problem.integrand), jumps=problem.jumps and around(problem.jumps))


def _part_of_plan(plan: CellPlan | None, problem: Problem, low: int, high: int) -> CellPlan | None:
    """Return the cells of some integrals."""
    if plan is None:
        return None
    if isinstance(plan, IntervalPlan):
        refuse_misfit(plan, problem.batch_shape)
    if plan.batch_shape == ():
        return plan
    first, last = (int(torch.searchsorted(plan.row, owner * plan.pieces)) for owner in (low, high))
    return plan.part(slice(first, last), low, high)


def _report(records: list[InnerRecord]) -> None:
    """Enter what the parts had to say, as if they had been one."""
    inner = InnerRecord.current()
    for record in records:
        inner.note(record.noise, record.failures)
        inner.jump = inner.jump or record.jump
    if not inner.jump:
        warn_if_severed(list(next(filter(None, (record.severed for record in records)), ())))


def _join(parts: list[Result], shape: tuple[int, ...]) -> Result:
    """Return one result of integrals that follow each other."""

    def join(each: Sequence[Any], *names: str) -> dict[str, Tensor]:
        joined = {name: torch.cat([getattr(one, name) for one in each]) for name in names}
        return {name: t.reshape(shape + t.shape[1:]) for name, t in joined.items()}

    derivatives = [part.derivative for part in parts if part.derivative is not None]
    derivative = None
    if derivatives:
        plan = CellPlan.join_batches([one.plan for one in derivatives], shape)
        derivative = replace(derivatives[0], plan=plan, **join(derivatives, "error", "status", "nfev"))
    plan = CellPlan.join_batches([part.plan for part in parts], shape)
    detail = next((part.detail for part in parts if part.detail), "")
    return replace(
        parts[0], plan=plan, detail=detail, derivative=derivative,
        **join(parts, "value", "error", "status", "nfev"),
    )  # fmt: skip


def _to(result: Result, device: torch.device | str) -> Result:
    """Return the result on another device."""

    def move(one: Any, *names: str) -> Any:
        return replace(one, plan=one.plan.to(device), **{name: getattr(one, name).to(device) for name in names})

    if result.derivative is not None:
        result = replace(result, derivative=move(result.derivative, "error", "status", "nfev"))
    return move(result, "value", "error", "status", "nfev")


@dataclass(frozen=True)
class SharedParts:
    """The parts of this rank, of all there are: what each was made of, and its value, whose graph is kept."""

    ranks: Ranks
    spans: list[tuple[int, int]]
    kept: dict[int, tuple[list[Tensor], Tensor]]

    def graph(self, number: int, given: Sequence[Tensor], connected: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Return the gradient of a part; see :class:`SharedGradient`. All that is given but the weights is kept."""
        variables, value = self.kept[number]
        with torch.enable_grad():
            weight = stand_in(given[-1], connected=False)
        pairs = [(value, weight)] if value.requires_grad else []
        return [*variables, weight], gradient_of(pairs, variables, connected)


def _attach(whole: Result, problem: Problem, inputs: _Inputs, parts: SharedParts) -> Result:
    """Return the result with a value that is differentiable."""
    dealt = [_is_dealt(problem, place) for place in inputs.places] + [False] * len(inputs.closed) + [True]
    gradient = SharedGradient(parts.ranks, parts.spans, tuple(dealt), parts.graph, len(dealt) - 1)
    tensors = _tensors(problem)
    flat = whole.value.reshape(problem.batch, *problem.integrand.event or ())
    value = with_gradient(flat.clone(), gradient, (*(tensors[place] for place in inputs.places), *inputs.closed))
    value = value.reshape(whole.value.shape)
    found = Found(whole.plan, flat, whole.error.flatten(), whole.status.flatten(), whole.nfev.flatten())
    # What gradient_error needs to know of singular limits, zeros and logarithms is not gathered.
    known = problem.jumps is None and not any(mark.requires_grad for mark in problem.limits.marks)
    return replace(whole, value=value, primal=Primal(problem, found, flat) if known else None)
