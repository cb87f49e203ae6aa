"""The derivative of a curve by x is f itself.

Where nothing else is differentiated f is called when its values are asked for, and not before. Mixed derivatives
ask for a term in ordinary torch, in which x and the parameters of f meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.gradient.boundary import NODES, WEIGHTS
from quadgrad._core.reduce import align

__all__ = ["follow", "stretch"]

Slope = Callable[[Tensor], Tensor]
"""f at points ``(..., p)``: ``(..., p, *event)``."""


class _Follow(torch.autograd.Function):
    """The heights, as a function of the points too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, x: Tensor, slope: Slope) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, ctx.slope = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        pulled = None
        if ctx.needs_input_grad[1]:
            slope = ctx.slope(x)
            pulled = gradients[0] * slope.conj()
            pulled = pulled.real if pulled.is_complex() else pulled
            pulled = pulled.flatten(1).sum(1) if pulled.ndim > 1 else pulled
        return gradients[0], pulled, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (x,) = ctx.saved_tensors
        pushed, moved = tangents[0], tangents[1]
        if moved is None:
            return pushed
        slope = ctx.slope(x)
        moved = align(moved, slope) * slope
        return moved if pushed is None else pushed + moved


def follow(value: Tensor, x: Tensor, slope: Slope) -> Tensor:
    """Return heights ``(p, *event)`` at x ``(p,)``, differentiable with respect to x."""
    return _Follow.apply(value, x, slope)


def stretch(value: Tensor, x: Tensor, slope: Slope) -> Tensor:
    """Return the same, differentiable with respect to what f depends on, too: mixed derivatives up to order 6.

    The integral over the stretch from x to where it may move, of zero width, is added. ``slope`` is called with
    points ``(m, p)``.
    """
    move = x - x.detach()
    nodes, weights = (torch.tensor(column, dtype=x.dtype, device=x.device) for column in (NODES, WEIGHTS))
    y = slope(x.detach() + move * nodes[:, None])
    mean = (y * align(weights, y)).sum(0)
    return value + align(move, mean) * mean
