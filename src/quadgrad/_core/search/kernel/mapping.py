"""Points through maps in the compiled kernel: one pass over them, where tensor operations take thirty."""

from __future__ import annotations

from ctypes import byref

import torch

from quadgrad._core.mesh.box import Flat
from quadgrad._core.mesh.grid import BELOW_ONE, EVEN, Placed
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.search.kernel.library import Maps, load
from quadgrad._core.search.kernel.memory import INTEGERS, numbers

__all__ = ["map_native"]


def map_native(plan: PointsPlan, flat: Flat | None, start: int, count: int, with_bins: bool) -> Placed | None:
    """Return where points come to lie, the volume element of the map, and their bins; None without the kernel.

    Parameters
    ----------
    flat : Flat, optional
        Boxes in which they lie, of plain tensors; without, they lie in the unit cube.

    Returns
    -------
    x : Tensor, shape (m, batch, d)
        In boxes one point after another in memory, in the cube one axis after another.
    factor : Tensor, shape (m, batch)
    bin : Tensor of int64, shape (d, batch, m), or empty
        Columns in the table of the map.
    """
    if not plan.n.is_cpu or load() is None:
        return None
    grid, table = plan.map
    u, (d, batch, ends) = plan.cube(start, count), grid.shape
    if u.dtype != torch.float64 or grid.dtype != torch.float64 or u.stride(2) != 1:
        return None
    m = u.shape[1] * count
    if batch > 1:  # which all read it: a copy costs little beside them, and then loops are as long as can be
        u = u.reshape(d, 1, m)
    if flat is None:
        place, steps = numbers(d, batch, m).permute(2, 1, 0), (1, m, batch * m)
        low, high = numbers(1, d).zero_(), numbers(1, d).fill_(1.0)
        flat = Flat(low, high, low, high)
    else:
        place, steps = numbers(m, batch, d), (batch * d, d, 1)
    box = [t.resolve_neg().contiguous() for t in torch.broadcast_tensors(*flat)]
    factor = numbers(m, batch)
    bin = INTEGERS.new_empty((d, batch, m) if with_bins else 0)
    maps = Maps(
        d, batch, ends - 1, u.shape[1], u.shape[2], torch.get_num_threads(), u.stride(1), u.stride(0), *steps,
        d if len(box[0]) > 1 else 0, EVEN, BELOW_ONE, u.data_ptr(), grid.data_ptr(), table.data_ptr(),
        *(t.data_ptr() for t in box), place.data_ptr(), factor.data_ptr(), bin.data_ptr() if with_bins else None,
    )  # fmt: skip
    load().map_points(byref(maps))
    return place, factor, bin
