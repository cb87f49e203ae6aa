"""Open Clenshaw-Curtis rules: the Chebyshev extrema without the two ends (Fejer's second rule)."""

from __future__ import annotations

import numpy as np

from quadgrad._core.rules.rule import Rule


def clenshaw_curtis(name: str, count: int) -> Rule:
    """Return the rule with ``count`` interior Chebyshev extrema, of degree ``count`` (odd).

    The closed rule would call the integrand at the limits, where it may be infinite or raise. The
    weights are Fejer's sum of sines (Waldvogel, *BIT* 46, 2006, eq. 2.5), here for the unit interval.
    """
    angle = np.arange(1, count + 1) * np.pi / (count + 1)
    odd = np.arange(1, count + 1, 2)
    weights = 2.0 / (count + 1) * np.sin(angle) * (np.sin(np.outer(angle, odd)) / odd).sum(axis=1)
    return Rule(name, np.sin(angle / 2.0) ** 2, weights, degree=count)
