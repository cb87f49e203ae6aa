"""How far f at places in cells is from what the cells' polynomials make of it.

The other body is the kernel's ``gaps.c``, for which the tests check that it does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import BEYOND
from quadgrad._core.reduce import align
from quadgrad._core.rules import Rule

__all__ = ["MATTERS", "ROUNDING", "find_gaps"]

MATTERS = 0.1
"""What is not explained matters if it may amount to this part of the tolerance."""

ROUNDING = 100.0
"""What is not explained by so many eps of the largest value is none of rounding."""


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
        The places, in the cells' unit intervals, and which of them are in the cells.
    rounding : float
        What rounding explains, as a part of the largest value.
    """
    on = rule.tensors(torch.float64, tau.device)
    weights, m = torch.as_tensor(rule.barycentric, device=tau.device)[:, None], len(on.nodes)
    y = (y * align(factor, y)).reshape(*y.shape[:2], -1)
    apart = tau[:, None] - on.nodes[:, None]
    weight = weights / torch.where(apart == 0.0, 1e-300, apart)
    weight = (weight / weight.sum(1, keepdim=True)).to(y.dtype)
    gap = (torch.einsum("qmk,mkc->qkc", weight, y[:m]) - y[m:]).abs()
    highest = torch.einsum("jm,mkc->jkc", on.functionals[1:3].to(y.dtype), y[:m]).abs().sum(0)
    allowed = BEYOND * highest + y[:m].abs().amax(0) * rounding
    gap = (gap - allowed).clamp_min(0.0)
    missed = gap.nan_to_num(0.0, 0.0, 0.0).amax(2) * inside
    return missed, y[m:].abs().nan_to_num(0.0, 0.0, 0.0).amax(2)
