"""The first look at a call: f is called once, and lanes of ``vmap`` are made part of the batch.

Below the door there is one batch, whatever transforms surround the call; :func:`lower` gives the lanes their
results.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import (
    carries_derivative,
    forward_mode_open,
    in_differentiation,
    in_transform,
    without_derivatives,
)
from quadgrad._core.errors import IntegrandError
from quadgrad._core.integrand import Argument, Captured, Integrand
from quadgrad._core.lanes import Lanes, plain
from quadgrad._core.plans.base import Plan
from quadgrad._core.problem import BLOCK, Problem
from quadgrad._core.ranks import Ranks
from quadgrad._core.result import Result
from quadgrad._core.search.kernel.opening import open_native
from quadgrad._core.tolerance import epsilon, make_tolerance
from quadgrad._core.verbs.mixing import refuse_mixing
from quadgrad._core.verbs.wrapped import refuse_wrapped

__all__ = ["lower", "open_call", "open_ranks"]


def open_call(
    problem: Problem, tolerances: tuple[float | None, float], jumps: Callable[..., Any] | None, alone: bool,
    ranks: Ranks | None = None, kept: bool = False,
) -> tuple[Problem, Tensor, Lanes | None]:  # fmt: skip
    """Return the problem knowing f's output, what f returned, and the lanes that were joined to the batch.

    A single integral that is ``alone``, to be searched once, is opened by the nodes of its first cell. Ranks that
    share the call look whether f is one that they can share. With a plan that was ``kept`` f was looked at before.
    """
    if ranks is not None and not ranks.alone:
        with refuse_wrapped(problem.integrand.function, jumps):
            opened = open_call(problem, tolerances, jumps, False)
        ranks.refuse_other_values(opened[1])
        return opened
    opened, index = None, 0
    if alone and problem.batch_shape == () and not in_transform():
        opened = open_native(problem.integrand, problem.pieces, problem.rule)
    if opened is not None:
        problem.integrand, problem.opening = opened
        probe = opened[1].y
    else:
        # Under a transform that differentiates, derivatives are asked for anyway: the probe need not have any.
        with without_derivatives() if in_differentiation() else nullcontext():
            problem.integrand, probe, index = _probe(problem)
    reached = [probe, *problem.limits.marks]
    if jumps is not None:
        problem.jumps, moving = _probe_jumps(problem, jumps)
        reached.append(moving)
    problem.flowing = _is_differentiated(reached)
    eps = epsilon(problem.integrand.call_dtype, probe.dtype)
    if eps != problem.tolerance.eps:
        problem.tolerance = make_tolerance(*tolerances, eps)
    if not in_transform():
        if not kept:
            refuse_mixing(problem, probe, index)
        return problem, probe, None
    lanes = Lanes.of([*reached, *(a.value for a in problem.integrand.arguments)])
    return (problem if lanes is None else _join(problem, lanes)), probe, lanes


def _probe(problem: Problem) -> tuple[Integrand, Tensor, int]:
    """Call f at an inner point of the first integral, and return its number with what f returned.

    A function of one number may raise where a tensor would be infinite: over nothing it is not called.
    """
    integrand, limits, index = problem.integrand, problem.limits, 0
    if not (integrand.vectorized or in_transform() or problem.batch == 0):
        wide = (limits.a != limits.b).nonzero()[:1].flatten().tolist()
        if not wide and not _is_differentiated([*limits.marks]):
            return *integrand.unprobed(), index
        index = wide[0] if wide else 0
    return *integrand.probe(limits.part(index, index + 1).detach().inner_points(1), index), index


def open_ranks(group: Any, problem: Problem, **options: Any) -> Ranks:
    """Return the ranks of a group (or these, if they are given), on which everything passed is the same."""
    ranks = group if isinstance(group, Ranks) else Ranks(group)
    if not ranks.alone:
        with ranks:
            ranks.check_device(problem.limits.a.device)
            given = {f"args[{i}]": a.value for i, a in enumerate(problem.integrand.arguments)}
            marks = dict(zip(("a", "b"), problem.limits.marks, strict=False))
            points = {f"points[..., {i}]": mark for i, mark in enumerate(problem.limits.marks[2:])}
            options |= {"the grad mode": torch.is_grad_enabled(), "the batch shape": problem.batch_shape}
            plan = options.pop("plan", None)
            if isinstance(plan, Plan):  # what it holds, not what it prints
                options |= {f"plan.{name}": value for name, value in plan.contents.items()}
            ranks.refuse_differences(given | marks | points | options)
    return ranks


def _is_differentiated(reached: list[Tensor]) -> bool:
    """Whether derivatives may be asked of what depends on these tensors."""
    if forward_mode_open() or in_differentiation():  # without grad mode, too
        return True
    look = carries_derivative if in_transform() else attrgetter("requires_grad")
    return torch.is_grad_enabled() and any(map(look, reached))


def _probe_jumps(problem: Problem, jumps: Callable[..., Any]) -> tuple[Integrand, Tensor]:
    """Call the function given as ``jumps`` once, and refuse one that has no zeros."""
    if not callable(jumps):
        raise TypeError(f"jumps must be a function g(x, *args), not {type(jumps).__name__}")
    name = getattr(jumps, "called", "function given as jumps")
    g = replace(problem.integrand, function=jumps, vectorized=True, event=None, output_dtype=None, name=name)
    g, probe = g.probe(problem.limits.part(0, 1).detach().inner_points(1))
    if probe.is_complex() or not probe.is_floating_point():
        raise IntegrandError(
            f"jumps returned {probe.dtype}: its zeros are looked for, so it must be real and pass through 0, "
            "such as x - s where the integrand asks for x > s"
        )
    return g, probe


def _join(problem: Problem, lanes: Lanes) -> Problem:
    """Return the problem of all lanes' integrals."""
    batch = problem.batch

    def join(tensor: Tensor, share: bool = False) -> Tensor:
        """Turn ``(batch or 1, *rest)`` in each lane into ``(lanes * batch, *rest)``, unless all may share one."""
        if share and tensor.shape[0] == 1 and not lanes.concern(tensor):
            return tensor
        return lanes.lift(tensor).expand(-1, batch, *tensor.shape[1:]).flatten(0, 1)

    def join_argument(argument: Argument) -> Argument:
        value = argument.value
        if not isinstance(value, Tensor) or (argument.shared and not lanes.concern(value)):
            return argument
        if value.ndim == 0:
            value = value.reshape(1)
        return replace(argument, value=join(value), shared=False)

    limits = problem.limits
    marks = tuple(join(mark, limits.shareable) for mark in limits.marks)
    joined = problem.between(limits.with_marks(marks), (None,) * len(marks))
    inner = joined.limits.detach().inner_points(lanes.count * batch)

    def join_integrand(integrand: Integrand) -> Integrand:
        integrand = replace(integrand, arguments=tuple(map(join_argument, integrand.arguments)))
        if batch == 0:
            return integrand
        y = integrand.with_still_arguments()(inner[None, :1], slice(0, 1))
        if not lanes.concern(y):
            return integrand
        return replace(
            integrand, captured=Captured(lanes, batch, plain(inner[::batch]), problem.chunk_size or BLOCK)
        )

    integrand, jumps = join_integrand(problem.integrand), problem.jumps and join_integrand(problem.jumps)
    shape = lanes.sizes + problem.batch_shape
    return replace(joined, integrand=integrand, jumps=jumps, batch_shape=shape, given=())


def lower(result: Result, lanes: Lanes | None) -> Result:
    """Return what belongs to each lane; the plan is that of all of them."""
    if lanes is None:
        return result

    def parts(found: Any, *names: str) -> dict[str, Tensor]:
        rank = len(lanes.sizes)
        return {name: lanes.lower(getattr(found, name).flatten(0, rank - 1)) for name in names}

    derivative = result.derivative
    if derivative is not None:
        derivative = replace(derivative, **parts(derivative, "error", "status", "nfev"))
    return replace(result, derivative=derivative, **parts(result, "value", "error", "status", "nfev"))
