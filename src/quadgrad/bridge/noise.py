"""How noisy a function is, from a table of differences at points close together; and its slope there.

Differences of high order of a smooth function vanish over short distances, those of noise do not (Moré and Wild,
"Estimating computational noise", *SIAM J. Sci. Comput.* 33, 2011). Over which distance is found out: where outputs
do not change at all it grows, where differences still fall from order to order it shrinks, because what is left is
curvature. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.problem import LOUD, TINY, Look, Problem, middle

__all__ = ["BLOCK", "ODD", "PLACES", "RARE", "RISE", "beside", "differences", "room", "with_noise"]

PLACES = np.array([64, 128, 203, 283, 359, 104]) / 64.0
"""Where points lie, in spacings: all but the last in a row, for differences of high order. Not evenly: the rounding
of a product k x grows evenly from point to point then, and its differences vanish."""
FARTHEST = float(PLACES.max())
GOLDEN = 0.6180339887498949
ORDERS = (3, 4, 5)
SPACINGS = (2.0**-27, 2.0**-21, 2.0**-15)
"""Distances tried until outputs differ: over the first ones a function that rounds its inputs is flat. They are
relative to x, and where that is 0, and in the end for all, to the scale."""
FAR = 2.0 ** np.array([-13.0, -12.0, -11.0, -10.0, -8.0, -6.0])
"""Where outputs are looked for that differ at all, relative to the scale: outputs printed to four digits do
there."""
SHORTER = (2.0**-36, 2.0**-44)
"""Distances tried where differences fall from order to order: they may be an oscillation, or a narrow line."""
HUGE = 2.0**-7
"""Noise of this share of the output is looked at closer still."""
FALLING, ODD = 3.0, 3.0
"""By how much noise is estimated less from order 5 than from order 3 where it is curvature that is seen, and more
from the point between than from differences where these vanish for another reason."""
ALONE = 100.0
"""By how much the third difference of the farthest points is smaller than that of the nearest beside a line."""
THIRD = 5.0
"""A third difference over one of length 1."""
RARE = 0.01
"""The share of outputs for which alone no further table is made."""
COARSE, FINE = 2.0**-8, 2.0**-12
"""Steps of this share of the output are no rounding: of decimal digits (who prints a number gives three and more),
and of other steps."""
RISE = 2.0
"""The trend of steps over the steepest rise seen, which may be short of a step."""
DIGITS = (3, 10)
BLOCK, MANY, FEW = 2**13, 2**14, 64
"""How many outputs are worked on at once, of how many a median is taken, and how many of a block are looked at
first for few digits."""


def differences(nodes: Array, order: int) -> Array:
    """Return weights of values at nodes in their divided differences of an order, as rows of length 1."""
    rows = np.zeros((nodes.size - order, nodes.size))
    for i, row in enumerate(rows):
        some = nodes[i : i + order + 1]
        row[i : i + order + 1] = [1.0 / np.prod(node - np.delete(some, j)) for j, node in enumerate(some)]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


IN_ROW = [np.pad(differences(np.append(0.0, PLACES[:-1]), order), ((0, 0), (0, 1))) for order in ORDERS]
FITTED = differences(np.append(0.0, PLACES), PLACES.size)
ROWS = (slice(0, 3), slice(3, 5), slice(5, 6), slice(6, 7))
WEIGHTS = np.concatenate([*IN_ROW, FITTED])
"""Of values at x and ``PLACES``: differences in a row, the last the value between less the polynomial through all
others, and which `ROWS` belong to an order. Those of noise have its standard deviation."""


@dataclass
class _Level:
    """What tables say of each output, all ``(m,)``.

    Its noise, whether it has not changed yet, nor had in the first table, its smallest jump that is larger than
    ``least``, how steeply it rose where that was seen, over the distance of the first point, whether it is printed
    in decimal digits, and whether it is curved so close to x.
    """

    noise: Array
    flat: Array
    still: Array
    jump: Array
    rise: Array
    printed: Array
    curved: Array
    least: Array


def with_noise(problem: Problem) -> tuple[Problem, Array]:
    """Return the problem with the noise of each output and a look at its slope; 6 evaluations, 12 if noisy.

    Returns with it which outputs are not like those of a smooth function that rounds.
    """
    size = np.abs(problem.value)
    floor = problem.floor
    finite = np.isfinite(problem.value)
    if problem.x.size == 0 or not finite.any():
        return replace(problem, noise=np.where(finite, floor, 0.0)), ~finite
    with np.errstate(all="ignore"):
        level, points, values = _tables(problem, size, finite)
        _look_far(problem, level, size, points)
        # Few points make each estimate uncertain by a factor of two or three: all outputs together say more.
        noise = np.where(np.isfinite(level.noise), level.noise, 0.0)
        some = slice(None, None, 1 + size.size // MANY)
        relative = (noise[some] / size[some])[size[some] > 0.0]
        common = middle(relative) if relative.size else 0.0
        noise = np.maximum(np.maximum(noise, common * size), floor)
        coarse = level.jump > np.where(level.printed, COARSE, FINE) * size
        stepped = level.still & coarse & np.isfinite(level.jump)
        noise = np.where(np.isfinite(level.jump), np.maximum(noise, level.jump), noise)
        # Steps that coarse are the function's own: the slope is that between them.
        noise = np.where(stepped, floor, noise)
        slope = (4.0 * (values[1] - values[0]) - (values[2] - values[0])) / 2.0
        third = np.abs(IN_ROW[0] @ values).max(axis=0)
        bend = np.abs(values[0] - 2.0 * values[1] + values[2])
        error = THIRD * third + 8.0 * noise
        rise = np.where(stepped, RISE * level.rise, 0.0)
    look = Look(points[0] - problem.x, slope, error, bend, rise).usable()
    problem = replace(problem, noise=np.where(finite, noise, 0.0), look=look)
    return problem, (level.still & (size > 0.0)) | level.curved | np.isfinite(level.jump) | problem.loud


def _tables(problem: Problem, size: Array, finite: Array) -> tuple[_Level, Array, Array]:
    """Make tables until outputs differ, and until what they differ by is no curvature.

    Returns with the level the points and values of the table closest to x.
    """
    shape, nothing = size.shape, np.zeros(size.shape, bool)
    level = _Level(
        np.zeros(shape),
        ~nothing,
        ~nothing,
        np.full(shape, np.inf),
        np.zeros(shape),
        nothing.copy(),
        nothing.copy(),
        LOUD * problem.floor,
    )
    falling, closest = np.zeros(size.shape, bool), (np.zeros(0), np.zeros(0))
    turn = 0
    for turn, (spacing, unit) in enumerate(_attempts(problem)):
        points, values = _table(problem, spacing, unit)
        closest = closest if turn else (points, values)
        away = _away(problem, points[0], closest[0][0])
        waiting = level.flat.copy()
        falling = np.where(waiting, _enter(level, values, waiting, away, stairs=turn > 0), falling)
        level.still = level.still if turn else level.flat.copy()
        if np.sum(level.flat & (size > 0.0) & finite) <= RARE * size.size:
            break
    _look_again(problem, level, falling, _attempts(problem)[turn + 1 :])
    falling |= level.noise > HUGE * size  # so rough may be what is narrower than the table
    for spacing in SHORTER:
        unsure = falling & ~level.still & (level.noise > 4.0 * problem.floor)  # those are flat still closer
        level.curved |= unsure
        if unsure.sum() <= RARE * size.size:
            break
        closest = _table(problem, spacing, problem.scale)
        falling = unsure & _enter(level, closest[1], unsure, 1.0, stairs=False)
    return level, closest[0], closest[1]


def _look_again(problem: Problem, level: _Level, falling: Array, farther: Sequence[tuple[float, Array]]) -> None:
    """Look at noisy outputs over a longer distance too: an input may be rounded that has not jumped yet."""
    before = level.noise
    noisy = (~falling | np.isfinite(level.jump)) & ~level.flat & (before > LOUD * problem.floor)
    if noisy.sum() <= RARE * noisy.size:
        return
    for spacing, unit in farther[:1]:
        level.noise = before.copy()
        curved = _enter(level, _table(problem, spacing, unit)[1], noisy, 1.0, stairs=False)
        level.noise = np.where(noisy & ~curved, np.maximum(before, level.noise), before)


def _away(problem: Problem, point: Array, first: Array) -> float:
    """Return how many times farther away a point is than the first, of the inputs that may move."""
    return float(np.nanmin(np.abs(point - problem.x) / np.abs(first - problem.x)))


def _table(problem: Problem, spacing: float, unit: Array) -> tuple[Array, Array]:
    points = beside(problem, spacing, PLACES, unit)
    return points, np.concatenate((problem.value[None], problem.evaluate(points)))


def _enter(level: _Level, values: Array, which: Array, away: float, *, stairs: bool) -> Array:
    """Do :func:`_enter_block` for some outputs after the other: what fits into the cache takes less time."""
    falling = np.zeros(which.shape, bool)
    for i in range(0, which.size, BLOCK):
        part = slice(i, i + BLOCK)
        block = _Level(*(table[part] for table in vars(level).values()))
        falling[part] = _enter_block(block, values[:, part], which[part], away, stairs=stairs)
        for name, table in vars(block).items():
            getattr(level, name)[part] = table
    return falling


def _enter_block(level: _Level, values: Array, which: Array, away: float, *, stairs: bool) -> Array:
    """Write down what a table says of some outputs; return where its differences fall from order to order.

    ``stairs`` says that these outputs were flat over a shorter distance.
    """
    flat = (values[1:-1] == values[:-2]).any(axis=0)
    *by_order, between = _by_order(values)
    largest = np.maximum(np.max(by_order, axis=0), TINY)
    noise = np.sqrt(np.mean(np.square(by_order / largest), axis=0)) * largest
    # Farther points that agree with each other, but not with x, lie beside a line narrower than their distance.
    nearest, _, farthest = np.abs(IN_ROW[0] @ values)
    falling = (by_order[-1] * FALLING < by_order[0]) | (farthest * ALONE < nearest)
    noise = np.where(falling, np.minimum(noise, 2.0 * np.maximum(by_order[-1], between)), noise)
    noise = np.maximum(noise, np.where(between > ODD * noise, ODD, 1.0) * between)
    level.noise = np.where(which, noise, level.noise)
    level.flat = np.where(which, flat, level.flat)
    printed = np.isfinite(_last_digit(values[:, :: 1 + flat.size // FEW])).any()
    if not (stairs or printed or flat.any()):
        return falling
    # Some values alike and others not: a staircase, however even, and its steps are at least as high as the
    # smallest jump. Of steps that are all alike the differences of high order vanish.
    differences = np.diff(values[:-1], axis=0)
    both = np.abs(np.concatenate((differences, np.diff(differences, axis=0))))
    jump = np.where(both > level.least, both, np.inf).min(axis=0)
    jump = np.where(flat | stairs, jump, np.inf)
    digit = np.where(flat, np.inf, _last_digit(values))
    level.printed |= which & np.isfinite(digit)
    # The first jump seen stands: farther away the steps of two inputs may nearly cancel.
    jump = np.where(np.isinf(level.jump), jump, level.jump)
    jump = np.where(which, np.minimum(jump, digit), level.jump)
    rise = np.max(np.abs(values[1:] - values[0]) / PLACES[:, None], axis=0) / away
    level.rise = np.where(np.isinf(level.jump) & np.isfinite(jump), rise, level.rise)
    level.jump = jump
    return falling


def _look_far(problem: Problem, level: _Level, size: Array, first: Array) -> None:
    """Look for steps of outputs that have not changed so far; and see whether they have few digits."""
    waiting = level.flat & (size > 0.0)
    if waiting.sum() <= RARE * size.size:
        return
    sign, most = room(problem)
    distance = np.minimum(FAR[:, None] * problem.scale, most * (FAR / FAR[-1])[:, None])
    points = problem.representable(problem.x + sign * distance)
    values = problem.evaluate(points)
    change = np.abs(np.diff(np.concatenate((problem.value[None], values)), axis=0))
    jump = np.where(change > level.least, change, np.inf).min(axis=0)
    digit = _last_digit(np.concatenate((problem.value[None], values)))
    level.printed |= waiting & np.isfinite(digit)
    jump = np.where(np.isinf(level.jump), np.where(np.isinf(jump), digit, jump), level.jump)
    jump = np.where(waiting, jump, level.jump)
    away = np.array([_away(problem, point, first[0]) for point in points])
    rise = np.max(np.abs(values - problem.value) / away[:, None], axis=0)
    level.rise = np.where(np.isinf(level.jump) & np.isfinite(jump), rise, level.rise)
    level.jump = jump


def _last_digit(values: Array) -> Array:
    """Return what numbers ``(k, m)`` of three to ten decimal digits count in; infinite for others, 1 among them.

    Nobody prints so few: an output that is held at 1 is not in steps of 1e-9 for that.
    """
    if np.iscomplexobj(values):  # not by their size: that of phases is 1
        return np.maximum(_last_digit(np.real(values)), _last_digit(np.imag(values)))
    size = np.abs(values)
    first = np.floor(np.log10(size.max(axis=0)))
    unit = np.full(first.shape, np.inf)
    for digits in range(DIGITS[-1], DIGITS[0] - 2, -1):
        last = 10.0 ** (first + 1 - digits)
        short = np.all(np.abs(size / last - np.rint(size / last)) < 1e-5, axis=0)
        if not short.any():
            break
        unit = np.where(short, last if digits >= DIGITS[0] else np.inf, unit)
    return unit


def _attempts(problem: Problem) -> list[tuple[float, Array]]:
    """Return the distances to try, each with what it is relative to."""
    near = problem.near
    last = [] if np.array_equal(near, problem.scale) else [(SPACINGS[-1], problem.scale)]
    return [(spacing, near) for spacing in SPACINGS] + last


def room(problem: Problem) -> tuple[Array, Array]:
    """Return to which side of each input there is more room, and how much."""
    above, below = problem.upper - problem.x, problem.x - problem.lower
    return np.where(above >= below, 1.0, -1.0), np.maximum(above, below)


def beside(problem: Problem, spacing: float, places: Array, unit: Array | None = None) -> Array:
    """Return points in a row, starting next to x, into the bounds, ``(k, n)``; ``unit`` is |x| if not given."""
    points, farther = np.empty((places.size, problem.x.size)), _spread(problem.x.size)
    for i in range(0, problem.x.size, BLOCK):
        some = slice(i, i + BLOCK)
        x, resolution = problem.x[some], problem.resolution[some]
        size = np.where(x != 0.0, np.abs(x), problem.scale[some]) if unit is None else unit[some]
        # Lengths that differ from input to input: with equal ones a difference of two inputs would not change.
        length = size * spacing * farther[some]
        # Multiples of 64 spacings of x, so that no point is rounded: a steep function would turn that into noise.
        least = np.maximum(64.0 * resolution, TINY)
        length = np.maximum(np.rint(length / least), 1.0) * least
        if problem.bounded:
            above, below = problem.upper[some] - x, x - problem.lower[some]
            length = np.minimum(length, np.maximum(above, below) / FARTHEST)
            length = np.where(above >= below, length, -length)
        points[:, some] = x + places[:, None] * length
    return problem.representable(points)


@lru_cache(maxsize=2)
def _spread(count: int) -> Array:
    """Return factors between 1/2 and 3/2, all different."""
    return 0.5 + np.arange(1, count + 1) * GOLDEN % 1.0


def _by_order(values: Array) -> list[Array]:
    """Return the noise level from differences of each order, root mean square, and from the point between."""
    size = np.abs(WEIGHTS @ values)
    largest = np.maximum(size.max(axis=0), TINY)  # squares leave the range of numbers
    size /= largest
    return [np.sqrt(np.mean(size[rows] ** 2, axis=0)) * largest for rows in ROWS]
