"""What parabolas through three samples, and how they change from one to the next, say of each gap.

A parabola with leading coefficient c integrates, over a gap h, to the trapezoid less ``c h^3 / 6``. With y's third
divided difference d the parabola itself is off by d times the integral of ``(x - x0) (x - x1) (x - x2)``.

Gaps of femtoseconds or terahertz have no cube in single precision: everywhere c is multiplied by the square of what
its three samples span before, and gaps are parts of that.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from quadgrad._core.sampled.samples import Samples
from quadgrad._core.sampled.tridiagonal import interleave

__all__ = ["bends", "divisor", "simpson_error", "simpson_gap_errors", "trapezoid_error", "trapezoid_gap_errors"]

SAFETY = 2.0
"""Errors estimated in a gap are multiplied by it: next to a jump, or where the slope is infinite, they are half."""


def bends(y: Tensor, gaps: Tensor | None) -> Tensor:
    """Return by how much each gap's trapezoid lies above the parabola of its pair: shape ``(..., n - 1)``.

    Pairs begin with the first gap. A last gap without a partner takes the parabola of the last three samples.
    """
    before, after = _gap_bends(y, gaps)
    own = interleave(before[..., ::2], after[..., ::2])
    return torch.cat((own, after[..., -1:]), -1) if y.shape[-1] % 2 == 0 else own


def divisor(gaps: Tensor) -> Tensor:
    """Return what to divide by so that a quotient by a gap of 0 is 0, and has derivative 0."""
    return torch.where(gaps == 0, torch.inf, gaps)


def trapezoid_error(samples: Samples) -> Tensor:
    """Return how far the trapezoidal rule is from Simpson's, ``(*batch, 1)``."""
    return SAFETY * samples.scaled(bends(samples.y, samples.gaps).sum(-1, keepdim=True)).abs()


def trapezoid_gap_errors(samples: Samples) -> Tensor:
    """Return by how much the parabolas on either side change the trapezoid over each gap, whichever is more."""
    before, after = (bent.abs() for bent in _gap_bends(samples.y, samples.gaps))
    worst = torch.maximum(torch.cat((before[..., :1], after), -1), torch.cat((before, after[..., -1:]), -1))
    return SAFETY * samples.scaled(worst).abs()


def simpson_gap_errors(samples: Samples) -> Tensor:
    """Return by how much the two parabolas over each gap differ; at the ends as over the gap beside."""
    if samples.count < 4:
        return trapezoid_gap_errors(samples)
    before, after = _gap_bends(samples.y, samples.gaps)
    jumps = (before[..., 1:] - after[..., :-1]).abs()
    first, last = jumps[..., :1], jumps[..., -1:]
    if samples.gaps is not None:
        gaps = samples.gaps
        first = first * (gaps[..., :1] / gaps[..., 1:2]) ** 3
        last = last * (gaps[..., -1:] / gaps[..., -2:-1]) ** 3
    return SAFETY * samples.scaled(torch.cat((first, jumps, last), -1)).abs()


def simpson_error(samples: Samples) -> Tensor:
    """Return what third differences add to the parabolas of all pairs, ``(*batch, 1)``: nothing to even pairs.

    On uneven ones they are most of the error, and need not show in a comparison with fewer samples: where a gap is
    much wider than its partner, leaving out the sample between them changes little.
    """
    if samples.count < 4:
        return trapezoid_error(samples)
    gaps = torch.ones_like(samples.y.real[..., 1:]) if samples.gaps is None else samples.gaps
    pairs = gaps[..., 1:] + gaps[..., :-1]
    bent, (first, second) = _bent(samples.y, samples.gaps), (pairs[..., :-1], pairs[..., 1:])
    spans = divisor(first + gaps[..., 2:])
    # The third difference, times the cube of what the pair spans that it is asked for.
    ahead = ((bent[..., 1:] * (first / divisor(second)) ** 2 - bent[..., :-1]) * (first / spans)).abs()
    behind = ((bent[..., 1:] - bent[..., :-1] * (second / divisor(first)) ** 2) * (second / spans)).abs()
    sides = torch.maximum(pad(behind, (1, 0)), pad(ahead, (0, 1)))
    before, after = gaps[..., :-1], gaps[..., 1:]
    errors = (sides * (before - after) / 12).abs()[..., ::2].sum(-1, keepdim=True)
    if samples.count % 2 == 0:
        before, after = gaps[..., -2:-1], gaps[..., -1:]
        part = after / divisor(before + after)
        errors = errors + (sides[..., -1:] * part**3 * (after / 12 + before / 6)).abs()
    return SAFETY * samples.scaled(errors).abs()


def _bent(y: Tensor, gaps: Tensor | None) -> Tensor:
    """Return the leading coefficient of the parabola through each three samples, times their span squared."""
    steps = y.diff(dim=-1)
    if gaps is None:
        return 2 * steps.diff(dim=-1)
    pairs = gaps[..., 1:] + gaps[..., :-1]
    under = divisor(gaps)
    return steps[..., 1:] * (pairs / under[..., 1:]) - steps[..., :-1] * (pairs / under[..., :-1])


def _gap_bends(y: Tensor, gaps: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return by how much trapezoids lie above each parabola, over the first and the second of its gaps."""
    bent = _bent(y, gaps)
    if gaps is None:
        return bent / 24, bent / 24
    before, after = gaps[..., :-1], gaps[..., 1:]
    span = divisor(before + after)
    return bent * ((before / span) ** 2 * before / 6), bent * ((after / span) ** 2 * after / 6)
