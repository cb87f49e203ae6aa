"""Of cells of any kind: their integrals as a differentiable function of f's values, and what rounding of x adds."""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import COLUMNS, extrapolate
from quadgrad._core.estimates.null_rules import PLACE
from quadgrad._core.mesh.interval import Layout
from quadgrad._core.reduce import align, apply, mean
from quadgrad._core.rules import RuleTensors

__all__ = ["blur_of_x", "extrapolated_sums", "weighted_sums"]


def weighted_sums(functionals: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """Apply linear functionals ``(k, m)`` to f on each cell: ``(k, n, *event)``.

    ``y`` is f at the nodes, ``(m, n, *event)``, and ``factor`` ``(m or 1, n)`` what it is to be multiplied by.
    """
    factor = align(factor, y)
    at_once = factor.shape[0] == 1  # what is the same at all nodes of a cell need not meet each of them
    y = y.to(torch.promote_types(y.dtype, factor.dtype)) if at_once else y * factor
    sums = apply(functionals, y)
    return sums * factor if at_once else sums


def extrapolated_sums(plain: Tensor, terms: Tensor, column: Tensor) -> Tensor:
    """Extrapolate series to the ends that their cells touch, each in its own column of the epsilon table.

    ``terms`` have shape ``(s, n, *event)``, their sums ``plain`` ``(n, *event)``, and ``column`` is ``(n,)``.
    """
    harmless = align(0.5 ** torch.arange(terms.shape[0], device=terms.device), terms)
    for c in range(1, COLUMNS):
        chosen = align(column == c, plain)
        # Where another column is taken, what this one cannot sum must not reach the gradient.
        limit = extrapolate(torch.where(chosen, terms, harmless.to(terms.dtype)), c)[c][-1]
        plain = torch.where(chosen, limit, plain)
    return plain


def blur_of_x(rule: RuleTensors, layout: Layout, y: Tensor, variation: Tensor, eps: float) -> Tensor:
    """Return what rounding of x adds to the integrals of columns ``y`` ``(m, n, columns)``: ``(n, columns)``.

    ``variation`` is how much they vary over the cell, times dx/dtau. Where nodes close in on an end f is taken to
    change as much as the distance from it does.
    """
    reach = (PLACE * eps) * layout.reach
    blur = variation * (reach / layout.scale).clamp_max(1.0)[:, None]
    if not isinstance(layout.logarithmic, Tensor) or layout.rate is None:
        return blur
    size = mean(rule.weights, y.abs())
    return torch.where(layout.logarithmic[:, None], size * (reach * -layout.rate)[:, None], blur)
