"""From f's values at a rule's nodes to polynomials on its cells.

The polynomial g that interpolates f times dx/dtau at the nodes tau of a cell is never integrated as it stands: its
*mean* from an edge of the cell to t is a polynomial too, and the integral is the distance from that edge times the
mean. So nothing cancels beside the edge, and the integral keeps all its digits there however small it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.reduce import align, apply
from quadgrad._core.rules import Rule, get_rule

__all__ = ["Basis", "basis_of", "chebyshev_sum"]


@dataclass(frozen=True)
class Basis:
    """Matrices ``(m, m)`` that turn values at a rule's nodes into Chebyshev coefficients in ``t = 2 tau - 1``.

    ``below`` are those of the interpolant's mean from tau = 0 to t, ``above`` of its mean from t to tau = 1, and
    ``slope`` its own. ``edge`` ``(m,)`` gives its value at tau = 1.
    """

    below: Tensor
    above: Tensor
    slope: Tensor
    edge: Tensor

    def means(self, values: Tensor, backwards: Tensor, upward: bool) -> Tensor:
        """Return the coefficients of the means of values ``(m, n, *event)``, from each cell's end with the lower x.

        If not ``upward``, from that with the higher x. Where ``backwards`` ``(n,)``, x falls as tau grows.
        """
        ahead, behind = (self.below, self.above) if upward else (self.above, self.below)
        return self._turned(apply(ahead, values), apply(behind, values), backwards)

    def slopes(self, values: Tensor, backwards: Tensor) -> Tensor:
        """Return the coefficients of the interpolant, where t grows with x."""
        own = apply(self.slope, values)
        return self._turned(own, own, backwards)

    def _turned(self, ahead: Tensor, behind: Tensor, backwards: Tensor) -> Tensor:
        """Replace t by -t where a cell runs backwards."""
        sign = align(1.0 - 2.0 * (torch.arange(len(ahead), device=ahead.device) % 2), ahead).to(ahead.dtype)
        return torch.where(align(backwards, ahead[0]), sign * behind, ahead)


@cache
def basis_of(name: str, device: torch.device, dtype: torch.dtype = torch.float64) -> Basis:
    """Return the basis of a rule by its name."""
    with torch.inference_mode(False):
        matrices = _matrices(get_rule(name))
        return Basis(*(torch.as_tensor(matrix, dtype=dtype, device=device) for matrix in matrices))


def _matrices(rule: Rule) -> tuple[np.ndarray, ...]:
    chebyshev, legendre = np.polynomial.chebyshev, np.polynomial.legendre
    m = rule.nodes.size
    places = chebyshev.chebpts1(m)
    # Integrals from an edge over distances from it, as means: the closed form would cancel near the edge.
    gauss, weights = legendre.leggauss((m + 1) // 2)
    share, weights = 0.5 + 0.5 * gauss, 0.5 * weights
    below = np.tensordot(weights, legendre.legvander(np.outer(share, 1.0 + places) - 1.0, m - 1), 1)
    above = np.tensordot(weights, legendre.legvander(1.0 - np.outer(share, 1.0 - places), m - 1), 1)
    own = legendre.legvander(places, m - 1)
    # Two steps with matrices whose entries are of the order of 1: values to Legendre's, these to Chebyshev's.
    to_legendre = np.linalg.inv(legendre.legvander(2.0 * rule.nodes - 1.0, m - 1))
    to_chebyshev = chebyshev.chebvander(places, m - 1).T * (2.0 / m)
    to_chebyshev[0] *= 0.5
    return *(to_chebyshev @ each @ to_legendre for each in (below, above, own)), rule.edges[1]


def chebyshev_sum(coefficients: Tensor, cell: Tensor, t: Tensor, differentiable: bool = True) -> Tensor:
    """Return the polynomials ``(m, n, *event)`` of the given cells ``(p,)`` at t ``(p,)``: ``(p, *event)``.

    Clenshaw's recurrence: powers of t would take two thirds of the time, and lose digits beyond 21 nodes.
    Coefficients are fetched degree by degree: whole rows of them would leave the cache.
    """
    last, before = None, coefficients[-1].index_select(0, cell)
    t = align(t, before)
    twice, overwrites = 2.0 * t, not differentiable and not before.is_complex()
    for each in reversed(coefficients[1:-1].unbind()):
        now = each.index_select(0, cell)
        if overwrites:  # memory that is not asked for anew
            now.addcmul_(twice, before)
            now = now if last is None else now.sub_(last)
        else:
            now = now + twice * before
            now = now if last is None else now - last
        last, before = before, now
    first = coefficients[0].index_select(0, cell) + t * before
    return first if last is None else first - last
