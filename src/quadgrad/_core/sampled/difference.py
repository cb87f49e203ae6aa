"""The error of a rule on samples, read from what fewer of them say. It knows no rule.

Two orders are at hand in any samples: the same rule on every second one. On even samples of a smooth function the
difference is 3 (trapezoid) or 15 times (Simpson) the error; where data are rough and no order is reached, it is of
the error's own size. Two columns of Romberg's table on the same samples would differ by 4^-k of that: where it has
not converged, by much too little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from quadgrad._core.sampled.samples import Samples, real_epsilon

__all__ = ["integrate", "rounding"]

ROUNDING = 8.0
"""A sum is so many spacings of its absolute sum off, at most: torch adds in a tree."""

Rule = Callable[[Samples], Tensor]
"""Samples to integrals ``(*batch, 1)``, as if dx were 1."""


def integrate(
    rule: Rule, samples: Samples, return_error: bool, local_error: Rule | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Return a rule's integrals, and their errors if asked: no less than ``local_error`` says.

    A rule without one takes evenly spaced samples alone.
    """
    value = samples.scaled(rule(samples))[..., 0]
    return (value, _error(rule, samples.detached(), local_error)[..., 0]) if return_error else value


def _error(rule: Rule, samples: Samples, local_error: Rule | None) -> Tensor:
    """Return how far the rule is from itself on every second sample: shape ``(*batch, 1)``, real.

    Both ends stay. The larger difference counts of the two halves that can be left out: one alone may be small by
    chance, most of all at a jump. One gap says nothing: infinity.
    """
    n = samples.count
    floor = ROUNDING * rounding(samples).sum(-1, keepdim=True)
    if n <= 1:
        return floor
    if n == 2:
        return torch.full_like(floor, torch.inf)
    if local_error is None:  # twice the spacing
        coarser = [replace(samples, y=2 * samples.y[..., ::2])]
        errors = [floor]
    else:
        every = torch.arange(n, device=samples.y.device)
        picks = every[::2] if n % 2 else torch.cat((every[::2], every[-1:])), _ends_and_odd(every)
        coarser = [_thinned(samples, pick) for pick in picks]
        errors = [floor, local_error(samples)]
    fine = rule(samples)
    errors += [samples.scaled(fine - rule(coarse)).abs() for coarse in coarser]
    return torch.stack(torch.broadcast_tensors(*errors)).amax(0).nan_to_num(torch.inf, torch.inf)


def _ends_and_odd(every: Tensor) -> Tensor:
    odd = every[1:-1:2]
    return torch.cat((every[:1], odd, every[-1:]))


def _thinned(samples: Samples, pick: Tensor) -> Samples:
    """Return some of the samples, for integrals before dx."""
    places = pick.to(samples.y.real.dtype) if samples.x is None else samples.x.index_select(-1, pick)
    return replace(samples, y=samples.y.index_select(-1, pick), x=places)


def rounding(samples: Samples) -> Tensor:
    """Return a spacing of the integral of |y| over each gap: shape ``(*batch, n - 1)``."""
    gaps = samples.gaps
    sizes = samples.y.abs()
    pieces = (sizes[..., 1:] + sizes[..., :-1]) / 2
    return real_epsilon(pieces) * (samples.scaled(pieces).abs() if gaps is None else pieces * gaps.abs())
