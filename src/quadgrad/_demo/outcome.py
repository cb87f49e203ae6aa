"""What a part of the demo hands on to be shown: numbers beside references, and what integrals cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

import quadgrad as qg

__all__ = ["RELATIVE", "Check", "Cost", "Progress", "Stopwatch", "cost_of", "fixed_sum", "stopwatch"]

RELATIVE = "rel."
"""The unit of a check that compares a relative difference with zero."""

Progress = Callable[[int, float], None]
"""Told after each evaluation of a fit: how many so far, and the log-likelihood (with the prior, if any)."""


@dataclass(frozen=True)
class Check:
    """One number of ours beside an independent one.

    Attributes
    ----------
    label, unit : str
        What the number is and what it is measured in.
    ours, reference : float
        The two values.
    tolerance : float or None
        The largest absolute difference allowed; None where the two need not agree.
    digits : int
        Decimal places worth showing.
    """

    label: str
    unit: str
    ours: float
    reference: float
    tolerance: float | None
    digits: int = 4

    @property
    def difference(self) -> float:
        """Ours minus the reference."""
        return self.ours - self.reference

    @property
    def passed(self) -> bool:
        """Whether the two agree; a NaN never does."""
        return self.tolerance is None or abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class Cost:
    """What one call of ``quad`` did.

    Attributes
    ----------
    label : str
        Which call.
    evaluations : Tensor
        Evaluations of the integrand for each integral.
    reported : Tensor
        Reported error of each integral, relative to its value.
    true : Tensor
        Difference of each integral from its reference, relative to its value.
    source : str
        What the true error was measured against.
    seconds : float
        Time of the call, search only.
    """

    label: str
    evaluations: Tensor
    reported: Tensor
    true: Tensor
    source: str
    seconds: float

    @property
    def honest(self) -> bool:
        """Whether every reported error covers the true one, up to the rounding of the reference."""
        rounding = 64 * torch.finfo(torch.float64).eps
        return bool((self.true <= self.reported + rounding).all())


@dataclass
class Stopwatch:
    """Seconds spent inside the ``with`` block."""

    seconds: float = field(default=float("nan"))


@contextmanager
def stopwatch() -> Generator[Stopwatch]:
    """Time a block: ``with stopwatch() as watch: ...`` leaves the time in ``watch.seconds``."""
    watch = Stopwatch()
    start = time.perf_counter()
    yield watch
    watch.seconds = time.perf_counter() - start


def fixed_sum(integrand: Callable[[Tensor], Tensor], upper: Tensor) -> Tensor:
    """Integrate from 0 with a fixed 100-point Gauss rule, exact to rounding for the smooth integrands here.

    Parameters
    ----------
    integrand : callable
        Takes points of shape (..., 100) and returns that shape; leading dimensions may broadcast.
    upper : Tensor
        Upper limits. Shape (...).
    """
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(100))
    half = upper[..., None] / 2
    return (half * weights * integrand(half * (1 + nodes))).sum(-1)


def cost_of(label: str, call: Callable[[], qg.Result], exact: Tensor, source: str) -> Cost:
    """Run one call of ``quad`` twice, time the second, and compare its values with ``exact``.

    The first call pays for what torch sets up once per process and is not what a user of many calls sees.
    """
    with torch.no_grad():
        call()
        with stopwatch() as watch:
            result = call()
        scale = exact.abs()
        true = (result.value - exact).abs() / scale
    return Cost(
        label, result.nfev.flatten(), (result.error / scale).flatten(), true.flatten(), source, watch.seconds
    )
