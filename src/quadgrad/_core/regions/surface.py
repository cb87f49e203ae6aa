"""Where nodes are in x, and the element of volume, or of area on the surface where a function vanishes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quadgrad._core.regions.lines import Level
from quadgrad._core.regions.recursion import Cut, Nodes

__all__ = ["element", "slopes_of"]

STEP = 2.0**-9
"""Step of the differences that stand in for a gradient while nothing is differentiated, as a part of a cell."""

Slopes = Callable[[Tensor, Tensor], Tensor]


def element(
    level: Level, nodes: Nodes, cells: Cut, surface: bool, slopes: Slopes | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return x ``(1, n, d)`` at nodes in cells, and the element of volume there, or of area, ``(n,)``.

    On a surface, which the last axis of a cell meets, that of area is the one of the other axes times the size of
    the gradient over its part along that axis. ``slopes(u, owner)`` is the gradient in coordinates of the unit
    cube, ``(n, d)``; by differences unless given.
    """
    owner = cells.owner[nodes.cell]
    box = level.box.take(owner)
    x, volume = box.place(nodes.u[None])
    if not surface:
        return x, volume[0].expand(owner.shape[0])
    sides = box.b - box.a
    gradient = (
        _differences(level, nodes.u, owner, cells.side[nodes.cell]) if slopes is None else slopes(nodes.u, owner)
    )
    gradient = gradient / sides
    last = cells.order[nodes.cell, -1:]
    across = gradient.gather(1, last) * sides.expand_as(gradient).gather(1, last)
    return x, volume[0].abs() * gradient.norm(dim=1) / across[:, 0].abs()


def slopes_of(level: Level) -> Slopes:
    """Return the gradient of the function by torch, which is differentiable in turn."""

    def slopes(u: Tensor, owner: Tensor) -> Tensor:
        value, pull, *_ = torch.func.vjp(lambda u: level(u, owner)[:, 0], u)
        return pull(torch.ones_like(value))[0]

    return slopes


def _differences(level: Level, u: Tensor, owner: Tensor, side: Tensor) -> Tensor:
    """Return the gradient by differences of fourth order."""
    slopes: list[Tensor] = []
    for k in range(u.shape[1]):
        step = STEP * side[:, k]
        ends = [u.clone() for _ in range(4)]
        for end, times in zip(ends, (-2.0, -1.0, 1.0, 2.0), strict=True):
            end[:, k] = end[:, k] + times * step
        far_below, below, above, far_above = (level(end, owner)[:, 0] for end in ends)
        slopes.append((8.0 * (above - below) - (far_above - far_below)) / (12.0 * step))
    return torch.stack(slopes, dim=1)
