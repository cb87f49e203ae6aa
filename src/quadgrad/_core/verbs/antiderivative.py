"""The integral from a to x as a function of x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from quadgrad._core.antiderivative.curve import Antiderivative, Curve
from quadgrad._core.antiderivative.places import Places
from quadgrad._core.antiderivative.refine import Refined, refine
from quadgrad._core.autocast import WithoutAutocast
from quadgrad._core.breakpoints.jumps import note_unmarked_jumps
from quadgrad._core.eager import left_eager
from quadgrad._core.gradient import Reuse
from quadgrad._core.keywords import names_ours
from quadgrad._core.nesting import InnerRecord, current_record
from quadgrad._core.problem import Problem
from quadgrad._core.rehearsal import current_rehearsal, decided, thinking
from quadgrad._core.result import Result
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status
from quadgrad._core.tolerance import real_dtype, returned_dtype
from quadgrad._core.verbs.door import lower, open_call
from quadgrad._core.verbs.inputs import check_options, prepare
from quadgrad._core.verbs.integrate import least_jump
from quadgrad._core.verbs.noise import refuse_noise
from quadgrad._core.verbs.report import report, severed, warn_if_severed
from quadgrad._core.verbs.solve import search
from quadgrad._core.verbs.trouble import offending_point

__all__ = ["antiderivative"]


@names_ours
@left_eager
def antiderivative(
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
    vectorized: bool = True,
    chunk_size: int | None = None,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Antiderivative:
    """Return F, the integral of f from a to x, as a function of x in [a, b], for each element of a batch.

    F is a polynomial on each cell of a plan: its values need no call of f.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` as for :func:`quadgrad.quad`.
    a, b : float or Tensor, shape ``batch`` (broadcast)
        Limits, possibly infinite; also ``a > b``.
    args : tuple
        Further arguments of f, as for :func:`quadgrad.quad`.
    points : Tensor or sequence, shape ``(*batch, k)``, optional
        Breakpoints, as for :func:`quadgrad.quad`.
    rtol, atol : float, optional
        Converged means that F is off by at most ``atol + rtol * max|F|`` at any x. ``rtol`` is the square root of
        the dtype's eps unless given. Where f keeps its sign F is accurate relative to itself, too, and its
        complement likewise, down to 1e-25 of the whole.
    rule : str
        ``"gk15"`` to ``"gk61"`` (Gauss-Kronrod) or ``"cc<n>"`` (open Clenshaw-Curtis): F has a degree of as many as
        the rule has nodes.
    max_nfev : int, optional
        Nodes to spend on one integral before its cells are refined no further, 30,000 unless given.
    vectorized : bool
        False if f accepts one Python float at a time.
    chunk_size : int, optional
        Nodes evaluated at a time.
    on_failure : {"warn", "raise", "ignore"}
        What to do where F does not reach its tolerance.

    Returns
    -------
    Antiderivative
        ``F(x)`` of shape ``broadcast(x, batch) + event``, ``F(x, complement=True)`` for the integral from x to b,
        ``F.inverse(y)`` where f does not change its sign; ``error``, ``status``, ``nfev`` and ``plan``.

    Raises
    ------
    ValueError, TypeError, IntegrandError, IntegrationError
        As :func:`quadgrad.quad` does.

    Warns
    -----
    IntegrationWarning
        F did not reach its tolerance, or a derivative with respect to a limit is infinite.
    SeveredGradientWarning
        An argument requires grad but f's output does not depend on it through torch.
    UnmarkedJumpWarning
        f jumps where nothing is marked, and derivatives are asked for.

    Notes
    -----
    The derivative by x is f(x), which is called when it is asked for. Where f depends on what requires grad, each
    F(x) calls f on the plan's nodes, and beside x, so that every value has a graph of its own, unless gradients are
    switched off. The derivative by parameters is that of the polynomials: as accurate as cells that were found for
    F are for it. Mixed derivatives are right up to the sixth order, those by x alone up to any.

    Cells are those of :func:`quadgrad.quad`, bisected until the highest coefficients of f on each are small; the
    polynomials interpolate f in the cell's own variable, which is the logarithm of the distance beside a singular
    end. Beyond the last node there the integral continues as a power of the distance, or a power times a logarithm.
    They are summed by Clenshaw's recurrence (*MTAC* 9, 1955).

    Examples
    --------
    The normal distribution function, its quantiles, and how a quantile moves with the probability:

    >>> import math, torch, quadgrad as qg
    >>> density = lambda x: torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    >>> u = torch.tensor([1e-11, 0.25, 0.5], dtype=torch.float64, requires_grad=True)
    >>> F = qg.antiderivative(density, -math.inf, torch.tensor(math.inf, dtype=torch.float64), rtol=1e-13)
    >>> x = F.inverse(u)
    >>> x.tolist()
    [-6.70602315..., -0.67448975..., ...]
    >>> x.sum().backward()
    >>> torch.allclose(u.grad, 1 / density(x))
    True
    """
    check_options(on_failure, chunk_size, Reuse())
    outer, rehearsed = current_record(), current_rehearsal() is not None
    with InnerRecord() as inner, WithoutAutocast() as unaided:
        problem = prepare(
            unaided.restore(f), a, b, args, points, vectorized, rule, (rtol, atol), budget=max_nfev,
            chunk_size=chunk_size,
        )  # fmt: skip
        with thinking():
            problem, probe, lanes = open_call(problem, (rtol, atol), None, alone=False)
        if rehearsed:  # one of several runs that are compared: only in a replay is seen what f does
            problem.flowing, problem.chunk_size = True, None
        found, refined, status, places, limits = decided(lambda: _find(problem, rehearsed), problem.tolerance.rtol)
        lost = [] if rehearsed else severed(problem, probe)
        if (problem.flowing or lost) and not rehearsed:
            least = least_jump(found, problem.tolerance)
            if not note_unmarked_jumps(problem, refined.values.plan, least) and lost:
                warn_if_severed(lost, called=f"({_somewhere(problem)})")
        failed = bool(status.any())
        detail = offending_point(problem, found, status) if failed else ""
    dtype = returned_dtype(problem.integrand.call_dtype, probe.dtype)
    signs = torch.stack((refined.rising, refined.falling), dim=1)
    sizes = (refined.error, refined.size)
    curve = Curve(problem, limits, refined.values, places, signs, *sizes, real_dtype(dtype), lanes)
    shape = problem.batch_shape
    each = (refined.height, refined.error, status, refined.nfev)
    height, error, status, nfev = (t.reshape(shape) for t in each)
    result = lower(Result(height, error, status, nfev, refined.values.plan, detail), lanes)
    if not rehearsed and (failed or inner.failures or inner.jump or outer is not None):
        report(result, inner, outer, on_failure)
    return Antiderivative(curve, result.error, result.status, result.nfev, result.plan, detail)


def _somewhere(problem: Problem) -> str:
    """Write a place that lies in all intervals, or dots."""
    places = problem.limits.detach().inner_points(problem.batch)
    return f"{float(places[0]):.4g}" if bool((places == places[0]).all()) else "..."


def _find(problem: Problem, rehearsed: bool) -> tuple[Found, Refined, Tensor, Places, Any]:
    """Return what search found and refined, how it ended, where its cells are, and the limits without gradient."""
    with problem.outside() as plain:
        found, refined = _search(plain)
        if problem.flowing and not rehearsed:
            refuse_noise(plain, refined.values.plan)
        status = _judge(plain, found, refined)
        return found, refined, status, Places.of(refined.values.plan, plain.pieces), plain.limits


def _search(problem: Problem) -> tuple[Found, Refined]:
    """Search the integral with half of the tolerance, and refine its cells with the other half."""
    tolerance = problem.tolerance
    tight = replace(tolerance, rtol=0.5 * tolerance.rtol, atol=0.5 * tolerance.atol)
    found = search(replace(problem, tolerance=tight), None)
    return found, refine(problem, found, (tolerance.rtol, tolerance.atol))


def _judge(problem: Problem, found: Found, refined: Refined) -> Tensor:
    """Return a status for each curve: it may be good enough where the integral over all of [a, b] is not."""
    tolerance, error, status = problem.tolerance, refined.error, found.status.reshape(-1)
    allowed = tolerance.atol + tolerance.rtol * refined.height
    senseless = (status == int(Status.NONFINITE)) | (status == int(Status.DIVERGENT)) | ~error.isfinite()
    spent = torch.where(refined.nfev >= problem.max_nfev, int(Status.MAX_NFEV), int(Status.ROUNDOFF))
    spent = torch.where(error.isfinite(), spent, int(Status.NONFINITE))
    unmet = torch.where(status == int(Status.CONVERGED), spent, status)
    return torch.where((error <= allowed) & ~senseless, int(Status.CONVERGED), unmet).to(status.dtype)
