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

from quadgrad._core.lanes import largest

__all__ = ["LEVELS", "Ellipse", "Parts", "ellipse", "find_parts", "is_near", "one_pole"]

LEVELS = 20
"""How many times a cell is bisected at once, at most."""

USUAL, LONGEST = 1e-8, 1.5
"""The relative tolerance that is supposed where none is given; the longest ellipse, beside its cell."""


class Ellipse(NamedTuple):
    """Around a cell that ends at -1 and 1: where ``along`` x^2 + ``across`` y^2 = 1."""

    along: float
    across: float


class Parts(NamedTuple):
    """Parts of cells, in order: the cell's index, where in it a part begins, and how long it is, from 0 to 1."""

    origin: Tensor
    low: Tensor
    width: Tensor

    def take(self, mask: Tensor) -> Parts:
        """Return those that are marked."""
        return Parts(*(column[mask] for column in self))


@cache
def ellipse(rtol: float, m: int) -> Ellipse:
    """Return the ellipse outside which poles are harmless for a rule with m nodes.

    The error falls like rho^-m, where rho is the sum of the ellipse's half axes if the cell ends at -1 and 1.
    """
    rho = min(rtol or USUAL, 0.1) ** (-1.0 / m)
    length = min(0.5 * (rho + 1.0 / rho), LONGEST)
    return Ellipse(1.0 / length**2, 1.0 / (length**2 - 1.0))


def is_near(pole: Tensor, high: Tensor, along: float, middle: Tensor | float, width: Tensor | float) -> Tensor:
    """Tell whether poles are in the ellipse around parts; ``high`` is the squared height, times ``across``."""
    apart = pole - middle
    return apart * apart * along + high < 0.25 * width * width


def one_pole(pole: Tensor, high: Tensor, ellipse: Ellipse) -> tuple[Tensor, Tensor]:
    """Return one pole for all hidden lanes, which do not all have to have one; see :func:`is_near`.

    If theirs are at different places it is between them, and so high that parts become no narrower than these are
    apart.
    """
    pole, high = pole.double(), high.double()
    seen = high < torch.inf
    first, last = -largest(-torch.where(seen, pole, torch.inf)), largest(torch.where(seen, pole, -torch.inf))
    apart = (0.5 * (last - first)).clamp_min(0.0)
    return 0.5 * (first + last), -largest(-high) + apart**2 * ellipse.across


def find_parts(index: Tensor, pole: Tensor, high: Tensor, along: float) -> Parts:
    """Return the parts of the cells at ``index``: halves, and halves of those as long as the pole ``(n,)`` is near.

    A pole is at its place along the cell, from 0 to 1 or beside it; see :func:`is_near`.
    """
    which, low = torch.arange(len(index), device=index.device), torch.zeros_like(pole)
    width, near = torch.ones_like(pole), torch.ones_like(pole, dtype=torch.bool)
    for level in range(1, LEVELS + 1):
        more = int(near.sum())
        if more == 0:
            break
        copies = torch.repeat_interleave(near + 1, output_size=len(near) + more)
        second = torch.zeros_like(copies, dtype=torch.bool)
        second[1:] = copies[1:] == copies[:-1]
        width = torch.where(near, 0.5 * width, width)[copies]
        low, which = low[copies] + width * second, which[copies]
        near = is_near(pole[which], high[which], along, low + 0.5 * width, width) & (width == 0.5**level)
    return Parts(index[which], low, width)
