"""Witnesses: f where arguments say that something may be, which every cell around such a place has to explain.

What f is made of is often at a place that is one of its arguments: the mean of a bell, a datum, a strike, a threshold.
So f is called there, once, and remembered. A cell that is about to be believed is compared with it: where its
interpolating polynomial is off, by more than its highest coefficients explain, the cell's error grows. See ADR 57.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import BEYOND
from quadgrad._core.integrand import Argument
from quadgrad._core.mesh.cells import WHOLE
from quadgrad._core.mesh.interval import LOGARITHMIC, Layout, Pieces, lay_out
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align
from quadgrad._core.search.task import hear_anew, noise

__all__ = ["AWAY", "Listed", "Witnesses", "named"]

MOST = 16
"""So many arguments are looked at."""

AWAY = 2.0**-30
"""Closer to an end of its piece, as a part of it, nothing is asked for: cells close in on it anyway."""

SPACING = 0.1
"""What no cell explains is as wide as nodes are apart, as a part of the cell."""

ROUNDING = 100.0
"""What is not explained by so many eps of the largest value is none of rounding."""

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

    ``slot`` ``(rows, k)`` tells which of the values ``(n, *event)`` it is. ``size`` is, of each integral, the largest
    that a cell of it had; ``cost`` ``(batch,)``, or a number, is how many nodes were asked for.
    """

    problem: Problem
    place: Tensor
    slot: Tensor
    value: Tensor
    size: Tensor
    cost: Tensor | int
    left: int

    @staticmethod
    def of(problem: Problem) -> Witnesses | None:
        """Call f where arguments of integrals lie between their limits; None where none does."""
        integrand, pieces, batch = problem.integrand, problem.pieces, problem.batch
        numbers = [_as_tensor(a.value).to(pieces.lower.device) for a in named(problem)]
        if not numbers:
            return None
        place, slope = _fractions(pieces, batch, numbers)
        inside = (place > AWAY) & (place < 1.0 - AWAY)
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
        if not isfinite(abs(value.sum().item())):
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
        return least, tolerance.atol, SPACING, ROUNDING, SETTLES

    def ask(
        self, row: Tensor, ends: tuple[Tensor, Tensor], size: Tensor, error: Tensor, y: Tensor, logarithmic: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Compare new cells, all of one kind; return which ``(k,)`` are off, and by how much error, or None.

        ``y`` ``(m, n, *event)`` is f at their nodes; ``size`` and ``error`` ``(n,)`` are what is known of them.
        """
        if not self.left:
            return None
        owner, (rtol, atol, *_) = row // self.problem.pieces.count, self.numbers()
        self.size.scatter_reduce_(0, owner, size, "amax")
        allowed = (rtol * self.size[owner]).clamp_min(atol)
        settles = (error <= SETTLES * allowed).nonzero().squeeze(1)
        row, start, stop = (t[settles] for t in (row, *ends))
        place, begin = self.place[row], torch.where(start < 0.0, 1.0 + start, start)
        inside = (place > begin[:, None]) & (place < (begin + (stop - start))[:, None])
        cell, column = inside.nonzero().unbind(1)
        if not len(cell):
            return None
        whose, start, stop, cell = row[cell], start[cell], stop[cell], settles[cell]
        layout = lay_out(self.problem.pieces, whose, start, stop, LOGARITHMIC if logarithmic else None)
        place = self.place[whose, column]
        if layout.outer is None or layout.rate is None:
            tau, slope = (place - torch.where(start < 0.0, 1.0 + start, start)) / (stop - start), stop - start
        else:
            fraction = torch.where(start < 0.0, place - 1.0, place)
            tau, slope = torch.log(fraction / layout.outer) / layout.rate, (fraction * layout.rate).abs()
        value = self.value[self.slot[whose, column]]
        gap = self._gap(layout, tau, y[:, cell], value * align(slope, value)) * (tau < 1.0)
        off = gap > 0.0
        done = ~off & (tau < 1.0)
        self.place[whose[done], column[done]] = torch.nan
        self.left -= int(done.sum())
        return (cell[off], SPACING * gap[off]) if bool(off.any()) else None

    def _gap(self, layout: Layout, tau: Tensor, y: Tensor, value: Tensor) -> Tensor:
        """Return how far f at a place of each cell is from its polynomial, less what is to be expected, ``(n,)``."""
        problem = self.problem
        rule = problem.rule.tensors(torch.float64, tau.device)
        weights = torch.as_tensor(problem.rule.barycentric, device=tau.device)[:, None]
        _, factor = layout.nodes(rule.nodes)
        y = y.to(value.dtype) if value.is_complex() or not y.is_complex() else y
        y = (y * align(factor, y)).flatten(2) if y.ndim > 2 else (y * factor)[..., None]
        value = value.reshape(len(tau), -1)
        apart = tau - rule.nodes[:, None]
        weight = weights / torch.where(apart == 0.0, 1e-300, apart)
        weight = (weight / weight.sum(0)).to(y.dtype)
        gap = (torch.einsum("mk,mkc->kc", weight, y) - value).abs()
        highest = torch.einsum("jm,mkc->jkc", rule.functionals[1:3].to(y.dtype), y).abs().sum(0)
        # Rounding of x moves f by as much as f changes between nodes, at most.
        shaken = (layout.reach / layout.scale).abs()[:, None] + 1.0
        rounding = y.abs().amax(0) * (ROUNDING * noise(problem) * shaken)
        return (gap - BEYOND * highest - rounding).clamp_min(0.0).nan_to_num(0.0, 0.0, 0.0).amax(1)


def named(problem: Problem) -> list[Argument]:
    """Return the arguments that are real numbers, one for each integral or for all, if f may be called there."""
    integrand = problem.integrand
    if integrand.captured is not None or not integrand.vectorized or not problem.batch:
        return []
    numbers = [a for a in integrand.arguments if _is_number(a)][:MOST]
    least = (problem.rule.nodes.size + WHOLE) * problem.pieces.count
    return numbers if problem.max_nfev >= least + len(numbers) else []


def _is_number(argument: Argument) -> bool:
    value = argument.value
    if isinstance(value, Tensor):
        return argument.element_ndim == 0 and value.is_floating_point()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_tensor(value: Any) -> Tensor:
    return value.detach().double().reshape(-1) if isinstance(value, Tensor) else torch.tensor([float(value)]).double()


def _fractions(pieces: Pieces, batch: int, numbers: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return numbers as fractions of each piece, ``(rows, k)``, NaN or outside (0, 1) elsewhere, and the slopes."""
    count, rows = pieces.count, batch * pieces.count
    lower, upper = (end.double().expand(rows)[:, None] for end in (pieces.lower, pieces.upper))
    x = torch.stack([number.to(lower.device).expand(batch) for number in numbers], 1).repeat_interleave(count, 0)
    x = torch.where((x > lower) & (x < upper), x, torch.nan)
    no_lower, no_upper = lower == -torch.inf, upper == torch.inf
    from_lower, from_upper, root = x - lower, upper - x, torch.hypot(x, torch.full_like(x, 2.0))
    place = from_lower / (upper - lower)
    place = torch.where(no_upper, from_lower / (1.0 + from_lower), place)
    place = torch.where(no_lower, 1.0 / (1.0 + from_upper), place)
    place = torch.where(no_lower & no_upper, 2.0 / (2.0 - x + root), place)
    rest = torch.where(no_lower & no_upper, 2.0 / (2.0 + x + root), 1.0 - place)
    slope = torch.where(no_upper, rest**-2, 0.0) + torch.where(no_lower, place**-2, 0.0)
    return place, torch.where(no_lower | no_upper, slope, upper - lower)
