"""Derivatives from differences with an error bar: how three steps agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LADDERS", "Estimate", "extrapolate"]

LADDERS = {
    True: (2.0**-10, 2.0**-16, 2.0**-22, 2.0**-6),
    False: (2.0**-6, 2.0**-9, 2.0**-12, 2.0**-4),  # in single precision
}
"""Largest steps, relative to the size of what is varied, in the order in which they are tried.

A fixed one blames healthy networks of many relus, whose kinks it crosses; one that is small from the start drowns
the curvature of others in rounding.
"""


@dataclass(frozen=True)
class Estimate:
    """A derivative and how far it may be off; ``ratio`` is what extrapolation left of the last two's difference."""

    value: float
    error: float
    ratio: float = 1.0

    @staticmethod
    def none() -> Estimate:
        """Return what is no estimate."""
        return Estimate(math.nan, math.inf)


def extrapolate(slopes: Sequence[float], rounding: float, ratio: float = 1.0) -> Estimate:
    """Extrapolate central differences at steps h, h/2 (and h/4) to h = 0, after Richardson.

    Parameters
    ----------
    slopes : sequence of two or three floats
        The largest step's first. Their errors are series in the square of the step.
    rounding : float
        How far the last one may be off because values are rounded.
    ratio : float
        For two slopes: which part of their difference remains after the extrapolation, as three others showed.
    """
    if not all(map(math.isfinite, slopes)):
        return Estimate.none()
    if len(slopes) == 2:
        first, second = slopes
        value = (4.0 * second - first) / 3.0
        return Estimate(value, ratio * abs(second - first) + 2.0 * rounding, ratio)
    first, second, third = slopes
    early, late = (4.0 * second - first) / 3.0, (4.0 * third - second) / 3.0
    value = (16.0 * late - early) / 15.0
    left = abs(late - early) / 2.0
    last = abs(third - second)
    return Estimate(value, left + 2.0 * rounding, min(1.0, 4.0 * left / last) if last > 0.0 else 0.0)
