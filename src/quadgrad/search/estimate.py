"""Value, error and rounding floor of cells from the integrand's values at the rule's nodes.

The error comes from null rules: the size of the integrand's highest polynomial coefficients on the
cell, and how fast they decay, tell how large the first ones that the rule integrates wrongly are.
Two neighbouring degrees are taken together so that an even or odd integrand cannot fool it
(Berntsen and Espelid, *ACM TOMS* 17, 1991).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad.rules import RuleTensors
from quadgrad.rules.rule import NULL_PAIRS

__all__ = ["FLOOR", "apply_rule", "judge_sums", "largest_component"]

FLOOR = 10.0
"""Reported errors are at least this many eps times the integral of abs(f)."""

SAFETY = 10.0
SLOW = 0.9
"""Decay per pair of degrees that is taken for no decay."""


def apply_rule(rule: RuleTensors, y: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum over the nodes of each cell.

    Parameters
    ----------
    rule : RuleTensors
    y : Tensor, shape (m, n, *event)
        The integrand; complex ones are taken as two real columns.
    slope : Tensor, shape (m, n), optional
        What to multiply the integrand by.

    Returns
    -------
    sums : Tensor, shape (1 + 2 * NULL_PAIRS, n, *event[, 2])
        The rule's sum, then its null rules.
    size : Tensor, shape (n, *event[, 2])
        The rule's sum of the absolute values.
    """
    if slope is not None:
        y = y * slope.reshape(slope.shape + (1,) * (y.ndim - 2))
    columns = torch.view_as_real(y) if y.is_complex() else y
    flat = columns.flatten(1)
    functionals = rule.functionals.to(flat.dtype)
    tail = columns.shape[1:]
    return (functionals @ flat).reshape(functionals.shape[0], *tail), (functionals[0] @ flat.abs()).reshape(tail)


def judge_sums(
    sums: Tensor, size: Tensor, scale: Tensor, order_gap: int, eps: float, is_complex: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the sums over each cell into its value ``(n, *event)``, error and floor ``(n,)``.

    Error and floor are the largest over the event. Where f is not finite the value is 0 and the error
    infinite.
    """
    error = _null_rule_error(sums[1:], size, order_gap, eps)
    value = sums[0]
    if is_complex:
        value = torch.view_as_complex(value.contiguous())
        error, size = torch.linalg.vector_norm(error, dim=-1), size.sum(-1)
    scale_event = scale.reshape(scale.shape + (1,) * (value.ndim - 1))
    value = value * scale_event
    if value.ndim > 1:
        error, size = largest_component(error), largest_component(size)
    floor = (FLOOR * eps) * scale * size
    error = torch.nan_to_num(torch.maximum(scale * error, floor), nan=torch.inf, posinf=torch.inf)
    value = value.masked_fill(error.isinf().reshape(scale_event.shape), 0.0)
    return value, error, floor.nan_to_num(0.0, posinf=0.0)


def largest_component(size: Tensor) -> Tensor:
    """Return the largest over the event dimensions, 0 for an empty event, shape ``(n,)``."""
    if size.ndim == 1:
        return size
    return size.flatten(1).amax(1) if size.numel() else size.new_zeros(size.shape[:1])


def _null_rule_error(nulls: Tensor, size: Tensor, order_gap: int, eps: float) -> Tensor:
    """Return the error on the unit interval from the null rules, shape ``(2 * NULL_PAIRS, ...)``.

    Sums of absolute values, not of squares: integrands of 1e-200 must not underflow.
    """
    magnitude = nulls.abs()
    pairs = magnitude[0::2] + magnitude[1::2]
    above_noise = (pairs[:-1] - (2.0 * eps) * size).clamp_min(0.0)
    decay = (above_noise / pairs[1:].clamp_min(torch.finfo(size.dtype).tiny)).amax(0)
    # The slowest decay seen, continued from the lowest pair to the first degree integrated wrongly.
    continued = pairs[-1] * _power((decay / SLOW).clamp_max(1.0), order_gap + NULL_PAIRS - 1)
    return SAFETY * torch.where(decay < SLOW, continued, pairs.amax(0))


def _power(base: Tensor, exponent: int) -> Tensor:
    """Return an integer power by squaring, several times faster than ``pow``."""
    result = base if exponent & 1 else torch.ones_like(base)
    while exponent := exponent >> 1:
        base = base * base
        result = result * base if exponent & 1 else result
    return result
