"""Gauss rules with the nodes that Kronrod adds: two rules on one set of nodes, for products of any shape."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from quadgrad._core.regions.recursion import Line

__all__ = ["PAIRS", "line_rule"]

PAIRS = {
    "gk7": (3, (0.96049126870802028342, 0.43424374934680255800)),
    "gk11": (5, (0.98408536009484246450, 0.75416672657084922044, 0.27963041316178319341)),
    "gk15": (7, (0.99145537112081263921, 0.86486442335976907279, 0.58608723546769113029, 0.20778495500789846760)),
}
"""The number of Gauss nodes, and the nodes that are added, on [-1, 1] (the positive ones)."""


@cache
def line_rule(name: str, device: torch.device) -> Line:
    """Return a pair on the unit interval."""
    n, added = PAIRS[name]
    gauss, lower = np.polynomial.legendre.leggauss(n)
    nodes = np.concatenate((gauss, added, np.negative(added)))
    order = nodes.argsort()
    nodes, lower = nodes[order], np.concatenate((lower, np.zeros(n + 1)))[order]
    # The weights of the interpolating polynomial, from its integrals against Legendre's.
    moments = np.zeros(2 * n + 1)
    moments[0] = 2.0
    weights = np.linalg.solve(np.polynomial.legendre.legvander(nodes, 2 * n).T, moments)
    parts = (0.5 + 0.5 * nodes, 0.5 * weights, 0.5 * lower)
    return Line(*(torch.tensor(part, dtype=torch.float64, device=device) for part in parts))
