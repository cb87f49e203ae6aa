"""Points of the unit cube to perturbations of items of one shape.

A point that is uniformly distributed becomes a perturbation with the distribution asked for, as a differentiable
function of the distribution's parameters: :mod:`quadgrad._core.distributions.transport` knows how.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    TransformedDistribution,
)

from quadgrad._core.distributions.transport import draw, is_discrete, refuse_no_transport, uniforms

__all__ = ["Transport"]


@dataclass(frozen=True)
class Transport:
    """From points to perturbations of items of one shape.

    Attributes
    ----------
    distribution : torch.distributions.Distribution
        Of the perturbation. Its shape is the end of an item's; in front, coordinates are independent.
    cube : tuple of int
        What a point's coordinates are arranged as.
    """

    distribution: Distribution
    cube: tuple[int, ...]

    @classmethod
    def of(cls, distribution: Any, item: torch.Size) -> Transport:
        """Return the transport for items of a shape.

        Raises
        ------
        TypeError
            If it is no distribution, or one without a differentiable way to it from uniform numbers.
        ValueError
            If its shape is not the end of an item's.
        """
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"distribution={distribution!r} is no torch.distributions.Distribution: pass that of the "
                "perturbation, for example torch.distributions.Normal(0.0, 0.25)"
            )
        shape = distribution.batch_shape + distribution.event_shape
        lead = len(item) - len(shape)
        if lead < 0 or item[lead:] != shape:
            raise ValueError(
                f"the distribution has shape {tuple(shape)}, an item {tuple(item)}: give it a batch shape of () or "
                "that of an item, for example with distribution.expand(x.shape[1:])"
            )
        _refuse(distribution)
        return cls(distribution, (*item[:lead], *distribution.batch_shape, uniforms(distribution)))

    @property
    def d(self) -> int:
        """Coordinates of a point."""
        return math.prod(self.cube)

    def perturbations(self, points: Tensor) -> Tensor:
        """Return perturbations ``(*lead, *item)`` for points ``(*lead, d)``; differentiable by the parameters."""
        return draw(self.distribution, points.unflatten(-1, self.cube))[0]


def _refuse(distribution: Distribution) -> None:
    """Raise ``TypeError`` for what has no differentiable transport."""
    base: Any = distribution
    while isinstance(base, Independent | TransformedDistribution):
        base = base.base_dist
    if isinstance(base, MultivariateNormal | LowRankMultivariateNormal):
        # What it computes once and keeps is computed here: later it would keep what belongs to one derivative.
        _ = base.scale_tril
    discrete = is_discrete(distribution)
    if not discrete and not isinstance(base, MixtureSameFamily):
        with suppress(ValueError):
            refuse_no_transport(distribution)
            return
    why = "its values are counted" if discrete else "no differentiable way is known from uniform numbers to it"
    raise TypeError(
        f"{type(base).__name__} cannot perturb: {why}, and its own samples come from the global generator. Write "
        "the perturbation as a TransformedDistribution of Normal or Uniform, or draw what is missing inside loss"
    )
