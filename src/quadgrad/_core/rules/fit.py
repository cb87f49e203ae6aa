"""Polynomials through f's values at the nodes of a rule on boxes, by least squares: what f should be elsewhere.

Search holds f at points that no node saw against them (:mod:`quadgrad._core.search.boxes.held_out`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.rules.box import BoxRule
from quadgrad._core.rules.rule import Array

__all__ = ["Fit", "fit_of", "fit_points"]

MOST, PART = 170, 0.6
"""So many coefficients at most, and no more than this part of the nodes: what is left over tells how good it is."""

ROOM = 2**21
"""Nor may coefficients and nodes together be more than so many numbers, as with products of long rules."""

LARGEST = 20.0
"""Sums of the absolute values that nodes are multiplied by, anywhere in the cell, are at most this."""


@dataclass(frozen=True, eq=False)
class Fit:
    """Polynomials of some total degree on the unit cube, in products of Legendre's.

    Attributes
    ----------
    powers : numpy.ndarray of int, shape (k, d)
        The degrees of the products.
    coefficients : numpy.ndarray, shape (k, m)
        What they are made of, from values at the nodes.
    basis : numpy.ndarray, shape (m, k)
        The products at the nodes.
    """

    powers: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    coefficients: Array
    basis: Array

    @cached_property
    def factors(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """Which product times which Legendre polynomial, of ``degree + 1`` an axis, makes each product, ``(k, 2)``.

        The first product is 1, and made of nothing.
        """
        number = {tuple(power): k for k, power in enumerate(self.powers.tolist())}
        factors = np.zeros((len(self.powers), 2), dtype=np.int64)
        for power, k in list(number.items())[1:]:
            axis = max(i for i, degree in enumerate(power) if degree)
            before = power[:axis] + (0,) * (len(power) - axis)
            factors[k] = number[before], axis * (self.powers.max() + 1) + power[axis]
        return factors

    def products(self, u: Tensor) -> Tensor:
        """Return the products at points u ``(n, d)`` of the cell, ``(n, k)``."""
        degree = int(self.powers.max())
        t = 2.0 * u.T - 1.0
        legendre = [torch.ones_like(t), t]
        for k in range(1, degree):
            legendre.append((legendre[k] * t * (2 * k + 1) - legendre[k - 1] * k) / (k + 1))
        table = torch.stack(legendre)  # (degrees, d, n)
        products, powers = None, torch.as_tensor(self.powers, device=u.device).T
        for axis, power in enumerate(powers):
            one = table[:, axis].index_select(0, power)
            products = one if products is None else products.mul_(one)
        assert products is not None
        return products.T.contiguous()


@cache
def fit_of(rule: BoxRule) -> Fit:
    """Return the polynomials of the highest degree that the nodes of a rule tell well."""
    return fit_points(rule.nodes)


def fit_points(points: Array) -> Fit:
    """Return the polynomials of the highest degree, up to 8, that points ``(m, d)`` of the unit cube tell well."""
    m, d = points.shape
    places = np.random.default_rng(0).random((200, d))  # its own generator
    best: Fit | None = None
    for degree in range(1, 9):
        powers = _powers(d, degree)
        if best is not None and len(powers) > min(MOST, PART * m, ROOM / m):
            break
        basis = _products(points, powers)
        left, singular, right = np.linalg.svd(basis, full_matrices=False)
        if singular[-1] < 1e-9 * singular[0]:
            break
        coefficients = (right.T / singular) @ left.T
        if best is not None and np.abs(_products(places, powers) @ coefficients).sum(1).max() > LARGEST:
            break
        best = Fit(powers, coefficients, basis)
    assert best is not None
    return best


def _powers(d: int, degree: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return all degrees of d factors that add up to no more than ``degree``."""
    powers = np.zeros((1, 0), dtype=np.int64)
    for _ in range(d):
        powers = np.vstack([np.insert(powers, powers.shape[1], k, axis=1) for k in range(degree + 1)])
        powers = powers[powers.sum(1) <= degree]
    return powers


def _products(u: Array, powers: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Array:
    """Return products of Legendre's polynomials at points u ``(n, d)`` of the unit cube, ``(n, k)``."""
    basis = np.ones((len(u), len(powers)))
    for axis in range(u.shape[1]):
        basis *= np.polynomial.legendre.legvander(2.0 * u[:, axis] - 1.0, int(powers.max()))[:, powers[:, axis]]
    return basis
