"""Spikes in the compiled kernel: which of them are open."""

from __future__ import annotations

from ctypes import byref

from torch import Tensor

from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.search.kernel.library import OpenSpikes, load
from quadgrad._core.search.kernel.memory import INTEGERS, in_memory, numbers
from quadgrad._core.search.open_spikes import ALIKE, CELLS, MOST, RESOLVED, Pairs

__all__ = ["find_open_native", "in_memory"]


def find_open_native(plan: IntervalPlan, spikes: Tensor, status: Tensor) -> Pairs | None:
    """Return what :func:`quadgrad._core.search.open_spikes.find_open` does, of integrals that ended in this way."""
    n, rows, cells = len(spikes), plan.pieces * len(status), len(plan)
    sizes = (rows + 1, n, max(n, 3 * cells), CELLS * n, n, CELLS * n, CELLS * n, CELLS * n)
    rooms = numbers(sum(sizes)).split(sizes)
    cell, place, apart = INTEGERS.new_empty(0), rooms[-2], rooms[-1]
    cell = rooms[-3].view(INTEGERS.dtype)
    columns = [t.contiguous() for t in (plan.row, plan.start, plan.stop, plan.kind, status, spikes)]
    row, start, stop, kind, ended, seen = (t.data_ptr() for t in columns)
    ask = OpenSpikes(
        seen, n, row, start, stop, None if plan.even else kind, cells, ended, rows, plan.pieces, CELLS, MOST,
        RESOLVED, ALIKE, *(room.data_ptr() for room in rooms), 0,
    )  # fmt: skip
    load().find_open(byref(ask))
    found = ask.found
    return Pairs(cell[:found].clone(), place[:found].clone(), apart[:found].clone()) if found else None
