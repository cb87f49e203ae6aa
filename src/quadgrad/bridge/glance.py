"""A short look at a function that was quiet before: two points beside x in place of a whole table.

They tell whether it still is, and remain a witness of its slope. Pure NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from quadgrad.bridge.contract import Array, all_finite
from quadgrad.bridge.noise import BLOCK, ODD, PLACES, RARE, beside, differences
from quadgrad.bridge.problem import LOUD, Look, Problem

__all__ = ["Quiet", "glance"]

GLANCES = 15
"""How often a glance is enough; then a table is made anew."""
DISTANCE = 2.0**-33
"""How far away the points are, relative to x: closer than those of a table, whose differences of higher order see
no curvature; the second difference of a product of ten numbers would."""
NODES = PLACES[[0, 2]]
SECOND = differences(np.append(0.0, NODES), 2)[0, 1:]
SLOPE = np.array([NODES[1] / (NODES[1] - 1.0), -1.0 / (NODES[1] * (NODES[1] - 1.0))])
"""Weights of the changes at :data:`NODES` in the second difference, of length 1, and in the slope at x."""
ABOVE = 2.0
"""How much noisier than where the table was made outputs are taken to be."""


@dataclass
class Quiet:
    """What is remembered of a function whose outputs were as noisy as rounding makes them.

    Attributes
    ----------
    level : float
        Their noise, relatively.
    left : int
        How many glances are left; 0 where it was noisy, flat or curved.
    """

    level: float = 0.0
    left: int = 0

    def learn(self, problem: Problem, odd: Array) -> None:
        """Take down the noise from a table; ``odd`` says which outputs are not like rounding."""
        size = np.abs(problem.value)
        usual = ~odd & np.isfinite(size)
        self.left = 0
        if np.sum(~usual) <= RARE * size.size:
            ratio = problem.noise[usual & (size > 0.0)] / size[usual & (size > 0.0)]
            self.level = ABOVE * float(np.sqrt(np.mean(ratio**2))) if ratio.size else 0.0
            self.left = GLANCES


def glance(problem: Problem, quiet: Quiet) -> Problem | None:
    """Return the problem with its noise and a look; None where that takes a table."""
    if not quiet.left or not problem.x.size:
        return None
    quiet.left -= 1
    points = beside(problem, DISTANCE, NODES)
    outputs = problem.each(points)
    size = problem.value.size
    noise, error, bend = np.empty((3, size))
    slope, strange = np.empty(size, np.result_type(*{y.dtype for y in outputs})), 0
    with np.errstate(all="ignore"):
        for i in range(0, size, BLOCK):
            some = slice(i, i + BLOCK)
            value = problem.value[some]
            near, far = outputs[0][some] - value, outputs[1][some] - value
            second, level = np.abs(SECOND[0] * near + SECOND[1] * far), np.abs(value)
            flat = ((near == 0.0) | (near == far)) & (value != 0.0)
            odd = ~(second <= 0.5 * LOUD * problem.precision * level)
            strange += int(np.count_nonzero((odd | flat) & np.isfinite(level)))
            bend[some] = second
            second = np.where(odd, ODD * second, second) if odd.any() else second
            level = np.maximum(max(quiet.level, 0.5 * problem.precision) * level, second)
            noise[some] = level if all_finite(level) else np.where(np.isfinite(level), level, 0.0)
            slope[some] = SLOPE[0] * near + SLOPE[1] * far
            error[some] = 8.0 * noise[some]
    if strange > RARE * size:
        quiet.left = 0
        return None
    look = Look(points[0] - problem.x, slope, error, bend, np.broadcast_to(0.0, size))
    return replace(problem, noise=noise, look=look.usable())
