"""Limits of series whose terms are integrals over successive cells that close in on an end of a piece.

Two transformations. Levin's u (D. Levin, *International Journal of Computer Mathematics* B 3, 1973) for the half
waves of an oscillation, and for whole ones, whose terms may fall like a power of their number; Wynn's epsilon
algorithm for cells that double in the logarithm of the distance from the end, whose terms fall geometrically there.
Both are functions of the terms, and differentiated as such.

A plan says of each cell to which term of which series it belongs, in one number: :func:`encode`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import extrapolate

__all__ = [
    "DROPPED", "EPSILON", "LEVIN", "add_series", "encode", "levin", "levin_orders", "limit_of", "limits_of",
    "series_of", "without_last",
]  # fmt: skip

LEVIN, EPSILON = 0, 1
"""Which transformation."""

DROPPED = 2
"""So many of the last terms of a series are left out, one after the other, to see what they change."""

_TERMS, _COLUMNS = 256, 64


def encode(number: Tensor, method: int, column: Tensor | int, upper: bool) -> Tensor:
    """Return what a plan keeps of terms with these numbers, from 0 on: negative for a series at the lower end.

    The ``column`` is that of the epsilon table, or the number that Levin's transform gives to the first term.
    """
    code = (method * _COLUMNS + column) * _TERMS + number + 1
    return code if upper else -code


def levin(terms: Tensor, first: float) -> Tensor:
    """Return Levin's u transform of all ``terms`` ``(n, ...)``, the number of the first one being ``first``.

    Where terms fall like a power of their number it matters from where that is counted: at z of an oscillation with
    half waves h long it is z / h.
    """
    n = len(terms)
    k = torch.arange(n, dtype=torch.float64, device=terms.device)
    order = n - 1
    binomial = torch.exp(
        torch.lgamma(k.new_tensor(order + 1.0)) - torch.lgamma(k + 1) - torch.lgamma(order - k + 1)
    )
    weights = binomial * (-1.0) ** k * ((k + first) / (order + first)) ** max(order - 1, 0)
    weights = weights.reshape(-1, *(1,) * (terms.ndim - 1))
    place = (k + first).reshape(weights.shape)
    shares = weights / (place * terms)
    return (shares * terms.cumsum(0)).sum(0) / shares.sum(0)


def levin_orders(terms: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return Levin's u transforms ``(n, k)`` of the first 1, 2, ... of terms ``(n, k)``, and how much each counts.

    The latter are the moduli of derivatives by the terms, ``(n, n, k)``; ``first`` is ``(k,)``, see :func:`levin`.
    """
    j = torch.arange(len(terms), dtype=torch.float64, device=terms.device)[:, None]
    order = j[..., None]
    binomial = torch.lgamma(order + 1) - torch.lgamma(j + 1) - torch.lgamma((order - j).clamp_min(0.0) + 1)
    place = j + first
    signed = torch.where(j <= order, binomial.exp() * (-1.0) ** j, 0.0)
    shares = signed * (place / (order + first)) ** (order - 1.0).clamp_min(0.0) / (place * terms)
    # One after the other: a sum would add them in another order where there are more series.
    later, sums = shares.flip(1).cumsum(1).flip(1), terms.cumsum(0)
    whole = later[:, 0]
    limits = (shares * sums).cumsum(1)[:, -1] / whole
    gains = (later - shares / terms * (sums - limits[:, None])) / whole[:, None]
    return limits, gains.abs()


def limit_of(terms: Tensor, method: int, column: int) -> Tensor:
    """Return the limit of one series ``(n, *event)``."""
    return levin(terms, float(column)) if method == LEVIN else extrapolate(terms, column)[column][-1]


def series_of(code: Tensor, row: Tensor) -> list[Tensor]:
    """Return for each series which cells it has, in the order of its terms if each is one cell."""
    series, found = 2 * row + (code > 0), list[Tensor]()
    for which in series[code != 0].unique().tolist():
        mine = ((series == which) & (code != 0)).nonzero().squeeze(1)
        found.append(mine[code[mine].abs().argsort(stable=True)])
    return found


def limits_of(values: Tensor, code: Tensor) -> Tensor:
    """Return the limit of one series from the integrals of its cells ``(n, *event)``."""
    size = code.abs()
    number, head = size % _TERMS - 1, int(size[0]) // _TERMS
    terms = values.new_zeros((int(number.max()) + 1, *values.shape[1:])).index_add(0, number, values)
    return limit_of(terms, head // _COLUMNS, head % _COLUMNS)


def add_series(values: Tensor, owner: Tensor, row: Tensor, code: Tensor, batch: int) -> Tensor:
    """Return the sums of cells' integrals ``(n, *event)`` for each of ``batch`` owners, series by their limits."""
    result = values.new_zeros((batch, *values.shape[1:]))
    plain = (code == 0).nonzero().squeeze(1)
    result = result.index_add(0, owner[plain], values[plain])
    for mine in series_of(code, row):
        result = result.index_add(0, owner[mine[:1]], limits_of(values[mine], code[mine])[None])
    return result


def without_last(code: Tensor, row: Tensor, count: int) -> Tensor:
    """Tell which cells remain if every series loses its last terms."""
    number, series = code.abs() % _TERMS - 1, 2 * row + (code > 0)
    keep = torch.ones_like(code, dtype=torch.bool)
    for which in series[code != 0].unique().tolist():
        mine = (series == which) & (code != 0)
        keep &= ~(mine & (number > number[mine].max() - count))
    return keep
