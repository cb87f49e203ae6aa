"""What f's values say about the cells of intervals: value, error, floor, and hints for refining them.

The same stands in the kernel's ``estimates.c``, for a few cells at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import (
    BEYOND,
    FLOOR,
    PARTS,
    PLACE,
    ROUNDED,
    SINGULAR,
    UNRESOLVED,
    Sums,
    blame,
    bound_error,
    largest_component,
    null_rule_error,
    see_pole,
    weigh,
)
from quadgrad._core.estimates.singular_ends import NEAREST, SHORTEST, Deep, conclude
from quadgrad._core.estimates.spikes import Sight, Spikes, find_alone, quiet_below
from quadgrad._core.mesh.bisection import Spots, beside_ends
from quadgrad._core.mesh.cells import BESIDE_END, STEP, NewIntervals
from quadgrad._core.mesh.interval import EXTRAPOLATED, LINEAR
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.reduce import align, apply, mean, one_number, reals
from quadgrad._core.rules import RuleTensors
from quadgrad._core.rules.rule import LOOKS

__all__ = ["IntervalEstimate"]


@dataclass(slots=True)
class IntervalEstimate:
    """The estimate with a rule whose ``outermost`` node is that far from the edge.

    ``info`` is that of the numbers that f is called with. ``held`` are the columns of the epsilon table, one
    for each cell with logarithmic nodes, where they are not to be chosen. ``spikes`` gathers what single nodes
    saw.
    """

    rule: RuleTensors
    rtol: float
    info: torch.finfo
    outermost: float
    held: Tensor | None = None
    spikes: Spikes = field(default_factory=Spikes)

    def __call__(self, new: NewIntervals, places: Spots, y: Tensor, noise: float) -> Cells:
        """Return new cells with what f's values ``y`` ``(rows, n, *event)`` say about them."""
        assert places.factor is not None
        weighted = y * align(places.factor, y)
        m = self.rule.nodes.shape[0]
        if new.logarithmic:
            return self._logarithmic(new, places, y, weighted, noise)
        if places.seen is None:
            return self._linear(new, weighted, None, noise)
        edges = torch.stack((one_number(weighted[0]), one_number(weighted[m + 1]))) / new.layout.scale
        new.at_edges = edges.masked_fill(~places.seen, torch.nan)
        return self._linear(new, weighted[1 : m + 1], weighted if places.looks else None, noise)

    def _linear(self, new: NewIntervals, weighted: Tensor, whole: Tensor | None, noise: float) -> Cells:
        """Return cells by f at their nodes; of a ``whole`` piece also at its edges and at the looks."""
        real, moduli, scale = reals(weighted, 2), weighted.abs(), new.layout.scale
        sums = weigh(self.rule, real, real.abs() if weighted.is_complex() else reals(moduli, 2))
        # how far rounding moves a node, in parts of the cell
        spread = new.layout.reach / scale * (PLACE * self.info.eps)
        blur = sums.variation * align(spread.clamp_max(1.0), sums.variation)
        # Decay is looked for above the rounding of x, too.
        seen = sums.size.add(blur, alpha=0.5 / noise)
        error, decay, pairs = null_rule_error(self.rule, sums.nulls, seen, noise)
        self.spikes.add(Sight(self.rule, new, real, sums.nulls, decay, seen), noise)
        size, unresolved = sums.size, largest_component(decay) >= UNRESOLVED
        if weighted.is_complex():
            error, size = (t.unflatten(1, (-1, 2)) for t in (error, size))
            error, size = torch.hypot(*error.unbind(-1)), size.sum(-1)  # squares of small ones would underflow
        gaps, highest = self._gaps(new, sums, pairs)
        error = largest_component(error).add(gaps.sum(0), alpha=self.outermost)
        size = largest_component(size)
        if whole is None and (image := new.layout.image) is not None:
            # At infinity any power may begin below the coefficients seen: there their decay is not continued.
            far = (image.no_lower & (new.start == 0.0)) | (image.no_upper & (new.stop == 0.0))
            error = torch.maximum(error, highest * far)
        if whole is not None:
            blur = blur.unflatten(1, (-1, 2)).amax(2) if weighted.is_complex() else blur
            between = apply(self.rule.at_looks, weighted)
            between = self._between(between - whole[-LOOKS:], moduli, blur, noise)
            quiet = quiet_below(real, seen, noise)
            self._note_looks(new, between, pairs, decay, quiet, 1 + weighted.is_complex())
            self._note_alone(new, reals(whole, 2), quiet)
            error = torch.maximum(error, largest_component(between))
        error, floor, improvable = bound_error(error, size, largest_component(sums.variation) * spread, noise)
        floor = floor.masked_fill(scale <= 0.0, self.info.tiny)  # an empty interval is no integrand without a value
        blunt, narrow = spread >= 0.25 * PLACE * self.outermost, new.stop - new.start <= self.info.tiny**0.5
        lost = error.isinf()
        moduli = moduli.flatten(2).sum(2) if moduli.ndim > 2 else moduli
        pole, height = see_pole(self.rule, moduli, noise, unresolved)
        halves = sums.halves
        halves = torch.stack([largest_component(half) for half in halves]) if halves.ndim > 2 else halves
        middle = one_number(weighted[len(weighted) // 2]) / scale
        value, kind = sums.value.masked_fill(align(lost, sums.value), 0.0), torch.full_like(new.row, LINEAR)
        hints = (blame(halves + gaps, unresolved), pole, height, middle)
        splittable = self._splittable(improvable, blunt, narrow, new.stop - new.start)
        return _enter(new, (value, error, floor), splittable, kind, hints)

    def _note_looks(
        self, new: NewIntervals, off: Tensor, highest: Tensor, decay: Tensor, quiet: Tensor, each: int
    ) -> None:
        """Keep looks of resolved components that are ``off``; of the columns of ``each`` the first counts."""
        least = torch.maximum(highest * BEYOND, quiet).masked_fill(decay >= UNRESOLVED, torch.inf)
        off, least = (t.flatten(1) if t.ndim > 1 else t[:, None] for t in (off, least))
        off = (off > least[:, ::each]).any(1, keepdim=True).expand(-1, LOOKS)
        looks = torch.arange(-LOOKS, 0, device=off.device) % self.rule.joint.shape[1]
        self.spikes.add_places(off, looks, self.rule, new)

    def _note_alone(self, new: NewIntervals, values: Tensor, quiet: Tensor) -> None:
        """Keep what of ``values`` at edge, nodes, edge and looks is off by itself, where both edges are known."""
        # What was seen beside the ends is moved there along the slope to the nodes beside them.
        near = beside_ends(new.layout.base, new.layout.extent, self.info.eps)
        near = align(near / (self.outermost - near), quiet)
        m, values = len(self.rule.nodes), values.clone()
        values[0] += near * (values[0] - values[1])
        values[m + 1] += near * (values[m + 1] - values[m])
        found = find_alone(self.rule, values, quiet)
        alone, place = (t.flatten(1) if t.ndim > 1 else t[:, None] for t in found)
        known = new.at_edges.isfinite().all(0)[:, None]
        self.spikes.add_places(alone & known, place, self.rule, new)

    def _splittable(self, worth: Tensor, blunt: Tensor, narrow: Tensor, width: Tensor) -> Tensor:
        """Return 1 where splitting is worth it and can be done, -1 where it is worth it, but cells are too narrow.

        Nor can it be done where nodes are ``blunt``: rounded by as much as they are apart. In single precision that
        is no more than rounding, and double precision the remedy. Nor is it more in cells of some ``width``, a
        fraction of the interval: they have few numbers. Elsewhere it is a singularity.
        """
        deep = narrow
        if self.info.eps <= torch.finfo(torch.float64).eps:
            deep = narrow | (blunt & (width <= SINGULAR))
        return (-1 * (blunt | narrow)).sub_(deep.to(torch.int64)).add_(1).mul_(worth)

    def _gaps(self, new: NewIntervals, sums: Sums, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much f is off between a cell's ends and its outermost nodes, and the highest coefficients.

        That is ``(2, n)``, where the rule sees nothing, and ``(n,)``.

        Were the integrand smooth there, its interpolating polynomial would meet its known value at the end, but for
        :data:`BEYOND` times its highest coefficients, which the null rules have left. If a jump or a kink is
        between the two, they differ by at least as much as it matters.
        """
        edges = sums.edges
        if edges.ndim > 2:
            edges, allowed = edges.sum(2), allowed.sum(1)
        gaps = (edges - new.at_edges * new.layout.scale).abs_().sub_(allowed, alpha=BEYOND).clamp_min_(0.0)
        return gaps.nan_to_num(0.0, 0.0, 0.0), allowed

    def _between(self, gaps: Tensor, moduli: Tensor, blur: Tensor, noise: float) -> Tensor:
        """Return how far the interpolating polynomial is from f at places between the nodes, less its rounding.

        Five pairs of coefficients that decay say nothing of what is below the last of them, and a rule alone in its
        cell is vouched for by nothing else.
        """
        gaps = gaps.abs().amax(0).sub_(moduli.amax(0), alpha=FLOOR * noise)
        gaps = gaps.sub_(blur if blur.ndim == 1 else blur.reshape(gaps.shape), alpha=ROUNDED)
        return gaps.clamp_min_(0.0).nan_to_num_(0.0, 0.0)

    def _logarithmic(self, new: NewIntervals, places: Spots, y: Tensor, weighted: Tensor, noise: float) -> Cells:
        layout, touches, steps, tiny = new.layout, places.touches, places.steps, self.info.tiny
        assert layout.outer is not None and layout.rate is not None
        assert touches is not None and steps is not None and places.near is not None
        if y.ndim > 2:
            y, weighted = y.flatten(2), weighted.flatten(2)
        m = self.rule.nodes.shape[0]
        (_, values, looks, deep), rule = weighted.split((1, m, LOOKS, 2)), self.rule
        value, nulls, _, edges = apply(rule.functionals, values).split(PARTS)
        # Apart from these, as replay does: in one product of matrices their sums would be rounded differently.
        terms = apply(rule.shares, values)
        # In the moduli of both parts' null rules: beside a singularity one decays less evenly.
        moduli = values.abs()
        size = mean(rule.weights, moduli)
        # Near a singularity f changes as much as the distance does, which rounding of x does to it.
        reach, rate = layout.reach, layout.rate
        shaken = reach * rate * -self.info.eps
        blur = mean(rule.weights, y[1 : m + 1].abs()) * align(PLACE * shaken, size)
        seen = size.add(blur, alpha=0.5 / noise)
        error, decay, highest = null_rule_error(rule, nulls, seen, noise)
        self.spikes.add(Sight(rule, new, values, nulls, decay, seen), noise)
        unresolved = largest_component(decay) >= UNRESOLVED
        # As in evenly spread cells the polynomial must meet f at the edges, unless it is singular there.
        gaps = (edges - weighted[: m + LOOKS + 2 : m + LOOKS + 1]).abs().sub_(highest, alpha=BEYOND).clamp_min_(0.0)
        gaps[1].masked_fill_(align(touches, size), 0.0)
        error = torch.maximum(error, self._between(apply(rule.at_looks, values) - looks, moduli, blur, noise))
        errors = (error, gaps.sum(0) * self.outermost, blur)
        size = largest_component(size)
        # Where f cancels so close to the end that it is not finite, it says nothing of the series.
        finite = y[-2:].isfinite()
        steps = steps * (finite if y.ndim == 2 else finite.all(2))
        beyond = Deep(deep, steps, edges[1], shaken / places.near)
        end = conclude(value[0], terms, touches, errors, size, (self.rtol, noise), beyond, self.held)
        lost, step = end.error.isinf(), 1.0 - (1.0 - STEP) * touches
        # Closer to the end rounding of x weighs more: there the extrapolation may be worse.
        worth = (end.curable > end.floor + end.blur) & (end.blur * touches < (0.5 * STEP) * end.error)
        nearest = (layout.outer * torch.exp(rate)).abs() * step
        closest = nearest
        if self.info.eps > torch.finfo(torch.float64).eps:
            # A cell that is not resolved farther out can be halved where nodes closer to the end are blunt.
            closest = torch.where(unresolved, STEP * (new.stop - new.start), nearest)
        blunt = closest * layout.extent <= 4.0 * self.info.eps * reach
        narrow = (nearest <= max(NEAREST, tiny**0.5)) | (rate >= -SHORTEST)
        # In case that the cell is halved after all; of one at the end, f as close to it as a first cell looks.
        if layout.image is None:
            at_edges = y[:: m + BESIDE_END - 1]
        else:
            at_edges = torch.stack((weighted[0], weighted[-1])) / align(
                torch.stack((layout.scale * layout.outer.abs(), places.near)), weighted
            )
        outer, inner = (one_number(f) for f in at_edges.unbind())
        at_edges = torch.stack((outer, inner.masked_fill(touches & (steps[1] == 0.0), torch.nan)))
        new.at_edges = torch.where(new.start >= 0.0, at_edges.flip(0), at_edges)
        none, unknown = torch.full_like(rate, torch.inf), torch.full_like(rate, torch.nan)
        columns = reals(end.value, 1)
        # Rounding as large as all that is there makes it no less: see `allowed_error` in decide.py.
        floor = torch.where(5.0 * end.floor > end.size, end.size * (FLOOR * noise), end.floor)
        totals = (columns.masked_fill(align(lost, columns), 0.0), end.error, floor.masked_fill(lost, 0.0))
        splittable = self._splittable(lost | worth, blunt, narrow, nearest)
        return _enter(new, totals, splittable, end.column + EXTRAPOLATED, (unresolved, none, none, unknown))


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
    real = (new.start, new.stop, *hints, *new.at_edges.unbind())
    return Cells(totals, torch.stack(whole), torch.stack(real))
