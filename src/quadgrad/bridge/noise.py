"""How noisy a function is, from a table of differences at points close together; and its slope there.

Differences of high order of a smooth function vanish over short distances, those of noise do not (Moré and Wild,
"Estimating computational noise", *SIAM J. Sci. Comput.* 33, 2011). Over which distance is found out: where outputs
do not change at all it grows, where differences still fall from order to order it shrinks, because what is left is
curvature. Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.problem import TINY, Look, Problem

__all__ = ["with_noise"]

POINTS = 6
GOLDEN = 0.6180339887498949
ORDERS = (3, 4, 5)
SPACINGS = (2.0**-27, 2.0**-21, 2.0**-15)
"""Distances tried until outputs differ: over the first ones a function that rounds its inputs is flat. They are
relative to x, and where that is 0, and in the end for all, to the scale."""
FAR = 2.0 ** np.array([-13.0, -12.0, -11.0, -10.0, -8.0, -6.0])
"""Where outputs are looked for that differ at all, relative to the scale: outputs printed to four digits do there."""
SHORTER = (2.0**-36, 2.0**-44)
"""Distances tried where differences fall from order to order: they may be an oscillation, or a narrow line."""
FALLING = 3.0
"""By how much noise is estimated less from order 5 than from order 3 where it is curvature that is seen."""
RARE = 0.01
"""The share of outputs for which alone no further table is made."""
COARSE = 2.0**-8
"""Steps of this share of the output are no rounding: who prints a number gives three digits and more."""
DIGITS = (3, 10)


@dataclass
class _Level:
    """What tables say of each output, all ``(m,)``: its noise, whether it has not changed yet, its smallest jump."""

    noise: Array
    flat: Array
    jump: Array


def with_noise(problem: Problem) -> Problem:
    """Return the problem with the noise of each output and a look at its slope; 6 evaluations, at most 36."""
    size = np.abs(problem.value)
    floor = problem.floor
    finite = np.isfinite(problem.value)
    if problem.x.size == 0 or not finite.any():
        return replace(problem, noise=np.where(finite, floor, 0.0))
    with np.errstate(all="ignore"):
        level, points, values = _tables(problem, size, finite)
        _look_far(problem, level, size)
        noise = np.where(np.isfinite(level.noise), level.noise, 0.0)
        # Few points make each estimate uncertain by a factor of two or three: all outputs together say more.
        relative = noise[size > 0.0] / size[size > 0.0]
        common = float(np.quantile(relative, 0.5, method="lower")) if relative.size else 0.0
        noise = np.maximum(np.maximum(noise, common * size), floor)
        coarse = np.isfinite(level.jump) & (level.jump > 4.0 * problem.precision * size)
        noise = np.where(coarse, np.maximum(noise, level.jump), noise)
        slope = (4.0 * (values[1] - values[0]) - (values[2] - values[0])) / 2.0
        error = np.abs(np.diff(values, n=3, axis=0)).max(axis=0) + 8.0 * noise
    # A slope that could not be computed contradicts nothing.
    usable = np.isfinite(slope) & np.isfinite(error)
    slope, error = np.where(usable, slope, 0.0), np.where(usable, error, np.inf)
    look = Look(points[0] - problem.x, slope, error, coarse & (level.jump > COARSE * size))
    return replace(problem, noise=np.where(finite, noise, 0.0), look=look)


def _tables(problem: Problem, size: Array, finite: Array) -> tuple[_Level, Array, Array]:
    """Make tables until outputs differ, and until what they differ by is no curvature.

    Returns with the level the points and values of the table closest to x.
    """
    level = _Level(np.zeros(size.shape), np.ones(size.shape, bool), np.full(size.shape, np.inf))
    falling, closest = np.zeros(size.shape, bool), (np.zeros(0), np.zeros(0))
    for turn, (spacing, unit) in enumerate(_attempts(problem)):
        points, values = _table(problem, spacing, unit)
        closest = closest if turn else (points, values)
        falling = np.where(level.flat, _enter(level, values, level.flat, stairs=turn > 0), falling)
        if np.sum(level.flat & (size > 0.0) & finite) <= RARE * size.size:
            break
    for spacing in SHORTER:
        unsure = falling & (level.noise > 4.0 * problem.floor)
        if unsure.sum() <= RARE * size.size:
            break
        closest = _table(problem, spacing, problem.scale)
        before = level.noise
        falling = unsure & _enter(level, closest[1], unsure, stairs=False)
        level.noise = np.fmin(before, level.noise)
    return level, *closest


def _table(problem: Problem, spacing: float, unit: Array) -> tuple[Array, Array]:
    points = _points(problem, spacing, unit)
    return points, np.concatenate((problem.value[None], problem.evaluate(points)))


def _enter(level: _Level, values: Array, which: Array, *, stairs: bool) -> Array:
    """Write down what a table says of some outputs; return where its differences fall from order to order.

    ``stairs`` says that these outputs were flat over a shorter distance.
    """
    differences = np.diff(values, axis=0)
    ties = differences == 0.0
    by_order = _by_order(values)
    noise = np.sqrt(np.mean(by_order**2, axis=0))
    falling = by_order[-1] * FALLING < by_order[0]
    noise = np.where(falling, np.minimum(noise, 2.0 * by_order[-1]), noise)
    # Some values alike and others not: a staircase, however even, and its steps are at least as high as the smallest
    # jump. Of steps that are all alike the differences of high order vanish.
    both = np.abs(np.concatenate((differences, np.diff(differences, axis=0))))
    jump = np.where(both > 0.0, both, np.inf).min(axis=0)
    level.jump = np.where(which & (ties.any(axis=0) | stairs), np.minimum(level.jump, jump), level.jump)
    level.noise = np.where(which, noise, level.noise)
    level.flat = np.where(which, np.mean(ties, axis=0) > 0.5, level.flat)
    return falling


def _look_far(problem: Problem, level: _Level, size: Array) -> None:
    """Look for steps of outputs that have not changed so far; and see whether they have few digits."""
    waiting = level.flat & (size > 0.0)
    if waiting.sum() <= RARE * size.size:
        return
    sign, most = _room(problem)
    distance = np.minimum(FAR[:, None] * problem.scale, most * (FAR / FAR[-1])[:, None])
    values = problem.evaluate(problem.representable(problem.x + sign * distance))
    change = np.abs(np.diff(np.concatenate((problem.value[None], values)), axis=0))
    jump = np.where(change > 0.0, change, np.inf).min(axis=0)
    jump = np.where(np.isinf(jump), _last_digit(size), jump)
    level.jump = np.where(waiting, np.minimum(level.jump, jump), level.jump)


def _last_digit(size: Array) -> Array:
    """Return what numbers of three to ten decimal digits count in; infinite for others, short ones among them."""
    unit, printed = np.full(size.shape, np.inf), np.zeros(size.shape, bool)
    for digits in range(1, DIGITS[-1] + 1):
        last = 10.0 ** (np.floor(np.log10(size)) + 1 - digits)
        short = ~printed & (np.abs(size / last - np.rint(size / last)) < 1e-6)
        printed |= short
        unit = np.where(short & (digits >= DIGITS[0]), last, unit)
    return unit


def _attempts(problem: Problem) -> list[tuple[float, Array]]:
    """Return the distances to try, each with what it is relative to."""
    near = np.where(problem.x != 0.0, np.abs(problem.x), problem.scale)
    last = [] if np.array_equal(near, problem.scale) else [(SPACINGS[-1], problem.scale)]
    return [(spacing, near) for spacing in SPACINGS] + last


def _room(problem: Problem) -> tuple[Array, Array]:
    """Return to which side of each input there is more room, and how much."""
    above, below = problem.upper - problem.x, problem.x - problem.lower
    return np.where(above >= below, 1.0, -1.0), np.maximum(above, below)


def _points(problem: Problem, spacing: float, unit: Array) -> Array:
    """Return points in a row, starting next to x, into the bounds."""
    sign, most = _room(problem)
    # Lengths that differ from input to input: with equal ones a difference of two inputs would not change.
    length = unit * spacing * (0.5 + np.arange(1, problem.x.size + 1) * GOLDEN % 1.0)
    length = np.minimum(np.maximum(length, 2.0 * problem.resolution), most / POINTS)
    if spacing in SHORTER:  # powers of two, so that x + length is not rounded; otherwise no two lengths alike
        length = 2.0 ** np.floor(np.log2(np.maximum(length, TINY)))
    return problem.representable(problem.x + np.arange(1, POINTS + 1)[:, None] * (sign * length))


def _by_order(values: Array) -> Array:
    """Return the noise level from differences of each order, root mean square, ``(orders, m)``."""
    rows: list[Array] = []
    for order in ORDERS:
        table = np.diff(values, n=order, axis=0)
        rows.append(np.sqrt(np.mean(np.abs(table) ** 2, axis=0) / comb(2 * order, order)))
    return np.stack(rows)
