"""Products of Gauss-Kronrod rules on boxes of two and three dimensions: for many digits of smooth integrands."""

from __future__ import annotations

from functools import cache

import numpy as np

from quadgrad._core.rules.box import BoxRule
from quadgrad._core.rules.gauss_kronrod import gauss_kronrod

__all__ = ["product_rule"]


@cache
def product_rule(name: str, d: int) -> BoxRule:
    """Return the product of a Gauss-Kronrod rule with itself."""
    rule = gauss_kronrod(name)
    m = rule.nodes.size
    grid = np.stack(np.meshgrid(*[rule.nodes] * d, indexing="ij"), axis=-1).reshape(-1, d)
    weights = np.ones(1)
    for _ in range(d):
        weights = np.multiply.outer(weights, rule.weights).ravel()
    centre = (m // 2) * sum(m**k for k in range(d))
    steps = np.array([m ** (d - 1 - axis) for axis in range(d)])
    # A line through all nodes would extrapolate as a polynomial of high degree: every node of the Gauss rule does.
    on = np.arange(m) - m // 2
    lines = centre + steps[:, None] * on[None, :]
    return BoxRule(name, grid, weights, rule.degree, (), lines, rule)
