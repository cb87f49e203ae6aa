"""Gauss rules with the nodes that Kronrod adds: two rules on one set of nodes, for products of any shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from quadgrad._core.regions.recursion import Line
from quadgrad._core.rules.rule import Array

__all__ = ["PAIRS", "CutRule", "line_rule"]

PAIRS = {
    "gk7": ((0.96049126870802028342, 0.43424374934680255800), (0, 3, 6)),
    "gk11": ((0.98408536009484246450, 0.75416672657084922044, 0.27963041316178319341), (0, 3, 5, 7, 10)),
    "gk15": (
        (0.99145537112081263921, 0.86486442335976907279, 0.58608723546769113029, 0.20778495500789846760),
        (0, 2, 5, 7, 9, 12, 14),
    ),
}
"""The nodes that Kronrod adds to those of Gauss, on [-1, 1] (the positive ones); and the numbers of the nodes, from
left to right, of a rule that is as much lower than Gauss' as that is than Kronrod's, or less."""


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
        return torch.empty(self.line.nodes.shape[0] ** (self.d - self.surface), 0, device="cpu")


@cache
def line_rule(name: str, device: torch.device) -> Line:
    """Return a pair, and a rule that is lower still, on the unit interval."""
    added, lowest = PAIRS[name]
    n = 2 * len(added) - 1
    gauss = np.polynomial.legendre.leggauss(n)[0]
    nodes = np.sort(np.concatenate((gauss, added, np.negative(added))))
    every = range(2 * n + 1)
    weights, *lower = (_weights(nodes, list(places)) for places in (every, every[1::2], lowest))
    parts = (0.5 + 0.5 * nodes, 0.5 * weights, 0.5 * np.stack(lower))
    return Line(*(torch.tensor(part, dtype=torch.float64, device=device) for part in parts))


def _weights(nodes: Array, places: list[int]) -> Array:
    """Return the weights on [-1, 1] of the polynomial through some of the nodes; the others have none."""
    moments = np.zeros(len(places))
    moments[0] = 2.0  # those of Legendre's polynomials
    weights = np.zeros(nodes.size)
    weights[places] = np.linalg.solve(np.polynomial.legendre.legvander(nodes[places], len(places) - 1).T, moments)
    return weights
