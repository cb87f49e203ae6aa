"""Points of the unit cube drawn towards its faces: tails of what is drawn are met more often, and weighed less.

An unbounded f makes of uniform numbers an integrand that is unbounded at the faces of the cube. Few points are
there, their values scatter, and replicates are too few for Student's interval: of exp of three normal numbers 93 %
of intervals at 99 % held the truth, with points that are spread 99 %, and a twentieth of the error. A bounded f
loses by it, in eight dimensions a factor of 5: which is better is tried, for each integral.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["SPREAD", "widened"]

SPREAD = 1.4
"""How much wider than uniform numbers those are that meet the tails, as standard deviations of normal ones."""


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
