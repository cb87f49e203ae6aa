"""Ends that rounding hides, the closer to them the more: octave by octave, as far as f can be seen.

There cells with logarithmic nodes get worse as they close in. See ADR 58.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import extrapolate
from quadgrad._core.estimates.null_rules import SAFETY
from quadgrad._core.estimates.series import EPSILON
from quadgrad._core.mesh.interval import LOGARITHMIC
from quadgrad._core.search.ends.towards import Best, Line, find_gains, integrate_cells, make_tail
from quadgrad._core.search.task import Tail, noise

__all__ = ["are_hidden", "sum_octaves"]

FEWEST = 6
"""So many terms before rounding hides them are too few."""

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
"""As :data:`~quadgrad._core.search.ends.towards.GOOD`, of what rounding hides; what is worse at last, as a part
of the whole, is not kept."""

SMOOTH, EVEN = 1e-12, 0.01
"""Such a part has any term; and so far terms may be off their law beyond their errors, as a logarithm."""

COLUMNS, AGREE = 8, 3
"""Columns of the epsilon table that are looked at; up to which one all later entries must agree with the best."""


def sum_octaves(line: Line, size: float, again: bool) -> Tail | None:
    """Sum up octave by octave what rounding hides the closer to the end the more: ``x^.2 / (e^x - 1)``.

    There cells with logarithmic nodes, whose terms are extrapolated from up to twelve octaves, get worse as they
    close in on the end. Which terms are good enough, and in which column, their errors tell. If all that was tried
    ``again`` is not good enough, rounding is to blame, and the best is kept.
    """
    edges = torch.exp2(-2.0 - torch.arange(BLOCK * BLOCKS + 1.0, dtype=torch.float64, device="cpu"))
    if not are_hidden([line])[0]:
        return None
    terms = errors = edges[:0]
    hidden: int | None = None
    while hidden is None and len(terms) < BLOCK * BLOCKS:
        low = len(terms)
        more = integrate_cells([line], edges[low : low + BLOCK], edges[low + 1 : low + BLOCK + 1], LOGARITHMIC)
        terms, errors = torch.cat((terms, more[0])), torch.cat((errors, more[1]))
        hidden = _hidden(terms, errors)
    if hidden is None or not _falls(terms[:hidden].abs(), errors[:hidden], -edges[:hidden].log()):
        return None
    rtol, best = line.problem.tolerance.rtol, None
    for begin in BEGINS:
        part = slice(begin, hidden)
        limit = _best_truncated(terms[part], errors[part], noise(line.problem))
        most = max(BEST, rtol) if again else HALF * rtol
        tail = make_tail(line, edges[begin:], errors[part], (LOGARITHMIC, EPSILON), limit, size, most)
        if tail is not None and (best is None or tail.error < best.error):
            best = tail
        if best is not None and best.error <= HALF * rtol * max(size, abs(best.value)):
            break
    return best


def are_hidden(lines: list[Line]) -> list[bool]:
    """Tell from a few terms whether they fall like a power below 1, and rounding grows: most often they do not."""
    asked = [line for line in lines if line.hides is None]
    if not asked:
        return [line.hides is True for line in lines]
    few = torch.tensor(FEW_OCTAVES, dtype=torch.float64, device="cpu")
    sums = integrate_cells(asked, torch.exp2(-2.0 - few), torch.exp2(-3.0 - few), LOGARITHMIC)
    terms, errors = (t.reshape(-1, len(few)) for t in sums)
    part, ratio = errors / terms.abs(), terms[:, 1:] / terms[:, :-1]
    falls = (ratio < 1.0) & (ratio > torch.exp2(-few.diff()))
    hides = (
        falls.all(1) & (part < HIDDEN).all(1) & (part[:, 1] > SMOOTH) & (part[:, 1] > FEW_OCTAVES[0] * part[:, 0])
    )
    for line, told in zip(asked, hides.tolist(), strict=True):
        line.hides = bool(told)
    return [line.hides is True for line in lines]


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
    # c - a v + b log v, through three terms: all that are not hidden must follow, or there is a second scale.
    known = torch.tensor((good // 3, 2 * good // 3, good - 1), device="cpu")
    law = torch.stack((torch.ones_like(v), -v, v.log()), 1)
    numbers = torch.linalg.solve(law[known], terms[known].log())
    off = (terms.log() - law @ numbers).abs()
    if bool((off > EVEN + errors / terms)[good // 3 :].any()):
        return False
    return float(numbers[1]) > LEAST and bool((terms[known].diff() < 0.0).all())


def _best_truncated(terms: Tensor, errors: Tensor, eps: float) -> Best | None:
    """Return limit, error, terms and column of the entry of an epsilon table that is best.

    Later ones in low columns are less exact, but not wrong: if one is elsewhere, terms have left their law.
    """
    columns = min(COLUMNS, (len(terms) - 1) // 2)
    if len(terms) <= FEWEST:
        return None
    entries = lambda t: [torch.stack(column) for column in extrapolate(t, columns)[1:]]
    table = [torch.nn.functional.pad(terms.cumsum(0), (1, 0)), *entries(terms)]
    lengths = [len(column) for column in table[1:]]
    # As many copies of the terms as there are entries, and of each copy one: all derivatives at once.
    copies = terms[:, None].expand(-1, sum(lengths))
    _, gains = find_gains(lambda t: torch.cat(entries(t)).diagonal(), copies)
    shaken = ((errors + eps * terms.abs().max()) @ gains).split(lengths)
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
