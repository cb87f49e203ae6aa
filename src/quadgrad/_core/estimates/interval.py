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
from quadgrad._core.estimates.spikes import Spikes, find_spikes, quiet_below
from quadgrad._core.mesh.bisection import Spots
from quadgrad._core.mesh.cells import STEP, NewIntervals
from quadgrad._core.mesh.interval import EXTRAPOLATED, LINEAR, LOGARITHMIC
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.reduce import align, apply, mean, one_number, reals
from quadgrad._core.rules import RuleTensors
from quadgrad._core.rules.rule import SHARES

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
            return self._logarithmic(new, places, y[1 : m + 1], weighted, noise)
        if places.known is None:
            return self._linear(new, weighted, None, noise)
        edges = torch.stack((one_number(weighted[0]), one_number(weighted[m + 1]))) / new.layout.scale
        new.known = edges.masked_fill(~places.known, torch.nan)
        return self._linear(new, weighted[1 : m + 1], weighted[m + 2 :] if places.looks else None, noise)

    def _linear(self, new: NewIntervals, weighted: Tensor, looks: Tensor | None, noise: float) -> Cells:
        real, moduli, scale = reals(weighted, 2), weighted.abs(), new.layout.scale
        sums = weigh(self.rule, real, real.abs() if weighted.is_complex() else reals(moduli, 2))
        # how far rounding moves a node, in parts of the cell
        spread = new.layout.reach / scale * (PLACE * self.info.eps)
        blur = sums.variation * align(spread.clamp_max(1.0), sums.variation)
        # Decay is looked for above the rounding of x, too.
        signed, unseen = sums.nulls.clone(), sums.size.add(blur, alpha=0.5 / noise)
        error, decay = null_rule_error(self.rule, sums.nulls, unseen, noise)
        quiet = quiet_below(real, unseen, noise)
        spikes = find_spikes(self.rule, real, new.known * scale, signed, decay, quiet)
        self.spikes.add(*spikes, self.rule, (new.row, new.start, new.stop))
        size, unresolved = sums.size, largest_component(decay) >= UNRESOLVED
        if weighted.is_complex():
            error, size = (t.unflatten(1, (-1, 2)) for t in (error, size))
            error, size = torch.hypot(*error.unbind(-1)), size.sum(-1)  # squares of small ones would underflow
        gaps, highest = self._gaps(new, sums)
        error, size = largest_component(error) + gaps.sum(0) * self.outermost, largest_component(size)
        if looks is None and (image := new.layout.image) is not None:
            # At infinity any power may begin below the coefficients seen: there their decay is not continued.
            far = (image.no_lower & (new.start == 0.0)) | (image.no_upper & (new.stop == 0.0))
            error = torch.maximum(error, highest * far)
        if looks is not None:
            blur = blur.unflatten(1, (-1, 2)).amax(2) if weighted.is_complex() else blur
            between = self._between(weighted, looks, blur, noise)
            self._note_looks(new, between, sums.nulls[0], decay, quiet, 1 + weighted.is_complex())
            error = torch.maximum(error, largest_component(between))
        error, floor, improvable = bound_error(error, size, largest_component(sums.variation) * spread, noise)
        floor = floor.masked_fill(scale <= 0.0, self.info.tiny)  # an empty interval is no integrand without a value
        blunt, narrow = spread >= 0.25 * PLACE * self.outermost, new.stop - new.start <= self.info.tiny**0.5
        lost = error.isinf()
        pole, height = see_pole(self.rule, moduli.flatten(2).sum(2) if moduli.ndim > 2 else moduli, noise)
        height = height.masked_fill(lost | ~unresolved, torch.inf)
        left, right = (largest_component(half) + gap for half, gap in zip(sums.halves, gaps, strict=True))
        middle = one_number(weighted[len(weighted) // 2]) / scale
        value, kind = sums.value.masked_fill(align(lost, sums.value), 0.0), torch.full_like(new.row, LINEAR)
        hints = (blame(left, right, unresolved), pole, height, middle)
        return _enter(new, (value, error, floor), self._splittable(improvable, blunt, narrow), kind, hints)

    def _note_looks(
        self, new: NewIntervals, off: Tensor, highest: Tensor, decay: Tensor, quiet: Tensor, each: int
    ) -> None:
        """Keep looks of resolved components that are ``off``; of the columns of ``each`` the first counts."""
        least = torch.maximum(highest * BEYOND, quiet).masked_fill(decay >= UNRESOLVED, torch.inf)
        off, least = (t.flatten(1) if t.ndim > 1 else t[:, None] for t in (off, least))
        self.spikes.add_looks((off > least[:, ::each]).any(1), self.rule, (new.row, new.start, new.stop))

    def _splittable(self, worth: Tensor, blunt: Tensor, narrow: Tensor) -> Tensor:
        """Return 1 where splitting is worth it and can be done, -1 where it is worth it, but cells are too narrow.

        Nor can it be done where nodes are ``blunt``: rounded by as much as they are apart. In single precision that
        is no more than rounding, and double precision the remedy; there it is a singularity.
        """
        single = self.info.eps > torch.finfo(torch.float64).eps
        stays = blunt | narrow
        return worth * (1 - stays.to(torch.int64) - (narrow if single else stays).to(torch.int64))

    def _gaps(self, new: NewIntervals, sums: Sums) -> tuple[Tensor, Tensor]:
        """Return how much f is off between a cell's ends and its outermost nodes, and the highest coefficients.

        That is ``(2, n)``, where the rule sees nothing, and ``(n,)``.

        Were the integrand smooth there, its interpolating polynomial would meet its known value at the end, but for
        :data:`BEYOND` times its highest coefficients, which the null rules have left. If a jump or a kink is
        between the two, they differ by at least as much as it matters.
        """
        edges, allowed = sums.edges, sums.nulls[0]
        if edges.ndim > 2:
            edges, allowed = edges.sum(2), allowed.sum(1)
        gaps = (edges - new.known * new.layout.scale).abs_().sub_(allowed, alpha=BEYOND).clamp_min_(0.0)
        return gaps.nan_to_num(0.0, 0.0, 0.0), allowed

    def _between(self, values: Tensor, looks: Tensor, blur: Tensor, noise: float) -> Tensor:
        """Return how far the interpolating polynomial of ``values`` is from f at places between the nodes.

        Five pairs of coefficients that decay say nothing of what is below the last of them, and a rule alone in its
        cell is vouched for by nothing else.
        """
        gaps = (apply(self.rule.at_looks, values) - looks).abs().amax(0)
        rounding = (values.abs().amax(0) * (FLOOR * noise)).add(blur.reshape(gaps.shape), alpha=ROUNDED)
        return (gaps - rounding).clamp_min(0.0).nan_to_num(0.0, 0.0)

    def _logarithmic(self, new: NewIntervals, places: Spots, y: Tensor, weighted: Tensor, noise: float) -> Cells:
        layout, touches, tiny = new.layout, new.start * new.stop == 0.0, self.info.tiny
        assert layout.outer is not None and layout.rate is not None
        assert places.steps is not None and places.steps_near is not None
        if y.ndim > 2:
            y, weighted = y.flatten(2), weighted.flatten(2)
        m = self.rule.nodes.shape[0]
        ends, values, looks = weighted[: m + 2 : m + 1], weighted[1 : m + 1], weighted[m + 2 :]
        value, nulls, _, _, edges = apply(self.rule.functionals, values).split(PARTS)
        # In the moduli of both parts' null rules: beside a singularity one decays less evenly.
        nulls, size = nulls.abs() if y.is_complex() else nulls, mean(self.rule.weights, values.abs())
        # Near a singularity f changes as much as the distance does, which rounding of x does to it.
        reach, rate = layout.reach, layout.rate
        blur = mean(self.rule.weights, y.abs()) * align(reach * rate * (-PLACE * self.info.eps), size)
        signed, unseen = nulls.clone(), size.add(blur, alpha=0.5 / noise)
        error, decay = null_rule_error(self.rule, nulls, unseen, noise)
        real = reals(values, 2)
        if y.is_complex():  # one of both parts
            signed, decay, unseen = (t.repeat_interleave(2, -1) for t in (signed, decay, unseen))
        quiet = quiet_below(real, unseen.reshape(real.shape[1:]), noise)
        shape = (-1, *real.shape[1:])
        spikes = find_spikes(self.rule, real, None, signed.reshape(shape), decay.reshape(shape[1:]), quiet)
        self.spikes.add(*spikes, self.rule, (new.row, new.start, new.stop), (layout.outer, layout.rate))
        decay = decay[..., ::2] if y.is_complex() else decay
        unresolved = largest_component(decay) >= UNRESOLVED
        # As in evenly spread cells the polynomial must meet f at the edges, unless it is singular there.
        gaps = (edges - ends).abs().sub_(nulls[0], alpha=BEYOND).clamp_min_(0.0)
        gaps[1].masked_fill_(align(touches, size), 0.0)
        error = torch.maximum(error, self._between(values, looks[:-1], blur, noise))
        hidden, terms = gaps.sum(0) * self.outermost, apply(self.rule.shares, values)
        errors = (error, hidden, blur)
        size = largest_component(size)
        fraction = torch.exp(rate * (1.0 + places.steps_near / SHARES * touches))
        shaken = self.info.eps * reach / (layout.extent * layout.outer.abs() * fraction)
        deep = (ends[1], places.steps, edges[1], looks[-1], places.steps_near, shaken)
        end = conclude(value[0], terms, touches, errors, size, (self.rtol, noise), deep, self.held)
        lost, step = end.error.isinf(), 1.0 - (1.0 - STEP) * touches
        # Closer to the end rounding of x weighs more: there the extrapolation may be worse.
        worth = (end.curable > end.floor + end.blur) & (end.blur * touches < (0.5 * STEP) * end.error)
        nearest = (layout.outer * torch.exp(rate)).abs() * step
        blunt = nearest * layout.extent <= 4.0 * self.info.eps * reach
        narrow = (nearest <= max(NEAREST, tiny**0.5)) | (rate >= -SHORTEST)
        kind = LOGARITHMIC + (end.column + (EXTRAPOLATED - LOGARITHMIC)) * touches
        # In case that the cell is halved after all; of one at the end, f as close to it as a first cell looks.
        near = looks[-1].masked_fill(align(places.steps_near == 0.0, looks[-1]), torch.nan)
        inner = torch.where(align(touches, near), near, ends[1])
        known = torch.stack((one_number(ends[0]), one_number(inner) / fraction)) / (
            layout.scale * layout.outer.abs()
        )
        new.known = torch.where(new.start >= 0.0, known.flip(0), known)
        none, unknown = torch.full_like(rate, torch.inf), torch.full_like(rate, torch.nan)
        columns = reals(end.value, 1)
        totals = (columns.masked_fill(align(lost, columns), 0.0), end.error, end.floor.masked_fill(lost, 0.0))
        return _enter(
            new, totals, self._splittable(lost | worth, blunt, narrow), kind, (unresolved, none, none, unknown)
        )


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
