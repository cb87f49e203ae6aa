"""What a quadrature rule is: nodes, weights, and null rules that estimate its error.

Called by search (to estimate) and by replay (through the plan, which keeps nodes and weights).
A rule knows nothing of intervals, integrands or tensors' devices beyond its own conversion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from quadgrad._core._torch import in_transform

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

NULL_PAIRS = 5
"""Pairs of neighbouring degrees whose coefficients tell the error; five show how they decay."""

FUNCTIONALS = 7 + 2 * NULL_PAIRS
"""What search asks of a cell: the integral, the null rules, then two numbers each for halves, slopes and edges."""

SHARES = 6
"""Equal parts of a cell whose integrals are extrapolated: three columns of the epsilon algorithm."""

LOOKS, LOOK_BESIDE = 3, 0.19
"""Places between the nodes where cells that nothing else vouches for are compared with f, see ADR 37.

The outer ones are so far from the ends, as a part of the number of nodes."""

JOINT = (0.3, 0.6, 1.0)
"""What the null rules of all places of a first cell count, the highest degree last: what is smooth has the least of
it there. See ADR 75."""


@dataclass(frozen=True)
class RuleTensors:
    """The rule on a device, in the dtype of the sums.

    Nodes and weights ``(m,)``, functionals ``(FUNCTIONALS, m)``, shares ``(SHARES, m)``; the places of looks
    ``(LOOKS,)`` and the interpolating polynomial there ``(LOOKS, m)``; its integrals beyond the outermost nodes
    ``(2, m)``; around each node, see :attr:`Rule.parabolas`, coefficients ``(3, 6, m)``, neighbours ``(5, m)`` and
    where they are ``(4, m)``; :attr:`Rule.joint`, ``(3, m + 5)``; :attr:`Rule.order_gap`.
    """

    nodes: torch.Tensor
    weights: torch.Tensor
    functionals: torch.Tensor
    shares: torch.Tensor
    looks: torch.Tensor
    at_looks: torch.Tensor
    gaps: torch.Tensor
    parabolas: torch.Tensor
    around: torch.Tensor
    joint: torch.Tensor
    neighbours: torch.Tensor
    order_gap: int


@dataclass(frozen=True, eq=False)
class Rule:
    """An interpolatory rule with positive weights on the unit interval.

    Parameters
    ----------
    name : str
        The name that selects it, for example ``"gk21"``.
    nodes : numpy.ndarray, shape (m,)
        Nodes in (0, 1), ascending; never 0 or 1, so that no integrand is called at a limit.
    weights : numpy.ndarray, shape (m,)
        Positive weights that sum to 1.
    degree : int
        Polynomials up to this degree are integrated exactly.
    """

    name: str
    nodes: Array
    weights: Array
    degree: int
    _cache: dict[tuple[torch.dtype, torch.device], RuleTensors] = field(default_factory=dict, repr=False)

    @property
    def nulls(self) -> Array:
        """Null rules ``(2 * NULL_PAIRS, m)``: row j gives the coefficient of degree ``m - 1 - j``.

        The coefficients are those of the integrand in the polynomials orthonormal for the rule's own
        discrete inner product; each annihilates every lower degree (Berntsen and Espelid, *ACM TOMS*
        17, 1991). For a Gauss-Kronrod rule the first is the difference between the Kronrod and
        the Gauss sum, up to a factor.
        """
        return self._coefficients[::-1][: 2 * NULL_PAIRS]

    @property
    def slopes(self) -> Array:
        """The coefficients of degree 1 and 2, shape ``(2, m)``: how much the integrand varies on the cell."""
        return self._coefficients[1:3]

    @cached_property
    def _coefficients(self) -> Array:
        """Row j gives the integrand's coefficient in the orthonormal polynomial of degree j."""
        root = np.sqrt(self.weights)
        orthonormal, _ = np.linalg.qr(root[:, None] * self._legendre(self.nodes))
        return (orthonormal * root[:, None]).T

    @cached_property
    def halves(self) -> Array:
        """Null rules ``(2, m)`` on the nodes of the left and of the right half, which tell the rougher one.

        Each is the one linear functional of its nodes that annihilates all polynomials it can.
        """
        count = (self.nodes.size + 1) // 2
        vandermonde = np.polynomial.legendre.legvander(4.0 * self.nodes[:count] - 1.0, count - 2)
        null = np.linalg.svd(vandermonde.T)[2][-1] / count
        left = np.concatenate([null, np.zeros(self.nodes.size - count)])
        return np.stack([left, left[::-1]])

    @cached_property
    def edges(self) -> Array:
        """The values of the interpolating polynomial at both ends of the unit interval, ``(2, m)``."""
        return self._of_interpolant(self._legendre(np.array([0.0, 1.0])))

    @cached_property
    def functionals(self) -> Array:
        """Everything search asks of a cell, ``(FUNCTIONALS, m)``: weights, nulls, halves, slopes, edges."""
        return np.vstack([self.weights, self.nulls, self.halves, self.slopes, self.edges])

    @cached_property
    def shares(self) -> Array:
        """The interpolating polynomial's integrals over equal parts of the unit interval, ``(SHARES, m)``."""
        gauss, weights = np.polynomial.legendre.leggauss((self.nodes.size + 1) // 2)
        places = (np.arange(SHARES)[:, None] + 0.5 + 0.5 * gauss) / SHARES
        return self._of_interpolant(weights @ self._legendre(places) / (2.0 * SHARES))

    @cached_property
    def gaps(self) -> Array:
        """The interpolating polynomial's integrals up to the first node and from the last one on, ``(2, m)``."""
        gauss, weights = np.polynomial.legendre.leggauss((self.nodes.size + 1) // 2)
        low, high = np.array([[0.0], self.nodes[-1:]]), np.array([self.nodes[:1], [1.0]])
        places = low + (high - low) * (0.5 + 0.5 * gauss)
        return self._of_interpolant(0.5 * (high - low) * (weights @ self._legendre(places)))

    @cached_property
    def looks(self) -> Array:
        """Places ``(LOOKS,)`` between the nodes: of all triples the one that leaves the fewest small kinks unseen.

        Each is between two nodes, by the angle whose cosine they are; the middle one beside the middle, where there
        is a node already.
        """
        m, angles = self.nodes.size, np.arccos(1.0 - 2.0 * self.nodes)
        before = np.array([round(m * LOOK_BESIDE) - 1, (m - 1) // 2 - 1, m - 1 - round(m * LOOK_BESIDE)])
        return np.asarray(0.5 - 0.5 * np.cos(0.5 * (angles[before] + angles[before + 1])), dtype=np.float64)

    @cached_property
    def at_looks(self) -> Array:
        """The values of the interpolating polynomial there, ``(LOOKS, m)``."""
        return self._of_interpolant(self._legendre(self.looks))

    @cached_property
    def joint(self) -> Array:
        """Null rules of a first cell's edge, nodes, edge and looks ``(3, m + 5)``, times :data:`JOINT`.

        Five places more than nodes: what is smooth leaves next to nothing there. No column is longer than 1.
        """
        places = np.concatenate([[0.0], self.nodes, [1.0], self.looks])
        polynomials = np.polynomial.legendre.legvander(2.0 * places - 1.0, places.size - 1)
        rules = np.linalg.qr(polynomials)[0].T[-len(JOINT) :] * np.array(JOINT)[:, None]
        return np.asarray(rules / np.linalg.norm(rules, axis=0).max(), dtype=np.float64)

    @cached_property
    def barycentric(self) -> Array:
        """The weights ``(m,)`` of the interpolating polynomial's barycentric form, times any one number."""
        apart = self.nodes[:, None] - self.nodes + np.eye(self.nodes.size)
        size = np.log(np.abs(apart)).sum(1)
        return np.asarray(np.sign(apart).prod(1) * np.exp(size.min() - size), dtype=np.float64)

    def _legendre(self, places: Array) -> Array:
        """Return as many Legendre polynomials as there are nodes at places in the unit interval."""
        polynomials = np.polynomial.legendre.legvander(2.0 * places - 1.0, self.nodes.size - 1)
        return np.asarray(polynomials, dtype=np.float64)

    def _of_interpolant(self, functionals: Array) -> Array:
        """Return functionals of the interpolating polynomial ``(k, m)``, given those of Legendre's."""
        return np.asarray(np.linalg.solve(self._legendre(self.nodes).T, functionals.T).T, dtype=np.float64)

    @cached_property
    def parabolas(self) -> tuple[Array, Array, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        """The parabola through values at each node, or its neighbour if it is outermost, and those beside it.

        Of each node the coefficients ``(3, 6, m)`` with which values before, here and after make the parabola's
        slope here, its second derivative over 2, the same without, its value here and at two other nodes. Then
        ``(4, m)`` the distance from before to after; where here is; 1 unless the node was an outermost one, then 0;
        and 1. And the neighbours ``(5, m)``: the nodes before, here and after, and one more on either side, or two
        on one where the other has none left.
        """
        m, tau = self.nodes.size, self.nodes
        here = np.arange(m).clip(1, m - 2)
        left, right = np.where(here > 1, here - 2, here + 3), np.where(here < m - 2, here + 2, here - 3)
        neighbours = np.stack((here - 1, here, here + 1, left, right))
        first, second = tau[here] - tau[here - 1], tau[here + 1] - tau[here]
        span, value = first + second, np.outer((0.0, 1.0, 0.0), np.ones(m))
        bend = np.stack((1.0 / (first * span), -1.0 / (first * second), 1.0 / (second * span)))
        slope = np.stack((-1.0 / first, 1.0 / first, 0.0 * first)) + bend * first
        others = (value + away * (slope + bend * away) for away in (tau[left] - tau[here], tau[right] - tau[here]))
        rows = np.stack((slope, bend, 2.0 * bend, value, *others), axis=1)
        return rows, np.stack((span, tau[here], here == np.arange(m), np.ones(m))), neighbours

    @cached_property
    def mirrored(self) -> bool:
        """Whether the nodes are symmetric about one in the middle."""
        return self.nodes.size % 2 == 1 and bool(np.abs(self.nodes + self.nodes[::-1] - 1.0).max() < 1e-14)

    @property
    def order_gap(self) -> int:
        """How many pairs of degrees lie between the last null rules and the first degree integrated wrongly.

        At most 6 are counted: decay seen over five pairs does not carry further on a kink, see ADR 3.
        """
        return min(6, (self.degree + 2 - self.nodes.size) // 2)

    def tensors(self, dtype: torch.dtype, device: torch.device) -> RuleTensors:
        """Return the rule in real ``dtype`` on ``device``.

        Kept from call to call, except inside a transform or inference mode, where new tensors are
        wrappers that must not outlive it.
        """
        key = (dtype, device)
        if key in self._cache:
            return self._cache[key]
        parabolas, around, neighbours = self.parabolas
        columns = (
            self.nodes, self.weights, self.functionals, self.shares, self.looks, self.at_looks, self.gaps,
            parabolas, around, self.joint,
        )  # fmt: skip
        made = RuleTensors(
            *(torch.as_tensor(column, dtype=dtype, device=device) for column in columns),
            neighbours=torch.as_tensor(neighbours, device=device),
            order_gap=self.order_gap,
        )
        if not in_transform() and not torch.is_inference_mode_enabled():
            self._cache[key] = made
        return made
