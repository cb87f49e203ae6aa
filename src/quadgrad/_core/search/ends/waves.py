"""Waves towards ends: where their half waves end, whether they go on, and what they add up to.

All lines at once: some hundred calls of f that wait for each other take a batch no longer than one integral.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import SAFETY
from quadgrad._core.estimates.series import LEVIN, levin, levin_orders
from quadgrad._core.mesh.interval import LINEAR
from quadgrad._core.search.ends.towards import Line, integrate_cells, make_tail
from quadgrad._core.search.task import Tail, call_places, noise

__all__ = ["NEGLIGIBLE", "SCAN", "find_waves", "go_on", "spread", "stretch", "turns"]

TERMS = 20
"""Terms of an oscillation that are computed; Levin's transform of 14 has ten digits."""

FEWEST = 6
"""The lowest order that is believed."""

ALIKE = 1.1
"""Orders whose errors are within this factor are as good as each other."""

SCAN, SCANS = 64, 10
"""Places at which the first zeros are looked for, and how often."""

FEW, MANY = 6, 20
"""Changes of sign among them: with fewer the stretch is enlarged, with more parted."""

WIDER, FINER = 3.0, 8.0
"""By how much; by more where most neighbours differ."""

SCALES, COARSER, HALVES = 8, 4.0, 12.0
"""In so many stretches, each so many times shorter, as many places tell how long waves are, of which places of one
stretch may see any other one; and on how many half waves the first zeros are looked for then."""

REFINE, SETTLED = 20, 1e-12
"""Steps towards a zero at most, and how little it moves in the last one, as a part of its bracket."""

EARLIER = 8.0
"""By how much, as a part of the variable that grows towards the end."""

AHEAD = (0.6, 0.8, 0.95, 1.05, 1.2, 1.4)
"""Where the next zero is looked for, in half waves as they are expected."""

FAR, SPREAD, THERE = (2.0, 8.0, 64.0, 1e3, 1e5, 1e7), 24, 12.0
"""So many times farther out f is called at so many places on so many half waves: it must go on as it began."""

LIKE = 30.0
"""By what factor it may be larger or smaller there than it is expected to be."""

FITS, NEGLIGIBLE = 0.03, 1e-13
"""How well a law of decay must fit, as a logarithm, and from where on nothing is expected any more."""

LONGER = 1.01
"""Half waves that get longer by more than that from one to the next may be the last ones of a wave that ends."""


class _Lines:
    """Lines towards ends, of one problem, and where the one searched for is a zero of f, or else of its slope.

    ``delta`` is half the distance over which that is taken. Places u are ``(m, k)``, of k lines ``on``.
    """

    def __init__(self, lines: list[Line]) -> None:
        self.lines, self.problem, self.device = lines, lines[0].problem, lines[0].device
        numbers = [(line.start, line.sign, float(line.infinite)) for line in lines]
        self.start, self.sign, self.infinite = torch.tensor(numbers, dtype=torch.float64, device="cpu").T
        self.owner = torch.cat([line.owner for line in lines])
        self.delta = torch.zeros_like(self.sign)

    def __call__(self, u: Tensor, on: Tensor) -> Tensor:
        """Return f."""
        for i in on.tolist():
            self.lines[i].spent += len(u)
        x = self.start[on] + self.sign[on] * torch.where(self.infinite[on] > 0.0, u, -1.0 / u)
        owner = self.owner[on.to(self.device)]
        return call_places(self.problem, owner, x.to(self.device))[..., 0].cpu()

    def turning(self, u: Tensor, on: Tensor) -> Tensor:
        """Return what is 0 where half waves end."""
        delta = self.delta[on]
        y, flat = self(u + delta, on), (delta > 0.0).nonzero()[:, 0]
        if len(flat):
            y[:, flat] -= self(u[:, flat] - delta[flat], on[flat])
        return y


def find_waves(
    lines: list[Line], distances: list[float], sizes: list[float]
) -> tuple[list[Tail | None], list[bool]]:
    """Return the tails of waves towards ends, None where none fits, and of which lines half waves were found.

    Where places are so far apart that they may see any other wave they are put closer together: towards infinity,
    where waves are as fast as they like; at ends of finite pieces bisection has seen how fast they are.
    """
    tails: list[Tail | None] = [None] * len(lines)
    found = [False] * len(lines)
    for shorten in (False, True):
        rest = [i for i, line in enumerate(lines) if not found[i] and (line.infinite or not shorten)]
        if rest:
            chosen = [lines[i] for i in rest], [distances[i] for i in rest], [sizes[i] for i in rest]
            some, turned = _find(*chosen, shorten)
            for i, tail, there in zip(rest, some, turned, strict=True):
                tails[i], found[i] = tail, there
    return tails, found


def _find(
    lines: list[Line], distances: list[float], sizes: list[float], shorten: bool
) -> tuple[list[Tail | None], list[bool]]:
    tails: list[Tail | None] = [None] * len(lines)
    them, found = _Lines(lines), [False] * len(lines)
    on, edges = _phases(them, distances, shorten)
    for i in on.tolist():
        found[i] = True
    if len(on):
        keep = go_on([lines[i] for i in on.tolist()], edges)
        on, edges = on[keep], edges[:, keep]
    if not len(on):
        return tails, found
    some = [lines[i] for i in on.tolist()]
    fractions = torch.stack([line.fraction(u) for line, u in zip(some, edges.unbind(1), strict=True)], 1)
    # Each by itself: products of matrices are rounded differently where they are larger.
    each = zip(some, fractions.unbind(1), strict=True)
    sums = [integrate_cells([line], here[:-1], here[1:], LINEAR) for line, here in each]
    terms, errors = (torch.stack(columns, 1) for columns in zip(*sums, strict=True))
    fits = (fractions.diff(dim=0) < 0.0).all(0) & errors.isfinite().all(0) & (terms != 0.0).all(0)
    first = (edges[0] / (edges[1] - edges[0])).round().clamp(1.0, 60.0)
    order, error = _best_order(terms, errors, noise(some[0].problem), first)
    for j, i in enumerate(on.tolist()):
        used, number = int(order[j]) + 1, int(first[j])
        if bool(fits[j] & error[j].isfinite()):
            # As replay sums it up.
            best = (float(levin(terms[:used, j], float(number))), float(error[j]), used, number)
            how = (LINEAR, LEVIN)
            tails[i] = make_tail(lines[i], fractions[:, j], errors[:, j], how, best, sizes[i])
    return tails, found


def _best_order(terms: Tensor, errors: Tensor, eps: float, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of Levin's transform that is best for each series of terms ``(n, k)``, and its error."""
    limits, gains = levin_orders(terms, first)
    others, _ = levin_orders(terms, first + 0.75)
    steps = limits.diff(dim=0).abs()
    apart = torch.stack((steps[1:], steps[:-1], (limits - others).abs()[2:])).amax(0)
    shaken = (gains * (errors + eps * terms.abs().amax(0))).cumsum(1)[:, -1]
    error = (SAFETY * apart + shaken[2:]).nan_to_num(torch.inf, torch.inf)[FEWEST - 2 :]
    # Of those as good the highest, which derivatives need.
    best = len(error) - 1 - (error <= ALIKE * error.amin(0)).flip(0).byte().argmax(0)
    return best + FEWEST, error.gather(0, best[None])[0]


def stretch(line: Line, distance: float) -> tuple[float, float]:
    """Return from which u on, and how far, waves are looked for first."""
    begin = max(line.u_of(distance) / (1.0 if line.again else EARLIER), line.least)
    return begin, max(9.0 * begin, 1.0)


def spread(begin: Tensor | float, length: Tensor | float) -> Tensor:
    """Return the places of a stretch at which that is done, along the first dimension."""
    unit = torch.linspace(0.0, 1.0, SCAN, dtype=torch.float64, device="cpu")
    return begin + length * (unit[:, None] if isinstance(begin, Tensor) else unit)


def turns(y: Tensor) -> tuple[Tensor, Tensor]:
    """Tell, along the first dimension, between which the sign changes, and which, but for both ends, are least."""
    return (y[1:] > 0.0) != (y[:-1] > 0.0), (y[1:-1] < y[:-2]) & (y[1:-1] <= y[2:])


def _phases(them: _Lines, distances: list[float], shorten: bool) -> tuple[Tensor, Tensor]:
    """Return which lines have an oscillation, and its zeros ``(TERMS + 1, k)``, or if it has none its minima."""
    on, low, high, dips = _first_turns(them, distances, shorten)
    them.delta[on] = torch.where(dips, 1e-3 * (low[1] - low[0]), 0.0)
    first = _refine(them, on.repeat(3), low.flatten(), high.flatten()).view(3, -1)
    ahead = torch.tensor(AHEAD, dtype=torch.float64, device="cpu")[:, None]
    # To tell where the next one is about, they need not be known well: so all are refined at once.
    about, brackets = first, first.new_zeros(4, 0, len(on))
    while len(about) < TERMS + 1 and len(on):
        a, b, c = about[-3:]
        u = c + (c - b) * ((c - b) / (b - a)).clamp(0.5, 2.0) * ahead
        y = them.turning(u, on)
        change, _ = turns(y)
        i = change.byte().argmax(0)
        bracket = torch.stack([t.gather(0, j[None]) for t in (u, y) for j in (i, i + 1)])
        low, high, at_low, at_high = bracket[:, 0]
        about = torch.cat((about, (low + (high - low) * at_low / (at_low - at_high))[None]))
        brackets = torch.cat((brackets, bracket), 1)
        good = (a < b) & (b < c) & (change.sum(0) == 1) & y.isfinite().all(0)
        if not bool(good.all()):
            on, first, about, brackets = on[good], first[:, good], about[:, good], brackets[..., good]
    if not len(on):
        return on, about
    later = _refine(them, on.repeat(TERMS - 2), *brackets.flatten(1)).view(TERMS - 2, -1)
    return on, torch.cat((first, later))


def _first_turns(them: _Lines, distances: list[float], shorten: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return which lines have turns, brackets of the first three ``(3, k)``, and whether these are minima."""
    starts = [stretch(line, distance) for line, distance in zip(them.lines, distances, strict=True)]
    begin, length = torch.tensor(starts, dtype=torch.float64, device="cpu").T.clone()
    on, out = torch.arange(len(begin), device="cpu"), list[tuple[Tensor, ...]]()
    if shorten:
        length = _shorten(them, begin, length)
    for _ in range(SCANS):
        u = spread(begin[on], length[on])
        known = [them.lines[i].scanned for i in on.tolist()]
        y = torch.stack([k for k in known if k is not None], 1) if None not in known else them(u, on)
        for i in on.tolist():
            them.lines[i].scanned = None  # which was f on the first stretch
        changes, dips = turns(y)
        zeros = changes.sum(0) >= dips.sum(0)
        count = torch.where(zeros, changes.sum(0), 2 * dips.sum(0))
        there = (count > 0) & y.isfinite().all(0)
        many, few = there & (count > MANY), there & (count < FEW)
        done = (there & ~many & ~few).nonzero()[:, 0]
        if len(done):
            turn = torch.where(zeros, changes, torch.nn.functional.pad(dips, (0, 0, 0, 1)))[:, done]
            nth = turn.cumsum(0)
            at = torch.stack([((nth == k) & turn).double().argmax(0) for k in (1, 2, 3)])
            dip = ~zeros[done]
            out.append((on[done], *(u[:, done].gather(0, t) for t in (at, at + 1 + dip.long())), dip))
        length[on] *= torch.where(many, torch.where(3 * count > SCAN, 1.0 / FINER, 1.0 / WIDER), WIDER)
        on = on[many | few]
        if not len(on):
            break
    if not out:
        return on[:0], begin.new_zeros(3, 0), begin.new_zeros(3, 0), torch.zeros(0, dtype=torch.bool, device="cpu")
    on, low, high, dip = (torch.cat(parts, -1) for parts in zip(*out, strict=True))
    return on, low, high, dip


def _shorten(them: _Lines, begin: Tensor, length: Tensor) -> Tensor:
    """Return how long a stretch of some half waves is: in the shortest one that shows any they are resolved."""
    scale = length * COARSER ** -torch.arange(SCALES, dtype=torch.float64, device="cpu")[:, None]
    u = begin + scale * torch.linspace(0.0, 1.0, SCALES, dtype=torch.float64, device="cpu")[:, None, None]
    changes, dips = turns(them(u.flatten(0, 1), torch.arange(len(begin), device="cpu")).view(u.shape))
    count = torch.maximum(changes.sum(0), 2 * dips.sum(0))
    place = torch.arange(SCALES, device="cpu")[:, None]
    shortest = ((count >= 2) * place).argmax(0, keepdim=True)
    count, scale = count.gather(0, shortest)[0], scale.gather(0, shortest)[0]
    return torch.where(count >= 2, HALVES * scale / count.clamp_min(1), length)


def _refine(
    them: _Lines, on: Tensor, low: Tensor, high: Tensor, at_low: Tensor | None = None, at_high: Tensor | None = None
) -> Tensor:
    """Return the zeros between places ``(n,)`` of lines by the Illinois method."""
    at = lambda u, index: them.turning(u[None], on[index])[0] if len(index) else u
    here = torch.arange(len(on), device="cpu")
    at_low = at(low, here) if at_low is None else at_low.clone()
    at_high = at(high, here) if at_high is None else at_high.clone()
    low, high, place, width = low.clone(), high.clone(), low.clone(), high - low
    side = torch.zeros_like(here)
    for _ in range(REFINE):
        here = here[at_high[here] != at_low[here]]
        new = (low * at_high - high * at_low)[here] / (at_high - at_low)[here]
        moved = ~((new - place[here]).abs() < SETTLED * width[here])
        place[here] = new
        here = here[moved]
        if not len(here):
            break
        value = at(place[here], here)
        going = value != 0.0
        here, value = here[going], value[going]
        upper = (value > 0.0) == (at_high[here] > 0.0)
        up, down = here[upper], here[~upper]
        high[up], at_high[up] = place[up], value[upper]
        low[down], at_low[down] = place[down], value[~upper]
        at_low[up] *= torch.where(side[up] == 1, 0.5, 1.0)
        at_high[down] *= torch.where(side[down] == -1, 0.5, 1.0)
        side[up], side[down] = 1, -1
    return place


def go_on(lines: list[Line], edges: Tensor, shifted: bool = False) -> Tensor:
    """Tell whether f, far beyond cells, still is a wave like that on them: or there is another limit.

    ``edges`` are ``(n, k)``, for k lines. It is largest in the middle of cells unless its phase may be ``shifted``.
    """
    them, on = _Lines(lines), torch.arange(len(lines), device="cpu")
    length = edges.diff(dim=0)
    far = edges[-1] / edges[0]
    good = (length > 0.0).all(0) & (length[-1] / length[-2] <= LONGER) & (far > 1.0)
    on, edges, length, far = on[good], edges[:, good], length[:, good], far[good]
    if not len(on):
        return good
    middle = 0.5 * (edges[1:] + edges[:-1])
    size = them(middle, on).abs().clamp_min(torch.finfo(torch.float64).tiny)
    if shifted:  # nor have the first cells been chosen for how it decays
        size = torch.maximum(size, them(edges[1:], on).abs())[len(middle) // 2 :]
        middle = middle[len(middle) // 2 :]
    shrinks = (length[-1] / length[0]).log() / far.log()
    law, fits = _law(size, middle)
    return good.index_copy(0, on, fits & _go_far(them, on, edges, shrinks, law, size[-1]))


def _go_far(
    them: _Lines, on: Tensor, edges: Tensor, shrinks: Tensor, law: Callable[[Tensor], Tensor], last: Tensor
) -> Tensor:
    """Look at f far beyond the cells: waves are as large as a law says, and longer by a power of u."""
    length, eps = edges[-1] - edges[-2], them.lines[0].problem.pieces.rounding.eps
    ends = torch.tensor([0.0 if line.infinite else 64.0 * eps * abs(line.end) for line in them.lines], device="cpu")
    share = torch.arange(SPREAD, dtype=torch.float64, device="cpu")[:, None] * 0.6180339887498949 % 1.0
    passed, asks = torch.ones_like(on, dtype=torch.bool), torch.ones_like(on, dtype=torch.bool)
    for times in FAR:
        u = edges[-1] * times
        asks &= ~(1.0 / u < ends[on])
        here = asks.nonzero()[:, 0]
        if not len(here):
            break
        places = u + length * times**shrinks * THERE * share
        y = them(places[:, here], on[here])
        most, expected, nothing = y.abs().amax(0), law(u)[here], NEGLIGIBLE * last[here]
        faded = (most <= nothing) & (expected <= LIKE * nothing)
        like = (expected / LIKE <= most) & (most <= expected * LIKE) & _varies(y)
        finite = y.isfinite().all(0)
        passed[here] = finite & (faded | like)
        asks[here] = finite & like & ~faded
    return passed


def _varies(y: Tensor) -> Tensor:
    """Tell whether values at random phases are those of a wave: about as often above 0 as below, or varied."""
    above, size = (y > 0.0).double().mean(0), y.abs()
    one_sign = (above == 0.0) | (above == 1.0)
    return ((above >= 0.15) & (above <= 0.85)) | (one_sign & (size.amin(0) <= 0.5 * size.amax(0)))


def _law(size: Tensor, u: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return how large waves will be far out, like a power of u or an exponential, and whether that fits."""
    three = torch.tensor((0, len(u) // 2, len(u) - 1), device="cpu")
    heights, laws = size[three].log(), list[tuple[Tensor, ...]]()
    for at in (u[three].log(), u[three]):
        rise = (heights[2] - heights[0]) / (at[2] - at[0])
        off = (heights[1] - heights[0] - rise * (at[1] - at[0])).abs()
        laws.append((off, rise, at[2]))
    power, exponential = laws
    straight = exponential[0] <= power[0]
    off, rise, last = (torch.where(straight, one, other) for one, other in zip(exponential, power, strict=True))

    def law(at: Tensor) -> Tensor:
        return size[-1] * (rise * (torch.where(straight, at, at.log()) - last)).clamp_max(700.0).exp()

    return law, off <= FITS
