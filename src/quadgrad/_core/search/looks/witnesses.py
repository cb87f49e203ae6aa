"""Witnesses: f where arguments say that something may be, which every cell around such a place has to explain.

What f is made of is often at a place that is one of its arguments: the mean of a bell, a datum, a strike.
So f is called there, once, and remembered. A cell that is about to be believed is compared with it: where its
polynomial is off, by more than its highest coefficients explain, the cell's error grows. See ADR 57.
"""

from __future__ import annotations

from cmath import isfinite
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import BEYOND
from quadgrad._core.estimates.spikes import Seen
from quadgrad._core.integrand import Argument
from quadgrad._core.mesh.cells import WHOLE
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align, reals
from quadgrad._core.search.looks.gaps import INNERMOST, MATTERS, ROUNDING, polynomial_at
from quadgrad._core.search.task import Found, hear_anew

__all__ = ["AWAY", "Listed", "Witnesses", "fractions", "named", "pieces_of"]

MOST = 16
"""So many arguments are looked at."""

AWAY = 2.0**-30
"""Closer to an end of its piece, as a part of it, nothing is asked for: cells close in on it anyway."""

SPACING = 0.1
"""What no cell explains is as wide as nodes are apart, as a part of the cell."""

SETTLES = 4.0
"""A cell is not asked while its error is so many times above the tolerance: it will be halved."""


@dataclass(slots=True)
class Listed:
    """Places one by one: x, whose it is, dx/dfraction, and the number of it among all of the rows ``(n,)``."""

    x: Tensor
    owner: Tensor
    slope: Tensor
    at: Tensor


@dataclass(slots=True)
class Witnesses:
    """Places of each piece, ``(rows, k)``, NaN where there is none or it is done, and f times the slope there.

    ``slot`` ``(rows, k)`` tells which of the values ``(n, *event)`` it is. ``size`` is, of each integral, the
    largest that a cell of it had; ``cost`` ``(batch,)``, or a number, is how many nodes were asked for.
    ``narrowest`` ``(2, rows, k)`` is the width of the narrowest cell around each place, and how far f is off there,
    once that is noted.
    """

    problem: Problem
    place: Tensor
    slot: Tensor
    value: Tensor
    size: Tensor
    cost: Tensor | int
    left: int
    narrowest: Tensor | None = None

    @staticmethod
    def of(problem: Problem, mine: Tensor | None = None) -> Witnesses | None:
        """Call f where arguments of integrals lie between their limits; None where none does.

        Only in pieces that are ``mine`` ``(rows,)``, which are all if that is not given.
        """
        pieces, batch = problem.pieces, problem.batch
        numbers = [_as_tensor(a.value).to(pieces.lower.device) for a in named(problem)]
        if not numbers:
            return None
        place, slope = _fractions(pieces, batch, numbers)
        inside = (place > AWAY) & (place < 1.0 - AWAY)
        if mine is not None:
            inside &= mine[:, None]
        for j in range(1, len(numbers)):  # two arguments may be equal
            inside[:, j] &= ~(inside[:, :j] & (place[:, :j] == place[:, j : j + 1])).any(1)
        row, column = inside.nonzero().unbind(1)
        x = torch.stack([number.expand(batch) for number in numbers], 1)[row // pieces.count, column]
        slot = torch.zeros_like(place, dtype=torch.int64)
        slot[row, column] = torch.arange(len(row), device=row.device)
        listed = Listed(x, row // pieces.count, slope[row, column], row * len(numbers) + column)
        return Witnesses.call(problem, place.masked_fill(~inside, torch.nan), slot, listed)

    @staticmethod
    def call(problem: Problem, place: Tensor, slot: Tensor, listed: Listed) -> Witnesses | None:
        """Call f at places that are known; None if there is none."""
        batch, n = problem.batch, len(listed.x)
        if not n:
            return None
        hear_anew()
        with np.errstate(all="ignore"):  # at a place of its own a function of NumPy may divide by zero
            y = problem.integrand(listed.x[None], slice(0, 1) if batch == 1 else listed.owner).detach()[0]
        hear_anew()
        wide = torch.complex128 if y.is_complex() else torch.float64
        value, left = (y if y.dtype == wide else y.to(wide)) * align(listed.slope, y), n
        if not isfinite(value.sum().item()):
            lost = ~(value.isfinite() if value.ndim == 1 else value.flatten(1).isfinite().all(1))
            place.view(-1)[listed.at[lost]] = torch.nan
            left -= int(lost.sum())
        cost = n if batch == 1 else torch.bincount(listed.owner, minlength=batch)
        return Witnesses(problem, place, slot, value, place.new_zeros(batch), cost, left)

    @property
    def most(self) -> int:
        """The most nodes that an integral may cost beside those asked for here."""
        return self.problem.max_nfev - self.place.shape[1]

    def numbers(self) -> tuple[float, ...]:
        """Return what the kernel compares with: the tolerances, and how much counts."""
        tolerance = self.problem.tolerance
        least = max(tolerance.rtol, 50.0 * tolerance.eps)
        return least, max(tolerance.atol, tolerance.nothing), SPACING, ROUNDING, SETTLES, MATTERS

    def note(self, cells: Seen, values: Tensor, noise: float) -> None:
        """Compare what is left with the polynomials of cells, and keep what the narrowest around each place says.

        Search in tensor operations asks in the end, of many cells at once: a round has no operations to spare.
        """
        if self.narrowest is None:
            self.narrowest = torch.stack((torch.full_like(self.place, torch.inf), torch.zeros_like(self.place)))
        row, start, stop = cells.row, cells.start[:, None], cells.stop[:, None]
        place = self.place[row]
        fraction = torch.where(start < 0.0, place - 1.0, place)
        if cells.outer is None or cells.rate is None:
            tau, slope = (fraction - start) / (stop - start), (stop - start).expand(fraction.shape)
        else:
            rate = cells.rate[:, None]
            tau, slope = torch.log(fraction / cells.outer[:, None]) / rate, (fraction * rate).abs()
        inside = (fraction > start) & (fraction < stop) & (slope < self.narrowest[0, row])
        # Cells of several rounds are asked together, one within the other.
        each = slope.masked_fill(~inside, torch.inf)
        least = self.narrowest[0].scatter_reduce(0, row[:, None].expand_as(each), each, "amin")
        cell, column = (inside & (slope == least[row])).nonzero().unbind(1)
        if not len(cell):
            return
        whose = row[cell]
        value = self.value[self.slot[whose, column]]
        value = value * align(slope[cell, column], value)
        gap = self._gap(cells, values[:, cell], cell, tau[cell, column], value, noise)
        self.narrowest[:, whose, column] = torch.stack((slope[cell, column], gap))

    def _gap(self, cells: Seen, y: Tensor, cell: Tensor, tau: Tensor, value: Tensor, noise: float) -> Tensor:
        """Return how far f is from the polynomials of cells at a place of each, less what is to be expected."""
        rule, weights = cells.rule, torch.as_tensor(self.problem.rule.barycentric, device=tau.device)
        y, value = y.reshape(*y.shape[:2], -1), reals(value, 1).reshape(len(cell), -1)
        gap = (torch.einsum("mk,mkc->kc", polynomial_at(tau, rule.nodes, weights), y) - value).abs()
        highest = torch.einsum("jm,mkc->jkc", rule.functionals[1:3], y).abs().sum(0)
        # Rounding of x moves f by as much as f changes between nodes, at most.
        shaken = (cells.reach / cells.scale).abs()[cell, None] + 1.0
        gap = gap - (tau >= 1.0)[:, None] * y[-INNERMOST:].abs().amax(0)
        gap = gap - BEYOND * highest - y.abs().amax(0) * (ROUNDING * noise * shaken)
        return gap.clamp_min(0.0).nan_to_num(0.0, 0.0, 0.0).amax(1)

    def lines(self, found: Found) -> Tensor | None:
        """Return what no cell explains, and matters, as spikes: row, place, and how far nodes are apart there.

        None if nothing was noted here: the kernel tells such spikes itself.
        """
        if self.narrowest is None:
            return None
        size = found.value.abs().double().reshape(len(found.nfev), -1).amax(1)
        least = (MATTERS * self.problem.tolerance.rtol * size).clamp_min(MATTERS * self.problem.tolerance.atol)
        least = torch.maximum(least, found.error.double()).repeat_interleave(self.problem.pieces.count)
        width, gap = self.narrowest
        row, column = (SPACING * gap > least[:, None]).nonzero().unbind(1)
        # Closer than nodes are apart, or a spike nearby would be taken for the same.
        apart = 0.1 * SPACING * width[row, column]
        return torch.stack((row.to(apart.dtype), self.place[row, column], apart), 1)


def named(problem: Problem) -> list[Argument]:
    """Return the arguments that are real numbers, one for each integral or for all, if f may be called there."""
    integrand = problem.integrand
    if not integrand.vectorized or not problem.batch:
        return []
    numbers = [a for a in integrand.arguments if _is_number(a)][:MOST]
    least = (problem.rule.nodes.size + WHOLE) * problem.pieces.count
    return numbers if problem.max_nfev >= least + len(numbers) else []


def pieces_of(problem: Problem, first: IntervalPlan | None) -> Tensor | None:
    """Return which pieces ``(rows,)`` have cells in a plan; None stands for all."""
    if first is None:
        return None
    mine = torch.zeros(problem.batch * problem.pieces.count, dtype=torch.bool, device=first.row.device)
    return mine.index_fill_(0, first.row, True)


def _is_number(argument: Argument) -> bool:
    value = argument.value
    if isinstance(value, Tensor):
        return argument.element_ndim == 0 and value.is_floating_point()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_tensor(value: Any) -> Tensor:
    return (
        value.detach().double().reshape(-1) if isinstance(value, Tensor) else torch.tensor([float(value)]).double()
    )


def _fractions(pieces: Pieces, batch: int, numbers: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return numbers as fractions of each piece, ``(rows, k)``, NaN or outside (0, 1) elsewhere, and the slopes."""
    count, rows = pieces.count, batch * pieces.count
    lower, upper = (end.double().expand(rows)[:, None] for end in (pieces.lower, pieces.upper))
    x = torch.stack([number.to(lower.device).expand(batch) for number in numbers], 1).repeat_interleave(count, 0)
    return fractions(torch.where((x > lower) & (x < upper), x, torch.nan), lower, upper)


def fractions(x: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return where x is in pieces, measured from the lower end, and dx/dfraction there."""
    no_lower, no_upper = lower == -torch.inf, upper == torch.inf
    from_lower, from_upper, root = x - lower, upper - x, torch.hypot(x, torch.full_like(x, 2.0))
    place = from_lower / (upper - lower)
    place = torch.where(no_upper, from_lower / (1.0 + from_lower), place)
    place = torch.where(no_lower, 1.0 / (1.0 + from_upper), place)
    rest = torch.where(no_lower & no_upper, 2.0 / (2.0 + x + root), 1.0 - place)
    from_end = torch.where(x < 0.0, 2.0 / (2.0 - x + root), 1.0 - rest)  # neither cancels
    place = torch.where(no_lower & no_upper, from_end, place)
    slope = torch.where(no_upper, rest**-2, 0.0) + torch.where(no_lower, place**-2, 0.0)
    return place, torch.where(no_lower | no_upper, slope, upper - lower)
