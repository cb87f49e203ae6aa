"""How far to trust a gradient: the rule's own error estimate, applied to the derivative integrand on the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.closure import Closure
from quadgrad._core.estimates.null_rules import SAFETY
from quadgrad._core.estimates.series import DROPPED, without_last
from quadgrad._core.gradient.boundary import (
    PLACED,
    doubtful_places,
    follow_marks,
    reading_errors,
    replay_with_limits,
)
from quadgrad._core.gradient.boxes import BoxPrimal, column_errors, face_errors
from quadgrad._core.gradient.columns import Sampler, sampler_of, split_outputs
from quadgrad._core.gradient.derivative import as_reals, differentiate, make_variables
from quadgrad._core.gradient.measure import Measured, measure
from quadgrad._core.gradient.mode import Finished, Primal, Scaled
from quadgrad._core.gradient.parameters import Parameters
from quadgrad._core.gradient.rows import ROWS, gradients, rows_of, weighted_rows, zeros
from quadgrad._core.gradient.samples import SampledPrimal, sampled_gradient_error
from quadgrad._core.gradient.uncertain import computes_with_uncertain, errors_of_uncertain
from quadgrad._core.nesting import InnerRecord
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align
from quadgrad._core.replay import REPLAY_BLOCK
from quadgrad._core.result import Result
from quadgrad._core.tolerance import Tolerance

__all__ = ["gradient_error"]


def gradient_error(
    result: Result, wrt: Tensor | Sequence[Tensor], grad_outputs: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """Estimate the absolute error of ``torch.autograd.grad(result.value, wrt, grad_outputs)``.

    The derivative of the integrand is evaluated on the plan's nodes, and the null rules that estimate the value's
    error estimate its. Because they exaggerate where the integrand is smooth, each cell is also compared with its
    halves: in all, f is called and differentiated at three times the plan's nodes. Limits and breakpoints are read
    from f beside them; their error is that of the reading.

    Errors add: those of integrals that share a tensor, and those of several ways in which one enters.

    Parameters
    ----------
    result : Result
        Of :func:`quadgrad.quad` or another verb, with a gradient, outside of ``torch.func`` transforms.
    wrt : Tensor or sequence of Tensor
        Arguments, limits, breakpoints, tensors that f closes over, or what they were computed from.
        An argument itself costs least; what arguments were computed from needs their graph, so call this first or
        keep the graph (``retain_graph=True``) in the backward pass.
    grad_outputs : Tensor, shape ``batch + event``, optional
        Weights of the values, as for ``torch.autograd.grad``; ones unless given.

    Returns
    -------
    Tensor or tuple of Tensor
        For each of ``wrt`` the estimated error of each entry of its gradient, real and in its shape. It is infinite
        where the derivative is, or where it could not be told: also where f jumps or is singular at a place that
        search has found, and that may depend on a parameter.

    Raises
    ------
    ValueError
        If the result carries no gradient, comes from a transform, or a tensor in ``wrt`` requires no grad.

    Examples
    --------
    The derivative of a value that met a loose tolerance, and how wrong it is:

    >>> import torch, quadgrad as qg
    >>> p = torch.tensor(1e-4, dtype=torch.float64, requires_grad=True)
    >>> result = qg.quad(lambda x, p: torch.sqrt(x**2 + p**2), 0.0, 1.0, (p,), rtol=1e-4)
    >>> (gradient,) = torch.autograd.grad(result.value, p)
    >>> true = abs(gradient - p * torch.asinh(1 / p)).detach()
    >>> error = qg.gradient_error(result, p)
    >>> bool(true > 1e-4), bool(true <= error)
    (True, True)
    """
    if not hasattr(result, "primal"):
        raise TypeError(f"gradient_error takes a Result, what quad returned, not {type(result).__name__}")
    primal, function = result.primal, None
    if isinstance(primal, Finished):
        primal, function = primal.primal, primal.function
    knows = hasattr(primal, "gradient_errors")  # a geometry that knows better
    if not (isinstance(primal, Primal | SampledPrimal | BoxPrimal) or knows) or in_transform():
        raise ValueError(
            "gradient_error needs a result with a gradient, computed outside of torch.func transforms: make "
            "one of the inputs require grad and call quad there"
        )
    tensors = (wrt,) if isinstance(wrt, Tensor) else tuple(wrt)
    for i, tensor in enumerate(tensors):
        if not tensor.requires_grad:
            raise ValueError(f"wrt[{i}] of shape {tuple(tensor.shape)} does not require grad: it has no gradient")
    if not primal.plan.batch:
        errors = tuple(zeros(t) for t in tensors)
        return errors[0] if isinstance(wrt, Tensor) else errors
    # Integrals inside f have told what they are, and are computed as well as they were.
    with InnerRecord(depth=primal.problem.depth, again=True):
        errors = _errors(result, primal, function, tensors, grad_outputs)
    return errors[0] if isinstance(wrt, Tensor) else errors


def _errors(
    result: Result, primal: Any, function: Any, tensors: tuple[Tensor, ...], grad_outputs: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the error for each tensor; ``function`` makes the value of the integrals, where it is none of them."""
    value = result.value.detach()
    weight = torch.ones_like(value) if grad_outputs is None else grad_outputs.detach()
    event = value.shape[len(primal.problem.batch_shape) :]
    weight = weight.expand(value.shape).reshape(primal.plan.batch, *event)
    if hasattr(primal, "gradient_errors"):
        return primal.gradient_errors(tensors, weight)
    plan = result.plan if result.derivative is None else result.derivative.plan
    if isinstance(primal, SampledPrimal):
        plan = primal.plan if result.derivative is None else plan
        return sampled_gradient_error(primal, plan, tensors, weight, function)
    if function is not None:
        weight = cast(Tensor, torch.autograd.functional.vjp(function, primal.value.detach(), weight)[1])
    with torch.autocast(value.device.type, enabled=False):
        if isinstance(primal, BoxPrimal) or primal.scaled is None:
            return _Estimate(primal, plan, weight).of(tensors)
        return _of_logarithms(primal, primal.scaled, plan, weight, tensors)


def _of_logarithms(
    primal: Primal, scaled: Scaled, plan: IntervalPlan, weight: Tensor, tensors: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the errors of the gradients of logarithms: the derivative of each integral is divided by the integral.

    Component by component, because what the integral's own error does to the derivative may not cancel in a sum.
    """
    zero = primal.value == 0.0
    weight = torch.where(zero, 0.0, weight / primal.value.masked_fill(zero, 1.0))
    columns = weight.reshape(weight.shape[0], -1)
    each: list[tuple[Tensor, ...]] = []
    for i in range(columns.shape[1]):
        one = torch.zeros_like(columns)
        one[:, i] = columns[:, i]
        each.append(_Estimate(primal, plan, one.reshape(weight.shape), scaled.error).of(tensors))
    return tuple(sum(errors, zeros(t)) for t, *errors in zip(tensors, *each, strict=True))


@dataclass(frozen=True)
class _Estimate:
    """Everything that enters the estimates of one result.

    ``relative`` ``(batch,)`` is the relative error of what the derivatives of the integrals are divided by, if they
    are.
    """

    primal: Primal | BoxPrimal
    plan: Any
    weight: Tensor
    relative: Tensor | None = None

    def of(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the error for each tensor."""
        if isinstance(self.primal, Primal) and self.primal.unfollowed:  # what is missing is not known
            return tuple(torch.full_like(zeros(t), torch.inf) for t in tensors)
        errors, every = [zeros(t) for t in tensors], dict(enumerate(tensors))
        if len(self.plan):
            closed, computed = self._closed_over(tensors)
            treatment = None if isinstance(self.primal, BoxPrimal) else self.primal.treatment
            still = torch.zeros(self.plan.batch, dtype=torch.bool, device=self.plan.row.device)
            follows = still if treatment is None else treatment.moving
            plain = {i: tensor for i, tensor in every.items() if not computed[i]}
            self._add_direct(plain, [i for i in plain if closed[i]], ~follows, errors)
            for i, tensor in every.items():
                along = torch.ones_like(follows) if computed[i] else follows
                if computed[i] and isinstance(self.primal, BoxPrimal):  # which is not told of here
                    errors[i] = errors[i] + torch.inf
                    continue
                if bool(along.any()):
                    errors[i] = errors[i] + self._along_graph(tensor, along)
        for error, source in self._readings():
            self._propagate(error, source, every, errors)
        for beside in self._beside(tensors):
            errors = [error + more for error, more in zip(errors, beside, strict=True)]
        return tuple(errors)

    def _beside(self, tensors: tuple[Tensor, ...]) -> Iterator[list[Tensor]]:
        """Yield what is to be added beside cells and limits."""
        if len(self.plan):
            yield self._of_uncertain(tensors)
        if isinstance(self.primal, BoxPrimal):
            return
        if self.primal.problem.limits.found and len(self.plan):
            yield self._of_places(tensors)
        if self.plan.term is not None:
            yield self._of_series(tensors)

    def _of_uncertain(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Return what integrals and wrapped functions inside f say that derivatives are off by."""
        primal = self.primal
        f, limits = primal.problem.integrand, primal.problem.limits
        if not computes_with_uncertain(f, limits.detach().inner_points(self.plan.batch)[:1]):
            return [zeros(t) for t in tensors]
        whole = replace(primal, problem=replace(primal.problem, chunk_size=None))  # parts would hide their graphs
        return errors_of_uncertain(lambda: whole.replay(self.plan), self.weight, tensors, primal.problem.depth)

    def _of_places(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Return what derivatives are off by because places that search has found are off: they jump there."""
        problem = self.primal.problem
        places, away = doubtful_places(problem.limits.detach(), problem.batch)
        errors = [zeros(t) for t in tensors]
        with torch.enable_grad():
            y = problem.integrand(torch.cat((places + away, places - away)), slice(0, problem.batch))
            gaps = y[: len(places)] - y[len(places) :]
            for gap, width in zip(gaps, PLACED * away, strict=True):
                total = as_reals((gap * align(width, gap) * self.weight.conj()).sum(), 0)[..., 0].sum()
                for i, g in enumerate(gradients(total, tensors)):
                    errors[i] = errors[i] if g is None else errors[i] + g.abs()
        return errors

    def _of_series(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Return how far derivatives of series' limits move when the last terms are left out."""
        plan, primal = self.plan, self.primal
        assert isinstance(primal, Primal)  # boxes have no series
        every: list[list[Tensor]] = []
        with torch.enable_grad():
            for count in range(DROPPED + 1):
                kept = plan if count == 0 else plan.take(without_last(plan.terms, plan.row, count))
                value = replay_with_limits(
                    primal.problem.integrand, kept, primal.problem.limits, primal.treatment, None
                )
                total = as_reals((value * self.weight.conj()).sum(), 0)[..., 0].sum()
                every.append(
                    [
                        torch.zeros_like(t) if g is None else g
                        for t, g in zip(tensors, gradients(total, tensors), strict=True)
                    ]
                )
        return [
            SAFETY
            * torch.stack([(each[i] - every[0][i]).abs() for each in every[1:]]).amax(0).nan_to_num(torch.inf)
            for i in range(len(tensors))
        ]

    def _closed_over(self, tensors: tuple[Tensor, ...]) -> tuple[list[bool], list[bool]]:
        """Tell which of the tensors f closes over, and which of these only through what was computed from them."""
        core = self.primal.problem.integrand.with_still_arguments()
        x = self.primal.problem.limits.detach().inner_points(self.plan.batch)[:1]
        masks: list[list[bool]] = []
        for replaced in ((), tensors):
            with torch.enable_grad(), Closure((t, t.detach()) for t in replaced):
                y = core.probe(x)[1]
            reached = gradients(as_reals(y, 0).sum(), tensors) if y.requires_grad else (None,) * len(tensors)
            masks.append([g is not None for g in reached])
        return masks[0], masks[1]

    def _add_direct(
        self, tensors: dict[int, Tensor], closed: list[int], elements: Tensor, errors: list[Tensor]
    ) -> None:
        """Add what comes through the arguments, and from those of the tensors that f itself closes over."""
        problem, f = self.primal.problem, self.primal.problem.integrand
        plan = self.plan.take(elements[self.plan.owner])
        arguments = tuple(
            i
            for i, source in enumerate(problem.given)
            if source is not None and source.requires_grad and any(_depends(source, t) for t in tensors.values())
        )
        parameters = Parameters.of((f"wrt[{i}]", tensors[i]) for i in closed)
        variables = make_variables(f, arguments, parameters)
        if not len(plan) or not variables.sizes:
            return
        weighted, each = (differentiate(f, variables, parameters, w) for w in (self.weight, None))
        weight = self.weight.reshape(self.weight.shape[0], -1)
        if isinstance(self.primal, BoxPrimal):
            error = column_errors(problem, plan, weighted, sum(variables.sizes))
        else:
            sampler = sampler_of(weighted, f, each, self._block(sum(variables.sizes)), weight)
            error = self._with_divisor(measure(self._task(), plan, sampler, sharp=True), plan)
        columns = [error.index_select(1, group.to(elements.device)) for group in variables.groups(1)]
        for error, i in zip(columns, arguments, strict=False):
            source, argument = problem.given[i], f.arguments[i]
            assert source is not None
            core = argument.value.shape[argument.value.ndim - argument.element_ndim :]
            error = _modulus(error, source).reshape((*plan.batch_shape, *core))
            self._propagate(error.sum_to_size(source.shape), source, tensors, errors)
        for error, i in zip(columns[len(arguments) :], closed, strict=True):
            errors[i] = errors[i] + _modulus(error.sum(0), tensors[i]).reshape(tensors[i].shape)

    def _along_graph(self, tensor: Tensor, elements: Tensor) -> Tensor:
        """Return the error through everything but the ends of the interval: one backward pass for each node."""
        primal, plan = self.primal, self.plan.take(elements[self.plan.owner])
        assert isinstance(primal, Primal)
        moving = follow_marks(primal.problem.limits, primal.treatment).pieces()
        weight = self.weight.reshape(plan.batch, -1)
        reals = as_reals(weight, 1)

        def follow(cells: IntervalPlan, tau: Tensor, factor: Tensor) -> Tensor:
            """Return f, ``(m, n, outputs)``, with what moves a node and stretches a cell."""
            x, stretched = moving.lay_out(cells).nodes(tau)
            return primal.problem.integrand(x, cells.owner).reshape(*x.shape, -1) * (stretched / factor)[..., None]

        def columns(cells: IntervalPlan, tau: Tensor, x: Tensor, factor: Tensor) -> Tensor:
            with torch.enable_grad():
                y = (as_reals(follow(cells, tau, factor), 2) * reals[cells.owner]).sum(2)
                rows = rows_of(y.flatten(), tensor)
            return as_reals(rows, 1).reshape(*x.shape, width)

        def outputs(cells: IntervalPlan, tau: Tensor, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                y = follow(cells, tau, factor)
                rows = rows_of(as_reals(y, 0).flatten(), tensor)
            rows = as_reals(rows, 1).reshape(*x.shape, -1)
            return y.detach(), split_outputs(rows, y.shape[2], y.is_complex())

        width = 2 * tensor.numel() if tensor.is_complex() else tensor.numel()
        sampler = Sampler(columns, outputs, width, min(self._block(width), ROWS), weight)
        measured = measure(self._task(), plan, sampler, sharp=True)
        error = self._with_divisor(measured, plan).sum(0)
        return _modulus(error, tensor).reshape(tensor.shape)

    def _with_divisor(self, measured: Measured, plan: IntervalPlan) -> Tensor:
        """Return the errors of the columns that were measured, and that of what they are divided by."""
        error = measured.error_on(plan)
        return error if self.relative is None else error + self.relative[:, None] * measured.value.abs()

    def _readings(self) -> list[tuple[Tensor, Tensor]]:
        """Return the errors of reading f at limits and breakpoints, each with the caller's tensor behind it."""
        if isinstance(self.primal, BoxPrimal):
            return face_errors(self.primal, self.weight)
        shape, sources = self.plan.batch_shape, self.primal.problem.sources
        errors = reading_errors(self.primal.problem, self.primal.treatment, self.weight, self.relative)
        readings = [(error.reshape(shape), source) for error, source in zip(errors[:2], sources[:2], strict=True)]
        if len(sources) > 2:  # breakpoints share one
            readings.append((torch.stack(errors[2:], dim=-1).reshape((*shape, -1)), sources[2]))
        return [(e.sum_to_size(s.shape), s) for e, s in readings if s is not None and s.requires_grad]

    def _propagate(self, error: Tensor, source: Tensor, tensors: dict[int, Tensor], errors: list[Tensor]) -> None:
        """Add the error of a gradient with respect to ``source`` to those of what it was computed from."""
        for i, tensor in tensors.items():
            if source is tensor:
                errors[i] = errors[i] + error
            elif _depends(source, tensor):
                spread = (error.unsqueeze(-1).expand(*error.shape, 2) if source.is_complex() else error).flatten()
                errors[i] = errors[i] + weighted_rows(as_reals(source, 0).flatten(), tensor, spread)

    def _block(self, columns: int) -> int:
        """Return how many nodes with so many columns to look at at a time."""
        return max(1, (self.primal.problem.chunk_size or REPLAY_BLOCK) // max(1, columns))

    def _task(self) -> Problem:
        """Return what the measurement needs to know."""
        primal = self.primal
        eps = Tolerance(primal.problem.tolerance.eps, 0.0, primal.problem.tolerance.eps)
        return replace(primal.problem, limits=primal.problem.limits.detach(), tolerance=eps, stretches=None)


def _modulus(error: Tensor, like: Tensor) -> Tensor:
    """Join the errors of real and imaginary parts, which alternate along the last dimension."""
    return torch.linalg.vector_norm(error.unflatten(-1, (-1, 2)), dim=-1) if like.is_complex() else error


def _depends(source: Tensor, tensor: Tensor) -> bool:
    """Whether ``tensor`` is, or is behind, ``source``."""
    return source is tensor or gradients(as_reals(source, 0).sum(), (tensor,))[0] is not None
