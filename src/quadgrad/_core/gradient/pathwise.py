"""Which limits and breakpoints are differentiated along the nodes' paths instead of at the boundary.

Where f is not finite at a limit, its value there is no derivative. If the singularity moves with the
limit, the nodes may be differentiated; if it stays, the derivative is infinite and differentiated
nodes give meaningless finite numbers. The cell that touches the limit tells the two apart: only in
the first case does the rule agree with itself on the derivative there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quadgrad._core._torch import carries_derivative, forward_mode_open, in_transform, leaves_behind, tangent_of
from quadgrad._core.errors import IntegrationWarning, warn
from quadgrad._core.estimates.sums import weighted_sums
from quadgrad._core.gradient.boundary import Treatment, carries_gradient, singular_marks
from quadgrad._core.integrand import Integrand
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.limits import Limits
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import total
from quadgrad._core.rules import get_rule

__all__ = ["choose_treatment"]

DECAY = 0.999
"""Largest ratio of neighbouring terms of a series towards an end that is taken for decay."""

AGREEMENT = 1e-3
"""Largest null rule of a trusted derivative, relative to the derivative or to the mean of abs(f)."""


def choose_treatment(problem: Problem, plan: IntervalPlan) -> Treatment | None:
    """Decide for each limit and breakpoint of a problem."""
    integrand, limits, mode = problem.integrand, problem.limits, problem.limit_gradient
    if mode == "boundary" or not any(carries_gradient(mark) for mark in limits.marks):
        return None
    no = torch.zeros((plan.batch,), dtype=torch.bool, device=limits.a.device)
    singular = singular_marks(integrand, limits, plan.batch)
    if mode == "pathwise":
        finite = (plain(mark).isfinite() & carries_gradient(mark) | no for mark in limits.marks)
        return Treatment(tuple(finite), (no,) * len(singular), singular)
    if not any(bool(mask.any()) for mask in singular):
        return None
    pathwise, endless = list(singular), [no] * len(singular)
    for i, mask in enumerate(singular):
        if carries_derivative(limits.marks[i]) and bool(mask.any()):
            trusted = _trusted(integrand, plan, limits, i, mask, problem.sources[i])
            pathwise[i], endless[i] = mask & trusted, mask & ~trusted
    places = ("limit a", "limit b", *("a breakpoint",) * (len(endless) - 2))
    names = [name for name, mask in zip(places, endless, strict=True) if bool(mask.any())]
    if names:
        warn(
            f"the derivative with respect to {' and '.join(dict.fromkeys(names))} is infinite, or too hard to "
            "tell: f is not finite there, and its singularity stays where it is or is too strong to be followed",
            IntegrationWarning,
        )
    return Treatment(tuple(pathwise), tuple(endless), singular)


def _trusted(
    integrand: Integrand, plan: IntervalPlan, limits: Limits, index: int, mask: Tensor, source: Tensor | None
) -> Tensor:
    """Tell where the nodes' derivative with respect to one mark can be trusted, shape ``(batch,)``."""
    fixed = limits.detach()
    mark, here = limits.marks[index], fixed.marks[index]
    marks = list(fixed.marks)
    marks[index] = torch.where(mask, mark, here)
    with torch.enable_grad():
        value, null, noise, before, last = _sums(integrand, plan, limits.with_marks(tuple(marks)), fixed, here)
        judged = (value, null, before, last)
        if mark.requires_grad and not (in_transform() or forward_mode_open()):
            slopes = _slopes_behind(tuple(part * mask for part in judged), mark.expand(plan.batch))
        else:
            shape = (plan.batch,) if source is None else plan.batch_shape
            column = None if source is None or index < 2 else index - 2
            slopes = [_slope(part, mark if source is None else source, column, shape) for part in judged]
    if any(slope is None for slope in slopes):
        return torch.ones_like(mask)
    total_slope, null_slope, before_slope, last_slope = (plain(s).abs() for s in slopes if s is not None)
    span = (plain(fixed.b) - plain(fixed.a)).abs()
    mean = torch.where(span.isfinite(), plain(value) / span.clamp_min(torch.finfo(span.dtype).tiny), 0.0).abs()
    agrees = torch.maximum(null_slope, plain(noise)) <= AGREEMENT * torch.maximum(total_slope, mean)
    # Forward mode may ask for several directions at once, each in a lane of its own.
    return (agrees & (last_slope <= DECAY * before_slope)).reshape(-1, plan.batch).all(0)


def _sums(
    integrand: Integrand, plan: IntervalPlan, moving: Limits, fixed: Limits, here: Tensor
) -> tuple[Tensor, ...]:
    """Return each integral, and from the cells that touch ``here`` what tells whether its slope can be trusted.

    That is the first null rules, the slope's rounding error, and, where cells are extrapolated, the last two terms
    of the series towards the end instead. A singularity that moves with the limit is differentiated as a difference
    of two large terms, in x and in the parameter; what rounding leaves of it is eps times the size of the first.
    """
    mesh, rule = moving.pieces(), get_rule(plan.rule)
    nulls, shares = (torch.from_numpy(t).to(plan.weight) for t in (rule.nulls[:2].sum(0), rule.shares[-2:]))
    functionals = torch.cat((plan.weight[None], nulls[None], shares))
    x, factor = mesh.lay_out(plan).nodes(plan.tau)
    y = integrand(x, plan.owner)
    y = y.abs() if y.is_complex() else y
    y = y.flatten(2).sum(2) if y.ndim > 2 else y
    value, null, before, last = weighted_sums(functionals, y, factor)
    noise = torch.zeros_like(value)
    if x.requires_grad and y.requires_grad:
        (steepness,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        noise = fixed.rounding.eps * weighted_sums(plan.weight[None], steepness.detach().abs(), factor.detach())[0]
    near = fixed.pieces().touches(plan, here.expand(plan.batch).index_select(0, plan.owner))
    series = torch.zeros_like(near)
    series = series if plan.extrapolated is None else series.index_fill(0, plan.extrapolated, True)
    even, series = near & ~series, near & series
    parts = torch.stack((value, null * even, noise, before * series, last * series), dim=1)
    return total(parts, plan.owner, plan.batch).unbind(1)


def _slopes_behind(values: tuple[Tensor, ...], mark: Tensor) -> list[Tensor]:
    """Return the derivative of integrals by their own marks, with everything else that moves with the mark.

    What moves with it is what was computed from the same leaves. With J the derivative of the marks by the leaves
    and g that of a value's sum, J g is returned, divided by the square of J's row sums: for marks that are
    (views of) a leaf that is the leaf's gradient.
    """
    leaves = leaves_behind(mark)
    seed = torch.zeros_like(mark, requires_grad=True)
    back = torch.autograd.grad(mark, leaves, seed, create_graph=True, materialize_grads=True)

    def forward(directions: Sequence[Tensor]) -> Tensor:
        total = sum(((b * d).sum() for b, d in zip(back, directions, strict=True)), seed.new_zeros(()))
        return torch.autograd.grad(total, seed, retain_graph=True)[0]

    rows = forward([torch.ones_like(leaf) for leaf in leaves])
    rows = torch.where(rows == 0.0, 1.0, rows)
    pulled = (torch.autograd.grad(v.sum(), leaves, retain_graph=True, materialize_grads=True) for v in values)
    return [forward(each) / rows**2 for each in pulled]


def _slope(value: Tensor, source: Tensor, column: int | None, shape: tuple[int, ...]) -> Tensor | None:
    """Return the derivative of each integral's ``value`` by its own entry of ``source``, if known, ``(batch,)``.

    Breakpoints share one source, along whose last dimension they stand.
    """
    if forward_mode_open():
        tangent = tangent_of(value)
        if tangent is not None:
            return tangent
    if not source.requires_grad or not value.requires_grad:
        return None
    (slope,) = torch.autograd.grad(value.sum(), source, retain_graph=True, materialize_grads=True)
    slope = slope if column is None else slope[..., column]
    return slope.expand(shape).reshape(-1)
