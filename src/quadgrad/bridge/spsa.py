"""Simultaneous perturbation: all inputs move at once, by random signs; the cost does not grow with their number.

(Spall, *IEEE Trans. Automatic Control* 37, 1992.) The signs are rows of a Hadamard matrix, drawn without replacement,
with random signs for its columns: unbiased like independent signs, but with less scatter, and without any once
there are as many samples as inputs (Bhatnagar et al., *ACM TOMACS* 13, 2003). Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.differences import SAFETY, TINY, Problem
from quadgrad.bridge.structure import Jacobian

__all__ = ["SAMPLES", "SampledJacobian", "sample_jacobian"]

SAMPLES = 16


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
    rounding : array, shape (n,)
        What noise and truncation add to the error of each input's derivatives, relative to the output's size.
    sizes : array, shape (m,)
    """

    directions: Array
    slopes: Array
    scatter: float
    rounding: Array
    sizes: Array

    def pull(self, cotangents: Array) -> Array:
        """Return vector-Jacobian products ``(e, n)``."""
        return (cotangents @ np.conj(self.slopes).T).real @ self.directions / len(self.slopes)

    def pull_error(self, cotangents: Array) -> Array:
        """Return by how much each of :meth:`pull` may be wrong: three standard errors of the mean, and rounding."""
        count = len(self.slopes)
        terms = (cotangents @ np.conj(self.slopes).T).real
        mean = self.pull(cotangents)
        variance = np.maximum((terms**2) @ (self.directions**2) / count - mean**2, 0.0) / max(1, count - 1)
        return (
            SAFETY * self.scatter * np.sqrt(variance) + (np.abs(cotangents) @ self.sizes)[:, None] * self.rounding
        )

    def push(self, tangents: Array) -> Array:
        """Return Jacobian-vector products ``(e, m)``."""
        return (tangents @ self.directions.T) @ self.slopes / len(self.slopes)

    def output_error(self) -> Array:
        """Return for each output the largest error of its derivatives."""
        count, longest = len(self.slopes), np.abs(self.directions).max(initial=0.0)
        spread = np.sqrt(np.mean(np.abs(self.slopes) ** 2, axis=0) / max(1, count - 1))
        return SAFETY * self.scatter * longest * spread + self.sizes * self.rounding.max(initial=0.0)


def sample_jacobian(problem: Problem, samples: int, seed: int) -> Jacobian | SampledJacobian:
    """Estimate the Jacobian from ``2 * samples`` evaluations, or fewer where there are fewer groups of inputs."""
    structure = problem.structure
    signs, scatter = _signs(samples, structure.groups, seed)
    relative = problem.roughness ** (1.0 / 3.0)
    step = np.minimum(problem.scale * relative, 0.25 * (problem.upper - problem.lower))
    step = 2.0 ** np.floor(np.log2(np.maximum(step, TINY)))
    # At a bound the points lie around one that is a step inside.
    centre = np.clip(problem.x, problem.lower + step, problem.upper - step)
    moves = np.where(structure.colour >= 0, signs[:, structure.colour], 0.0) * step
    with np.errstate(all="ignore"):
        outputs = problem.evaluate(problem.representable(np.concatenate((centre + moves, centre - moves))))
    halves = 0.5 * (outputs[: len(signs)] - outputs[len(signs) :])
    # Two points of one distance cannot tell their truncation: it is taken as for a function that is well scaled.
    curvature = np.where(centre == problem.x, 10.0 * relative**2, 10.0 * relative)
    share = (SAFETY * problem.roughness / relative + curvature) / problem.scale
    if structure.is_dense:
        return SampledJacobian(signs / step, halves, scatter, share, np.abs(problem.value))
    groups = np.arange(structure.groups)
    width = structure.spread(step, groups)
    terms = signs[:, :, None] * halves[:, None, :] / width
    value = terms.mean(axis=0)
    spread = scatter * terms.std(axis=0) / np.sqrt(max(1, len(signs) - 1))
    error = SAFETY * spread + np.abs(problem.value) * structure.spread(share, groups)
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
