"""Calls under ``torch.func``: lanes of vmap become part of the batch on the way in, and lanes again on the way out.

Nothing below the door of a verb knows of lanes. :class:`Lanes` takes a tensor out of all ``vmap`` levels (*lift*)
and gives every lane its own part of one (*lower*); each is the other's derivative, so that derivatives cross the
border as values do. Search needs no derivatives: :func:`plain` takes off whatever transforms have wrapped around a
tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import (
    add_lanes,
    belongs_to_transform,
    carries_derivative,
    differentiated_within,
    in_transform,
    outside_transforms,
    unwrap,
)

__all__ = ["Lanes", "has_lanes", "plain"]


def plain(tensor: Tensor) -> Tensor:
    """Return a tensor without gradient and without what transforms have wrapped around it, lanes in front."""
    if torch.compiler.is_compiling():
        # Which cannot follow a look at what is wrapped, and no transform is open there.
        return tensor.detach()
    if in_transform() or belongs_to_transform(tensor):  # each operation there would wrap what it returns
        return unwrap(tensor)[0]
    if tensor.is_inference():  # such a tensor could not take part in a later gradient
        with torch.inference_mode(False):
            return tensor.clone()
    return tensor.detach() if tensor.requires_grad else tensor


class _Border(torch.autograd.Function):
    """What is the same on both ways across; ``carrier`` tells the levels to cross."""

    generate_vmap_rule = False

    @staticmethod
    def forward(tensor: Tensor, carrier: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])


class _Lift(_Border):
    """Each lane's tensor to one that has all: at the levels of ``carrier`` lanes become leading dimensions."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Lower.apply(gradients[0], ctx.saved_tensors[0]), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None if tangents[0] is None else _Lift.apply(tangents[0], ctx.saved_tensors[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Any, int | None]:
        (tensor, carrier), (lane, carried) = args, in_dims
        if carried is None:  # a level that came later, such as that of a batch of cotangents, keeps its lanes
            assert lane is not None
            return _Lift.apply(tensor.movedim(lane, -1), carrier), -1
        lanes = tensor.expand(info.batch_size, *tensor.shape) if lane is None else tensor.movedim(lane, 0)
        return _Lift.apply(lanes, carrier.movedim(carried, 0)), None


class _Lower(_Border):
    """One tensor that has all lanes to each lane's own; the inverse of :class:`_Lift`."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _Lift.apply(gradients[0], ctx.saved_tensors[0]), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None if tangents[0] is None else _Lower.apply(tangents[0], ctx.saved_tensors[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Tensor) -> tuple[Any, int]:
        (tensor, carrier), (lane, carried) = args, in_dims
        if carried is None:
            assert lane is not None
            return _Lower.apply(tensor.movedim(lane, -1), carrier), -1
        assert lane is None, "what has all lanes has none of its own"
        return _Lower.apply(tensor, carrier.movedim(carried, 0)), 0


@dataclass(frozen=True)
class Lanes:
    """The ``vmap`` levels that reach a tensor of a call, the outermost first, and how many lanes each has.

    ``carrier`` is a number in every lane, by which the border knows which levels are meant.
    """

    levels: tuple[int, ...]
    sizes: tuple[int, ...]
    carrier: Tensor

    @staticmethod
    def of(tensors: Iterable[Any]) -> Lanes | None:
        """Return the lanes that any of the tensors has; None if none has."""
        sizes: dict[int, int] = {}
        for tensor in tensors:
            if isinstance(tensor, Tensor) and belongs_to_transform(tensor):
                sizes |= unwrap(tensor)[1]
        if not sizes:
            return None
        levels = tuple(sorted(sizes))
        shape = tuple(sizes[level] for level in levels)
        device = next(t.device for t in tensors if isinstance(t, Tensor))
        with outside_transforms():
            carrier = torch.zeros(shape, device=device)
        return Lanes(levels, shape, add_lanes(carrier, levels))

    @property
    def count(self) -> int:
        """The number of lanes of all levels."""
        return math.prod(self.sizes)

    def concern(self, tensor: Tensor) -> bool:
        """Whether each lane has another tensor here, or another derivative by it: one taken inside its ``vmap``."""
        return has_lanes(tensor) or differentiated_within(tensor, self.levels[0])

    def lift(self, tensor: Tensor) -> Tensor:
        """Return a tensor ``(count, *shape)`` without lanes, differentiable with respect to the one given."""
        if carries_derivative(tensor):
            lifted = _Lift.apply(tensor, self.carrier)
        else:
            lifted, own = unwrap(tensor) if belongs_to_transform(tensor) else (tensor, {})
            for place, level in enumerate(self.levels):
                if level not in own:
                    lifted = lifted.unsqueeze(place)
            lifted = lifted.expand(*self.sizes, *tensor.shape)
        return lifted.reshape(self.count, *tensor.shape)

    def lower(self, tensor: Tensor) -> Tensor:
        """Return each lane's own part of a tensor ``(count, *shape)`` that has no lanes."""
        tensor = tensor.reshape(*self.sizes, *tensor.shape[1:])
        if carries_derivative(tensor):
            return _Lower.apply(tensor, self.carrier)
        return add_lanes(plain(tensor), self.levels)


def has_lanes(tensor: Tensor) -> bool:
    """Whether a tensor is another one in each lane of a ``vmap``."""
    return belongs_to_transform(tensor) and bool(unwrap(tensor)[1])
