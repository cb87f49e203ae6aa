"""Derivatives of the operators: thin functions that every eager transform understands, and the compiler's rule.

Each function calls its operator forward and the next function backward: value, products with the Jacobian,
second-order
products. The third order raises. Under ``vmap`` inputs get one more of ``lanes``, their leading dimensions;
vectors alone
get one more of ``extra``, the dimensions after these, so that a batch of cotangents shares one Jacobian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from quadgrad.bridge import operators
from quadgrad.bridge.task import Task

__all__ = ["THIRD", "Place", "call"]


@dataclass(frozen=True)
class Place:
    """What a function is applied to: no tensor, so transforms hand it through.

    Attributes
    ----------
    task : Task
        Kept here too, so that it lives as long as a graph that needs it.
    handle : str
    count : int
        How many of the tensors are inputs; vectors follow.
    wanted : tuple of int
        With respect to which inputs: tangents and gradients are those of these.
    split : int
        How many of the vectors belong to the first of two groups.
    lanes, extra : int
    """

    task: Task
    handle: str
    count: int
    wanted: tuple[int, ...] = ()
    split: int = 0
    lanes: int = 0
    extra: int = 0


def call(task: Task, handle: str, inputs: Sequence[Tensor], plain: bool) -> tuple[Tensor, ...]:
    """Return the outputs, differentiable; ``plain`` says that nobody is watching."""
    return (_PlainCall if plain else _Call).apply(Place(task, handle, len(inputs)), *inputs)


class _Product(torch.autograd.Function):
    """What the functions share."""

    generate_vmap_rule = False

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.place, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)  # so that inputs without a tangent can be told from others
        ctx.outputs = [(y.shape, y.dtype) for y in output]

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


def _needed(ctx: Any, inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """Return which inputs a gradient is asked for."""
    needs = ctx.needs_input_grad[1 : 1 + len(inputs)]
    return tuple(i for i, (x, need) in enumerate(zip(inputs, needs, strict=True)) if need and x.is_floating_point())


def _moving(tangents: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """Return which inputs have a tangent."""
    given = enumerate(zip(inputs, tangents, strict=True))
    return tuple(i for i, (x, t) in given if t is not None and x.is_floating_point())


def _entered(found: Sequence[Tensor], wanted: Sequence[int], count: int) -> list[Tensor | None]:
    """Return gradients of the wanted inputs at their places among all."""
    places = dict(zip(wanted, found, strict=True))
    return [places.get(i) for i in range(count)]


def _filled(ctx: Any, like: Tensor, gradients: Sequence[Tensor | None]) -> list[Tensor]:
    """Return gradients of a function's outputs, zeros for those that have none.

    ``like`` is one of the saved tensors, which may be read once only: checkpointing computes them anew, and frees
    them.
    """
    return [
        like.new_zeros(shape, dtype=dtype) if g is None else g
        for g, (shape, dtype) in zip(gradients, ctx.outputs, strict=True)
    ]


def _united(place: Place, others: Sequence[int]) -> Place:
    """Return the place with more inputs wanted."""
    return replace(place, wanted=tuple(sorted({*place.wanted, *others})))


def _spread(vectors: Sequence[Tensor], own: Sequence[int], place: Place, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tangents of the inputs ``own`` as tangents of all that are wanted, with ``extra`` dimensions."""
    given = dict(zip(own, vectors, strict=True))
    lanes, extra = place.lanes, place.extra
    sizes = tensors[place.count].shape[lanes : lanes + extra]
    found: list[Tensor] = []
    for i in place.wanted:
        vector = given.get(i, torch.zeros_like(tensors[i]))
        if vector.ndim == tensors[i].ndim and extra:
            lead, core = vector.shape[:lanes], vector.shape[lanes:]
            vector = vector.reshape(*lead, *(1,) * extra, *core).expand(*lead, *sizes, *core)
        found.append(vector)
    return found


def _picked(found: Sequence[Tensor], place: Place, wanted: Sequence[int]) -> list[Tensor]:
    """Return of gradients of all wanted inputs those of some."""
    return [g for g, i in zip(found, place.wanted, strict=True) if i in wanted]


def _summed(gradients: Sequence[Tensor], place: Place) -> list[Tensor]:
    """Add up over ``extra`` dimensions what belongs to the inputs, which have none."""
    dims = tuple(range(place.lanes, place.lanes + place.extra))
    return [g.sum(dims) if dims else g for g in gradients]


def _curvature(
    place: Place,
    tensors: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    tangents: Sequence[Tensor],
    own: Sequence[int],
) -> tuple[Place, tuple[Tensor, ...]]:
    """Return second-order products for all inputs that ``place`` wants; the tangents are those of ``own``."""
    place = replace(place, split=len(cotangents))
    spread = _spread(tangents, own, place, tensors)
    return place, _SecondVjp.apply(place, *tensors[: place.count], *cotangents, *spread)


class _Call(_Product):
    @staticmethod
    def forward(place: Place, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(operators.values(place.handle, place.lanes, inputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inputs = ctx.saved_tensors
        return _pulled(ctx, inputs, _filled(ctx, inputs[0], gradients))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        place, inputs = ctx.place, ctx.saved_tensors
        wanted = _moving(tangents[1:], inputs)
        return _Jvp.apply(replace(place, wanted=wanted), *inputs, *(tangents[1 + i] for i in wanted))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Call._vmap(info, in_dims, *args)


def _pulled(ctx: Any, inputs: Sequence[Tensor], incoming: Sequence[Tensor]) -> Any:
    """Return the gradients of a call, none for its place."""
    place, wanted = ctx.place, _needed(ctx, inputs)
    if not torch.is_grad_enabled() and operators.plainly(inputs, incoming):
        groups = inputs, incoming
        found = operators.plain_product("vjp", place.task, wanted, place.lanes, place.extra, groups)
    else:
        found = _Vjp.apply(replace(place, wanted=wanted), *inputs, *incoming)
    return None, *_entered(found, wanted, place.count)


class _PlainCall(torch.autograd.Function):
    """The same where no transform is open: a function that sets up its own context is called at half the cost."""

    @staticmethod
    def forward(ctx: Any, place: Place, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.place = place
        ctx.save_for_backward(*inputs)
        return tuple(operators.plain_values(place.task, place.lanes, inputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _pulled(ctx, ctx.saved_tensors, gradients)


class _Vjp(_Product):
    """Cotangents pulled back: J^T g. Its derivatives are J^T dg and the Hessian of <g, f> times dx."""

    @staticmethod
    def forward(place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
        return operators.vjp(*_arguments(place), tensors[: place.count], tensors[place.count :])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        place, tensors = ctx.place, ctx.saved_tensors
        incoming = _filled(ctx, tensors[0], gradients)
        inputs, cotangents = tensors[: place.count], tensors[place.count :]
        needed = _needed(ctx, inputs)
        by_input: list[Tensor] = []
        if needed:
            union, found = _curvature(_united(place, needed), tensors, cotangents, incoming, place.wanted)
            by_input = _summed(_picked(found, union, needed), place)
        return None, *_entered(by_input, needed, place.count), *_Jvp.apply(place, *inputs, *incoming)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        place, tensors = ctx.place, ctx.saved_tensors
        inputs, cotangents = tensors[: place.count], tensors[place.count :]
        of_inputs, of_cotangents = tangents[1 : 1 + place.count], tangents[1 + place.count :]
        moving = _moving(of_inputs, inputs)
        parts: list[Sequence[Tensor]] = []
        if moving:
            given = [of_inputs[i] for i in moving]
            union, found = _curvature(_united(place, moving), tensors, cotangents, given, moving)
            parts.append(_picked(found, union, place.wanted))
        if any(t is not None for t in of_cotangents):
            parts.append(_Vjp.apply(place, *inputs, *_zeros_for_none(of_cotangents, cotangents)))
        return _added(parts)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Vjp._vmap(info, in_dims, *args)


class _Jvp(_Product):
    """Tangents pushed forward: J v. Its derivatives are J dv and second derivatives along dx and v."""

    @staticmethod
    def forward(place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
        return operators.jvp(*_arguments(place), tensors[: place.count], tensors[place.count :])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        place, tensors = ctx.place, ctx.saved_tensors
        incoming = _filled(ctx, tensors[0], gradients)
        inputs, tangents = tensors[: place.count], tensors[place.count :]
        needed = _needed(ctx, inputs)
        by_input: list[Tensor] = []
        if needed:
            union, found = _curvature(_united(place, needed), tensors, incoming, tangents, place.wanted)
            by_input = _summed(_picked(found, union, needed), place)
        return None, *_entered(by_input, needed, place.count), *_Vjp.apply(place, *inputs, *incoming)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        place, tensors = ctx.place, ctx.saved_tensors
        inputs, own = tensors[: place.count], tensors[place.count :]
        of_inputs, of_own = tangents[1 : 1 + place.count], tangents[1 + place.count :]
        moving = _moving(of_inputs, inputs)
        parts: list[Sequence[Tensor]] = []
        if moving:
            union = _united(place, moving)
            union = replace(union, split=len(union.wanted))
            first = _spread([of_inputs[i] for i in moving], moving, union, tensors)
            parts.append(_SecondJvp.apply(union, *inputs, *first, *_spread(own, place.wanted, union, tensors)))
        if any(t is not None for t in of_own):
            parts.append(_Jvp.apply(place, *inputs, *_zeros_for_none(of_own, own)))
        return _added(parts)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Jvp._vmap(info, in_dims, *args)


def _arguments(place: Place) -> tuple[str, list[int], int, int]:
    return place.handle, list(place.wanted), place.lanes, place.extra


def _zeros_for_none(given: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(v) if t is None else t for t, v in zip(given, like, strict=True)]


def _added(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(reduce(torch.add, terms) for terms in zip(*parts, strict=True))


class _Second(_Product):
    """A second-order product, which has no derivatives."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(THIRD)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(THIRD)


THIRD = (
    "functions wrapped with quadgrad.bridge have first and second derivatives, not third ones: wrap the second "
    "derivative itself, or write the function with operations that are differentiable"
)


class _SecondVjp(_Second):
    @staticmethod
    def forward(place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
        return operators.second_vjp(*_arguments(place), *_groups(place, tensors))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _SecondVjp._vmap(info, in_dims, *args)


class _SecondJvp(_Second):
    @staticmethod
    def forward(place: Place, *tensors: Tensor) -> tuple[Tensor, ...]:
        return operators.second_jvp(*_arguments(place), *_groups(place, tensors))

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
    needs = ctx.needs_input_grad[2]
    wanted = [i for i, (x, need) in enumerate(zip(inputs, needs, strict=True)) if need and x.is_floating_point()]
    found = operators.vjp(ctx.handle, wanted, ctx.lanes, 0, inputs, gradients)
    return None, None, _entered(found, wanted, len(inputs))


operators.call.register_autograd(_pull_back, setup_context=_remember)
