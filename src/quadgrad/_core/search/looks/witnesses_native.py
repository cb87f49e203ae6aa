"""Witnesses found by the compiled kernel: which arguments lie between their limits (see ``witnesses.py``)."""

from __future__ import annotations

from ctypes import addressof, byref, c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.integrand import Argument
from quadgrad._core.problem import Problem
from quadgrad._core.search.kernel.library import Named, Setting, WitnessNumbers, load
from quadgrad._core.search.kernel.memory import INTEGERS, REALS, in_memory, pointer
from quadgrad._core.search.kernel.values import read
from quadgrad._core.search.looks.witnesses import AWAY, Listed, Witnesses, named

__all__ = ["find_witnesses", "numbers_of", "one_of_each"]

KINDS = (REALS, INTEGERS, REALS, INTEGERS, REALS, INTEGERS)
"""What the tables of places and of what is at each consist of."""


def find_witnesses(problem: Problem, mine: Tensor | None = None) -> Witnesses | None:
    """Call f where arguments of integrals lie between their limits; see :meth:`Witnesses.of`."""
    arguments = named(problem)
    if not arguments:
        return None
    columns = one_of_each(problem, arguments) if problem.batch == 1 else [_numbers(a.value) for a in arguments]
    if not columns:
        return None
    setting = problem.opening.setting if problem.opening else Setting.of(problem.pieces, problem.rule)
    k, rows = len(columns), problem.batch * problem.pieces.count
    pointers = (c_void_p * k)(*[at for at, _, _ in columns])
    steps = (c_int64 * k)(*[step for _, step, _ in columns])
    asked = Named(addressof(pointers), addressof(steps), pointer(mine), k, problem.batch, AWAY)
    place, slot, x, owner, slope, at = [kind.new_empty(rows * k) for kind in KINDS]
    tables = (place, slot, x, owner, slope, at)
    n = load().name_places(byref(setting), byref(asked), *[t.data_ptr() for t in tables])
    if not n:
        return None
    return Witnesses.call(problem, place.view(rows, k), slot.view(rows, k), Listed(*[t[:n] for t in tables[2:]]))


def one_of_each(problem: Problem, arguments: list[Argument]) -> list[tuple[int, int, Any]]:
    """Return what :func:`_numbers` does for a single integral, whose numbers are quicker asked for one by one.

    That is nothing if none is between its limits.
    """
    lower, upper = problem.pieces.lower.tolist()[0], problem.pieces.upper.tolist()[-1]
    values = [float(a.value.detach() if isinstance(a.value, Tensor) else a.value) for a in arguments]
    if not any(lower < value < upper for value in values):
        return []
    kept = (c_double * len(values))(*values)
    return [(addressof(kept) + 8 * i, 0, kept) for i in range(len(values))]


def _numbers(value: Any) -> tuple[int, int, Any]:
    """Return where the numbers of an argument are, how far apart, and what keeps them there."""
    if not isinstance(value, Tensor):
        number = c_double(value)
        return addressof(number), 0, number
    plain = value.detach().double().resolve_neg().contiguous()
    if not in_memory(plain):
        plain = torch.full_like(plain, torch.nan, device="cpu")
    return plain.data_ptr(), int(plain.numel() > 1), plain


def numbers_of(witnesses: Witnesses, parts: int) -> WitnessNumbers:
    """Return witnesses as the kernel reads them, of an integrand whose values have so many ``parts``."""
    value, weights = read(witnesses.value, parts), torch.from_numpy(witnesses.problem.rule.barycentric)
    tables = (witnesses.place, witnesses.slot, value, witnesses.size, weights)
    made = WitnessNumbers(
        *witnesses.numbers(), *(t.data_ptr() for t in tables), witnesses.place.shape[1], witnesses.left
    )
    made.kept = tables
    return made
