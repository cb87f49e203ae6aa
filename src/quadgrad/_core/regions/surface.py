"""Where nodes are in x, and the element of volume, or of area on the surface where a function vanishes."""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.regions.lines import Level
from quadgrad._core.regions.recursion import Cut, Nodes

__all__ = ["ROUGH", "element"]

STEP = 2.0**-9
"""Step of the differences that stand in for a gradient under transforms, as a part of a cell."""

ROUGH = 1e-10
"""What these differences may be off, relatively: so much may search and replay differ."""


def element(level: Level, nodes: Nodes, cells: Cut, surface: bool) -> tuple[Tensor, Tensor]:
    """Return x ``(1, n, d)`` at nodes in cells, and the element of volume there, or of area, ``(n,)``.

    On a surface, which the last axis of a cell meets, that of area is the one of the other axes times the size of
    the gradient over its part along that axis.
    """
    owner = cells.owner[nodes.cell]
    box = level.box.take(owner)
    x, volume = box.place(nodes.u[None])
    if not surface:
        return x, volume[0].expand(owner.shape[0])
    sides = (box.b - box.a).expand_as(nodes.u)
    if level.g.stack is None:
        gradient = _slopes(level, x, owner)
    else:  # outside of transforms that f is called under: what is differentiated there would meet those of the call
        gradient = _differences(level, x, owner, (box.a, box.b), cells.side[nodes.cell] * sides.abs())
    last = cells.order[nodes.cell, -1:]
    across = (gradient * sides).gather(1, last)[:, 0]
    return x, volume[0].abs() * gradient.norm(dim=1) / across.abs()


def _slopes(level: Level, x: Tensor, owner: Tensor) -> Tensor:
    """Return the gradient in x by torch, which is differentiable in turn."""
    value, pull, *_ = torch.func.vjp(lambda x: level.g(x, owner)[0, :, 0], x)
    return pull(torch.ones_like(value))[0][0]


def _differences(level: Level, x: Tensor, owner: Tensor, corners: tuple[Tensor, Tensor], side: Tensor) -> Tensor:
    """Return the gradient by differences of fourth order, in points that are in the box."""
    lower, upper = torch.minimum(*corners), torch.maximum(*corners)
    room = 0.25 * torch.minimum(x[0] - lower, upper - x[0])
    steps = torch.minimum(STEP * side, room)
    slopes: list[Tensor] = []
    for k in range(x.shape[2]):
        shift = torch.zeros_like(x)
        shift[..., k] = steps[:, k]
        far_below, below, above, far_above = (
            level.g(x + t * shift, owner)[0, :, 0] for t in (-2.0, -1.0, 1.0, 2.0)
        )
        slopes.append((8.0 * (above - below) - (far_above - far_below)) / (12.0 * steps[:, k]))
    return torch.stack(slopes, dim=1)
