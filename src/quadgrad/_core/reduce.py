"""Sums over the cells of each integral, and over the nodes of each cell; records of many cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["align", "apply", "concatenate", "mean", "one_number", "reals", "take", "total"]

LONG = 500
"""Over more nodes than these products are added pairwise."""

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


def align(t: Tensor, y: Tensor) -> Tensor:
    """Return ``t`` in a shape that broadcasts with ``y``, which has event dimensions beyond its own."""
    return t.reshape(t.shape + (1,) * (y.ndim - t.ndim)) if y.ndim > t.ndim else t


def one_number(y: Tensor) -> Tensor:
    """Return one real number for f ``(n, *event)`` at one place of each cell: the sum of its real components."""
    y = reals(y, 1)
    return y if y.ndim == 1 else y.sum(1)


def reals(y: Tensor, dim: int) -> Tensor:
    """Return the real components of all that stands from ``dim`` on; without components nothing stands there."""
    y = torch.view_as_real(y) if y.is_complex() else y
    return y.flatten(dim) if y.ndim > dim else y


def apply(functionals: Tensor, y: Tensor) -> Tensor:
    """Apply linear functionals ``(k, m)`` to values ``(m, n, *event)`` at nodes: ``(k, n, *event)``.

    One sum over many nodes, added one after the other, would be off by more eps than the least error that is told.
    """
    functionals, flat = functionals.to(y.dtype), y.flatten(1)
    pairwise = len(functionals) == 1 and len(y) > LONG
    sums = (functionals.T * flat).sum(0, keepdim=True) if pairwise else functionals @ flat
    return sums if y.ndim == 2 else sums.unflatten(1, y.shape[1:])


def mean(weights: Tensor, y: Tensor) -> Tensor:
    """Return the weighted sum of values ``(m, n, *event)`` at nodes: ``(n, *event)``."""
    sums = y.flatten(1).T @ weights
    return sums if y.ndim == 2 else sums.unflatten(0, y.shape[1:])
