"""Expectations in one dimension, as integrals of f times the density over the support.

The parameters sit in the density, so that a jump or kink of f does no harm to their derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.distributions.support import Line, lay_out_line
from quadgrad._core.distributions.transport import component_weights
from quadgrad._core.gradient import Reuse
from quadgrad._core.integrand import element
from quadgrad._core.lanes import plain
from quadgrad._core.nesting import InnerRecord
from quadgrad._core.rehearsal import decided
from quadgrad._core.result import Result
from quadgrad._core.status import Status
from quadgrad._core.verbs.expected.options import Options, finish, judge, quietly, size_of
from quadgrad._core.verbs.expected.question import Question
from quadgrad._core.verbs.expected.samples import about, divide
from quadgrad._core.verbs.inputs import prepare
from quadgrad._core.verbs.integrate import integrate

__all__ = ["FEW_NODES", "integrate_line"]

FEW_NODES = 1000
"""Nodes of one integral beyond which sampling is tried instead: kinks of a network take 16 million at 1e-8."""

LEAST = 1e-200
"""Answers of a smaller modulus are not believed: what was seen may be the foot of a peak that was not, as of a bell
of width 0.01 twenty-three standard deviations away, which is 1e-119 and was taken for 1e-204."""

MISSED = (
    " The density integrates to {:.4g} on the points, not to 1 (expectation {}): a part of the distribution was "
    "missed, or its log_prob is not that of a probability density."
)


@dataclass(frozen=True)
class Weighed:
    """The integrand: components of f times the density; once it is known how large they are, also the density.

    Then a ``level`` near the answer is subtracted from f. The expectation is the same, but derivatives of a density
    integrate to 0, and of what they are multiplied by only the variation matters: that of x^2 over a normal
    distribution at 1e6 of width 0.01 by the width had been wrong by 2e5. The density is multiplied by the answer's
    ``scale``, so that tolerances mean the same for all components; its integral shows what was missed.
    """

    question: Question
    quotient: bool = False
    scaled: bool = False

    def __call__(self, z: Tensor, *tensors: Any) -> Tensor:
        """Return the components at z of any shape."""
        question = self.question
        args, parameters, (anchor, width, inner, *more) = question.split(tensors)
        distribution = question.parts.build(parameters)
        weights = component_weights(distribution)
        z = z.to(question.wide)
        if weights is not None:  # the components of a mixture side by side, each on its own scale
            distribution, z = distribution.component_distribution, z[..., None]
        x = anchor + width * z
        # Where the density has underflowed f may be infinite, and so may the derivative of log_prob: the products
        # are 0, not NaN.
        with torch.no_grad():
            seen = torch.exp(distribution.log_prob(x)) * width > 0.0
        x = torch.where(seen, x, inner)
        density = torch.where(seen, torch.exp(distribution.log_prob(x)) * width, 0.0)
        if weights is None:
            return self._components(x, density[None], args, more, None)
        x, density = (t.movedim(-1, 0) for t in (x, density))
        missing = density.ndim - weights.ndim
        weights = weights.reshape(weights.shape[0], *(1,) * missing, *weights.shape[1:])
        return self._components(x.flatten(0, 1), density, args, more, weights)

    def _components(
        self, x: Tensor, density: Tensor, args: Sequence[Any], more: Sequence[Any], weights: Tensor | None
    ) -> Tensor:
        """Return the same at draws x, for densities ``(components, *lead)`` and weights of a mixture."""
        question, density = self.question, density[..., None]
        y, likelihood = question.values(x, args)
        columns = question.columns(y)
        columns = columns.reshape((*density.shape[:-1], columns.shape[-1]))
        weigh = lambda parts: (parts if weights is None else parts * weights[..., None]).sum(0)
        if likelihood is not None:
            likelihood = likelihood.reshape(density.shape)
            if self.quotient:
                ratio, size, scale = more
                relative = likelihood / size[..., None]
                columns, likelihood = (columns - ratio) * relative, scale[..., None] * relative
            else:
                columns = columns * likelihood
            columns = torch.cat((columns, likelihood.to(columns.dtype)), dim=-1)
        elif self.scaled:
            level = more[0].movedim(-2, 0)
            columns = columns - level.reshape(level.shape[0], *(1,) * (columns.ndim - level.ndim), *level.shape[1:])
        elif weights is not None:  # each component's own answer will be its level
            return self._narrow((columns * density).movedim(0, -2).flatten(-2))
        columns = weigh(columns * density)
        if self.scaled:
            columns = torch.cat((columns, (more[-1][..., None] * weigh(density)).to(columns.dtype)), dim=-1)
        return self._narrow(columns)

    def _narrow(self, columns: Tensor) -> Tensor:
        """Return values of an f in single precision in that, whose rounding they have."""
        if self.question.wide != torch.float64 or self.question.dtype == torch.float64:
            return columns
        return columns.to(torch.complex64 if columns.is_complex() else torch.float32)


def integrate_line(question: Question, options: Options, record: InnerRecord, few: bool) -> Result:
    """Return the answer of quadrature; ``few`` nodes alone are spent if something else can be tried.

    Raises
    ------
    ValueError
        If the ends of the support are not known.
    """
    line = lay_out_line(question.distribution, decided(question.still), question.wide, question.device)
    rtol, atol = options.tolerances
    run = _Run(question, options, record, line, few)
    rough = decided(lambda: run.ask(Weighed(question), (), (rtol, atol), options.plan, rough=True))
    if question.weight is not None:
        about_it = about(rough, options)
        more: tuple[Any, ...] = (element(about_it[0], 1), *about_it[1:])
    else:
        rough, level = _level(question, rough)
        more = (element(level, 2), _scale(rough, options))
    # A plan that was found under a transform is that of all lanes.
    plan = rough.plan if rough.plan.batch_shape == question.batch_shape else None
    whole = Weighed(question, quotient=question.weight is not None, scaled=True)
    found = run.ask(whole, more, (rtol, atol), plan, rough=False)
    weights = component_weights(question.distribution)
    each = 1 if weights is None else weights.shape[0]
    found = replace(found, nfev=(found.nfev + rough.nfev) * each)
    return _answer(question, options, found, more, rough)


def _level(question: Question, rough: Result) -> tuple[Result, Tensor]:
    """Return the rough answer, and what is subtracted from f, ``(*batch, components of the mixture or 1, f's)``."""
    value = rough.value.detach().nan_to_num(0.0, 0.0, 0.0)
    weights = component_weights(question.still())
    if weights is None:
        return rough, value[..., None, :]
    level = value.unflatten(-1, (weights.shape[0], -1))
    return replace(rough, value=(weights.movedim(0, -1)[..., None] * level).sum(-2)), level


def _mean_level(question: Question, level: Tensor) -> Tensor:
    """Return the mean of the components' levels, ``(*batch, f's)``, differentiable by the mixture's weights."""
    weights = component_weights(question.distribution)
    return level[..., 0, :] if weights is None else (weights.movedim(0, -1)[..., None] * level).sum(-2)


def _scale(rough: Result, options: Options) -> Tensor:
    """Return how large the answer is, or the largest that need not be told from 0."""
    rtol, atol = options.tolerances
    size = rough.value.detach().abs().amax(-1)
    size = torch.where(size > rough.error, size, torch.maximum(size, rough.error))
    least = atol / rtol if rtol > 0.0 else 0.0
    size = size.clamp_min(least) if rtol > 0.0 else torch.full_like(size, atol)
    return torch.where((size > 0.0) & size.isfinite(), size, 1.0)


@dataclass(frozen=True)
class _Run:
    """How the engine of :func:`quadgrad.quad` is asked."""

    question: Question
    options: Options
    record: InnerRecord
    line: Line
    few: bool

    def ask(
        self, integrand: Weighed, more: tuple[Any, ...], tolerances: tuple[float, float], plan: Any, rough: bool
    ) -> Result:
        """Integrate over the line; roughly, and without gradient, to learn how large the answer is."""
        question, line, o = self.question, self.line, self.options
        ends = [e.detach() if rough and isinstance(e, Tensor) else e for e in (line.a, line.b)]
        mixed = int(component_weights(question.distribution) is not None)
        own = (element(t, mixed) for t in (line.anchor, line.scale, line.inner))
        args = question.arguments(*own, *more, detached=rough)
        options = {"chunk_size": o.chunk_size}
        problem = prepare(integrand, ends[0], ends[1], args, line.points, True, "gk21", tolerances, **options)
        problem.integrand.name = "function f (times the density)"
        if self.few:
            problem.budget = max(FEW_NODES, problem.max_nfev // 30)
            problem.budget = max(problem.budget, 2 * (problem.rule.nodes.size + 2) * problem.pieces.count)
        gradient = Reuse() if rough else o.gradient
        compute = lambda: integrate(problem, tolerances, gradient, plan=plan, on_failure="ignore")
        if not rough:
            return quietly(self.record, compute)
        with torch.no_grad():
            return quietly(InnerRecord(kept_by_a_verb=True), compute)


def _answer(question: Question, options: Options, found: Result, more: tuple[Any, ...], rough: Result) -> Result:
    """Return what the components say: the answer, whose error includes what the density lacks.

    It is no less than that of the first search, of another integrand, nor than what the two disagree on: beside a
    cell's end one may miss a jump that the other sees, as of a step over Beta(.17, 57), 0.5 % off for 1e-8.
    """
    scale = more[-1]
    shape = found.value.shape[:-1]
    mass = (found.value[..., -1].detach().real / scale.expand(shape)).reshape(shape)
    lacking = (mass - 1.0).abs()
    if question.weight is not None:
        ratio = more[0].tensor
        part = replace(found, value=found.value[..., :-1])
        answer = divide(question, part, ratio, scale, (0.0, torch.inf))
        if answer.primal is not None:
            inner = answer.primal.function
            answer = replace(answer, primal=replace(answer.primal, function=lambda raw: inner(raw[..., :-1])))
    else:
        event, level = question.event, _mean_level(question, more[0].tensor)
        level = level.expand(*shape, level.shape[-1]).reshape(-1, level.shape[-1])
        answer = finish(found, lambda raw: (level + raw[..., :-1]).reshape(len(raw), *event), shape)
    size = size_of(answer.value, len(shape))
    error = answer.error + (lacking * size).nan_to_num(torch.inf).to(answer.error.dtype)
    error = torch.maximum(error, _disagreement(question, answer, rough, more).to(error.dtype))
    # What the engine took for 0, whose terms cancel to rounding, is that.
    raw = found.value.detach().abs().amax(-1)
    cancels = found.error > (options.tolerances[0] * raw).clamp_min(options.tolerances[1])
    answer = judge(answer, error, options.tolerances, torch.where(cancels, 2.0 * found.error, 0.0).to(error.dtype))
    rtol = max(options.tolerances[0], 1e-6)
    short = (lacking > rtol) | lacking.isnan()
    doubtful = short | ((size > 0.0) & (size < LEAST))
    status = torch.where(doubtful & (answer.status == int(Status.CONVERGED)), int(Status.MAX_NFEV), answer.status)
    return replace(answer, status=status, detail=answer.detail + _say_missed(mass, short))


def _disagreement(question: Question, answer: Result, rough: Result, more: tuple[Any, ...]) -> Tensor:
    """Return the error of the first search, or by how much the second differs if that is more, ``batch``."""
    before, error = rough.value.detach(), rough.error
    if question.weight is not None:
        before, size = more[0].tensor, more[1].abs()
        error = error * (1.0 + before.abs().amax(-1)) / size
    gap = size_of(question.columns(answer.value) - before, error.ndim)
    return torch.maximum(gap, error).nan_to_num(torch.inf, torch.inf)


def _say_missed(mass: Tensor, short: Tensor) -> str:
    places = plain(short).flatten().nonzero().flatten()[:1].tolist()
    return MISSED.format(float(plain(mass).flatten()[places[0]]), places[0]) if places else ""
