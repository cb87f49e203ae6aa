"""Points of the unit cube to perturbations, by a distribution's inverse distribution function.

Nothing is drawn here. A point that is uniformly distributed becomes a perturbation with the distribution asked for,
as a differentiable function of the distribution's parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    TransformedDistribution,
)

from quadgrad._core.distributions.transport import standard_normal

__all__ = ["Transport"]

GAUSSIAN = (MultivariateNormal, LowRankMultivariateNormal)


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
            If it is no distribution, or one without inverse distribution function.
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
        return cls(distribution, tuple(item[:lead] + _cube(distribution)))

    @property
    def d(self) -> int:
        """Coordinates of a point."""
        return math.prod(self.cube)

    def perturbations(self, points: Tensor) -> Tensor:
        """Return perturbations ``(*lead, *item)`` for points ``(*lead, d)``; differentiable by the parameters."""
        return _transported(self.distribution, points.unflatten(-1, self.cube) if self.cube else points[..., 0])


def _cube(distribution: Distribution) -> torch.Size:
    """Return what the coordinates of one draw are arranged as; refuse what has no transport."""
    if isinstance(distribution, Independent | TransformedDistribution):
        return _cube(cast(Distribution, distribution.base_dist))
    if isinstance(distribution, GAUSSIAN):
        # What it computes once and keeps is computed here: later it would keep what belongs to one derivative.
        _ = distribution.scale_tril
    elif type(distribution).icdf is Distribution.icdf:
        name = type(distribution).__name__
        raise TypeError(
            f"{name} has no inverse distribution function in torch (icdf), and its own samples come from the "
            "global generator. Write the perturbation as a TransformedDistribution of Normal or Uniform, or draw "
            "what is missing inside loss"
        )
    return distribution.batch_shape + distribution.event_shape


def _transported(distribution: Distribution, points: Tensor) -> Tensor:
    if isinstance(distribution, Independent):
        return _transported(cast(Distribution, distribution.base_dist), points)
    if isinstance(distribution, TransformedDistribution):
        sample = _transported(cast(Distribution, distribution.base_dist), points)
        for transform in distribution.transforms:
            sample = cast(Tensor, transform(sample))
        return sample
    if isinstance(distribution, GAUSSIAN):
        factor = distribution.scale_tril
        normal = standard_normal(points).to(factor.dtype)
        return distribution.loc + (factor @ normal[..., None])[..., 0]
    return distribution.icdf(points)
