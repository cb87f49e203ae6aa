"""Value, error and rounding floor of cells from the integrand's values at the rule's nodes.

The error comes from null rules: the size of the integrand's highest polynomial coefficients on the
cell, and how fast they decay, tell how large the first ones that the rule integrates wrongly are.
Two neighbouring degrees are taken together so that an even or odd integrand cannot fool it
(Berntsen and Espelid, *ACM TOMS* 17, 1991).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.reduce import apply, mean
from quadgrad._core.rules import RuleTensors
from quadgrad._core.rules.rule import NULL_PAIRS

__all__ = [
    "BEYOND", "FLOOR", "PARTS", "PLACE", "ROUNDED", "SAFETY", "UNRESOLVED", "Sums", "blame", "bound_error",
    "largest_component", "null_rule_error", "see_pole", "weigh",
]  # fmt: skip

PARTS = (1, 2 * NULL_PAIRS, 4, 2)
"""How many of the rule's functionals are the value, null rules, halves and slopes, and values at the edges."""

FLOOR = 10.0
"""Reported errors are at least this many eps times the integral of abs(f)."""

PLACE = 0.3
"""What rounding of x adds to the error: this many eps times x times f's variation on the cell."""

SINGULAR = 2.0**-20
"""Where most of an error stays in cells that cannot be halved, f is singular if they are no wider than this part of
their interval; wider ones are made of few numbers. Of smooth f on intervals of 1,000 numbers 8 of 400 were said to
diverge."""

BEYOND = 6.0
"""An interpolating polynomial misses a smooth integrand at the ends by at most this many times its highest pair of
coefficients: the ratio is below it for 99 % of waves, peaks, exponentials and Gaussians with gk15 and gk21."""

ROUNDED = 4.0
"""Rounding of x may move one value of f by this many times the cell's share of :data:`PLACE`."""

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


@dataclass(slots=True)
class Sums:
    """What a rule makes of f times dx/dtau on ``n`` cells: shapes ``(n,)`` or ``(n, columns)``.

    ``size`` is the integral of their modulus, ``variation`` how much they vary, ``halves`` ``(2, ...)`` tell the
    rougher half, ``edges`` ``(2, ...)`` are what the interpolating polynomial is at both ends.
    """

    value: Tensor
    size: Tensor
    nulls: Tensor
    halves: Tensor
    variation: Tensor
    edges: Tensor


def weigh(rule: RuleTensors, values: Tensor, moduli: Tensor) -> Sums:
    """Return the rule's sums of real ``values`` ``(m, n)`` or ``(m, n, columns)``, and of their ``moduli``."""
    value, nulls, beyond, edges = apply(rule.functionals, values).split(PARTS)
    halves, slopes = beyond.abs_().split(2)
    return Sums(value[0], mean(rule.weights, moduli), nulls, halves, slopes.sum(0), edges)


def bound_error(curable: Tensor, size: Tensor, rounding: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return error and floor ``(n,)``, and whether the error can shrink.

    The floor is the rounding of f alone, :data:`FLOOR` eps times the integral of abs(f); the error is never below
    that and the ``rounding`` of x. Where f is not finite the error is infinite.
    """
    floor = (size * (FLOOR * eps)).nan_to_num_(0.0, posinf=0.0)
    noise = torch.minimum(rounding, size).add_(floor).nan_to_num_(0.0, posinf=0.0)
    error = torch.maximum(curable, noise).nan_to_num_(torch.inf, posinf=torch.inf)
    return error, floor, error > noise


def largest_component(size: Tensor) -> Tensor:
    """Return the largest over the event dimensions, 0 for an empty event, shape ``(n,)``."""
    if size.ndim == 1:
        return size
    return size.flatten(1).amax(1) if size.numel() else size.new_zeros(size.shape[:1])


def blame(halves: Tensor, unresolved: Tensor) -> Tensor:
    """Return -1 or 1 where the left or right half alone is to blame for the error, doubled where ``unresolved``.

    How rough they are is told by ``halves`` ``(2, n)``.
    """
    rougher = halves.sub(halves.flip(0), alpha=ROUGHER) > 0.0
    left, right = (rougher * unresolved.add(1)).unbind()
    return right - left


def see_pole(rule: RuleTensors, size: Tensor, eps: float, unresolved: Tensor) -> tuple[Tensor, Tensor]:
    """Return where f has a pole, judged by its size at the nodes, ``(m, n)``, and how high; infinite if nowhere.

    Beside a pole that is nearer than all others 1/abs(f) is a parabola with its least value below the pole. It is
    drawn through the node where abs(f) is largest and its neighbours. By how much it is off at the next two nodes
    tells how far the place can be trusted; a function that falls from the cell's edge is trusted less, since it may
    fall like an exponential. What is not ``unresolved`` has none.
    """
    at = torch.minimum(size, NEAR * size.amax(0)).argmax(0)
    span, tau, inner, one = rule.around.index_select(1, at).unbind()
    near, others = size.gather(0, rule.neighbours.index_select(1, at)).split((3, 2))
    numbers, ahead = (rule.parabolas.index_select(2, at) * near.reciprocal()[:, None]).sum(0).split((4, 2))
    (rise, bend, twice, here), ratio = numbers.unbind(), ahead * others
    off = ((ratio - 1.0).abs() / ratio.clamp(inner, one)).amax(0)
    offset = rise / twice
    # What is not finite anywhere makes the square so, too, and no pole is seen.
    least = torch.addcmul(here, rise, offset, value=-0.5) / bend
    unsure = (UNSURE * off).clamp_min(eps ** (1.0 / 3.0)) * span
    steps = (-0.5 * STEPS * torch.maximum(least, unsure * unsure).log2()).floor()
    # A pole as high as the cell is wide is none, nor is a parabola's greatest value one.
    height = torch.exp2(steps.clamp_min_(0.0) / -STEPS)
    return (tau - offset).float(), height / (unresolved & (bend > 0.0))


def null_rule_error(rule: RuleTensors, nulls: Tensor, size: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the error and the decay, from the null rules, and the sizes of the highest pair of coefficients.

    Sums of absolute values, not of squares: integrands of 1e-200 must not underflow.
    """
    tiny = torch.finfo(size.dtype).tiny
    seen = nulls.abs().unflatten(0, (NULL_PAIRS, 2)).sum(1)
    pairs = seen.clamp_min(tiny)
    decay = (seen[:-1].sub(size, alpha=2.0 * eps) / pairs[1:]).amax(0)
    # The slowest decay seen, continued from the lowest pair to the first degree integrated wrongly.
    continued = pairs[-1] * (decay / SLOW).clamp_(0.0, 1.0) ** (rule.order_gap + NULL_PAIRS - 1)
    return SAFETY * torch.where(decay < SLOW, continued, pairs.amax(0)), decay, pairs[0]
