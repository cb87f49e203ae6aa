"""The values of discrete distributions, and how likely they are."""

from __future__ import annotations

import math
from typing import Any

import scipy  # which imports scipy.stats, a third of the start, when it is used
import torch
from torch import Tensor, distributions
from torch.distributions import Independent, MixtureSameFamily

from quadgrad._core.broadcasting import broadcast_shapes
from quadgrad._core.distributions.quantiles import elementwise

__all__ = ["MOST_STATES", "finite_states", "probability", "window"]

MOST_STATES = 2**16
"""More are sampled."""

TAIL = 1e-16
"""How unlikely it is that a value lies above the first window, or below it."""


def finite_states(distribution: Any) -> Tensor | None:
    """Return all values ``(states, *event)``; None if they are too many, or not known."""
    states = _states(distribution)
    return states if states is None or states.shape[0] <= MOST_STATES else None


def _states(distribution: Any) -> Tensor | None:
    if isinstance(distribution, MixtureSameFamily):
        return _states(distribution.component_distribution)
    if isinstance(distribution, Independent):
        base, count = distribution.base_dist, distribution.reinterpreted_batch_ndims
        states = _states(base)
        if states is None:
            return None
        own = base.batch_shape[len(base.batch_shape) - count :]
        places, each = math.prod(own), states.shape[0]
        if places * math.log(max(each, 1)) > math.log(MOST_STATES) + 1e-9:
            return None
        # Digits of the state's number name the value at each place.
        number = torch.arange(each**places, device=states.device)[:, None]
        power = each ** torch.arange(places, device=states.device)
        return states[number // power % each].reshape(-1, *own, *states.shape[1:])
    if not distribution.has_enumerate_support:
        return None
    try:
        states = distribution.enumerate_support(expand=False)
    except NotImplementedError:
        return None
    return states.reshape(states.shape[0], *distribution.event_shape)


def probability(distribution: Any, x: Tensor) -> Tensor:
    """Return the probability of values ``(states, *batch or ones, *event)``: ``(states, *batch)``.

    Where torch takes it from logarithms of what it has cut off at 0 and 1, derivatives there are lost: those of
    probabilities that are 0 are not.
    """
    if isinstance(distribution, Independent):
        count = distribution.reinterpreted_batch_ndims
        p = probability(distribution.base_dist, x)
        return p.flatten(p.ndim - count).prod(-1) if count else p
    if isinstance(distribution, MixtureSameFamily):
        place = x.ndim - len(distribution.event_shape)
        p = probability(distribution.component_distribution, x.unsqueeze(place))
        return (p * distribution.mixture_distribution.probs).sum(-1)
    if isinstance(distribution, distributions.Bernoulli):
        return torch.where(x == 1.0, distribution.probs, 1.0 - distribution.probs)
    if isinstance(distribution, distributions.Categorical):
        probs = distribution.probs
        shape = broadcast_shapes(x.shape, probs.shape[:-1])
        return probs.expand(*shape, -1).gather(-1, x.expand(shape)[..., None])[..., 0]
    if isinstance(distribution, distributions.OneHotCategorical):
        return (distribution.probs * x).sum(-1)
    return torch.exp(distribution.log_prob(x))


def window(distribution: Any) -> tuple[Tensor, Tensor] | None:
    """Return from where to where almost all of one over 0, 1, 2 ... lies, both ``batch``; None if not known."""
    kind = type(distribution)
    if kind is distributions.Poisson:
        return _ends(scipy.stats.poisson, distribution.rate)
    if kind is distributions.Geometric:
        return _ends(scipy.stats.geom, distribution.probs, shift=1.0)
    if kind is distributions.NegativeBinomial:
        return _ends(scipy.stats.nbinom, distribution.total_count, 1.0 - distribution.probs)
    return None


def _ends(kind: Any, *parameters: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    ends = (
        elementwise(lambda *p, quantile=quantile: quantile(TAIL, *p) - shift, *parameters)
        for quantile in (kind.ppf, kind.isf)
    )
    lower, upper = (end.nan_to_num(0.0).clamp_min(0.0) for end in ends)
    return lower, torch.maximum(lower, upper)
