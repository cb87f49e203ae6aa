"""Slopes from values around a point, and what each stencil says of its own truncation, noise and scale.

A stencil whose values cancel proves nothing: the second difference, which contains the value at x itself, tells
whether the step sees what is there. It shrinks with the step where the function is smooth, stays where there is a
kink, and grows where the feature at x is narrower than the step. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.problem import TINY, Problem, power_of_two

__all__ = [
    "COARSEST", "KINK", "LEVELS", "NOISY", "SAFETY", "STENCIL", "TOGETHER", "Estimate", "estimate", "evaluate",
    "fit", "judge", "judge_together", "place", "single_step",
]  # fmt: skip

SAFETY, MARGIN = 3.0, 3.5
"""Reported over estimated error, for noise and for truncation (at a kink at x the estimate is a third of the
error)."""
LEVELS, COARSEST = 8, 0.125
"""Richardson extrapolation: how many steps, each half of the one before, and the first, relative to the scale."""
BLOCK = 2**22
"""Numbers in the points that are sent at once."""
DECAY = 0.1
"""A step sees the function if each order of differences is this much smaller than the one before (it is 1 for a
kink at x, 3/2 for a narrow line there, about 2 where the function is aliased)."""
KINK = 1.1
"""Reported over estimated difference between the slopes at a kink and their mean."""
LONG, MANY, SHARE = 0.1, 4, 0.1
"""Steps longer than this, times eight, relative to the scale, truncate each of so many outputs or more by at least
this share of what is typical of them."""
NOISY = 3.0
"""Differences below this many standard deviations of their noise say nothing."""
STENCIL = {"central": (3,), "forward": (2,), "richardson": (LEVELS, 2)}
"""How many points a stencil has."""
WORTHWHILE, TOGETHER = 8, 16
"""From so many inputs on they are not given a third point each; and how many are moved at once in place of that."""
RATHER = 32.0
"""Outputs this many times noisier than rounding makes them have steps too long for that."""
REACH = {"central": (1.0, 2.0, 3.0), "forward": (1.0, 2.0, 2.0), "richardson": (1.0, 1.0, 2.0)}
"""How many steps a stencil goes to the nearer side, to the farther, and a one-sided one to its only side."""


@dataclass(frozen=True)
class Estimate:
    """Derivatives in compressed form, ``(groups, m)``, and what the stencil says of them.

    Attributes
    ----------
    value, truncation, rounding : array
        ``truncation`` and ``rounding`` are the parts of how wrong each may be.
    bend : array
        By how much the slopes on both sides of x differ from the mean: proportional to the step of a smooth
        function.
    seen : array of bool
        Whether differences of rising order fall as they do where the step sees the function.
    """

    value: Array
    truncation: Array
    rounding: Array
    bend: Array
    seen: Array

    @property
    def error(self) -> Array:
        """How wrong each may be; infinite where it is not finite."""
        return np.fmin(self.truncation + self.rounding, np.inf)  # rounding contains the value

    def at(self, outputs: Array) -> Estimate:
        """Return the estimates of some outputs."""
        return Estimate(*(np.broadcast_to(t, self.value.shape)[:, outputs] for t in vars(self).values()))


def estimate(problem: Problem, groups: Array, fitted: tuple[Array, Array], method: str) -> Estimate:
    """Return derivatives with steps and sides from :func:`fit` by one of the methods."""
    points = place(problem, *fitted, method)
    return judge(problem, groups, fitted, points, evaluate(problem, groups, points), method)


def place(problem: Problem, step: Array, side: Array, method: str) -> Array:
    """Return the points of a stencil, ``(..., n)``, for steps and sides from :func:`fit`."""
    return problem.representable(problem.x + _nodes(problem, side, method) * step)


def judge(
    problem: Problem,
    groups: Array,
    fitted: tuple[Array, Array],
    points: Array,
    outputs: Sequence[Array] | Array,
    method: str,
) -> Estimate:
    """Return derivatives from outputs ``(..., groups, m)`` at the points of a stencil, which may be a flat list."""
    offsets = problem.structure.spread(points - problem.x, groups)
    changes = [y - problem.value for y in outputs]
    if method == "richardson":
        changes = np.reshape(changes, (*STENCIL[method], *changes[0].shape[-2:]))
        return _extrapolated(problem, groups, fitted[1], offsets, changes)
    if method == "forward":
        return _one_sided(problem, offsets, changes)
    return _cubic(problem, groups, fitted[0], offsets, changes)


def single_step(problem: Problem, step: Array) -> Array:
    """Return slopes from one step for each input, without a word on their error."""
    step, side = fit(problem, step, "richardson")
    groups = np.arange(problem.structure.groups)
    points = place(problem, step, side, "pair")
    a, b = problem.structure.spread(points - problem.x, groups)
    f, g = evaluate(problem, groups, points) - problem.value
    u, v = _weights(b / a)
    return (u * f + v * g) / a


def fit(problem: Problem, step: Array, method: str) -> tuple[Array, Array]:
    """Return steps that fit into the bounds, and 0 for two-sided stencils, +1 or -1 for one-sided ones."""
    if not problem.bounded:
        return power_of_two(np.maximum(np.maximum(step, 8.0 * problem.resolution), TINY)), np.zeros(step.shape)
    nearer, farther, only = REACH[method]
    above, below = problem.upper - problem.x, problem.x - problem.lower
    most = np.maximum(above, below)
    two_sided = (np.minimum(above, below) >= nearer * step) & (most >= farther * step)
    side = np.where(two_sided, 0.0, np.where(above >= below, 1.0, -1.0))
    step = np.where(two_sided, step, np.minimum(step, most / only))
    # Powers of two: added to x they round little. Below a few spacings of x there is no step at all.
    finest = np.minimum(8.0 * problem.resolution, most / only)
    return power_of_two(np.maximum(np.maximum(step, finest), TINY)), side


# ----------------------------------------------------------------------------------------------- stencils


def _nodes(problem: Problem, side: Array, method: str) -> Array:
    """Return where the points of a stencil are, in steps from x, ``(..., n)``.

    Central: 1, -1 and 2 (-2 where there is more room below); at a bound 1, 2, 3. Forward: 1 to the side with less
    room and 2 to the other, because a kink at x shows nowhere else, and twice as far away: of a function that is
    odd about x the slopes over equal distances are equal, and equally wrong. Richardson: a pair for each level.
    """
    some = slice(None) if problem.bounded else slice(1)  # without bounds they are the same for all
    side, x, lower, upper = side[some], problem.x[some], problem.lower[some], problem.upper[some]
    two_sided = side == 0.0
    pair = np.array((np.where(two_sided, 1.0, side), np.where(two_sided, -1.0, 2.0 * side)))
    if method == "pair":
        return pair
    if method == "richardson":
        return (0.5 ** np.arange(LEVELS))[:, None, None] * pair
    farther = np.where(upper - x > x - lower, 1.0, -1.0)
    if method == "forward":
        return np.where(two_sided, np.stack((-farther, 2.0 * farther)), pair)
    return np.array((*pair, np.where(two_sided, 2.0 * farther, 3.0 * side)))


def _cubic(problem: Problem, groups: Array, step: Array, offsets: Array, changes: Sequence[Array]) -> Estimate:
    """Return the slope of the parabola through x and two points, its error from a third."""
    # In units of a: products of three lengths leave the range of numbers where inputs are very large or small.
    offsets = _shared(offsets)
    a, (b, c), (f, g, k) = offsets[0], _shared(offsets[1:] / offsets[0]), changes
    slope, bend, rounding = _parabola(problem, a, b, f, g)
    # The third divided difference, times a b: what the cubic has more than the parabola.
    p, q, r = b / ((1.0 - b) * (1.0 - c)), 1.0 / ((b - 1.0) * (b - c)), b / (c * (c - 1.0) * (c - b))
    truncation = np.abs(p / a * f + q / a * g + r / a * k)
    unsure = NOISY * np.sqrt(p * p + q * q + r * r + (p + q + r) ** 2) / np.abs(a) * problem.noise
    # In these units first, second and third differences are h |slope|, 2 h bend, 6 h truncation.
    falling = truncation <= np.maximum(DECAY / 3.0 * bend, unsure)
    seen = falling if falling.all() else falling | (truncation <= DECAY**2 / 6.0 * np.abs(slope))
    truncation = MARGIN * np.maximum(truncation, _chance(problem, groups, step, slope, bend, truncation))
    # A kink between x and x + h may leave no third difference; the slope at x is one bend away then.
    if seen is not falling:
        truncation = np.where(falling, truncation, np.maximum(truncation, KINK * bend))
    return Estimate(slope, truncation, rounding, bend, seen)


def _shared(lengths: Array) -> Array:
    """Return lengths ``(..., m)`` as one where all outputs of a group have the same, as most do.

    Of a million elements the weights would take longer than all the rest.
    """
    first = lengths[..., :1]
    return first if (lengths == first).all() else lengths


def _parabola(problem: Problem, a: Array, b: Array, f: Array, g: Array) -> tuple[Array, Array, Array]:
    """Return slope and bend at x of the parabola through x, x + a and x + b a, and what rounding adds."""
    (u, v), t = _weights(b), 1.0 / ((1.0 - b) * a)
    slope, bend = u / a * f + v / a * g, np.abs(t * f - t / b * g)
    return slope, bend, _rounding(problem, slope, _gain(u, v) / np.abs(a), np.maximum(np.abs(f), np.abs(g)))


def judge_together(problem: Problem, fitted: tuple[Array, Array], points: Array, outputs: Array) -> Estimate | None:
    """Return what :func:`judge` does from the first two points of a central stencil; None where that will not do.

    In place of a third point for each input four are taken for :data:`TOGETHER` of them, at which all these move,
    by about twice their step to either side, and by half as much. The slope in that direction, extrapolated from
    both, is the sum of the inputs' slopes and their truncation, whatever terms of several inputs there are; and
    what is even about x is four times as large farther away, two times at a kink. What is missing may be the error
    of any of them.
    """
    structure, every = problem.structure, np.arange(problem.structure.groups)
    step, side = fitted
    noisy = np.any(problem.noise > RATHER * problem.floor)
    if every.size < WORTHWHILE or side.any() or problem.single is not None or noisy:
        return None
    move = _moves(step.size) * step
    if problem.bounded and np.any(np.abs(move) > np.minimum(problem.upper - problem.x, problem.x - problem.lower)):
        return None
    offsets, (f, g) = structure.spread(points - problem.x, every), outputs - problem.value
    slope, bend, rounding = _parabola(problem, offsets[0], offsets[1] / offsets[0], f, g)
    starts = np.arange(0, every.size, TOGETHER)
    moves = np.where(structure.colour // TOGETHER == np.arange(starts.size)[:, None], move, 0.0)
    whole = problem.x + np.array((1.0, -1.0, 0.5, -0.5))[:, None, None] * moves
    up, down, near, below = (
        problem.evaluate(whole.reshape(-1, step.size)).reshape(4, starts.size, -1) - problem.value
    )
    expected = np.add.reduceat(structure.spread(move, every, fill=0.0) * slope, starts, axis=0)
    missing = np.abs((8.0 * (near - below) - (up - down)) / 6.0 - expected)
    missing = MARGIN * missing + np.abs(up + down - 4.0 * (near + below))
    truncation = missing[every // TOGETHER] / structure.spread(np.abs(move), every)
    least = _chance(problem, every, step, slope, bend, truncation)
    return Estimate(slope, np.maximum(truncation, MARGIN * least), rounding, bend, np.ones(bend.shape, bool))


@lru_cache(maxsize=2)
def _moves(count: int) -> Array:
    """Return by how many steps inputs move together: those of no two are to cancel."""
    rng = np.random.default_rng(count)
    return rng.choice((-1.0, 1.0), count) * rng.uniform(1.75, 2.25, count)


def _chance(problem: Problem, groups: Array, step: Array, slope: Array, bend: Array, truncation: Array) -> Array:
    """Return what the truncation of a long step is even where the third difference is smaller, by chance."""
    length = problem.structure.spread(8.0 * step / problem.scale, groups)
    size = np.abs(slope) + bend
    least = bend * np.minimum(bend / (size + TINY), length) / 6.0
    long = length > LONG
    if not long.any() or not problem.structure.is_dense or slope.shape[1] < MANY:
        return least
    typical = np.median(np.where(size > 0.0, truncation / size, 0.0), axis=1, keepdims=True)
    return np.where(long & (typical < np.inf), np.maximum(least, SHARE * typical * size), least)


def _one_sided(problem: Problem, offsets: Array, changes: Sequence[Array]) -> Estimate:
    """Return the slope from x to the nearer point; the farther one tells its error."""
    (a, b), (f, g) = offsets, changes
    slope = f / a
    bend = np.abs((f - g * (a / b)) / (a - b))  # a third of a kink
    unsure = NOISY * problem.noise * np.sqrt(6.0) / np.abs(a - b)
    seen = bend <= np.maximum(0.5 * DECAY * np.abs(slope), unsure)
    rounding = _rounding(problem, slope, np.sqrt(2.0) / np.abs(a), np.abs(f))
    return Estimate(slope, MARGIN * bend, rounding, bend, seen)


def _extrapolated(problem: Problem, groups: Array, side: Array, offsets: Array, changes: Array) -> Estimate:
    """Return slopes extrapolated to step 0, each from the entry of Neville's table whose error is least.

    (Ridders, *Advances in Engineering Software* 4, 1982). Two-sided slopes have errors of order 2, 4, 6, ...,
    one-sided ones of order 2, 3, 4, ... Only steps at which differences fall from the next finer to the next
    coarser as they should take part: agreement between values that are aliased is chance.
    """
    (a, b), (f, g) = np.moveaxis(offsets, 1, 0), np.moveaxis(changes, 1, 0)
    u, v = _weights(b / a)
    slopes, gains = (u * f + v * g) / a, _gain(u, v) / np.abs(a)
    bends = (f - g * (a / b)) / np.abs(a - b)
    largest = np.maximum(np.abs(f), np.abs(g))
    problem = _with_ties(problem, f, g)
    coarsest = _coarsest_seen(problem, slopes, gains, bends, np.abs(a - b))
    two_sided = problem.structure.spread(side, groups, fill=0.0) == 0.0
    infinite = np.full(slopes[0].shape, np.inf)
    best = [slopes[-1], infinite, _rounding(problem, slopes[-1], gains[-1], largest[-1])]
    above = [(slopes[0], gains[0])]
    for k in range(1, LEVELS):
        row = [(slopes[k], gains[k])]
        for m in range(1, k + 1):
            ratio = np.where(two_sided, 4.0**m, 2.0 ** (m + 1))
            (fine, gain), (coarse, other) = row[m - 1], above[m - 1]
            value = fine + (fine - coarse) / (ratio - 1.0)
            row.append((value, np.hypot(ratio * gain, other) / (ratio - 1.0)))
            truncation = np.maximum(np.abs(value - fine), np.abs(value - coarse))
            rounding = _rounding(problem, value, row[m][1], largest[k - m])
            better = (truncation + rounding < best[1] + best[2]) & (k - m >= coarsest)
            for i, new in enumerate((value, truncation, rounding)):
                best[i] = np.where(better, new, best[i])
        above = row
    # Where nothing is believed the finest step stands, with all that the slopes about it differ by.
    blind = ~np.isfinite(best[1])
    bend = np.maximum(np.abs(bends[-1]), np.abs(2.0 * bends[-1] - bends[-2]))
    around = np.maximum(KINK * bend, SAFETY * np.abs(slopes[-1] - slopes[-2]))
    return Estimate(best[0], np.where(blind, around, best[1]), best[2], bend, ~blind)


def _with_ties(problem: Problem, *changes: Array) -> Problem:
    """Return the problem with noise for each entry: where outputs in steps stand still, what they then jump by."""
    size = np.abs(np.concatenate(changes))
    rough = problem.loud & np.any(size == 0.0, axis=0)
    if not rough.any():
        return problem
    jump = np.where(size > 0.0, size, np.inf).min(axis=0)
    return replace(
        problem, noise=np.where(rough & np.isfinite(jump), np.maximum(problem.noise, jump), problem.noise)
    )


def _coarsest_seen(problem: Problem, slopes: Array, gains: Array, bends: Array, widths: Array) -> Array:
    """Return the coarsest level down from which slopes and bends fall with the step, ``(groups, m)``."""
    noise = NOISY * problem.noise
    change = np.abs(np.diff(slopes, axis=0))
    quiet = change <= noise * np.hypot(gains[1:], gains[:-1])
    settling = quiet.copy()
    settling[1:] |= change[1:] <= 0.6 * change[:-1]
    settling[0] |= change[0] <= DECAY * np.abs(slopes[0])
    size, unsure = np.abs(bends), noise * np.sqrt(6.0) / widths[1:]
    settling &= (size[1:] <= unsure) | (size[1:] <= 0.75 * size[:-1])
    # Bends at step 0, from two steps each: of a smooth function they fall by 4 or 8, those of a kink are its own.
    left = np.abs(2.0 * bends[1:] - bends[:-1])
    settling[-1] &= (left[-1] <= 3.0 * unsure[-1]) | (left[-1] <= 0.5 * left[-2])
    # Transition k leads from level k to k + 1: level k is good if all that follow it are.
    good = np.flip(np.logical_and.accumulate(np.flip(settling, 0)), 0)
    return LEVELS - 1 - good.sum(axis=0)


def _weights(b: Array) -> tuple[Array, Array]:
    """Return the weights of f(x + a) - f(x) and f(x + b a) - f(x) in the slope of the parabola at x, times a."""
    return b / (b - 1.0), 1.0 / (b * (1.0 - b))


def _gain(u: Array, v: Array) -> Array:
    """Return by how much weights amplify noise, that of f(x) among it."""
    return np.sqrt(u * u + v * v + (u + v) ** 2)


def _rounding(problem: Problem, slope: Array, amplification: Array, change: Array) -> Array:
    # Where f grows by orders of magnitude on the way, so does its noise.
    noise = problem.unsure + 0.5 * problem.precision * change
    if problem.blurred:
        noise = noise + problem.resolution * np.abs(slope)
    return SAFETY * amplification * noise + 4.0 * problem.precision * np.abs(slope)


def evaluate(problem: Problem, groups: Array, points: Array) -> Array:
    """Move the inputs of each group to ``points`` ``(..., n)``; return outputs ``(..., groups, m)``."""
    lead, n = points.shape[:-1], problem.x.size
    if problem.structure.groups == 1 and groups.size == 1 and problem.structure.all_move:
        return problem.evaluate(points.reshape(-1, n)).reshape(*lead, 1, -1)
    block = max(1, BLOCK // max(1, n * prod(lead)))
    parts: list[Array] = []
    for i in range(0, groups.size, block):
        members = problem.structure.members(groups[i : i + block])
        moved = np.where(members, points[..., None, :], problem.x)
        parts.append(problem.evaluate(moved.reshape(-1, n)).reshape(*lead, len(members), -1))
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, axis=-2) if parts else np.zeros((*lead, 0, problem.value.size))
