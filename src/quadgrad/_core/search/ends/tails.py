"""Ends that bisection never reaches: slowly decaying oscillations, and f that falls hardly faster than 1/distance.

Towards such an end cells are laid whose integrals are the terms of a series with a limit (:mod:`.series`). Of an
oscillation they end at its zeros or, where it has none, at its minima; else they double in the logarithm of the
distance, or, where f cancels so close to the end that rounding hides it, cover equal parts of that. The rest of the
piece, up to the first of them, is searched as ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import extrapolate
from quadgrad._core.estimates.null_rules import SAFETY
from quadgrad._core.estimates.series import EPSILON, LEVIN, levin
from quadgrad._core.estimates.singular_ends import NEAREST
from quadgrad._core.mesh.interval import LINEAR, LOGARITHMIC
from quadgrad._core.problem import Problem
from quadgrad._core.search.ends.fading import are_hidden, sum_octaves
from quadgrad._core.search.ends.towards import Best, Line, find_gains, integrate_cells, make_tail
from quadgrad._core.search.task import Tail, call_places, noise

__all__ = ["NEGLIGIBLE", "SCAN", "are_quiet", "find_tail", "spread", "stretch", "turns", "wave_goes_on"]

TERMS = 20
"""Terms of an oscillation that are computed; Levin's transform of 14 has ten digits."""

FEWEST = 6
"""The lowest order that is believed."""

SCAN = 64
"""Places at which the first zeros are looked for."""

FEW, MANY = 6, 20
"""Changes of sign among them: with fewer the stretch is enlarged, with more parted."""

WIDER, FINER = 3.0, 8.0
"""By how much; by more where most neighbours differ."""

REFINE, SETTLED = 16, 1e-9
"""Steps towards a zero at most, and how little it moves in the last one, as a part of its bracket."""

EARLIER = 8.0
"""By how much, as a part of the variable that grows towards the end."""

FAR, SPREAD, THERE = (2.0, 8.0, 64.0, 1e3, 1e5, 1e7), 24, 12.0
"""So many times farther out f is called at so many places on so many half waves: it must go on as it began."""

LIKE = 30.0
"""By what factor it may be larger or smaller there than it is expected to be."""

FITS, NEGLIGIBLE = 0.03, 1e-13
"""How well a law of decay must fit, as a logarithm, and from where on nothing is expected any more."""

LONGER = 1.01
"""Half waves that get longer by more than that from one to the next may be the last ones of a wave that ends."""

ENOUGH = 1e-3
"""Columns are not looked at further when the error is below this part of the tolerance."""


def find_tail(line: Line, distance: float, size: float, oscillates: bool) -> Tail | None:
    """Return a tail at an end of a piece, None if none fits; the line counts the nodes spent.

    It begins at about a ``distance``, which is a fraction of the piece, or, the first time, before that: what is
    farther out is the more to search.

    ``size`` is that of the integral as far as it is known.
    """
    edges = _phases(line, distance) if oscillates else None
    if edges is not None:
        if not _goes_on(line, edges):
            return None
        first = min(max(round(float(edges[0] / (edges[1] - edges[0]))), 1), 60)
        return _sum(line, line.fraction(edges), LINEAR, LEVIN, size, first)
    doubling = None if oscillates else _doubling(line, (distance if line.again else 0.5) * line.span)
    tail = None if doubling is None else _sum(line, doubling, LOGARITHMIC, EPSILON, size, 0)
    return tail or sum_octaves(line, size, line.again)


def are_quiet(lines: list[Line], distances: list[float]) -> list[bool]:
    """Tell at which ends, of any number, :func:`find_tail` would find neither a wave nor terms that rounding hides.

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


def _sum(line: Line, fractions: Tensor, kind: int, method: int, size: float, first: int) -> Tail | None:
    """Integrate between descending fractions, and take the series to its limit."""
    if not bool((fractions.diff() < 0.0).all()):
        return None
    terms, errors = integrate_cells([line], fractions[:-1], fractions[1:], kind)
    if not bool((errors.isfinite() & (terms != 0.0)).all()):
        return None
    eps = noise(line.problem)
    best = (
        _best_levin(terms, errors, eps, first)
        if method == LEVIN
        else _best_epsilon(terms, errors, eps, line.problem.tolerance.rtol)
    )
    return make_tail(line, fractions, errors, (kind, method), best, size)


def _best_levin(terms: Tensor, errors: Tensor, eps: float, first: int) -> Best | None:
    """Return limit, error, and how many terms it takes of the best order."""
    limits, others = (
        [float(levin(terms[: k + 1], first + more)) for k in range(len(terms))] for more in (0.0, 0.75)
    )
    largest, best = float(terms.abs().max()), None
    for k in range(FEWEST, len(terms)):
        apart = max(abs(limits[k] - limits[k - 1]), abs(limits[k - 1] - limits[k - 2]), abs(limits[k] - others[k]))
        _, gain = find_gains(lambda t: levin(t, float(first)), terms[: k + 1])
        error = SAFETY * apart + float((gain * (errors[: k + 1] + eps * largest)).sum())
        if math.isfinite(error) and (best is None or error < best[1]):
            best = (limits[k], error, k + 1, first)
    return best


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


def _goes_on(line: Line, edges: Tensor, shifted: bool = False) -> bool:
    """Tell whether f, far beyond the cells, still is a wave like that on them: or there is another limit.

    It is largest in the middle of cells, unless its phase may be ``shifted``.
    """
    length = edges.diff()
    if not bool((length > 0.0).all()):
        return False
    if float(length[-1] / length[-2]) > LONGER:
        return False
    middle = 0.5 * (edges[1:] + edges[:-1])
    size = line(middle).abs().clamp_min(torch.finfo(torch.float64).tiny)
    if shifted:  # nor have the first cells been chosen for how it decays
        size = torch.maximum(size, line(edges[1:]).abs())[len(middle) // 2 :]
        middle = middle[len(middle) // 2 :]
    far = float(edges[-1] / edges[0])
    if far <= 1.0:
        return False
    shrinks = math.log(float(length[-1] / length[0])) / math.log(far)
    falls = _law(size, middle)
    if falls is None:
        return False
    return _goes_far(line, edges, shrinks, falls, float(size[-1]))


def _goes_far(line: Line, edges: Tensor, shrinks: float, falls: Callable[[float], float], last: float) -> bool:
    """Look at f far beyond the cells: waves are as large as a law says, and longer by a power of u."""
    length, eps = edges.diff(), line.problem.pieces.rounding.eps
    share = torch.arange(SPREAD, dtype=torch.float64, device="cpu") * 0.6180339887498949 % 1.0
    for times in FAR:
        u = float(edges[-1]) * times
        if not line.infinite and 1.0 / u < 64.0 * eps * abs(line.end):
            break
        y = line(u + float(length[-1]) * times**shrinks * THERE * share)
        if not bool(y.isfinite().all()):
            return False
        most, law, nothing = float(y.abs().max()), falls(u), NEGLIGIBLE * last
        if most <= nothing and law <= LIKE * nothing:
            break
        if not (law / LIKE <= most <= law * LIKE and _varies(y)):
            return False
    return True


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
    return _goes_on(line, line.u_at(fractions), shifted=True)


def _varies(y: Tensor) -> bool:
    """Tell whether values at random phases are those of a wave: about as often above 0 as below, or varied."""
    above, size = float((y > 0.0).double().mean()), y.abs()
    return 0.15 <= above <= 0.85 or (above in (0.0, 1.0) and float(size.min()) <= 0.5 * float(size.max()))


def _law(size: Tensor, u: Tensor) -> Callable[[float], float] | None:
    """Return how large a wave will be far out: like a power of u or an exponential, whichever fits; or None."""
    half, best = len(u) // 2, (FITS, None)
    for of in (math.log, float):
        first, middle, last = (of(float(u[i])) for i in (0, half, -1))
        rise = math.log(float(size[-1] / size[0])) / (last - first)
        off = math.log(float(size[half] / size[0])) - rise * (middle - first)
        if abs(off) <= best[0]:
            best = (abs(off), (of, rise, last))
    if best[1] is None:
        return None
    of, rise, last = best[1]
    return lambda at: float(size[-1]) * math.exp(min(rise * (of(at) - last), 700.0))


def stretch(line: Line, distance: float) -> tuple[float, float]:
    """Return from which u on, and how far, waves are looked for first."""
    begin = max(line.u_of(distance) / (1.0 if line.again else EARLIER), line.least)
    return begin, max(9.0 * begin, 1.0)


def spread(begin: float, length: float) -> Tensor:
    """Return the places of a stretch at which that is done."""
    return begin + length * torch.linspace(0.0, 1.0, SCAN, dtype=torch.float64, device="cpu")


def turns(y: Tensor) -> tuple[Tensor, Tensor]:
    """Tell, along the first dimension, between which the sign changes, and which, but for both ends, are least."""
    return (y[1:] > 0.0) != (y[:-1] > 0.0), (y[1:-1] < y[:-2]) & (y[1:-1] <= y[2:])


def _phases(line: Line, distance: float) -> Tensor | None:
    """Return the zeros of an oscillation towards the end, or if it has none its minima."""
    begin, length = stretch(line, distance)
    for _ in range(10):
        u = spread(begin, length)
        y, line.scanned = line(u) if line.scanned is None else line.scanned, None
        if not bool(y.isfinite().all()):
            return None
        changes, dips = (told.nonzero().squeeze(1) for told in turns(y))
        dips = dips + 1
        zeros = len(changes) >= len(dips)
        count = len(changes) if zeros else 2 * len(dips)
        if count > MANY:
            length /= FINER if 3 * count > SCAN else WIDER
        elif count == 0:
            return None
        elif count < FEW:
            length *= WIDER
        elif line.again and _is_coarse(line, u, y, zeros, count):
            length /= 2.0
        else:
            break
    else:
        return None
    if zeros:
        brackets = [(float(u[i]), float(u[i + 1])) for i in changes[:3].tolist()]
        function = line
    else:
        if len(dips) < 3:
            return None
        brackets = [(float(u[i - 1]), float(u[i + 1])) for i in dips[:3].tolist()]
        delta = 1e-3 * (brackets[1][0] - brackets[0][0])

        def function(u: Tensor) -> Tensor:
            both = line(torch.cat((u - delta, u + delta)))
            return both[len(u) :] - both[: len(u)]

    return _follow(function, brackets)


def _is_coarse(line: Line, u: Tensor, y: Tensor, zeros: bool, count: int) -> bool:
    """Tell whether there are more changes between the places than they show: of a fast wave they see any other."""
    between = line(0.5 * (u[1:] + u[:-1]))
    y = torch.stack((y[:-1], between), 1).flatten()
    changes, dips = turns(y)
    return int(changes.sum()) > count + 1 if zeros else 2 * int(dips.sum()) > count + 2


def _follow(function: Callable[[Tensor], Tensor], brackets: list[tuple[float, float]]) -> Tensor | None:
    """Return the zeros in three brackets and those that follow, each predicted from the ones before."""
    found = [_refine(function, low, high) for low, high in brackets]
    while len(found) < TERMS + 1:
        a, b, c = found[-3:]
        if not a < b < c:
            return None
        step = (c - b) * min(max((c - b) / (b - a), 0.5), 2.0)
        u = c + step * torch.tensor([0.6, 0.8, 0.95, 1.05, 1.2, 1.4], dtype=torch.float64, device="cpu")
        y = function(u)
        change = turns(y)[0].nonzero().squeeze(1)
        if len(change) != 1 or not bool(y.isfinite().all()):
            return None
        i = int(change[0])
        found.append(_refine(function, float(u[i]), float(u[i + 1]), float(y[i]), float(y[i + 1])))
    return torch.tensor(found, dtype=torch.float64, device="cpu")


def _refine(
    function: Callable[[Tensor], Tensor],
    low: float,
    high: float,
    at_low: float = math.nan,
    at_high: float = math.nan,
) -> float:
    """Return the zero between two places by the Illinois method."""

    def at(u: float) -> float:
        return float(function(torch.tensor([u], dtype=torch.float64, device="cpu"))[0])

    at_low = at(low) if math.isnan(at_low) else at_low
    at_high = at(high) if math.isnan(at_high) else at_high
    side, place, width = 0, low, high - low
    for _ in range(REFINE):
        if at_high == at_low:
            break
        before, place = place, (low * at_high - high * at_low) / (at_high - at_low)
        if abs(place - before) < SETTLED * width:
            break
        value = at(place)
        if value == 0.0:
            break
        if (value > 0.0) == (at_high > 0.0):
            high, at_high = place, value
            at_low, side = (0.5 * at_low if side == 1 else at_low), 1
        else:
            low, at_low = place, value
            at_high, side = (0.5 * at_high if side == -1 else at_high), -1
    return place
