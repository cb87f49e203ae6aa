"""What a sampling verb decided: which points, and how many. None of them is held."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Never, Self

import torch
from torch import Tensor

from quadgrad._core._torch import outside_transforms
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.box import Box
from quadgrad._core.mesh.grid import Placed, grid_table, through_grid
from quadgrad._core.plans.base import Plan
from quadgrad._core.points import Sequence, make_sequence
from quadgrad._core.printing import counted
from quadgrad._core.status import AT_POINTS

__all__ = ["PointsPlan"]


@lru_cache(maxsize=32)  # to scramble anew for every block would cost as much as ten blocks of points
def _kept_sequence(
    name: str, d: int, seed: int, replicates: int, device: torch.device, only: int | None
) -> Sequence:
    sequence = make_sequence(name, d, seed, replicates, device)
    return sequence if only is None else sequence.replicate(only)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PointsPlan(Plan, geometry="points"):
    """The points on which every element of a batch is sampled; see :class:`quadgrad.Plan`.

    Its size does not depend on how many there are: a point follows from seed, replicate and index.

    Attributes
    ----------
    sequence : str
        ``"sobol"``, ``"lattice"`` or ``"random"``.
    d : int
        Dimensions.
    seed : int
        Of the scrambling, or of the pseudo-random points.
    replicates : int
        Independent randomisations, from whose scatter the error is estimated.
    n : Tensor of int64, shape (batch,)
        Points of each integral in each replicate: the first ``n`` of the sequence.
    grid : Tensor, shape (batch or 1, d, bins + 1), optional
        The ends of the bins of an importance map (:func:`quadgrad.vegas`), 0 to 1 along every axis.
    spread : Tensor, shape (batch,), optional
        How far points are drawn towards the tails (:func:`quadgrad.expectation`), 1 where they are not; None if
        that was not tried.
    only : int, optional
        The number of the one replicate that :meth:`replicate` has left.
    """

    says = AT_POINTS

    sequence: str
    d: int
    seed: int
    replicates: int
    n: Tensor
    grid: Tensor | None = None
    spread: Tensor | None = None
    only: int | None = None

    @property
    def count(self) -> int:
        """How many replicates there are, or 1 of :meth:`replicate`."""
        return self.replicates if self.only is None else 1

    @property
    def size(self) -> int:
        """The number of points of all integrals."""
        return self.replicates * int(plain(self.n).sum())

    def same(self, other: Any) -> bool:
        """Whether another plan has as many points of the same kind, whatever their seed."""
        return isinstance(other, PointsPlan) and self.sequence == other.sequence and torch.equal(self.n, other.n)

    def coarser(self, allowed: Tensor) -> PointsPlan:
        """Return a plan with half the points."""
        return replace(self, n=self.n // 2)

    def replicate(self, number: int) -> PointsPlan:
        """Return the plan of one replicate alone."""
        return replace(self, only=number)

    def take(self, owner: Tensor | slice) -> PointsPlan:
        """Return the plan of some integrals."""
        grid = self.grid if self.grid is None or self.grid.shape[0] == 1 else self.grid[owner]
        n, spread = self.n[owner], None if self.spread is None else self.spread[owner]
        return replace(self, n=n, grid=grid, spread=spread, batch_shape=(n.shape[0],))

    def unit_points(self, start: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Return points ``(replicates * count, 1 or batch, d)`` of the unit cube, and the map's volume element."""
        if self.grid is None:
            return self.cube(start, count).reshape(self.d, 1, -1).permute(2, 1, 0), None
        y, factor, _ = self.mapped(start, count)
        return y, factor

    def mapped(self, start: int, count: int, with_bins: bool = False) -> Placed:
        """Return points ``(m, batch, d)`` of the unit cube, the volume element ``(m, batch)``, and their bins.

        See :func:`through_grid`; one axis follows another in memory.
        """
        # Constants, whatever surrounds the caller: the table is kept, and must not outlive a transform.
        with outside_transforms(), torch.inference_mode(False), torch.no_grad():
            y, factor, bin = through_grid(*self.map, self.cube(start, count), with_bins)
        return y.permute(2, 1, 0), factor.T, bin

    def cube(self, start: int, count: int) -> Tensor:
        """Return the points of all replicates from index ``start``, ``(d, replicates, count)``."""
        key = (self.sequence, self.d, self.seed, self.replicates, self.n.device, self.only)
        return _kept_sequence(*key).points(start, count).permute(2, 0, 1)

    def to(self, device: torch.device | str) -> Self:
        """Return the plan on another device."""
        moved = super().to(device)
        vars(moved).pop("map", None)
        return moved

    @cached_property
    def map(self) -> tuple[Tensor, Tensor]:
        """The grid and the table of :func:`through_grid`."""
        assert self.grid is not None
        with outside_transforms(), torch.inference_mode(False), torch.no_grad():
            return self.grid.transpose(0, 1).contiguous(), grid_table(self.grid)

    def place(self, box: Box, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the points of all replicates from index ``start``, and the volume element there.

        Parameters
        ----------
        box : Box
            Of the plan's integrals; may carry gradients.

        Returns
        -------
        x : Tensor, shape (replicates * count, 1 or batch, d)
        weight : Tensor, shape (1 or replicates * count, 1 or batch)
        """
        u, stretched = self.unit_points(start, count)
        x, factor = box.place(u)
        # So far one axis followed another in memory, along which operations run. Now it is one point after another:
        # matrix products and norms of f take up to thirty times as long the other way round.
        return x.contiguous(), factor if stretched is None else factor * stretched

    def plot(self, *args: Any, **options: Any) -> Never:
        """Say that there are no cells to draw."""
        raise TypeError(
            "a plan of points has no cells, of which plot draws a picture. print(plan) tells what it holds; a plan "
            "of vegas also has plan.log, what its training saw, and plan.sample(n), points as they are spread"
        )

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed of the plan."""
        total = plain(self.n) * self.replicates
        # Not dimensions: where lines cross a region, points have two coordinates more than it has dimensions.
        heading = f"Plan of {counted(self.batch, 'integral')} by points with {counted(self.d, 'coordinate')}"
        facts = {"points": f"{self.sequence}, seed {self.seed}, {counted(self.replicates, 'replicate')}"}
        if total.numel() and total.device.type != "meta":
            low, high = (f"{int(end):,}" for end in torch.aminmax(total))
            facts["n"] = low if low == high else f"{low} to {high}"
        if self.grid is not None:
            facts["map"] = f"{self.grid.shape[2] - 1} bins along each axis"
        if self.spread is not None and bool((plain(self.spread) > 1.0).any()):
            facts["drawn"] = "towards the tails"
        return heading, facts
