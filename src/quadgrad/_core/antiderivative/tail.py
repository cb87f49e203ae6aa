"""What the antiderivative does between a singular end and the last node beside it.

There the integral T from x to the end, as a function of y, the logarithm by which x is closer to the end than the
last node, is taken to be ``T(0) (1 + drift y) exp(-(rate + drift) y)``. Without drift that is the integral of a
power of the distance; with it, of a power times a logarithm, or of anything whose exponent changes as slowly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.reduce import align

__all__ = ["Tails", "fit_tails"]

STEADY = 1e-9
"""A law that bends by less than this part of its decay is taken to be straight: rounding of f makes as much."""

BENT = 2.0
"""Nor by more than so many units: what is left is then below the rounding of what came before."""

NEWTON_STEPS = 12
"""Enough for equations that are convex, from a start on the steep side that knows the first digit."""


@dataclass(frozen=True)
class Tails:
    """The laws of ``q`` tails: ``whole``, ``rate`` and ``drift`` have shape ``(q, *event)``."""

    whole: Tensor
    rate: Tensor
    drift: Tensor

    def at(self, tail: Tensor, y: Tensor) -> Tensor:
        """Return the integrals of the given tails ``(p,)`` beyond y ``(p,)``: ``(p, *event)``."""
        whole, rate, drift = (t.index_select(0, tail) for t in (self.whole, self.rate, self.drift))
        y = align(y, whole)
        # At the end itself y is infinite, and the integral 0.
        near = y.clamp_max(1e6)
        value = whole * (1.0 + drift * near) * torch.exp(-(rate + drift) * near)
        return torch.where(y.isinf(), 0.0, value)

    def where(self, tail: Tensor, value: Tensor) -> Tensor:
        """Return the y ``(p,)`` at which tails have these values, between 0 and what they are on the whole."""
        whole, rate, drift = (t.index_select(0, tail) for t in (self.whole, self.rate, self.drift))
        depth = torch.log(whole / value).clamp_min(0.0)
        y = depth / rate
        for _ in range(NEWTON_STEPS):
            excess = (rate + drift) * y - torch.log1p(drift * y) - depth
            y = y - excess / (rate + drift - drift / (1.0 + drift * y))
        return torch.where(depth.isinf(), torch.inf, y).clamp_min(0.0)


def fit_tails(whole: Tensor, edge: Tensor, share: Tensor, width: float) -> Tails:
    """Return the laws that continue cells whose nodes are spread over logarithms.

    Parameters
    ----------
    whole : Tensor, shape (q, *event)
        The integral T(0) beyond the last edge.
    edge : Tensor, shape (q, *event)
        ``-dT/dy`` there.
    share : Tensor, shape (q, *event)
        The integral over the last stretch before it, from ``y = -width``.
    width : float
    """
    tiny = torch.finfo(share.detach().abs().dtype).tiny
    # Where nothing is left, or what is left has not the sign of f, any law will do: its error is the whole.
    usable = (whole.abs() > tiny) & ((edge / torch.where(whole == 0, 1.0, whole)).real > 0.0)
    rate = torch.where(usable, edge, 1.0) / torch.where(usable, whole, 1.0)
    if whole.is_complex():
        return Tails(whole, rate, torch.zeros_like(rate.real))
    # T(-width) tells how the law bends; a derivative of f's would be noise, high coefficients weigh most in it.
    grown = torch.log1p((share / torch.where(usable, whole, 1.0)).detach().clamp_min(0.0))
    bend = torch.where(usable, rate.detach() * width - grown, 0.0)  # = -z - log(1 - z), z = drift * width
    bend = torch.where(bend > STEADY * grown, bend, 0.0).clamp_max(BENT)
    z = -torch.expm1(-bend - (2.0 * bend).sqrt())
    for _ in range(NEWTON_STEPS):
        z = z - torch.where(z > 0.0, (-z - torch.log1p(-z) - bend) * (1.0 - z) / z.clamp_min(tiny), 0.0)
    return Tails(whole, rate, z / width)
