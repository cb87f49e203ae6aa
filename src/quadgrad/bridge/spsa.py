"""Simultaneous perturbation: all inputs move at once, by random signs; the cost does not grow with their number.

(Spall, *IEEE Trans. Automatic Control* 37, 1992.) The signs are rows of a Hadamard matrix, drawn without
replacement,
with random signs for its columns: unbiased like independent signs, but with less scatter, and without any once
there are as many samples as inputs (Bhatnagar et al., *ACM TOMACS* 13, 2003). Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.problem import TINY, Problem
from quadgrad.bridge.stencils import SAFETY
from quadgrad.bridge.structure import Jacobian

__all__ = ["SAMPLES", "SampledJacobian", "sample_jacobian"]

SAMPLES = 16
CHECKED = 4
"""Directions in which a second, double step tells the truncation error."""


@dataclass(frozen=True)
class SampledJacobian:
    """A dense Jacobian as a mean of outer products of directions and slopes, never formed.

    Attributes
    ----------
    directions : array, shape (k, n)
        Divided by the squared length of each input's step, so that means of products are derivatives.
    slopes : array, shape (k, m)
    scatter : float
        1 if samples are few, 0 if there are as many as inputs.
    size : array, shape (m,)
        Truncation and noise of the slopes.
    reach : array, shape (n,)
        By what they are divided in derivatives: 1 over the steps.
    """

    directions: Array
    slopes: Array
    scatter: float
    size: Array
    reach: Array

    def pull(self, cotangents: Array) -> Array:
        """Return vector-Jacobian products ``(e, n)``."""
        return np.real(cotangents @ np.conj(self.slopes).T) @ self.directions / len(self.slopes)

    def pull_error(self, cotangents: Array) -> Array:
        """Return by how much each of :meth:`pull` may be wrong: three standard errors of the mean, and rounding."""
        count = len(self.slopes)
        terms = np.real(cotangents @ np.conj(self.slopes).T)
        mean = self.pull(cotangents)
        variance = np.maximum((terms**2) @ (self.directions**2) / count - mean**2, 0.0) / max(1, count - 1)
        return SAFETY * self.scatter * np.sqrt(variance) + (np.abs(cotangents) @ self.size)[:, None] * self.reach

    def push(self, tangents: Array) -> Array:
        """Return Jacobian-vector products ``(e, m)``."""
        return (tangents @ self.directions.T) @ self.slopes / len(self.slopes)

    def output_error(self) -> Array:
        """Return for each output the largest error of its derivatives."""
        count, longest = len(self.slopes), np.abs(self.directions).max(initial=0.0)
        spread = np.sqrt(np.mean(np.abs(self.slopes) ** 2, axis=0) / max(1, count - 1))
        return SAFETY * self.scatter * longest * spread + self.size * self.reach.max(initial=0.0)


def sample_jacobian(problem: Problem, samples: int, seed: int) -> Jacobian | SampledJacobian:
    """Estimate the Jacobian from ``2 * samples`` evaluations and a few more; fewer where there are few inputs."""
    structure = problem.structure
    signs, scatter = _signs(samples, structure.groups, seed)
    relative = problem.typical ** (1.0 / 3.0)
    step = np.minimum(problem.scale * relative, 0.2 * (problem.upper - problem.lower))
    step = 2.0 ** np.floor(np.log2(np.maximum(step, TINY)))
    # At a bound the points lie around one that is two steps inside.
    centre = np.clip(problem.x, problem.lower + 2.0 * step, problem.upper - 2.0 * step)
    moves = np.where(structure.colour >= 0, signs[:, structure.colour], 0.0) * step
    checked = moves[:CHECKED]
    points = [centre + moves, centre - moves, centre + 2.0 * checked, centre - 2.0 * checked, centre[None]]
    shifted = bool(np.any(centre != problem.x))
    with np.errstate(all="ignore"):
        outputs = problem.evaluate(problem.representable(np.concatenate(points[: 5 if shifted else 4])))
    count = len(signs)
    above, below, far_above, far_below = np.split(outputs, np.cumsum([count, count, len(checked)]))[:4]
    far_below = far_below[: len(checked)]
    halves = 0.5 * (above - below)
    # What twice the step says of truncation; at a bound also how the slope changes from the centre to x.
    size = np.abs(0.25 * (far_above - far_below) - halves[: len(checked)]).max(axis=0)
    if shifted:
        size = size + 2.0 * SAFETY * np.abs(0.5 * (above + below) - outputs[-1]).max(axis=0)
    size = size + SAFETY * problem.noise
    if structure.is_dense:
        return SampledJacobian(signs / step, halves, scatter, size, 1.0 / step)
    groups = np.arange(structure.groups)
    width = structure.spread(step, groups)
    terms = signs[:, :, None] * halves[:, None, :] / width
    value = terms.mean(axis=0)
    error = SAFETY * scatter * terms.std(axis=0) / np.sqrt(max(1, count - 1)) + size / width
    known = structure.known(groups)
    return Jacobian(structure, np.where(known, value, 0.0), np.where(known, error, 0.0))


def _signs(samples: int, groups: int, seed: int) -> tuple[Array, float]:
    """Return signs ``(k, groups)`` and how much scatter such a sample leaves (0: none)."""
    generator = np.random.default_rng(seed)
    order = 1 << max(0, groups - 1).bit_length()
    count = min(samples, order)
    rows = generator.choice(order, count, replace=False) if order < 2**20 else generator.integers(order, size=count)
    flips = generator.integers(2, size=groups)
    parity = rows[:, None] & np.arange(groups)
    for shift in (32, 16, 8, 4, 2, 1):
        parity = parity ^ (parity >> shift)
    return 1.0 - 2.0 * ((parity & 1) ^ flips), float(np.sqrt(1.0 - count / order))
