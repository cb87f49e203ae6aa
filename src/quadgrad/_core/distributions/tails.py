"""Points of the unit cube drawn towards its faces: tails of what is drawn are met more often, and weighed less.

An unbounded f makes of uniform numbers an integrand that is unbounded at the faces of the cube. Few points are
there, their values scatter, and replicates are too few for Student's interval: of exp of three normal numbers 93 %
of intervals at 99 % held the truth, with points that are spread 99 %, and a twentieth of the error. A bounded f
loses by it, in eight dimensions a factor of 5: which is better is tried, for each integral.

In one dimension points are spread further than in many, where it costs more. Of x^2 and x^3 of lognormal, gamma and
Weibull numbers 93 to 99 % of intervals held the truth at a standard deviation of 1.4, 97 to 100 % at 2, with a half
to a tenth of the error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["spread_of", "widened"]

LEAST = 1.4
"""How much wider than uniform numbers those are that meet the tails, as standard deviations of normal ones."""

SHARE = 0.66
"""Effective share of samples of a constant f that is given for more: for 2 in one dimension, 1.55 in two."""


def spread_of(d: int) -> float:
    """Return the standard deviation of what is drawn towards the tails in ``d`` dimensions.

    The effective share of a constant is ``(sqrt(2 s^2 - 1) / s^2)^d`` at a deviation s.
    """
    square = SHARE ** (2.0 / d)
    return max(LEAST, math.sqrt((1.0 + math.sqrt(1.0 - square)) / square))


def widened(u: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Spread uniform numbers ``(*lead, d)`` as normal ones; return them, and their weights ``(*lead,)``.

    ``spread`` broadcasts with ``lead``; where it is 1 the numbers stay where they are.
    """
    z = torch.special.ndtri(u)
    # torch.special.ndtr is 0 from -8.3 on, and has few digits before.
    wide = 0.5 * torch.erfc(z * (-spread / math.sqrt(2.0))[..., None])
    weight = torch.exp((0.5 * (1.0 - spread * spread)) * (z * z).sum(-1)) * spread ** u.shape[-1]
    # As far from 0 as from 1: transports form 2 u - 1, of which less would make -1, and of that minus infinity.
    margin = 0.5 * torch.finfo(u.dtype).eps
    return wide.clamp(margin, 1.0 - margin), weight
