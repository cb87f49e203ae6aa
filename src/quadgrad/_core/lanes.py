"""Decisions under ``vmap``: one plan for all lanes, refined until the worst lane is done.

Search runs as plain Python. Under ``vmap`` its numbers carry hidden lanes on which ``bool()`` and
``nonzero()`` are forbidden; the tiny function below takes the largest over the lanes and gives back
an ordinary tensor. Every decision of search goes through it. Outside transforms it costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform

__all__ = ["export", "largest", "somewhere"]


class _LaneMaximum(torch.autograd.Function):
    """Identity, except that ``vmap`` over it takes the maximum over the lanes (NaN wins)."""

    generate_vmap_rule = False

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], *args: Tensor) -> tuple[Tensor, None]:
        tensor, lane = args[0], in_dims[0]
        return _LaneMaximum.apply(tensor if lane is None else tensor.amax(lane)), None


class _Box:
    """Holds a tensor; unlike a list it is no pytree, so transforms hand it through as it is."""

    content: Tensor


class _Export(torch.autograd.Function):
    """Put the innermost, unwrapped tensor into a box; wrappers must not outlive their transform."""

    generate_vmap_rule = False

    @staticmethod
    def forward(tensor: Tensor, box: _Box) -> Tensor:
        box.content = tensor.detach()
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, None]:
        return _Export.apply(*args), None


def largest(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum over all lanes, as a tensor without lanes or gradient."""
    if not in_transform():
        return tensor
    return _LaneMaximum.apply(tensor)


def somewhere(mask: Tensor) -> Tensor:
    """Return where ``mask`` is true in any lane, as a boolean tensor without lanes."""
    return largest(mask.to(torch.int8)) > 0 if in_transform() else mask


def export(tensor: Tensor) -> Tensor:
    """Return a tensor without lanes as a plain one that may be kept after the transform has ended."""
    if in_transform():
        box = _Box()
        _Export.apply(tensor, box)
        tensor = box.content
    if tensor.is_inference():  # such a tensor could not take part in a later gradient
        with torch.inference_mode(False):
            tensor = tensor.clone()
    return tensor
