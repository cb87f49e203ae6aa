"""Boxes in the compiled kernel: in which of them points are."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from quadgrad._core.search.kernel.library import Locating, load
from quadgrad._core.search.kernel.memory import INTEGERS

__all__ = ["locate_native"]

MOST_AXES = 16
"""As many as the kernel has room for."""


def locate_native(owner: Tensor, level: Tensor, place: Tensor, whose: Tensor, point: Tensor) -> Tensor | None:
    """Return what :func:`quadgrad._core.search.boxes.neighbours.locate_points` does; None without the kernel."""
    if not (owner.is_cpu and point.dtype == torch.float64 and len(level) <= MOST_AXES) or load() is None:
        return None
    level, place, point = level.contiguous(), place.contiguous(), point.resolve_neg().contiguous()
    count = int(owner.max()) + 1 if len(owner) else 0
    answer, other = INTEGERS.new_zeros(len(whose)), INTEGERS.new_empty(len(whose))
    # Most of them are in order: a sort that sees it is quicker.
    cell, at = (torch.from_numpy(t.numpy().argsort(kind="stable")) for t in (owner, whose))
    zero = INTEGERS.new_zeros(1)
    first_cell, first_point = (
        torch.cat((zero, torch.bincount(t, minlength=count).cumsum(0))) for t in (owner, whose)
    )
    locating = Locating(
        len(level), len(owner), len(whose), level.data_ptr(), place.data_ptr(), point.data_ptr(), answer.data_ptr()
    )
    load().locate_boxes(
        byref(locating),
        count,
        cell.data_ptr(),
        first_cell.data_ptr(),
        at.data_ptr(),
        other.data_ptr(),
        first_point.data_ptr(),
    )
    return answer
