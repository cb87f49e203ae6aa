"""Importance maps of the unit cube: a grid along each axis, with equally probable bins (Lepage's VEGAS map).

A map alone can starve a region that its training never saw, and nothing in a later sample would tell. So a share of
the points stays evenly spread, and every point is weighed by the density of both kinds together: no weight exceeds
the inverse of that share, and a peak is met at least as often as by so many points without any map (Hesterberg,
*Technometrics* 37, 1995; Owen and Zhou, *J. Amer. Statist. Assoc.* 95, 2000).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EVEN", "Placed", "even_grid", "grid_table", "level_mass", "through_grid"]

EVEN = 0.03125
"""The share of points that no map moves: those whose first coordinate is below it. A power of two, so that they are
as many in every block of Sobol points, and as evenly spread."""

BELOW_ONE = 1.0 - 2.0**-50
"""By which places are shrunk, so that none is rounded up to the number of bins: cheaper than a look at each."""

Placed = tuple[Tensor, Tensor, Tensor]
"""Points in the cube ``(d, batch, m)``, the volume elements ``(batch, m)``, and the numbers of the bins."""


def even_grid(batch: int, d: int, bins: int, like: Tensor) -> Tensor:
    """Return grids that move nothing, ``(batch, d, bins + 1)``."""
    return torch.linspace(0.0, 1.0, bins + 1, dtype=like.dtype, device=like.device).repeat(batch, d, 1)


def level_mass(grid: Tensor, mass: Tensor) -> Tensor:
    """Return grids ``(batch, d, bins + 1)`` of bins that share what the old ones' ``mass`` is, all alike."""
    bins = mass.shape[-1]
    reached = torch.nn.functional.pad(mass.cumsum(-1), (1, 0))
    reached = reached / reached[..., -1:]
    wanted = torch.linspace(0.0, 1.0, bins + 1, dtype=grid.dtype, device=grid.device)
    upper = torch.searchsorted(reached, wanted.expand_as(reached).contiguous()).clamp_(1, bins)
    low, high = reached.gather(-1, upper - 1), reached.gather(-1, upper)
    start, stop = grid.gather(-1, upper - 1), grid.gather(-1, upper)
    new = start + (wanted - low) / (high - low).clamp_min(torch.finfo(grid.dtype).tiny) * (stop - start)
    new[..., 0], new[..., -1] = 0.0, 1.0
    return new.cummax(-1).values


def grid_table(grid: Tensor) -> Tensor:
    """Return what :func:`through_grid` looks up in grids ``(batch, d, bins + 1)``: ``(2, d * batch * bins)``.

    The lower end of each bin, and its width times the number of bins. One axis follows another, and within it one
    integral.
    """
    ends = grid.transpose(0, 1)
    return torch.stack((ends[..., :-1], ends.diff(dim=-1).mul_(grid.shape[2] - 1))).reshape(2, -1)


def through_grid(grid: Tensor, table: Tensor, u: Tensor, with_bins: bool = False) -> Placed:
    """Map points of the unit cube through the grids of all integrals.

    Parameters
    ----------
    grid : Tensor, shape (d, batch, bins + 1)
        The ends of the bins, ascending from 0 to 1.
    table : Tensor
        Of :func:`grid_table`.
    u : Tensor, shape (d, ...)
        Points; in any order in memory.
    with_bins : bool
        Whether the numbers of the bins are asked for; otherwise those of points that stay in place are not right.

    Returns
    -------
    y : Tensor, shape (d, batch, m)
        Where the points come to lie, in the unit cube. One axis follows another in memory, so that each operation
        runs along it.
    factor : Tensor, shape (batch, m)
        The inverse of their density there.
    bin : Tensor of int32, shape (d, batch, m)
        Into which bin each falls: its column in the table.
    """
    d, batch, ends = grid.shape
    bins, m = ends - 1, u[0].numel()
    place = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    torch.mul(u, bins * BELOW_ONE, out=place)
    place = place.reshape(d, m)
    even = (place[0] < EVEN * bins * BELOW_ONE).nonzero().flatten()
    stay = place.index_select(1, even).mul_(1.0 / (bins * BELOW_ONE))
    # Those that stay are negative here: their modulus is some bin, until they are entered where they belong.
    place[0].sub_(EVEN * bins).mul_(BELOW_ONE / (1.0 - EVEN)).abs_()
    bin = place.to(torch.int32)[:, None]
    bin = bin.add_(_first(grid)) if batch == 1 else bin + _first(grid)
    flat = bin.flatten()
    both = torch.empty((2, d, batch, m), dtype=table.dtype, device=table.device)
    for column, entry in zip(table, both, strict=True):
        torch.index_select(column, 0, flat, out=entry.view(-1))
    y, stretch = both
    y.addcmul_(place.frac_()[:, None], stretch, value=1.0 / bins)
    if even.numel():
        stay[0].mul_(1.0 / EVEN)
        number, entry = _find(grid, table, stay)
        both.index_copy_(3, even, entry)
        if with_bins:
            bin.index_copy_(2, even, number)
    # Written so that a product of stretches that overflows, or vanishes, is harmless.
    density = stretch.prod(0).reciprocal_()
    return y, density.mul_(1.0 - EVEN).add_(EVEN).reciprocal_(), bin


def _first(grid: Tensor) -> Tensor:
    """Return the column in the table of each first bin, ``(d, batch, 1)``."""
    (d, batch, ends), device = grid.shape, grid.device
    return torch.arange(0, d * batch * (ends - 1), ends - 1, dtype=torch.int32, device=device).view(d, batch, 1)


def _find(grid: Tensor, table: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bins ``(d, batch, k)`` in which places ``(d, k)`` are, and the places with the bins' stretches."""
    d, batch, ends = grid.shape
    spread = y[:, None].expand(d, batch, y.shape[1]).contiguous()
    number = torch.searchsorted(grid, spread, right=True, out_int32=True)
    number = number.sub_(1).clamp_(0, ends - 2).add_(_first(grid))
    stretch = table[1].index_select(0, number.flatten()).reshape(number.shape)
    return number, torch.stack((spread, stretch))
