"""Genz' six families in d dimensions, with exact integrals over the unit cube.

A. Genz, *Testing multidimensional integration routines*, in *Tools, Methods and Languages for Scientific and
Engineering Computation*, 1984. Parameters are drawn at random; the sum of the difficulties c is given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DIFFICULTY", "FAMILIES", "Genz", "draw"]

Values = Callable[[Tensor, Tensor, Tensor], Tensor]
"""f at x ``(..., d)`` for difficulties c and places u ``(..., d)``."""

DIFFICULTY = {
    "oscillatory": 9.0,
    "product peak": 7.25,
    "corner peak": 1.85,
    "Gaussian": 7.03,
    "C0": 20.4,
    "discontinuous": 4.3,
}


def oscillatory(x: Tensor, c: Tensor, u: Tensor) -> Tensor:
    return torch.cos(2 * math.pi * u[..., 0] + (c * x).sum(-1))


def product_peak(x: Tensor, c: Tensor, u: Tensor) -> Tensor:
    return (1 / (c**-2 + (x - u) ** 2)).prod(-1)


def corner_peak(x: Tensor, c: Tensor, u: Tensor) -> Tensor:
    return (1 + (c * x).sum(-1)) ** -(x.shape[-1] + 1.0)


def gaussian(x: Tensor, c: Tensor, u: Tensor) -> Tensor:
    return torch.exp(-(c**2 * (x - u) ** 2).sum(-1))


def continuous(x: Tensor, c: Tensor, u: Tensor) -> Tensor:
    return torch.exp(-(c * (x - u).abs()).sum(-1))


def discontinuous(x: Tensor, c: Tensor, u: Tensor) -> Tensor:
    inside = (x[..., :2] <= u[..., :2]).all(-1)
    return torch.where(inside, torch.exp((c * x).sum(-1)), 0.0)


def _corners(c: Tensor) -> Tensor:
    d = c.shape[-1]
    signs = torch.tensor(list(itertools.product((0.0, 1.0), repeat=d)), dtype=c.dtype)
    terms = (-1.0) ** signs.sum(-1) / (1 + (signs * c[..., None, :]).sum(-1))
    return terms.sum(-1) / (math.factorial(d) * c.prod(-1))


def _steps(c: Tensor, u: Tensor) -> Tensor:
    stop = torch.cat((u[..., :2], torch.ones_like(u[..., 2:])), -1)
    return (torch.expm1(c * stop) / c).prod(-1)


FAMILIES: dict[str, tuple[Values, Callable[[Tensor, Tensor], Tensor]]] = {
    "oscillatory": (
        oscillatory,
        lambda c, u: torch.cos(2 * math.pi * u[..., 0] + 0.5 * c.sum(-1)) * (2 * torch.sin(c / 2) / c).prod(-1),
    ),
    "product peak": (
        product_peak,
        lambda c, u: (c * (torch.atan(c * (1 - u)) + torch.atan(c * u))).prod(-1),
    ),
    "corner peak": (corner_peak, lambda c, u: _corners(c)),
    "Gaussian": (
        gaussian,
        lambda c, u: (math.sqrt(math.pi) / (2 * c) * (torch.erf(c * (1 - u)) + torch.erf(c * u))).prod(-1),
    ),
    "C0": (continuous, lambda c, u: ((2 - torch.exp(-c * u) - torch.exp(-c * (1 - u))) / c).prod(-1)),
    "discontinuous": (discontinuous, _steps),
}
"""f, and its integral over the unit cube."""


@dataclass(frozen=True)
class Genz:
    """A batch of one family: difficulties and places ``(batch, d)``, and what the integrals are."""

    f: Values
    c: Tensor
    u: Tensor
    exact: Tensor


def draw(family: str, d: int, count: int, seed: int, difficulty: float | None = None) -> Genz:
    """Draw integrals of a family; the difficulties of each add up to that of the family unless it is given."""
    generator = torch.Generator().manual_seed(seed)
    c, u = torch.rand((2, count, d), generator=generator, dtype=torch.float64)
    c = (DIFFICULTY[family] if difficulty is None else difficulty) * c / c.sum(-1, keepdim=True)
    f, integral = FAMILIES[family]
    return Genz(f, c, u, integral(c, u))
