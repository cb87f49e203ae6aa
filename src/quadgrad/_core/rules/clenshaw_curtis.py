"""Open Clenshaw-Curtis rules: the Chebyshev extrema without the two ends (Fejer's second rule)."""

from __future__ import annotations

import numpy as np

from quadgrad._core.rules.rule import Rule


def clenshaw_curtis(name: str, count: int) -> Rule:
    """Return the rule with ``count`` interior Chebyshev extrema, of degree ``count`` (odd).

    The closed rule would call the integrand at the limits, where it may be infinite or raise. The
    weights are Fejer's sum of sines (Waldvogel, *BIT* 46, 2006, eq. 2.5), here for the unit interval.
    """
    # In extended precision: the last bit of NumPy's sine is the processor's.
    angle = np.arange(1, count + 1) * (4 * np.arctan(np.longdouble(1)) / (count + 1))
    odd = np.arange(1, count + 1, 2)
    weights = 2 * np.sin(angle) * (np.sin(np.outer(angle, odd)) / odd).sum(axis=1) / (count + 1)
    nodes = np.sin(angle / 2) ** 2
    return Rule(name, nodes.astype(np.float64), weights.astype(np.float64), degree=count)
