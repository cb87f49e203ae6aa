"""What one input hides of another: noise where each moves alone, for inputs whose steps may be coarser than seen.

Pure NumPy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.noise import RISE, room, with_noise
from quadgrad.bridge.problem import Apart, Problem
from quadgrad.bridge.stencils import Estimate, evaluate

__all__ = ["apart", "in_question"]

BEYOND = 2.0 ** np.array([-10.0, -6.0])
"""Where is looked what an input does to outputs that it does not move, relative to its scale."""


def in_question(problem: Problem, found: Estimate) -> Array:
    """Return the groups of inputs about which the others may have misled, and that were not looked at yet.

    All where outputs are noisier farther away, for the finest steps are seen first; elsewhere those that leave an
    output as it is, as inputs do that are rounded.
    """
    structure = problem.structure
    every = np.arange(structure.groups)
    if every.size < 2 or structure.by_elements or problem.look is None:
        return every[:0]
    return every[_idle(problem, found).any(axis=1) | _uneven(problem)]


def _uneven(problem: Problem) -> bool:
    """Whether outputs are noisier farther away, and groups have not been told apart yet."""
    assert problem.look is not None
    return bool(problem.look.uneven.any()) and (problem.apart is None or not problem.apart.noise.any())


def _idle(problem: Problem, found: Estimate) -> Array:
    """Return which outputs a group leaves as they are, ``(groups, m)``; where there is noise that is no wonder."""
    still = (found.value == 0.0) & (found.bend == 0.0) & ~problem.loud
    still &= problem.structure.known(np.arange(problem.structure.groups))
    return still if problem.apart is None else still & ~problem.apart.known


def apart(problem: Problem, groups: Array, found: Estimate) -> Problem:
    """Return the problem with what these groups of inputs do alone: their noise, and how far outputs rise later."""
    structure, still = problem.structure, _idle(problem, found)
    shape = structure.groups, problem.value.size
    old = problem.apart or Apart(np.zeros(shape), np.zeros(shape), np.zeros(shape, bool))
    noise, rise = old.noise.copy(), old.rise.copy()
    for g in groups if _uneven(problem) else ():
        stays = structure.colour != g
        lower, upper = (np.where(stays, problem.x, bound) for bound in (problem.lower, problem.upper))
        alone, _ = with_noise(replace(problem, lower=lower, upper=upper, bounded=True))
        assert alone.look is not None
        noise[g] = alone.noise
        rise[g] = alone.look.rise / np.abs(structure.spread(alone.look.direction, np.array([g]))[0])
    idle = groups[still[groups].any(axis=1)]
    if idle.size:
        sign, most = room(problem)
        points = problem.representable(problem.x + sign * np.minimum(BEYOND[:, None] * problem.scale, most))
        length = np.abs(structure.spread(points - problem.x, idle))
        change = np.where(still[idle], np.abs(evaluate(problem, idle, points) - problem.value), 0.0)
        # What moves an output by less than another's smallest step may be in steps as well.
        least = np.where(change > 0.0, change, np.inf).min(axis=(0, 1))
        slope = RISE * np.maximum(change, np.where(np.isfinite(least), least, 0.0))[-1] / length[-1]
        slope = np.fmax(slope, RISE * (change / length).max(axis=0))
        rise[idle] = np.where(still[idle] & np.isfinite(slope), np.maximum(rise[idle], slope), rise[idle])
    return replace(problem, apart=Apart(noise, rise, old.known | still))
