"""Calls that a backward pass makes again, for ``torch.utils.checkpoint``: they have to do what was done before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["Repeats"]

REMEMBERED = 64
"""Calls that are remembered until they are made again."""


class Repeats:
    """From which plan each of the last calls has started."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Any, list[Tensor], Any]] = deque(maxlen=REMEMBERED)
        self._repeating = False

    def remember(self, f: Any, given: Any, plan: Any) -> None:
        """Keep in mind a call that may be made again."""
        if self._repeating:  # a backward pass is over: what was before it is, too
            self._calls.clear()
            self._repeating = False
        self._calls.append((_code(f), list(_tensors(given)), plan))

    def recall(self, f: Any, given: Any, otherwise: Any) -> Any:
        """Return from which plan the last call with the same numbers has started."""
        self._repeating = True
        code, tensors = _code(f), list(_tensors(given))
        for other, before, plan in reversed(self._calls):
            if other == code and len(before) == len(tensors) and all(map(_equal, before, tensors)):
                return plan
        return otherwise


def _code(f: Any) -> Any:
    """Return what tells functions apart: a step that is made again may define its own anew."""
    return getattr(f, "__code__", None) or type(f)


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given.detach()
    elif isinstance(given, dict):
        yield from _tensors(list(given.values()))
    elif isinstance(given, list | tuple):
        for one in given:
            yield from _tensors(one)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
