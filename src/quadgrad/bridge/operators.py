"""The wrapped function as custom operators of torch: opaque to every compiler, with a fake kernel each.

An operator cannot hold a Python function, so it takes the handle under which its task is registered. Nothing here
differentiates: :mod:`quadgrad.bridge.functions` does in eager mode, and tells the compiler how.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad.bridge.contract import Array, Arrays, Spec, array_of, tensor_of
from quadgrad.bridge.task import Task
from quadgrad.errors import BridgeError

__all__ = ["call", "into_lanes", "jvp", "register", "second_jvp", "second_vjp", "vjp"]

_tasks: weakref.WeakValueDictionary[str, Task] = weakref.WeakValueDictionary()
_numbers = itertools.count()
_STACK = 8
"""Frames between a warning and the line that called the wrapped function, roughly: torch has a few of its own."""


def register(task: Task) -> str:
    """Give a task a handle, for as long as it lives.

    A string: the compiler specialises on it, where it might make a variable of a number.
    """
    handle = f"task {next(_numbers)}"
    _tasks[handle] = task
    return handle


def _task(handle: str) -> Task:
    try:
        return _tasks[handle]
    except KeyError:
        raise BridgeError(
            "the wrapped function behind this graph is gone: keep what bridge.wrap returned for as long as compiled or "
            "exported code uses it, and export anew in a new process"
        ) from None


def _arrays(tensors: Sequence[Tensor]) -> Arrays:
    return tuple(map(array_of, tensors))


def _vectors(tensors: Sequence[Tensor]) -> list[Array]:
    """Return tangents or cotangents, which may be complex."""
    return [t.detach().cpu().resolve_conj().resolve_neg().to(_wide(t)).numpy() for t in tensors]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def _floating(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.is_floating_point()]


def _like_inputs(found: Sequence[Array], inputs: Sequence[Tensor]) -> list[Tensor]:
    return [tensor_of(a, t.device).to(t.dtype) for a, t in zip(found, _floating(inputs), strict=True)]


def _like_outputs(found: Sequence[Array], task: Task, lanes: int, inputs: Sequence[Tensor]) -> list[Tensor]:
    specs = task.specs(_signature(lanes, inputs))
    return [tensor_of(a.astype(s.dtype), inputs[0].device) for a, s in zip(found, specs, strict=True)]


def _signature(lanes: int, inputs: Sequence[Tensor]) -> tuple[Spec, ...]:
    return tuple(Spec(tuple(int(s) for s in t.shape[lanes:]), _numpy_dtype(t.dtype)) for t in inputs)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[np.generic]:
    dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    return np.dtype(str(dtype).removeprefix("torch."))


def _fake_inputs(lanes: int, extra: int, inputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    extras = tuple(vectors[0].shape[lanes : lanes + extra]) if vectors else ()
    return [t.new_empty((*t.shape[:lanes], *extras, *t.shape[lanes:])) for t in _floating(inputs)]


def _fake_outputs(
    handle: str, lanes: int, extra: int, inputs: Sequence[Tensor], vectors: Sequence[Tensor]
) -> list[Tensor]:
    extras = tuple(vectors[0].shape[lanes : lanes + extra]) if vectors else ()
    lead = (*inputs[0].shape[:lanes], *extras)
    specs = _task(handle).specs(_signature(lanes, inputs))
    return [inputs[0].new_empty((*lead, *s.shape), dtype=getattr(torch, s.dtype.name)) for s in specs]


@torch.library.custom_op("quadgrad_bridge::call", mutates_args=())
def call(handle: str, lanes: int, inputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs."""
    task, arrays = _task(handle), _arrays(inputs)
    found = task.values(lanes, arrays, _STACK) if lanes else task.value(arrays, remember=True, stacklevel=_STACK)
    return [tensor_of(y, inputs[0].device) for y in found]


@call.register_fake
def _(handle: str, lanes: int, inputs: list[Tensor]) -> list[Tensor]:
    return _fake_outputs(handle, lanes, 0, inputs, [])


@torch.library.custom_op("quadgrad_bridge::vjp", mutates_args=())
def vjp(handle: str, lanes: int, extra: int, inputs: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    """Return the vector-Jacobian products."""
    return _like_inputs(_task(handle).vjp(lanes, extra, _arrays(inputs), _vectors(cotangents)), inputs)


@vjp.register_fake
def _(handle: str, lanes: int, extra: int, inputs: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    return _fake_inputs(lanes, extra, inputs, cotangents)


@torch.library.custom_op("quadgrad_bridge::jvp", mutates_args=())
def jvp(handle: str, lanes: int, extra: int, inputs: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    """Return the Jacobian-vector products."""
    task = _task(handle)
    found = task.jvp(lanes, extra, _arrays(inputs), _vectors(tangents))
    return _like_outputs(found, task, lanes, inputs)


@jvp.register_fake
def _(handle: str, lanes: int, extra: int, inputs: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    return _fake_outputs(handle, lanes, extra, inputs, tangents)


@torch.library.custom_op("quadgrad_bridge::second_vjp", mutates_args=())
def second_vjp(
    handle: str, lanes: int, extra: int, inputs: list[Tensor], cotangents: list[Tensor], tangents: list[Tensor]
) -> list[Tensor]:
    """Return the derivatives of the vector-Jacobian products along tangents."""
    found = _task(handle).second_vjp(lanes, extra, _arrays(inputs), _vectors(cotangents), _vectors(tangents))
    return _like_inputs(found, inputs)


@second_vjp.register_fake
def _(
    handle: str, lanes: int, extra: int, inputs: list[Tensor], cotangents: list[Tensor], tangents: list[Tensor]
) -> list[Tensor]:
    return _fake_inputs(lanes, extra, inputs, cotangents)


@torch.library.custom_op("quadgrad_bridge::second_jvp", mutates_args=())
def second_jvp(
    handle: str, lanes: int, extra: int, inputs: list[Tensor], first: list[Tensor], second: list[Tensor]
) -> list[Tensor]:
    """Return the second derivatives along pairs of tangents."""
    task = _task(handle)
    found = task.second_jvp(lanes, extra, _arrays(inputs), _vectors(first), _vectors(second))
    return _like_outputs(found, task, lanes, inputs)


@second_jvp.register_fake
def _(
    handle: str, lanes: int, extra: int, inputs: list[Tensor], first: list[Tensor], second: list[Tensor]
) -> list[Tensor]:
    return _fake_outputs(handle, lanes, extra, inputs, first)


# ------------------------------------------------------------------------------------------------- vmap


def into_lanes(
    tensors: Sequence[Tensor], dims: Sequence[int | None], size: int, count: int, lanes: int
) -> tuple[list[Tensor], bool, int]:
    """Arrange tensors for one more batch dimension, of which ``dims`` says where it is.

    If one of the first ``count``, the inputs, has it, it becomes the first of the lanes; otherwise the first of
    the extra dimensions of the vectors.

    Returns
    -------
    tensors : list of Tensor
    lane : bool
        Whether it became a lane.
    at : int
        Where it is now, and will be in the outputs.
    """
    lane = any(dim is not None for dim in dims[:count])
    at = 0 if lane else lanes
    first = 0 if lane else count
    moved = [_moved(t, dim, size, at) for t, dim in zip(tensors[first:], dims[first:], strict=True)]
    return [*tensors[:first], *moved], lane, at


def _moved(tensor: Tensor, dim: int | None, size: int, at: int) -> Tensor:
    if dim is not None:
        return tensor.movedim(dim, at)
    return tensor.unsqueeze(at).expand(*tensor.shape[:at], size, *tensor.shape[at:])


def _batched_call(info: Any, in_dims: Any, handle: str, lanes: int, inputs: list[Tensor]) -> Any:
    moved, _, at = into_lanes(inputs, in_dims[2], info.batch_size, len(inputs), lanes)
    found = call(handle, lanes + 1, moved)
    return found, [at] * len(found)


def _batched(operator: Any) -> Any:
    """Return the rule of an operator of inputs and vectors."""

    def rule(info: Any, in_dims: Any, handle: str, lanes: int, extra: int, *groups: list[Tensor]) -> Any:
        tensors, dims = [t for g in groups for t in g], [d for g in in_dims[3:] for d in g]
        moved, lane, at = into_lanes(tensors, dims, info.batch_size, len(groups[0]), lanes)
        parts = iter(moved)
        again = [[next(parts) for _ in group] for group in groups]
        found = operator(handle, lanes + lane, extra + (not lane), *again)
        return found, [at] * len(found)

    return rule


# Functions have rules of their own. These are for what reaches an operator directly: forward mode inside vmap.
torch.library.register_vmap(call, _batched_call)
for _operator in (vjp, jvp, second_vjp, second_jvp):
    torch.library.register_vmap(_operator, _batched(_operator))
