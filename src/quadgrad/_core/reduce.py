"""Sums over the cells of each integral."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["one_number", "total"]


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


def one_number(y: Tensor) -> Tensor:
    """Return one real number for f ``(n, *event)`` at one place of each cell: the sum of its real components."""
    if y.is_complex():
        y = torch.view_as_real(y)
    return y if y.ndim == 1 else y.flatten(1).sum(1)
