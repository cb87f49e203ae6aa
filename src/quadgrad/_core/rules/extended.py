"""Linear equations, orthonormal columns and Legendre polynomials in extended precision, for the tables of rules.

By element: what BLAS and LAPACK make of the last bits depends on the processor. Rounded to double precision at the
end, a table is as good as it can be, and the same everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Extended", "legendre", "legendre_integrals", "orthonormal", "solve"]

Extended = np.ndarray[Any, np.dtype[np.floating[Any]]]


def legendre(places: Any, count: int) -> Extended:
    """Return the first ``count`` Legendre polynomials at places in the unit interval, ``(*places, count)``."""
    return np.asarray(np.polynomial.legendre.legvander(2 * np.asarray(places, np.longdouble) - 1, count - 1))


def legendre_integrals(places: Any, count: int) -> Extended:
    """Return their integrals from 0 on, ``(*places, count)``."""
    polynomials = legendre(places, count + 1)
    below = np.concatenate((-np.ones_like(polynomials[..., :1]), polynomials[..., :-2]), -1)
    return (polynomials[..., 1:] - below) / (4 * np.arange(count) + 2)


def solve(matrix: Extended, right: Extended) -> Extended:
    """Return the solutions ``(n, k)`` of linear equations, by Gauss-Jordan elimination."""
    n = len(matrix)
    rows = np.hstack((matrix, right))
    for k in range(n):
        pivot = k + int(np.abs(rows[k:, k]).argmax())
        row = rows[pivot, k:] / rows[pivot, k]
        rows[pivot], rows[k, k:] = rows[k], 0
        rows[:, k:] -= rows[:, k, None] * row
        rows[k, k:] = row
    return rows[:, n:]


def orthonormal(columns: Extended) -> Extended:
    """Return orthonormal columns: the first k span what the first k given ones do (Gram and Schmidt)."""
    rows = columns.T.copy()
    for k, row in enumerate(rows):
        for _ in range(2):  # what is left of the others after one time is too much
            row -= (rows[:k] @ row) @ rows[:k]
        row /= np.sqrt(row @ row)
    return rows.T
