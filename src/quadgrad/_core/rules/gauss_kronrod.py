"""Gauss-Kronrod rules gk15 to gk61: the default of one-dimensional search."""

from __future__ import annotations

import numpy as np

from quadgrad._core.rules.kronrod_table import HALF_RULES
from quadgrad._core.rules.rule import Rule

NAMES = tuple(HALF_RULES)


def gauss_kronrod(name: str) -> Rule:
    """Return the rule of that name, of degree ``3 n + 1`` for ``2 n + 1`` nodes (one more where n is odd)."""
    half = np.array(HALF_RULES[name])
    nodes = np.concatenate([half[:, 0], 1.0 - half[-2::-1, 0]])
    weights = np.concatenate([half[:, 1], half[-2::-1, 1]])
    n = nodes.size // 2
    # A symmetric rule integrates odd degrees for nothing, so the degree is always odd.
    return Rule(name, nodes, weights, degree=3 * n + 1 + n % 2)
