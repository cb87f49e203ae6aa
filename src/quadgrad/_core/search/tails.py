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
from quadgrad._core.estimates.null_rules import FLOOR, PLACE, null_rule_error, weigh
from quadgrad._core.estimates.series import EPSILON, LEVIN, encode, levin
from quadgrad._core.estimates.singular_ends import NEAREST
from quadgrad._core.mesh.interval import LINEAR, LOGARITHMIC, lay_out
from quadgrad._core.problem import Problem
from quadgrad._core.search.task import Tail, noise

__all__ = ["find_tail"]

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

SAFETY = 10.0
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

GOOD = 0.1
"""A tail is taken if its error is below this part of the tolerance of what is known."""

BLOCK, BLOCKS, BEGINS = 18, 3, (0, 4, 8)
"""Octaves towards an end that rounding hides are looked at in blocks, from a quarter of the piece on until it does;
they are summed from the first on, or from later ones."""

FEW_OCTAVES = (8, BLOCK - 1)
"""Those that are looked at before all are."""

HIDDEN, GROWS = 0.3, 30.0
"""The error of a term, as a part of it, from which on it is hidden; and what it may be at most of that of the two
before: rounding grows by 2 to 16 from octave to octave, what is rough or cuts f off shows all at once."""

KNOWN, LEAST = 1e-5, 0.015
"""Terms known to that part tell with what power of the distance they fall, which is this at least: a sum of terms
that do not fall is none, nor is one that only a logarithm makes finite."""

HALF, BEST = 0.45, 1e-3
"""As :data:`GOOD`, of what rounding hides; what is worse than that at last, as a part of the whole, is not kept."""

SMOOTH, EVEN = 1e-12, 0.01
"""Such a part has any term; and so far terms may be off their law beyond their errors, as a logarithm."""

COLUMNS, AGREE = 8, 3
"""Columns of the epsilon table that are looked at; up to which one all later entries must agree with the best."""


class _Line:
    """f towards one end of a piece, as a function of u that grows without bound on the way."""

    def __init__(self, problem: Problem, row: int, upper: bool) -> None:
        lower, high = (float(end) for end in problem.pieces.ends(torch.tensor([row])))
        self.problem, self.row, self.upper, self.spent = problem, row, upper, 0
        self.end = high if upper else lower
        self.other = lower if upper else high
        self.sign = 1.0 if upper else -1.0
        self.infinite = math.isinf(self.end)
        self.double = self.infinite and math.isinf(self.other)
        self.span = high - lower
        self.owner = torch.tensor([row // problem.pieces.count])
        # No farther from the end than that, lest nothing is left for the rest.
        self.least = 0.5 if self.infinite else 1.0 / (0.75 * self.span)

    def x(self, u: Tensor) -> Tensor:
        if not self.infinite:
            return self.end - self.sign / u
        return (0.0 if self.double else self.other) + self.sign * u

    def __call__(self, u: Tensor) -> Tensor:
        self.spent += len(u)
        y = self.problem.integrand(self.x(u)[:, None], self.owner).detach()
        return y.double().reshape(-1)

    def u_of(self, distance: float) -> float:
        """Return u at a fraction of the piece, measured from the end."""
        if not self.infinite:
            return 1.0 / (distance * self.span)
        return 1.0 / distance - distance / (1.0 - distance) if self.double else (1.0 - distance) / distance

    def fraction(self, u: Tensor) -> Tensor:
        """Return the fraction of the piece at u, measured from the end, positive."""
        if not self.infinite:
            return 1.0 / (u * self.span)
        if self.double:  # u = p / q - q / p, p = 1 - q: q = 2 / (2 + u + sqrt(4 + u^2))
            return 2.0 / (2.0 + u + torch.sqrt(4.0 + u * u))
        return 1.0 / (1.0 + u)


def find_tail(
    problem: Problem, row: int, upper: bool, distance: float, size: float, again: bool, oscillates: bool
) -> tuple[Tail | None, int]:
    """Return a tail at an end of a piece, None if none fits, and the nodes spent.

    It begins at about a ``distance``, which is a fraction of the piece, or, the first time, before that: what is
    farther out is the more to search.

    ``size`` is that of the integral as far as it is known.
    """
    line = _Line(problem, row, upper)
    return _try(line, distance, size, again, oscillates), line.spent


def _try(line: _Line, distance: float, size: float, again: bool, oscillates: bool) -> Tail | None:
    edges = _phases(line, line.u_of(distance) / (1.0 if again else EARLIER)) if oscillates else None
    if edges is not None:
        if not _goes_on(line, edges):
            return None
        first = min(max(round(float(edges[0] / (edges[1] - edges[0]))), 1), 60)
        return _sum(line, line.fraction(edges), LINEAR, LEVIN, size, first)
    doubling = None if oscillates else _doubling(line, (distance if again else 0.5) * line.span)
    tail = None if doubling is None else _sum(line, doubling, LOGARITHMIC, EPSILON, size, 0)
    return tail or _fading(line, size, again)


def _doubling(line: _Line, distance: float) -> Tensor | None:
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
    v = (v0 + shift) * torch.exp2(torch.arange(doublings + 1, dtype=torch.float64)) - shift
    return torch.exp(-v) / line.span


def _origin(line: _Line, deepest: float) -> float:
    """Return c if f times the distance falls like a power of v + c, v being the distance's logarithm.

    Cells that double in v + c have integrals in an exact geometric sequence then.
    """
    v = (
        torch.tensor([0.3, 0.6], dtype=torch.float64)[:, None]
        * deepest
        * torch.tensor([0.99, 1.0, 1.01], dtype=torch.float64)
    )
    f = line(torch.exp(v.flatten())).reshape(2, 3)  # u is one over the distance
    g = (f.abs().log() - v).clamp_min(-1e300)
    slope = (g[:, 2] - g[:, 0]) / (v[:, 2] - v[:, 0])
    h = -1.0 / slope
    shift = float(h[0] * (v[1, 1] - v[0, 1]) / (h[1] - h[0]) - v[0, 1])
    return shift if math.isfinite(shift) else 0.0


def _sum(line: _Line, fractions: Tensor, kind: int, method: int, size: float, first: int) -> Tail | None:
    """Integrate between descending fractions, and take the series to its limit."""
    if not bool((fractions.diff() < 0.0).all()):
        return None
    terms, errors = _integrate(line, fractions[:-1], fractions[1:], kind)
    if not bool((errors.isfinite() & (terms != 0.0)).all()):
        return None
    eps = noise(line.problem)
    best = (
        _best_levin(terms, errors, eps, first)
        if method == LEVIN
        else _best_epsilon(terms, errors, eps, line.problem.tolerance.rtol)
    )
    return _tail(line, fractions, errors, (kind, method), best, size)


def _cells(line: _Line, outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    """Return start and stop of cells between fractions measured from the end."""
    return (-outer, -inner) if line.upper else (inner, outer)


def _integrate(line: _Line, outer: Tensor, inner: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    """Integrate between fractions: values and errors, which are infinite where f is not finite."""
    problem, n = line.problem, len(outer)
    row = torch.full((n,), line.row)
    rule = problem.rule.tensors(torch.float64, torch.device("cpu"))
    kinds = None if kind == LINEAR else torch.full((n,), kind, dtype=torch.int8)
    layout = lay_out(problem.pieces, row, *_cells(line, outer, inner), kinds)
    x, factor = layout.nodes(rule.nodes)
    y = problem.integrand(x, line.owner.expand(n)).detach().double().reshape(x.shape)
    line.spent += x.numel()
    eps, values = noise(problem), y * factor
    sums = weigh(rule, values, values.abs())
    # Rounding of x shakes f, and that of a phase computed from it, as much again.
    shaken = sums.variation * (layout.reach / layout.scale * (PLACE * problem.pieces.rounding.eps)).clamp_max(1.0)
    errors, *_ = null_rule_error(rule, sums.nulls, sums.size.add(shaken, alpha=4.0 / eps), eps)
    errors = torch.maximum(errors + shaken, FLOOR * eps * sums.size)
    return sums.value, errors.masked_fill(~y.isfinite().all(0), torch.inf)


Best = tuple[float, float, int, int]
"""Limit, error, how many terms it takes, and the column, or the number of the first term."""


def _tail(
    line: _Line, fractions: Tensor, errors: Tensor, how: tuple[int, int], best: Best | None, size: float,
    part: float | None = None,
) -> Tail | None:  # fmt: skip
    """Return a tail of the terms between fractions, if its error is a small enough ``part`` of the whole."""
    if best is None:
        return None
    (value, error, used, column), (kind, method), problem = best, how, line.problem
    part = GOOD * problem.tolerance.rtol if part is None else part
    if not error <= max(GOOD * problem.tolerance.atol, part * max(size, abs(value))):
        return None
    start, stop = _cells(line, fractions[:used], fractions[1 : used + 1])
    code = encode(torch.arange(used), method, column, line.upper)
    return Tail(
        owner=line.row // problem.pieces.count, piece=line.row % problem.pieces.count, upper=line.upper,
        start=start, stop=stop, kind=kind, code=code, errors=errors[:used], value=value, error=error,
        edge=float(fractions[0]), nfev=line.spent,
    )  # fmt: skip


def _fading(line: _Line, size: float, again: bool) -> Tail | None:
    """Sum up octave by octave what rounding hides the closer to the end the more: ``x^.2 / (e^x - 1)``.

    There cells with logarithmic nodes, whose terms are extrapolated from up to twelve octaves, get worse as they
    close in on the end. Which terms are good enough, and in which column, their errors tell. If all that was tried
    ``again`` is not good enough, rounding is to blame, and the best is kept.
    """
    edges = torch.exp2(-2.0 - torch.arange(BLOCK * BLOCKS + 1.0, dtype=torch.float64))
    if not _grows(line, edges):
        return None
    terms = errors = edges[:0]
    hidden: int | None = None
    while hidden is None and len(terms) < BLOCK * BLOCKS:
        low = len(terms)
        more = _integrate(line, edges[low : low + BLOCK], edges[low + 1 : low + BLOCK + 1], LOGARITHMIC)
        terms, errors = torch.cat((terms, more[0])), torch.cat((errors, more[1]))
        hidden = _hidden(terms, errors)
    if hidden is None or not _falls(terms[:hidden].abs(), errors[:hidden], -edges[:hidden].log()):
        return None
    rtol, best = line.problem.tolerance.rtol, None
    for begin in BEGINS:
        part = slice(begin, hidden)
        limit = _best_truncated(terms[part], errors[part], noise(line.problem))
        most = max(BEST, rtol) if again else HALF * rtol
        tail = _tail(line, edges[begin:], errors[part], (LOGARITHMIC, EPSILON), limit, size, most)
        if tail is not None and (best is None or tail.error < best.error):
            best = tail
        if best is not None and best.error <= HALF * rtol * max(size, abs(best.value)):
            break
    return best


def _grows(line: _Line, edges: Tensor) -> bool:
    """Tell from a few terms whether they fall like a power below 1, and rounding grows: most often they do not.

    Where an end is not at 0 rounding of x itself grows, and cells with logarithmic nodes know by how much.
    """
    if not line.infinite and line.end != 0.0:
        return False
    few = torch.tensor(FEW_OCTAVES)
    terms, errors = _integrate(line, edges[few], edges[few + 1], LOGARITHMIC)
    part, ratio = errors / terms.abs(), terms[1:] / terms[:-1]
    falls = (ratio < 1.0) & (ratio > torch.exp2(-few.diff().double()))
    return bool(falls.all() & (part < HIDDEN).all() & (part[1] > SMOOTH) & (part[1] > FEW_OCTAVES[0] * part[0]))


def _hidden(terms: Tensor, errors: Tensor) -> int | None:
    """Return the first term that rounding hides; None if none is, or if not rounding has hidden it."""
    part = (errors / terms.abs()).nan_to_num(torch.inf, torch.inf)
    # Where all values are the same multiple of a spacing of numbers, they are as smooth as they are wrong.
    steps = terms.abs().log().diff().nan_to_num(torch.inf, torch.inf, torch.inf)
    leaps = torch.nn.functional.pad((steps[1:] - steps[:-1]).abs() > HIDDEN, (2, 0))
    part = torch.where(leaps, torch.inf, part)
    index = (part > HIDDEN).nonzero()[:, 0]
    if not len(index) or (first := int(index[0])) <= FEWEST:
        return None
    before = torch.maximum(part[:first], part[:first].roll(1))[1:].clamp_min(SMOOTH)
    return first if bool((part[2 : first + 1].clamp_max(HIDDEN) <= GROWS * before).all()) else None


def _falls(terms: Tensor, errors: Tensor, v: Tensor) -> bool:
    """Tell whether terms fall like a power of the distance, of which v is minus the logarithm."""
    good = int((errors < KNOWN * terms).cumprod(0).sum())
    if good <= FEWEST:
        return False
    # c - a v + b log v, through three terms
    # c - a v + b log v, through three terms: all that are not hidden must follow, or there is a second scale.
    known = torch.tensor((good // 3, 2 * good // 3, good - 1))
    law = torch.stack((torch.ones_like(v), -v, v.log()), 1)
    numbers = torch.linalg.solve(law[known], terms[known].log())
    off = (terms.log() - law @ numbers).abs()
    if bool((off > EVEN + errors / terms)[good // 3 :].any()):
        return False
    return float(numbers[1]) > LEAST and bool((terms[known].diff() < 0.0).all())


def _gain(terms: Tensor, function: object) -> Tensor:
    """Return how much each term's error counts in a limit."""
    _, pull, *_ = torch.func.vjp(function, terms)  # pyright: ignore
    return pull(terms.new_ones(()))[0].abs()


def _best_levin(terms: Tensor, errors: Tensor, eps: float, first: int) -> Best | None:
    """Return limit, error, and how many terms it takes of the best order."""
    limits, others = (
        [float(levin(terms[: k + 1], first + more)) for k in range(len(terms))] for more in (0.0, 0.75)
    )
    largest, best = float(terms.abs().max()), None
    for k in range(FEWEST, len(terms)):
        apart = max(abs(limits[k] - limits[k - 1]), abs(limits[k - 1] - limits[k - 2]), abs(limits[k] - others[k]))
        gain = _gain(terms[: k + 1], lambda t: levin(t, float(first)))
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
        gain = _gain(terms, lambda t, k=k: extrapolate(t, k)[k][-1])
        error = SAFETY * apart + float((gain * (errors + eps * terms.abs().max())).sum())
        if math.isfinite(error) and (best is None or error < best[1]):
            best = (float(entries[-1]), error, len(terms), k)
        # In higher columns rounding is amplified, in the gradient above all.
        if best is not None and best[1] <= ENOUGH * rtol * abs(best[0]):
            break
    return best


def _best_truncated(terms: Tensor, errors: Tensor, eps: float) -> Best | None:
    """Return limit, error, terms and column of the entry of an epsilon table that is best.

    Later ones in low columns are less exact, but not wrong: if one is elsewhere, terms have left their law.
    """
    columns = min(COLUMNS, (len(terms) - 1) // 2)
    if len(terms) <= FEWEST:
        return None
    entries = lambda t: [torch.stack(column) for column in extrapolate(t, columns)[1:]]
    table = [torch.nn.functional.pad(terms.cumsum(0), (1, 0)), *entries(terms)]
    pulls = torch.func.jacrev(lambda t: torch.cat(entries(t)))(terms)
    shaken = (pulls.abs() @ (errors + eps * terms.abs().max())).split([len(column) for column in table[1:]])
    best: Best | None = None
    doubts: list[Tensor] = []
    for k, (column, gain) in enumerate(zip(table[1:], shaken, strict=True), 1):
        # Two of three neighbours, or one of the column before, may agree by accident.
        apart = column.diff().abs()
        apart = torch.maximum(apart[1:], apart[:-1])
        apart = torch.maximum(apart, (column[2:] - table[k - 1][4:]).abs())
        doubts.append((SAFETY * apart + gain[2:]).nan_to_num(torch.inf, torch.inf))
        if len(apart) and (best is None or float(doubts[-1].min()) < best[1]):
            at = int(doubts[-1].argmin())
            best = (float(column[at + 2]), float(doubts[-1][at]), 2 * k + at + 2, k)
    if best is None:
        return None
    for k, (column, doubt) in enumerate(zip(table[1 : AGREE + 1], doubts, strict=False), 1):
        later = slice(max(best[2] - 2 * k - 2, 0), None)
        if bool(((column[2:] - best[0]).abs() > doubt + best[1])[later].any()):
            return None
    return best


def _goes_on(line: _Line, edges: Tensor) -> bool:
    """Tell whether f, far beyond the cells, still is a wave like that on them: or there is another limit."""
    length, eps = edges.diff(), line.problem.pieces.rounding.eps
    if not bool((length > 0.0).all()):
        return False
    if float(length[-1] / length[-2]) > LONGER:
        return False
    middle = 0.5 * (edges[1:] + edges[:-1])
    size = line(middle).abs().clamp_min(torch.finfo(torch.float64).tiny)
    far = float(edges[-1] / edges[0])
    if far <= 1.0:
        return False
    shrinks = math.log(float(length[-1] / length[0])) / math.log(far)
    falls = _law(size, middle)
    if falls is None:
        return False
    share = torch.arange(SPREAD, dtype=torch.float64) * 0.6180339887498949 % 1.0
    for times in FAR:
        u = float(edges[-1]) * times
        if not line.infinite and 1.0 / u < 64.0 * eps * abs(line.end):
            break
        y = line(u + float(length[-1]) * times**shrinks * THERE * share)
        if not bool(y.isfinite().all()):
            return False
        most, law, nothing = float(y.abs().max()), falls(u), NEGLIGIBLE * float(size[-1])
        if most <= nothing and law <= LIKE * nothing:
            break
        if not (law / LIKE <= most <= law * LIKE and _turns(y)):
            return False
    return True


def _turns(y: Tensor) -> bool:
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


def _phases(line: _Line, begin: float) -> Tensor | None:
    """Return the zeros of an oscillation beyond u = ``begin``, or if it has none its minima."""
    begin = max(begin, line.least)
    length = max(9.0 * begin, 1.0)
    for _ in range(10):
        u = begin + length * torch.linspace(0.0, 1.0, SCAN, dtype=torch.float64)
        y = line(u)
        if not bool(y.isfinite().all()):
            return None
        changes = ((y[1:] > 0.0) != (y[:-1] > 0.0)).nonzero().squeeze(1)
        dips = ((y[1:-1] < y[:-2]) & (y[1:-1] <= y[2:])).nonzero().squeeze(1) + 1
        zeros = len(changes) >= len(dips)
        count = len(changes) if zeros else 2 * len(dips)
        if count > MANY:
            length /= FINER if 3 * count > SCAN else WIDER
        elif count == 0:
            return None
        elif count < FEW:
            length *= WIDER
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


def _follow(function: Callable[[Tensor], Tensor], brackets: list[tuple[float, float]]) -> Tensor | None:
    """Return the zeros in three brackets and those that follow, each predicted from the ones before."""
    found = [_refine(function, low, high) for low, high in brackets]
    while len(found) < TERMS + 1:
        a, b, c = found[-3:]
        if not a < b < c:
            return None
        step = (c - b) * min(max((c - b) / (b - a), 0.5), 2.0)
        u = c + step * torch.tensor([0.6, 0.8, 0.95, 1.05, 1.2, 1.4], dtype=torch.float64)
        y = function(u)
        change = ((y[1:] > 0.0) != (y[:-1] > 0.0)).nonzero().squeeze(1)
        if len(change) != 1 or not bool(y.isfinite().all()):
            return None
        i = int(change[0])
        found.append(_refine(function, float(u[i]), float(u[i + 1]), float(y[i]), float(y[i + 1])))
    return torch.tensor(found, dtype=torch.float64)


def _refine(
    function: Callable[[Tensor], Tensor],
    low: float,
    high: float,
    at_low: float = math.nan,
    at_high: float = math.nan,
) -> float:
    """Return the zero between two places by the Illinois method."""

    def at(u: float) -> float:
        return float(function(torch.tensor([u], dtype=torch.float64))[0])

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
