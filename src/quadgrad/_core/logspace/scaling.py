"""Integrals of functions given by their logarithm, whose values would underflow or overflow.

Each component of each integral has a *shift*, so that the integral of ``exp(f - shift)`` is 1: search, replay and
the gradient modes see that integrand, whose shift is one more argument, and know nothing of logarithms. The
logarithm asked for is ``shift + log(1)``, where the 1 carries the derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.advice import Called, spread
from quadgrad._core.errors import IntegrandError
from quadgrad._core.estimates.null_rules import FLOOR, largest_component
from quadgrad._core.integrand import Argument, Integrand
from quadgrad._core.lanes import plain
from quadgrad._core.logspace.peaks import climb, log_of_sum
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align
from quadgrad._core.search.looks.wide import call_close, depth
from quadgrad._core.search.start import first_cells
from quadgrad._core.search.task import Found, replace_some
from quadgrad._core.search.tiles import search_tiles
from quadgrad._core.status import Status
from quadgrad._core.tolerance import Tolerance

__all__ = ["LogSearch", "attach_shift", "shift_on_plan", "take_logarithm"]

ROUNDING = 2.0
"""A value of log f is taken to be uncertain by this many eps times its magnitude."""

QUIET = 2.0**-6
"""Where that is a smaller part of the tolerance, search need not know of it."""

LEVEL = 4.0
"""Integrals are searched together whose values are as noisy as each other, but for this factor."""

AGAIN = 3
"""Searches more, at most, of integrals whose shift turns out to have been wrong."""

WRONG = 30.0
"""How far a shift was off at least if another search is to find something else."""


@dataclass(eq=False)  # frozen, the compiler of torch 2.11 would not make it
class _Exponential:
    """``exp(f - shift)``, the shift being the last argument."""

    function: Callable[..., Any]

    def __call__(self, x: Any, *args: Any) -> Any:
        *own, shift = args
        y = self.function(x, *own)
        if isinstance(x, Tensor) and not isinstance(y, Tensor):
            y = spread("the integrand", y, Called(self.function, x, own))
        if isinstance(y, Tensor):
            return torch.exp(y - shift)
        with np.errstate(over="ignore"):  # a function of one number; what overflows is told by its infinity
            return np.exp(np.asarray(y, dtype=np.float64) - np.asarray(shift))


def attach_shift(integrand: Integrand, shift: Tensor) -> Integrand:
    """Return the integrand ``exp(f - shift)`` for a shift of shape ``(batch, *event)``."""
    argument = Argument(shift, shared=False, element_ndim=shift.ndim - 1)
    arguments = (*integrand.arguments, argument)
    return replace(integrand, function=_Exponential(integrand.function), arguments=arguments)


def shift_on_plan(integrand: Integrand, plan: IntervalPlan, pieces: Pieces, block: int) -> Tensor:
    """Return the logarithm of the sum over a plan's nodes, without gradient; 0 where that is no finite number."""
    x, weights = plan.place(pieces)
    return _usable(log_of_sum(integrand, plan, x.detach(), weights.detach(), block))


def take_logarithm(value: Tensor, shift: Tensor) -> Tensor:
    """Return the logarithm of integrals of ``exp(f - shift)``: -inf of 0, without derivatives; NaN below."""
    positive = value > 0.0
    rest = torch.where(value.detach() == 0.0, -torch.inf, torch.nan)
    return torch.where(positive, shift + torch.where(positive, value, 1.0).log(), rest)


def refuse_other_than_logarithms(probe: Tensor) -> None:
    """Raise if f cannot be the logarithm of a positive function."""
    if probe.is_complex():
        raise IntegrandError(
            f"with log=True the integrand returns the logarithm of a positive function, which is real; it returned "
            f"{probe.dtype}"
        )
    if probe.dtype == torch.bool:
        raise IntegrandError(
            "with log=True the integrand returns the logarithm of a positive function; it returned "
            "torch.bool, of which "
            "that is torch.where(condition, 0.0, -torch.inf)"
        )


def refuse_descending(problem: Problem) -> None:
    """Raise if an integral has a negative value."""
    if problem.limits.ordered:
        return
    down = plain(problem.limits.b < problem.limits.a).expand(problem.batch).nonzero()
    index = tuple(int(i) for i in np.unravel_index(int(down[0, 0]), problem.batch_shape))
    where = f" at index {index}" if index else ""
    raise ValueError(
        f"log=True: limit a lies above limit b{where} ({down.shape[0]} of {problem.batch} do): such an integral is "
        "negative and has no logarithm. Swap the limits"
    )


class LogSearch:
    """The search of one call: finds shifts and cells.

    ``noise`` ``(batch,)`` is the relative rounding of the integrand with the shifts, because log f itself is
    rounded; ``seen`` ``(batch, *event)`` tells where f was not zero everywhere.
    """

    def __init__(self, problem: Problem, probe: Tensor) -> None:
        """Refuse what has no logarithm."""
        refuse_other_than_logarithms(probe)
        refuse_descending(problem)
        integrand = problem.integrand
        dtype, event = problem.limits.a.dtype, tuple(integrand.event or ())
        dtype = torch.promote_types(dtype, integrand.output_dtype or dtype)
        with problem.outside() as fixed:
            self.shift = torch.zeros((problem.batch, *event), dtype=dtype, device=fixed.limits.a.device)
            self.noise = self.shift.new_zeros(problem.batch)
            self.seen = self.shift > 0.0
        self.tolerance = problem.tolerance
        self.allowed = max(self.tolerance.rtol, self.tolerance.atol)

    def search(self, problem: Problem, plan: IntervalPlan | None) -> Found:
        """Search between limits and breakpoints; in what is found all integrals are 1, or 0."""
        found = self._search(problem, first_cells(problem, plan), plan is None)
        self.noise = self._rounding(self.shift)
        return replace(found, error=found.error + self.noise)

    def shifted(self, problem: Problem) -> Problem:
        """Return the problem whose integrals are 1, or 0."""
        return replace(problem, integrand=attach_shift(problem.integrand, self.shift))

    def finish(self, found: Found) -> tuple[Tensor, Tensor]:
        """Return error and status of the logarithms."""
        error = torch.where(found.error < 1.0, -torch.log1p(-found.error.clamp_max(1.0)), torch.inf)
        none = largest_component(self.seen.to(torch.int8)) == 0
        missed = largest_component((self.seen & (found.value == 0.0)).to(torch.int8)) > 0
        error = error.masked_fill(none & (found.error == 0.0), 0.0).masked_fill(missed, torch.inf)
        met, status = error <= self.allowed, found.status
        finished = status.masked_fill(status == int(Status.CONVERGED), int(Status.ROUNDOFF))
        near = finished == int(Status.ROUNDOFF)
        return error, torch.where(near & met, int(Status.CONVERGED), finished)

    def _search(self, task: Problem, first: IntervalPlan, fresh: bool) -> Found:
        """Search all integrals, and those whose shift was wrong again from the cells that were found."""
        peaks = climb(task, first)
        shift, nfev, self.seen = _usable(peaks.size), peaks.nfev, peaks.size > -torch.inf
        everyone = torch.ones_like(nfev, dtype=torch.bool)
        found = self._in_levels(task, peaks.first, shift, everyone, fresh and peaks.first is first)
        size, (found, shift) = peaks.size, _normalize(found, shift)
        for _ in range(AGAIN):
            missed = largest_component((self.seen & (found.value == 0.0)).to(torch.int8)) > 0
            lost = missed | found.error.isinf() | _is_beyond(shift, size)
            uneven = (found.error > self.allowed) & (found.status == int(Status.CONVERGED)) & ~lost
            if not bool((lost | uneven).any()):
                break
            cells = _take(found.plan, uneven)
            if bool(lost.any()):
                peaks = climb(task, _take(found.plan, lost))
                better, size = _usable(peaks.size), torch.where(align(lost, size), peaks.size, size)
                nfev, self.seen = nfev + peaks.nfev, self.seen | (peaks.size > -torch.inf)
                off = largest_component((better - shift).abs()) > WRONG
                lost = lost & (missed | (found.error.isinf() & off))
                shift = torch.where(align(lost, shift), better, shift)
                cells = cells.join(_take(peaks.first, lost))
            ask = lost | uneven
            if not bool(ask.any()):
                break
            again, other = _normalize(self._in_levels(task, cells, shift, ask, False), shift)
            found, shift = replace_some(found, again, ask), torch.where(align(ask, shift), other, shift)
        nfev = nfev + self._see_close(task, found.nfev + nfev)
        self.shift, beyond = shift, _is_beyond(shift, size)
        status = _unless_finite(task, found).masked_fill(beyond, int(Status.DIVERGENT))
        error = torch.where(beyond, found.error.clamp_min(1.0), found.error)
        return replace(found, error=error, status=status, nfev=found.nfev + nfev)

    def _see_close(self, task: Problem, nfev: Tensor) -> Tensor:
        """Look at what was zero so far, close to the ends of very wide pieces; return the calls of f."""
        count, calls = task.pieces.count, torch.zeros_like(nfev)
        none = ~self.seen.flatten(1).all(1) if self.seen.ndim > 1 else ~self.seen
        row = none.repeat_interleave(count).nonzero().squeeze(1)
        deep = depth(task, row)
        row, deep = row[deep > 0], deep[deep > 0]
        if not len(row):
            return calls
        owner = row // count
        calls.index_add_(0, owner, 2 * deep)
        afford = nfev + calls <= task.max_nfev
        row, deep, owner = (t[afford[owner]] for t in (row, deep, owner))
        if len(row):
            y, there = call_close(task, row, deep)
            seen = (align(there, y) & (y > -torch.inf)).any(0)
            index = owner.reshape(-1, *(1,) * (seen.ndim - 1)).expand(seen.shape)
            self.seen = self.seen | torch.zeros_like(self.seen).scatter_reduce(0, index, seen, "amax")
        # What was not looked for is not known to be zero.
        self.seen = self.seen | align(~afford, self.seen)
        return calls * afford

    def _in_levels(self, task: Problem, first: IntervalPlan, shift: Tensor, who: Tensor, whole: bool) -> Found:
        """Search integrals, which have these cells, together with those that are as noisy."""
        eps, noise = task.tolerance.eps, self._rounding(shift)
        level = torch.log2((noise / (FLOOR * eps)).clamp_min(1.0)).div(math.log2(LEVEL)).floor()
        level = torch.where(noise > QUIET * self.allowed, level, -1.0).to(torch.int64)
        scaled = replace(task, integrand=attach_shift(task.integrand, shift))
        found: Found | None = None
        for one in level[who].unique().tolist() or [-1]:
            coarse = eps * LEVEL ** max(0, one)
            loud = QUIET * self.allowed if one < 0 else min(LEVEL * FLOOR * coarse, 0.5 * self.allowed)
            tolerance = Tolerance(-math.expm1(loud - self.allowed), 0.0, coarse)
            mine = who & (level == one)
            part = first if bool(mine.all()) else _take(first, mine)
            start = None if whole and part is first else part
            again = search_tiles(replace(scaled, tolerance=tolerance), start)
            found = again if found is None else replace_some(found, again, mine)
        assert found is not None
        return found

    def _rounding(self, shift: Tensor) -> Tensor:
        """Return the relative error of exp(log f) that comes from the rounding of log f, shape ``(batch,)``."""
        return (ROUNDING * self.tolerance.eps) * largest_component(shift.abs())


def _unless_finite(task: Problem, found: Found) -> Tensor:
    """Return the status of all integrals; values that only a wrong scale has made infinite are told as a budget.

    Where peaks are too narrow to be reached, the scale is that of their feet, and exp overflows higher up.
    """
    lost = found.status == int(Status.NONFINITE)
    if not bool(lost.any()):
        return found.status
    cells = found.plan.take(lost[found.plan.owner] & found.plan.error.isinf())
    y = task.integrand(cells.place(task.pieces)[0], cells.owner).detach()
    bad = ~(y < torch.inf)  # NaN, too
    infinite = torch.zeros_like(lost).index_put(
        (cells.owner,), bad.transpose(0, 1).flatten(1).any(1), accumulate=True
    )
    return found.status.masked_fill(lost & ~infinite, int(Status.MAX_NFEV))


def _is_beyond(shift: Tensor, size: Tensor) -> Tensor:
    """Tell which integrals are far more than the sum over the nodes: extrapolated from what rounding has left."""
    return largest_component((shift - size).nan_to_num(0.0, 0.0, 0.0)) > WRONG


def _usable(size: Tensor) -> Tensor:
    """Return a scale that can be subtracted: 0 where there is none."""
    return size.nan_to_num(0.0, 0.0, 0.0)


def _normalize(found: Found, shift: Tensor) -> tuple[Found, Tensor]:
    """Return the same integrals, with the shifts for which they are 1; errors are those of the worst component."""
    positive = (found.value > 0.0) & found.value.isfinite()
    other = shift + torch.where(positive, found.value, 1.0).log()
    scale = torch.exp(shift - other)  # not 1 / value: the shift is rounded
    value = torch.where(positive, found.value * scale, 0.0)
    most = largest_component(torch.where(positive, scale, 0.0))
    most = torch.where(most > 0.0, most, 1.0)
    plan = replace(found.plan, error=found.plan.error * most[found.plan.owner])
    return Found(plan, value, found.error * most, found.status, found.nfev), other


def _take(plan: IntervalPlan, who: Tensor) -> IntervalPlan:
    """Return the cells of some integrals."""
    return plan.take(who[plan.owner])
