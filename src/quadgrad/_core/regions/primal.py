"""What was found over what functions cut out of boxes, as a differentiable sum; and how far off its gradient is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quadgrad._core._torch import forward_mode_open, in_transform
from quadgrad._core.gradient.derivative import variables_of
from quadgrad._core.gradient.mode import Differentiated
from quadgrad._core.gradient.parameters import Parameters, refuse_undeclared
from quadgrad._core.plans.cut import CutPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align, total
from quadgrad._core.regions.mesh import CAUTION, LEAST, cut_cells
from quadgrad._core.regions.recursion import Cut, Skeleton, rebuild, trace
from quadgrad._core.regions.search import level_of
from quadgrad._core.regions.surface import element
from quadgrad._core.rehearsal import decided
from quadgrad._core.replay import REPLAY_BLOCK
from quadgrad._core.result import Derivative
from quadgrad._core.search.task import Found
from quadgrad._core.status import Status
from quadgrad._core.tolerance import Tolerance, make_tolerance

__all__ = ["CutPrimal"]

REFINED, LEAST_STEP, LARGEST_STEP = 6, 4.0, 100.0
"""Searches of a derivative at most, and how much smaller the value's tolerance becomes from one to the next."""

HALVED, SAFETY = 3, 10.0
"""Dimensions in which cells are compared with their halves; what a difference to these is multiplied by."""

TURNING = 5e-3
"""In space gradients are uncertain by this part of what the next lower rule is off at least: where a boundary turns
round on a face halves may be off by what cells are. With .002 two of 324 entries were, by up to 2.2 times."""

KINKED = 0.2
"""So uncertain, as a part of it, is what a cell adds to a gradient in which boundaries may cross: the derivative
jumps there along one axis, which rules need not see. Without, 5 of 20 gradients were off by more than was said."""

FLOOR = 1e4
"""Gradients are uncertain by so many eps of their size at least."""


@dataclass(slots=True)
class CutPrimal:
    """A problem after its search: all that a gradient mode may need.

    Attributes
    ----------
    problem : Problem
        Corners and arguments may require grad.
    found : Found
        What search found, and its plan.
    search : callable
        ``search(problem, plan)`` goes on from a plan; the problem is outside of all transforms.
    stuck : bool
        Whether the region has a boundary, or a part of one, that does not move as it should: g is flat there.
    """

    problem: Problem
    found: Found
    search: Callable[[Problem, CutPlan], Found]
    stuck: bool = False

    @property
    def plan(self) -> CutPlan:
        """The cells on which search found the integrals."""
        return self.found.plan

    @property
    def value(self) -> Tensor:
        """The integrals without gradient."""
        return self.found.value

    def replay(self, plan: CutPlan | None = None) -> Tensor:
        """Return the integrals ``(batch, *event)`` as a differentiable sum over a plan's cells."""
        problem, plan = self.problem, self.plan if plan is None else plan
        cells, owners = cells_of(plan), list[Tensor]()
        size = max(1, (problem.chunk_size or REPLAY_BLOCK) // problem.rule.rows)
        thrifty = problem.chunk_size is not None and torch.is_grad_enabled()
        thrifty = thrifty and not (in_transform() or forward_mode_open())
        values: list[Tensor] = []
        for low in range(0, max(1, len(cells)), size):
            part = cells.take(slice(low, low + size))
            if thrifty:
                start = cells.low.new_zeros(())
                value = checkpoint(
                    lambda _, part: self._sums(part), start, part, use_reentrant=False, preserve_rng_state=False
                )
            else:
                value = self._sums(part)
            values.append(value)
            owners.append(part.owner)
        return total(torch.cat(values), torch.cat(owners), plan.batch)

    def trace(self, cells: Cut) -> Skeleton:
        """Return where nodes are placed."""
        rule = self.problem.rule
        with self.problem.outside() as plain:
            return trace(level_of(plain), cells, rule.line, rule.surface, moving=True)[1]

    def _sums(self, cells: Cut) -> Tensor:
        """Return the integrals over some cells, ``(n, *event)``."""
        return self.by_rules(cells, 1)[:, 0]

    def gradient_errors(self, tensors: Sequence[Tensor], weight: Tensor) -> tuple[Tensor, ...]:
        """Return how far off the gradient of the weighted integrals by tensors is."""
        return gradients_with_errors(self, tensors, weight)[1]

    def resolve(self, parameters: Parameters, rtol: float | None, atol: float) -> Differentiated:
        """Return the value with derivatives on cells that were refined until they meet a tolerance of their own."""
        derivative = search_derivative(self, parameters, make_tolerance(rtol, atol, self.problem.tolerance.eps))
        replayed = self.replay(derivative.plan)
        return Differentiated(self.value + (replayed - replayed.detach()), derivative)

    def by_rules(self, cells: Cut, columns: int) -> Tensor:
        """Return the integrals over some cells by each of the rules, ``(n, columns, *event)``."""
        problem, surface = self.problem, self.problem.rule.surface
        rule = problem.rule.line
        skeleton = decided(lambda: self.trace(cells))
        level = level_of(problem)
        nodes, stuck = rebuild(level, skeleton, rule, columns)
        self.stuck = self.stuck or bool(stuck.any())
        x, factor = element(level, nodes, cells, surface)
        y = problem.integrand(x, cells.owner[nodes.cell])[0]
        weight = nodes.weight * factor[:, None]
        return total(y[:, None] * align(weight, y[:, None]), nodes.cell, len(cells))


def cells_of(plan: CutPlan) -> Cut:
    """Return the cells of a plan that are not outside of the region."""
    low, side = cut_cells(plan)
    cells = Cut(plan.owner, low, side, plan.order.T, plan.active)
    keep = ~plan.outside & plan.error.isfinite()
    if plan.surface:
        keep &= plan.active.any(1)
    return cells.take(keep.nonzero().squeeze(1))


def gradients_with_errors(
    primal: CutPrimal, tensors: Sequence[Tensor], weight: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the gradient of the weighted integrals by tensors, and how far off it is.

    It is compared with those by the two next lower rules along each axis, as the value is: where the first is off
    by much less than the second, the rule itself is off by less still. In up to three dimensions, and where
    boundaries do not cross, cells are compared with their halves besides: by those rules alone it was 10,000 times
    as large as what gradients were off. What lattices and lines have not seen of a cell
    that is not steep, or blank, they do not see of its derivative: it is infinite where search has failed.
    """
    problem, cells = primal.problem, cells_of(primal.plan)
    d, size = problem.rule.d, max(1, (problem.chunk_size or REPLAY_BLOCK) // problem.rule.rows)
    gradients = [torch.zeros_like(t.detach()) for t in tensors]
    errors = [gradient.abs() for gradient in gradients]
    lost = bool((primal.found.status != int(Status.CONVERGED)).any())
    for low in range(0, len(cells), size):
        part = cells.take(slice(low, low + size))
        kink = part.active.sum(1) > 1
        if bool(kink.any()):
            kink = primal.trace(part).kinked  # rules need not see those that no stretch ends at
        odd = torch.arange(len(part), device=kink.device) % 2 > 0
        for group in (kink, ~kink & odd, ~kink & ~odd):  # in halves, lest errors cancel
            if not bool(group.any()):
                continue
            columns = _columns(primal, part.take(group), weight, d <= HALVED and group is not kink)
            if not columns[0].requires_grad:
                continue
            values, *off = (_gradients(one, tensors) for one in columns)
            for i, (gradient, error) in enumerate(zip(gradients, errors, strict=True)):
                error += _off([one[i].abs() for one in off], d, group is kink)
                error += (KINKED if group is kink else FLOOR * problem.tolerance.eps) * values[i].abs()
                gradient += values[i]
    return tuple(gradients), tuple(torch.full_like(e, torch.inf) if lost else e for e in errors)


@torch.enable_grad()
def _columns(primal: CutPrimal, cells: Cut, weight: Tensor, halved: bool) -> list[Tensor]:
    """Return the weighted integral over cells by the rule, and what the lower rules along each axis are off.

    And what it is off the one over cells that are half as wide along each axis, if they are to be ``halved``.
    """
    d = primal.problem.rule.d
    sums = _weighted(primal, cells, weight, 1 + 2 * d)
    columns = [sums[0], *(sums[0] - sums[k] for k in range(1, 1 + 2 * d))]
    if halved:
        corner = torch.cartesian_prod(*[cells.low.new_tensor([0.0, 0.5])] * d).reshape(-1, d)
        low = (cells.low[:, None] + cells.side[:, None] * corner).flatten(0, 1)
        halves = cells.take(torch.arange(len(cells), device=low.device).repeat_interleave(len(corner)))
        columns.append(sums[0] - _weighted(primal, replace(halves, low=low, side=0.5 * halves.side), weight, 1)[0])
    return columns


def _weighted(primal: CutPrimal, cells: Cut, weight: Tensor, columns: int) -> Tensor:
    """Return the sum of the weighted integrals over cells by each of the rules, ``(columns,)``."""
    sums = primal.by_rules(cells, columns)
    return (sums * weight[cells.owner][:, None].conj()).real.movedim(1, 0).flatten(1).sum(1)


def _off(differences: list[Tensor], d: int, kink: bool) -> Tensor:
    """Return how far off a gradient is that differs so from those by lower rules, and by halves."""
    high, low = (torch.stack(differences[k : k + d]).sum(0) for k in (0, d))
    if kink:
        return high
    off = high * (CAUTION * high / low).nan_to_num(1.0).clamp(LEAST, 1.0)
    if len(differences) == 2 * d:
        return off
    halves = SAFETY * differences[-1]
    return torch.minimum(off, halves if d < 3 else torch.maximum(halves, TURNING * high))


def _gradients(value: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, tensors, retain_graph=True, materialize_grads=True, allow_unused=True)


def search_derivative(primal: CutPrimal, parameters: Parameters, tolerance: Tolerance) -> Derivative:
    """Refine the cells of the value until the derivative by each variable meets its tolerance.

    What moves with a variable is a sum over the boundary, which is no integrand of the region's cells. So cells are
    refined as the value's own are, to ever smaller tolerances of it.
    """
    problem = primal.problem
    if problem.batch:
        points = problem.limits.detach().inner_points(problem.batch)[:1]
        for function in (problem.integrand, problem.jumps):
            assert function is not None
            refuse_undeclared(function, parameters, points)
    names = variables_of(problem.integrand, parameters).names
    found, nfev = primal.found, torch.zeros_like(primal.found.nfev)
    status = torch.full_like(nfev, int(Status.CONVERGED))
    error, size = _measure(primal, parameters)
    for _ in range(REFINED):
        worst = _worst(error, size, tolerance)
        if worst <= 1.0 or worst == math.inf or bool(status.any()):
            break
        late = (error > _asked(size, tolerance)).any(1)
        values = _size(found.value)
        met = float(torch.where(values > 0.0, found.error / values, 0.0)[late].amax())
        rtol = max(met / min(max(LEAST_STEP, worst), LARGEST_STEP), problem.tolerance.eps)
        with problem.outside() as plain:
            finer = replace(plain, tolerance=make_tolerance(rtol, 0.0, problem.tolerance.eps))
            found = primal.search(finer, found.plan)
        nfev, status = nfev + found.nfev, found.status
        # Rounding of the value need not be in the way of the derivative.
        status = status.masked_fill(status == int(Status.ROUNDOFF), int(Status.CONVERGED))
        error, size = _measure(replace(primal, found=replace(primal.found, plan=found.plan)), parameters)
    missed = (error > _asked(size, tolerance)).any(1) & (status == int(Status.CONVERGED))
    status = status.masked_fill(missed, int(Status.MAX_NFEV))
    shape = problem.batch_shape
    return Derivative(
        names, error.reshape(*shape, len(names)), status.reshape(shape), nfev.reshape(shape), found.plan
    )  # fmt: skip


def _asked(size: Tensor, tolerance: Tolerance) -> Tensor:
    return (tolerance.rtol * size).clamp_min(tolerance.atol)


def _worst(error: Tensor, size: Tensor, tolerance: Tolerance) -> float:
    """Return how many times too large the worst error is."""
    ratio = (error / _asked(size, tolerance)).nan_to_num(0.0, math.inf)
    return float(ratio.amax()) if ratio.numel() else 0.0


def _measure(primal: CutPrimal, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Return the error of the derivative by each variable, and its size, ``(batch, variables)``.

    Of a tensor that f closes over all integrals together have one.
    """
    problem, n = primal.problem, primal.problem.batch
    integrand, g = problem.integrand, problem.jumps
    assert g is not None
    variables = variables_of(integrand, parameters)
    leaves: list[Tensor] = []
    arguments = list(integrand.arguments)
    for i in variables.arguments:
        core = arguments[i].value.shape[arguments[i].value.ndim - arguments[i].element_ndim :]
        leaves.append(arguments[i].value.detach().expand(n, *core).clone().requires_grad_())
        arguments[i] = replace(arguments[i], value=leaves[-1], shared=False)
    still = replace(
        problem, integrand=replace(integrand, arguments=tuple(arguments)),
        jumps=replace(g, arguments=tuple(arguments)), limits=problem.limits.detach(), stretches=None,
    )  # fmt: skip
    tensors = [*leaves, *variables.parameters.tensors]
    largest = [problem.limits.a.new_zeros(n, len(tensors)) for _ in range(2)]
    event = primal.value.shape[1:]
    units = primal.value.new_tensor([1.0, 1j] if primal.value.is_complex() else [1.0])
    for place in range(event.numel()):
        for unit in units:
            weight = torch.zeros_like(primal.value).reshape(n, -1)
            weight[:, place] = unit
            each = gradients_with_errors(replace(primal, problem=still), tensors, weight.reshape(n, *event))
            for out, numbers in zip(largest, (each[1], each[0]), strict=True):
                columns = [_per_integral(t.abs(), n, k < len(leaves)) for k, t in enumerate(numbers)]
                torch.maximum(out, torch.stack(columns, 1) if columns else out, out=out)
    return largest[0], largest[1]


def _size(value: Tensor) -> Tensor:
    """Return the largest component of each integral."""
    return value.abs().reshape(len(value), -1).amax(1)


def _per_integral(numbers: Tensor, batch: int, own: bool) -> Tensor:
    """Return the largest entry, of each integral if it has its own."""
    flat = numbers.reshape(batch, -1) if own else numbers.reshape(1, -1)
    return (flat.amax(1) if flat.shape[1] else flat.new_zeros(len(flat))).expand(batch)
