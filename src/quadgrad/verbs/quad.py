"""Adaptive integration in one dimension, many integrals at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from quadgrad._torch import forward_mode_open, in_differentiation, in_transform
from quadgrad.errors import IntegrandError
from quadgrad.gradient import GradientMode, Reuse
from quadgrad.gradient.pathwise import choose_treatment
from quadgrad.gradient.reuse import replay_with_limits
from quadgrad.gradient.slivers import Treatment
from quadgrad.integrand import Integrand
from quadgrad.lanes import export, largest, somewhere
from quadgrad.limits import Limits
from quadgrad.maps import Pieces, frame
from quadgrad.nesting import current_record, open_record
from quadgrad.plan import Plan
from quadgrad.replay import BLOCK
from quadgrad.result import Result
from quadgrad.rules import Rule, get_rule
from quadgrad.search.adaptive import search
from quadgrad.search.estimate import FLOOR, largest_component
from quadgrad.search.recheck import Watch, combine, recheck, too_coarse
from quadgrad.search.start import first_cells
from quadgrad.search.task import Found, Task
from quadgrad.tolerance import Tolerance, epsilon, make_tolerance
from quadgrad.verbs.inputs import Call, prepare
from quadgrad.verbs.marks import Switches, note_unmarked_jumps
from quadgrad.verbs.report import offending_point, report, severed_arguments, warn_if_severed

__all__ = ["quad"]

MAX_NFEV = 50_000


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
    jumps : callable, optional
        ``g(x, *args)``, called as f is: its zeros in the interval are found for each integral, become
        breakpoints, and are differentiated by the implicit function theorem. Several functions are returned
        stacked along a trailing dimension. A torch function also where f is not vectorized. Where f is infinite
        at a zero, ``limits="pathwise"`` is needed too.
    rtol, atol : float, optional
        Converged means ``error <= max(atol, rtol * abs(value))``. ``rtol`` is the square root of the
        dtype's eps unless given.
    rule : str
        ``"gk15"`` to ``"gk61"`` (Gauss-Kronrod) or ``"cc<n>"`` (open Clenshaw-Curtis).
    max_nfev : int, optional
        Most nodes to spend on one integral, 50,000 unless given.
    gradient : GradientMode
        How the value is differentiated, see :class:`quadgrad.Reuse`.
    plan : Plan, optional
        Cells to start from, of an earlier result. They are re-checked and refined where needed; with
        ``Reuse`` the values that the gradient needs anyway serve as the check. See :class:`quadgrad.KeptPlan`.
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
    UnmarkedJumpWarning
        f jumps where nothing is marked, and derivatives are asked for; or a zero of ``jumps`` has none.

    Notes
    -----
    Everything is computed in the promoted dtype of the floating tensors among limits, arguments and breakpoints;
    Python numbers do not take part, and where there is no tensor torch's default dtype is taken.

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
    (tensor(0.5064, dtype=torch.float64, grad_fn=<ViewBackward0>), tensor(-0.4193, dtype=torch.float64))
    """
    _check_options(limits, on_failure, chunk, gradient)
    outer = current_record()
    with open_record() as inner:
        call = prepare(f, a, b, args, points, vectorized)
        result = _integrate(call, get_rule(rule), (rtol, atol), max_nfev, gradient, plan, limits, chunk, jumps)
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
    plan: Plan | None,
    limits_mode: Literal["auto", "boundary", "pathwise"],
    chunk: int | None,
    jumps: Callable[..., Any] | None,
) -> Result:
    inner = _inner_point(call.limits.detach())
    integrand, probe = call.integrand.probe(inner)
    tolerance = make_tolerance(*tolerances, epsilon(integrand.call_dtype, probe.dtype))
    block = chunk or max(1, BLOCK // max(1, probe.numel()))
    setting = _Setting(call, integrand, rule, tolerance, max_nfev, block, chunk)
    switches = None if jumps is None else Switches.open(call, jumps, inner, block)
    outcome = None
    if plan is not None and isinstance(gradient, Reuse):
        outcome = _replay_kept(setting, switches, plan, limits_mode, probe)
    outcome = outcome or _search_all(setting, switches, plan)
    limits, found, made, replayed = outcome.limits, outcome.found, outcome.plan, outcome.replayed
    fixed = limits.detach()
    status, nfev = export(found.status), export(found.nfev)
    failed = bool(status.any())
    lost = severed_arguments(integrand, limits, probe) if call.batch else []
    least = _least_jump(found, tolerance)
    asked = _requires_grad(probe, limits) or bool(lost) or in_differentiation() or forward_mode_open()
    if not (asked and note_unmarked_jumps(integrand, outcome.unseen, limits, least, block)):
        warn_if_severed(lost)
    value = _oriented_value(found, fixed, failed)
    if replayed is None and _wants_gradient(probe, limits):
        treatment = choose_treatment(integrand, made, limits, outcome.sources, limits_mode)
        replayed = _replay_found(setting, made, limits, value, found.error, treatment, gradient)
    value = value if replayed is None else replayed
    shape = call.batch_shape
    return Result(
        value.reshape(shape + tuple(value.shape[1:])),
        found.error.reshape(shape),
        status.reshape(shape),
        nfev.reshape(shape),
        replace(made, inspected=made.inspected or asked),
        offending_point(integrand, made, fixed, status) if failed else "",
    )


@dataclass(frozen=True)
class _Setting:
    """What stays the same however often a call searches."""

    call: Call
    integrand: Integrand
    rule: Rule
    tolerance: Tolerance
    max_nfev: int | None
    block: int
    chunk: int | None

    def start(self, marks: Limits, plan: Plan | None) -> tuple[Task, tuple[Tensor, Tensor, Tensor]]:
        """Return the task between the given limits and breakpoints, and its first cells."""
        call, pieces = self.call, marks.pieces()
        tile = max(1, call.batch) if self.chunk is None else self.chunk
        budget = _budget(self.max_nfev, self.rule, pieces)
        task = Task(self.integrand, pieces, self.rule, self.tolerance, budget, self.block, tile, call.batch)
        return task, first_cells(marks, pieces, call.batch_shape, call.batch, self.rule, plan)

    def search(self, marks: Limits, plan: Plan | None) -> tuple[Found, Plan]:
        """Search between the given limits and breakpoints."""
        with torch.no_grad():
            task, cells = self.start(marks, plan)
            found = search(task, *cells)
        return found, _make_plan(self.call, self.rule, task.pieces, found)


@dataclass(frozen=True)
class _Outcome:
    """What a call has found: with which limits, whose sources are the caller's tensors, and on which plan.

    ``unseen`` is the part of the plan that was not yet looked at for jumps; ``replayed`` the differentiable value
    if there is one already.
    """

    limits: Limits
    sources: tuple[Tensor | None, ...]
    found: Found
    plan: Plan
    unseen: Plan | None
    replayed: Tensor | None = None


def _search_all(setting: _Setting, switches: Switches | None, plan: Plan | None) -> _Outcome:
    """Search every integral, from the cells of a plan if one was passed."""
    limits, sources = setting.call.limits, setting.call.sources
    if switches is None:
        found, made = setting.search(limits.detach(), plan)
    else:
        switches, found, made = switches.search(setting.search, plan)
        limits, sources = switches.limits()
    return _Outcome(limits, sources, found, made, made)


def _replay_kept(
    setting: _Setting,
    switches: Switches | None,
    plan: Plan,
    limits_mode: Literal["auto", "boundary", "pathwise"],
    probe: Tensor,
) -> _Outcome | None:
    """Replay the plan that was passed, and check it by the values seen; None if all of it must be searched.

    For the integrals that are done it saves the search and the checks of what search found: where f is not
    deterministic, the values themselves show a large error. The others are searched from their cells.
    """
    call, chunk = setting.call, setting.chunk
    limits, sources = call.limits, call.sources
    if switches is not None:
        switches, fitted = switches.fit(plan)
        plan = plan if fitted is None else fitted
        limits, sources = switches.limits()
    if len(plan) == 0 or not _wants_gradient(probe, limits):
        return None
    task, cells = setting.start(limits.detach(), plan)
    row, start, stop = (export(t) for t in cells)
    used = replace(plan, batch_shape=call.batch_shape, row=row, start=start, stop=stop)
    treatment = choose_treatment(setting.integrand, used, limits, sources, limits_mode)
    watch = Watch(task)
    value = replay_with_limits(setting.integrand, used, limits, treatment, chunk, watch)
    found, done = recheck(watch, row, start, stop)
    if bool(done.all()):
        made = replace(_make_plan(call, setting.rule, task.pieces, found), inspected=plan.inspected)
        return _Outcome(limits, sources, found, made, None if plan.inspected else made, value)
    # What is infinite would give NaN where it is replaced; zeros of jumps have to be looked for on the new cells.
    easy = switches is None and treatment is None and bool(done.any())
    if not easy or bool(found.cell_error.isinf().any()):
        return None
    with torch.no_grad():
        mended = search(task, *too_coarse(found, task, ~done))
    refined = _make_plan(call, setting.rule, task.pieces, mended)
    known = _oriented_value(mended, limits.detach(), bool(export(mended.status).any()))
    again = _replay_found(setting, refined, limits, known, mended.error, treatment, Reuse())
    tail = (1,) * (value.ndim - 1)
    value = torch.where(done.reshape(-1, *tail), value, again)
    found = combine(found, mended, ~done, task.pieces.count)
    made = _make_plan(call, setting.rule, task.pieces, found)
    return _Outcome(limits, sources, found, made, refined if plan.inspected else made, value)


def _replay_found(
    setting: _Setting,
    plan: Plan,
    limits: Limits,
    known: Tensor,
    error: Tensor,
    treatment: Treatment | None,
    gradient: GradientMode,
) -> Tensor:
    """Return the value that search found, differentiable; refuse integrands that are not deterministic."""
    _refuse_noise(setting.integrand, plan, limits.detach())
    value = gradient.apply(setting.integrand, plan, limits, treatment, setting.chunk)
    _refuse_disagreement(value, known, error)
    return value


def _oriented_value(found: Found, limits: Limits, failed: bool) -> Tensor:
    """Return the value with the sign of the limits' order, NaN where f was not finite."""
    batch, tail = found.error.shape[0], (1,) * (found.value.ndim - 1)
    value = found.value * limits.orientation.expand(batch).reshape(batch, *tail)
    return value.masked_fill(found.error.isinf().reshape(batch, *tail), torch.nan) if failed else value


def _least_jump(found: Found, tolerance: Tolerance) -> Tensor:
    """Return the smallest jump that counts, times the interval's width: above noise and the integral's error."""
    record = current_record()
    inner = record.noise if record else 0.0
    size = found.floor / (FLOOR * max(tolerance.eps, inner / FLOOR))  # the integral of abs(f)
    return torch.maximum(size * max(tolerance.eps**0.5, 10.0 * inner), found.error)


def _inner_point(limits: Limits) -> Tensor:
    """Return an interior point of the first integral, away from the middle, where singularities like to be."""
    a, b = limits.a[:1], limits.b[:1]
    if a.numel() == 0:
        return a.new_full((1,), 0.4375)
    if not limits.infinite:
        return torch.lerp(a, b, 0.4375)
    lower, upper = torch.minimum(a, b), torch.maximum(a, b)
    zero = torch.zeros_like(lower)
    layout = frame(Pieces(lower, upper, 1, limits.infinite), slice(0, 1), zero, zero + 1.0)
    return layout.nodes(zero + 0.4375, slice(0, 1))[0]


def _budget(max_nfev: int | None, rule: Rule, pieces: Pieces) -> int:
    least = rule.nodes.size * pieces.count
    if max_nfev is None:
        return max(MAX_NFEV, 4 * least)
    if max_nfev < least:
        raise ValueError(f"max_nfev={max_nfev} is less than the first round of {rule.name} needs: {least} nodes")
    return max_nfev


def _make_plan(call: Call, rule: Rule, pieces: Pieces, found: Found) -> Plan:
    tensors = rule.tensors(torch.float64, found.row.device)
    return Plan(
        rule.name, call.batch_shape, pieces.count, pieces.infinite,
        export(found.row), export(found.start), export(found.stop), export(largest(found.cell_error)),
        export(tensors.nodes), export(tensors.weights),
    )  # fmt: skip


def _wants_gradient(probe: Tensor, limits: Limits) -> bool:
    """Whether derivatives may be asked of the result; transforms and forward mode work without grad mode."""
    if in_transform() or forward_mode_open():
        return True
    return _requires_grad(probe, limits)


def _requires_grad(probe: Tensor, limits: Limits) -> bool:
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
