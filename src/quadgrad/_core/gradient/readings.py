"""What reading f beside limits and breakpoints adds to the errors of derivatives by what these depend on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.gradient.boundary import carries_gradient, reading_errors
from quadgrad._core.gradient.derivative import as_reals
from quadgrad._core.gradient.mode import Primal
from quadgrad._core.gradient.rows import ROWS, rows_of, zeros

__all__ = ["reading_errors_by"]


def reading_errors_by(primal: Primal, tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return the errors of derivatives with respect to tensors that come from reading f, ``(batch, tensors)``.

    Of each tensor that of its worst entry. None inside transforms, where it cannot be told, and where no limit or
    breakpoint requires grad.
    """
    problem, batch = primal.problem, primal.plan.batch
    marks = [mark for mark in problem.limits.marks if carries_gradient(mark)]
    if in_transform() or not batch or not any(mark.requires_grad for mark in marks):
        return None
    relative = None if primal.scaled is None else primal.scaled.error
    errors = reading_errors(problem, primal.treatment, primal.slope, relative)
    total = zeros(primal.value).new_zeros((batch, len(tensors)))
    for mark, error in zip(problem.limits.marks, errors, strict=True):
        if not mark.requires_grad:
            continue
        for column, tensor in enumerate(tensors):
            if tensor is not None and tensor is not mark:
                slope = _slopes(mark.expand(batch), tensor)
                total[:, column] += torch.where(slope > 0.0, slope * error, 0.0)
    return total


def _slopes(mark: Tensor, tensor: Tensor) -> Tensor:
    """Return the largest derivative of each mark ``(batch,)`` by an entry of a tensor."""
    parts = [as_reals(rows_of(some, tensor), 1).abs().amax(1) for some in mark.split(ROWS)]
    return torch.cat(parts)
