"""Gauss rules with the nodes that Kronrod adds: two rules on one set of nodes, for products of any shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from quadgrad._core.regions.recursion import Line

__all__ = ["PAIRS", "CutRule", "line_rule"]

PAIRS = {
    "gk7": (3, (0.96049126870802028342, 0.43424374934680255800)),
    "gk11": (5, (0.98408536009484246450, 0.75416672657084922044, 0.27963041316178319341)),
    "gk15": (7, (0.99145537112081263921, 0.86486442335976907279, 0.58608723546769113029, 0.20778495500789846760)),
}
"""The number of Gauss nodes, and the nodes that are added, on [-1, 1] (the positive ones)."""


@dataclass(frozen=True)
class CutRule:
    """The pair that is used along each axis of cells in ``d`` dimensions; for a problem, what stands in for a rule.

    ``surface`` tells that the integral is over the surface on which a function vanishes.
    """

    name: str
    d: int
    surface: bool
    line: Line

    @property
    def rows(self) -> int:
        """The number of nodes in a cell, unless it is cut."""
        return self.nodes.shape[0]

    @property
    def nodes(self) -> torch.Tensor:
        """As many rows as there are nodes."""
        return torch.empty(self.line.nodes.shape[0] ** (self.d - self.surface), 0)


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
