"""Adaptive integration in one dimension, many integrals at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor

from quadgrad._torch import forward_mode_open, in_transform
from quadgrad.errors import IntegrandError
from quadgrad.gradient import Differentiated, GradientMode, Primal, Reuse
from quadgrad.gradient.parameters import Parameters, declare
from quadgrad.gradient.pathwise import choose_treatment
from quadgrad.integrand import Integrand
from quadgrad.lanes import export, somewhere
from quadgrad.limits import Limits
from quadgrad.maps import Pieces, frame
from quadgrad.nesting import InnerRecord, current_record
from quadgrad.plan import Plan
from quadgrad.replay import BLOCK
from quadgrad.result import Result
from quadgrad.rules import Rule, get_rule
from quadgrad.search.adaptive import search
from quadgrad.search.cells import BESIDE
from quadgrad.search.estimate import largest_component
from quadgrad.search.record import make_plan
from quadgrad.search.single import search_single, suits_single
from quadgrad.search.start import first_cells
from quadgrad.search.task import Found, Task
from quadgrad.search.tiles import search_tiles
from quadgrad.tolerance import epsilon, make_tolerance
from quadgrad.verbs.autocast import without_autocast
from quadgrad.verbs.inputs import Call, prepare
from quadgrad.verbs.report import offending_point, report, warn_if_severed

__all__ = ["quad"]

MAX_NFEV = 30_000


def quad(
    f: Callable[..., Any],
    a: Any,
    b: Any,
    args: Any = (),
    *,
    points: Any = None,
    rtol: float | None = None,
    atol: float = 0.0,
    rule: str = "gk21",
    max_nfev: int | None = None,
    gradient: GradientMode = Reuse(),
    params: Any = None,
    plan: Plan | None = None,
    limits: Literal["auto", "boundary", "pathwise"] = "auto",
    vectorized: bool = True,
    chunk: int | None = None,
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
    rtol, atol : float, optional
        Converged means ``error <= max(atol, rtol * abs(value))``. ``rtol`` is the square root of the
        dtype's eps unless given.
    rule : str
        ``"gk15"`` to ``"gk61"`` (Gauss-Kronrod) or ``"cc<n>"`` (open Clenshaw-Curtis).
    max_nfev : int, optional
        Most nodes to spend on one integral, 30,000 unless given.
    gradient : GradientMode
        How the value is differentiated, see :class:`quadgrad.Reuse` and :class:`quadgrad.Resolve`.
    params : Tensor, torch.nn.Module, or a sequence or mapping of them, optional
        The tensors that f closes over, for gradient modes that differentiate f itself.
    plan : Plan, optional
        Cells to start from, of an earlier result. They are re-checked and refined where needed.
    limits : {"auto", "boundary", "pathwise"}
        What a derivative with respect to a limit differentiates: the boundary alone, or the nodes
        moving with it. ``"auto"`` takes the boundary, except where f is not finite there.
    vectorized : bool
        False if f accepts one Python float at a time.
    chunk : int, optional
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
        Limits that are NaN, shapes that do not broadcast, unusable tolerances or options.
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
    """
    if torch.compiler.is_compiling():  # search cannot be traced: one graph break instead of many
        call_eagerly = cast("Callable[..., Result]", torch.compiler.disable(quad))
        return call_eagerly(
            f, a, b, args, points=points, rtol=rtol, atol=atol, rule=rule, max_nfev=max_nfev, gradient=gradient,
            params=params, plan=plan, limits=limits, vectorized=vectorized, chunk=chunk, on_failure=on_failure,
        )  # fmt: skip
    _check_options(limits, on_failure, chunk, gradient)
    outer = current_record()
    with InnerRecord() as inner, without_autocast() as restore:
        call = prepare(restore(f), a, b, args, points, vectorized)
        declared = declare(params)
        result, failed = _integrate(
            call, get_rule(rule), (rtol, atol), max_nfev, gradient, declared, plan, limits, chunk
        )
    if failed or inner.failures or outer is not None or result.derivative is not None:
        report(result, inner, outer, on_failure)
    return result


def _check_options(limits: str, on_failure: str, chunk: int | None, gradient: Any) -> None:
    for name, given, known in (
        ("limits", limits, ("auto", "boundary", "pathwise")),
        ("on_failure", on_failure, ("warn", "raise", "ignore")),
    ):
        if given not in known:
            raise ValueError(f"{name}={given!r} is not one of {', '.join(map(repr, known))}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk!r} must be a positive number of nodes")
    if not isinstance(gradient, GradientMode):
        raise TypeError(f"gradient={gradient!r} must be a gradient mode such as quadgrad.Reuse()")


def _integrate(
    call: Call,
    rule: Rule,
    tolerances: tuple[float | None, float],
    max_nfev: int | None,
    gradient: GradientMode,
    parameters: Parameters,
    plan: Plan | None,
    limits_mode: Literal["auto", "boundary", "pathwise"],
    chunk: int | None,
) -> tuple[Result, bool]:
    """Return the integrals, and whether any failed."""
    limits, fixed = call.limits, call.limits.detach()
    pieces = fixed.pieces()
    integrand, probe = call.integrand.probe(_inner_point(fixed))
    warn_if_severed(integrand, limits, probe)
    tolerance = make_tolerance(*tolerances, epsilon(integrand.call_dtype, probe.dtype))
    budget = _budget(max_nfev, rule, pieces)
    block = chunk or max(1, BLOCK // max(1, probe.numel()))
    tile = max(1, call.batch) if chunk is None else chunk
    task = Task(integrand, pieces, rule, tolerance, budget, block, tile, call.batch)
    with torch.no_grad():
        if plan is None and suits_single(task):
            found = search_single(task)
        elif call.batch > tile:
            found = search_tiles(task, call.batch_shape, plan)
        else:
            found = search(task, first_cells(pieces, call.batch_shape, call.batch, rule, plan))
    made = make_plan(found, pieces, call.batch_shape, rule)
    status, nfev = export(found.status), export(found.nfev)
    failed = bool(status if call.batch == 1 else status.any())
    value, primal = _oriented_value(found, fixed, failed), None
    outcome = Differentiated(value)
    if _wants_gradient(probe, limits):
        _refuse_noise(integrand, made, fixed)
        treatment = choose_treatment(integrand, made, limits, call.sources, limits_mode)
        primal = Primal(
            integrand, made, limits, value, treatment, parameters, tolerance.eps, budget, chunk, call.given,
            call.sources,
        )  # fmt: skip
        outcome = gradient.apply(primal)
        _refuse_disagreement(outcome.value, value, found.error)
        value = outcome.value
    shape = call.batch_shape
    result = Result(
        value.reshape(shape + tuple(value.shape[1:])),
        found.error.reshape(shape),
        status.reshape(shape),
        nfev.reshape(shape),
        made,
        offending_point(integrand, made, fixed, status) if failed else "",
        outcome.derivative,
        None if in_transform() else primal,
    )
    return result, failed


def _oriented_value(found: Found, limits: Limits, failed: bool) -> Tensor:
    """Return the value with the sign of the limits' order, NaN where f was not finite."""
    value = limits.orient(found.value)
    if failed:
        unknown = found.error.isinf().reshape(-1, *(1,) * (value.ndim - 1))
        value = value.masked_fill(unknown, torch.nan)
    return value


def _inner_point(limits: Limits) -> Tensor:
    """Return an interior point of the first integral, away from the middle, where singularities like to be."""
    a, b = (end if end.shape == (1,) else end[:1] for end in (limits.a, limits.b))
    if a.numel() == 0:
        return a.new_full((1,), 0.4375)
    if not limits.infinite:
        return torch.lerp(a, b, 0.4375)
    lower, upper = torch.minimum(a, b), torch.maximum(a, b)
    zero = torch.zeros_like(lower)
    layout = frame(Pieces(lower, upper, 1, limits.infinite), slice(0, 1), zero, zero + 1.0)
    return layout.nodes(zero + 0.4375, slice(0, 1))[0]


def _budget(max_nfev: int | None, rule: Rule, pieces: Pieces) -> int:
    least = (rule.nodes.size + BESIDE) * pieces.count
    if max_nfev is None:
        return max(MAX_NFEV, 4 * least)
    if max_nfev < least:
        raise ValueError(f"max_nfev={max_nfev} is less than the first round of {rule.name} needs: {least} nodes")
    return max_nfev


def _wants_gradient(probe: Tensor, limits: Limits) -> bool:
    """Whether derivatives may be asked of the result; transforms and forward mode work without grad mode."""
    if in_transform() or forward_mode_open():
        return True
    return torch.is_grad_enabled() and (probe.requires_grad or any(mark.requires_grad for mark in limits.marks))


def _refuse_noise(integrand: Integrand, plan: Plan, limits: Limits) -> None:
    """Call f twice at the same nodes."""
    if len(plan) == 0:
        return
    dtype = limits.a.dtype
    layout = frame(limits.pieces(), plan.row[:1], plan.start[:1].to(dtype), plan.stop[:1].to(dtype))
    with torch.no_grad():
        x, _ = layout.nodes(plan.tau.to(dtype), slice(0, 1))
        once, again = (integrand(x, plan.owner[:1]).detach() for _ in range(2))
    differs = (once - again).abs() > torch.finfo(dtype).eps ** 0.5 * once.abs()
    if bool(somewhere(differs).any()):
        raise IntegrandError(_NOISY)


def _refuse_disagreement(replayed: Tensor, searched: Tensor, error: Tensor) -> None:
    gap = largest_component((replayed.detach() - searched).abs())
    agrees = (gap <= error) | error.isinf()  # a NaN agrees with nothing
    if bool(somewhere(~agrees).any()):
        raise IntegrandError(_NOISY)


_NOISY = (
    "the integrand is not deterministic: called again at the same nodes it gave other values than before. Switch "
    "dropout off (module.eval()), draw random numbers before the call and pass them in args"
)
