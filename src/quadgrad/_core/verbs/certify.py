"""Certified robustness by randomized smoothing: how far an item may move before the smoothed decision changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import scipy  # which imports scipy.special when that is first used: a sixth of the start
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

from quadgrad._core.errors import IntegrandError
from quadgrad._core.perturbations.transport import Transport
from quadgrad._core.points import Pseudorandom
from quadgrad._core.points.hashing import fold_seed, hash_numbers
from quadgrad._core.points.sequence import whole_number

__all__ = ["Certificate", "certify"]

CERTIFY = 0x43455254
"""Key of the points, which are not those of a loss with the same seed."""

TOGETHER, NUMBERS = 1000, 1 << 22
"""Perturbed items in one call of the model, and their numbers, at most."""


class Certificate(NamedTuple):
    """What :func:`certify` found of each item, each of shape ``(B,)``.

    Attributes
    ----------
    label : Tensor of int64
        The smoothed decision, -1 where it is not certain.
    probability : Tensor of float64
        A lower bound of the probability of the class that was chosen.
    radius : Tensor of float64
        Within it, in the Euclidean norm, the smoothed decision does not change; 0 where it is not certain.
    """

    label: Tensor
    probability: Tensor
    radius: Tensor


def certify(
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    distribution: Distribution,
    *,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 1e-3,
    seed: int = 0,
) -> Certificate:
    """Certify the decisions of a classifier that is smoothed by Gaussian noise.

    Parameters
    ----------
    model : callable
        Takes ``(m, *item)`` and returns scores ``(m, classes)``, of which the largest decides, or integer labels
        ``(m,)``. A module must be in evaluation mode.
    x : Tensor, shape ``(B, *item)``
        The items; floating.
    distribution : torch.distributions.Distribution
        A normal distribution of the noise: ``Normal``, an ``Independent`` of it or a multivariate normal, of shape
        () or that of the end of an item's.
    n0, n : int
        Independent perturbations to choose the class with, and others to bound its probability.
    alpha : float
        For each item by itself, the probability that its bound is wrong is at most this.
    seed : int
        Of the perturbations, which depend on it and on the item's position.

    Returns
    -------
    (label, probability, radius) : Certificate
        Each of shape ``(B,)``; label is -1 and radius 0 where the bound is not above 1/2. Where the noise has
        unequal scales, the radius is that of the smallest.

    Raises
    ------
    TypeError
        The noise is not normal, x is not floating.
    ValueError
        A module in training mode, a shape that does not fit, n0 or n below 1, alpha not between 0 and 1.
    IntegrandError
        The model returns neither scores nor labels.

    Notes
    -----
    Algorithm CERTIFY of Cohen, Rosenfeld and Kolter (*ICML* 2019): the bound is Clopper and Pearson's
    (*Biometrika* 26, 1934) on independent points, and the radius sigma times its normal quantile. A perturbation at
    which a score is NaN counts for no class. Memory does not depend on B or n beyond x itself.

    Examples
    --------
    A linear classifier, whose smoothed decision changes at the same distance as its own:

    >>> import torch, quadgrad as qg
    >>> model = lambda x: torch.stack((x.sum(1), -x.sum(1)), dim=1)
    >>> x = torch.tensor([[0.3, 0.3], [-0.2, -0.1], [0.01, 0.0]])
    >>> label, probability, radius = qg.certify(model, x, torch.distributions.Normal(0.0, 0.25))
    >>> label
    tensor([ 0,  1, -1])
    >>> bool((radius <= x.sum(1).abs() / 2**0.5).all())
    True
    """
    sigma, transport = _check(model, x, distribution)
    n0, n = whole_number("n0", n0), whole_number("n", n)
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha={alpha!r} must be between 0 and 1")
    seed = fold_seed(seed)
    chosen: list[int] = []
    hits: list[int] = []
    with torch.no_grad():
        for i in range(x.shape[0]):
            smoothed = _Smoothed(model, x[i], transport, hash_numbers(seed, CERTIFY, i))
            counts = smoothed.counts(0, n0)
            label = max(counts, key=lambda c: (counts[c], -c)) if counts else -1
            chosen.append(label)
            hits.append(smoothed.counts(n0, n).get(label, 0))
    bounds = [lower_bound(k, n, alpha) for k in hits]
    radii = [sigma * float(scipy.special.ndtri(p)) if p > 0.5 else 0.0 for p in bounds]
    labels = [c if p > 0.5 else -1 for c, p in zip(chosen, bounds, strict=True)]
    numbers = torch.tensor([bounds, radii], dtype=torch.float64, device=x.device)
    return Certificate(torch.tensor(labels, dtype=torch.int64, device=x.device), *numbers)


def lower_bound(hits: int, n: int, alpha: float) -> float:
    """Return the lower end of Clopper and Pearson's one-sided interval of confidence ``1 - alpha``."""
    return float(scipy.special.betaincinv(hits, n - hits + 1, alpha)) if hits else 0.0


class _Smoothed:
    """A model on independent perturbations of one item, a function of the perturbation's number alone."""

    def __init__(self, model: Callable[[Tensor], Tensor], x: Tensor, transport: Transport, seed: int) -> None:
        self.model, self.x, self.transport = model, x, transport
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.points = Pseudorandom(transport.d, seed, 1, x.device, dtype)
        self.together = max(1, min(TOGETHER, NUMBERS // transport.d))

    def counts(self, start: int, count: int) -> dict[int, int]:
        """Return how often each class is decided for; classes that never are are left out."""
        counts: dict[int, int] = {}
        for low in range(start, start + count, self.together):
            points = self.points.points(low, min(self.together, start + count - low))[0].contiguous()
            perturbations = self.transport.perturbations(points).to(self.x.dtype)
            labels, often = decisions(self.model, self.x + perturbations).unique(return_counts=True)
            for label, times in zip(labels.tolist(), often.tolist(), strict=True):
                counts[label] = counts.get(label, 0) + times
        counts.pop(-1, None)
        return counts


def decisions(model: Callable[[Tensor], Tensor], xs: Tensor) -> Tensor:
    """Return a model's labels ``(m,)``, -1 where a score is NaN."""
    try:
        scores = cast(Any, model(xs))
    except Exception as error:
        error.add_note(f"quadgrad: certify called the model {_with_items(xs)}")
        raise
    if isinstance(scores, Tensor) and scores.shape[:1] == xs.shape[:1]:
        if scores.ndim == 2 and scores.shape[1] > 1:
            return scores.argmax(1).masked_fill(scores.isnan().any(1), -1)
        if scores.ndim == 1 and not (scores.is_floating_point() or scores.is_complex()):
            return scores.long()
    shape = f"shape {tuple(scores.shape)}, {scores.dtype}" if isinstance(scores, Tensor) else type(scores).__name__
    raise IntegrandError(
        f"model returned {shape} for {xs.shape[0]} items: it must return scores of two or more classes, "
        f"({xs.shape[0]}, classes), or integer labels ({xs.shape[0]},). It was called {_with_items(xs)}"
    )


def _with_items(xs: Tensor) -> str:
    item = tuple(xs.shape[1:])
    return (
        f"with a tensor of shape {tuple(xs.shape)}, items of shape {item}: the first dimension of x is that of the "
        "items. For one item alone pass x[None]"
    )


def _check(model: Any, x: Any, distribution: Any) -> tuple[float, Transport]:
    """Return the smallest standard deviation of the noise in any direction, and its transport."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise TypeError(f"x has {what}: pass a floating tensor, (B, *item)")
    if x.ndim == 0:
        raise ValueError("x has shape (): its first dimension must be that of the items")
    if isinstance(model, torch.nn.Module) and any(part.training for part in model.modules()):
        raise ValueError(
            "the model is in training mode, where a decision may depend on the other items of a batch: call "
            "model.eval() first"
        )
    transport = Transport.of(distribution, x.shape[1:])
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Normal):
        return float(distribution.scale.detach().min()), transport
    if isinstance(distribution, MultivariateNormal | LowRankMultivariateNormal):
        least = torch.linalg.eigvalsh(distribution.covariance_matrix.detach().double()).min()
        return math.sqrt(max(0.0, float(least))), transport
    raise TypeError(
        f"the noise is a {type(distribution).__name__}: the radius is known for normal noise, for example "
        "torch.distributions.Normal(0.0, 0.25)"
    )
