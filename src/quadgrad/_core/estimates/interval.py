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
class _Seen:
    """What f's values say about cells of any kind, before the kinds go their own ways.

    ``values`` ``(m, n, *event)`` are f times dx/dtau, ``sizes`` ``(m, n)`` their moduli, summed over the event;
    ``spread`` ``(n,)`` is how far rounding moves a node, as a part of the cell; ``error`` and ``size`` ``(n,)`` are
    the largest of all components.
    """

    values: Tensor
    sizes: Tensor
    sums: Sums
    spread: Tensor
    blur: Tensor
    error: Tensor
    size: Tensor
    unresolved: Tensor


@dataclass(slots=True)
class IntervalEstimate:
    """The estimate with a rule whose ``outermost`` node is that far from the edge.

    ``info`` is that of the numbers that f is called with. ``held`` are the columns of the epsilon table, one for each
    cell with logarithmic nodes, where they are not to be chosen.
    """

    rule: RuleTensors
    rtol: float
    info: torch.finfo
    outermost: float
    held: Tensor | None = None

    def __call__(self, new: NewIntervals, places: Spots, part: slice, y: Tensor, noise: float) -> Cells:
        """Return the cells of ``part`` with what f's values ``y`` ``(m, n, *event)`` say about them."""
        linear, n = max(new.linear - part.start, 0), y.shape[1]
        seen = self._look(new, places, part, y, noise, linear)
        cells = self._conclude_linear(new, part, seen, noise)
        if linear < n:
            ends = self._conclude_logarithmic(new, slice(part.start + linear, part.start + n), seen, linear, noise)
            for whole, some in ((cells.sums, ends.sums), (cells.whole, ends.whole), (cells.real, ends.real)):
                whole[:, linear:] = some
        return cells

    def _look(self, new: NewIntervals, places: Spots, part: slice, y: Tensor, noise: float, linear: int) -> _Seen:
        assert places.factor is not None
        values = y * places.factor.reshape(places.factor.shape + (1,) * (y.ndim - 2))
        sizes, columns = values.abs(), torch.view_as_real(values) if y.is_complex() else values
        magnitude = columns.abs() if y.is_complex() else sizes
        if columns.ndim > 2:
            columns, magnitude, sizes = columns.flatten(2), magnitude.flatten(2), sizes[..., None].flatten(2).sum(2)
        sums, layout = weigh(self.rule, columns, magnitude), new.layout
        spread = (layout.reach[part] / layout.scale[part]).mul_(PLACE * self.info.eps)
        blur = sums.variation * _along(spread.clamp_max(1.0), sums.variation)
        if linear < y.shape[1]:  # near a singularity f changes as much as the distance does
            assert layout.rate is not None
            tail = slice(linear, None)
            shift = (layout.reach[part] * -layout.rate[part])[tail] * (PLACE * self.info.eps)
            mean = (self.rule.weights @ y[:, tail].abs().flatten(1)).reshape(y[0, tail].shape)
            mean = mean[..., None].expand(*mean.shape, 2) if y.is_complex() else mean
            blur[tail] = (shift.reshape(-1, *(1,) * (mean.ndim - 1)) * mean).reshape(blur[tail].shape)
        error, decay = null_rule_error(self.rule, sums.nulls, sums.size.add(blur, alpha=0.5 / noise), noise)
        size = sums.size
        if y.is_complex():
            error, size = (t.unflatten(1, (-1, 2)) for t in (error, size))
            error, size = torch.hypot(*error.unbind(-1)), size.sum(-1)  # squares of small ones would underflow
        error, size, decay, blur = (largest_component(t) for t in (error, size, decay, blur))
        return _Seen(values, sizes, sums, spread, blur, error, size, decay >= UNRESOLVED)

    def _conclude_linear(self, new: NewIntervals, part: slice, seen: _Seen, noise: float) -> Cells:
        """Return cells with evenly spread nodes; what is said about others means nothing."""
        sums, spread, scale = seen.sums, seen.spread, new.layout.scale[part]
        curable = seen.error + self._hidden(sums, new, part)
        rounding = largest_component(sums.variation) * spread
        error, floor, improvable = bound_error(curable, seen.size, rounding, noise)
        floor = floor.masked_fill(scale <= 0.0, self.info.tiny)  # an empty interval is no integrand without a value
        wide = (spread < 0.25 * PLACE * self.outermost) & (new.stop[part] - new.start[part] > self.info.tiny**0.5)
        pole, height = see_pole(self.rule, seen.sizes, noise)
        height = torch.where(seen.unresolved & (error < torch.inf), height, torch.inf)
        left, right = (largest_component(half) for half in sums.halves)
        middle = one_number(seen.values[seen.values.shape[0] // 2]) / scale
        hints = (blame(left, right, seen.unresolved), pole, height, middle)
        value = sums.value.masked_fill(_along(error.isinf(), sums.value), 0.0)
        return _enter(new, part, (value, error, floor), improvable & wide, torch.zeros_like(new.row[part]), hints)

    def _hidden(self, sums: Sums, new: NewIntervals, part: slice) -> Tensor:
        """Return the error of what lies between a cell's ends and its outermost nodes, where the rule sees nothing.

        Were the integrand smooth there, its interpolating polynomial would meet its known value at the end, but for
        :data:`BEYOND` times its highest coefficients, which the null rules have left. If a jump or a kink is between
        the two, they differ by at least as much as it matters.
        """
        known = torch.stack((new.at_start[part], new.at_stop[part])) * new.layout.scale[part]
        edges, allowed = sums.edges, sums.nulls[0]
        if edges.ndim > 2:
            edges, allowed = edges.sum(2), allowed.sum(1)
        gaps = (edges - known).abs().sub_(allowed, alpha=BEYOND).clamp_min_(0.0)
        return gaps.nan_to_num(0.0, 0.0, 0.0).sum(0) * self.outermost

    def _conclude_logarithmic(
        self, new: NewIntervals, part: slice, seen: _Seen, linear: int, noise: float
    ) -> Cells:
        """Return cells with logarithmic nodes, which are those from ``linear`` on of what was seen."""
        layout, edges, event = new.layout, new.edges, seen.values.shape[2:]
        assert edges is not None and layout.outer is not None and layout.rate is not None
        tail, among = slice(linear, None), slice(part.start - new.linear, part.stop - new.linear)
        flat, k = seen.values[:, tail].flatten(1), part.stop - part.start

        def shaped(columns: Tensor, *lead: int) -> Tensor:
            """Return what stands in real columns as the values of f do, ``(*lead, k, *event)``."""
            columns = torch.view_as_complex(columns.unflatten(-1, (-1, 2))) if flat.is_complex() else columns
            return columns.reshape(*lead, k, *event)

        start, stop, rate = new.start[part], new.stop[part], layout.rate[part]
        touches = start * stop == 0.0
        value, (at_outer, at_inner) = shaped(seen.sums.value[tail]), shaped(seen.sums.edges[:, tail], 2)
        allowed = BEYOND * shaped(seen.sums.nulls[0][tail]).abs()
        outer, inner, steps = edges.outer[among], edges.inner[among], edges.steps[among]
        # As in evenly spread cells the interpolating polynomial must meet f at the edges, unless it is singular there.
        hidden = ((at_outer - outer).abs() - allowed).clamp_min(0.0)
        beside = ((at_inner - inner).abs() - allowed).clamp_min(0.0)
        hidden = largest_component(hidden + beside.masked_fill(touches.reshape(-1, *(1,) * len(event)), 0.0))
        terms = (self.rule.shares.to(flat.dtype) @ flat).reshape(len(self.rule.shares), *value.shape)
        errors = (seen.error[tail], hidden * self.outermost, seen.blur[tail])
        held = None if self.held is None else self.held[among]
        end = conclude(value, terms, touches, errors, seen.size[tail], (self.rtol, noise), (inner, steps), held)
        lost = end.error.isinf()
        # Closer to the end rounding of x weighs more: there the extrapolation may be worse.
        worse = torch.where(touches, end.blur / STEP, 0.0) < 0.5 * end.error
        nearest = (layout.outer[part] * torch.exp(rate)).abs() * torch.where(touches, STEP, 1.0)
        wide = nearest * layout.extent[part] > 4.0 * self.info.eps * layout.reach[part]
        wide = wide & (nearest > max(NEAREST, self.info.tiny**0.5)) & (-rate > SHORTEST)
        splittable = (lost | ((end.curable > end.floor + end.blur) & worse)) & wide
        columns = torch.view_as_real(end.value) if flat.is_complex() else end.value
        columns = columns if columns.ndim == 1 else columns.flatten(1)
        value, floor = columns.masked_fill(_along(lost, columns), 0.0), end.floor.masked_fill(lost, 0.0)
        kind = torch.where(touches, end.column + EXTRAPOLATED, LOGARITHMIC)
        none, unknown = torch.full_like(rate, torch.inf), torch.full_like(rate, torch.nan)
        hints = (seen.unresolved[tail].to(rate.dtype), none, none, unknown)
        return _enter(new, part, (value, end.error, floor), splittable, kind, hints)


def _enter(
    new: NewIntervals,
    part: slice,
    sums: tuple[Tensor, Tensor, Tensor],
    splittable: Tensor,
    kind: Tensor,
    hints: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Cells:
    """Return cells, of which value, error and floor are known, lean, pole, height and f in the middle."""
    value, *bounds = sums
    sums_of = torch.stack(sums) if value.ndim == 1 else torch.cat((value.T, torch.stack(bounds)))
    whole = (new.owner[part], splittable.to(torch.int64), new.row[part], kind)
    real = (new.start[part], new.stop[part], *hints, new.at_start[part], new.at_stop[part])
    return Cells(sums_of, torch.stack(whole), torch.stack(real))


def _along(per_cell: Tensor, columns: Tensor) -> Tensor:
    """Return one number for each cell in a shape that broadcasts with ``columns``."""
    return per_cell if columns.ndim == 1 else per_cell[:, None]
