"""The gradient of a sample: that of the mean over its points, which the backward pass evaluates again.

Nothing is kept for it but what the mean is differentiated with respect to, so that memory does not depend on how
many points there are. A sum over ranks is one over fixed parts in their order, in the backward pass as in search:
every rank holds the same bits of the whole gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import forward_mode_open, in_transform, pull_back
from quadgrad._core.closure import Closure, Unchanged, stand_in, uncompiled
from quadgrad._core.errors import IntegrandError
from quadgrad._core.estimates.replicates import Moments
from quadgrad._core.gradient.derivative import differentiate, make_variables, variables_of
from quadgrad._core.gradient.mode import Differentiated
from quadgrad._core.gradient.parameters import Parameters, refuse_undeclared
from quadgrad._core.gradient.shared import SharedGradient
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.problem import Problem
from quadgrad._core.recompute import with_gradient
from quadgrad._core.reduce import align
from quadgrad._core.rehearsal import current_rehearsal
from quadgrad._core.result import Derivative
from quadgrad._core.search.samples.sampling import Sample, block_width, blocks, cut, search_samples, tile_size
from quadgrad._core.search.task import Found
from quadgrad._core.tolerance import Tolerance, make_tolerance

__all__ = ["SampledPrimal", "sampled_gradient_error"]

_CHANGED = (
    "in the backward pass the integrand depended on a tensor that requires grad and that it had not met at the "
    "first points: pass such tensors in args, or let f use them at all points"
)


@dataclass(slots=True)
class SampledPrimal:
    """A problem after its sample: all that a gradient mode may need.

    Attributes
    ----------
    problem : Problem
        Limits and arguments may require grad.
    found : Found
        What the sample gave, and its plan.
    sample : Sample
        How it was taken.
    """

    problem: Problem
    found: Found
    sample: Sample

    @property
    def plan(self) -> PointsPlan:
        """The points of which the value is the mean."""
        return self.found.plan

    @property
    def value(self) -> Tensor:
        """The integrals without gradient."""
        return self.found.value

    def replay(self, plan: PointsPlan | None = None) -> Tensor:
        """Return the means over a plan's points, ``(batch, *event)``, by default the value's own."""
        value = self.value if plan is None or plan is self.plan else None
        return replay_sample(self.problem, self.sample, self.plan if plan is None else plan, value)

    def resolve(self, parameters: Parameters, rtol: float | None, atol: float) -> Differentiated:
        """Return the value with the derivatives of a sample that was doubled until they meet a tolerance."""
        problem = self.problem
        if problem.batch:
            points = problem.limits.detach().inner_points(problem.batch)[:1]
            refuse_undeclared(problem.integrand, parameters, points)
        with problem.outside() as plain:
            tolerance = make_tolerance(rtol, atol, problem.tolerance.eps)
            derivative = _search_derivative(parameters, tolerance, plain, self)
        replayed = self.replay(derivative.plan)
        return Differentiated(self.value + (replayed - replayed.detach()), derivative)


def _search_derivative(
    parameters: Parameters, tolerance: Tolerance, problem: Problem, primal: SampledPrimal
) -> Derivative:
    """Sample the derivative by each variable to its tolerance; the largest sample serves all."""
    variables = variables_of(primal.problem.integrand, parameters)
    # A function that is constant but for jumps need not have such a derivative: the score's is not.
    sample = replace(primal.sample, fixed=False, every=False, steps=False)
    sample = replace(sample, first=min(sample.first, max(1, sample.most // 2)))
    each: list[Found] = []
    places = [(i,) for i in variables.arguments] + [()] * len(variables.parameters.tensors)
    for number, place in enumerate(places):
        number -= len(variables.arguments)
        one = make_variables(problem.integrand, place, Parameters() if place else variables.parameters.one(number))
        integrand = differentiate(problem.integrand, one, parameters)
        each.append(search_samples(replace(problem, integrand=integrand, tolerance=tolerance), sample))
    if not each:
        nothing = torch.zeros_like(primal.found.status)
        return Derivative((), nothing[:, None][:, :0].double(), nothing, nothing, primal.plan)
    n = torch.stack([found.plan.n for found in each]).amax(0)
    errors = torch.stack([found.error for found in each], dim=-1)
    status, nfev = (torch.stack([getattr(f, name) for f in each]).amax(0) for name in ("status", "nfev"))
    shape = problem.batch_shape
    return Derivative(
        variables.names, errors.reshape(*shape, -1), status.reshape(shape), nfev.reshape(shape),
        replace(primal.plan, n=n),
    )  # fmt: skip


def sampled_gradient_error(
    primal: SampledPrimal, plan: PointsPlan, tensors: Sequence[Tensor], weight: Tensor,
    function: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the half-width of the interval for each entry of a gradient, from those of all replicates.

    ``function``, if there is one, makes of the integrals that whose gradient it is, also in each replicate.
    Their running moments are kept, and no gradient but the last.
    """
    moments = [Moments.none(t) for t in tensors]
    for number in range(plan.replicates):
        one = plan.replicate(number)
        # The value matters where it is not linear in the integrals: then it has to be the replicate's own.
        value = replay_sample(primal.problem, primal.sample, one, None if function else primal.value)
        value = function(value) if function else value
        gradients = pull_back([value], tensors, [weight], retain_graph=True)
        for moment, gradient, tensor in zip(moments, gradients, tensors, strict=True):
            moment.add(torch.zeros_like(tensor) if gradient is None else gradient)
    widths = [moment.half_width(primal.sample.confidence) for moment in moments]
    return tuple(
        torch.linalg.vector_norm(width, dim=-1) if tensor.is_complex() else width
        for width, tensor in zip(widths, tensors, strict=True)
    )


def replay_sample(problem: Problem, sample: Sample, plan: PointsPlan, value: Tensor | None) -> Tensor:
    """Return the means over a plan's points, ``(batch, *event)``, as a differentiable tensor.

    ``value`` is what they are known to be; where it is not, it is summed up.
    """
    # Integrals with more points come first: those that are still active in a later round are then a slice.
    n, order = plan.n.sort(descending=True, stable=True)
    equal = bool((n == n[:1]).all())
    parts: list[Tensor] = []
    for owner in order.split(tile_size(problem, plan)):
        one, number = problem, None
        if not (equal and owner.numel() == plan.batch):
            one = _part(problem, owner)
            # An f that captures lanes is called with all integrals' arguments: their places tell lanes apart.
            number = owner if problem.integrand.captured else None
        mean = _Mean(one, plan.take(owner), sample, plan.n[owner].tolist(), number)
        parts.append(mean.differentiable(None if value is None else value[owner]))
    result = parts[0] if len(parts) == 1 else torch.cat(parts)
    return result if equal else result.index_select(0, order.argsort())


def _part(problem: Problem, owner: Tensor) -> Problem:
    """Return the problem of some integrals, in this order."""
    integrand, limits = problem.integrand, problem.limits.take(owner)
    if integrand.captured is None:
        arguments = tuple(a if a.shared else replace(a, value=a.value[owner]) for a in integrand.arguments)
        integrand = replace(integrand, arguments=arguments)
    return replace(problem, integrand=integrand, limits=limits, stretches=None, batch_shape=tuple(owner.shape))


_Block = tuple[int, int, int]
"""A block of points: of how many integrals, the first ones; from which index; how many."""


@dataclass(frozen=True)
class _Mean:
    """The means of all integrals of a problem, whose numbers of points ``n`` descend.

    ``owner`` tells which of the integrand's integrals they are, if these are more or in another order.
    """

    problem: Problem
    plan: PointsPlan
    sample: Sample
    n: list[int]
    owner: Tensor | None = None

    def differentiable(self, value: Tensor | None) -> Tensor:
        """Return the means ``(batch, *event)``, which are ``value`` if it is given."""
        eager = in_transform() or forward_mode_open() or current_rehearsal()
        if eager or not (self.n and torch.is_grad_enabled()):
            return self._summed_up()
        if self.plan.only is not None and self.sample.ranks.alone and len(list(self.blocks())) == 1:
            return self._summed_up()  # of one block, differentiated at once: to look at it first would cost as much
        closure, whole = Closure(), value
        places = [i for i, t in enumerate(self.tensors()) if isinstance(t, Tensor) and t.requires_grad]
        inputs: list[Tensor] = [self.tensors()[i] for i in places]
        still = self.with_tensors(places, [t.detach() for t in inputs])
        try:
            first = next(iter(still.blocks()), None)
            part, given = still.evaluate(first, places, closure, connected=False) if first else (None, [])
            if part is not None and not closure.explains(part, given):
                return self._summed_up()
        except RuntimeError:  # f may not bear the stand-ins
            return self._summed_up()
        whole = still._shared() if whole is None else whole
        constants = Unchanged(t for i, t in enumerate(self.tensors()) if i not in places)
        recipe = _Recipe(still, places, closure.tensors, constants)
        return with_gradient(whole, recipe, (*inputs, *closure.tensors))

    def blocks(self) -> Iterator[_Block]:
        """Return the blocks of points of all rounds, always cut in the same way."""
        start = 0
        for stop in sorted(set(self.n)):
            active = sum(n >= stop for n in self.n)
            width = block_width(self.problem, self.plan, active)
            yield from ((active, low, count) for low, count in blocks(start, stop, width))
            start = stop

    def parts(self) -> list[list[_Block]]:
        """Return the blocks in parts, each for one rank: alike for any number of ranks."""
        return cut(list(self.blocks()))

    def _shared(self) -> Tensor:
        """Return the means without derivatives, which ranks add up together."""
        parts = self.parts()
        integrand = self.problem.integrand
        shape, dtype = (len(self.n), *(integrand.event or ())), integrand.output_dtype or integrand.sum_dtype

        def none() -> list[Tensor]:
            return [torch.zeros(shape, dtype=dtype, device=self.plan.n.device)]

        def compute(number: int) -> list[Tensor]:
            whole = none()
            for block in parts[number]:
                whole[0][: block[0]] += self._block(block)
            return whole

        with torch.no_grad():
            return self.sample.ranks.fold(len(parts), compute, none)[0]

    def _summed_up(self) -> Tensor:
        """Return the means in ordinary torch, which keeps what f makes."""
        batch = len(self.n)
        whole = None
        for block in self.blocks() if batch else [(0, 0, 1)]:
            part = self._block(block)
            if part.shape[0] < batch:
                part = torch.cat((part, part.new_zeros((batch - part.shape[0], *part.shape[1:]))))
            whole = part if whole is None else whole + part
        assert whole is not None
        return whole

    def _block(self, block: _Block) -> Tensor:
        """Return what a block adds to the means of the first integrals."""
        active, start, count = block
        integrand, box, plan = self.problem.integrand, self.problem.limits, self.plan
        if active < len(self.n):
            first = slice(0, active)
            integrand = integrand if self.owner is not None else integrand.part(0, active)
            box, plan = box.take(first), plan.take(first)
        x, weight = plan.place(box, start, count)
        owner = slice(0, active) if self.owner is None else self.owner[:active]
        y = integrand(x.expand(-1, active, -1), owner)
        weight = weight / (plan.count * plan.n)
        return (y * align(weight, y)).sum(0)

    def tensors(self) -> list[Any]:
        """Return what the means may be differentiated with respect to, beside what f closes over."""
        return [*self.problem.limits.marks, *(a.value for a in self.problem.integrand.arguments)]

    def with_tensors(self, places: Sequence[int], tensors: Sequence[Tensor]) -> _Mean:
        """Return the same with others at these places among :meth:`tensors`."""
        each = self.tensors()
        for place, tensor in zip(places, tensors, strict=True):
            each[place] = tensor
        integrand = self.problem.integrand
        arguments = tuple(replace(a, value=v) for a, v in zip(integrand.arguments, each[2:], strict=True))
        problem = replace(
            self.problem, integrand=replace(integrand, arguments=arguments), stretches=None,
            limits=self.problem.limits.with_marks(tuple(each[:2])),
        )  # fmt: skip
        return replace(self, problem=problem)

    def evaluate(
        self, block: _Block, places: Sequence[int], closure: Closure, connected: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Return what a block adds, and the stand-ins for the tensors at these places that it is made of."""
        tensors = self.tensors()
        with torch.enable_grad(), uncompiled:
            given = [stand_in(tensors[place], connected) for place in places]
            mean = self.with_tensors(places, given)
            integrand = mean.problem.integrand
            integrand = replace(integrand, function=closure.around(integrand.function))
            return replace(mean, problem=replace(mean.problem, integrand=integrand))._block(block), given


@dataclass(frozen=True)
class _Recipe:
    """How to evaluate means again: ``mean`` carries no gradient, its tensors at ``places`` are given anew."""

    mean: _Mean
    places: list[int]
    closed: list[Tensor]
    constants: Unchanged

    def differentiate(self, saved: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Return the products with the gradient; differentiable if the grad mode says so."""
        self.constants.check()
        parts = self.mean.parts()
        if not parts:
            return [torch.zeros_like(t) for t in saved]
        if self.mean.sample.ranks.alone:
            connected = torch.is_grad_enabled()
            with torch.enable_grad():
                closed = [stand_in(t, connected) for t in saved[len(self.places) :]]
            mean = self.mean.with_tensors(self.places, saved[: len(self.places)])
            return self.mean.sample.ranks.fold(
                len(parts),
                lambda number: self._sum(mean, parts[number], closed, gradient, connected),
                lambda: [torch.zeros_like(t) for t in saved],
            )

        def graph(number: int, given: Sequence[Tensor], connected: bool) -> tuple[list[Tensor], list[Tensor]]:
            with torch.enable_grad():
                own = [stand_in(t, connected=False) for t in given]
            *tensors, weight = own if connected else given
            mean = self.mean.with_tensors(self.places, tensors[: len(self.places)])
            with torch.set_grad_enabled(connected):
                return own, self._sum(mean, parts[number], own[len(self.places) : -1], weight, connected)

        spans, dealt = [(0, 0)] * len(parts), (False,) * (len(saved) + 1)
        return SharedGradient(self.mean.sample.ranks, spans, dealt, graph, len(saved)).differentiate(
            saved, gradient
        )

    def _sum(
        self, mean: _Mean, part: list[_Block], closed: list[Tensor], gradient: Tensor, connected: bool
    ) -> list[Tensor]:
        """Return what some blocks add."""
        whole: list[Tensor] | None = None
        for block in part:
            products = self._products(mean, block, closed, gradient, connected)
            whole = products if whole is None else [a + b for a, b in zip(whole, products, strict=True)]
        assert whole is not None
        return whole

    def _products(
        self, mean: _Mean, block: _Block, closed: list[Tensor], gradient: Tensor, connected: bool
    ) -> list[Tensor]:
        """Return the same of one block."""
        closure = Closure(zip(self.closed, closed, strict=True))
        part, given = mean.evaluate(block, self.places, closure, connected)
        if not closure.explains(part, given):
            raise IntegrandError(_CHANGED)
        tensors = (*given, *closed)
        if not part.requires_grad:
            return [torch.zeros_like(t) for t in tensors]
        weight = gradient[: block[0]]
        found = pull_back([part], tensors, [weight], create_graph=connected)
        return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, found, strict=True)]
