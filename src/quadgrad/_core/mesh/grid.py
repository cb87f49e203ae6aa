"""Importance maps of the unit cube: a grid along each axis, with equally probable bins (Lepage's VEGAS map)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["through_grid"]


def through_grid(grid: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Map points of the unit cube through the grids of all integrals.

    Parameters
    ----------
    grid : Tensor, shape (batch, d, bins + 1)
        The ends of the bins, ascending from 0 to 1.
    u : Tensor, shape (m, 1 or batch, d)

    Returns
    -------
    y : Tensor, shape (m, batch, d)
        Where the points come to lie, in the unit cube.
    factor : Tensor, shape (m, batch)
        The volume element.
    bin : Tensor of int64, shape (m, batch, d)
        Into which bin of each axis each point falls.
    """
    batch, d, ends = grid.shape
    bins = ends - 1
    place = u * bins
    number = place.to(torch.int64).clamp_(max=bins - 1)
    first = torch.arange(batch * d, device=grid.device).reshape(batch, d) * bins
    flat = (number + first).flatten()
    lower, width = grid[..., :-1].flatten(), grid.diff(dim=-1).flatten()
    shape = (u.shape[0], batch, d)
    side = width.index_select(0, flat).reshape(shape)
    y = lower.index_select(0, flat).reshape(shape) + (place - number) * side
    return y, (side * bins).prod(-1), number.expand(shape)
