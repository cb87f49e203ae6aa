"""What one input hides of another: noise where each moves alone, for inputs whose steps may be coarser than seen.

Pure NumPy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.noise import with_noise
from quadgrad.bridge.problem import Apart, Problem
from quadgrad.bridge.stencils import Estimate

__all__ = ["apart", "in_question"]


def in_question(problem: Problem, found: Estimate) -> Array:
    """Return the groups of inputs about whose noise the others may have misled.

    All where outputs are noisier farther away, for the finest steps are seen first; elsewhere those that move
    nothing, as inputs do that are rounded.
    """
    structure = problem.structure
    every = np.arange(structure.groups)
    if every.size < 2 or structure.by_elements or problem.look is None:
        return every[:0]
    doubtful = _unmoved(problem, found) | problem.look.uneven.any()
    return every[doubtful if problem.apart is None else doubtful & ~problem.apart.known]


def _unmoved(problem: Problem, found: Estimate) -> Array:
    """Return which groups of inputs move no output; what noise may hide is no wonder."""
    known = problem.structure.known(np.arange(problem.structure.groups))
    return ~(((found.value != 0.0) | (found.bend != 0.0) | problem.loud) & known).any(axis=1)


def apart(problem: Problem, groups: Array, found: Estimate) -> Problem:
    """Return the problem with the noise of these groups of inputs, each from a table in which the others stay."""
    structure, unmoved, old = problem.structure, _unmoved(problem, found), problem.apart
    if old is None:
        old = Apart(*np.zeros((2, structure.groups, problem.value.size)), np.zeros(structure.groups, bool))
    noise, rise, known = (np.array(table) for table in vars(old).values())
    known[groups] = True
    for g in groups:
        stays = structure.colour != g
        lower, upper = (np.where(stays, problem.x, bound) for bound in (problem.lower, problem.upper))
        alone, _ = with_noise(replace(problem, lower=lower, upper=upper, bounded=True), own=bool(unmoved[g]))
        assert alone.look is not None
        noise[g] = alone.noise
        rise[g] = alone.look.rise / np.abs(structure.spread(alone.look.direction, np.array([g]))[0])
    return replace(problem, apart=Apart(noise, rise, known))
