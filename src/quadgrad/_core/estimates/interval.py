"""What f's values say about the cells of intervals: value, error, floor, and hints for refining them.

The same stands in the kernel's ``estimates.c``, for a few cells at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import (
    BEYOND,
    PARTS,
    PLACE,
    UNRESOLVED,
    Sums,
    blame,
    bound_error,
    largest_component,
    null_rule_error,
    see_pole,
    weigh,
)
from quadgrad._core.estimates.singular_ends import NEAREST, SHORTEST, conclude
from quadgrad._core.mesh.bisection import Spots
from quadgrad._core.mesh.cells import STEP, NewIntervals
from quadgrad._core.mesh.interval import EXTRAPOLATED, LINEAR, LOGARITHMIC
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.reduce import align, apply, mean, one_number, reals
from quadgrad._core.rules import RuleTensors

__all__ = ["IntervalEstimate"]


@dataclass(slots=True)
class IntervalEstimate:
    """The estimate with a rule whose ``outermost`` node is that far from the edge.

    ``info`` is that of the numbers that f is called with. ``held`` are the columns of the epsilon table, one
    for each cell with logarithmic nodes, where they are not to be chosen.
    """

    rule: RuleTensors
    rtol: float
    info: torch.finfo
    outermost: float
    held: Tensor | None = None

    def __call__(self, new: NewIntervals, places: Spots, y: Tensor, noise: float) -> Cells:
        """Return new cells with what f's values ``y`` ``(rows, n, *event)`` say about them."""
        assert places.factor is not None
        weighted = y * align(places.factor, y)
        if new.logarithmic:
            return self._logarithmic(new, places, y[1:-1], weighted, noise)
        if places.known is not None:
            edges = torch.stack((one_number(weighted[0]), one_number(weighted[-1]))) / new.layout.scale
            new.known, weighted = edges.masked_fill(~places.known, torch.nan), weighted[1:-1]
        return self._linear(new, weighted, noise)

    def _linear(self, new: NewIntervals, weighted: Tensor, noise: float) -> Cells:
        real, moduli, scale = reals(weighted, 2), weighted.abs(), new.layout.scale
        sums = weigh(self.rule, real, real.abs() if weighted.is_complex() else reals(moduli, 2))
        # how far rounding moves a node, in parts of the cell
        spread = new.layout.reach / scale * (PLACE * self.info.eps)
        blur = sums.variation * align(spread.clamp_max(1.0), sums.variation)
        # Decay is looked for above the rounding of x, too.
        error, decay = null_rule_error(self.rule, sums.nulls, sums.size.add(blur, alpha=0.5 / noise), noise)
        size, unresolved = sums.size, largest_component(decay) >= UNRESOLVED
        if weighted.is_complex():
            error, size = (t.unflatten(1, (-1, 2)) for t in (error, size))
            error, size = torch.hypot(*error.unbind(-1)), size.sum(-1)  # squares of small ones would underflow
        error, size = largest_component(error) + self._hidden(new, sums), largest_component(size)
        error, floor, improvable = bound_error(error, size, largest_component(sums.variation) * spread, noise)
        floor = floor.masked_fill(scale <= 0.0, self.info.tiny)  # an empty interval is no integrand without a value
        wide = (spread < 0.25 * PLACE * self.outermost) & (new.stop - new.start > self.info.tiny**0.5)
        lost = error.isinf()
        pole, height = see_pole(self.rule, moduli.flatten(2).sum(2) if moduli.ndim > 2 else moduli, noise)
        height = height.masked_fill(lost | ~unresolved, torch.inf)
        left, right = (largest_component(half) for half in sums.halves.unbind())
        middle = one_number(weighted[len(weighted) // 2]) / scale
        value, kind = sums.value.masked_fill(align(lost, sums.value), 0.0), torch.full_like(new.row, LINEAR)
        hints = (blame(left, right, unresolved), pole, height, middle)
        return _enter(new, (value, error, floor), improvable & wide, kind, hints)

    def _hidden(self, new: NewIntervals, sums: Sums) -> Tensor:
        """Return the error of what lies between a cell's ends and its outermost nodes, where the rule sees nothing.

        Were the integrand smooth there, its interpolating polynomial would meet its known value at the end, but for
        :data:`BEYOND` times its highest coefficients, which the null rules have left. If a jump or a kink is
        between the two, they differ by at least as much as it matters.
        """
        edges, allowed = sums.edges, sums.nulls[0]
        if edges.ndim > 2:
            edges, allowed = edges.sum(2), allowed.sum(1)
        gaps = (edges - new.known * new.layout.scale).abs_().sub_(allowed, alpha=BEYOND).clamp_min_(0.0)
        return gaps.nan_to_num(0.0, 0.0, 0.0).sum(0) * self.outermost

    def _logarithmic(self, new: NewIntervals, places: Spots, y: Tensor, weighted: Tensor, noise: float) -> Cells:
        layout, touches, tiny = new.layout, new.start * new.stop == 0.0, self.info.tiny
        assert layout.outer is not None and layout.rate is not None and places.steps is not None
        if y.ndim > 2:
            y, weighted = y.flatten(2), weighted.flatten(2)
        ends, values = weighted[:: len(weighted) - 1], weighted[1:-1]
        value, nulls, _, _, edges = apply(self.rule.functionals, values).split(PARTS)
        # In the moduli of both parts' null rules: beside a singularity one decays less evenly.
        nulls, size = nulls.abs() if y.is_complex() else nulls, mean(self.rule.weights, values.abs())
        # Near a singularity f changes as much as the distance does, which rounding of x does to it.
        reach, rate = layout.reach, layout.rate
        blur = mean(self.rule.weights, y.abs()) * align(reach * rate * (-PLACE * self.info.eps), size)
        error, decay = null_rule_error(self.rule, nulls, size.add(blur, alpha=0.5 / noise), noise)
        unresolved = largest_component(decay) >= UNRESOLVED
        # As in evenly spread cells the polynomial must meet f at the edges, unless it is singular there.
        gaps = (edges - ends).abs().sub_(nulls[0], alpha=BEYOND).clamp_min_(0.0)
        gaps[1].masked_fill_(align(touches, size), 0.0)
        error, hidden, blur, size = (largest_component(t) for t in (error, gaps.sum(0), blur, size))
        terms, errors = apply(self.rule.shares, values), (error, hidden * self.outermost, blur)
        deep = (ends[1], places.steps)
        end = conclude(value[0], terms, touches, errors, size, (self.rtol, noise), deep, self.held)
        lost, step = end.error.isinf(), 1.0 - (1.0 - STEP) * touches
        # Closer to the end rounding of x weighs more: there the extrapolation may be worse.
        worth = (end.curable > end.floor + end.blur) & (end.blur * touches < (0.5 * STEP) * end.error)
        nearest = (layout.outer * torch.exp(rate)).abs() * step
        wide = nearest * layout.extent > 4.0 * self.info.eps * reach
        wide = wide & (nearest > max(NEAREST, tiny**0.5)) & (rate < -SHORTEST)
        kind = LOGARITHMIC + (end.column + (EXTRAPOLATED - LOGARITHMIC)) * touches
        none, unknown = torch.full_like(rate, torch.inf), torch.full_like(rate, torch.nan)
        columns = reals(end.value, 1)
        totals = (columns.masked_fill(align(lost, columns), 0.0), end.error, end.floor.masked_fill(lost, 0.0))
        return _enter(new, totals, (lost | worth) & wide, kind, (unresolved, none, none, unknown))


def _enter(
    new: NewIntervals,
    sums: tuple[Tensor, Tensor, Tensor],
    splittable: Tensor,
    kind: Tensor,
    hints: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Cells:
    """Return cells, of which value, error and floor are known, lean, pole, height and f in the middle."""
    value, error, floor = sums
    totals = torch.stack(sums) if value.ndim == 1 else torch.cat((value.T, error[None], floor[None]))
    whole = (new.owner, splittable, new.row, kind)
    real = (new.start, new.stop, *hints, *new.known.unbind())
    return Cells(totals, torch.stack(whole), torch.stack(real))
