"""Where search calls f: the points of a plan in the boxes, by the compiled kernel where it can."""

from __future__ import annotations

from torch import Tensor

from quadgrad._core.mesh.box import Box
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.search.kernel.mapping import map_native

__all__ = ["place_points"]


def place_points(
    plan: PointsPlan, box: Box, start: int, count: int, with_bins: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the points of all replicates from index ``start``, the volume element there, and their bins.

    The same as :meth:`PointsPlan.place`, to rounding, for boxes that are plain tensors.

    Returns
    -------
    x : Tensor, shape (replicates * count, 1 or batch, d)
        One point after another in memory.
    weight : Tensor, shape (1 or replicates * count, 1 or batch)
    bin : Tensor of int64, shape (d, batch, replicates * count), optional
        Columns in the table of the map, if ``with_bins``.
    """
    if plan.grid is None:
        return *plan.place(box, start, count), None
    alike = {box.a.shape[0], box.b.shape[0]} <= {1, plan.grid.shape[0]}
    flat = box.flat() if alike and not box.infinite else None
    mapped = map_native(plan, flat, start, count, with_bins)
    if mapped is not None and flat is not None:
        x, factor, bin = mapped
        return x, factor * flat.volume, bin
    y, factor, bin = plan.mapped(start, count, with_bins) if mapped is None else mapped
    x, volume = box.place(y)
    return x.contiguous(), volume * factor, bin
