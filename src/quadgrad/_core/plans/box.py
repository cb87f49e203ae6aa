"""What search found on boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from quadgrad._core.lanes import plain
from quadgrad._core.mesh.box import Box
from quadgrad._core.mesh.boxes import unit_corners
from quadgrad._core.plans.cells import CellPlan
from quadgrad._core.rules import BoxRule
from quadgrad._core.status import IN_BOXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BoxPlan"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BoxPlan(CellPlan, geometry="box"):
    """The cells on which a rule integrates every element of a batch over its box; see :class:`quadgrad.Plan`.

    Attributes
    ----------
    infinite : bool
        Whether any side was infinite.
    level, position : Tensor of int64, shape (n, d)
        Along each axis the cell goes from ``position`` to ``position + 1`` times ``2**-level`` of the box (of the
        unit cube that is mapped onto it, where sides are infinite). :meth:`cells` gives them in x.
    trust : Tensor, shape (n,)
        What the rule's estimate was multiplied by for the error, as its parents' errors turned out: f's kind may be
        easier than the worst.
    """

    says = IN_BOXES

    infinite: bool
    level: Tensor
    position: Tensor
    trust: Tensor

    always: ClassVar[tuple[str, ...]] = ("row", "error", "kind", "level", "position", "trust")
    if TYPE_CHECKING:
        plot: ClassVar[Callable[..., Axes]]  # quadgrad._plots puts it here, so that nothing below calls it

    @staticmethod
    def of(
        rule: BoxRule, infinite: bool, batch_shape: tuple[int, ...], row: Tensor, level: Tensor, position: Tensor,
        error: Tensor, trust: Tensor,
    ) -> BoxPlan:  # fmt: skip
        """Return a plan of cells that are sorted by row."""
        tensors = rule.tensors(torch.float64, row.device)
        tau = tensors.nodes[: len(tensors.weights)]
        if torch.is_inference_mode_enabled():  # it may outlive that
            row, level, position, error, trust = map(plain, (row, level, position, error, trust))
        return BoxPlan(
            rule=rule.name, batch_shape=batch_shape, pieces=1, row=row, error=error, infinite=infinite,
            kind=torch.zeros_like(row, dtype=torch.int8), tau=tau, weight=tensors.weights, level=level,
            position=position,
            trust=trust,
        )  # fmt: skip

    @property
    def d(self) -> int:
        """The number of dimensions."""
        return self.level.shape[1]

    @property
    def low(self) -> Tensor:
        """The cells' lower corners in the unit cube, ``(d, n)``."""
        return unit_corners(self.level.T, self.position.T, self.tau.dtype)[0]

    @property
    def width(self) -> Tensor:
        """The cells' widths in the unit cube, ``(d, n)``."""
        return unit_corners(self.level.T, self.position.T, self.tau.dtype)[1]

    def mesh(self, a: Any, b: Any, points: Any = None) -> Box:
        """Return the boxes of all integrals."""
        if points is not None:
            raise TypeError("boxes have no points: breakpoints are for intervals")
        dtype, device = self.tau.dtype, self.row.device
        ends = [torch.as_tensor(end, device=device).to(dtype) for end in (a, b)]
        ends = [end.expand(*self.batch_shape, self.d).reshape(-1, self.d) for end in ends]
        infinite = self.infinite or any(bool(end.isinf().any()) for end in ends)
        return Box(ends[0], ends[1], infinite, torch.float64)

    def cells(self, a: Any, b: Any) -> Tensor:
        """Return the corners of each cell in x for the given box, shape ``(n, 2, d)``.

        Parameters
        ----------
        a, b : Tensor or sequence of float, shape ``(*batch, d)``
            Corners of the boxes, broadcast over the plan's batch.
        """
        corners = torch.stack((self.tau.new_zeros(self.d), self.tau.new_ones(self.d)))
        x, _ = self.mesh(a, b).lay_out(self).nodes(corners)
        return x.movedim(0, 1)

    def same(self, other: Any) -> bool:
        """Whether another plan has the same cells."""
        return super().same(other) and self.rule == other.rule

    def spread(self, batch_shape: tuple[int, ...]) -> BoxPlan:
        """Return the plan of a batch in which each integral has the cells of this one, whose batch is ``()``."""
        count = math.prod(batch_shape)
        columns = {name: torch.cat([getattr(self, name)] * count) for name in self.columns}
        columns["row"] = torch.arange(count, device=self.row.device).repeat_interleave(len(self))
        return replace(self, batch_shape=batch_shape, stalled=None, **columns)
