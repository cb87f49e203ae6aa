"""Sums over the cells of each integral; parts of records of many cells, and such records put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["concatenate", "one_number", "take", "total", "with_event"]

_Record = TypeVar("_Record", bound=Any)
"""A dataclass of tensors whose first dimension enumerates cells."""


def total(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sum over the cells of each owner, in an order that does not depend on the device's scheduling.

    Parameters
    ----------
    values : Tensor, shape (n, *event)
    owner : Tensor of int64, shape (n,)
    count : int
        The number of owners.

    Returns
    -------
    Tensor, shape (count, *event)
    """
    zeros = values.new_zeros((count, *values.shape[1:]))
    if values.is_cuda:
        # index_add adds atomically on CUDA; an accumulating index_put sorts first.
        return zeros.index_put((owner,), values, accumulate=True)
    return zeros.index_add(0, owner, values)


def take(record: _Record, cells: Tensor) -> _Record:
    """Return some cells, by a mask or by their places."""
    return type(record)(*(getattr(record, f.name)[cells] for f in fields(record)))


def concatenate(parts: Sequence[_Record]) -> _Record:
    """Return the cells of all parts as one."""
    if len(parts) == 1:
        return parts[0]
    return type(parts[0])(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(parts[0])))


def one_number(y: Tensor) -> Tensor:
    """Return one real number for f ``(n, *event)`` at one place of each cell: the sum of its real components."""
    if y.is_complex():
        y = torch.view_as_real(y)
    return y if y.ndim == 1 else y.flatten(1).sum(1)


def with_event(t: Tensor, y: Tensor) -> Tensor:
    """Give a tensor dimensions of size 1 for the event of ``y``."""
    return t.reshape(t.shape + (1,) * (y.ndim - t.ndim))
