"""A function of a flat vector at one point, and what is known about it before any difference is taken.

It knows nothing of tensors, nor of how the function is called, nor of how derivatives are computed. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.structure import Structure

__all__ = ["LOUD", "TINY", "Look", "Problem", "along", "middle"]

TINY = np.finfo(np.float64).tiny
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
    representable : callable
        Rounds points to what the inputs' dtypes can hold.
    structure : Structure
        Which inputs are moved together.
    look : Look or None
        None where the noise was declared: nobody looked.
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
    representable: Callable[[Array], Array]
    structure: Structure
    look: Look | None = None

    @property
    def roughness(self) -> float:
        """The relative noise level of the whole output."""
        finite = np.isfinite(self.value)
        with np.errstate(all="ignore"):
            ratio = np.linalg.norm(self.noise[finite]) / np.linalg.norm(self.value[finite])
        return min(max(float(ratio), self.precision), 0.1) if np.isfinite(ratio) else self.precision

    @property
    def typical(self) -> float:
        """The relative noise level of the better half of the outputs, from which first steps follow."""
        some = slice(None, None, 1 + self.value.size // 2**14)
        size, noise = np.abs(self.value[some]), self.noise[some]
        usable = np.isfinite(size) & (size > 0.0)
        if not usable.any():
            return self.precision
        ratio = middle(noise[usable] / size[usable])
        return min(max(ratio, self.precision), 0.1)

    @property
    def unsure(self) -> Array:
        """The noise, and how uncertain an estimate of it is that rests on few points."""
        if self.look is None:
            return self.noise
        return self.noise + np.maximum(self.noise - self.floor, 0.0) * self.value.size**-0.5

    @property
    def loud(self) -> Array:
        """Which outputs have noise that was seen."""
        return self.noise > LOUD * self.floor

    @property
    def floor(self) -> Array:
        """The noise of the outputs that rounding alone makes."""
        return 0.5 * self.precision * np.abs(self.value)


def middle(values: Array) -> float:
    """Return the median, the lower one of an even number; NumPy's own takes longer than a small stencil."""
    half = (values.size - 1) // 2
    return float(np.partition(values, half)[half])


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
        representable=lambda t: t,
        structure=Structure.dense(1, problem.value.size),
        look=None,
    )
