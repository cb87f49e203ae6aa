"""Values at randomised points to value, error and effective number of samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import scipy  # which imports scipy.special when that is first used: a sixth of the start
import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import largest_component
from quadgrad._core.reduce import align
from quadgrad._core.tolerance import real_dtype

__all__ = ["Estimate", "FEWEST", "Moments", "ReplicateSums", "half_width"]

FEWEST = 400.0
"""Effective samples below which a small scatter proves nothing: replicates may all have missed the same peak. Of 48
corner peaks in 2 to 8 dimensions 20 were wrong without it, none with it."""

FLOOR = 10.0
"""The least error, in roundings of the integral of |f|."""

VARIES = 1e-6
"""By how much the mean square of values that are not all the same exceeds the square of their mean, at least."""

ALIKE = 1e-9
"""By how much, relatively, the effective number of samples may differ from that of values other than 0, where these
are all of one size; in single precision a hundred roundings."""


@cache
def student_factor(replicates: int, confidence: float) -> float:
    """Return how many standard errors of the mean of so many replicates an interval extends to each side."""
    return float(scipy.special.stdtrit(replicates - 1, 0.5 + 0.5 * confidence))


@dataclass(slots=True)
class Moments:
    """Of replicates: how many, their mean, and the sums of squares and cubes of what they differ from it by.

    Those of complex numbers are of real and imaginary part, in a last dimension.
    """

    count: int
    mean: Tensor
    square: Tensor
    cube: Tensor

    @staticmethod
    def none(like: Tensor) -> Moments:
        """Return those of no replicates."""
        zero = torch.zeros_like(torch.view_as_real(like) if like.is_complex() else like)
        return Moments(0, zero, zero, zero)

    def add(self, new: Tensor) -> None:
        """Add one replicate (Terriberry's update of the third, Welford's of the others)."""
        count = self.count + 1
        step = (torch.view_as_real(new) if new.is_complex() else new) - self.mean
        part = step / count
        more = step * part * self.count
        self.cube = self.cube + more * part * (count - 2) - 3.0 * part * self.square
        self.square, self.mean, self.count = self.square + more, self.mean + part, count

    def half_width(self, confidence: float) -> Tensor:
        """Return the half-width of Student's interval for the mean, corrected for skewness.

        The correction is the term in t^2 of Johnson's (*J. Am. Stat. Assoc.* 73, 1978), on both sides, as an error
        does not tell which of them is the one that is missed. It is for the skewness beyond what chance gives to
        normal replicates: their intervals get 2 % wider in the median, 10 % with all of it. Of exponential ones
        97.4 % of intervals at 99 % hold the mean instead of 96.2 %.
        """
        count = self.count
        factor = student_factor(count, confidence) / math.sqrt(count)
        width = (self.square / (count - 1)).sqrt() * factor
        if count == 2:  # which have no skewness
            return width
        skewness = count * math.sqrt(count - 1) / (count - 2) * self.cube.abs() / self.square.pow(1.5)
        # The standard error that the skewness of normal replicates has.
        chance = math.sqrt(6.0 * count * (count - 1) / ((count - 2) * (count + 1) * (count + 3)))
        more = (skewness.nan_to_num(0.0, 0.0) - chance).clamp_min(0.0)
        return width * (1.0 + factor / 3.0 * more)


def half_width(means: Tensor, confidence: float) -> Tensor:
    """Return the half-width of the interval for means over the first dimension; of the modulus if complex."""
    parts = torch.view_as_real(means) if means.is_complex() else means
    mean = parts.mean(0)
    off = parts - mean
    scale = off.abs().amax(0)  # cubes would leave the range
    off = off / torch.where(scale > 0.0, scale, 1.0)
    moments = Moments(parts.shape[0], mean, off.square().sum(0), off.pow(3).sum(0))
    width = scale * moments.half_width(confidence)
    return torch.linalg.vector_norm(width, dim=-1) if means.is_complex() else width


@dataclass(slots=True)
class ReplicateSums:
    """Sums over the points of a sample.

    Attributes
    ----------
    first : Tensor, shape (replicates, batch, *event)
        Of the values.
    size, square : Tensor, shape (batch, *event)
        Of their moduli, and of the squares of these.
    seen : Tensor, shape (batch, *event)
        The number of those that are not 0.
    lost : Tensor, shape (batch,)
        The number of points where f was not finite.
    """

    first: Tensor
    size: Tensor
    square: Tensor
    seen: Tensor
    lost: Tensor

    @staticmethod
    def none(replicates: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> ReplicateSums:
        """Return the sums over no points, for values of ``shape`` ``(batch, *event)``."""
        real = real_dtype(dtype)
        first = torch.zeros((replicates, *shape), dtype=dtype, device=device)
        shapes = (shape, shape, shape, shape[:1])
        return ReplicateSums(first, *(torch.zeros(s, dtype=real, device=device) for s in shapes))

    @staticmethod
    def of(y: Tensor, weight: Tensor, replicates: int) -> ReplicateSums:
        """Sum up values ``(replicates * m, batch, *event)`` times ``(1 or replicates * m, 1 or batch)``."""
        weight = align(weight, y)
        constant = weight.shape[0] == 1
        values = y if constant else y * weight
        first = values.unflatten(0, (replicates, -1)).sum(1)
        seen, size, root = (torch.linalg.vector_norm(values, order, dim=0) for order in (0, 1, 2))
        if constant:
            first, size, root = first * weight, size * weight[0].abs(), root * weight[0].abs()
        if y.is_cpu and bool(first.isfinite().all()):  # where asking costs nothing
            lost = size.new_zeros(y.shape[1])
        else:
            lost = (~values.isfinite().reshape(*y.shape[:2], -1).all(2)).sum(0).to(size.dtype)
        return ReplicateSums(first, size, root.square(), seen, lost)

    def tensors(self) -> list[Tensor]:
        """Return all sums."""
        return [self.first, self.size, self.square, self.seen, self.lost]

    def add(self, others: list[Tensor], owner: Tensor | slice = slice(None)) -> None:
        """Add the sums of some integrals, by default of all."""
        for place, (whole, part) in enumerate(zip(self.tensors(), others, strict=True)):
            own = (slice(None), owner) if place == 0 else owner
            whole[own] = whole[own] + part


@dataclass(frozen=True)
class Estimate:
    """What the sums of a sample say: ``value`` ``(batch, *event)``, the rest ``(batch,)``.

    ``error`` is not less than ``floor``, its rounding. ``effective`` is the effective number of samples,
    (sum |f|)^2 / sum f^2 (Kish, *Survey Sampling*, 1965), of the component with fewest if ``every`` one has to be
    seen, else of that with most.
    """

    value: Tensor
    error: Tensor
    floor: Tensor
    effective: Tensor

    @staticmethod
    def of(
        sums: ReplicateSums, n: Tensor, confidence: float, noise: float, every: bool = True, steps: bool = False
    ) -> Estimate:
        """Estimate integrals from ``n`` ``(batch,)`` points in each replicate; see :class:`Estimate`.

        ``steps`` tells that f is constant but for jumps.
        """
        replicates, n = sums.first.shape[0], align(n, sums.size)
        floor = largest_component(FLOOR * noise * sums.size / (replicates * n))
        error = largest_component(_half_width(sums, n, confidence, steps)).maximum(floor)
        # Where squares underflow, and where there is nothing but zeros, nothing is known of the sample.
        effective = torch.where(sums.square > 0.0, sums.size.square() / sums.square, 0.0)
        effective = -largest_component(-effective) if every else largest_component(effective)
        return Estimate((sums.first / n).mean(0), error.nan_to_num(torch.inf), floor, effective.nan_to_num(0.0))

    def scaled(self, scale: Tensor) -> Estimate:
        """Return the estimate of integrals ``scale`` ``(batch,)`` times as large."""
        return replace(
            self, value=self.value * align(scale, self.value), error=self.error * scale, floor=self.floor * scale
        )


def _half_width(sums: ReplicateSums, n: Tensor, confidence: float, steps: bool) -> Tensor:
    """Return the half-width for each component, with what jumps of f leave unknown.

    Where f jumps, replicates count points. Their scatter says nothing of what fewer than one point in all should
    have met: what has probability p is missed by all N with (1 - p)^N, so p may be log(1 / (1 - confidence)) / N.
    That, times the jump, comes on top; where counts are few it makes of the scatter Clopper and Pearson's interval,
    or a wider one.
    """
    replicates, total = sums.first.shape[0], sums.first.shape[0] * n
    means = sums.first / n
    width = half_width(means, confidence)
    # Of a decision, 0 or 1, that was 0 at all points the jump is 1.
    jump = torch.where(sums.size > 0.0, sums.square / sums.size, 1.0)
    # All replicates may count the same: a scatter of 0 says that one point in a replicate falls on the other side
    # less often than would have been seen.
    tied = (means == means[0]).all(0)
    varies = sums.square / total > means[0].abs().square() * (1.0 + VARIES)
    unseen = 1.0 - (1.0 - confidence) ** (1.0 / replicates)
    tied_width = torch.where(tied & varies, unseen * jump / n, width)
    signs = sums.first.sum(0).abs() < (1.0 - _alike(sums.size)) * sums.size
    # Two values, 0 and another or one with both signs; complex numbers of one modulus need not jump.
    two = (sums.seen < total) | (signs if not means.is_complex() else False)
    squared = sums.size.square()
    two &= (squared > 0.0) & ((sums.seen * sums.square - squared).abs() <= _alike(squared) * squared)
    jump = torch.where(signs, 2.0, 1.0) * jump
    return torch.where(two | steps, width - math.log1p(-confidence) * jump / total, tied_width)


def _alike(like: Tensor) -> float:
    return max(ALIKE, 100.0 * torch.finfo(like.dtype).eps)
