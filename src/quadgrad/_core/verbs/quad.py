"""Adaptive integration in one dimension, many integrals at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.breakpoints.marks import note_unmarked_jumps
from quadgrad._core.breakpoints.unmarked import Least
from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.gradient import Differentiated, GradientMode, Primal, Reuse, Scaled
from quadgrad._core.gradient.pathwise import choose_treatment
from quadgrad._core.logspace.scaling import LogSearch, take_logarithm
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.plans.interval import Plan
from quadgrad._core.problem import Problem
from quadgrad._core.result import Result
from quadgrad._core.search.task import Found
from quadgrad._core.tolerance import Tolerance
from quadgrad._core.verbs.door import lower, open_call
from quadgrad._core.verbs.inputs import prepare
from quadgrad._core.verbs.noise import ReplacedRows, refuse_disagreement, refuse_noise
from quadgrad._core.verbs.report import offending_point, report, severed_arguments, warn_if_severed
from quadgrad._core.verbs.solve import oriented_value, replay_kept, search, search_all

__all__ = ["quad"]


def quad(
    f: Callable[..., Any],
    a: Any,
    b: Any,
    args: Any = (),
    *,
    points: Any = None,
    jumps: Callable[..., Any] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    rule: str = "gk21",
    max_nfev: int | None = None,
    gradient: GradientMode = Reuse(),
    plan: Plan | None = None,
    limit_gradient: Literal["auto", "boundary", "pathwise"] = "auto",
    vectorized: bool = True,
    log: bool = False,
    chunk_size: int | None = None,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Result:
    """Integrate f from a to b, adaptively and differentiably, for each element of a batch.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, elementwise over the batch: ``x`` has any shape and each argument arrives
        broadcastable against it; returns a tensor of that shape, optionally followed by *event*
        dimensions (a vector-valued integrand, whose components share their cells). Tensors that are the
        same for the whole batch, such as a network, may be closed over and get their gradient too.
    a, b : float or Tensor, shape ``batch`` (broadcast)
        Limits; infinite ones are allowed, also mixed within the batch.
    args : tuple
        Further arguments of f; tensors broadcast with the batch. Mark one that carries a vector or
        matrix for each element with :func:`quadgrad.element`.
    points : Tensor or sequence, shape ``(*batch, k)``, optional
        Breakpoints: places where f jumps, has a kink or is singular. NaN pads a ragged set. One that
        requires grad is differentiated, its jump included; one outside the interval is inert.
    jumps : callable, optional
        ``g(x, *args)``, called as f is: its zeros in the interval are found for each integral, become
        breakpoints, and are differentiated by the implicit function theorem. Several functions are returned
        stacked along a trailing dimension. A torch function also where f is not vectorized. Where f is infinite
        at a zero, ``limit_gradient="pathwise"`` is needed too.
    rtol, atol : float, optional
        Converged means ``error <= max(atol, rtol * abs(value))``. ``rtol`` is the square root of the
        dtype's eps unless given.
    rule : str
        ``"gk15"`` to ``"gk61"`` (Gauss-Kronrod) or ``"cc<n>"`` (open Clenshaw-Curtis).
    max_nfev : int, optional
        Most nodes to spend on one integral, 30,000 unless given.
    gradient : GradientMode
        How the value is differentiated, see :class:`quadgrad.Reuse` and :class:`quadgrad.Resolve`.
    plan : Plan, optional
        Cells to start from, of an earlier result. They are re-checked and refined where needed; with
        ``Reuse`` the values that the gradient needs anyway serve as the check. See :class:`quadgrad.KeptPlan`.
    limit_gradient : {"auto", "boundary", "pathwise"}
        What a derivative with respect to a limit differentiates: the boundary alone, or the nodes
        moving with it. ``"auto"`` takes the boundary, except where f is not finite there.
    vectorized : bool
        False if f accepts one Python float at a time.
    log : bool
        Whether f returns the logarithm of the integrand, -inf where that is 0, and the logarithm of the integral is
        wanted: likelihoods of -1e5, and needles among them, neither underflow nor get lost. ``value`` is the
        logarithm, ``error`` its absolute error, and converged means ``error <= max(atol, rtol)``: the relative
        tolerance of an integral is the absolute one of its logarithm. Each event component has its own scale. Of
        a zero integral it is -inf, with zero derivatives. An integral that is searched again, because its scale
        was wrong, may spend ``max_nfev`` anew.
    chunk_size : int, optional
        Nodes evaluated at a time, in the backward pass too; bounds memory.
    on_failure : {"warn", "raise", "ignore"}
        What to do when an integral does not converge.

    Returns
    -------
    Result
        ``value`` of shape ``batch + event``; ``error``, ``status`` and ``nfev`` of shape ``batch``;
        ``plan``. Half precision is summed, and returned, in float32.

    Raises
    ------
    ValueError
        Limits that are NaN, shapes that do not broadcast, unusable tolerances or options; with ``log``, descending
        limits: such an integral is negative.
    TypeError
        Complex limits.
    IntegrandError
        f breaks the calling contract or is not deterministic.
    IntegrationError
        An integral did not converge and ``on_failure="raise"``.

    Warns
    -----
    IntegrationWarning
        An integral did not converge, or a derivative with respect to a limit is infinite.
    SeveredGradientWarning
        An argument requires grad but f's output does not depend on it through torch.
    UnmarkedJumpWarning
        f jumps where nothing is marked, and derivatives are asked for; or a zero of ``jumps`` has none.

    Notes
    -----
    Everything is computed in the promoted dtype of the floating tensors among limits, arguments and breakpoints;
    Python numbers do not take part, and where there is no tensor torch's default dtype is taken. Under
    ``torch.autocast`` only f is.

    In a function that ``torch.compile`` compiles, the call is a graph break and runs as it is; with
    ``fullgraph=True`` use :func:`quadgrad.replay`.

    Cells are bisected where the error sits until the summed error meets the tolerance (de Doncker's
    and Piessens' QAG strategy, for all integrals at once). The error of a cell comes from null rules
    (Berntsen and Espelid, *ACM TOMS* 17, 1991).

    Examples
    --------
    Three integrals in one call, with derivatives:

    >>> import torch, quadgrad as qg
    >>> a = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    >>> value, error = qg.quad(lambda x, a: torch.exp(-a * x**2), 0.0, float("inf"), args=(a,))
    >>> value.sum().backward()
    >>> torch.allclose(value, (torch.pi / a).sqrt() / 2)
    True
    >>> torch.allclose(a.grad, -(torch.pi / a**3).sqrt() / 4)
    True

    How much of [0, 1] a wave spends above a level, and how that changes with the level. Where it crosses the
    level is found from ``jumps``:

    >>> level = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    >>> above = lambda x, t: (torch.sin(10 * x) > t).to(x.dtype)
    >>> value, error = qg.quad(above, 0.0, 1.0, args=(level,), jumps=lambda x, t: torch.sin(10 * x) - t)
    >>> value.backward()
    >>> value, level.grad
    (tensor(0.5064, dtype=torch.float64, grad_fn=<SelectBackward0>), tensor(-0.4193, dtype=torch.float64))

    How likely two Poisson counts are, their rates being exponentially distributed. The second one is 1e-903, which
    no float can hold:

    >>> count = torch.tensor([400.0, 3000.0], dtype=torch.float64)
    >>> log_f = lambda rate, n: n * torch.log(rate) - 2 * rate - torch.lgamma(n + 1)
    >>> value, error = qg.quad(log_f, 0.0, float("inf"), (count,), log=True)
    >>> torch.allclose(value, -(count + 1) * torch.tensor(2.0, dtype=torch.float64).log())
    True
    """
    if torch.compiler.is_compiling():  # search cannot be traced: one graph break instead of many
        call_eagerly = cast("Callable[..., Result]", torch.compiler.disable(quad))
        return call_eagerly(
            f, a, b, args, points=points, jumps=jumps, rtol=rtol, atol=atol, rule=rule, max_nfev=max_nfev,
            gradient=gradient, plan=plan, limit_gradient=limit_gradient, vectorized=vectorized, log=log,
            chunk_size=chunk_size, on_failure=on_failure,
        )  # fmt: skip
    _check_options(limit_gradient, on_failure, chunk_size, gradient)
    outer = current_record()
    with InnerRecord() as inner, WithoutAutocast() as unaided:
        problem = prepare(
            unaided.restore(f), a, b, args, points, vectorized, rule, budget=max_nfev,
            tolerances=(rtol, atol), chunk_size=chunk_size, limit_gradient=limit_gradient,
        )  # fmt: skip
        jumps = None if jumps is None else unaided.restore(jumps)
        alone = plan is None and jumps is None and not log
        problem, probe, lanes = open_call(problem, (rtol, atol), jumps, alone)
        result, failed = _integrate(problem, probe, gradient, plan, log)
    if failed or inner.failures or inner.jump or outer is not None or result.derivative is not None:
        report(result, inner, outer, on_failure, log)
    return lower(result, lanes)


def _check_options(limit_gradient: str, on_failure: str, chunk_size: int | None, gradient: Any) -> None:
    for name, given, known in (
        ("limit_gradient", limit_gradient, ("auto", "boundary", "pathwise")),
        ("on_failure", on_failure, ("warn", "raise", "ignore")),
    ):
        if given not in known:
            raise ValueError(f"{name}={given!r} is not one of {', '.join(map(repr, known))}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r} must be a positive number of nodes")
    if not isinstance(gradient, GradientMode):
        raise TypeError(f"gradient={gradient!r} must be a gradient mode such as quadgrad.Reuse()")


def _integrate(
    problem: Problem, probe: Tensor, gradient: GradientMode, plan: Plan | None, log: bool
) -> tuple[Result, bool]:
    """Return the integrals, and whether any failed."""
    logs, primal = LogSearch(problem, probe) if log else None, None
    if plan is not None and problem.flowing and gradient.replays_value and logs is None:
        primal = replay_kept(problem, plan)
    primal = primal or search_all(problem, logs.search if logs else search, plan)
    if logs:
        primal.problem = logs.shifted(primal.problem)
        primal.scaled = Scaled(primal.found.error, logs.noise)
    found, limits = primal.found, primal.problem.limits.detach()
    failed = bool(found.status.any())
    asked = _warn_of_lost_gradients(primal, probe)
    primal.value = oriented_value(found, limits)
    derived = _differentiate(primal, gradient) if problem.flowing else Differentiated(primal.value)
    value, error, status = derived.value, found.error, found.status
    if logs:
        value = take_logarithm(value, logs.shift)
        error, status = logs.finish(found)
        failed = bool(status.any())
    made, shape = primal.plan, problem.batch_shape
    result = Result(
        _unflatten(value, shape),
        _unflatten(error, shape),
        _unflatten(status, shape),
        _unflatten(found.nfev, shape),
        replace(made, inspected=True) if asked and not made.inspected else made,
        offending_point(primal.problem, made, status) if failed else "",
        derived.derivative,
        primal if problem.flowing and not in_transform() else None,
    )
    return result, failed


def _unflatten(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return what has one entry for each integral in the shape of the batch."""
    if not shape:
        return values[0]
    return values if len(shape) == 1 else values.reshape(shape + tuple(values.shape[1:]))


def _differentiate(primal: Primal, gradient: GradientMode) -> Differentiated:
    """Return the value as a differentiable tensor, and what a mode says of the derivative."""
    if primal.replayed is not None:
        return Differentiated(primal.replayed)
    problem, searched, error = primal.problem, primal.value, primal.found.error
    with problem.outside() as plain:
        refuse_noise(plain, primal.plan)
    primal.treatment = choose_treatment(problem, primal.plan)
    # What was turned around or put on another scale is not what a replay sums up.
    if primal.scaled is None and searched is primal.found.value and problem.chunk_size is not None:
        primal.rows = ReplacedRows(searched, error)
    derived = gradient.apply(primal)
    primal.rows = None
    refuse_disagreement(derived.value, searched, error, problem.block)
    if primal.scaled is None and not in_transform():
        primal.value = derived.value.detach()  # search's value is held no longer
    return derived


def _warn_of_lost_gradients(primal: Primal, probe: Tensor) -> bool:
    """Tell what the gradient lacks, a dependence on an argument or a jump; return whether one was asked for."""
    problem = primal.problem
    lost = severed_arguments(problem.integrand, problem.limits, probe) if problem.batch else []
    if not (problem.flowing or lost):
        return False
    least = _least_jump(primal.found, problem.tolerance)
    if not note_unmarked_jumps(problem, primal.uninspected, least):
        warn_if_severed(lost)
    return True


def _least_jump(found: Found, tolerance: Tolerance) -> Least:
    """Return the smallest jump that counts: above noise and the integral's error."""
    record = current_record()
    noise = max(tolerance.eps**0.5, 10.0 * record.noise if record else 0.0)
    return lambda owner: torch.maximum(noise * largest_component(found.value[owner].abs()), found.error[owner])
