"""Value, error and rounding floor of cells from the integrand's values at the rule's nodes.

The error comes from null rules: the size of the integrand's highest polynomial coefficients on the
cell, and how fast they decay, tell how large the first ones that the rule integrates wrongly are.
Two neighbouring degrees are taken together so that an even or odd integrand cannot fool it
(Berntsen and Espelid, *ACM TOMS* 17, 1991).
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.mesh.interval import Frame
from quadgrad._core.rules import RuleTensors
from quadgrad._core.rules.rule import FUNCTIONALS, NULL_PAIRS

__all__ = [
    "BEYOND",
    "EDGES",
    "FLOOR",
    "NULLS",
    "SLOPES",
    "apply_rule",
    "largest_component",
    "null_rule_error",
    "one_number",
    "scale_estimates",
]

NULLS = slice(1, 1 + 2 * NULL_PAIRS)
SLOPES = slice(FUNCTIONALS - 6, FUNCTIONALS - 2)
EDGES = slice(FUNCTIONALS - 2, FUNCTIONALS)
"""Rows of the rule's functionals; halves and slopes are taken together."""

FLOOR = 10.0
"""Reported errors are at least this many eps times the integral of abs(f)."""

PLACE = 0.3
"""What rounding of x adds to the error: this many eps times x times f's variation on the cell."""

BEYOND = 6.0
"""An interpolating polynomial misses a smooth integrand at the ends by at most this many times its highest pair of
coefficients: the ratio is below it for 99 % of waves, peaks, exponentials and Gaussians with gk15 and gk21."""

SAFETY = 10.0
SLOW = 0.9
"""Decay per pair of degrees that is taken for no decay."""

UNRESOLVED = 0.86
"""Decay per pair of degrees from which on one bisection will not be enough."""

NEAR = 0.99
"""A pole is looked for at the first node where abs(f) is this part of its largest: rounding must not choose."""

UNSURE = 0.3
"""A pole is at least so many distances between nodes high as 1/abs(f) is off beside it, times this."""

STEPS = 8.0
"""Heights of poles are powers of 2 with exponents in these steps: rounding must not change what they lead to."""

ROUGHER = 1e3
"""Ratio of the halves' null rules from which on the rougher half alone is to blame for the error."""


def apply_rule(
    rule: RuleTensors, y: Tensor, slope: Tensor | None, order_gap: int, eps: float, blur: Tensor, known: Tensor
) -> tuple[Tensor, ...]:
    """Integrate over each cell, as if it had unit width.

    Parameters
    ----------
    rule : RuleTensors
    y : Tensor, shape (m, n, *event)
        The integrand at the rule's nodes.
    slope : Tensor, shape (m, n), optional
        What to multiply it by.
    order_gap : int
        :attr:`quadgrad._core.rules.Rule.order_gap`.
    eps : float
        Relative noise of one value of f.
    blur : Tensor, shape (n,)
        How far rounding moves a node, as a part of the cell: what it does to f is not taken for roughness.

    known : Tensor, shape (2, n)
        The integrand at the cell's edges, see :func:`one_number`; NaN where it is not known.

    Returns
    -------
    value : Tensor, shape (n, *event)
    error, size, variation : Tensor, shape (n,)
        Estimated error, the integral of abs(f) and how much f varies, each the largest over the event.
    lean : Tensor, shape (n,)
        Below or above 0 where the left or right half alone is to blame for the error, by how many bisections that
        will take at least: 1 or 2.
    pole, height : Tensor, shape (n,)
        Where f seems to have a pole, if bisecting once will not be enough: along the cell, from 0 to 1 or beside
        it, and across; the height is infinite where there is none.
    middle : Tensor, shape (n,)
        The integrand at the cell's middle, see :func:`one_number`.
    """
    if slope is not None:
        y = y * slope.reshape(slope.shape + (1,) * (y.ndim - 2))
    columns = torch.view_as_real(y) if y.is_complex() else y
    tail = columns.shape[1:]
    flat = columns.flatten(1)
    functionals = rule.functionals.to(flat.dtype)
    sums = functionals @ flat
    magnitude = flat.abs()
    size = functionals[0] @ magnitude
    left, right, slope_1, slope_2 = sums[SLOPES].abs_()
    variation = slope_1 + slope_2
    blur = (blur / (2.0 * eps)).reshape(-1, *(1,) * (len(tail) - 1)).expand(tail).flatten()
    unseen = torch.addcmul(size, variation, blur)
    error, decay = null_rule_error(sums[NULLS], unseen, order_gap, eps)
    left, right, variation = (largest_component(t.reshape(tail)) for t in (left, right, variation))
    decay = largest_component(decay.reshape(tail))
    lean = _lean(left, right, decay)
    # Of complex values the modulus: it is smooth. Of several components the sum.
    sizes = magnitude if len(tail) == 1 else y.abs()[..., None].flatten(2).sum(2)
    pole, height = _see_pole(rule, sizes, eps)
    value, error, size = sums[0].reshape(tail), error.reshape(tail), size.reshape(tail)
    if y.is_complex():
        value = torch.view_as_complex(value.contiguous())
        error, size = torch.linalg.vector_norm(error, dim=-1), size.sum(-1)
    error = largest_component(error) + _hidden(rule, sums, known, tail)
    middle = one_number(flat[flat.shape[0] // 2], tail).clone()  # a view would keep all values alive
    height = torch.where((decay >= UNRESOLVED) & (error < torch.inf), height, torch.inf)
    return value, error, largest_component(size), variation, lean, pole, height, middle


def one_number(values: Tensor, tail: torch.Size) -> Tensor:
    """Return one real number for f at one place of each cell, shape ``(n,)``: the sum of its components."""
    return values if len(tail) == 1 else values.reshape(tail).flatten(1).sum(1)


def _hidden(rule: RuleTensors, sums: Tensor, known: Tensor, tail: torch.Size) -> Tensor:
    """Return the error of what lies between a cell's ends and its outermost nodes, where the rule sees nothing.

    Were the integrand smooth there, its interpolating polynomial would meet its known value at the end, but for
    :data:`BEYOND` times its highest coefficients, which the null rules have left in ``sums``. If a jump or a kink
    is between the two, they differ by at least as much as it matters.
    """
    edges = torch.stack([one_number(edge, tail) for edge in sums[EDGES]])
    gaps = ((edges - known).abs() - BEYOND * one_number(sums[NULLS][0], tail)).clamp_min_(0.0)
    return gaps.nan_to_num(0.0, 0.0, 0.0).sum(0) * rule.nodes[0]


def scale_estimates(
    value: Tensor, error: Tensor, size: Tensor, variation: Tensor, layout: Frame, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turn estimates for unit width into value, error and floor of the cells, and whether the error can shrink.

    The floor is the rounding of f alone, :data:`FLOOR` eps times the integral of abs(f); the error is never
    below that and the rounding of x. Where f is not finite the value is 0 and the error infinite.
    """
    scale = layout.scale
    tail = scale.shape + (1,) * (value.ndim - 1)
    whole = size * scale
    floor = (whole * (FLOOR * eps)).nan_to_num_(0.0, posinf=0.0)
    place = (variation * layout.reach).mul_(PLACE * torch.finfo(scale.dtype).eps)
    noise = torch.minimum(place, whole).add_(floor).nan_to_num_(0.0, posinf=0.0)
    error = torch.maximum(error * scale, noise).nan_to_num_(torch.inf, posinf=torch.inf)
    value = (value * scale.reshape(tail)).masked_fill_(error.isinf().reshape(tail), 0.0)
    return value, error, floor, error > noise


def largest_component(size: Tensor) -> Tensor:
    """Return the largest over the event dimensions, 0 for an empty event, shape ``(n,)``."""
    if size.ndim == 1:
        return size
    return size.flatten(1).amax(1) if size.numel() else size.new_zeros(size.shape[:1])


def _lean(left: Tensor, right: Tensor, decay: Tensor) -> Tensor:
    """Tell which half is the rougher one, and how often it will have to be bisected, see :func:`apply_rule`."""
    side = (right > ROUGHER * left).to(decay.dtype) - (left > ROUGHER * right).to(decay.dtype)
    return side * (1.0 + (decay >= UNRESOLVED).to(decay.dtype))


def _see_pole(rule: RuleTensors, size: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return where f has a pole, judged by its size at the nodes, ``(m, n)``, and how high; infinite if nowhere.

    Beside a pole that is nearer than all others 1/abs(f) is a parabola with its least value below the pole. It is
    drawn through the node where abs(f) is largest and its neighbours. By how much it is off at the next two nodes
    tells how far the place can be trusted; a function that falls from the cell's edge is trusted less, since it may
    fall like an exponential.
    """
    m, nodes = size.shape[0], rule.nodes.to(size.dtype)
    at = (size >= NEAR * size.amax(0)).to(torch.int8).argmax(0)
    at_edge = (at == 0) | (at == m - 1)
    at = at.clamp(1, m - 2)
    beside = (torch.where(at > 1, at - 2, at + 3), torch.where(at < m - 2, at + 2, at - 3))
    index = torch.stack((at - 1, at, at + 1, *beside))
    tau = nodes.index_select(0, index.flatten()).unflatten(0, index.shape)
    size = size.gather(0, index)
    before, here, after = size[:3].reciprocal()
    span, step = tau[2] - tau[0], tau[1] - tau[0]
    rise = (here - before) / step
    bend = ((after - here) / (tau[2] - tau[1]) - rise) / span
    rise = rise + bend * step
    away = tau[3:] - tau[1]
    ratio = (here + away * (rise + bend * away)) * size[3:]
    off = ((ratio - 1.0).abs() / torch.where(at_edge, ratio.clamp(0.0, 1.0), 1.0)).amax(0)
    unsure = UNSURE * off * span
    least = (here - rise * (rise / (4.0 * bend))) / bend
    square = torch.maximum(torch.maximum(least, unsure * unsure), eps ** (2.0 / 3.0) * span * span)
    place = (tau[1] - rise / (2.0 * bend)).float().to(size.dtype)
    sees = (bend > 0.0) & (bend < torch.inf) & (off < torch.inf) & (square < 1.0)
    return place, torch.where(sees, torch.exp2((-0.5 * STEPS * square.log2()).floor() / -STEPS), torch.inf)


def null_rule_error(nulls: Tensor, size: Tensor, order_gap: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return the error on the unit interval, and the decay, from the null rules, which it overwrites.

    The first row is left with the sizes of the highest pair of coefficients.

    Sums of absolute values, not of squares: integrands of 1e-200 must not underflow.
    """
    magnitude = nulls.abs_()
    tiny = torch.finfo(size.dtype).tiny
    pairs = magnitude[0::2].add_(magnitude[1::2]).clamp_min_(tiny)
    above_noise = pairs[:-1].sub((2.0 * eps) * size + tiny).clamp_min_(0.0)
    decay = above_noise.div_(pairs[1:]).amax(0)
    # The slowest decay seen, continued from the lowest pair to the first degree integrated wrongly.
    continued = pairs[-1] * _power((decay / SLOW).clamp_max_(1.0), order_gap + NULL_PAIRS - 1)
    return SAFETY * torch.where(decay < SLOW, continued, pairs.amax(0)), decay


def _power(base: Tensor, exponent: int) -> Tensor:
    """Return an integer power by squaring, several times faster than ``pow``."""
    result = base if exponent & 1 else torch.ones_like(base)
    while exponent := exponent >> 1:
        base = base * base
        result = result * base if exponent & 1 else result
    return result
