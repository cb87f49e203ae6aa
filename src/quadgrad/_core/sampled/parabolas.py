"""What parabolas through three samples, and how they change from one to the next, say of each gap.

A parabola with leading coefficient c integrates, over a gap h, to the trapezoid less ``c h^3 / 6``. With y's third
divided difference d the parabola itself is off by d times the integral of ``(x - x0) (x - x1) (x - x2)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.sampled.samples import Samples

__all__ = ["bends", "divisor", "simpson_error", "simpson_gap_errors", "trapezoid_error", "trapezoid_gap_errors"]

SAFETY = 2.0
"""Errors estimated in a gap are multiplied by it: next to a jump, or where the slope is infinite, they are half."""


def bends(y: Tensor, gaps: Tensor | None) -> Tensor:
    """Return by how much each gap's trapezoid lies above the parabola of its pair: shape ``(..., n - 1)``.

    Pairs begin with the first gap. A last gap without a partner takes the parabola of the last three samples.
    """
    bent = _curvatures(y, gaps)
    own = bent[..., ::2].repeat_interleave(2, -1)
    if y.shape[-1] % 2 == 0:
        own = torch.cat((own, bent[..., -1:]), -1)
    return own / 6 if gaps is None else own * gaps**3 / 6


def divisor(gaps: Tensor) -> Tensor:
    """Return what to divide by so that a quotient by a gap of 0 is 0, and has derivative 0."""
    return torch.where(gaps == 0, torch.inf, gaps)


def trapezoid_error(samples: Samples) -> Tensor:
    """Return how far the trapezoidal rule is from Simpson's, ``(*batch, 1)``."""
    return SAFETY * samples.scaled(bends(samples.y, samples.gaps).sum(-1, keepdim=True)).abs()


def trapezoid_gap_errors(samples: Samples) -> Tensor:
    """Return by how much the parabolas on either side change the trapezoid over each gap, whichever is more."""
    gaps = samples.gaps
    bent = _curvatures(samples.y, gaps).abs()
    worst = torch.maximum(torch.cat((bent[..., :1], bent), -1), torch.cat((bent, bent[..., -1:]), -1))
    return SAFETY * samples.scaled(worst / 6 if gaps is None else worst * gaps.abs() ** 3 / 6).abs()


def simpson_gap_errors(samples: Samples) -> Tensor:
    """Return by how much the two parabolas over each gap differ; at the ends as over the gap beside."""
    if samples.count < 4:
        return trapezoid_gap_errors(samples)
    gaps = samples.gaps
    jumps = _curvatures(samples.y, gaps).diff(dim=-1).abs()
    jumps = torch.cat((jumps[..., :1], jumps, jumps[..., -1:]), -1)
    return SAFETY * samples.scaled(jumps / 6 if gaps is None else jumps * gaps**3 / 6).abs()


def simpson_error(samples: Samples) -> Tensor:
    """Return what third differences add to the parabolas of all pairs, ``(*batch, 1)``: nothing to even pairs.

    On uneven ones they are most of the error, and need not show in a comparison with fewer samples: where a gap is
    much wider than its partner, leaving out the sample between them changes little.
    """
    if samples.count < 4:
        return trapezoid_error(samples)
    gaps = torch.ones_like(samples.y.real[..., 1:]) if samples.gaps is None else samples.gaps
    spans = gaps[..., :-2] + gaps[..., 1:-1] + gaps[..., 2:]
    third = (_curvatures(samples.y, gaps).diff(dim=-1) / divisor(spans)).abs()
    sides = torch.maximum(torch.cat((third[..., :1], third), -1), torch.cat((third, third[..., -1:]), -1))
    before, after = gaps[..., :-1], gaps[..., 1:]
    errors = (sides * (before - after) * (before + after) ** 3 / 12).abs()[..., ::2].sum(-1, keepdim=True)
    if samples.count % 2 == 0:
        before, after = gaps[..., -2:-1], gaps[..., -1:]
        errors = errors + (sides[..., -1:] * after**3 * (after / 12 + before / 6)).abs()
    return SAFETY * samples.scaled(errors).abs()


def _curvatures(y: Tensor, gaps: Tensor | None) -> Tensor:
    """Return the second divided difference of each three samples: the parabola's leading coefficient."""
    slopes = y.diff(dim=-1)
    if gaps is None:
        return slopes.diff(dim=-1) / 2
    return (slopes / divisor(gaps)).diff(dim=-1) / divisor(gaps[..., 1:] + gaps[..., :-1])
