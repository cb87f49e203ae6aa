"""Witnesses found by the compiled kernel: which arguments lie between their limits. See search/witnesses.py."""

from __future__ import annotations

from ctypes import addressof, byref, c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.problem import Problem
from quadgrad._core.search.kernel.library import Named, Setting, load
from quadgrad._core.search.kernel.memory import INTEGERS, in_memory, numbers
from quadgrad._core.search.witnesses import AWAY, Listed, Witnesses, named

__all__ = ["find_witnesses"]


def find_witnesses(problem: Problem) -> Witnesses | None:
    """Call f where arguments of integrals lie between their limits; None where none does."""
    arguments = [_numbers(a.value) for a in named(problem)]
    if not arguments:
        return None
    setting = problem.opening.setting if problem.opening else Setting.of(problem.pieces, problem.rule)
    k, rows = len(arguments), problem.batch * problem.pieces.count
    pointers = (c_void_p * k)(*(pointer for pointer, _, _ in arguments))
    steps = (c_int64 * k)(*(step for _, step, _ in arguments))
    asked = Named(addressof(pointers), addressof(steps), k, problem.batch, AWAY)
    (place, x, slope), (slot, owner, at) = numbers(3, rows * k), INTEGERS.new_empty(3, rows * k)
    listed = (x, owner, slope, at)
    n = load().name_places(
        byref(setting), byref(asked), place.data_ptr(), slot.data_ptr(), *(t.data_ptr() for t in listed)
    )
    if not n:
        return None
    return Witnesses.call(problem, place.view(rows, k), slot.view(rows, k), Listed(*(t[:n] for t in listed)))


def _numbers(value: Any) -> tuple[int, int, Any]:
    """Return where the numbers of an argument are, how far apart, and what keeps them there."""
    if not isinstance(value, Tensor):
        number = c_double(value)
        return addressof(number), 0, number
    plain = value.detach().double().resolve_neg().contiguous()
    if not in_memory(plain):
        plain = torch.full_like(plain, torch.nan, device="cpu")
    return plain.data_ptr(), int(plain.numel() > 1), plain
