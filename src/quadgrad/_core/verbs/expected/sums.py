"""Expectations that are sums: over all states, over a window of 0, 1, 2 ..., over the nodes of a Gauss rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quadgrad._core._torch import in_transform
from quadgrad._core.distributions.gauss import hermite_grid, made_of_normals
from quadgrad._core.distributions.states import MOST_STATES, finite_states, probability, window
from quadgrad._core.distributions.transport import uniforms
from quadgrad._core.integrand import tensor_and_ndim
from quadgrad._core.lanes import plain
from quadgrad._core.rehearsal import thinking
from quadgrad._core.result import Result
from quadgrad._core.status import Status
from quadgrad._core.tolerance import epsilon, returned_dtype
from quadgrad._core.verbs.expected.options import Options, size_of
from quadgrad._core.verbs.expected.question import Question

__all__ = ["can_be_summed", "sum_nodes", "sum_question"]

BLOCK = 2**17
"""Values of f computed at a time without a ``chunk_size``."""

ROUNDING = 10.0
"""The least error of a sum, in roundings of that of the moduli."""

AT_MOST = 16 * MOST_STATES
"""Values of one expectation over an infinite window."""

MISSED = (
    " The probabilities of the values that were summed up add up to {:.6g}, not to 1 (expectation {}): log_prob "
    "loses its digits, or values were missed."
)

HERMITE_NODES = 32
"""Of a Gauss rule along each dimension unless n says."""


def can_be_summed(question: Question) -> bool:
    """Whether the distribution is discrete with values that can be gone through."""
    if finite_states(question.distribution) is not None:
        return True
    found = window(question.still())
    return found is not None and _width(*found) <= MOST_STATES


def _width(lower: Tensor, upper: Tensor) -> int:
    """Return how many states the widest window has."""
    return max(1, int(plain(upper - lower).amax()) + 1) if lower.numel() else 1


class _Sum:
    """The sums of p f, p, and their moduli, added up block by block."""

    def __init__(self, question: Question, chunk_size: int | None) -> None:
        self.question, self.recomputes = question, chunk_size is not None and not in_transform()
        self.block = chunk_size or BLOCK
        # The distribution stands in front of f's arguments, which are numbers or broadcast against (k, *batch).
        self.args = [tensor_and_ndim(a)[0] for a in question.args]
        self.numerator: Any = 0.0
        self.modulus: Any = 0.0
        self.mass: Any = 0.0
        self.denominator: Any = 0.0
        self.count = 0

    def add(self, states: Tensor, weigh: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        """Add blocks of states or nodes; ``weigh`` gives their probabilities ``(k, *batch)``, and x."""
        width = 1
        for size in self.question.batch_shape:
            width *= max(1, size)
        step = max(1, self.block // width)
        for part in states.split(step):
            compute = lambda part=part: self._part(*weigh(part))
            if self.recomputes and torch.is_grad_enabled():
                sums = checkpoint(compute, use_reentrant=False)
            else:
                sums = compute()
            self.numerator, self.modulus = self.numerator + sums[0], self.modulus + sums[1]
            self.mass, self.denominator = self.mass + sums[2], self.denominator + sums[3]
        self.count += states.shape[0]

    def _part(self, p: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        question = self.question
        shape = (x.shape[0], *question.batch_shape)
        x = x.expand(*shape, *question.distribution.event_shape)
        p = p.expand(shape)
        y, likelihood = question.values(x, self.args)
        columns = question.columns(y)
        weight = p if likelihood is None else p * likelihood
        # What cannot happen does not count, whatever f is there; its probability still has a derivative.
        impossible = (p == 0.0)[..., None] & ~columns.isfinite()
        terms = torch.where(impossible, 0.0, columns) * weight[..., None]
        return terms.sum(0), terms.detach().abs().sum(0), p.sum(0), weight.sum(0)


def sum_question(question: Question, options: Options) -> Result:
    """Return the answer of a sum over states."""
    distribution = question.parts.build([t.tensor for t in question.parts.tensors])
    states = finite_states(distribution)
    if states is None:
        return _sum_windows(question, distribution, options)
    total = _Sum(question, options.chunk_size)
    ones = (1,) * len(question.batch_shape)
    shape = tuple(distribution.event_shape)

    def weigh(part: Tensor) -> tuple[Tensor, Tensor]:
        x = part.reshape(part.shape[0], *ones, *shape)
        return probability(distribution, x), x

    total.add(states, weigh)
    return _result(question, options, total, torch.zeros((), device="cpu"))


def _sum_windows(question: Question, distribution: Any, options: Options) -> Result:
    """Sum up from the bulk outwards: the window doubles until two additions are below the tolerance."""
    found = window(question.still())
    assert found is not None
    lower, upper = (e.expand(question.batch_shape) for e in found)
    total = _Sum(question, options.chunk_size)
    rtol, atol = options.tolerances

    def add(start: Tensor, count: int, within: Tensor | None = None) -> Tensor:
        """Add ``count`` states of each expectation from ``start`` on; return how much that was."""
        before = total.modulus

        def weigh(number: Tensor) -> tuple[Tensor, Tensor]:
            x = start + number.reshape(-1, *(1,) * start.ndim)
            here = torch.ones_like(x, dtype=torch.bool) if within is None else (x >= 0.0) & (x < within)
            x = x.clamp_min(0.0)
            return torch.where(here, probability(distribution, x), 0.0), x

        total.add(torch.arange(count, dtype=lower.dtype, device=lower.device), weigh)
        return (total.modulus - before).amax(-1)

    width = _width(lower, upper)
    add(lower, width)
    low, high, small, last = lower, lower + width, 0, torch.full_like(lower, torch.inf)
    while small < 2 and total.count < AT_MOST:
        added = add(high, width)
        if bool(plain(low > 0.0).any()):
            added = added + add(low - width, width, within=low)
        low, high = (low - width).clamp_min(0.0), high + width
        allowed = (rtol * _size(total.numerator)).clamp_min(atol)
        met = (added <= 0.1 * allowed) | (added <= question_eps(question) * _size(total.modulus))
        small, last, width = (small + 1 if bool(plain(met).all()) else 0), added, 2 * width
    if small < 2:
        last = torch.full_like(last, torch.inf)
    return _result(question, options, total, last)


def question_eps(question: Question) -> float:
    """Return the rounding of one value of f."""
    return epsilon(question.dtype)


def _size(columns: Tensor) -> Tensor:
    return columns.detach().abs().amax(-1)


def _result(question: Question, options: Options, total: _Sum, last: Tensor, off: Tensor | None = None) -> Result:
    """Return value, error and status of a sum; ``last`` is the size of what was added last."""
    batch_shape, event = question.batch_shape, question.event
    mass = total.mass.detach()
    size = total.modulus.amax(-1)
    resolution = total.count * torch.finfo(question.wide).smallest_normal * torch.finfo(question.wide).eps
    error = last + resolution + ROUNDING * question_eps(question) * size + 2.0 * (mass - 1.0).abs() * size
    value = total.numerator
    if question.weight is not None:
        denominator = total.denominator
        value = value / denominator[..., None]
        error = 2.0 * error / denominator.detach().abs()
    error = error if off is None else error + off
    value = value.reshape((*batch_shape, *event))
    rtol, atol = options.tolerances
    largest = size_of(value, len(batch_shape))
    allowed = (rtol * largest).clamp_min(atol)
    # A sum that cancels to rounding is 0 as far as anyone can tell.
    met = (error <= allowed) | (error <= 5.0 * ROUNDING * question_eps(question) * size)
    broken = ~largest.isfinite()
    short = ~((mass - 1.0).abs() <= max(rtol, 1e-6)) & ~broken
    met = met & ~short
    status = torch.full(batch_shape, int(Status.MAX_NFEV), dtype=torch.int64, device=largest.device)
    status = torch.where(met, int(Status.CONVERGED), status)
    status = torch.where(broken, int(Status.NONFINITE), status)
    dtype = returned_dtype(question.dtype, torch.float32)
    nfev = torch.full(batch_shape, total.count, dtype=torch.int64, device=largest.device)
    error = torch.where(broken, torch.inf, error).to(dtype).detach().expand(batch_shape)
    places = plain(short).flatten().nonzero().flatten()[:1].tolist()
    detail = MISSED.format(float(plain(mass).flatten()[places[0]]), places[0]) if places else ""
    return Result(value, error, status, nfev, None, detail)


def sum_nodes(question: Question, options: Options) -> Result:
    """Return the answer of a Gauss-Hermite rule; its error is how far two coarser rules are off.

    Raises
    ------
    ValueError
        If the distribution is not made of normal numbers, or the rule would have too many nodes.
    """
    distribution = question.parts.build([t.tensor for t in question.parts.tensors])
    d = uniforms(question.still())
    nodes = HERMITE_NODES if options.n is None else max(4, int(options.n ** (1.0 / d) + 1e-9))
    if nodes**d > MOST_STATES * 16:
        raise ValueError(
            f"method='gauss': {nodes} nodes along each of {d} dimensions are {float(nodes**d):.1e} in all: give n, "
            "the number of all nodes, or use method='qmc'"
        )
    each: list[Result] = []
    ones = (1,) * len(question.batch_shape)
    for count in (nodes, nodes - 1, max(2, nodes // 2)):
        z, weight = hermite_grid(count, d, question.dtype, question.device)
        total = _Sum(question, options.chunk_size)
        number = torch.arange(z.shape[0], device=z.device)

        def weigh(part: Tensor, z: Tensor = z, weight: Tensor = weight) -> tuple[Tensor, Tensor]:
            x = made_of_normals(distribution, z[part].reshape(part.shape[0], *ones, -1))
            return weight[part].reshape(-1, *ones), x

        if each:
            with torch.no_grad(), thinking():
                total.add(number, weigh)
        else:
            total.add(number, weigh)
        each.append(_result(question, options, total, torch.zeros((), device="cpu")))
    gaps = [size_of(each[0].value - e.value, len(ones)) for e in each[1:]]
    error = each[0].error + torch.maximum(*gaps)
    largest = size_of(each[0].value, len(ones))
    allowed = (options.tolerances[0] * largest).clamp_min(options.tolerances[1])
    missed = (error > allowed) & (each[0].status == int(Status.CONVERGED))
    status = torch.where(missed, int(Status.MAX_NFEV), each[0].status)
    if options.fixed:
        status = torch.where(each[0].status == int(Status.NONFINITE), each[0].status, int(Status.SAMPLED))
    nfev = sum(e.nfev for e in each)
    return replace(each[0], error=error, status=status, nfev=torch.as_tensor(nfev, device="cpu"))
