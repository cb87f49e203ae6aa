"""A function of a flat vector at one point, and what is known about it before any difference is taken.

It knows nothing of tensors, nor of how the function is called, nor of how derivatives are computed. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quadgrad.bridge.contract import Array, all_finite
from quadgrad.bridge.lazy import lazy
from quadgrad.bridge.structure import Structure

__all__ = ["LOUD", "SMALL", "TINY", "Apart", "Look", "Problem", "along", "middle", "part", "power_of_two", "scales"]

TINY = np.finfo(np.float64).tiny
SMALLEST = float(np.finfo(np.float64).smallest_subnormal)
SMALL = 1e-3
"""Where all of an input is below, its scale is taken from its size at first."""
NEGLIGIBLE = 0.01
LOUD = 8.0
"""Noise this many times that of rounding was seen, not assumed: differences that do not fall are noise then."""


@dataclass(frozen=True)
class Look:
    """What a few points very close to x say: an independent witness of every derivative.

    Attributes
    ----------
    direction : array, shape (n,)
        All inputs move together, by this.
    slope, error : array, shape (m,)
        The derivative along the direction, and how wrong it may be.
    bend : array, shape (m,)
        The second difference along the direction.
    rise : array, shape (m,)
        The slope along the direction of outputs that are flat at x and rise in steps farther away, too coarse to be
        the rounding of something smooth; 0 for others.
    """

    direction: Array
    slope: Array
    error: Array
    bend: Array
    rise: Array

    def usable(self) -> Look:
        """Return it without slopes that could not be computed: they contradict nothing."""
        if all_finite(self.slope) and all_finite(self.error):
            return self
        usable = np.isfinite(self.slope) & np.isfinite(self.error)
        slope, bend = np.where(usable, self.slope, 0.0), np.where(usable, self.bend, 0.0)
        return replace(self, slope=slope, error=np.where(usable, self.error, np.inf), bend=bend)

    @property
    def of_outputs(self) -> tuple[Array, ...]:
        """All but the direction."""
        return self.slope, self.error, self.bend, self.rise


@dataclass(frozen=True)
class Apart:
    """The :attr:`Look.rise` of each output as a slope, where one group moves alone, ``(groups, m)``.

    0 for groups that were not looked at; ``known`` says of which outputs that do not move the rise is known.
    """

    rise: Array
    known: Array


@dataclass(frozen=True)
class Problem:
    """A function of a vector, and what is known about it at one point.

    Attributes
    ----------
    evaluate : callable
        From points ``(k, n)`` to outputs ``(k, m)``.
    x, scale, resolution, lower, upper : array, shape (n,)
        The point; over which distance the function is expected to change; the spacing of numbers at x; bounds
        between which the function may be called.
    value, noise : array, shape (m,)
        The outputs at x, and how uncertain each is, absolutely (a standard deviation).
    precision : float
        The spacing at 1 of the outputs' dtype.
    structure : Structure
        Which inputs are moved together.
    look : Look or None
        None where the noise was declared: nobody looked.
    single : array of bool, shape (n,), or None
        Which inputs are float32, if any is.
    blurred : bool
        Whether points are not quite where they are said to be, but within ``resolution`` of it.
    some : callable or None
        From points ``(k, inputs of some elements)`` and the elements' indices to their outputs, of a function that
        works elementwise and may be called on some of its elements.
    bounded : bool
        Whether there are bounds.
    one_by_one : bool
        Whether ``evaluate`` is called with one point as well as with many.
    typical_noise : float or None
        :attr:`typical`, where it is that of a larger problem.
    apart : Apart or None
    """

    evaluate: Callable[[Array], Array]
    x: Array
    scale: Array
    resolution: Array
    lower: Array
    upper: Array
    value: Array
    noise: Array
    precision: float
    structure: Structure
    look: Look | None = None
    single: Array | None = None
    blurred: bool = False
    some: Callable[[Array, Array], Array] | None = None
    bounded: bool = True
    one_by_one: bool = False
    typical_noise: float | None = None
    apart: Apart | None = None

    def each(self, points: Array) -> Sequence[Array]:
        """Return the outputs at each of some points, side by side only where that is how they come."""
        return [self.evaluate(p[None])[0] for p in points] if self.one_by_one else list(self.evaluate(points))

    def representable(self, points: Array) -> Array:
        """Round points ``(..., n)`` to what the inputs' dtypes can hold."""
        return points if self.single is None else np.where(self.single, points.astype(np.float32), points)

    @property
    def roughness(self) -> float:
        """The relative noise level of the whole output."""
        finite = np.isfinite(self.value)
        with np.errstate(all="ignore"):
            ratio = np.linalg.norm(self.noise[finite]) / np.linalg.norm(self.value[finite])
        return min(max(float(ratio), self.precision), 0.1) if np.isfinite(ratio) else self.precision

    @property
    def typical(self) -> float:
        """The relative noise level of the better half of the outputs, from which first steps follow.

        That of rounding is one level, however it was estimated: steps that followed it would change with it.
        """
        if self.typical_noise is not None:
            return self.typical_noise
        some = slice(None, None, 1 + self.value.size // 2**14)
        size, noise = np.abs(self.value[some]), self.noise[some]
        usable = np.isfinite(size) & (size > 0.0)
        if not usable.any():
            return self.precision
        ratio = middle(noise[usable] / size[usable])
        return self.precision if ratio <= 0.5 * LOUD * self.precision else min(ratio, 0.1)

    @property
    def unsure(self) -> Array:
        """The noise, and how uncertain an estimate of it is that rests on few points."""
        if self.look is None:
            return self.noise
        share = self.value.size**-0.5
        if share < NEGLIGIBLE:  # and the floor costs more than it is worth
            return (1.0 + share) * self.noise
        return self.noise + np.maximum(self.noise - self.floor, 0.0) * share

    @property
    def loud(self) -> Array:
        """Which outputs have noise that was seen."""
        return self.noise > LOUD * self.floor

    @property
    def near(self) -> Array:
        """How far the inputs are from 0; of those that are 0 their scale."""
        return np.where(self.x != 0.0, np.abs(self.x), self.scale)

    @lazy
    def floor(self) -> Array:
        """The noise of the outputs that rounding alone makes."""
        return np.maximum(0.5 * self.precision * np.abs(self.value), SMALLEST)


def middle(values: Array) -> float:
    """Return the median, the lower one of an even number; NumPy's own takes longer than a small stencil."""
    half = (values.size - 1) // 2
    return float(np.partition(values, half)[half])


def power_of_two(values: Array) -> Array:
    """Return the largest power of two that is not above each of these positive normal numbers."""
    return (values.view(np.int64) & _EXPONENT).view(np.float64)


_EXPONENT = np.float64(np.inf).view(np.int64)


def scales(given: Array, *, one_unit: bool) -> tuple[Array, Array]:
    """Return over which distances a function changes with an input, and how finely numbers are spaced there; flat.

    The scale is 1 or the input's size, whichever is larger; but very small numbers are probably in units in which
    they are not: each in its own, or all of an array in one.
    """
    size = np.abs(given).astype(np.float64, copy=False).ravel()
    largest = size.max(initial=0.0)
    scale = np.maximum(size, largest / 16.0 if 0.0 < largest < SMALL else 1.0)
    if not one_unit:
        scale = np.where((size > 0.0) & (size < SMALL), size, scale)
    kind = np.finfo(given.dtype)
    resolution = power_of_two(size)  # what numpy.spacing returns, in a tenth of the time
    resolution *= float(kind.eps)
    return scale, np.maximum(resolution, float(kind.smallest_subnormal), out=resolution)


def along(problem: Problem, direction: Array) -> Problem:
    """Return the function of a number t that the problem is on ``x + t * direction``, at t = 0."""
    moving = direction != 0.0
    speed = direction[moving]
    room = np.stack(((problem.lower - problem.x)[moving] / speed, (problem.upper - problem.x)[moving] / speed))
    return replace(
        problem,
        evaluate=lambda t: problem.evaluate(problem.representable(problem.x + t * direction)),
        x=np.zeros(1),
        scale=1.0 / np.max(np.abs(speed) / problem.scale[moving], keepdims=True),
        resolution=np.max(problem.resolution[moving] / np.abs(speed), keepdims=True),
        lower=room.min(axis=0).max(keepdims=True),
        upper=room.max(axis=0).min(keepdims=True),
        structure=Structure.dense(1, problem.value.size),
        look=None,
        single=None,
        blurred=True,
        some=None,
    )


def part(problem: Problem, chosen: slice | Array) -> Problem:
    """Return the problem of some elements of a function that works elementwise, whose structure is in order."""
    groups, size = problem.structure.source.shape
    look = problem.look

    def some(values: Array) -> Array:
        return values.reshape(groups, size)[:, chosen].reshape(-1)

    def embedded(points: Array) -> Array:
        """Return points of all elements, those not chosen at x."""
        whole = np.broadcast_to(problem.x.reshape(groups, size), (len(points), groups, size)).copy()
        whole[..., chosen] = points.reshape(len(points), groups, -1)
        return whole.reshape(len(points), -1)

    def evaluated(points: Array) -> Array:
        if problem.some is not None and isinstance(chosen, np.ndarray):
            return problem.some(points, chosen)
        return problem.evaluate(embedded(points))[:, chosen]

    inputs = (problem.x, problem.scale, problem.resolution, problem.lower, problem.upper)
    x, scale, resolution, lower, upper = map(some, inputs)
    value = problem.value[chosen]
    return Problem(
        evaluated, x, scale, resolution, lower, upper, value, problem.noise[chosen], problem.precision,
        Structure.in_rows(groups, value.size),
        look=None if look is None else Look(some(look.direction), *(t[chosen] for t in look.of_outputs)),
        single=None if problem.single is None else some(problem.single), bounded=problem.bounded,
        typical_noise=problem.typical,
    )  # fmt: skip
