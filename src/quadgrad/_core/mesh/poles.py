"""Into which parts a cell is bisected, given where its integrand seems to have a pole.

A polynomial rule converges on a cell the faster, the farther the integrand's nearest pole in the complex plane is,
as measured by Bernstein's ellipses, whose foci are the cell's ends. So the bisections that a pole beside the cell
will force can all be made at once: halves are halved again as long as the pole lies in such an ellipse around them.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LEVELS", "Ellipse", "ellipse", "is_near", "middles_near", "part_numbers"]

LEVELS = 20
"""How many times a cell is bisected at once, at most."""

USUAL, LONGEST = 1e-8, 1.5
"""The relative tolerance that is supposed where none is given; the longest ellipse, beside its cell."""


class Ellipse(NamedTuple):
    """Around a cell that ends at -1 and 1: where ``along`` x^2 + ``across`` y^2 = 1."""

    along: float
    across: float


@cache
def ellipse(rtol: float, m: int) -> Ellipse:
    """Return the ellipse outside which poles are harmless for a rule with m nodes.

    The error falls like rho^-m, where rho is the sum of the ellipse's half axes if the cell ends at -1 and 1.
    """
    rho = min(rtol or USUAL, 0.1) ** (-1.0 / m)
    length = min(0.5 * (rho + 1.0 / rho), LONGEST)
    return Ellipse(1.0 / length**2, 1.0 / (length**2 - 1.0))


def is_near(apart: Tensor, high: Tensor, along: float, quarter: float) -> Tensor:
    """Tell whether poles are in the ellipse around parts whose width, squared, is four times ``quarter``.

    ``apart`` is how far along the cell a pole is from the part's middle, ``high`` its squared height, times
    ``across``.
    """
    return torch.addcmul(high, apart, apart, value=along) < quarter


class Parts(NamedTuple):
    """Into how many parts a cell falls at each level but the whole's, ``(LEVELS - 1, 1)``, and the squares of that.

    ``beside`` ``(2, 1, 1)`` is how far two places are, of which one is before and one after the same middle.
    """

    number: Tensor
    square: Tensor
    beside: Tensor


def part_numbers(like: Tensor) -> Parts:
    """Return the parts of cells, to be made once."""
    number = torch.exp2(torch.arange(1, LEVELS, dtype=like.dtype, device=like.device))[:, None]
    return Parts(number, number * number, like.new_tensor([[[-0.5]], [[0.5]]]))


def middles_near(pole: Tensor, high: Tensor, along: float, parts: Parts) -> tuple[Tensor, Tensor]:
    """Return middles ``(2, LEVELS - 1, n)`` of parts, and which parts are bisected because a pole ``(n,)`` is near.

    Ellipses are at most :data:`LONGEST` times as long as their parts. So at each level no others can be near than
    the two parts between whose middles the pole is, and as those of halves are within that of the whole, what is
    near is part of what is near at the level above. A cell that is bisected anyway has one part more for each.
    """
    place = pole * parts.number  # lengths in parts of each level
    middle = (place + parts.beside).floor_().add_(0.5)
    near = is_near(place - middle, high * parts.square, along, 0.25)
    middle /= parts.number
    return middle, near & (middle.floor() == 0.0)
