"""Between the end of a piece and the nodes next to it derivatives may live on any scale.

A needle at a breakpoint, or a decay from a limit, may be far below the tolerance of a value, whose cells do not
resolve it then, and all that a derivative is made of: ``h * exp(-((x - c) / w)**2)`` has the integral ``h w
sqrt(pi)``, and by w its derivative is ``h sqrt(pi)``, however small w is. Right beside the end, where
:mod:`.edges` looks, that derivative is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import BEYOND, SAFETY
from quadgrad._core.estimates.singular_ends import NEAREST, Concluded
from quadgrad._core.gradient.columns import Look, Sampler, look
from quadgrad._core.mesh.cells import ULPS
from quadgrad._core.mesh.interval import DEPTH, EXTRAPOLATED, LOGARITHMIC
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import concatenate
from quadgrad._core.rules.rule import SHARES

__all__ = ["look_beyond", "look_into_gaps", "open_layers"]

CONTRADICTED = 2.0
"""How many times an error is taken that something else tells of: the nodes' part may be off, too."""

OCTAVES, GLANCE, NODES = 40.0, 20, 40
"""So many octaves are looked at, by cells of so many nodes in all or more: what has a scale of its own there covers
one to two. What decays towards the end as d**s, s up to 3, is integrated to 1e-8 of itself or better by the larger
number. The smaller one is off by a third, which is enough to see that there is something."""

TELLING = 0.25
"""A closer look is taken where a glance differs by more than this part of what is explained."""


def look_into_gaps(problem: Problem, cells: IntervalPlan, seen: Look, sampler: Sampler) -> Tensor:
    """Return what cells with evenly spread nodes are off by in the gaps next to ends, ``(n, columns)``.

    ``seen`` is what the rule makes of the cells.
    """
    hidden, tau, width = torch.zeros_like(seen.value), problem.rule.nodes, cells.stop - cells.start
    for i, touches, gap in zip((0, 1), _touching(problem, cells), (tau[0], tau[-1] - 1.0), strict=True):
        at = (touches & cells.linear).nonzero()[:, 0]
        if len(at):
            start, stop = torch.stack((0.0 * width, float(gap) * width))[:, at].aminmax(dim=0)
            stretch, known_error = _as_ends(cells.take(at), start, stop), BEYOND * abs(gap) * seen.highest[at]
            hidden[at] += _unexplained(problem, stretch, sampler, seen.gaps[at, i], known_error)
    return hidden


def look_beyond(
    problem: Problem, cells: IntervalPlan, end: Concluded, plain: Tensor, terms: Tensor, sampler: Sampler
) -> Tensor:
    """Return what extrapolation to the end does not explain of what is there, ``(k, columns)``.

    ``plain`` ``(k * columns,)`` are the integrals over the nodes' part, ``terms`` ``(SHARES, k * columns)`` what is
    extrapolated.
    """
    value, error, plain, last, before = (
        t.unflatten(0, (len(cells), -1)) for t in (end.value, end.error, plain, terms[-1].abs(), terms[-2].abs())
    )
    octave = (last / before.clamp_min(torch.finfo(last.dtype).tiny)).clamp_max(1.0) ** (SHARES / DEPTH)
    hidden, (lower, upper) = torch.zeros_like(plain), _touching(problem, cells)
    at = (lower | upper).nonzero()[:, 0]
    if len(at):
        part, beyond = cells.take(at), 2.0**-DEPTH
        stretch = _as_ends(part, beyond * part.start, beyond * part.stop)
        hidden[at] = _unexplained(problem, stretch, sampler, (value - plain)[at], error[at], octave[at])
    return hidden


def open_layers(problem: Problem, plan: IntervalPlan, which: Tensor) -> IntervalPlan:
    """Return the plan with some cells that touch finite ends parted so close to these as nodes may come."""
    cells = plan.take(which)
    cells = cells.take(~cells.whole).join(cells.take(cells.whole).halved())
    lower, upper = _touching(problem, cells)
    ends = cells.take(lower | upper)
    ends = _as_ends(ends, ends.start, ends.stop)
    octaves = _room(problem, ends).floor()
    parted = ends.close_in((octaves >= 1.0).nonzero()[:, 0], octaves[octaves >= 1.0])
    return plan.take(~which).join(cells.take(~(lower | upper))).join(parted)


def _unexplained(
    problem: Problem,
    stretch: IntervalPlan,
    sampler: Sampler,
    made: Tensor,
    known_error: Tensor,
    octave: Tensor | float = 0.0,
) -> Tensor:
    """Compare the integrals over stretches next to ends with what was ``made`` of them, ``(n, columns)``.

    That has a ``known_error``; nearer to the end than nodes can come it is as much as a decay by ``octave`` in each
    octave leaves of it.
    """
    octaves = _room(problem, stretch) + DEPTH
    explained = known_error + SAFETY * made.abs() * octave ** octaves.clamp_min(1.0)[:, None]
    hidden, at = torch.zeros_like(made), (octaves >= 1.0).nonzero()[:, 0]
    if len(at):
        value, _, rounding = _integrate(problem, stretch.take(at), octaves[at], sampler, GLANCE)
        at = at[~((value - made[at]).abs() <= TELLING * (explained[at] + rounding)).all(1)]
    if len(at):
        value, error, rounding = _integrate(problem, stretch.take(at), octaves[at], sampler, NODES)
        apart = ((value - made[at]).abs() - explained[at] - rounding).clamp_min(0.0)
        error = CONTRADICTED * apart + torch.minimum((error - rounding).clamp_min(0.0), SAFETY * apart)
        hidden[at] = error.nan_to_num(0.0, 0.0, 0.0)
    return hidden


def _integrate(
    problem: Problem, stretch: IntervalPlan, octaves: Tensor, sampler: Sampler, nodes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the integrals over stretches, ``(n, columns)``, their errors and rounding."""
    count = -(-nodes // problem.rule.nodes.size)
    parts = torch.arange(count + 1, dtype=octaves.dtype, device=octaves.device) / count
    edges = (stretch.start + stretch.stop)[:, None] * torch.exp2(-octaves[:, None] * parts)
    start, stop = torch.stack((edges[:, :-1].flatten(), edges[:, 1:].flatten())).aminmax(dim=0)
    row = stretch.row.repeat_interleave(count)
    layers = stretch.with_cells(row, start, stop, torch.full_like(row, LOGARITHMIC, dtype=torch.int8))
    rule, step = problem.rule.tensors(start.dtype, start.device), sampler.cells_at_once(problem.rule.nodes.size)
    blocks = [layers.take(slice(i, i + step)) for i in range(0, len(layers), step)]
    seen = concatenate([look(problem, rule, block, sampler, alone=False) for block in blocks])
    value, error, rounding, last = (
        t.unflatten(0, (-1, count)) for t in (seen.value, seen.error, seen.floor + seen.rounding, seen.last)
    )
    # Nearer than that it is taken to be even, as it seems to be there. The polynomial's
    # value at the end is off by 1e-7 of the integral where the integrand decays in 20 nodes.
    value = value.sum(1) + last[:, -1] / (octaves / count * math.log(2.0))[:, None]
    return value, error.sum(1), rounding.sum(1)


def _room(problem: Problem, ends: IntervalPlan) -> Tensor:
    """Return how many octaves closer to their ends cells may come, at most :data:`OCTAVES` less their own."""
    numbers = problem.pieces.rounding
    nearest = ((ends.start + ends.stop).abs() * 2.0**-OCTAVES).clamp_min(max(NEAREST, numbers.tiny**0.5))
    return problem.pieces.lay_out(ends).octaves_left(ULPS * numbers.eps, nearest)


def _as_ends(cells: IntervalPlan, start: Tensor, stop: Tensor) -> IntervalPlan:
    """Return the cells between other places, as those that are extrapolated to an end."""
    return cells.with_cells(cells.row, start, stop, torch.full_like(cells.kind, EXTRAPOLATED))


def _touching(problem: Problem, cells: IntervalPlan) -> tuple[Tensor, Tensor]:
    """Tell which cells touch the lower, and which the upper end of their pieces, if that is finite."""
    lower, upper = problem.pieces.ends(cells.row)
    at_upper = (cells.stop == 1.0) | ((cells.stop == 0.0) & (cells.start < 0.0))
    return (cells.start == 0.0) & lower.isfinite(), at_upper & upper.isfinite()
