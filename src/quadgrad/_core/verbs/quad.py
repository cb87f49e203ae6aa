"""Adaptive integration in one dimension, many integrals at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from quadgrad._core.eager import left_eager
from quadgrad._core.errors import PlanError
from quadgrad._core.gradient import GradientMode, Reuse
from quadgrad._core.keywords import names_ours
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.ranks import Ranks
from quadgrad._core.result import Result
from quadgrad._core.verbs.door import open_ranks
from quadgrad._core.verbs.inputs import check_limit_gradient, check_options, prepare
from quadgrad._core.verbs.integrate import integrate

__all__ = ["quad"]


@names_ours
@left_eager
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
    group: Any = None,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Result:
    """Integrate f from a to b, adaptively and differentiably, for each element of a batch.

    Parameters
    ----------
    f : callable
        ``f(x, *args)``, elementwise over the batch: ``x`` has any shape and each argument arrives
        broadcastable against it; returns a tensor of that shape, optionally followed by *event*
        dimensions (a vector-valued integrand, whose components share their cells); a number is a constant.
        Tensors that are the same for the whole batch, such as a network, may be closed over and get their
        gradient too.
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
        ``Reuse`` the values that the gradient needs anyway serve as the check. See :class:`quadgrad.Integrator`.
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
    group : torch.distributed.ProcessGroup, optional
        Of ranks that all make this call with the same arguments, and share its batch: each integrates a part of it,
        and all get the same bits of the whole, the gradient included. Backward passes, too, are made by all. For
        integrands that are dear: cheap ones take no longer on one process.
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
        limits: such an integral is negative; arguments that differ between the ranks of a group.
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
    Everything is computed in the promoted dtype of the floating tensors, and NumPy's numbers and arrays, among
    limits, arguments and breakpoints; Python numbers do not take part, and where there is nothing else torch's
    default dtype is taken, which the result tells when it is printed. Under ``torch.autocast`` only f is.

    In a function that ``torch.compile`` compiles, the call is a graph break and runs as it is; with
    ``fullgraph=True`` use :func:`quadgrad.replay`.

    Cells are bisected where the error sits until the summed error meets the tolerance (de Doncker's
    and Piessens' QAG strategy, for all integrals at once). The error of a cell comes from null rules
    (Berntsen and Espelid, *ACM TOMS* 17, 1991).

    **Double integrals.** f may call ``quad`` itself: x is a batch of nodes, and so are the limits of the inner
    integral and its arguments. What the inner integrals are off at each node is part of the outer error and of its
    status; their warnings become one. An integral inside another aims at a tenth of its tolerance, so that the
    outer one, which most often has the same, has room for what is left. Gradients, those of limits that depend on x
    too, go through both.

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

    A double integral, of exp(-p (x^2 + y^2)) over the quarter plane, and its derivative by p:

    >>> p = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    >>> inner = lambda x, p: qg.quad(lambda y, x, p: torch.exp(-p * (x**2 + y**2)), 0.0, float("inf"), (x, p)).value
    >>> value, error = qg.quad(inner, 0.0, float("inf"), (p,))
    >>> value.backward()
    >>> bool(abs(value - torch.pi / 4) < error < 1e-9), bool(abs(p.grad + torch.pi / 4) < 1e-9)
    (True, True)

    How likely two Poisson counts are, their rates being exponentially distributed. The second one is 1e-903, which
    no float can hold:

    >>> count = torch.tensor([400.0, 3000.0], dtype=torch.float64)
    >>> log_f = lambda rate, n: n * torch.log(rate) - 2 * rate - torch.lgamma(n + 1)
    >>> value, error = qg.quad(log_f, 0.0, float("inf"), (count,), log=True)
    >>> torch.allclose(value, -(count + 1) * torch.tensor(2.0, dtype=torch.float64).log())
    True
    """
    check_options(on_failure, chunk_size, gradient)
    check_limit_gradient(limit_gradient)
    if not (plan is None or isinstance(plan, IntervalPlan)):
        hint = ": pass result.plan" * isinstance(plan, Result)
        raise PlanError(f"a plan of quadgrad.quad is needed, not {type(plan).__name__}{hint}")
    with Ranks(group) as ranks:
        problem = prepare(
            f, a, b, args, points, vectorized, rule, (rtol, atol), budget=max_nfev, chunk_size=chunk_size,
            limit_gradient=limit_gradient,
        )  # fmt: skip
        open_ranks(
            ranks, problem, rtol=rtol, atol=atol, rule=rule, max_nfev=max_nfev, gradient=gradient, plan=plan,
            limit_gradient=limit_gradient, vectorized=vectorized, log=log, chunk_size=chunk_size,
        )  # fmt: skip
        return integrate(
            problem, (rtol, atol), gradient, plan=plan, jumps=jumps, log=log, on_failure=on_failure, ranks=ranks
        )
