"""Halves of cells that a kept plan no longer needs, merged by the compiled kernel in one pass over the cells."""

from __future__ import annotations

from ctypes import byref
from dataclasses import replace

from torch import Tensor

from quadgrad._core.plans.cells import CellPlan
from quadgrad._core.plans.interval import MERGED, IntervalPlan
from quadgrad._core.search.kernel.library import Merger, load
from quadgrad._core.search.kernel.memory import BYTES, INTEGERS, in_memory, numbers

__all__ = ["merge_native"]


def merge_native(plan: CellPlan, allowed: Tensor, worth: float, size: Tensor) -> tuple[CellPlan, Tensor] | None:
    """Return what :func:`quadgrad._core.verbs.merging.merge_worthwhile` does; None without the kernel."""
    if not (isinstance(plan, IntervalPlan) and in_memory(plan.row) and plan.term is None) or load() is None:
        return None
    n, even = len(plan), plan.even
    row, start, stop = INTEGERS.new_empty(n), numbers(n), numbers(n)
    error, kind = numbers(n), BYTES.new_empty(0 if even else n)
    fewer, order = INTEGERS.new_empty(plan.batch), INTEGERS.new_empty(n)
    given = [t.contiguous() for t in (plan.row, plan.start, plan.stop, plan.error.double(), plan.kind)]
    allowed = allowed.double().contiguous()
    pointers = [t.data_ptr() for t in given]
    if even:
        pointers[-1] = 0
    merger = Merger(
        *pointers, allowed.data_ptr(), n, plan.pieces, plan.batch, MERGED, 1.0 - worth,
        *(t.data_ptr() for t in (row, start, stop, error, kind, fewer, order)),
    )  # fmt: skip
    left = load().merge_cells(byref(merger))
    if left == n:
        return plan, fewer
    row, start, stop, error = (t[:left] for t in (row, start, stop, error))
    kind = plan.kind[:left] if even else kind[:left]
    error = error.to(plan.error.dtype)
    inspected = plan.inspected and not bool((fewer <= (1.0 - worth) * size).all())
    merged = replace(plan, row=row, start=start, stop=stop, error=error, kind=kind, inspected=inspected)
    return merged, fewer
