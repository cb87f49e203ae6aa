"""Expectations that tails decide, with exact values, and hard decisions of known probability."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.special import gamma
from torch import Tensor
from torch import distributions as D

__all__ = ["DECISIONS", "Moment", "decide", "moments"]

DECISIONS = torch.cat((10.0 ** torch.linspace(-8, -0.5, 25).double(), 1.0 - 10.0 ** torch.linspace(-8, -0.5, 25)))
"""Probabilities of decisions."""


@dataclass(frozen=True)
class Moment:
    """The mean of a power of a number."""

    name: str
    distribution: D.Distribution
    power: int
    exact: float

    def f(self, x: Tensor) -> Tensor:
        """Return the power."""
        return x**self.power


def moments() -> list[Moment]:
    """Return moments whose integrands over the unit interval are unbounded, all with a finite variance."""
    t = lambda value: torch.tensor(value, dtype=torch.float64)
    found: list[Moment] = []

    def add(name: str, distribution: D.Distribution, exact: Callable[[int], float], *powers: int) -> None:
        found.extend(Moment(f"{name}, x^{p}", distribution, p, exact(p)) for p in powers)

    for s, powers in ((0.25, (1, 3)), (0.5, (2, 3)), (1.0, (2, 3)), (1.5, (1, 2))):
        add(f"lognormal {s:g}", D.LogNormal(t(0.0), t(s)), lambda p, s=s: math.exp(0.5 * (s * p) ** 2), *powers)
    for a in (0.5, 2.0, 5.0):
        add(f"gamma {a:g}", D.Gamma(t(a), t(1.0)), lambda p, a=a: float(gamma(a + p) / gamma(a)), 2, 3)
    add("exponential", D.Exponential(t(1.0)), lambda p: float(math.factorial(p)), 2, 3)
    add("Weibull 0.5", D.Weibull(t(1.0), t(0.5)), lambda p: float(math.factorial(2 * p)), 1, 2, 3)
    for df, powers in ((5.0, (2,)), (9.0, (2, 4))):
        add(f"Student {df:g}", D.StudentT(t(df)), lambda p, df=df: _student(df, p), *powers)
    add("normal", D.Normal(t(0.0), t(1.0)), lambda p: float(math.prod(range(1, p, 2))), 2, 4)
    return found


def _student(df: float, power: int) -> float:
    """Return an even moment of Student's distribution."""
    ratio = gamma(0.5 * (power + 1)) * gamma(0.5 * (df - power)) / (math.sqrt(math.pi) * gamma(0.5 * df))
    return float(df ** (0.5 * power) * ratio)


def decide(d: int) -> tuple[D.Distribution, Callable[[Tensor, Tensor], Tensor], Tensor]:
    """Return normal numbers in d dimensions, a decision between half spaces of them, and where these end."""
    zero = torch.zeros(len(DECISIONS), d, dtype=torch.float64)
    w = torch.linspace(1.0, 2.0, d, dtype=torch.float64)
    w = w / w.norm()
    return (
        D.Independent(D.Normal(zero, torch.ones_like(zero)), 1),
        lambda x, z: (x @ w < z).double(),
        torch.special.ndtri(DECISIONS),
    )
