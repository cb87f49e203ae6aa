"""Zeros of many functions at once: each between two points of opposite sign, or at the bottom of a dip.

The functions are one elementwise function on ``k`` columns; no gradient flows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.lanes import has_lanes

__all__ = ["Bracket", "Dip", "find_zeros", "follow_dips"]

Function = Callable[[Tensor], Tensor]

MOST_STEPS = 200
"""Most steps of the root finder; bisection alone ends after 60 to 80."""

_SPREAD = (0.2, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Bracket:
    """Two points with a change of sign between them, and the values there; all of shape ``(k,)``."""

    left: Tensor
    right: Tensor
    at_left: Tensor
    at_right: Tensor


@dataclass(frozen=True)
class Dip:
    """Three neighbouring points of equal sign, the middle one nearest to 0: x and values, shape ``(3, k)``."""

    x: Tensor
    y: Tensor


def find_zeros(
    function: Function, bracket: Bracket, part: float = 2.0**-60, most: int = MOST_STEPS
) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the sign changes, the width of the last bracket and the value there, each ``(k,)``.

    Brackets end at so small a ``part`` of what they were, or after so many steps; with lanes after these.

    Inverse quadratic interpolation where it is safe, else bisection (Chandrupatla, *Advances in Engineering
    Software* 28, 1997). ``function`` maps ``(1, k)`` to ``(1, k)``.
    """
    eps = torch.finfo(bracket.left.dtype).eps
    finest = part * (bracket.right - bracket.left)
    x1, f1, x2, f2 = bracket.right, bracket.at_right, bracket.left, bracket.at_left
    t = torch.full_like(x1, 0.5)
    for _ in range(most):
        x = x1 + t * (x2 - x1)
        f = function(x[None])[0]
        same = (f >= 0) == (f1 >= 0)
        x3, f3 = torch.where(same, x1, x2), torch.where(same, f1, f2)
        x2, f2 = torch.where(same, x2, x1), torch.where(same, f2, f1)
        x1, f1 = x, f
        gap = (x2 - x1).abs()
        resolution = 2.0 * eps * torch.minimum(x1.abs(), x2.abs()) + finest
        # Also at a 0: rounding may make a stretch of them, at whose end signs change.
        running = gap > 2.0 * resolution
        if not (has_lanes(running) or bool(running.any())):
            break
        t = torch.where(running, _next_step((x1, x2, x3), (f1, f2, f3), resolution / gap), 0.0)
    nearer = f1.abs() <= f2.abs()
    return torch.where(nearer, x1, x2), (x2 - x1).abs(), torch.where(nearer, f1, f2)


def _next_step(x: tuple[Tensor, ...], f: tuple[Tensor, ...], least: Tensor) -> Tensor:
    """Return the next point between x1 and x2 as a fraction, at least ``least`` away from both."""
    (x1, x2, x3), (f1, f2, f3) = x, f
    xi, phi = (x1 - x2) / (x3 - x2), (f1 - f2) / (f3 - f2)
    safe = (phi**2 < xi) & ((1.0 - phi) ** 2 < 1.0 - xi)
    t = f1 / (f2 - f1) * (f3 / (f2 - f3)) + (x3 - x1) / (x2 - x1) * (f1 / (f3 - f1)) * (f2 / (f3 - f2))
    t = torch.where(safe & t.isfinite(), t, 0.5)
    return torch.maximum(torch.minimum(t, 1.0 - least), least)


def follow_dips(function: Function, dip: Dip) -> tuple[Dip, Tensor, Tensor]:
    """Close in on the bottoms of dips; return them, where they cross 0 and where they only touch it.

    A dip is given up where the values differ by less than the smallest is away from 0: a smooth function cannot
    reach 0 there. ``function`` maps ``(8, k)`` to ``(8, k)``.
    """
    eps = torch.finfo(dip.x.dtype).eps
    # Each round leaves a fifth of the width; at its square root of eps, differences drown in rounding.
    rounds = math.ceil(0.5 * math.log(eps) / math.log(0.2))
    sign = torch.where(dip.y[1] >= 0, 1.0, -1.0)
    x, y = dip.x, sign * dip.y
    spread = x.new_tensor(_SPREAD)[:, None]
    crosses, alive = y[1] < 0, _may_reach_zero(y)
    for _ in range(rounds):
        if not bool(alive.any()):
            break
        left, right = x[0] + spread * (x[1] - x[0]), x[1] + spread * (x[2] - x[1])
        new = sign * function(torch.cat((left, right)))
        every_x = torch.cat((x[:1], left, x[1:2], right, x[2:]))
        every_y = torch.cat((y[:1], new[:4], y[1:2], new[4:], y[2:])).nan_to_num(torch.inf)
        lowest = every_y.argmin(0, keepdim=True).clamp(1, every_y.shape[0] - 2)
        near = torch.cat((lowest - 1, lowest, lowest + 1))
        x = torch.where(alive, every_x.gather(0, near), x)
        y = torch.where(alive, every_y.gather(0, near), y)
        crosses = y[1] < 0
        alive = alive & ~crosses & _may_reach_zero(y)
    return Dip(x, sign * y), crosses, alive


def _may_reach_zero(y: Tensor) -> Tensor:
    return y[1] <= torch.maximum(y[0], y[2]) - y[1]
