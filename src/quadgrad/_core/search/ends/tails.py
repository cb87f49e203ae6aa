"""Ends that bisection never reaches: slowly decaying oscillations, and f that falls hardly faster than 1/distance.

Towards such an end cells are laid whose integrals are the terms of a series with a limit (:mod:`.series`). Of an
oscillation they end at its zeros or, where it has none, at its minima; else they double in the logarithm of the
distance, or, where f cancels so close to the end that rounding hides it, cover equal parts of that. The rest of the
piece, up to the first of them, is searched as ever.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import extrapolate
from quadgrad._core.estimates.null_rules import SAFETY
from quadgrad._core.estimates.series import EPSILON
from quadgrad._core.estimates.singular_ends import NEAREST
from quadgrad._core.mesh.interval import LINEAR, LOGARITHMIC
from quadgrad._core.problem import Problem
from quadgrad._core.search.ends.fading import are_hidden, sum_octaves
from quadgrad._core.search.ends.towards import Best, Line, find_gains, integrate_cells, make_tail
from quadgrad._core.search.ends.waves import SCAN, find_waves, go_on, spread, stretch, turns
from quadgrad._core.search.task import Tail, call_places, noise

__all__ = ["are_quiet", "find_tails", "wave_goes_on"]

FEWEST = 6
"""Cells that double, at least."""

ENOUGH = 1e-3
"""Columns are not looked at further when the error is below this part of the tolerance."""


def find_tails(
    lines: list[Line], distances: list[float], sizes: list[float], oscillates: list[bool]
) -> list[Tail | None]:
    """Return tails at ends of pieces, None where none fits; lines count the nodes spent.

    They begin at about these ``distances``, which are fractions of the piece, or, the first time, before that: what
    is farther out is the more to search. ``sizes`` are those of the integrals as far as they are known.
    """
    tails: list[Tail | None] = [None] * len(lines)
    waves = [i for i, wave in enumerate(oscillates) if wave]
    rest = set(range(len(lines)))
    if waves:
        chosen = [lines[i] for i in waves], [distances[i] for i in waves], [sizes[i] for i in waves]
        found, turned = find_waves(*chosen)
        for i, tail, turn in zip(waves, found, turned, strict=True):
            tails[i] = tail
            rest -= {i} if turn else set()
    for i in rest:
        line, size = lines[i], sizes[i]
        doubling = None if oscillates[i] else _doubling(line, (distances[i] if line.again else 0.5) * line.span)
        tails[i] = (None if doubling is None else _sum(line, doubling, size)) or sum_octaves(line, size, line.again)
    return tails


def are_quiet(lines: list[Line], distances: list[float]) -> list[bool]:
    """Tell at which ends, of any number, :func:`find_tails` would find no wave and no terms that rounding hides.

    Most often that is so, and it takes two calls of f, of one real component, for all. Lines count them.
    """
    if not lines:
        return []
    problem = lines[0].problem
    u = [spread(*stretch(line, distance)) for line, distance in zip(lines, distances, strict=True)]
    x = torch.stack([line.x(t) for line, t in zip(lines, u, strict=True)], 1).to(lines[0].device)
    y = call_places(problem, torch.cat([line.owner for line in lines]), x)[..., 0].cpu()
    changes, dips = turns(y)
    still = (~y.isfinite().all(0) | ~(changes.any(0) | dips.any(0))).tolist()
    for line, seen in zip(lines, y.unbind(1), strict=True):
        line.scanned, line.spent = seen, line.spent + SCAN
    hidden = iter(are_hidden([line for line, quiet in zip(lines, still, strict=True) if quiet]))
    return [quiet and not next(hidden) for quiet in still]


def _doubling(line: Line, distance: float) -> Tensor | None:
    """Return fractions of cells that double in the logarithm of the distance, if there is room for enough."""
    v0 = max(1.0, -math.log(distance))
    near = max(float(NEAREST), 16.0 * line.problem.pieces.rounding.eps * abs(line.end))
    doublings = int(math.log2(-math.log(near) / v0)) if near < 1.0 else 0
    if doublings < FEWEST:
        return None
    shift = _origin(line, -math.log(near))
    if v0 + shift <= 0.0:
        shift = 0.0
    doublings = int(math.log2((shift - math.log(near)) / (v0 + shift)))
    if doublings < FEWEST:
        return None
    v = (v0 + shift) * torch.exp2(torch.arange(doublings + 1, dtype=torch.float64, device="cpu")) - shift
    return torch.exp(-v) / line.span


def _origin(line: Line, deepest: float) -> float:
    """Return c if f times the distance falls like a power of v + c, v being the distance's logarithm.

    Cells that double in v + c have integrals in an exact geometric sequence then.
    """
    v = (
        torch.tensor([0.3, 0.6], dtype=torch.float64, device="cpu")[:, None]
        * deepest
        * torch.tensor([0.99, 1.0, 1.01], dtype=torch.float64, device="cpu")
    )
    f = line(torch.exp(v.flatten())).reshape(2, 3)  # u is one over the distance
    g = (f.abs().log() - v).clamp_min(-1e300)
    slope = (g[:, 2] - g[:, 0]) / (v[:, 2] - v[:, 0])
    h = -1.0 / slope
    shift = float(h[0] * (v[1, 1] - v[0, 1]) / (h[1] - h[0]) - v[0, 1])
    return shift if math.isfinite(shift) else 0.0


def _sum(line: Line, fractions: Tensor, size: float) -> Tail | None:
    """Integrate between descending fractions, and take the series to its limit."""
    if not bool((fractions.diff() < 0.0).all()):
        return None
    terms, errors = integrate_cells([line], fractions[:-1], fractions[1:], LOGARITHMIC)
    if not bool((errors.isfinite() & (terms != 0.0)).all()):
        return None
    best = _best_epsilon(terms, errors, noise(line.problem), line.problem.tolerance.rtol)
    return make_tail(line, fractions, errors, (LOGARITHMIC, EPSILON), best, size)


def _best_epsilon(terms: Tensor, errors: Tensor, eps: float, rtol: float) -> Best | None:
    """Return limit, error, how many terms it takes, and the column of the epsilon table."""
    ratio = float((terms[1:].abs() / terms[:-1].abs()).max())
    if not ratio < 0.95:
        return None
    columns, best = (len(terms) - 2) // 2, None
    table = extrapolate(terms, columns, terms.abs())
    for k in range(1, columns + 1):
        entries = table[k]
        if len(entries) < 2:
            break
        apart = max(
            abs(float(entries[-1] - entries[-2])), abs(float(entries[-1] - table[k - 1][-1])) if k > 1 else 0.0
        )
        if k == 1:
            apart = max(apart, abs(float(entries[-2] - entries[-3])))
        _, gain = find_gains(lambda t, k=k: extrapolate(t, k)[k][-1], terms)
        error = SAFETY * apart + float((gain * (errors + eps * terms.abs().max())).sum())
        if math.isfinite(error) and (best is None or error < best[1]):
            best = (float(entries[-1]), error, len(terms), k)
        # In higher columns rounding is amplified, in the gradient above all.
        if best is not None and best[1] <= ENOUGH * rtol * abs(best[0]):
            break
    return best


def wave_goes_on(problem: Problem, tail: Tail, row: int) -> bool:
    """Tell whether another component of f, far beyond the cells of a tail, still is a wave like that on them.

    Of what is no wave it is not asked.
    """
    if tail.kind != LINEAR:
        return True
    line = Line(problem, row, tail.upper)
    fractions = (
        torch.cat((tail.start[:1], tail.stop)).abs() if tail.upper else torch.cat((tail.stop[:1], tail.start))
    )
    return bool(go_on([line], line.u_at(fractions)[:, None], shifted=True))
