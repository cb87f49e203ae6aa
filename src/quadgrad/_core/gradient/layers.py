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
from quadgrad._core.rules.rule import SHARES

__all__ = ["look_beyond", "look_into_gaps"]

CONTRADICTED = 2.0
"""How many times an error is taken that something else tells of: the nodes' part may be off, too."""

OCTAVES, NODES = 36.0, 45
"""So many octaves are looked at, by cells of so many nodes in all or more: what has a scale of its own there covers one
to two. What decays towards the end as d**s, s up to 3, is integrated to 1e-8 of itself or better."""


def look_into_gaps(problem: Problem, cells: IntervalPlan, seen: Look, sampler: Sampler) -> Tensor:
    """Return what cells with evenly spread nodes are off by in the gaps next to ends of their pieces, ``(n, columns)``.

    ``seen`` is what the rule makes of the cells.
    """
    hidden, tau = torch.zeros_like(seen.value), problem.rule.nodes
    at_lower, at_upper = cells.linear & (cells.start == 0.0), cells.linear & _ends_above(cells)
    for touches, made, width in ((at_lower, seen.gaps[0], tau[0]), (at_upper, seen.gaps[1], 1.0 - tau[-1])):
        at = (touches & _is_finite(problem, cells, touches is at_lower)).nonzero()[:, 0]
        if len(at):
            part, half = cells.take(at), made.new_tensor(0.5)
            outer, lower = (
                float(width) * (part.stop - part.start),
                torch.full_like(at, touches is at_lower, dtype=torch.bool),
            )
            known_error = BEYOND * float(width) * seen.highest[at]
            hidden[at] += _unexplained(problem, part, (outer, lower), sampler, (made[at], half, known_error))
    return hidden


def look_beyond(
    problem: Problem, cells: IntervalPlan, end: Concluded, plain: Tensor, terms: Tensor, sampler: Sampler
) -> Tensor:
    """Return what extrapolation to the end does not explain of what is there, ``(k, columns)``.

    ``plain`` ``(k * columns,)`` are the integrals over the nodes' part, ``terms`` ``(SHARES, k * columns)`` the series.
    """
    value, error, plain = (t.unflatten(0, (len(cells), -1)) for t in (end.value, end.error, plain))
    last, before = terms[-2:].abs().flip(0).unflatten(1, (len(cells), -1)).unbind()
    ratio = (last / before.clamp_min(torch.finfo(last.dtype).tiny)).clamp_max(1.0) ** (SHARES / DEPTH)
    at_lower, hidden = cells.start == 0.0, torch.zeros_like(plain)
    at = torch.where(at_lower, *(_is_finite(problem, cells, lower) for lower in (True, False))).nonzero()[:, 0]
    if len(at):
        part, made = cells.take(at), (value - plain)[at]
        outer = (part.start + part.stop).abs() * 2.0**-DEPTH
        hidden[at] = _unexplained(problem, part, (outer, at_lower[at]), sampler, (made, ratio[at], error[at]))
    return hidden


def _unexplained(
    problem: Problem,
    cells: IntervalPlan,
    stretch: tuple[Tensor, Tensor],
    sampler: Sampler,
    made: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Compare the integrals over a stretch next to an end with what was made of them, ``(n, columns)``.

    ``stretch`` tells how far it goes as a part of the piece, and whether from the lower end, ``(n,)``. ``made`` is the
    integral, by what factor it decays in an octave, and its error as far as that is known.
    """
    (outer, lower), (integral, ratio, known_error), pieces = stretch, made, problem.pieces
    whole = (torch.where(lower, 0.0, -outer), torch.where(lower, outer, 0.0))
    layout = pieces.lay_out(cells.with_cells(cells.row, *whole, torch.full_like(cells.kind, EXTRAPOLATED)))
    nearest = (outer * 2.0**-OCTAVES).clamp_min(max(NEAREST, pieces.rounding.tiny**0.5))
    octaves = layout.octaves_left(ULPS * pieces.rounding.eps, nearest) + DEPTH
    octaves, usable = octaves.clamp_min(1.0), octaves >= 1.0
    count = -(-NODES // problem.rule.nodes.size)
    parts = torch.arange(count + 1, dtype=octaves.dtype, device=octaves.device) / count
    edges = outer[:, None] * torch.exp2(-octaves[:, None] * parts)
    far, near, side = edges[:, :-1], edges[:, 1:], lower[:, None]
    ends = torch.where(side, near, -far).flatten(), torch.where(side, far, -near).flatten()
    row = cells.row.repeat_interleave(count)
    seen = _look_at(
        problem, cells.with_cells(row, *ends, torch.full_like(row, LOGARITHMIC, dtype=torch.int8)), sampler
    )
    values, errors, roundings, at_edges = (t.unflatten(0, (len(cells), count)) for t in seen)
    # Nearer than that it is taken to be even, as it seems to be at the last place.
    value = values.sum(1) + at_edges[:, -1] / (octaves / count * math.log(2.0))[:, None]
    error, rounding = errors.sum(1), roundings.sum(1)
    slack = known_error + rounding + SAFETY * integral.abs() * ratio ** octaves[:, None]
    apart = ((value - integral).abs() - slack).clamp_min(0.0)
    error = CONTRADICTED * apart + torch.minimum((error - rounding).clamp_min(0.0), SAFETY * apart)
    return error.nan_to_num(0.0, 0.0, 0.0).masked_fill(~usable[:, None], 0.0)


def _look_at(problem: Problem, cells: IntervalPlan, sampler: Sampler) -> list[Tensor]:
    """Return values, errors, what rounding has in these, and the integrand at the inner edge, ``(n, columns)``."""
    rule, step = (
        problem.rule.tensors(cells.start.dtype, cells.row.device),
        sampler.cells_at_once(problem.rule.nodes.size),
    )
    parts = (cells.take(slice(i, i + step)) for i in range(0, len(cells), step))
    looks = [look(problem, rule, part, sampler, alone=False) for part in parts]
    each = [(look.value, look.error, look.floor + look.rounding, look.edges[1]) for look in looks]
    return [torch.cat(columns) for columns in zip(*each, strict=True)]


def _ends_above(cells: IntervalPlan) -> Tensor:
    """Tell which cells end where their piece does."""
    return (cells.stop == 1.0) | ((cells.stop == 0.0) & (cells.start < 0.0))


def _is_finite(problem: Problem, cells: IntervalPlan, lower: bool) -> Tensor:
    """Tell whether the lower or upper ends of cells' pieces are finite."""
    return problem.pieces.ends(cells.row)[0 if lower else 1].isfinite()
