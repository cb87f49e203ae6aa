"""Derivatives from differences, in NumPy alone: stencils, a step for each element, error bars.

A :class:`Problem` is a function of a flat vector, evaluated at many points in one call. Inputs that no output
shares are moved together (:mod:`quadgrad.bridge.structure`). Each derivative is computed with two steps or more:
how they differ tells the truncation error, the noise level tells the rest, and where the two are far out of balance
the step is chosen anew. It knows nothing of tensors, nor of how the function is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.structure import Structure

__all__ = ["Found", "Problem", "along", "differentiate", "directional", "fixed_steps", "slope_along"]

SAFETY = 3.0
"""Reported over estimated error, for truncation and for noise."""
PASSES = 4
"""How often steps are chosen."""
GROWTH = 32.0
"""By how much a step grows, or shrinks where points lie outside the domain, from pass to pass."""
POOR = 100.0
"""Steps are chosen anew where the error is this many times what a well-scaled function gives."""
ROUGH = 30.0
"""Where truncation is estimated at less than this many times the noise, the estimate is noise itself."""
LEVELS, COARSEST = 8, 0.125
"""Richardson extrapolation: how many steps, each half of the one before, and the first, relative to the scale."""
BLOCK = 2**22
"""Numbers in the points that are sent at once."""
TINY = np.finfo(np.float64).tiny


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

    @property
    def roughness(self) -> float:
        """The relative noise level of the whole output, from which first steps follow."""
        with np.errstate(all="ignore"):
            ratio = np.linalg.norm(self.noise) / np.linalg.norm(self.value)
        return min(max(float(ratio), self.precision), 0.1) if np.isfinite(ratio) else self.precision


@dataclass(frozen=True)
class Estimate:
    """Derivatives in compressed form, ``(groups, m)``, and both parts of how wrong each may be."""

    value: Array
    truncation: Array
    rounding: Array

    @property
    def error(self) -> Array:
        """How wrong each may be; infinite where it is not finite."""
        total = self.truncation + self.rounding
        return np.where(np.isfinite(total) & np.isfinite(self.value), total, np.inf)


@dataclass(frozen=True)
class Found:
    """Derivatives in compressed form with their errors, and the scales of the inputs that the steps turned out."""

    value: Array
    error: Array
    scale: Array


def differentiate(problem: Problem, method: str) -> Found:
    """Return the compressed Jacobian by ``"central"``, ``"forward"`` or ``"richardson"`` differences."""
    groups = np.arange(problem.structure.groups)
    value = np.full((groups.size, problem.value.size), np.nan, problem.value.dtype)
    error = np.full(value.shape, np.inf)
    relative = COARSEST if method == "richardson" else _balanced(problem, _order(method))
    step, chosen = problem.scale * relative, problem.scale * relative
    with np.errstate(all="ignore"):
        for _ in range(PASSES):
            found = _pass(problem, groups, step, method)
            better = found.error < error[groups]
            value[groups] = np.where(better, found.value, value[groups])
            error[groups] = np.where(better, found.error, error[groups])
            chosen = np.where(problem.structure.collect(better.astype(np.float64), groups) > 0.0, step, chosen)
            poor = _poor(problem, groups, value[groups], error[groups], method)
            if not poor.any():
                break
            step = _next_steps(problem, groups, step, found, poor, method)
            groups = groups[poor.any(axis=1)]
    known = problem.structure.known(np.arange(value.shape[0]))
    return Found(np.where(known, value, 0.0), np.where(known, error, 0.0), chosen / relative)


def _order(method: str) -> int:
    return 1 if method == "forward" else 2


def _pass(problem: Problem, groups: Array, step: Array, method: str) -> Estimate:
    if method == "richardson":
        return _extrapolated(problem, groups, step)
    return _two_steps(problem, groups, step, _order(method))


def directional(problem: Problem, method: str, direction: Array, power: float | None = None) -> Array:
    """Return the derivatives along a direction, ``(m,)``, from two evaluations.

    (``"forward"`` takes one, ``"richardson"`` more.) ``power`` fixes the relative step at that power of the
    precision, whatever the noise is.
    """
    if not direction.any():
        return np.zeros_like(problem.value)
    line = along(problem, direction)
    if method == "richardson":
        return differentiate(line, method).value[0]
    return _once(line, _order(method), power)[0]


def fixed_steps(problem: Problem, power: float) -> Array:
    """Return the compressed Jacobian by central differences with steps that do not depend on what is found."""
    return _once(problem, 2, power)


def _once(problem: Problem, order: int, power: float | None) -> Array:
    """Return slopes from one step for each input."""
    relative = _balanced(problem, order) if power is None else problem.roughness**power
    step, side = _fit(problem, problem.scale * relative, 1.0)
    groups = np.arange(problem.structure.groups)
    with np.errstate(all="ignore"):
        slope, _, _ = _stencil(problem, groups, step, side, np.ones(1), order)
    return np.where(problem.structure.known(groups), slope[0], 0.0)


def slope_along(line: Problem, function: Callable[[float], Array], power: float) -> Array:
    """Differentiate a function of t at 0 with a step that fits the line's bounds, relative to its scale."""
    step, side = _fit(line, line.scale * line.roughness**power, 1.0)
    h = float(step[0])
    if side[0] == 0.0:
        return (function(h) - function(-h)) / (2.0 * h)
    h = h * float(side[0])
    return (4.0 * function(h) - function(2.0 * h) - 3.0 * function(0.0)) / (2.0 * h)


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
    )


# ----------------------------------------------------------------------------------------------- stencils


def _stencil(
    problem: Problem, groups: Array, step: Array, side: Array, multiples: Array, order: int
) -> tuple[Array, Array, Array]:
    """Return slopes for steps ``multiples * step``, how they amplify noise, and a measure of their truncation.

    Two-sided stencils use x - h and x + h; one-sided ones, also of second order, x + h and x + 2 h; stencils of
    first order x + h. All come from the parabola (line) through these points and x, with h as it was after
    rounding.
    """
    t = multiples[:, None] * step
    nodes = np.stack((np.where(side == 0.0, t, side * t), np.where(side == 0.0, -t, 2.0 * side * t)))[:order]
    points = problem.representable(problem.x + nodes)
    first, *second = problem.structure.spread(points - problem.x, groups)
    f = _evaluate(problem, groups, points) - problem.value
    if order == 1:
        return f[0] / first, np.sqrt(2.0) / np.abs(first), np.abs(first)
    gap = second[0] - first
    u, v = second[0] / (first * gap), -first / (second[0] * gap)
    return u * f[0] + v * f[1], np.sqrt(u**2 + v**2 + (u + v) ** 2), np.abs(first * second[0])


def _evaluate(problem: Problem, groups: Array, points: Array) -> Array:
    """Move the inputs of each group to ``points`` ``(..., n)``; return outputs ``(..., groups, m)``."""
    lead, n = points.shape[:-1], problem.x.size
    block = max(1, BLOCK // max(1, n * int(np.prod(lead))))
    parts: list[Array] = []
    for i in range(0, groups.size, block):
        members = problem.structure.members(groups[i : i + block])
        moved = np.where(members, points[..., None, :], problem.x)
        parts.append(problem.evaluate(moved.reshape(-1, n)).reshape(*lead, len(members), -1))
    return np.concatenate(parts, axis=-2) if parts else np.zeros((*lead, 0, problem.value.size))


def _two_steps(problem: Problem, groups: Array, step: Array, order: int) -> Estimate:
    """Return slopes with one step, their truncation error from twice the step."""
    step, side = _fit(problem, step, 2.0)
    slope, amplification, spread = _stencil(problem, groups, step, side, np.array([1.0, 2.0]), order)
    truncation = SAFETY * np.abs(slope[1] - slope[0]) * spread[0] / (spread[1] - spread[0])
    return Estimate(slope[0], truncation, _rounding(problem, slope[0], amplification[0]))


def _extrapolated(problem: Problem, groups: Array, step: Array) -> Estimate:
    """Return slopes extrapolated to step 0, each from the entry of Neville's table whose error is least.

    (Ridders, *Advances in Engineering Software* 4, 1982). Two-sided slopes have errors of order 2, 4, 6, ...,
    one-sided ones of order 2, 3, 4, ...
    """
    step, side = _fit(problem, step, 1.0)
    slope, amplification, _ = _stencil(problem, groups, step, side, 0.5 ** np.arange(LEVELS), 2)
    two_sided = problem.structure.spread(side, groups, fill=0.0) == 0.0
    best = Estimate(slope[-1], np.full(slope[0].shape, np.inf), np.zeros(slope[0].shape))
    above = [(slope[0], amplification[0])]
    for k in range(1, LEVELS):
        row = [(slope[k], amplification[k])]
        for m in range(1, k + 1):
            ratio = np.where(two_sided, 4.0**m, 2.0 ** (m + 1))
            (fine, a), (coarse, b) = row[m - 1], above[m - 1]
            value = fine + (fine - coarse) / (ratio - 1.0)
            gain = np.hypot(ratio * a, b) / (ratio - 1.0)
            row.append((value, gain))
            truncation = np.maximum(np.abs(value - fine), np.abs(value - coarse))
            found = Estimate(value, truncation, _rounding(problem, value, gain))
            better = found.error < best.error
            best = Estimate(
                np.where(better, value, best.value),
                np.where(better, truncation, best.truncation),
                np.where(better, found.rounding, best.rounding),
            )
        above = row
    return best


def _rounding(problem: Problem, slope: Array, amplification: Array) -> Array:
    return SAFETY * amplification * problem.noise + 4.0 * problem.precision * np.abs(slope)


# ----------------------------------------------------------------------------------------------- steps


def _balanced(problem: Problem, order: int) -> float:
    """Return the relative step that balances truncation and noise for a function that is well scaled."""
    return problem.roughness ** (1.0 / (order + 1))


def _fit(problem: Problem, step: Array, reach: float) -> tuple[Array, Array]:
    """Return steps that fit into the bounds, and 0 for two-sided stencils, +1 or -1 for one-sided ones.

    A two-sided stencil takes ``reach`` steps to either side, a one-sided one twice as many to one side.
    """
    above, below = problem.upper - problem.x, problem.x - problem.lower
    side = np.where(np.minimum(above, below) >= reach * step, 0.0, np.where(above >= below, 1.0, -1.0))
    step = np.where(side == 0.0, step, np.minimum(step, np.maximum(above, below) / (2.0 * reach)))
    # Powers of two: added to x they round little. Below a few spacings of x there is no step at all.
    finest = np.minimum(8.0 * problem.resolution, np.maximum(above, below) / (2.0 * reach))
    return 2.0 ** np.floor(np.log2(np.maximum(np.maximum(step, finest), TINY))), side


def _poor(problem: Problem, groups: Array, value: Array, error: Array, method: str) -> Array:
    """Return where the error is far above what differences of a well-scaled function have."""
    size = np.abs(problem.value) / problem.structure.spread(np.maximum(problem.scale, 1.0), groups)
    size = np.fmax(np.abs(value), size)
    power = {"forward": 1 / 2, "central": 2 / 3, "richardson": 5 / 6}[method]
    rough = np.where(problem.value != 0.0, problem.noise / np.abs(problem.value), 0.0)
    poor = error > POOR * np.clip(rough, problem.precision, 0.1) ** power * size
    return poor & problem.structure.known(groups) & np.isfinite(problem.value)


def _next_steps(problem: Problem, groups: Array, step: Array, found: Estimate, poor: Array, method: str) -> Array:
    """Return steps that balance what was found; much smaller ones where a point lay outside the domain."""
    structure, order = problem.structure, _order(method)
    lost = poor & ~np.isfinite(found.error)
    usable = poor & ~lost
    ratio = np.where(usable, found.truncation / np.maximum(found.rounding, TINY), 0.0)
    count = structure.collect(usable.astype(np.float64), groups)
    mean = structure.collect(np.minimum(ratio, 1e30), groups) / np.maximum(count, 1.0)
    if method == "richardson":
        shrunk = np.full_like(mean, 0.5 ** (LEVELS - 1))
    else:
        shrunk = np.maximum(mean, 1.0) ** (-1.0 / (order + 1))
    relative = COARSEST if method == "richardson" else _balanced(problem, order)
    # Where noise rules, as it does next to 0 for a function that does not care how small x is: from x's scale to 1.
    grown = np.maximum(GROWTH * step, relative)
    moved = np.where(count == 0.0, step, np.where(mean > ROUGH, step * shrunk, grown))
    # The distance to 0 is the best guess of how far a domain reaches.
    near = np.where(problem.x != 0.0, np.abs(problem.x), np.inf) * relative
    outside = structure.collect(lost.astype(np.float64), groups) > 0.0
    return np.where(outside, np.minimum(step / GROWTH, near), moved)
