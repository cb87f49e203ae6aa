"""Gauss-Hermite rules for what is made of independent normal numbers."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, distributions
from torch.distributions import Independent, TransformedDistribution

__all__ = ["hermite_grid", "made_of_normals"]


def hermite_grid(nodes: int, d: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the nodes ``(nodes**d, d)`` and weights of the product rule for the standard normal distribution."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    line, weight = (torch.as_tensor(v, dtype=dtype, device=device) for v in (x, w))
    number = torch.arange(nodes**d, device=device)[:, None]
    digit = number // nodes ** torch.arange(d, device=device) % nodes
    return line[digit], weight[digit].prod(-1)


def made_of_normals(distribution: Any, z: Tensor) -> Tensor:
    """Return what a distribution makes of independent standard normal numbers ``(*lead, d)``.

    Raises
    ------
    ValueError
        If it is not made of normal numbers.
    """
    kind = type(distribution)
    if isinstance(distribution, Independent):
        base, count = distribution.base_dist, distribution.reinterpreted_batch_ndims
        own = base.batch_shape[len(base.batch_shape) - count :]
        return made_of_normals(base, z.reshape(*z.shape[:-1], *own, z.shape[-1] // max(1, math.prod(own))))
    if kind is distributions.Normal:
        return torch.addcmul(distribution.loc, distribution.scale, z[..., 0])
    if kind in (distributions.MultivariateNormal, distributions.LowRankMultivariateNormal):
        return distribution.loc + torch.einsum("...ij,...j->...i", distribution.scale_tril, z)
    if isinstance(distribution, TransformedDistribution):
        x = made_of_normals(distribution.base_dist, z)
        for transform in distribution.transforms:
            x = cast(Tensor, transform(x))
        return x
    raise ValueError(
        f"method='gauss' has nodes for normal distributions and what is made of them, not for {kind.__name__}: "
        "method='auto' chooses for it"
    )
