"""Wynn's epsilon algorithm: the limit of a sequence of sums from its last few terms.

Column k is exact where the terms are a sum of k geometric sequences, also with a power of the index as a factor
(P. Wynn, *Mathematical Tables and Other Aids to Computation* 10, 1956). Of a function's integrals over equal steps
of the logarithm of the distance from a point this covers algebraic and logarithmic singularities there.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["COLUMNS", "extrapolate"]

COLUMNS = 3
"""Columns that are computed in search; the last one only tells the error of the one before it."""


def extrapolate(terms: Tensor, columns: int, sizes: Tensor | None = None) -> list[tuple[Tensor, ...]]:
    """Return columns 0 to ``columns`` of the epsilon table: estimates of the sum of infinitely many terms.

    The terms stand along the first dimension. Column 0 are the sums of the first 0, 1, ... terms; each entry of
    column k uses 2 k terms, the last entry the last ones. With the ``sizes`` of the terms the entries cannot be
    differentiated.
    """
    differentiable, length = sizes is None, len(terms) + 1
    size = (terms.detach().abs() if sizes is None else sizes).amax(0)
    tiny = torch.finfo(size.dtype).tiny
    size, still = size.clamp_min(tiny), tiny**0.5
    now = torch.nn.functional.pad((terms / size).cumsum(0), (0, 0) * (terms.ndim - 1) + (1, 0))
    before: Tensor | None = None
    table = [(now * size).unbind()]
    for k in range(1, columns + 1):
        for second in (False, True):
            # Of all entries, the last ones having none behind them: to leave these out would take longer.
            behind = now.roll(-1, 0)
            step = behind - now
            # Where a sequence stands still its limit is reached: 1 / inf = 0 is to be added in the second step.
            if differentiable:  # instead of inf it is 1 / still, beside which nothing counts either
                step = step.masked_fill(step.abs() <= still, torch.inf if second else still)
            turned = step.reciprocal()
            if second and not differentiable:
                turned = turned.nan_to_num(0.0, 0.0, 0.0)
            now, before = turned if before is None else before + turned, behind
        table.append((now * size).unbind()[: length - 2 * k])
    return table
