"""Spikes in the compiled kernel: which of them are open, and what cells make of f around them."""

from __future__ import annotations

from ctypes import byref

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.rules import Rule
from quadgrad._core.search.kernel.library import Gaps, OpenSpikes, load
from quadgrad._core.search.kernel.memory import INTEGERS, in_memory, numbers
from quadgrad._core.search.looks.gaps import find_gaps
from quadgrad._core.search.looks.open_spikes import CELLS, MOST, RESOLVED, SAME, Pairs

__all__ = ["find_gaps_native", "find_open_native"]


def find_open_native(plan: IntervalPlan, spikes: Tensor, status: Tensor) -> Pairs | None:
    """Return what :func:`~quadgrad._core.search.looks.open_spikes.find_open` does, of integrals ended this way."""
    n, rows, cells = len(spikes), plan.pieces * len(status), len(plan)
    sizes = (rows + 1, n, max(n, 3 * cells), CELLS * n, n, CELLS * n, CELLS * n, CELLS * n)
    rooms = numbers(sum(sizes)).split(sizes)
    cell, place, apart = rooms[-3].view(INTEGERS.dtype), rooms[-2], rooms[-1]
    columns = [t.contiguous() for t in (plan.row, plan.start, plan.stop, plan.kind, status, spikes)]
    row, start, stop, kind, ended, seen = (t.data_ptr() for t in columns)
    ask = OpenSpikes(
        seen, n, row, start, stop, None if plan.even else kind, cells, ended, rows, plan.pieces, CELLS, MOST,
        RESOLVED, SAME, *(room.data_ptr() for room in rooms), 0,
    )  # fmt: skip
    load().find_open(byref(ask))
    found = ask.found
    return Pairs(cell[:found].clone(), place[:found].clone(), apart[:found].clone()) if found else None


def find_gaps_native(
    rule: Rule, y: Tensor, factor: Tensor, tau: Tensor, inside: Tensor, rounding: float
) -> tuple[Tensor, Tensor]:
    """Return what :func:`quadgrad._core.search.looks.gaps.find_gaps` does."""
    if not in_memory(y):  # subclasses may keep what they stand for elsewhere
        return find_gaps(rule, y, factor, tau, inside, rounding)
    k, n = tau.shape
    missed, height = numbers(k, n), numbers(k, n)
    tables = [np.ascontiguousarray(table) for table in (rule.nodes, rule.barycentric, rule.nulls[:2])]
    kept = [t.resolve_neg().contiguous() for t in (y.resolve_conj(), factor, tau, inside)]
    parts, step = 1 + y.is_complex(), n if len(factor) > 1 else 0
    ask = Gaps(
        *(table.ctypes.data for table in tables), *(t.data_ptr() for t in kept), rule.nodes.size, step, n, k,
        y[0, 0].numel() * parts, parts, torch.get_num_threads(), rounding, missed.data_ptr(), height.data_ptr(),
    )  # fmt: skip
    load().find_gaps(byref(ask))
    return missed, height
