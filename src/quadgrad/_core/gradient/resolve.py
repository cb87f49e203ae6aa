"""The searched gradient: a second plan, refined until the derivative meets a tolerance of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.estimates.null_rules import FLOOR, largest_component
from quadgrad._core.gradient.boundary import PLACED, doubtful_places
from quadgrad._core.gradient.columns import sampler_of
from quadgrad._core.gradient.derivative import Variables, as_reals, differentiate, output_count, variables_of
from quadgrad._core.gradient.layers import open_layers
from quadgrad._core.gradient.measure import Measured, measure
from quadgrad._core.gradient.mode import Differentiated, GradientMode, Primal, Scaled
from quadgrad._core.gradient.parameters import Parameters, declare, refuse_undeclared
from quadgrad._core.gradient.readings import reading_errors_by
from quadgrad._core.gradient.series import add_measured, measure_series
from quadgrad._core.gradient.singular_ends import choose_columns, draw_closer, largest_of_groups
from quadgrad._core.gradient.uncertain import uncertain_errors_by
from quadgrad._core.integrand import Argument, Integrand
from quadgrad._core.lanes import plain
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.result import Derivative
from quadgrad._core.search.noisy import is_noisy
from quadgrad._core.search.start import first_cells
from quadgrad._core.search.task import Found
from quadgrad._core.search.tiles import search_tiles
from quadgrad._core.status import Status
from quadgrad._core.tolerance import Tolerance, make_tolerance

__all__ = ["Resolve"]

SEARCHES = 4
"""Searches of the derivative at most: the size that its tolerance is relative to is known only afterwards."""

ZERO = 5.0
"""A derivative below this many floors (50 eps times the integral of its modulus) is zero to rounding."""

HIDDEN = 20.0
"""No error is searched below this many times the rounding of f and x: null rules take that for roughness.

20,000 peaks took 4300 nodes each with 5, and 840 with 20, at the same true errors.
"""

CONTRADICTED = 2.0
"""An integral is searched anew if it is off by so many times its error on the plan of its derivative."""

SEEN = 4.0
"""The same of what is inside f and knows how wrong it is."""


@dataclass(frozen=True, eq=False)
class Resolve(GradientMode):
    """Search the derivative to a tolerance of its own, on a plan of its own.

    Where a derivative is harder than its value (a narrow peak's by its width, that of ``x**-s`` by s) the plan of
    the value does not resolve it, and :class:`quadgrad.Reuse` is wrong by far more than ``rtol``. Here the
    derivative is integrated as a function of x, together with the value, and its cells are refined.

    What is differentiated: the tensors in ``args`` that require grad, and those that require grad among
    ``params=``, which declares what f closes over. Only these enter the norm: an argument that does not
    require grad costs nothing, however hard its derivative. Limits and breakpoints need no search.

    Each argument and each parameter tensor is a variable with units of its own. For each integral and variable,
    the error (the largest over its entries and over the event) meets ``max(atol, rtol * size)`` with
    the size of that integral's derivative with respect to it (likewise the largest), or what rounding leaves of it.
    An integral whose nodes follow a singular limit has no such derivative at fixed x; the value itself is
    searched to ``rtol`` there, the nodes are differentiated, and the reported error is infinite.

    The value is the one found by the first search. Second derivatives are those of the second plan's sum.

    Parameters
    ----------
    rtol, atol : float, optional
        Tolerance of the derivative; ``rtol`` is the square root of the dtype's eps unless given.
    params : Tensor, torch.nn.Module, or a sequence or mapping of them, optional
        The tensors that f closes over and whose derivative is wanted.

    Raises
    ------
    IntegrandError
        When called, if f depends on a tensor that is neither in ``args`` nor in ``params``.

    Examples
    --------
    A peak whose value is met with few cells; ``result.derivative`` says how far to trust its slope:

    >>> import torch, quadgrad as qg
    >>> e = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)
    >>> f = lambda x, e: 1 / (x**2 + e**2)
    >>> result = qg.quad(f, -1.0, 1.0, (e,), rtol=1e-3, gradient=qg.Resolve(rtol=1e-9))
    >>> result.value.backward()
    >>> exact = -2 * torch.atan(1 / e) / e**2 - 2 / (e * (1 + e**2))
    >>> bool(abs(e.grad / exact - 1) < 1e-9)
    True
    >>> result.derivative.names, result.derivative.converged
    (('args[0]',), tensor(True))
    """

    takes_series: ClassVar[bool] = True

    rtol: float | None = None
    atol: float = 0.0
    params: Any = None
    parameters: Parameters = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse tolerances that no integral can meet, and parameters that are none."""
        make_tolerance(self.rtol, self.atol, 1.0)
        # Once: an iterator such as ``module.parameters()`` would be empty in the next call.
        object.__setattr__(self, "parameters", declare(self.params))

    def with_tensors(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> Resolve:
        """Return the mode that declares others in the place of some tensors; see :class:`GradientMode`."""
        others = {id(one): other for one, other in zip(old, new, strict=True)}
        mode = replace(self, params=None)
        names, tensors = self.parameters.names, self.parameters.tensors
        object.__setattr__(mode, "parameters", Parameters(names, tuple(others.get(id(t), t) for t in tensors)))
        return mode

    def apply(self, primal: Primal) -> Differentiated:
        """Return the value with the derivatives of a second plan; see :class:`GradientMode`."""
        own = getattr(primal, "resolve", None)  # of geometries that know better
        if own is not None:
            return own(self.parameters, self.rtol, self.atol)
        assert isinstance(primal, Primal)
        integrand, limits, plan = primal.problem.integrand, primal.problem.limits, primal.plan
        if len(plan):  # else f is never called
            refuse_undeclared(integrand, self.parameters, limits.detach().inner_points(plan.batch)[:1])
        variables = variables_of(integrand, self.parameters)  # which outside of the transforms could not be told
        inner = uncertain_errors_by(primal, plan, variables)
        with primal.problem.outside() as plain_problem:
            search = _Search(self, primal, plain_problem, variables, inner)
            derivative = search.run()
        replayed = primal.replay(derivative.plan)
        derivative = self._with_readings(primal, derivative, variables)
        if inner is not None:
            derivative = self._with_uncertain(primal, derivative, variables, search.asked)
        still = replayed.detach()
        lost = plain(primal.value).isfinite() & ~plain(still).isfinite()
        lost = lost.flatten(1).any(1) if lost.ndim > 1 else lost
        if bool(lost.any()):
            # The derivative is not finite and was searched where f is not, either.
            derivative = _give_up(derivative, plan, lost)
            replayed = primal.replay(derivative.plan)
            still = replayed.detach()
        if primal.scaled is None:
            _reconcile(primal, derivative.plan, plain(still))
            return Differentiated(primal.value + (replayed - still), derivative)
        # A logarithm's derivative is that of the integral over the integral, both from the second plan.
        zero = still == 0.0
        value = torch.where(zero, primal.value, primal.value * (replayed / still.masked_fill(zero, 1.0)))
        return Differentiated(value, derivative)

    def _with_readings(self, primal: Primal, derivative: Derivative, variables: Variables) -> Derivative:
        """Add what limits and breakpoints that depend on the variables contribute: f is read beside them."""
        given = primal.problem.given or (None,) * len(primal.problem.integrand.arguments)
        tensors = (*(given[i] for i in variables.arguments), *variables.parameters.tensors)
        readings = reading_errors_by(primal, tensors) if tensors else None
        if readings is None:
            return derivative
        error = derivative.error + readings.reshape(derivative.error.shape).to(derivative.error.dtype)
        status = derivative.status
        lost = readings.isinf().any(1).reshape(status.shape) & (status == int(Status.CONVERGED))
        return replace(derivative, error=error, status=status.masked_fill(lost, int(Status.DIVERGENT)))

    def _with_uncertain(
        self, primal: Primal, derivative: Derivative, variables: Variables, asked: Tensor
    ) -> Derivative:
        """Add what integrals and wrapped functions inside f are off by."""
        inner = uncertain_errors_by(primal, derivative.plan, variables)
        assert inner is not None
        error = derivative.error + inner.reshape(derivative.error.shape).to(derivative.error.dtype)
        missed = (error.reshape(inner.shape) > asked).any(1).reshape(derivative.status.shape)
        missed &= derivative.status == int(Status.CONVERGED)
        return replace(derivative, error=error, status=derivative.status.masked_fill(missed, int(Status.ROUNDOFF)))


class _Search:
    """The search for one call's second plan, outside of all transforms.

    Its integrand has the derivative's columns, and f itself where nodes follow a limit. All tolerances
    become 1 by scaling, which depends on the integral and the variable.
    """

    def __init__(
        self, mode: Resolve, primal: Primal, problem: Problem, variables: Variables, inner: Tensor | None
    ) -> None:
        integrand, treatment = problem.integrand, primal.treatment
        self.primal, self.problem, self.variables = primal, problem, variables
        self.tolerance = make_tolerance(mode.rtol, mode.atol, primal.problem.tolerance.eps)
        still = torch.zeros(problem.batch, dtype=torch.bool, device=primal.plan.row.device)
        moving, self.singular = (treatment.moving, treatment.moving_singular) if treatment else (still, still)
        self.with_value = moving if primal.scaled is None else ~still
        derivative, sizes = differentiate(integrand, self.variables, mode.parameters), self.variables.sizes
        if bool(self.with_value.any()):
            derivative, sizes = _with_value(derivative, integrand), (*sizes, 1)
        groups = replace(self.variables, sizes=sizes).groups(output_count(integrand))
        self.groups = [columns.to(still.device) for columns in groups]
        self.integrand, self.rounding = derivative, self._rounding()
        self.inner, self.last_scale = inner, torch.zeros_like(self.rounding)
        self.asked = primal.plan.start.new_zeros((problem.batch, len(variables.names)))

    def run(self) -> Derivative:
        """Measure on a plan and refine it, until the derivative meets its tolerance or cannot."""
        plan, names = self.primal.plan, self.variables.names
        nfev = torch.zeros(plan.batch, dtype=torch.int64, device=plan.row.device)
        status = torch.zeros_like(nfev)
        if plan.batch == 0 or not self.integrand.event or not self.integrand.event[0]:
            return self._outcome(plan.start.new_zeros((plan.batch, len(names))), status, nfev, plan)
        problem = replace(self.problem, integrand=self.integrand, tolerance=self.tolerance, opening=None)
        sampler = sampler_of(self.integrand, self.problem.integrand, self.integrand, problem.block)
        series, beyond = plan.take(plan.terms != 0), None
        if len(series):  # whose cells are what they are: only those before them are refined
            beyond = measure_series(problem, series, sampler, self.groups)
            plan = replace(plan.take(plan.terms == 0), term=None)
        before: tuple[IntervalPlan, Tensor, Tensor] | None = None
        searches = 0
        while True:
            measured = measure(problem, plan, sampler, self.groups)
            measured = measured if beyond is None else add_measured(measured, beyond)
            if searches == 0 and before is None and not len(series):
                fresh = self._look_afresh(problem, measured, status)
                if fresh is not None:
                    seen, again = fresh
                    nfev = nfev + again.nfev
                    plan = plan.take(~seen[plan.owner]).join(again.plan.take(seen[again.plan.owner]))
                    measured = measure(problem, plan, sampler, self.groups)
            asked, noise = self._asked(measured)
            plan = choose_columns(plan, measured.ends, asked)
            now = (plan, self._error(measured, plan), asked)
            late = (now[1] / torch.maximum(asked, 2.0 * noise)).amax(1) > 1.0
            if searches == SEARCHES or not bool((late & (status == int(Status.CONVERGED))).any()):
                break
            before, searches = before or now, searches + 1
            plan = _come_closer(problem, plan, measured, asked, late, first=searches == 1)
            again = late[plan.owner]
            scale = 1.0 / torch.maximum(0.5 * asked, noise)
            self.last_scale = torch.where(late[:, None], scale, self.last_scale)
            scaled = _scaled(self.integrand, scale, self.groups)
            one = Tolerance(0.0, 1.0, self.tolerance.eps)
            refined = search_tiles(replace(problem, integrand=scaled, tolerance=one), plan.take(again))
            plan = plan.take(~again).join(refined.plan)
            nfev, status = nfev + refined.nfev, torch.maximum(status, refined.status)
        plan, error, asked = now if before is None else _better(before, now)
        error = error + self._of_places()
        self.asked, met = asked[:, : len(names)], (error / asked).amax(1) <= 1.0
        converged = int(Status.CONVERGED)
        status = torch.where(met, converged, status.masked_fill(status == converged, int(Status.ROUNDOFF)))
        status = self._of_rounding(status, plan)
        plan = plan.join(series) if len(series) else plan
        error = error[:, : len(names)].masked_fill(self.singular[:, None], torch.inf)
        return self._outcome(error, status, nfev, plan)

    def _look_afresh(self, problem: Problem, measured: Measured, status: Tensor) -> tuple[Tensor, Found] | None:
        """Look whether derivatives that seem to be zero are made of what the value's plan has not seen.

        As search does with integrals of which it has seen next to nothing, for each variable alone. Returns of
        which integrals something was found, and what.
        """
        none = (self._sizes(measured) <= self.rounding) & (self.rounding > 0.0)
        none &= (status == int(Status.CONVERGED))[:, None]
        none[:, len(self.variables.names) :] = False
        best: tuple[Tensor, Found] | None = None
        for j in none.any(0).nonzero()[:, 0].tolist():
            only = torch.zeros_like(self.rounding)
            only[:, j] = none[:, j].to(only.dtype)
            whole = first_cells(problem, None)
            whole = whole.take(none[whole.owner, j])
            task = replace(problem, integrand=_scaled(self.integrand, only, self.groups))
            found = search_tiles(task, whole)
            seen = none[:, j] & (largest_component(found.value.abs()) > self.rounding[:, j])
            if best is None:
                best = seen, found
            else:  # of several that hide the last one is refined further for the others
                seen_all, joined = seen | best[0], best[1]
                plan = joined.plan.take(~seen[joined.plan.owner]).join(found.plan.take(seen[found.plan.owner]))
                best = seen_all, replace(joined, plan=plan, nfev=joined.nfev + found.nfev)
        return best if best is None or bool(best[0].any()) else None

    def _of_places(self) -> Tensor | float:
        """Return what derivatives are off by because places that search has found are off: they jump there."""
        problem = self.problem
        if not problem.limits.found:
            return 0.0
        places, away = doubtful_places(problem.limits.detach(), problem.batch)
        y = self.integrand(torch.cat((places + away, places - away)), slice(0, problem.batch)).detach()
        gaps = (y[: len(places)] - y[len(places) :]).abs().nan_to_num(0.0, torch.inf)
        return largest_of_groups((gaps * (PLACED * away)[..., None]).sum(0), self.groups)

    def _of_rounding(self, status: Tensor, plan: IntervalPlan) -> Tensor:
        """Return how derivatives ended, of those that ran out of their budget which did for rounding."""
        late = status == int(Status.MAX_NFEV)
        if not bool(late.any()):
            return status
        asked = torch.where(late[:, None] & self.last_scale.isfinite(), self.last_scale, 0.0)
        scaled = _scaled(self.integrand, asked, self.groups)
        noisy = is_noisy(replace(self.problem, integrand=scaled), plan, late)
        return status.masked_fill(noisy, int(Status.ROUNDOFF))

    def _rounding(self) -> Tensor:
        """Return the rounding of a derivative that should be zero: that of the value over the variable's size.

        Where f does not depend on a variable, its derivative may be nothing but rounding, which has no other size.
        """
        primal, batch = self.primal, self.problem.batch
        size = largest_component(plain(primal.value).abs())
        columns = [self._size(self.problem.integrand.arguments[i]) for i in self.variables.arguments]
        columns += [plain(t).abs().amax().expand(batch) for t in self.variables.parameters.tensors]
        columns = [torch.where(column > 0.0, size / column, 0.0) for column in columns]
        columns += [torch.zeros_like(size)] * (len(self.groups) - len(columns))
        if not columns:
            return size.new_zeros((batch, 0))
        return (FLOOR * primal.problem.tolerance.eps * torch.stack(columns, dim=1)).nan_to_num(0.0, 0.0)

    def _size(self, argument: Argument) -> Tensor:
        """Return the largest modulus of each integral's argument, shape ``(batch,)``."""
        value = argument.value.abs()
        value = value.reshape(1, -1) if argument.shared else value[:, None].flatten(1)
        return (value.amax(1) if value.shape[1] else value.new_zeros(value.shape[0])).expand(self.primal.plan.batch)

    def _outcome(self, error: Tensor, status: Tensor, nfev: Tensor, plan: IntervalPlan) -> Derivative:
        shape, names = plan.batch_shape, self.variables.names
        error = error.reshape((*shape, len(names)))
        return Derivative(names, error, status.reshape(shape), nfev.reshape(shape), plan)

    def _error(self, measured: Measured, plan: IntervalPlan) -> Tensor:
        """Return the error of each integral and group; of a logarithm's derivatives with that of the integral."""
        error = measured.error_on(plan)
        if self.primal.scaled is None:
            return error
        size = self._sizes(measured)
        relative = error[:, -1:] / size[:, -1:].clamp_min(torch.finfo(size.dtype).tiny)
        with_divisor = torch.cat((error[:, :-1] + size[:, :-1] * relative, error[:, -1:]), dim=1)
        return with_divisor + self._rounded_logarithm(self.primal.scaled, measured)

    def _rounded_logarithm(self, scaled: Scaled, measured: Measured) -> Tensor:
        """Return what the rounding of log f does to the integral of each group."""
        return scaled.rounding[:, None] * (measured.floor / (FLOOR * self.primal.problem.tolerance.eps))

    def _sizes(self, measured: Measured) -> Tensor:
        """Return how large the integral of each group is, the largest of its columns."""
        return torch.stack([measured.value.index_select(1, g).abs().amax(1) for g in self.groups], dim=1)

    def _asked(self, measured: Measured) -> tuple[Tensor, Tensor]:
        """Return for each integral and group the error asked for, and that below which rounding hides it.

        No error is searched below the second: cells that cannot be improved would keep the search busy.
        """
        size = self._sizes(measured)
        asked = (self.tolerance.rtol * size).clamp_min(max(self.tolerance.atol, torch.finfo(size.dtype).tiny))
        scaled, noise = self.primal.scaled, measured.noise
        noise = noise if scaled is None else noise + self._rounded_logarithm(scaled, measured)
        zero = ZERO * torch.maximum(measured.floor, self.rounding)
        asked = torch.where(size <= zero, torch.maximum(asked, zero), asked)
        variables = len(self.variables.names)
        idle = torch.stack([self.singular] * variables + [~self.with_value] * (len(self.groups) - variables), dim=1)
        hidden = HIDDEN * noise
        if self.inner is not None:  # what is inside f is off by that, in no way that more nodes would mend
            hidden[:, :variables] = torch.maximum(hidden[:, :variables], SEEN * self.inner.nan_to_num(0.0, 0.0))
        return asked.masked_fill(idle, torch.inf), hidden


def _give_up(derivative: Derivative, plan: IntervalPlan, lost: Tensor) -> Derivative:
    """Return the derivative with the value's own ``plan`` for the integrals ``(batch,)`` that are lost."""
    searched, shape = derivative.plan, plan.batch_shape
    assert isinstance(searched, IntervalPlan)
    joined = searched.take(~lost[searched.owner]).join(plan.take(lost[plan.owner]))
    failed = lost.reshape(shape)
    return replace(
        derivative, plan=joined, error=derivative.error.masked_fill(failed[..., None], torch.inf),
        status=derivative.status.masked_fill(failed, int(Status.NONFINITE)),
    )  # fmt: skip


def _reconcile(primal: Primal, plan: IntervalPlan, value: Tensor) -> None:
    """Search anew, from a derivative's ``plan``, what has another ``value`` there than its error explains.

    A derivative may be looked at where the integral was not: a needle is all of it, and next to nothing of f.
    """
    found = primal.found
    apart = largest_component((value - primal.value).abs()) > CONTRADICTED * found.error
    apart &= found.status == int(Status.CONVERGED)
    if plan.term is not None or in_transform() or not bool(apart.any()):
        return
    with primal.problem.outside() as problem:
        again = search_tiles(replace(problem, opening=None), plan.take(apart[plan.owner]))
        oriented = problem.limits.detach().orient(again.value)
    found.nfev[apart] += again.nfev[apart]
    # A plan that suits the derivative may suit f less: unless the two contradict each other the first one stays.
    apart &= largest_component((again.value - found.value).abs()) > found.error + again.error
    primal.value[apart] = oriented[apart].to(primal.value.dtype)
    for name in ("value", "error", "status"):
        getattr(found, name)[apart] = getattr(again, name)[apart].to(getattr(found, name).dtype)
    found.plan = found.plan.take(~apart[found.plan.owner]).join(again.plan.take(apart[again.plan.owner]))


def _come_closer(
    problem: Problem, plan: IntervalPlan, measured: Measured, asked: Tensor, late: Tensor, first: bool
) -> IntervalPlan:
    """Part cells of late integrals: at ends that hide something, if halves tell of more, or if limits are off.

    The ``first`` search may settle what ends hide as well: beside those where a derivative is singular it lays
    logarithmic nodes. Parted before, x**s log x cost two to four times the nodes.
    """
    assert measured.layers is not None and measured.doubts is not None
    hidden, doubted = (
        (error > asked[plan.owner]).any(1) & late[plan.owner] for error in (measured.layers, measured.doubts)
    )
    if bool(hidden.any()) and not first:
        return open_layers(problem, plan, hidden)
    if bool(doubted.any()):
        return plan.take(~doubted).join(plan.take(doubted).halved())
    return draw_closer(plan, measured.ends, asked, late)


def _better(
    before: tuple[IntervalPlan, Tensor, Tensor], now: tuple[IntervalPlan, Tensor, Tensor]
) -> tuple[IntervalPlan, Tensor, Tensor]:
    """Return for each integral the plan with the smaller error, as a part of what is asked, with both of these.

    Search may lead into rounding: beside a strong singularity away from 0, fewer cells are better.
    """
    (old, first, earlier), (plan, error, asked) = before, now
    earlier = torch.minimum(earlier, asked)
    lost, fewer = (t.isinf().sum(1) for t in (first, error))
    # What is not finite on either plan says nothing about which is better.
    never = first.isinf() & error.isinf()
    was, now_is = (t.masked_fill(never, 0.0).amax(1) for t in (first / earlier, error / asked))
    was_better = torch.where(lost == fewer, was < now_is, lost < fewer)
    if not bool(was_better.any()):
        return now
    plan = old.take(was_better[old.owner]).join(plan.take(~was_better[plan.owner]))
    chosen = was_better[:, None]
    return plan, torch.where(chosen, first, error), torch.where(chosen, earlier, asked)


def _with_value(derivative: Integrand, integrand: Integrand) -> Integrand:
    """Append to the columns of each output of f the output itself."""
    own, count = len(integrand.arguments), output_count(integrand)
    core = replace(integrand, stack=None, captured=None)

    def function(x: Tensor, *args: Any) -> Tensor:
        y = as_reals(core.evaluate(x, list(args[:own])), 2)
        columns = derivative.function(x, *args).unflatten(2, (count, -1))
        return torch.cat((columns, y[..., None]), dim=3).flatten(2)

    (width,) = derivative.event or (0,)
    return replace(derivative, function=function, event=(width + count,))


def _scaled(integrand: Integrand, scale: Tensor, groups: list[Tensor]) -> Integrand:
    """Multiply the columns of each group by the scale of its integral, leaving out those of scale 0."""
    group_of = torch.cat([torch.full_like(columns, i) for i, columns in enumerate(groups)])
    group_of = group_of[torch.cat(groups).argsort()]

    def function(x: Tensor, *args: Any) -> Tensor:
        factor = args[-1].index_select(1, group_of)
        return torch.where(factor > 0.0, integrand.function(x, *args[:-1]) * factor, 0.0)

    weight = Argument(scale, shared=False, element_ndim=1)
    return replace(integrand, function=function, arguments=(*integrand.arguments, weight))
