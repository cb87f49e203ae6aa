"""Simultaneous perturbation: all inputs move at once, by random signs; the cost does not grow with their number.

(Spall, *IEEE Trans. Automatic Control* 37, 1992.) The signs are rows of a Hadamard matrix, drawn without
replacement, with random signs for its columns: unbiased like independent signs, but with less scatter, and without
any once there are as many samples as inputs (Bhatnagar et al., *ACM TOMACS* 13, 2003). Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.differences import GROWTH
from quadgrad.bridge.problem import TINY, Problem
from quadgrad.bridge.stencils import DECAY, MARGIN, SAFETY
from quadgrad.bridge.structure import Jacobian

__all__ = ["SAMPLES", "SampledJacobian", "sample_jacobian"]

SAMPLES = 16
TRIES = 5
"""How often steps are chosen, each time shorter."""
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
    """Estimate the Jacobian from ``2 * samples`` evaluations and a few more; fewer where there are few inputs.

    Where steps do not see the function they shrink, at the same cost each time.
    """
    structure = problem.structure
    signs, scatter = _signs(samples, structure.groups, seed)
    relative = problem.typical ** (1.0 / 3.0)
    step = np.minimum(problem.scale * relative, 0.2 * (problem.upper - problem.lower))
    with np.errstate(all="ignore"):
        best = None
        for _ in range(TRIES):
            step = 2.0 ** np.floor(np.log2(np.maximum(step, TINY)))
            found = _sampled(problem, signs, scatter, step)
            if best is None or found.doubt < best.doubt:
                best = found
            if best.doubt <= 1.0 or np.any(step < 64.0 * problem.resolution):
                break
            step = step / GROWTH
    assert best is not None
    if structure.is_dense:
        return SampledJacobian(signs / best.step, best.halves, scatter, best.size, 1.0 / best.step)
    groups = np.arange(structure.groups)
    width = structure.spread(best.step, groups)
    terms = signs[:, :, None] * best.halves[:, None, :] / width
    value = terms.mean(axis=0)
    error = SAFETY * scatter * terms.std(axis=0) / np.sqrt(max(1, len(signs) - 1)) + best.size / width
    known = structure.known(groups)
    return Jacobian(structure, np.where(known, value, 0.0), np.where(known, error, 0.0))


@dataclass(frozen=True)
class _Sampled:
    """Half differences ``(k, m)`` in all directions with these steps, and how wrong they may be, ``(m,)``.

    ``doubt`` is above 1 where steps do not see the function.
    """

    halves: Array
    size: Array
    step: Array
    doubt: float


def _sampled(problem: Problem, signs: Array, scatter: float, step: Array) -> _Sampled:
    structure = problem.structure
    # At a bound the points lie around one that is two steps inside, and around one farther in.
    centre = np.clip(problem.x, problem.lower + 2.0 * step, problem.upper - 2.0 * step)
    inside = centre + (centre - problem.x)
    moves = np.where(structure.colour >= 0, signs[:, structure.colour], 0.0) * step
    # Kinks of two inputs may cancel, whichever way both move: some are moved alone.
    alone = moves[:1] * _halves(structure.colour)
    checked = np.concatenate((moves[:CHECKED], alone))
    points = [centre + moves, centre - moves, centre + alone, centre - alone]
    points += [centre + 2.0 * checked, centre - 2.0 * checked]
    if np.any(centre != problem.x):
        points += [inside + moves, inside - moves, centre[None]]
    outputs = problem.evaluate(problem.representable(np.concatenate(points)))
    above, below, up, down, far_above, far_below, *more = np.split(
        outputs, np.cumsum([len(p) for p in points])[:-1]
    )
    middle = more[2][0] if more else problem.value
    halves, count = 0.5 * (above - below), len(checked) - len(alone)
    noise = SAFETY * problem.noise
    # What twice the step says of truncation; and bends, 4 times as large there where the function is smooth.
    third = np.abs(0.25 * (far_above - far_below)[:count] - halves[:count]).max(axis=0)
    bend = np.abs(0.5 * np.concatenate((above[:count] + below[:count], up + down)) - middle)
    farther = np.abs(0.5 * (far_above + far_below) - middle)
    kinked = np.any((bend > noise) & (farther < 3.0 * bend + 8.0 * noise), axis=0)
    bend = np.concatenate((bend, np.abs(0.5 * (above + below)[count:] - middle)))
    seen = third <= np.maximum(DECAY * np.abs(halves).max(axis=0), 4.0 * noise)
    bend = np.where(kinked | ~seen, bend.max(axis=0), 0.0)
    size = MARGIN * third + SAFETY * bend + noise
    if more:
        size = size + SAFETY * np.abs(0.5 * (more[0] - more[1]) - halves).max(axis=0)
    gap = _contradiction(problem, signs, scatter, step, halves, size)
    largest = np.maximum(np.abs(halves).max(axis=0), 10.0 * noise)
    doubt = float(np.max((size + gap) / np.where(largest > 0.0, DECAY * largest, np.inf), initial=0.0))
    return _Sampled(halves, size + gap, step, doubt if np.isfinite(doubt) else np.inf)


def _halves(colour: Array) -> Array:
    """Return which inputs are moved alone, ``(k, n)``: by the last two binary digits of their group."""
    digits = min(2, int(colour.max(initial=0)).bit_length())
    return (colour >> np.arange(digits)[:, None]) & 1


def _contradiction(
    problem: Problem, signs: Array, scatter: float, step: Array, halves: Array, size: Array
) -> Array:
    """Return by how much halves miss what points very close to x say; 0 where that is no surprise."""
    look, structure = problem.look, problem.structure
    if look is None or not structure.is_dense:
        return np.zeros_like(size)
    length = look.direction / step
    terms = (signs @ length)[:, None] * halves
    spread = SAFETY * scatter * terms.std(axis=0) / np.sqrt(max(1, len(signs) - 1))
    gap = np.abs(terms.mean(axis=0) - look.slope)
    allowed = 2.0 * (spread + size * np.abs(length).sum() + look.error)
    return np.where(gap > allowed, gap, 0.0) / np.abs(length).min()


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
