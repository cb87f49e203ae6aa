"""Second derivatives by what moves a kink: a place that search has found, with f continuous and bent there.

The sum over fixed cells has the first derivative, because what one side loses the other gains. Of higher ones it
lacks the integral of ``F = f(right) - f(left)``, both continued, from the place p to where it moves: F(p) is 0,
which is the equation of the place, and F_x the change of slope. Added is that integral by Gauss' rule on a stretch
of zero width, which has its derivatives: for one parameter the second one is F_theta^2 / F_x.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.integrand import Integrand
from quadgrad._core.reduce import align

__all__ = ["NODES", "WEIGHTS", "bends_at", "kink_sum"]

SPREAD = (1.0, 2.0, 4.0)
SLOPE = (-1.75, 8.0 / 3.0, -1.0, 1.0 / 12.0)
"""A slope from a value and three more at these distances, exact for cubic polynomials."""

CLOSER = 2.0**-10
"""A kink's slopes are the same so much closer."""

ALIKE, BENT = 0.05, 1e-5
"""Up to which part of them slopes are the same, and from which part of them on they differ."""

CONTINUOUS = 1e-6
"""A smaller difference across a place, relative to f there, is none."""

LEVEL = 0.1
"""Where f is steep it is continuous if the difference is below this part of how far f goes on either side."""

STEPS = 3
"""Newton steps towards where a place moves: each makes one more order of derivatives right."""

_GAUSS = np.polynomial.legendre.leggauss(3)
NODES, WEIGHTS = (0.5 + 0.5 * _GAUSS[0]).tolist(), (0.5 * _GAUSS[1]).tolist()
"""Gauss' rule on the unit interval: of an integral between a place and where it may move."""


def bends_at(integrand: Integrand, place: Tensor, away: Tensor, far: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Read f beside places ``(k, batch)``, from ``away`` to ``far`` from them.

    Returns by how much its slope changes, ``(k, batch, components)``, where that is a kink, and where its slopes
    grow towards the place instead: there second derivatives of a sum over fixed cells are worth nothing.
    """
    k, batch = place.shape
    unit = 0.25 * far
    steps = torch.tensor((0.0, *SPREAD, *(CLOSER * s for s in SPREAD)), dtype=place.dtype, device=place.device)
    out = away + unit * steps[:, None, None]
    x = torch.stack((place + out, place - out)).reshape(-1, batch)
    y = integrand(x, slice(0, batch)).detach()
    y = y.reshape(2, len(steps), k, batch, -1)
    weights = torch.tensor(SLOPE, dtype=y.dtype, device=y.device)[:, None, None, None]
    unit, away = unit[:, :, None], away[:, :, None]
    right, left = ((weights * side[:4]).sum(0) / unit for side in y)
    right_closer, left_closer = ((weights * side[[0, 4, 5, 6]]).sum(0) / (CLOSER * unit) for side in y)
    bend, closer = right + left, right_closer + left_closer  # to the left distances are counted the other way
    slope = torch.maximum(right.abs(), left.abs())
    steep = torch.maximum(right_closer.abs(), left_closer.abs())
    gap, size = (y[0, 0] - y[1, 0]).abs(), torch.maximum(y[0, 0].abs(), y[1, 0].abs())
    finite = y.isfinite().flatten(0, 1).all(0)
    continuous = finite & (gap <= CONTINUOUS * size + 8.0 * steep * away)
    same = (bend - closer).abs() <= ALIKE * torch.maximum(bend.abs(), closer.abs())
    kink = continuous & same & (bend.abs() > BENT * slope)
    level = finite & (gap <= LEVEL * torch.maximum(*(y[:, 3] - y[:, 0]).abs()))
    return bend, kink, level & ~kink & (steep > (1.0 + 4.0 * ALIKE) * slope)


def kink_sum(integrand: Integrand, place: Tensor, away: Tensor, far: Tensor) -> Tensor:
    """Return a zero ``(batch, *event)`` with the derivatives that kinks at places ``(k, batch)`` give by moving."""
    bend, kink, _ = bends_at(integrand, place, away, far)
    slope = torch.where(kink, bend, 1.0).movedim(2, 1)
    _, components, batch = slope.shape
    out = torch.stack((place + away, place - away))[:, :, None]

    def gap(moved: Tensor) -> Tensor:
        """Return F at so much beside the places, ``(n, k, components, batch)``, without its value."""
        x = out[:, None] + moved
        y = integrand(x.reshape(-1, batch), slice(0, batch))
        event[:] = [y.shape[2:]]
        y = y.reshape(*x.shape, components)
        y = (y[0] - y[1]).diagonal(0, 2, 4).movedim(-1, 2)  # of each component where it is bent
        return torch.where(kink.movedim(2, 1), y - y.detach(), 0.0)

    event: list[torch.Size] = []
    moved = torch.zeros_like(slope.real if slope.is_complex() else slope)[None]
    for _ in range(STEPS):
        step = gap(moved) / slope
        moved = moved - (step.real if step.is_complex() else step)
    nodes, weights = torch.tensor((NODES, WEIGHTS), dtype=moved.dtype, device=moved.device)
    means = (align(weights, slope[None]) * gap(align(nodes, slope[None]) * moved)).sum(0)
    total = -(means * moved[0]).sum(0)
    return total.movedim(0, 1).reshape(batch, *event[0])
