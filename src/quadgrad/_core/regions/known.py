"""What the functions that cut show of a cell: that it is inside, outside, or how they cut it.

With a bound on how fast they change this is a proof. Without one, the bound is taken from differences between
points of a lattice, unless a look around at the start of a search (:mod:`quadgrad._core.regions.scouts`) has seen
what these do not show. A function that is constant over a cell has shown nothing: what it says there is what a
saturated one says where it does not look.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.regions.lines import Level
from quadgrad._core.regions.scouts import Scouts

__all__ = ["Known", "inspect"]

SAFETY = 2.0
"""A function may change so many times as fast as neighbouring points of the lattice say."""

STEEP = 0.25
"""Along the innermost axis differences keep their sign, and the smallest is at least this part of the largest."""

MARGIN, ACROSS = 2.0, 2.0
"""What a scout has seen reaches to so many times the distance at which the sign changes along an axis; to see it, a
lattice puts so many steps into that distance."""

CONSTANT = 16.0
"""Values that differ by less than so many eps of their size are taken to be equal."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of cells, each of shape ``(n, ...)``.

    Attributes
    ----------
    outside : Tensor of bool
        Some function is negative all over the cell.
    active : Tensor of bool, shape (n, functions)
        Which functions may vanish in the cell; none if it is inside or outside.
    order : Tensor of int64, shape (n, d)
        The axes, the outermost first, the steepest last.
    clear : Tensor of bool
        Each active function is monotonic along some axis, as far as the lattice shows.
    blank : Tensor of bool
        All active functions are constant there, as far as the lattice shows.
    lost : Tensor of bool
        A function is NaN there.
    """

    outside: Tensor
    active: Tensor
    order: Tensor
    clear: Tensor
    blank: Tensor
    lost: Tensor


def _lattice(d: int, like: Tensor) -> Tensor:
    """Return the points of a lattice in the unit cube, faces included, ``(q, ..., q, d)``."""
    q = {1: 9, 2: 5, 3: 5}.get(d, 3)
    line = torch.linspace(0.0, 1.0, q, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(*[line] * d, indexing="ij"), dim=-1)


def inspect(
    level: Level, owner: Tensor, low: Tensor, side: Tensor, lipschitz: Tensor | None, scouts: Scouts | None
) -> Known:  # fmt: skip
    """Look at cells ``low``, ``side`` ``(n, d)``.

    ``lipschitz`` ``(batch or 1, functions)`` is how fast the functions change at most, by distance in x.
    """
    n, d = low.shape
    lattice = _lattice(d, low)
    q, shape = lattice.shape[0], lattice.shape[:-1]
    points = lattice.reshape(-1, d)
    u = low[:, None] + side[:, None] * points
    v = level(u.flatten(0, 1), owner.repeat_interleave(len(points))).unflatten(0, (n, len(points)))
    lowest, highest = torch.aminmax(v, dim=1)
    positive, negative = lowest > 0.0, highest < 0.0
    nearest = torch.where(positive, lowest, torch.where(negative, -highest, 0.0))
    grid = v.unflatten(1, shape)
    changes = torch.stack([grid.diff(dim=1 + k).flatten(1, d) for k in range(d)], dim=1)
    low_change, high_change = torch.aminmax(changes, dim=2)  # (n, d, functions)
    largest = torch.maximum(high_change, -low_change)
    if lipschitz is None:
        # Points are at most half a step of the lattice away from one, along each axis.
        reach = 0.5 * SAFETY * largest.sum(1)
        eps = torch.finfo(level.g.call_dtype).eps
        blank = highest - lowest <= CONSTANT * eps * torch.maximum(highest.abs(), lowest.abs())
    else:
        each = lipschitz if lipschitz.shape[0] == 1 else lipschitz[owner]
        sides = (level.box.b - level.box.a).abs()
        sides = sides if sides.shape[0] == 1 else sides[owner]
        reach = each * (0.5 / (q - 1) * (sides * side).norm(dim=1))[:, None]
        blank = torch.zeros_like(positive)
    decided = (nearest > reach) & ~blank
    hidden = torch.zeros_like(decided)
    if scouts is not None:
        hidden = _contradicted(scouts, owner, low, side, q, positive, negative)
        decided &= ~hidden
    outside = (decided & negative).any(1)
    active = ~decided & ~outside[:, None]
    order, clear = _axes(low_change, high_change, largest, active)
    clear &= ~(hidden & active).any(1)  # the lattice has not seen what is there
    blank = (blank | decided).all(1) & active.any(1)
    return Known(outside, active, order, clear, blank, ~v.isfinite().flatten(1).all(1))


def _contradicted(
    scouts: Scouts, owner: Tensor, low: Tensor, side: Tensor, q: int, positive: Tensor, negative: Tensor
) -> Tensor:  # fmt: skip
    """Tell of which functions a cell's lattice cannot have shown what scouts have seen there, ``(n, functions)``.

    It shows one sign where a scout has seen the other; or, if it shows both, or a scout was beside the cell, its
    points are farther apart than what was seen is wide.
    """
    u, seen, extent = scouts.u[owner], scouts.positive[owner], scouts.extent[owner]
    apart = torch.maximum(low[:, None] - u, u - (low + side)[:, None])
    within = (apart <= 0.0).all(2)[:, :, None]
    other = (seen & negative[:, None]) | (~seen & positive[:, None])
    beside = (apart <= MARGIN * extent).all(2) & (side[:, None] / (q - 1) > extent / ACROSS).any(2)
    return (within & other | beside[:, :, None]).any(1)


def _axes(low: Tensor, high: Tensor, largest: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Order the axes, and tell if each of the active functions is steep along one of them.

    The last one is the steepest, in units of the cell. The others are ordered by how alike the slopes along them
    are: a function that turns along the next to last axis meets the faces of the cell in a curve that turns, too,
    where the integral over that axis has a singularity like that of a square root. (By steepness thin cells would
    have their thin axis outside, whatever the function does.)
    """
    idle = ~active[:, None]
    same = torch.where(low > 0.0, low, torch.where(high < 0.0, -high, 0.0))
    each = (same >= STEEP * largest) & (same > 0.0) | idle
    steep, clear = each.all(2), each.any(1).all(1)
    alike = (same / largest).nan_to_num(0.0).masked_fill(idle, 1.0).amin(2)
    share = (same / largest.sum(1, keepdim=True)).nan_to_num(0.0).masked_fill(idle, 1.0).amin(2)
    best = torch.where(steep, 1.0 + share, alike)
    last = best.argmax(1, keepdim=True)
    order = alike.scatter(1, last, torch.inf).argsort(dim=1, stable=True)
    return order, clear
