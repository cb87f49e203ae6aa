"""What f's values say about boxes: value, error, floor, and the axis along which to halve them.

The error comes from three levels of null rules, which see f's polynomial coefficients of ever lower degree: how
fast they fall from one level to the next tells how large the first ones are that the rule integrates wrongly
(Berntsen, Espelid and Genz, *ACM TOMS* 17, 1991). Of a product rule each axis has the one-dimensional estimate,
integrated over the others. What lies between the outermost nodes and the faces is compared with the polynomial
along each axis: a face of f's own, a jump or a kink, may lie there. ADR 49.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.estimates.null_rules import BEYOND, PLACE, bound_error, largest_component, null_rule_error
from quadgrad._core.mesh.boxes import DEEPEST, FARTHEST, BoxPlaces, NewBoxes
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.reduce import apply, reals
from quadgrad._core.rules import BoxRule, RuleTensors
from quadgrad._core.rules.box import BESIDE_FACE, BoxRuleTensors
from quadgrad._core.rules.rule import NULL_PAIRS

__all__ = ["BoxEstimate", "Readings", "compare_with_parents"]

SAFETY = 10.0
"""How many times what is extrapolated from the null rules the error is taken for."""

POWER = 2.0
"""Null rules of three levels fall by two powers from the lowest to the highest, and from there by one to the error.

Half a power is left: with it 99.9 % of cells are below 100 times their median, with all three below 400 times.
"""

CAUTION, LEARNT, LEAST = 10.0, 0.25, 0.002
"""Children take so many times what their parent was off, as a part of what it was estimated to be, for their own
estimate's; no less than this part of what the parent took, and no less than that in all."""

ROUGH, SLOW = 0.5, 5.0
"""Where null rules fall more slowly the error is taken for so many times more: a kink or a jump may be anywhere."""

STRAIGHT, KINK = 0.3, 1.0
"""Along an axis the two highest coefficients are at most this part of the two before, or count as an error so many
times."""

ROUNDED = 4.0
"""Null rules of so many eps times the integral of abs(f) are taken for rounding."""

SMOOTH = 0.3
"""Where null rules fall faster than this children may learn from their parents to be less careful."""

HIDDEN = 0.5
"""Of a gap between f close to a face and the polynomial, this much times the strip that no node sees is an
error."""

TIE = 0.9
"""Axes along which f is nearly as rough as along the roughest one: of these the widest is halved."""

AHEAD = 3
"""On a tie, no axis is halved so many times more often than another."""

UNRESOLVED = 0.1
"""Nor on no tie, if along the other f's highest coefficients are this part of it: a singular point is on both."""

NARROWEST = 8.0
"""A cell is not halved if f would be called so few spacings of numbers away from its face."""


@dataclass(slots=True)
class Readings:
    """What linear functionals, and sizes, make of f's values on cells: all that is kept of them.

    ``values`` ``(rows, n, components)`` are the integral over the unit cell, the null rules, the integral of abs(f)
    and the six rows of :attr:`BoxRuleTensors.along` for each axis; ``sizes`` ``(1 + 2 d, n)`` the largest size of f
    at the nodes, and that close to each face. ``scale`` ``(n,)`` is the volume where it is not in f's values.
    """

    values: Tensor
    sizes: Tensor
    scale: Tensor

    def room(self, n: int) -> Readings:
        """Return room for those of n cells: many small parts would leave memory in pieces."""
        rows, _, components = self.values.shape
        return Readings(
            self.values.new_empty((rows, n, components)), self.sizes.new_empty((len(self.sizes), n)),
            self.scale.new_empty(n),
        )  # fmt: skip

    def put(self, part: slice, readings: Readings) -> None:
        """Enter those of some cells."""
        self.values[:, part], self.sizes[:, part], self.scale[part] = (
            readings.values,
            readings.sizes,
            readings.scale,
        )


@dataclass(slots=True)
class BoxEstimate:
    """The estimate with a rule; ``x_dtype`` is that of the numbers that f is called with.

    What has to see every value is done for one block of them after the other (:meth:`read`). What that
    tells is told of the cells of all blocks (:meth:`judge`): it takes many small operations, however few they are.
    """

    rule: BoxRule
    x_dtype: torch.dtype
    flat: bool

    @property
    def eps(self) -> float:
        """The spacing of x at 1."""
        return torch.finfo(self.x_dtype).eps

    def __call__(self, new: NewBoxes, places: BoxPlaces, y: Tensor, noise: float) -> Cells:
        """Return new cells with what f's values ``y`` ``(rows, n, *event)`` say about them."""
        return self.judge(new, places.layout, self.read(places.factor, y), y.is_complex(), noise)

    def read(self, factor: Tensor, y: Tensor) -> Readings:
        """Return what is kept of f's values ``y`` ``(rows, n, *event)``, to be multiplied by ``factor``."""
        rule = self.rule.tensors(torch.float64, y.device, self.x_dtype)
        real = reals(y, 2)
        real = real.reshape(*y.shape[:2], real.shape[2:].numel())
        if factor.shape[0] > 1:
            real = real * factor[..., None]
            scale = torch.ones_like(factor[0])
        else:  # what is the same at all nodes of a cell need not meet each of them
            scale = factor[0]
        m, (n, c) = len(rule.weights), real.shape[1:]
        body = real[:m].reshape(m, n * c)
        moduli = body.abs()
        size = (rule.sizes @ moduli).reshape(1, n, c)
        height = moduli.amax(0).reshape(n, c).amax(1) if n * c else size.new_zeros(n)
        sums = apply(torch.cat((rule.weights[None], rule.nulls)), body).unflatten(1, (n, c))
        nulls = [self._product_nulls(body.reshape(m, n, c))] if self.rule.factor is not None else []
        faces = real[m:].abs()
        faces = faces.amax(2) if c else faces.sum(2)
        values = torch.cat((sums, *nulls, size, self._along(rule, real).flatten(0, 1)))
        return Readings(values, torch.cat((height[None], faces)), scale)

    def judge(self, new: NewBoxes, layout: Any, seen: Readings, is_complex: bool, noise: float) -> Cells:
        """Return new cells with what was read of f's values."""
        d, n = self.rule.d, len(new)
        levels = tuple(len(level) for level in self.rule.nulls)
        value, nulls, size, along = seen.values.split((1, len(seen.values) - 2 - 6 * d, 1, 6 * d))
        size, along, scale, volume = size[0], along.unflatten(0, (6, d)), seen.scale, seen.scale.abs()
        blur = self._blur(layout, along, size)
        if self.rule.factor is None:
            rounding = ROUNDED * noise * size + blur
            (error, fall), rough = _symmetric_error(nulls, levels, rounding), along[4:].abs().sum(0)
            kinked = self._kinked(along, error, size, noise)
            smooth = (largest_component(fall) < SMOOTH) & (kinked.sum((0, 2)) == 0.0)
            error = torch.maximum(error, KINK * kinked.amax(0))
        else:
            error, rough = self._product_error(nulls.unflatten(0, (d, -1)), size, noise)
            smooth = torch.zeros_like(scale, dtype=torch.bool)
        gaps = self._gaps(along)
        hidden = gaps.sum((0, 1)) * (0.5 * (1.0 - outermost(self.rule)) * HIDDEN)
        error, size, hidden, blur = (_moduli(t, is_complex) * volume for t in (error, size, hidden, blur))
        least = torch.where(smooth, LEAST, 1.0)
        trust = torch.ones_like(error) if new.trust is None else torch.maximum(new.trust, least)
        raw = error.nan_to_num(torch.inf, torch.inf)
        error = torch.maximum(error * trust, hidden)
        error, floor, curable = bound_error(error, size, blur, noise)
        # Null rules take blur for roughness. Where f is not finite both are infinite, and that is curable.
        curable = curable & ~((error <= SAFETY * SLOW * blur) & error.isfinite())
        value = (value[0] * scale[:, None]).T.masked_fill(error.isinf(), 0.0)
        axis = self._axis(layout, new, rough, gaps, size / volume, noise)
        whole = torch.empty((4 + 2 * d, n), dtype=torch.int64, device=axis.device)
        whole[0], whole[1], whole[2], whole[3] = (
            new.owner, self._splittable(layout, new, axis, curable), new.row, axis,
        )  # fmt: skip
        whole[4 : 4 + d], whole[4 + d :] = new.level, new.place
        sizes = (seen.sizes * (volume * torch.exp2(new.level.sum(0).double()))).nan_to_num_(0.0, 0.0, 0.0)
        real = torch.cat((sizes[:1], raw[None], trust[None], least[None], sizes[1:]))
        return Cells(torch.cat((value, error[None], floor[None])), whole, real)

    def _along(self, rule: BoxRuleTensors, real: Tensor) -> Tensor:
        """Return the axes' polynomials close to the faces, less f there, and their highest coefficients.

        Shape ``(6, d, n, components)``.
        """
        d, s = rule.lines.shape
        lines = real[rule.lines.flatten()].unflatten(0, (d, s)).transpose(0, 1)
        along = (rule.along @ lines.flatten(1)).unflatten(1, lines.shape[1:])
        faces = real[-2 * d :].unflatten(0, (d, 2)).transpose(0, 1)
        return torch.cat((along[:2] - faces, along[2:]))

    def _kinked(self, along: Tensor, error: Tensor, size: Tensor, noise: float) -> Tensor:
        """Return the highest coefficients along axes on which they hardly fall, ``(d, n, components)``.

        A kink across an axis may look smooth to the null rules, which see f's symmetric part alone.
        """
        next_, top = along[2:].abs().unflatten(0, (2, 2)).sum(1)
        above = (top - 20.0 * noise * size).clamp_min(0.0)
        return above * ((above > STRAIGHT * next_) & (above > error))

    def _gaps(self, along: Tensor) -> Tensor:
        """Return by how much more f close to the faces is off the polynomials than a smooth function may be.

        Where f is not finite there nothing is told: an end of an infinite side, or a singular face.
        """
        allowed = BEYOND * (along[4].abs() + along[5].abs())
        return (along[:2].abs() - allowed).clamp_min_(0.0).nan_to_num_(0.0, 0.0, 0.0)

    def _product_nulls(self, body: Tensor) -> Tensor:
        """Return the null rules along each axis, integrated over the others, ``(d pairs, n, components)``."""
        factor, d = self.rule.factor, self.rule.d
        assert factor is not None
        line: RuleTensors = factor.tensors(torch.float64, body.device)
        s, pairs = len(line.nodes), line.functionals[1 : 1 + 2 * NULL_PAIRS]
        grid = body.reshape(*[s] * d, -1)
        rest = torch.ones(1, dtype=torch.float64, device=body.device)
        for _ in range(d - 1):
            rest = torch.outer(rest, line.weights).flatten()
        parts: list[Tensor] = []
        for axis in range(d):
            rows = grid.movedim(axis, 0).reshape(s, -1)
            nulls = (pairs @ rows).abs_().reshape(len(pairs), len(rest), -1)
            parts.append(torch.einsum("kmn,m->kn", nulls, rest))
        return torch.cat(parts).unflatten(1, body.shape[1:])

    def _product_error(self, nulls: Tensor, size: Tensor, noise: float) -> tuple[Tensor, Tensor]:
        """Return the error of a product rule, ``(n, components)``, and its part from each of the d axes."""
        assert self.rule.factor is not None
        line: RuleTensors = self.rule.factor.tensors(torch.float64, size.device)
        each = torch.stack([null_rule_error(line, axis, size, noise)[0] for axis in nulls])
        return each.sum(0), each

    def _blur(self, layout: Any, along: Tensor, size: Tensor) -> Tensor:
        """Return what rounding of x adds to the mean of f over each cell, ``(n, components)``."""
        if not self.flat:
            return torch.zeros_like(size)
        reach = torch.maximum(layout.corner.abs(), (layout.corner + layout.side).abs())
        spread = (PLACE * self.eps * reach / layout.side.abs()).clamp_max(1.0)
        variation = along[4:].abs().sum(0)
        blur = (spread[..., None] * (variation + size)).sum(0)
        return torch.minimum(blur, size) if self.eps > 0.0 else blur

    def _axis(self, layout: Any, new: NewBoxes, rough: Tensor, gaps: Tensor, size: Tensor, noise: float) -> Tensor:
        """Return the axis along which to halve each cell: where f is roughest, on a near-tie the widest."""
        inner = rough.sum(2).nan_to_num(torch.inf, torch.inf)
        rough, level = inner + gaps.sum((0, 3)), new.level.to(inner.dtype)
        width = layout.side.abs() if self.flat else torch.exp2(-level)
        top = rough.amax(0)
        tied = rough >= TIE * top - 10.0 * noise * size
        late = level > level.amin(0) + AHEAD
        axis = (width * tied).masked_fill(late & tied.sum(0).gt(1), 0.0).add_(tied * 1e-300).argmax(0)
        # A singular point in the middle of a face or of an axis stays there when another axis is halved, for ever.
        behind = (level + AHEAD < level.gather(0, axis[None])) & (inner > UNRESOLVED * size)
        return torch.where(behind.any(0), (inner * behind).nan_to_num(0.0).argmax(0), axis)

    def _splittable(self, layout: Any, new: NewBoxes, axis: Tensor, curable: Tensor) -> Tensor:
        """Return 1 where halving helps, -1 where it would if cells could be narrower, else 0."""
        level = new.level.gather(0, axis[None])[0]
        wide = (level < DEEPEST) & (new.place.gather(0, axis[None])[0] < FARTHEST)
        if self.flat:
            side = layout.side.gather(0, axis[None])[0].abs()
            reach = torch.maximum(layout.corner.abs(), (layout.corner + layout.side).abs()).gather(0, axis[None])[0]
            wide = wide & (0.5 * side * BESIDE_FACE[self.x_dtype] > NARROWEST * self.eps * reach)
        return curable * (2 * wide.to(torch.int64) - 1)


def outermost(rule: BoxRule) -> float:
    """Return how far on [-1, 1] the outermost node on an axis is from the centre."""
    return 2.0 * float(rule.nodes[rule.lines[0, -1], 0]) - 1.0


def _moduli(t: Tensor, is_complex: bool) -> Tensor:
    """Return the largest over the components ``(n, components)``, of the moduli where these are complex."""
    if is_complex:
        t = torch.hypot(*t.unflatten(1, (-1, 2)).unbind(2))  # squares of small ones would underflow
    return largest_component(t)


def _symmetric_error(nulls: Tensor, levels: tuple[int, ...], rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Return the error ``(n, components)`` from the null rules of all levels, and how slowly they fall.

    What is no more than ``rounding``, as of polynomials of low degree, does not tell that they fall slowly.
    """
    tiny = torch.finfo(nulls.dtype).tiny
    first, second, third = (level.abs().amax(0).clamp_min(tiny) for level in nulls.split(levels))
    # The highest level has one null rule, which may be 0 by chance: the slower of the two falls, from the lowest.
    above = torch.stack((first, second, third)) > rounding
    fall = torch.maximum(first / second * above[0], second / third * above[1]).clamp_max(1.0)
    fall = torch.where(above.any(0), fall, 1.0)  # of all that is rounding nothing is told
    error = torch.maximum(fall**POWER * third, torch.maximum(first, second) * (fall == 1.0))
    error = SAFETY * torch.where(fall > ROUGH, SLOW * error, error)
    error = torch.where(above[:2].all(0), error, torch.maximum(error, rounding))
    return torch.where(above.any(0), error, rounding), fall


def compare_with_parents(cells: Cells, parents: Cells) -> None:
    """Correct the errors of children, which stand next to each other, by what their parents' turned out to be.

    How far the children together are off their parent is the parent's true error, or nearly. Where its estimate was
    less, that of the children is as much too small; where it was far more, as f's kind is easier than the worst,
    they need not be as careful. That may be chance, so that from one generation to the next little is taken away.
    """
    pairs = cells.sums[:-2].unflatten(1, (-1, 2))
    gap = (pairs.sum(2) - parents.sums[:-2]).abs()
    gap = gap.amax(0) if len(gap) else torch.zeros_like(parents.sums[-2])
    raw, trust = parents.real[1], parents.real[2]
    trust = torch.maximum(CAUTION * gap / raw, trust * LEARNT).nan_to_num(1.0, 1.0).clamp(LEAST, 1.0 / LEAST)
    trust = trust.masked_fill(raw.isinf(), 1.0)
    # Beside a kink or a jump what the parent was off says nothing of the children.
    trust = torch.maximum(trust.repeat_interleave(2), cells.real[3])
    error = torch.maximum(cells.real[1] * trust, torch.where(gap > raw, 0.25 * gap, 0.0).repeat_interleave(2))
    # What is not f's roughness, such as a gap at a face, is not learnt from.
    cells.sums[-2] = torch.where(
        cells.sums[-2] > cells.real[1], torch.maximum(cells.sums[-2], error), torch.maximum(error, cells.sums[-1])
    )
    cells.real[2] = trust
    # What seemed to be nothing but rounding may be no more than not seen.
    cells.whole[1] += (cells.whole[1] == 0) & (cells.sums[-2] > 2.0 * cells.sums[-1])
