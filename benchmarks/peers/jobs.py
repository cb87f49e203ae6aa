"""What the peers integrate: batches and single integrals from 0 to an upper limit, with exact values.

An integrand takes the namespace it computes with as its second argument (``torch``, ``numpy``, ``math``,
``jax.numpy``), so that every peer gets the same function in its own arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.distances import UNIVERSE, gauss, inverse_expansion, make_redshifts
from benchmarks.peaks import make_peaks

__all__ = ["Job", "make_jobs"]

RTOL = 1e-8
SEED = 4


@dataclass(frozen=True)
class Job:
    """Integrals of ``f(x, m, *args)`` from 0 to ``upper``, rtol 1e-8, atol 0, float64.

    Attributes
    ----------
    label : str
        What they are.
    f : callable
        The integrand.
    upper, exact : Tensor
        Upper limits and values, one an integral.
    args : tuple of Tensor
        Parameters, one number an integral.
    """

    label: str
    f: Callable[..., Any]
    upper: Tensor
    exact: Tensor
    args: tuple[Tensor, ...] = ()

    @property
    def size(self) -> int:
        """How many integrals there are."""
        return self.exact.numel()

    def sample(self, most: int) -> Job:
        """Return a job with at most so many of the integrals, drawn at random."""
        if self.size <= most:
            return self
        chosen = torch.randperm(self.size, generator=torch.Generator().manual_seed(SEED))[:most]
        rest = tuple(arg[chosen] for arg in self.args)
        return replace(self, upper=self.upper[chosen], exact=self.exact[chosen], args=rest)


def peak(x: Any, m: Any, c: Any, e: Any) -> Any:
    """Return a Lorentzian; products, because powers of Python floats are slow."""
    return e / ((x - c) * (x - c) + e * e)


def inverse_hubble(z: Any, m: Any) -> Any:
    """Return H0 / H(z) of a flat universe, as the page ``distances`` integrates it."""
    om, w0, wa = UNIVERSE
    a = 1 / (1 + z)
    return 1 / m.sqrt(om * a**-3 + (1 - om) * a ** (-3 * (1 + w0 + wa)) * m.exp(-3 * wa * z * a))


def damped_wave(x: Any, m: Any) -> Any:
    """Return a smooth integrand."""
    return m.exp(-x) * m.cos(3 * x) + 1 / (1 + x * x)


def singular(x: Any, m: Any) -> Any:
    """Return an integrand singular at 0, QUADPACK's example for QAGS."""
    return m.log(x) / m.sqrt(x)


def make_jobs(scale: float) -> list[Job]:
    """Return what are compared: two batches, three single integrals."""
    peaks = make_peaks(max(100, round(20_000 * scale)))
    redshift = make_redshifts(max(100, round(100_000 * scale)))
    nodes, weights = gauss(61)
    universe = (torch.tensor(value, dtype=torch.float64) for value in UNIVERSE)
    distance = redshift * (inverse_expansion(redshift[:, None] * nodes, *universe) @ weights)
    one = torch.ones_like(peaks.centre)
    wave = 1 + math.exp(-2) * (3 * math.sin(6) - math.cos(6))
    single = lambda label, f, upper, exact, *args: Job(
        label, f, vector(upper), vector(exact), tuple(map(vector, args))
    )
    return [
        Job(f"{peaks.exact.numel():,} peaks", peak, one, peaks.exact, (peaks.centre, peaks.width)),
        Job(f"{redshift.numel():,} distances", inverse_hubble, redshift, distance),
        single("One smooth integral", damped_wave, 2.0, wave / 10 + math.atan(2)),
        single("One peak", peak, 1.0, math.atan(0.7 / 1e-3) + math.atan(0.3 / 1e-3), 0.3, 1e-3),
        single("One singular end", singular, 1.0, -4.0),
    ]


def vector(value: float) -> Tensor:
    """Return a number as a batch of one."""
    return torch.tensor([value], dtype=torch.float64)
