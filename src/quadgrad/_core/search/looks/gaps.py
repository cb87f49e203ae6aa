"""How far f at places in cells is from what the cells' polynomials make of it.

The other body is the kernel's ``gaps.c``, for which the tests check that it does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import BEYOND
from quadgrad._core.reduce import align
from quadgrad._core.rules import Rule

__all__ = ["INNERMOST", "MATTERS", "ROUNDING", "find_gaps", "polynomial_at"]

MATTERS = 0.1
"""What is not explained matters if it may amount to this part of the tolerance."""

ROUNDING = 100.0
"""What is not explained by so many eps of the largest value is none of rounding."""

INNERMOST = 5
"""Closer to an end than all nodes f, times the slope, is to be no larger than at so many of the last ones."""


def find_gaps(
    rule: Rule, y: Tensor, factor: Tensor, tau: Tensor, inside: Tensor, rounding: float
) -> tuple[Tensor, Tensor]:
    """Return what cells' polynomials do not explain of f at places in them, and f's size, ``(m, k)``.

    Of components the worst. What rounding explains is left out, what smooth functions differ by from polynomials
    with such highest coefficients, and what is not finite.

    Parameters
    ----------
    y, factor : Tensor, shape (nodes + m, k, *event) and (nodes + m, k) or (1, k)
        f at the nodes of k cells, and at the places, and what it is to be multiplied by.
    tau, inside : Tensor, shape (m, k)
        The places, in the cells' unit intervals, and which of them are in the cells; from 1 on they are between
        the innermost node and the end.
    rounding : float
        What rounding explains, as a part of the largest value.
    """
    on = rule.tensors(torch.float64, tau.device)
    weights, m = torch.as_tensor(rule.barycentric, device=tau.device), len(on.nodes)
    y = (y * align(factor, y)).reshape(*y.shape[:2], -1)
    weight = polynomial_at(tau, on.nodes, weights).to(y.dtype)
    gap = (torch.einsum("mqk,mkc->qkc", weight, y[:m]) - y[m:]).abs()
    gap = gap - (tau >= 1.0)[..., None] * y[m - INNERMOST : m].abs().amax(0)
    highest = torch.einsum("jm,mkc->jkc", on.functionals[1:3].to(y.dtype), y[:m]).abs().sum(0)
    allowed = BEYOND * highest + y[:m].abs().amax(0) * rounding
    gap = (gap - allowed).clamp_min(0.0)
    missed = gap.nan_to_num(0.0, 0.0, 0.0).amax(2) * inside
    return missed, y[m:].abs().nan_to_num(0.0, 0.0, 0.0).amax(2)


def polynomial_at(tau: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
    """Return what values at nodes count in their polynomial at places, ``(m, *tau.shape)``; nothing from 1 on."""
    nodes, weights = (t.reshape(-1, *(1,) * tau.ndim) for t in (nodes, weights))
    apart = tau - nodes
    weight = weights / torch.where(apart == 0.0, 1e-300, apart)
    return (weight / weight.sum(0)).masked_fill(tau >= 1.0, 0.0)
