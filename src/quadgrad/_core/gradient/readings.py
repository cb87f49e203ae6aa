"""What reading f beside limits and breakpoints adds to the errors of derivatives by what these depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.gradient.boundary import carries_gradient, reading_errors
from quadgrad._core.gradient.derivative import as_reals
from quadgrad._core.gradient.mode import Primal

__all__ = ["reading_errors_by"]

ROWS = 512
"""Marks differentiated at a time."""


def reading_errors_by(primal: Primal, tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return the errors of derivatives with respect to tensors that come from reading f, ``(batch, tensors)``.

    Of each tensor that of its worst entry. None inside transforms, where it cannot be told, and where no limit or
    breakpoint requires grad.
    """
    problem, batch = primal.problem, primal.plan.batch
    marks = [mark for mark in problem.limits.marks if carries_gradient(mark)]
    if in_transform() or not batch or not any(mark.requires_grad for mark in marks):
        return None
    value, relative = primal.value.detach(), None
    weight = torch.ones_like(value)
    if primal.scaled is not None:
        weight, relative = (
            torch.where(value == 0.0, 0.0, 1.0 / value.masked_fill(value == 0.0, 1.0)),
            primal.scaled.error,
        )
    errors = reading_errors(problem, primal.treatment, weight, relative)
    total = (
        value.real.new_zeros((batch, len(tensors)))
        if value.is_complex()
        else value.new_zeros((batch, len(tensors)))
    )
    for mark, error in zip(problem.limits.marks, errors, strict=True):
        if not mark.requires_grad:
            continue
        for column, tensor in enumerate(tensors):
            slope = None if tensor is None or tensor is mark else _slopes(mark.expand(batch), tensor)
            if slope is not None:
                total[:, column] += torch.where(slope > 0.0, slope * error, 0.0)
    return total


def _slopes(mark: Tensor, tensor: Tensor) -> Tensor | None:
    """Return the largest derivative of each mark ``(batch,)`` by an entry of a tensor; None if there is none."""
    parts: list[Tensor] = []
    for low in range(0, len(mark), ROWS):
        some = mark[low : low + ROWS]
        found: Any = torch.autograd.grad(
            some, (tensor,), torch.eye(len(some), dtype=mark.dtype, device=mark.device), retain_graph=True,
            allow_unused=True, is_grads_batched=True,
        )  # fmt: skip
        if found[0] is None:
            return None
        parts.append(as_reals(found[0], 1).abs().amax(1))
    return torch.cat(parts)
