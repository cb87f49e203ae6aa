"""Derivatives of the operators: thin functions that every eager transform understands, and the compiler's rule.

Each function calls its operator forward and the next function backward: value, products with the Jacobian, second-order
products. The third order raises. Under ``vmap`` inputs get one more of ``lanes``, their leading dimensions; vectors alone
get one more of ``extra``, the dimensions after these, so that a batch of cotangents shares one Jacobian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad.bridge import operators
from quadgrad.bridge.task import Task

__all__ = ["Place", "call"]


@dataclass(frozen=True)
class Place:
    """What a function is applied to: no tensor, so transforms hand it through.

    Attributes
    ----------
    task : Task
        Kept here too, so that it lives as long as a graph that needs it.
    handle : int
    count : int
        How many of the tensors are inputs; vectors follow.
    split : int
        How many of the vectors belong to the first of two groups.
    lanes, extra : int
    """

    task: Task
    handle: str
    count: int
    split: int = 0
    lanes: int = 0
    extra: int = 0


def call(task: Task, handle: str, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the outputs, differentiable."""
    return _Call.apply(Place(task, handle, len(inputs)), *inputs)


class _Product(torch.autograd.Function):
    """What the functions share."""

    generate_vmap_rule = False

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.place, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @classmethod
    def _vmap(cls, info: Any, in_dims: Sequence[int | None], place: Place, *tensors: Tensor) -> Any:
        moved, lane, at = _into_lanes(tensors, in_dims[1:], info.batch_size, place.count, place.lanes)
        place = replace(place, lanes=place.lanes + lane, extra=place.extra + (not lane))
        outputs = cls.apply(place, *moved)
        return outputs, (at,) * len(outputs)


def _into_lanes(
    tensors: Sequence[Tensor], dims: Sequence[int | None], size: int, count: int, lanes: int
) -> tuple[list[Tensor], bool, int]:
    """Arrange tensors for one more batch dimension, of which ``dims`` says where it is.

    If one of the first ``count``, the inputs, has it, it becomes the first of the lanes; otherwise the first of
    the extra dimensions of the vectors. Returns the tensors, whether it became a lane, and where it is now.
    """
    lane = any(dim is not None for dim in dims[:count])
    at, first = (0, 0) if lane else (lanes, count)
    moved = [_moved(t, dim, size, at) for t, dim in zip(tensors[first:], dims[first:], strict=True)]
    return [*tensors[:first], *moved], lane, at


def _moved(tensor: Tensor, dim: int | None, size: int, at: int) -> Tensor:
    if dim is not None:
        return tensor.movedim(dim, at)
    return tensor.unsqueeze(at).expand(*tensor.shape[:at], size, *tensor.shape[at:])


def _widened(tensors: Sequence[Tensor], place: Place, like: Sequence[Tensor]) -> list[Tensor]:
    """Give vectors without ``extra`` dimensions those of the vectors that have them."""
    lanes, extra = place.lanes, place.extra
    if not extra:
        return list(tensors)
    sizes = like[0].shape[lanes : lanes + extra]
    return [
        t.reshape(*t.shape[:lanes], *(1,) * extra, *t.shape[lanes:]).expand(
            *t.shape[:lanes], *sizes, *t.shape[lanes:]
        )
        for t in tensors
    ]


def _summed(gradients: Sequence[Tensor], place: Place) -> list[Tensor]:
    """Add up over ``extra`` dimensions what belongs to the inputs, which have none."""
    dims = tuple(range(place.lanes, place.lanes + place.extra))
    return [g.sum(dims) if dims else g for g in gradients]


def _differentiable(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.is_floating_point()]


def _entered(gradients: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Return gradients of the floating inputs at their places."""
    found = iter(gradients)
    return [next(found) if t.is_floating_point() else None for t in inputs]


def _tangents(given: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the tangents of the floating inputs, zeros where there is none."""
    return [
        torch.zeros_like(x) if t is None else t for t, x in zip(given, inputs, strict=True) if x.is_floating_point()
    ]


class _Call(_Product):
    @staticmethod
    def forward(place: Place, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(operators.call(place.handle, place.lanes, list(inputs)))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inputs = ctx.saved_tensors
        return None, *_entered(_Vjp.apply(ctx.place, *inputs, *gradients), inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        inputs = ctx.saved_tensors
        return _Jvp.apply(ctx.place, *inputs, *_tangents(tangents[1:], inputs))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Call._vmap(info, in_dims, *args)


class _Vjp(_Product):
    """Cotangents pulled back: ``J^T g``. Its derivatives are ``J^T dg`` and the Hessian of ``<g, f>`` times ``dx``."""

    @staticmethod
    def forward(place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, cotangents = tensors[: place.count], tensors[place.count :]
        return operators.vjp(place.handle, place.lanes, place.extra, inputs, cotangents)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        place, tensors = ctx.place, ctx.saved_tensors
        inputs, cotangents = tensors[: place.count], tensors[place.count :]
        second = replace(place, split=len(cotangents))
        by_input = _summed(_SecondVjp.apply(second, *inputs, *cotangents, *gradients), place)
        return None, *_entered(by_input, inputs), *_Jvp.apply(place, *inputs, *gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        place, tensors = ctx.place, ctx.saved_tensors
        inputs, cotangents = tensors[: place.count], tensors[place.count :]
        by_input = _widened(_tangents(tangents[1 : 1 + place.count], inputs), place, cotangents)
        by_cotangent = [
            torch.zeros_like(g) if t is None else t
            for t, g in zip(tangents[1 + place.count :], cotangents, strict=True)
        ]
        second = replace(place, split=len(cotangents))
        curved = _SecondVjp.apply(second, *inputs, *cotangents, *by_input)
        return tuple(a + b for a, b in zip(curved, _Vjp.apply(place, *inputs, *by_cotangent), strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Vjp._vmap(info, in_dims, *args)


class _Jvp(_Product):
    """Tangents pushed forward: ``J v``. Its derivatives are ``J dv`` and second derivatives along ``dx`` and ``v``."""

    @staticmethod
    def forward(place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, tangents = tensors[: place.count], tensors[place.count :]
        return operators.jvp(place.handle, place.lanes, place.extra, inputs, tangents)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        place, tensors = ctx.place, ctx.saved_tensors
        inputs, tangents = tensors[: place.count], tensors[place.count :]
        second = replace(place, split=len(gradients))
        by_input = _summed(_SecondVjp.apply(second, *inputs, *gradients, *tangents), place)
        return None, *_entered(by_input, inputs), *_Vjp.apply(place, *inputs, *gradients)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        place, tensors = ctx.place, ctx.saved_tensors
        inputs, own = tensors[: place.count], tensors[place.count :]
        by_input = _widened(_tangents(tangents[1 : 1 + place.count], inputs), place, own)
        by_tangent = [
            torch.zeros_like(v) if t is None else t for t, v in zip(tangents[1 + place.count :], own, strict=True)
        ]
        curved = _SecondJvp.apply(replace(place, split=len(own)), *inputs, *by_input, *own)
        return tuple(a + b for a, b in zip(curved, _Jvp.apply(place, *inputs, *by_tangent), strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Jvp._vmap(info, in_dims, *args)


class _Second(_Product):
    """A second-order product, which has no derivatives."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(_THIRD)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_THIRD)


_THIRD = (
    "functions wrapped with quadgrad.bridge have first and second derivatives, not third ones: wrap the second "
    "derivative itself, or write the function with torch operations"
)


class _SecondVjp(_Second):
    @staticmethod
    def forward(place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
        return operators.second_vjp(place.handle, place.lanes, place.extra, *_groups(place, tensors))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _SecondVjp._vmap(info, in_dims, *args)


class _SecondJvp(_Second):
    @staticmethod
    def forward(place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
        return operators.second_jvp(place.handle, place.lanes, place.extra, *_groups(place, tensors))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _SecondJvp._vmap(info, in_dims, *args)


def _groups(place: Place, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], ...]:
    n, k = place.count, place.count + place.split
    return tensors[:n], tensors[n:k], tensors[k:]


# ------------------------------------------------------------------------------------------ under a compiler


def _remember(ctx: Any, inputs: tuple[str, int, Sequence[Tensor]], output: Any) -> None:
    ctx.handle, ctx.lanes, tensors = inputs
    ctx.save_for_backward(*tensors)


def _pull_back(ctx: Any, gradients: Sequence[Tensor]) -> Any:
    inputs = ctx.saved_tensors
    found = operators.vjp(ctx.handle, ctx.lanes, 0, inputs, gradients)
    return None, None, _entered(found, inputs)


operators.call.register_autograd(_pull_back, setup_context=_remember)
