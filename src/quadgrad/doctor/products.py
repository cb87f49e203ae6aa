"""Scalar products of gradients and steps, real ones of complex numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quadgrad.doctor import values

__all__ = ["along", "paired", "product"]


def along(gradient: Sequence[Tensor | None] | None, steps: Sequence[Tensor]) -> float:
    """Return the derivative along steps; an array of terms would cost half a forward pass of a large model."""
    total = 0.0
    for g, step in zip(gradient or [], steps, strict=False):
        if g is not None:
            kind = torch.complex128 if g.is_complex() or step.is_complex() else torch.float64
            total += float(torch.vdot(g.detach().to(kind).flatten(), step.to(kind).flatten()).real)
    return total


def product(gradient: Tensor, step: Tensor) -> Tensor:
    """Return the terms of the real scalar product."""
    if step.is_complex() or gradient.is_complex():
        return (gradient.conj() * step).real.double()
    return gradient.detach().double() * step.double()


def paired(cotangents: list[Tensor | None] | None, a: values.Held, b: values.Held) -> float:
    """Return the scalar product of cotangents with how far values at two places differ."""
    total = 0.0
    for g, x, y in zip(cotangents or [], a.leaves, b.leaves, strict=False):
        if g is not None and x.shape == y.shape == g.shape:
            total += float(product(g, x - y).sum())
    return total
