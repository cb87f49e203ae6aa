"""Jacobians of small graphs, row by row, and sums of their absolute values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["ROWS", "gradients", "rows_of", "weighted_rows", "zeros"]

ROWS = 512
"""Rows of a Jacobian computed at a time."""


def zeros(tensor: Tensor) -> Tensor:
    """Return real zeros, one for each entry."""
    return torch.zeros_like(tensor.detach(), dtype=tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype)


def gradients(output: Tensor, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return torch.autograd.grad(output, tensors, retain_graph=True, allow_unused=True)


def rows_of(outputs: Tensor, tensor: Tensor) -> Tensor:
    """Return the Jacobian, shape ``(outputs, *tensor.shape)``."""
    rows = None
    if outputs.requires_grad:
        one_by_one = torch.eye(outputs.shape[0], dtype=outputs.dtype, device=outputs.device)
        (rows,) = torch.autograd.grad(
            outputs, (tensor,), one_by_one, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    return tensor.new_zeros((outputs.shape[0], *tensor.shape)) if rows is None else rows.detach()


def weighted_rows(outputs: Tensor, tensor: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of the Jacobian's absolute rows times ``weights``, some rows at a time."""
    total = zeros(tensor)
    for first in range(0, outputs.shape[0], ROWS):
        part = slice(first, first + ROWS)
        size = rows_of(outputs[part], tensor).abs()
        total = total + torch.where(size > 0, size * weights[part].reshape(-1, *(1,) * tensor.ndim), 0.0).sum(0)
    return total
