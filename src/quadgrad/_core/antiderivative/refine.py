"""From the cells on which a search found the integral to those on which its antiderivative is known everywhere.

A rule integrates polynomials of twice the degree that its nodes interpolate: cells that are fine enough for the
integral leave the curve inside them 20 times too coarse. They are bisected until f's highest coefficients, as they
fall, leave no more than was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quadgrad._core.antiderivative.heights import Values, sample
from quadgrad._core.antiderivative.places import running_sums
from quadgrad._core.estimates.null_rules import FLOOR, SAFETY, largest_component, null_rule_error, weigh
from quadgrad._core.estimates.singular_ends import NEAREST, to_the_end
from quadgrad._core.estimates.sums import blur_of_x
from quadgrad._core.mesh.interval import DEPTH, EXTRAPOLATED
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import apply, concatenate, reals, take, total
from quadgrad._core.search.task import Found, noise

__all__ = ["Refined", "refine"]

BELOW = 1e-25
"""Where f keeps its sign the curve is accurate relative to its nearer end, down to this part of the whole ..."""

REALISTIC = 50.0
"""... to no less than so many times the noise of one value of f."""

HALF = 0.5
"""The part of the tolerance that the curve inside a cell may take; the other half is left to the integrals."""

TAIL = 0.1
"""Singular ends are approached until what is left to the tail's law is below this part of the tolerance ..."""

STRIDE = 200.0
"""... by so many octaves at a time at most, which one cell with logarithmic nodes can still resolve."""

NARROW = 1e-3
"""Cells are not bisected when x is rounded to more than this part of them."""

ROUNDS = 100
"""A cell is halved so often at most."""


@dataclass
class _Cells:
    """What is known of ``n`` cells; of all columns the first dimension is n.

    ``values`` ``(n, m, *event)`` are f dx/dtau at the nodes, ``whole`` the integrals beyond them. ``inside`` is the
    error of the curve in the cell, of which finer cells would not mend ``floor``: the rounding of f, and ``blur``,
    that of x; ``law`` is that of the tail. ``least`` is the smallest modulus of f dx/dtau at the nodes, ``rising``
    and ``falling`` the integrals of its positive and negative part. ``room`` are the octaves that are left to the
    end, in cells that touch one; they are ``sharp`` where x is 0 there, and is not rounded. ``fixed`` cells are not
    refined further.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    kind: Tensor
    values: Tensor
    integral: Tensor
    whole: Tensor
    inside: Tensor
    floor: Tensor
    blur: Tensor
    law: Tensor
    least: Tensor
    rising: Tensor
    falling: Tensor
    room: Tensor
    sharp: Tensor
    fixed: Tensor


@dataclass(frozen=True)
class Refined:
    """The cells of a curve in ascending order, f on them, and how far off the curve is anywhere.

    ``error``, ``height`` (the largest modulus of the curve), ``size`` (that of the whole integral), ``nfev``, and
    ``rising`` and ``falling``, the integrals of f's positive and negative part, have shape ``(batch,)``.
    """

    values: Values
    error: Tensor
    height: Tensor
    size: Tensor
    nfev: Tensor
    rising: Tensor
    falling: Tensor


def refine(problem: Problem, found: Found, tolerances: tuple[float, float]) -> Refined:
    """Refine what search found of a problem that is outside of all transforms; rtol and atol are the caller's."""
    return _Refinement(problem, found, tolerances).run()


class _Refinement:
    """One refinement: all cells in ascending order, and what each integral has spent."""

    def __init__(self, problem: Problem, found: Found, tolerances: tuple[float, float]) -> None:
        self.problem, self.found, (self.rtol, self.atol) = problem, found, tolerances
        device = problem.pieces.lower.device
        rule = problem.rule.tensors(torch.float64, device)
        # An interpolant misses the next degree already; the rule's own sum only one that is much higher.
        self.rule, self.per_degree = replace(rule, order_gap=1), (2.0 * len(rule.nodes)) ** -0.5
        self.noise, self.nfev = noise(problem), found.nfev.reshape(-1).clone()
        self.lost = found.error.reshape(-1).isinf()
        self.cells = self._measure(self._whole_pieces_halved(found.plan))
        self._sort()

    @property
    def owner(self) -> Tensor:
        """The integral of each cell."""
        count = self.problem.pieces.count
        return self.cells.row if count == 1 else self.cells.row // count

    def run(self) -> Refined:
        """Refine until every integral's curve is as accurate as was asked for, or cannot become so."""
        for _ in range(ROUNDS):
            allowed, relative = self._allowed()
            cells, tail_allowed = self.cells, 2.0 * TAIL * allowed
            curable = (cells.inside > torch.maximum(allowed, 2.0 * cells.floor)) & ~cells.fixed
            # What rounding of f leaves is less in the part of a cell where f is small.
            curable |= (cells.inside > torch.maximum(relative, 4.0 * cells.blur)) & ~cells.fixed
            # Where rounding of x does not count, no law is needed in the end; where it does, nodes that are closer
            # to the end know less than the law.
            left = torch.where(cells.sharp, largest_component(cells.whole.abs()), cells.law)
            short = (left > torch.maximum(tail_allowed, cells.floor)) & (cells.room > 0) & ~cells.fixed
            able = (self.nfev < self.problem.max_nfev) & ~self.lost
            able = able.index_select(0, self.owner)
            split = (curable | short) & able
            if not bool(split.any()):
                break
            self._split(split, short, tail_allowed)
        return self._finish()

    # -------------------------------------------------------------------------------------------- one round

    def _allowed(self) -> tuple[Tensor, Tensor]:
        """Return what the error inside each cell may be, ``(n,)``: for the tolerance, and to be small beside F.

        That is the integral from the nearer end; asked for where f keeps its sign.
        """
        cells, owner = self.cells, self.owner
        moduli = largest_component((cells.integral + cells.whole).abs())
        height = self._height()
        allowed = HALF * (self.atol + self.rtol * height)
        relative = (allowed / height).nan_to_num(0.0, 0.0).clamp_min(REALISTIC * self.noise)[owner]
        below, above = (self._running(moduli, upward) for upward in (True, False))
        near = torch.minimum(torch.maximum(below, cells.least), torch.maximum(above, cells.least))
        own = torch.maximum(relative * near, BELOW * height[owner])
        keeps_sign = ~((self._sums(cells.rising) > 0) & (self._sums(cells.falling) > 0))[owner]
        return allowed[owner], own.masked_fill(~keeps_sign, torch.inf)

    def _height(self) -> Tensor:
        """Return the largest modulus of each curve at the edges of cells, ``(batch,)``."""
        cells, owner = self.cells, self.owner
        each = cells.integral + cells.whole
        sums = largest_component((self._running(each, True) + each).abs())
        other = largest_component((self._running(each, False) + each).abs())
        turned = self._turned()[owner]
        height = torch.where(turned, other, sums)
        return height.new_zeros(self.problem.batch).scatter_reduce(0, owner, height, "amax")

    def _turned(self) -> Tensor:
        limits = self.problem.limits
        return (limits.b < limits.a).expand(self.problem.batch)

    def _running(self, values: Tensor, upward: bool) -> Tensor:
        return running_sums(values, self.owner, self.longest, upward)

    def _sums(self, values: Tensor) -> Tensor:
        return total(values, self.owner, self.problem.batch)

    def _split(self, split: Tensor, short: Tensor, tail_allowed: Tensor) -> None:
        """Bisect cells, and draw those that touch an end closer to it."""
        cells = self.cells
        touches = cells.kind >= EXTRAPOLATED
        cells.fixed = cells.fixed | (split & ~touches & ~self._wide(split)) | (split & touches & (cells.room <= 0))
        split = split & ~cells.fixed
        kept, new = [take(cells, ~split)], list[_Cells]()
        halved = self._plan(take(cells, split & ~touches)).halved()
        if len(halved):
            new.append(self._measure(halved))
        if bool((ends := split & touches).any()):
            new += self._draw_closer(take(cells, ends), short[ends], tail_allowed[ends])
        self.cells = concatenate([*kept, *new])
        self._sort()

    def _draw_closer(self, old: _Cells, short: Tensor, tail_allowed: Tensor) -> list[_Cells]:
        """Part cells that touch an end; those that know less when they are closer stay as they are for good."""
        left = largest_component(old.whole.abs())
        wanted = torch.log2((left / tail_allowed).clamp_min(1.0)) / self._hazard(old)
        wanted = torch.where(short & old.sharp, wanted, 0.5 * DEPTH).ceil().clamp(2.0, STRIDE)
        places = torch.arange(len(left), device=left.device)
        new = self._measure(self._plan(old).close_in(places, torch.minimum(wanted, old.room)))
        touches = new.kind >= EXTRAPOLATED  # both kinds stand in the order of the old cells
        ends, rest = take(new, touches), take(new, ~touches)
        better = old.sharp | (torch.maximum(ends.inside, rest.inside) < old.inside)
        old.fixed = torch.ones_like(old.fixed)
        return [take(ends, better), take(rest, better), take(old, ~better)]

    @staticmethod
    def _hazard(ends: _Cells) -> Tensor:
        """Return by how many octaves what is beyond the nodes falls per octave, ``(q,)``."""
        ratio = largest_component(ends.whole.abs()) / largest_component((ends.whole + ends.integral).abs())
        return (-torch.log2(ratio) / DEPTH).nan_to_num(0.1).clamp_min(1e-3)

    def _wide(self, mask: Tensor) -> Tensor:
        """Tell which cells are so wide that rounding of x lets their halves have nodes of their own."""
        wide = torch.zeros_like(mask)
        part = self._plan(take(self.cells, mask))
        if len(part):
            layout = self.problem.pieces.lay_out(part)
            eps = self.problem.pieces.rounding.eps
            wide[mask] = layout.reach * eps < NARROW * layout.scale.abs()
        return wide

    # -------------------------------------------------------------------------------------------- new cells

    def _whole_pieces_halved(self, plan: IntervalPlan) -> IntervalPlan:
        """Return the cells with whole infinite pieces halved, so that each end has a fraction measured from it."""
        if not self.problem.pieces.infinite:
            return plan
        whole = (plan.start == 0.0) & (plan.stop == 1.0) & plan.linear
        return plan.take(~whole).join(plan.take(whole).halved())

    def _plan(self, cells: _Cells) -> IntervalPlan:
        """Return cells as a plan."""
        problem = self.problem
        columns = (cells.row, cells.start, cells.stop, cells.inside.nan_to_num(torch.inf), cells.kind)
        return IntervalPlan.of(problem.rule, problem.pieces, problem.batch_shape, *columns)

    def _measure(self, plan: IntervalPlan) -> _Cells:
        """Call f on new cells and tell how accurate the curve is on each."""
        problem, rule, eps = self.problem, self.rule, self.noise
        self.nfev += torch.bincount(plan.owner, minlength=problem.batch) * len(rule.nodes)
        touches = plan.touches
        values = sample(problem.integrand, plan, problem.pieces, problem.block).at_nodes
        layout, columns = problem.pieces.lay_out(plan), reals(values, 2)
        columns = columns[..., None] if columns.ndim == 2 else columns
        sums = weigh(rule, columns, columns.abs())
        unscaled = columns / layout.nodes(rule.nodes)[1][..., None]
        blur = blur_of_x(rule, layout, unscaled, sums.variation, problem.pieces.rounding.eps)
        error, *_ = null_rule_error(rule, sums.nulls, sums.size + 0.5 / eps * blur, eps)
        # Rounding of x moves a point by so much of its cell, and the curve by so much of f dx/dtau.
        spread = (layout.reach / layout.scale).abs() * problem.pieces.rounding.eps
        moved = (columns.abs().amax((0, 2)) * spread).masked_fill(~plan.linear, 0.0)
        blur = largest_component(blur) + moved
        floor = largest_component((FLOOR * eps) * sums.size) + blur
        inside = torch.maximum(largest_component(error) * self.per_degree, floor)
        inside = inside.nan_to_num(torch.inf, torch.inf)
        whole, law, kind = self._tails(plan, values, touches)
        least, positive = columns[..., 0].abs().amin(0), columns[..., 0]
        if columns.shape[2] != 1:  # several components, or a complex one, have no inverse: they count as both
            positive = (
                torch.ones_like(positive)
                * (1.0 - 2.0 * (torch.arange(len(positive), device=positive.device) % 2))[:, None]
            )
        weights = rule.weights[:, None]
        rising, falling = ((weights * (side * positive).clamp_min(0.0)).sum(0) for side in (1.0, -1.0))
        return _Cells(
            plan.row, plan.start, plan.stop, kind, values.movedim(0, 1), apply(rule.weights[None], values)[0],
            whole, torch.where(touches, inside + law, inside), floor, blur, law, least, rising, falling,
            self._room(plan, touches), layout.reach == 0.0, inside.isinf(),
        )  # fmt: skip

    def _room(self, plan: IntervalPlan, touches: Tensor) -> Tensor:
        """Return how many octaves closer to their end cells may come, ``(n,)``."""
        room = torch.zeros_like(plan.start)
        if bool(touches.any()):
            numbers = self.problem.pieces.rounding
            layout = self.problem.pieces.lay_out(plan.take(touches))
            room[touches] = layout.octaves_left(4.0 * numbers.eps, max(NEAREST, numbers.tiny**0.5)).floor()
        return room.clamp_min(0.0)

    def _tails(self, plan: IntervalPlan, values: Tensor, touches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Extrapolate the cells that touch an end: what is beyond their nodes, the law's error, and the kind."""
        whole = values.new_zeros((len(plan), *values.shape[2:]))
        law, kind = torch.zeros_like(plan.start), plan.kind.clone()
        if not bool(touches.any()):
            return whole, law, kind
        ends = values[:, touches]
        terms, seen = apply(self.rule.shares, ends), apply(self.rule.weights[None], ends)[0]
        # Whichever column is best: the lowest that will do may leave nothing beyond the nodes.
        value, doubt, _, column = to_the_end(terms, terms.abs(), 0.0)
        value = value.reshape(seen.shape)
        kind[touches] = (EXTRAPOLATED + column).to(kind.dtype)
        whole[touches] = value - seen
        tails = Values.of(replace(plan.take(touches), kind=kind[touches]), ends).tails()
        # Continued backwards, the law must meet what is known, beyond what it was fitted to: two shares before it.
        back = torch.arange(len(column), device=column.device)
        y = torch.full_like(plan.start[touches], -2.0 * DEPTH * math.log(2.0) / len(terms))
        missed = largest_component((tails.at(back, y) - (tails.whole + terms[-2:].sum(0))).abs())
        size = largest_component(tails.whole.abs())
        law[touches] = torch.minimum((SAFETY * missed).nan_to_num(torch.inf), size) + doubt.nan_to_num(
            torch.inf, torch.inf
        )
        return whole, law, kind

    def _sort(self) -> None:
        """Put the cells in ascending order."""
        _, order = self.cells.row.sort(stable=True)
        self.cells = take(self.cells, order)
        self.cells = take(self.cells, self._plan(self.cells).order)
        owner = self.owner
        self.longest = max(1, int(torch.bincount(owner).max())) if len(owner) else 1

    def _finish(self) -> Refined:
        cells, found, batch = self.cells, self.found, self.problem.batch
        plan = replace(self._plan(cells), inspected=found.plan.inspected)
        inside = found.error.new_zeros(batch).scatter_reduce(0, self.owner, cells.inside, "amax")
        error = (found.error.reshape(-1) + inside).nan_to_num(torch.inf, torch.inf)
        rising, falling = self._sums(cells.rising), self._sums(cells.falling)
        size = largest_component(self._sums(cells.integral + cells.whole).abs())
        values = Values.of(plan, cells.values.movedim(1, 0).contiguous())
        return Refined(values, error, self._height(), size, self.nfev, rising, falling)
