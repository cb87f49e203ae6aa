"""Cells that close in on an end of their piece, where the integrand may be singular.

Their nodes are spread evenly over the logarithm of the distance from the end. There an algebraic singularity is an
exponential, which the rule integrates as well as any smooth function. A cell that touches the end has nodes on its
outer :data:`quadgrad._core.mesh.interval.DEPTH` octaves; the integrals over equal shares of them are the terms of a
series that the epsilon algorithm sums to the end (:mod:`quadgrad._core.estimates.epsilon`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.estimates.epsilon import COLUMNS, extrapolate
from quadgrad._core.estimates.null_rules import FLOOR, SAFETY, largest_component
from quadgrad._core.mesh.interval import DEPTH
from quadgrad._core.reduce import align
from quadgrad._core.rules.rule import SHARES

__all__ = ["NEAREST", "SHORTEST", "Concluded", "Deep", "conclude"]

CLOSE = 0.1
"""A lower column is taken when its error is below this part of the relative tolerance."""

NEAREST = 2.0**-480
"""No node is closer to an end than this part of its piece: squares would underflow."""

LAWLESS = math.log(1e6)
"""How far f may be there from what the series makes of it, as a logarithm: powers of logarithms are less far."""

SETTLED = 0.5
"""A drift of which so much is left from term to term is that of a logarithm."""

LOGARITHM = 16.0
"""A power of a logarithm is so many times off what is expected, at most: its square from 2^-11 to 2^-44."""

SETTLING, DRIFTING = 0.9, 4.0
"""How much of a drift of rates is left from term to term at most; how much more than that it may be."""

EMERGES, AT_LEAST = 2.0, 1e-4
"""A drift that grows so many times from term to term is of something that begins there, and of no singularity; if
it is no less than that: what is smaller leaves little open, and may be rounding."""

LAYER = 2.0
"""A layer may reach to the innermost node: by so much farther than the cell's edge, and a little more."""

FAR = 50.0
"""The logarithm of a factor that stands for any."""

SHORTEST = 2.0**-20
"""Cells with logarithmic nodes are not refined when the logarithms of their ends are closer."""


@dataclass(slots=True)
class Concluded:
    """Cells with logarithmic nodes, ``k`` of them: the value ``(k, *event)``, the error ``(k,)`` and its parts.

    ``curable`` is what finer cells would mend, ``floor`` the rounding of f, ``blur`` that of x, ``doubt`` the
    limit's; ``column`` is -1 where a cell does not touch its end; ``size`` is the integral of abs(f), or the
    modulus of the value, where that is larger.
    """

    value: Tensor
    error: Tensor
    floor: Tensor
    blur: Tensor
    doubt: Tensor
    curable: Tensor
    column: Tensor
    size: Tensor


def conclude(
    value: Tensor,
    terms: Tensor,
    touches: Tensor,
    errors: tuple[Tensor, Tensor, Tensor],
    size: Tensor,
    tolerances: tuple[float, float],
    deep: Deep | None = None,
    held: Tensor | None = None,
) -> Concluded:
    """Sum up cells with logarithmic nodes, to the end where they touch it.

    Parameters
    ----------
    value : Tensor, shape (k, *event)
    terms : Tensor, shape (SHARES, k, *event)
        The integrals over equal shares of the cell.
    touches : Tensor of bool, shape (k,)
    errors : tuple of Tensor, shape (k, *event)
        That of the null rules, what is hidden at the edges, and what rounding of x adds.
    size : Tensor, shape (k,)
        The integral of abs(f).
    tolerances : tuple of float
        The relative tolerance, and the noise of one value of f.
    deep : Deep, optional
    held : Tensor of int64, shape (k,), optional
        The column of the epsilon table where it is not chosen here.
    """
    rtol, eps = tolerances
    sizes, inside = terms.abs(), ~touches
    unseen, hidden, blur = (largest_component(error) for error in errors)
    beyond, doubt, gain, column = to_the_end(terms, sizes, rtol, held)
    value, column = torch.where(align(touches, value), beyond, value), column.masked_fill(inside, -1)
    doubt, gain = doubt.masked_fill(inside, 0.0), gain.masked_fill(inside, 1.0)
    if deep is not None:
        lawless, missed = see_deep(terms, sizes, deep, errors[0] + errors[1], beyond - terms.sum(0))
        doubt = torch.where(lawless, torch.maximum(doubt, missed[0]), doubt) + missed[1]
    size = torch.maximum(size, largest_component(value.abs()))
    # What rounding does to the last terms extrapolation multiplies, in replay, too, whose terms differ by as much;
    # that of two sequences, or a logarithm, once more.
    last, multiplied = largest_component(sizes[-1]), torch.where(column > 1, gain**1.25, gain) - 1.0
    floor, blur = (FLOOR * eps) * torch.addcmul(size, multiplied, last), torch.minimum(gain * blur, size)
    curable = torch.addcmul(doubt + hidden, gain, unseen)
    error = (torch.maximum(curable, floor) + blur).nan_to_num(torch.inf, posinf=torch.inf)
    return Concluded(value, error, floor, blur, doubt, curable, column, size)


@dataclass(slots=True)
class Deep:
    """What is seen of cells that touch an end much closer to it than their nodes are, one column for each cell.

    ``values`` ``(2, k, *event)`` are f times dx/dtau at two places: far beyond the series' terms, and where a first
    cell looks; ``steps`` ``(2, k)`` is how many terms beyond the last one these are, 0 if f was not called there.
    ``edge`` ``(k, *event)`` is the interpolating polynomial at the innermost edge, and ``shaken``
    ``(k,)`` the part of the nearer place's distance from the end that rounding of x may change.
    """

    values: Tensor
    steps: Tensor
    edge: Tensor
    shaken: Tensor


def see_deep(
    terms: Tensor, sizes: Tensor, deep: Deep, error: Tensor, remainder: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Compare f closer to the end with what the series makes of it; its ``remainder`` lies beyond the terms.

    Return where f is not at all what is expected, ``(k,)``, see :func:`breaks_the_law`; what integral may be missed
    then, and what in any case.
    """
    (deepest, _), far = deep.values.abs().unbind(), align(deep.steps, deep.values).unbind()
    # Where all is nothing, or next to it, that is what the series says.
    tiny = torch.finfo(sizes.dtype).tiny
    logs = sizes[-4:].clamp_min(tiny).log()
    rates = logs.diff(dim=0)
    drifts, remainder, last, rate = rates.diff(dim=0).unbind(), remainder.abs(), logs[-1], rates[-1]
    lawless = breaks_the_law(last, rate, drifts[1], deepest.clamp_min(tiny), far[0])
    # Sizes may agree where signs do not; the phase of a complex power turns with the distance.
    near = deep.values[1].abs()
    if not terms.is_complex():
        near = torch.where(terms[-1] * deep.values[1] < 0.0, -near, near)
    missed = unexplained(last, rate, drifts, (near, far[1], deep), error, remainder)
    return lawless, (SAFETY * largest_component(remainder), missed)


def breaks_the_law(last: Tensor, rate: Tensor, drift: Tensor, deep: Tensor, steps: Tensor) -> Tensor:
    """Tell where f far closer to the end is not at all what the series' last terms make of it, shape ``(n,)``.

    A second scale hides there: the series decays as it should only down to some distance from the end, of which
    ``deep`` is ``steps`` terms beyond the last one. Of the terms' sizes the logarithm of the ``last`` one is given,
    how fast that changes, and how fast that rate.
    """
    expected = torch.addcmul(last, steps, rate).add_(math.log(SHARES))
    # A power of the logarithm lets the rate drift: by so much, at most, until it settles.
    off = torch.addcmul((deep.log() - expected).abs_(), steps, drift.abs(), value=-2.0 * SHARES)
    off = (off > LAWLESS) & (steps > 0)
    return off.flatten(1).any(1) if off.ndim > 1 else off


def unexplained(
    last: Tensor,
    rate: Tensor,
    drifts: Sequence[Tensor],
    seen: tuple[Tensor, Tensor, Deep],
    error: Tensor,
    remainder: Tensor,
) -> Tensor:
    """Return the integral that may be missed where f close to the end is not what the series makes of it, ``(n,)``.

    What is seen there may begin right behind the innermost node, whose place the edge of the interpolating
    polynomial is: a layer too thin for all nodes, or one that f jumps to. Farther out than :func:`breaks_the_law`
    looks it can be told to many digits: the rates of the terms tend to that of the singularity as a geometric
    sequence. Where f is off by more than what they leave open, all that is there is unexplained, else the part of
    the ``remainder``, the integral beyond the terms, that f is off by. Drifts that grow leave nothing open.
    """
    (signed, steps, deep), (before, drift), tiny = seen, drifts, torch.finfo(last.dtype).tiny
    near, emerges = signed.abs(), drift.abs() > (EMERGES * before.abs()).clamp_min(AT_LEAST)
    settles = (drift / before).nan_to_num_(0.0, 0.0, 0.0).clamp_(0.0, SETTLING)
    left = 1.0 - settles
    drift, grows = drift / left, rate >= 0.0
    ahead = drift * settles
    later = ahead * settles**1.5 * (1.0 - settles**steps) / left
    # Of terms that grow nothing is expected: no integral would.
    expected = deep.edge.abs() * (steps * (rate + ahead) - later).exp_().masked_fill_(grows, 0.0)
    slack = (error / last.exp()).add_(drift.abs(), alpha=DRIFTING).mul_(steps)
    slack = torch.expm1((2.0 * slack).clamp_max_(FAR)).masked_fill_(emerges, 0.0)
    # Of a singularity rounding of x changes f, by its power of the distance.
    power = (rate * (SHARES / (DEPTH * math.log(2.0)))).add_(1.0).abs_()
    least, gap = torch.minimum(expected, near), (signed - expected).abs_()
    gap = gap.addcmul_(align(deep.shaken, near) * power, torch.maximum(near, expected), value=-1.0).clamp_min_(0.0)
    # In units of the integral over the logarithm: f times the distance of the innermost node.
    layer = gap * torch.exp2(steps * (DEPTH / SHARES)) * (LAYER / (DEPTH * math.log(2.0)))
    # What begins within the last terms has misled the series, too: so there is no remainder to rely on.
    layer += remainder.masked_fill(~emerges | (gap <= least), 0.0)
    # Beside a logarithm rates settle in another way, and what is expected is off by itself; but not by any factor.
    beside_logarithm = (settles > SETTLED) & ~emerges & (gap <= LOGARITHM * least)
    part = torch.minimum(layer, remainder * (gap / least.clamp_min(tiny))).masked_fill_(beside_logarithm, 0.0)
    missed = torch.where(gap > slack * least, layer, part)
    return largest_component(missed.masked_fill_(steps == 0.0, 0.0).nan_to_num_(0.0, 0.0))


def to_the_end(
    terms: Tensor, sizes: Tensor, rtol: float, held: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Extrapolate a series: its limit, the limit's error, what multiplies the terms' errors, and the column taken.

    The lowest column that is good enough is taken: in higher ones rounding is amplified, in the gradient above all.
    Where a column is ``held``, that one is.
    """
    table = extrapolate(terms, COLUMNS, sizes)
    # Where the term before is 0 the ratio is infinite, or, if the last one is, too, 0.
    ratio = largest_component((sizes[-1] / sizes[-2]).nan_to_num(0.0, torch.inf))
    converges = ratio < 1.0
    value, doubts = table[0][-1], _doubts(table)
    doubt, column = doubts[0], torch.zeros_like(ratio, dtype=torch.int64)
    for k in range(1, COLUMNS):
        if held is None:
            better = (doubts[k] < doubt) & (doubt > CLOSE * rtol * largest_component(value.abs())) & converges
        else:
            better = held == k
        value = torch.where(align(better, value), table[k][-1], value)
        doubt, column = torch.where(better, doubts[k], doubt), column.masked_fill(better, k)
    # Of terms of 1/x, which differ by rounding alone, the gain is 1 / eps**2: held at 1e16 it hid what they sum to.
    gain = ((1.0 - ratio).clamp_min(torch.finfo(ratio.dtype).eps) ** -2).masked_fill(column == 0, 1.0)
    return value, torch.where(converges, doubt, SAFETY * largest_component(sizes.sum(0))), gain, column


def _doubts(table: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Return the errors of the columns' last entries: how far the entries around them in the table are apart.

    Two of them may agree by accident, hence three differences where the column above has but one entry.
    """
    none, first, second, third = table
    above = (first[-1], second[-1], third[-1], first[-1], second[-1], second[-1], second[-2])
    below = (none[-1], first[-1], second[-1], first[-2], second[-2], second[-2], second[-3])
    higher, within, before = (torch.stack(above) - torch.stack(below)).abs().split((3, 3, 1))
    first, second, third = (SAFETY * (higher + within)).unbind()
    return [largest_component(apart) for apart in (first, second, third + before[0])]
