"""How noisy a function is, from a table of differences at points close together.

Differences of high order of a smooth function vanish over short distances, those of noise do not (Moré and Wild,
"Estimating computational noise", *SIAM J. Sci. Comput.* 33, 2011). Pure NumPy.
"""

from __future__ import annotations

from math import comb

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.differences import TINY, Problem

__all__ = ["estimate_noise"]

POINTS = 6
GOLDEN = 0.6180339887498949
ORDERS = (3, 4, 5)
SPACINGS = (2.0**-27, 2.0**-21, 2.0**-15)
"""Distances tried until outputs differ: over the first ones a function that rounds its inputs is flat. They are
relative to x, and where that is 0, and in the end for all, to the scale."""
SHORTER = (2.0**-36, 2.0**-46)
"""Distances tried where what looked like noise is ``SUSPECT`` of the output: it may be an oscillation."""
SUSPECT = 1e-3


def estimate_noise(problem: Problem) -> Array:
    """Return the standard deviation of the noise of each output, ``(m,)``; 6 evaluations, at most 24.

    It is at least half a spacing of the output's dtype.
    """
    size = np.abs(problem.value)
    floor = 0.5 * problem.precision * size
    if problem.x.size == 0 or not np.isfinite(problem.value).all():
        return floor
    level, flat = np.zeros(size.shape), np.ones(size.shape, bool)
    with np.errstate(all="ignore"):
        for spacing, unit in _attempts(problem):
            values = np.concatenate((problem.value[None], problem.evaluate(_points(problem, spacing, unit))))
            level = np.where(flat, _level(values), level)
            flat &= np.mean(np.diff(values, axis=0) == 0.0, axis=0) > 0.5
            if not flat[size > 0.0].any():
                break
        for spacing in SHORTER:
            if not np.any(level > SUSPECT * size):
                break
            values = np.concatenate(
                (problem.value[None], problem.evaluate(_points(problem, spacing, problem.scale)))
            )
            level = np.fmin(level, _level(values))
    level = np.where(np.isfinite(level), level, 0.0)
    relative = level[size > 0.0] / size[size > 0.0]
    # Few points make each estimate uncertain by a factor of two or three: all outputs together say more.
    common = float(np.quantile(relative, 0.5, method="lower")) if relative.size else 0.0
    return np.maximum(np.maximum(level, common * size), floor)


def _attempts(problem: Problem) -> list[tuple[float, Array]]:
    """Return the distances to try, each with what it is relative to."""
    near = np.where(problem.x != 0.0, np.abs(problem.x), problem.scale)
    last = [] if np.array_equal(near, problem.scale) else [(SPACINGS[-1], problem.scale)]
    return [(spacing, near) for spacing in SPACINGS] + last


def _points(problem: Problem, spacing: float, unit: Array) -> Array:
    """Return points in a row, starting next to x, into the bounds."""
    above, below = problem.upper - problem.x, problem.x - problem.lower
    # Lengths that differ from input to input: with equal ones a difference of two inputs would not change.
    length = unit * spacing * (0.5 + np.arange(1, problem.x.size + 1) * GOLDEN % 1.0)
    sign = np.where(above >= below, 1.0, -1.0)
    length = np.minimum(np.maximum(length, 2.0 * problem.resolution), np.maximum(above, below) / POINTS)
    if spacing in SHORTER:  # powers of two, so that x + length is not rounded; otherwise no two lengths alike
        length = 2.0 ** np.floor(np.log2(np.maximum(length, TINY)))
    return problem.representable(problem.x + np.arange(1, POINTS + 1)[:, None] * (sign * length))


def _level(values: Array) -> Array:
    """Return the noise level from differences of several orders, root mean square."""
    squares: list[Array] = []
    for order in ORDERS:
        table = np.diff(values, n=order, axis=0)
        squares.append(np.mean(np.abs(table) ** 2, axis=0) / comb(2 * order, order))
    return np.sqrt(np.mean(squares, axis=0))
