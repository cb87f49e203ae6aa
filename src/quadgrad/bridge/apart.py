"""What inputs hide of one another: how outputs rise that one leaves as they are, as its steps may be coarser.

Pure NumPy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quadgrad.bridge.noise import RISE, room
from quadgrad.bridge.problem import Apart, Problem
from quadgrad.bridge.stencils import Estimate, evaluate

__all__ = ["apart"]

BEYOND = 2.0 ** np.array([-10.0, -6.0])
"""Where is looked what an input does to outputs that it does not move, relative to its scale."""

BESIDE, SLOPES = 1.0 + 2.0**-32, 0.25
"""And once more so many times as far. What goes on by that part of the mean slope has no steps there: a clamp that
has let go, of which nothing is rounded."""


def apart(problem: Problem, found: Estimate) -> Problem:
    """Return the problem with how far outputs rise that groups of inputs leave as they are, as rounded inputs do.

    Three evaluations for each group with such outputs that were not looked at yet.
    """
    structure, every = problem.structure, np.arange(problem.structure.groups)
    if every.size < 2 or structure.by_elements or problem.look is None:
        return problem
    still = (found.value == 0.0) & (found.bend == 0.0) & structure.known(every)
    old = problem.apart or Apart(np.zeros(still.shape), np.zeros(still.shape, bool))
    still &= ~old.known
    idle = every[still.any(axis=1)]
    if not idle.size:
        return problem
    sign, most = room(problem)
    far = np.append(BEYOND, BESIDE * BEYOND[-1])[:, None]
    points = problem.representable(problem.x + sign * np.minimum(far * problem.scale, most))
    length = np.abs(structure.spread(points - problem.x, idle))
    change = np.abs(evaluate(problem, idle, points) - problem.value)
    goes_on = np.abs(change[2] - change[1]) >= SLOPES * change[1] / length[1] * (length[2] - length[1])
    goes_on &= (change[1] > 0.0) & (length[2] > length[1])
    change, length = np.where(still[idle] & ~goes_on, change, 0.0)[:2], length[:2]
    # What moves an output by less than another's smallest step may be in steps as well.
    least = np.where(change > 0.0, change, np.inf).min(axis=(0, 1))
    slope = RISE * np.maximum(change, np.where(np.isfinite(least), least, 0.0))[-1] / length[-1]
    slope = np.fmax(slope, RISE * (change / length).max(axis=0))
    rise = old.rise.copy()
    rise[idle] = np.where(still[idle] & np.isfinite(slope), slope, rise[idle])
    return replace(problem, apart=Apart(rise, old.known | still))
