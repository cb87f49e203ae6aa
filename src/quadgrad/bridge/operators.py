"""The wrapped function as custom operators of torch: opaque to every compiler, with a fake kernel each.

An operator cannot hold a Python function, so it takes the handle under which its task is registered. Nothing here
differentiates: :mod:`quadgrad.bridge.functions` does in eager mode, and tells the compiler how.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import dispatch_mode_open, forward_mode_open, in_transform, is_batched
from quadgrad._core.errors import BridgeError
from quadgrad.bridge.contract import Array, Arrays, Spec, array_of, tensor_of
from quadgrad.bridge.task import Task

__all__ = [
    "call", "jvp", "plain_product", "plain_values", "plainly", "register", "second_jvp", "second_vjp", "values",
    "vjp",
]  # fmt: skip

PLAIN = frozenset((Tensor, torch.nn.Parameter))
_WIDE = frozenset((torch.float64, torch.complex128))

_tasks: weakref.WeakValueDictionary[str, Task] = weakref.WeakValueDictionary()
_numbers = itertools.count()


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
            "the wrapped function behind this graph is gone: keep what bridge.wrap returned for as long as "
            "compiled or "
            "exported code uses it, and export anew in a new process"
        ) from None


def _arrays(tensors: Sequence[Tensor]) -> Arrays:
    return tuple(map(array_of, tensors))


def _vectors(tensors: Sequence[Tensor]) -> list[Array]:
    """Return tangents or cotangents, which may be complex."""
    return [(t if t.dtype in _WIDE else _widened(t)).numpy(force=True) for t in tensors]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _signature(lanes: int, inputs: Sequence[Tensor]) -> tuple[Spec, ...]:
    return tuple(Spec(tuple(int(s) for s in t.shape[lanes:]), _numpy_dtype(t.dtype)) for t in inputs)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[np.generic]:
    dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    return np.dtype(str(dtype).removeprefix("torch."))


def _lead(lanes: int, extra: int, groups: Sequence[Sequence[Tensor]]) -> tuple[int, ...]:
    """Return the shape of lanes and extra dimensions."""
    return tuple(groups[1][0].shape[: lanes + extra])


def plainly(*groups: Sequence[Tensor]) -> bool:
    """Whether nobody records or replaces operators, so that the dispatcher, which takes longer, may be left out."""
    if in_transform() or forward_mode_open() or dispatch_mode_open():
        return False
    for group in groups:
        for t in group:
            if type(t) not in PLAIN or is_batched(t):
                return False
    return True


def values(handle: str, lanes: int, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs, by the operator where somebody may be watching."""
    return plain_values(_task(handle), lanes, inputs) if plainly(inputs) else call(handle, lanes, list(inputs))


@torch.library.custom_op("quadgrad_bridge::call", mutates_args=())
def call(handle: str, lanes: int, inputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs."""
    return plain_values(_task(handle), lanes, inputs)


def plain_values(task: Task, lanes: int, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs, where nobody is watching."""
    arrays = _arrays(inputs)
    found = task.values(lanes, arrays) if lanes else task.value(arrays, remember=True)
    return [tensor_of(y, inputs[0].device) for y in found]


@call.register_fake
def _(handle: str, lanes: int, inputs: list[Tensor]) -> list[Tensor]:
    specs = _task(handle).specs(_signature(lanes, inputs))
    return _empty_outputs(specs, inputs[0], tuple(inputs[0].shape[:lanes]))


def _empty_outputs(specs: Sequence[Spec], like: Tensor, lead: tuple[int, ...]) -> list[Tensor]:
    return [like.new_empty((*lead, *s.shape), dtype=getattr(torch, s.dtype.name)) for s in specs]


# ------------------------------------------------------------------------------------------------ products


def vjp(
    handle: str, wanted: Sequence[int], lanes: int, extra: int, *groups: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return vector-Jacobian products for ``groups`` inputs, cotangents."""
    return _apply("vjp", handle, wanted, lanes, extra, groups)


def jvp(
    handle: str, wanted: Sequence[int], lanes: int, extra: int, *groups: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return Jacobian-vector products for ``groups`` inputs, tangents."""
    return _apply("jvp", handle, wanted, lanes, extra, groups)


def second_vjp(
    handle: str, wanted: Sequence[int], lanes: int, extra: int, *groups: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return derivatives of vector-Jacobian products for ``groups`` inputs, cotangents, tangents."""
    return _apply("second_vjp", handle, wanted, lanes, extra, groups)


def second_jvp(
    handle: str, wanted: Sequence[int], lanes: int, extra: int, *groups: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return second derivatives along pairs of directions, for ``groups`` inputs, tangents, tangents."""
    return _apply("second_jvp", handle, wanted, lanes, extra, groups)


def _apply(
    kind: str, handle: str, wanted: Sequence[int], lanes: int, extra: int, groups: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, ...]:
    like_inputs = kind.endswith("vjp")
    results = len(wanted) if like_inputs else len(_task(handle).specs(_signature(lanes, groups[0])))
    if not wanted:
        return ()
    if plainly(*groups):
        return plain_product(kind, _task(handle), wanted, lanes, extra, groups)
    operator = _operator(kind, tuple(map(len, groups)), results)
    found = operator(handle, list(wanted), lanes, extra, *(t for group in groups for t in group))
    return (found,) if results == 1 else tuple(found)


def plain_product(
    kind: str, task: Task, wanted: Sequence[int], lanes: int, extra: int, groups: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, ...]:
    """Return products as tensors like the inputs, or like the outputs."""
    inputs, *vectors = groups
    device = inputs[0].device
    more = {"dtypes": [inputs[i].dtype for i in wanted]} if kind == "vjp" else {}
    found = getattr(task, kind)(wanted, lanes, extra, _arrays(inputs), *map(_vectors, vectors), **more)
    if kind.endswith("vjp"):
        return tuple(tensor_of(a, device).to(inputs[i].dtype) for a, i in zip(found, wanted, strict=True))
    specs = task.specs(_signature(lanes, inputs))
    return tuple(tensor_of(a.astype(s.dtype, copy=False), device) for a, s in zip(found, specs, strict=True))


@cache
def _operator(kind: str, sizes: tuple[int, ...], results: int) -> Any:
    """Return the operator for groups of these sizes, made when first needed.

    Each number of tensors has one of its own: batched gradients (``is_grads_batched``, and with them ``gradcheck``)
    loop over what they do not know, but not over lists of tensors.
    """
    ends = list(itertools.accumulate(sizes))

    def grouped(tensors: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        return [tensors[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def compute(handle: str, wanted: list[int], lanes: int, extra: int, *tensors: Tensor) -> Any:
        made = plain_product(kind, _task(handle), wanted, lanes, extra, grouped(tensors))
        return made[0] if results == 1 else made

    def pretend(handle: str, wanted: list[int], lanes: int, extra: int, *tensors: Tensor) -> Any:
        groups = grouped(tensors)
        inputs, lead = groups[0], _lead(lanes, extra, groups)
        if kind.endswith("vjp"):
            made = [inputs[i].new_empty((*lead, *inputs[i].shape[lanes:])) for i in wanted]
        else:
            made = _empty_outputs(_task(handle).specs(_signature(lanes, inputs)), inputs[0], lead)
        return made[0] if results == 1 else tuple(made)

    tensors = ", ".join(f"Tensor t{i}" for i in range(ends[-1]))
    returned = ", ".join(["Tensor"] * results)
    operator = torch.library.custom_op(
        f"quadgrad_bridge::{kind}_{'_'.join(map(str, sizes))}_to_{results}", compute, mutates_args=(),
        schema=f"(str handle, int[] wanted, int lanes, int extra, {tensors}) -> ({returned})",
    )  # fmt: skip
    operator.register_fake(pretend)
    return operator
