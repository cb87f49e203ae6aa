"""What f's values say about the cells of intervals: value, error, floor, and hints for refining them.

The same stands in the kernel's ``estimates.c``, for a few cells at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import (
    BEYOND,
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
from quadgrad._core.mesh.interval import EXTRAPOLATED, LOGARITHMIC
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.reduce import one_number
from quadgrad._core.rules import RuleTensors

__all__ = ["IntervalEstimate"]


@dataclass(slots=True)
class _Values:
    """f times dx/dtau at the nodes: ``y`` ``(m, n, *event)``, its modulus ``(m, n)``, summed over the event.

    ``real`` and ``moduli`` are its real components and theirs, ``(m, n)`` or ``(m, n, components)``.
    """

    y: Tensor
    size: Tensor
    real: Tensor
    moduli: Tensor

    @staticmethod
    def of(y: Tensor) -> _Values:
        size, real = y.abs(), torch.view_as_real(y) if y.is_complex() else y
        moduli = real.abs() if y.is_complex() else size
        if real.ndim == 2:
            return _Values(y, size, real, moduli)
        return _Values(y, size[..., None].flatten(2).sum(2), real.flatten(2), moduli.flatten(2))

    def components(self, real: Tensor, *lead: int) -> Tensor:
        """Return what stands in real components as the values do, ``(*lead, n, *event)``."""
        if self.y.is_complex():
            real = torch.view_as_complex(real.unflatten(-1, (-1, 2)))
        return real.reshape(*lead, *self.y.shape[1:]) if self.y.ndim > 2 or self.y.is_complex() else real


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
        weighted = y * _beside(places.factor, y)
        if new.logarithmic:
            return self._logarithmic(new, places, y[1:-1], weighted, noise)
        if places.known is not None:
            edges = torch.stack((one_number(weighted[0]), one_number(weighted[-1]))) / new.layout.scale
            new.at_start, new.at_stop = torch.where(places.known, edges, torch.nan).unbind()
            weighted = weighted[1:-1]
        return self._linear(new, weighted, noise)

    def _null_rules(self, values: _Values, sums: Sums, blur: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return error and size ``(n,)``, and whether bisecting once will not be enough."""
        # Decay is looked for above the rounding of x, too.
        error, decay = null_rule_error(self.rule, sums.nulls, sums.size.add(blur, alpha=0.5 / noise), noise)
        size = sums.size
        if values.y.is_complex():
            error, size = (t.unflatten(1, (-1, 2)) for t in (error, size))
            error, size = torch.hypot(*error.unbind(-1)), size.sum(-1)  # squares of small ones would underflow
        return largest_component(error), largest_component(size), largest_component(decay) >= UNRESOLVED

    def _linear(self, new: NewIntervals, weighted: Tensor, noise: float) -> Cells:
        values, layout = _Values.of(weighted), new.layout
        sums, scale = weigh(self.rule, values.real, values.moduli), layout.scale
        spread = (layout.reach / scale) * (
            PLACE * self.info.eps
        )  # how far rounding moves a node, in parts of the cell
        blur = sums.variation * _along(spread.clamp_max(1.0), sums.variation)
        error, size, unresolved = self._null_rules(values, sums, blur, noise)
        error = error + self._hidden(new, sums)
        error, floor, improvable = bound_error(error, size, largest_component(sums.variation) * spread, noise)
        floor = floor.masked_fill(scale <= 0.0, self.info.tiny)  # an empty interval is no integrand without a value
        wide = (spread < 0.25 * PLACE * self.outermost) & (new.stop - new.start > self.info.tiny**0.5)
        lost = error.isinf()
        pole, height = see_pole(self.rule, values.size, noise)
        height = height.masked_fill(lost | ~unresolved, torch.inf)
        left, right = (largest_component(half) for half in sums.halves.unbind())
        middle = one_number(weighted[len(weighted) // 2]) / scale
        value, kind = sums.value.masked_fill(_along(lost, sums.value), 0.0), torch.zeros_like(new.row)
        hints = (blame(left, right, unresolved), pole, height, middle)
        return _enter(new, (value, error, floor), improvable & wide, kind, hints)

    def _hidden(self, new: NewIntervals, sums: Sums) -> Tensor:
        """Return the error of what lies between a cell's ends and its outermost nodes, where the rule sees nothing.

        Were the integrand smooth there, its interpolating polynomial would meet its known value at the end, but for
        :data:`BEYOND` times its highest coefficients, which the null rules have left. If a jump or a kink is
        between the two, they differ by at least as much as it matters.
        """
        known = torch.stack((new.at_start, new.at_stop)) * new.layout.scale
        edges, allowed = sums.edges, sums.nulls[0]
        if edges.ndim > 2:
            edges, allowed = edges.sum(2), allowed.sum(1)
        gaps = (edges - known).abs().sub_(allowed, alpha=BEYOND).clamp_min_(0.0)
        return gaps.nan_to_num(0.0, 0.0, 0.0).sum(0) * self.outermost

    def _logarithmic(self, new: NewIntervals, places: Spots, y: Tensor, weighted: Tensor, noise: float) -> Cells:
        layout, touches = new.layout, new.start * new.stop == 0.0
        assert layout.outer is not None and layout.rate is not None and places.steps is not None
        outer, inner, values = weighted[0], weighted[-1], _Values.of(weighted[1:-1])
        sums = weigh(self.rule, values.real, values.moduli)
        nulls, size = sums.nulls, sums.size
        if y.is_complex():  # in the moduli of both parts' null rules: beside a singularity one decays less evenly
            nulls = torch.hypot(*nulls.unflatten(2, (-1, 2)).unbind(3))
            size = (self.rule.weights @ values.y.abs().flatten(1)).reshape(nulls.shape[1:])
        # Near a singularity f changes as much as the distance does, which rounding of x does to it.
        spread = layout.reach * layout.rate * (-PLACE * self.info.eps)
        blur = _along(spread, size) * (self.rule.weights @ y.abs().flatten(1)).reshape(size.shape)
        error, decay = null_rule_error(self.rule, nulls, size.add(blur, alpha=0.5 / noise), noise)
        error, size, unresolved = (
            largest_component(error),
            largest_component(size),
            largest_component(decay) >= UNRESOLVED,
        )
        value, edges = values.components(sums.value), values.components(sums.edges, 2)
        # As in evenly spread cells the polynomial must meet f at the edges, unless it is singular there.
        known = torch.stack((outer, torch.where(_beside(touches, inner), edges[1], inner)))
        gaps = (edges - known).abs() - BEYOND * nulls[0].reshape(value.shape)
        hidden = largest_component(gaps.clamp_min(0.0).sum(0)) * self.outermost
        shares = self.rule.shares.to(y.dtype)
        terms = (shares @ values.y.flatten(1)).reshape(len(shares), *value.shape)
        errors, deep = (error, hidden, largest_component(blur)), (inner, places.steps)
        end = conclude(value, terms, touches, errors, size, (self.rtol, noise), deep, self.held)
        lost, rate = end.error.isinf(), layout.rate
        step = 1.0 - (1.0 - STEP) * touches
        # Closer to the end rounding of x weighs more: there the extrapolation may be worse.
        worth = (end.curable > end.floor + end.blur) & ~(touches & (end.blur >= 0.5 * STEP * end.error))
        nearest = (layout.outer * torch.exp(rate)).abs() * step
        wide = nearest * layout.extent > 4.0 * self.info.eps * layout.reach
        wide = wide & (nearest > max(NEAREST, self.info.tiny**0.5)) & (rate < -SHORTEST)
        kind = LOGARITHMIC + (end.column + (EXTRAPOLATED - LOGARITHMIC)) * touches
        columns = _Values.of(end.value[None]).real[0].masked_fill(_along(lost, sums.value), 0.0)
        none, unknown = torch.full_like(rate, torch.inf), torch.full_like(rate, torch.nan)
        hints = (unresolved.to(rate.dtype), none, none, unknown)
        totals = (columns, end.error, end.floor.masked_fill(lost, 0.0))
        return _enter(new, totals, (lost | worth) & wide, kind, hints)


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
    whole = (new.owner, splittable.to(torch.int64), new.row, kind)
    real = (new.start, new.stop, *hints, new.at_start, new.at_stop)
    return Cells(totals, torch.stack(whole), torch.stack(real))


def _along(per_cell: Tensor, columns: Tensor) -> Tensor:
    """Return one number for each cell in a shape that broadcasts with ``columns``."""
    return per_cell if columns.ndim == 1 else per_cell[:, None]


def _beside(factor: Tensor, y: Tensor) -> Tensor:
    """Return ``factor`` in a shape that broadcasts with ``y``, which has event dimensions beyond its own."""
    return factor.reshape(factor.shape + (1,) * (y.ndim - factor.ndim)) if y.ndim > factor.ndim else factor
