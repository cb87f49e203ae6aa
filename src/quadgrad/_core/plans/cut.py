"""The cells of a box of which functions cut off a part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from quadgrad._core.plans.base import Plan
from quadgrad._core.printing import counted
from quadgrad._core.status import IN_BOXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CutPlan"]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CutPlan(Plan, geometry="cut"):
    """Cells that cover the boxes of all integrals, with what was found out about each.

    Nodes are not in it: they follow from the functions that cut, as they are when the plan is used.

    Attributes
    ----------
    rule : str
        The rule that is used along each axis.
    surface : bool
        Whether the integral is over the surface on which the function vanishes.
    owner : Tensor of int64, shape (n,)
        The integral of each cell, ascending.
    error : Tensor, shape (n,)
        Estimated error on each cell when it was searched.
    level, place : Tensor of int64, shape (d, n)
        How often each axis was halved, and the number of the cell along it, as in a plan of boxes.
    order : Tensor of int64, shape (d, n)
        The axes in the order in which they are integrated over, the innermost last.
    outside : Tensor of bool, shape (n,)
        Whether the cell was seen to be outside of the region.
    active : Tensor of bool, shape (n, functions)
        Which functions may vanish in the cell.
    blank : Tensor of bool, shape (n,)
        Whether functions that may vanish there showed nothing: they were constant.
    lost : Tensor of bool, shape (n,)
        Whether a function was NaN there.
    """

    says = IN_BOXES

    rule: str
    surface: bool
    owner: Tensor
    error: Tensor
    level: Tensor
    place: Tensor
    order: Tensor
    outside: Tensor
    active: Tensor
    blank: Tensor
    lost: Tensor

    if TYPE_CHECKING:
        plot: ClassVar[Callable[..., Axes]]  # quadgrad._plots puts it here, so that nothing below calls it

    @property
    def size(self) -> int:
        """The number of cells."""
        return self.owner.shape[0]

    def __len__(self) -> int:
        return self.size

    def same(self, other: Any) -> bool:
        """Whether another plan has the same cells."""
        if not isinstance(other, CutPlan) or other.batch_shape != self.batch_shape or other.rule != self.rule:
            return False
        return all(torch.equal(getattr(self, name), getattr(other, name)) for name in ("owner", "level", "place"))

    def spread(self, batch_shape: tuple[int, ...]) -> CutPlan:
        """Return the cells of a plan for one integral as those of each integral of a batch."""
        count = math.prod(batch_shape)
        owner = torch.arange(count, device=self.owner.device).repeat_interleave(self.size)
        columns = {name: getattr(self, name).repeat(count) for name in ("error", "outside", "blank", "lost")}
        columns |= {name: getattr(self, name).repeat(1, count) for name in ("level", "place", "order")}
        return replace(self, batch_shape=batch_shape, owner=owner, active=self.active.repeat(count, 1), **columns)

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed."""
        heading = f"Plan of {counted(self.batch, 'integral')} over what functions cut out of boxes"
        cut = int(self.active.any(1).sum())
        facts = {"cells": f"{self.size:,}, {cut:,} cut, {int(self.outside.sum()):,} outside", "rule": self.rule}
        return heading, facts
