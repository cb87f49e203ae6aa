"""Expectations by sampling: points of the unit cube become draws inside of the integrand.

So the engine of :func:`quadgrad.qmc` does all the rest: rounds, errors, gradients, ranks, transforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.distributions.tails import spread_of, widened
from quadgrad._core.distributions.transport import component_weights, draw, is_discrete, uniforms
from quadgrad._core.gradient import Reuse
from quadgrad._core.integrand import element
from quadgrad._core.lanes import plain
from quadgrad._core.nesting import InnerRecord
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.points.hashing import hash_numbers
from quadgrad._core.points.joe_kuo import DIMENSIONS
from quadgrad._core.reduce import align
from quadgrad._core.rehearsal import decided
from quadgrad._core.result import Result
from quadgrad._core.status import Status
from quadgrad._core.verbs.door import open_ranks
from quadgrad._core.verbs.expected.options import Options, finish, judge, quietly, size_of
from quadgrad._core.verbs.expected.question import Question
from quadgrad._core.verbs.inputs import prepare_box
from quadgrad._core.verbs.sample import integrate_samples, make_sample

__all__ = ["Draws", "sample_question"]

PILOT = 2**11
"""Draws of an independent sample before the one that counts, where something has to be known of the answer."""

PILOT_KEY = 0x50494C54
"""Key of its seed."""

MOST_SPREAD = 12
"""Dimensions up to which it is tried to draw points towards the tails: each costs an eighth of the effective
samples of an f that varies little."""

WORTH = 1.2
"""It is done if the error of a small sample is less than so many times what it is without, or what the value is off
without: more than once, as replicates that have all missed the tails make the latter too small. By errors alone it
was left off for a third of all seeds for the cube of a lognormal number, and 85 % of intervals held the truth."""

Estimator = Literal["pathwise", "score"]


@dataclass(frozen=True)
class Draws:
    """The integrand over the unit cube: ``f(T(u))``, T the transport, or of two draws that mirror each other.

    Under ``score`` the draws carry no gradient, and each value is weighed by the ratio of its density to the same
    density without gradient: 1, with the derivatives of the expectation, of every order (Glynn, *Comm. ACM* 33,
    1990). What f depends on otherwise keeps its derivative. ``level``, a number for each component of f that does
    not depend on the draws, is subtracted from what is weighed: the expectation is the same, with less scatter.

    With a quotient, the components are ``(f - ratio) weight / size`` and ``scale weight / size``.
    """

    question: Question
    estimator: Estimator
    mirrored: bool = False
    rotated: bool = False
    quotient: bool = False
    spread: bool = False

    def __call__(self, u: Tensor, *tensors: Any) -> Tensor:
        """Return the integrand at points ``(*lead, d)`` of the unit cube."""
        if self.spread:
            u, weight = widened(u.to(self.question.wide), self.question.split(tensors)[2][0])
            y = self._at(u, tensors)
            return y * align(weight, y)
        y = self._at(u, tensors)
        return 0.5 * (y + self._at(1.0 - u, tensors)) if self.mirrored else y

    def _at(self, u: Tensor, tensors: Sequence[Any]) -> Tensor:
        question = self.question
        args, parameters, more = question.split(tensors)
        distribution = question.parts.build(parameters)
        score = self.estimator == "score"
        source = question.parts.build([p.detach() for p in parameters]) if score else distribution
        rotation = more[-1] if self.rotated else None
        make = lambda: draw(source, u.to(question.wide), rotation)
        x, weights = decided(make) if score else make()
        lead = u.shape[:-1]
        if score:
            x = x.detach()
            weights = component_weights(distribution)
        whole = x
        if weights is not None:  # of a mixture, whose components are drawn side by side
            x = x.flatten(0, 1)
        y, likelihood = question.values(x, args)
        if likelihood is not None:
            y = self._quotient(y, likelihood, more)
        inner = y.ndim - (x.ndim - question.event_ndim)
        if weights is not None:
            y = y.unflatten(0, (weights.shape[0], lead[0]))
        if score:
            ratio = _ratio(distribution, whole, weights is not None, len(lead))
            ratio = ratio.reshape(*ratio.shape, *(1,) * inner)
            level = 0.0 if self.quotient else more[0]
            y = (y - level) * ratio + level
        if weights is not None:
            missing = y.ndim - inner - weights.ndim
            weights = weights.reshape(weights.shape[0], *(1,) * missing, *weights.shape[1:], *(1,) * inner)
            y = (weights * y).sum(0)
        return y

    def _quotient(self, y: Tensor, likelihood: Tensor, more: Sequence[Any]) -> Tensor:
        columns = self.question.columns(y)
        likelihood = likelihood[..., None]
        if not self.quotient:
            return torch.cat((columns * likelihood, likelihood.to(columns.dtype)), dim=-1)
        ratio, size, scale = more[:3]
        # The weights of a mixture's components stand in front, which broadcasts.
        relative = likelihood / size[..., None]
        return torch.cat(((columns - ratio) * relative, (scale[..., None] * relative).to(columns.dtype)), dim=-1)


def _ratio(distribution: Any, x: Tensor, mixture: bool, lead: int) -> Tensor:
    """Return densities over what they are: 1, differentiable."""
    if mixture:
        log = distribution.component_distribution.log_prob(x.movedim(0, lead)).movedim(lead, 0)
    else:
        log = distribution.log_prob(x)
    still = decided(log.detach)
    # Where rounding has put a draw outside of the support, its density is nothing to divide by.
    possible = still.isfinite()
    return torch.exp(torch.where(possible, log - torch.where(possible, still, 0.0), 0.0))


def sample_question(
    question: Question,
    options: Options,
    record: InnerRecord,
    method: str,
    estimator: Estimator,
    steps: bool = False,
) -> Result:
    """Return the answer of a sample; ``steps`` tells that f is constant but for jumps."""
    d = uniforms(question.still())
    mirrored = method == "antithetic"
    draws = Draws(question, estimator, mirrored, options.construction == "pca")
    rotation = (_principal_axes(question),) if draws.rotated else ()
    sequence = "sobol" if method == "qmc" else "random"
    if method == "qmc" and d > DIMENSIONS:
        raise ValueError(
            f"one draw takes {d:,} numbers, and scrambled Sobol points have up to {DIMENSIONS:,} dimensions: pass "
            "method='iid', which draws pseudo-random numbers"
        )
    run = _Run(question, options, record, d, sequence, steps)
    each = (2 if mirrored else 1) * _components(question.distribution)
    n = options.n if options.n is None else -(-options.n // (2 if mirrored else 1))
    if question.weight is not None:
        result, spent = _sample_quotient(run, draws, n, rotation)
    elif estimator == "score":
        # The mean of f itself, from points that have nothing to do with those it is taken from.
        level = run.pilot(replace(draws, estimator="pathwise"), n, rotation)
        event = len(question.event)
        result = run.whole(draws, n, (element(level.value, event), *rotation))
        spent = level.nfev
    else:
        spread, spent = run.spread(draws, n, rotation)
        far = spread is not None and bool(plain(spread > 1.0).any())
        if far:
            draws, rotation = replace(draws, spread=True), (spread, *rotation)
        result = run.whole(draws, n, rotation)
        if spread is not None:
            result = _remember(result, spread, far, isinstance(spent, Tensor))
    return replace(result, nfev=(result.nfev + spent) * each)


@dataclass(frozen=True)
class _Run:
    """How the engine of :func:`quadgrad.qmc` is asked."""

    question: Question
    options: Options
    record: InnerRecord
    d: int
    sequence: str
    steps: bool

    def whole(self, draws: Draws, n: int | None, more: tuple[Any, ...]) -> Result:
        """Sample until the tolerance is met, or n is spent."""
        o = self.options
        return self._ask(draws, n, more, (o.rtol, o.atol), o.seed, o.plan, False)

    def pilot(self, draws: Draws, n: int | None, more: tuple[Any, ...]) -> Result:
        """Return a small sample, without gradient, of points of its own."""
        kept = self.options.plan
        seed = self.options.seed if self.options.seed is not None else kept.seed if kept is not None else 0
        n = PILOT if n is None else min(n, PILOT)
        with torch.no_grad():
            found = decided(
                lambda: self._ask(draws, n, more, (None, 0.0), hash_numbers(seed, PILOT_KEY), None, True)
            )
        return replace(found, value=found.value.detach().nan_to_num(0.0, 0.0, 0.0), error=found.error.detach())

    def spread(self, draws: Draws, n: int | None, more: tuple[Any, ...]) -> tuple[Tensor | None, Any]:
        """Return how far to draw each integral's points towards the tails, and what two small samples have cost.

        None if it is of no use; a plan remembers it.
        """
        if (
            self.sequence != "sobol"
            or self.d > MOST_SPREAD
            or self.steps
            or is_discrete(self.question.distribution)
        ):
            return None, 0
        kept = self.options.plan
        if isinstance(kept, PointsPlan) and kept.spread is not None:
            return kept.spread.reshape(kept.batch_shape).to(self.question.device, self.question.wide), 0
        small = PILOT if n is None else min(PILOT, max(256, n // 8))
        even = self.pilot(draws, small, more)
        far = torch.full((), spread_of(self.d), dtype=self.question.wide, device=self.question.device)
        wide = self.pilot(replace(draws, spread=True), small, (far, *more))
        off = size_of(even.value - wide.value, even.error.ndim)
        worth = wide.error < WORTH * torch.maximum(even.error, off)
        return torch.where(worth, far, 1.0), even.nfev + wide.nfev

    def _ask(
        self, draws: Draws, n: int | None, more: tuple[Any, ...], tolerances: tuple[float | None, float],
        seed: int | None, plan: PointsPlan | None, detached: bool,
    ) -> Result:  # fmt: skip
        o, question = self.options, self.question
        corners = [torch.full((self.d,), v, dtype=question.wide, device=question.device) for v in (0.0, 1.0)]
        args = question.arguments(*more, detached=detached)
        problem = prepare_box(draws, corners[0], corners[1], args, True, tolerances, chunk_size=o.chunk_size)
        problem.integrand.name = "function f (of draws)"
        ranks = open_ranks(o.ranks, problem)
        sample, said = make_sample(
            problem, self.sequence, n, tolerances, o.replicates, o.confidence, seed, plan, ranks
        )
        sample = replace(sample, steps=self.steps)
        gradient = Reuse() if detached else o.gradient
        return quietly(self.record, lambda: integrate_samples(problem, gradient, sample, said, "ignore"))


def _remember(result: Result, spread: Tensor, far: bool, tried: bool) -> Result:
    """Return a result that tells how points were drawn; its plan too, so that it is not found out again."""
    how = "Two small samples came first; points" if tried else "As its plan says, points"
    way = "towards the tails" if far else "evenly"
    plan = result.plan
    if isinstance(plan, PointsPlan) and not in_transform():  # lanes are the transform's own
        plan = replace(plan, spread=plain(spread).expand(plan.batch_shape).reshape(-1).contiguous())
    return replace(result, plan=plan, detail=f"{result.detail} {how} are drawn {way}.")


def _sample_quotient(run: _Run, draws: Draws, n: int | None, rotation: tuple[Any, ...]) -> tuple[Result, Tensor]:
    """Return the quotient of two means on the same points.

    About a quotient that a pilot has found, both are linear: the first component's error, relative to the second,
    is that of the quotient (the delta method), and the tolerance is asked of it.
    """
    question, o = run.question, run.options
    pilot = run.pilot(replace(draws, estimator="pathwise"), n, rotation)
    ratio, size, scale = about(pilot, o)
    quotient = replace(draws, quotient=True)
    result = run.whole(quotient, n, (element(ratio, 1), size, scale, *rotation))
    tolerances = (0.0, 0.0) if o.fixed else o.tolerances
    return divide(question, result, ratio, scale, tolerances), pilot.nfev


def about(pilot: Result, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a pilot says of numerators and a denominator: quotient, denominator, the quotient's scale."""
    size = pilot.value[..., -1]
    size = torch.where(size.abs() > 0.0, size, 1.0).real
    ratio = pilot.value[..., :-1] / size[..., None]
    rtol, atol = options.tolerances
    least = atol / rtol if rtol > 0.0 else 1.0
    scale = ratio.abs().amax(-1).clamp_min(least)
    return ratio, size, torch.where(scale > 0.0, scale, 1.0)


_UNSEEN = (
    " The weight was 0 at all draws of {count}, and the quotient is 0 / 0: it is too narrow for the distribution, "
    "or underflows (multiply it by a constant, which leaves the quotient as it is)."
)


def divide(
    question: Question, result: Result, ratio: Tensor, scale: Tensor, tolerances: tuple[float, float]
) -> Result:
    """Return the quotient that the components of :class:`Draws` make up, and its error."""
    shape = result.value.shape[:-1]
    center = ratio.expand(*shape, -1).reshape(-1, ratio.shape[-1])
    width = scale.expand(shape).reshape(-1, 1)
    event, components = question.event, ratio.shape[-1]

    def function(raw: Tensor) -> Tensor:
        quotient = center + width * raw[..., :components] / raw[..., components : components + 1]
        return quotient.reshape(-1, *event)

    raw, wide = result.value.detach(), scale.expand(shape)
    part = raw[..., components].abs() / wide
    off = raw[..., :components].abs().amax(-1) / wide / part
    error = (result.error * (1.0 + off) / part).nan_to_num(torch.inf, torch.inf)
    answer = finish(result, function, shape)
    answer = judge(answer, error.to(answer.error.dtype), tolerances)
    unseen = part == 0.0
    count = int(plain(unseen).sum())
    if not count:
        return answer
    status = torch.where(unseen, int(Status.NONFINITE), answer.status)
    return replace(answer, status=status, detail=answer.detail + _UNSEEN.format(count=count))


def _components(distribution: Any) -> int:
    """Return how many values of f one point takes."""
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        return int(distribution.component_distribution.batch_shape[-1])
    if isinstance(distribution, torch.distributions.TransformedDistribution):
        return _components(distribution.base_dist)
    return 1


def _principal_axes(question: Question) -> Any:
    """Return the rotation that makes the first coordinates of a multivariate normal those that matter most.

    It is fixed: the law of what is drawn is the same for every rotation, so derivatives go through the factor
    alone, and not through eigenvectors, which have none where eigenvalues meet.
    """
    kinds = torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal
    still = question.still()
    if not isinstance(still, kinds):
        raise ValueError(f"construction='pca' is for multivariate normal distributions, not {type(still).__name__}")
    with torch.no_grad():
        rotation = torch.linalg.svd(still.scale_tril)[2].mT
    return element(rotation, 2)
