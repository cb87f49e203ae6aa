"""Call the user's function: at one point, or at many in one call, one after the other, or through an executor.

Every call gets fresh copies, and what it returns is copied as it arrives, for a function may return the same buffer
every time, and is checked. It knows nothing of derivatives.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from quadgrad._core.errors import BridgeError
from quadgrad.bridge.contract import (
    Array,
    Arrays,
    Spec,
    add_input_note,
    output_arrays,
    refuse_other_specs,
    specs_of,
)
from quadgrad.bridge.lazy import lazy

__all__ = ["INPUT", "Callee", "aligned", "copied", "look_up"]

INPUT = object()
"""Stands in :attr:`Callee.slots` where a differentiable input goes."""

_STACK = 2**22
_PIECES = 8


@dataclass(frozen=True)
class Callee:
    """The user's function and how it wants to be called.

    Attributes
    ----------
    fn : callable
    name : str
        For messages.
    slots : tuple
        The positional arguments, with :data:`INPUT` where inputs go; the others are static.
    vectorized : bool
        Whether inputs may have further leading dimensions, which outputs then have too.
    scalars : bool
        Whether fn takes and returns numbers; it is called for each element of the broadcast inputs.
    tensors : bool
        Whether fn takes torch tensors.
    elementwise : bool
        Whether inputs broadcast, and each output depends on the inputs' matching elements only.
    executor : Executor or None
    process : int
        Where the executor was given.
    """

    fn: Callable[..., Any]
    name: str
    slots: tuple[Any, ...]
    vectorized: bool = False
    scalars: bool = False
    tensors: bool = False
    elementwise: bool = False
    executor: Executor | None = None
    process: int = field(default_factory=os.getpid)

    def one(self, inputs: Sequence[Array], expected: Sequence[Spec] | None = None) -> Arrays:
        """Call fn at one point."""
        if self.scalars:
            return tuple(y[0] for y in self.many([x[None] for x in inputs], expected))
        try:
            result = copied(self._call(inputs))
        except Exception as error:
            add_input_note(error, inputs, self.name)
            raise
        return self._checked(result, inputs, expected, "")

    @lazy
    def _takes_arrays(self) -> bool:
        return not (self.tensors or self.scalars) and all(slot is INPUT for slot in self.slots)

    def _call(self, row: Sequence[Any]) -> Any:
        """Call fn with copies."""
        return self.fn(*(map(np.array, row) if self._takes_arrays else _filled(self.slots, row, self.tensors)))

    @property
    def any_shape(self) -> bool:
        """Whether fn is known to work on some of the elements as it does on all."""
        return self.elementwise and (self.scalars or isinstance(self.fn, np.ufunc))

    def about(self, what: str, fn: Callable[..., Any]) -> Callee:
        """Return how to call what is given about fn: a derivative, which nobody calls at many points."""
        known = self._about
        if what not in known:
            known[what] = replace(
                self, fn=fn, name=f"{what}= of {self.name}", executor=None, elementwise=False, vectorized=False
            )
        return known[what]

    @lazy
    def _about(self) -> dict[str, Callee]:
        return {}

    def raw(self, inputs: Sequence[Any]) -> Any:
        """Call fn with inputs as they are; return what it returns."""
        values = iter(inputs)
        return self.fn(*(next(values) if slot is INPUT else slot for slot in self.slots))

    def many(self, stacks: Sequence[Array], expected: Sequence[Spec] | None = None) -> Arrays:
        """Call fn at k points: inputs ``(k, *shape)``, outputs ``(k, *output_shape)``."""
        count = stacks[0].shape[0]
        if self.scalars:
            return self._numbers(stacks, expected)
        if self.vectorized and count > 1:
            return self._stacked(stacks, expected)
        # Not s[i]: of numbers that would be NumPy's scalars, where the function gets arrays at the point itself.
        rows = [[s[i, ...] for s in stacks] for i in range(count)]
        results = self._call_all(rows)
        outputs = [self._checked(results[0], rows[0], expected, "")]
        why = "as for the first of the points around it"
        first = specs_of(outputs[0])
        outputs += [self._checked(y, x, first, why) for x, y in zip(rows[1:], results[1:], strict=True)]
        if count == 1:  # a copy of a million numbers takes half as long as their sines
            return tuple(y[None] for y in outputs[0])
        return tuple(map(np.array, zip(*outputs, strict=True)))

    @property
    def one_by_one(self) -> bool:
        """Whether points are sent one after the other, so that nothing is gained by sending them at once."""
        return self.executor is None and not self.vectorized

    def _stacked(self, stacks: Sequence[Array], expected: Sequence[Spec] | None) -> Arrays:
        """Send whole stacks, in as few calls as memory and the executor suggest."""
        count = stacks[0].shape[0]
        step = max(1, _STACK // max(1, sum(s[0].size for s in stacks)))
        if self.executor is not None:
            step = max(1, min(step, -(-count // _PIECES)))
        if self.elementwise:
            stacks = aligned(stacks, 1)
        parts = [[s[i : i + step] for s in stacks] for i in range(0, count, step)]
        found: list[Arrays] = []
        for part, result in zip(parts, self._call_all(parts), strict=True):
            outputs = output_arrays(result, self.name)
            if any(y.shape[:1] != (len(part[0]),) for y in outputs):
                raise BridgeError(
                    f"{self.name}, wrapped with vectorized=True, returned shape "
                    f"{' and '.join(str(y.shape) for y in outputs)} for inputs of shape "
                    f"{' and '.join(str(x.shape) for x in part)}: the leading dimension, {len(part[0])} points in "
                    "one call, must come back first; without vectorized=True it is called point by point"
                )
            single = tuple(Spec(y.shape[1:], y.dtype) for y in outputs)
            if expected is not None:
                refuse_other_specs(single, expected, self.name, "for each of the points in one call")
            found.append(outputs)
        return found[0] if len(found) == 1 else tuple(map(np.concatenate, zip(*found, strict=True)))

    def _numbers(self, stacks: Sequence[Array], expected: Sequence[Spec] | None) -> Arrays:
        """Call a function of numbers for each element."""
        spread = np.broadcast_arrays(*aligned(stacks, 1))
        shape = spread[0].shape
        rows = list(zip(*(s.ravel().tolist() for s in spread), strict=True))
        if not rows:
            specs = expected or (Spec((), np.dtype(np.float64)),)
            return tuple(np.zeros(shape, spec.dtype) for spec in specs)
        # math.log raises where numpy.log returns NaN: around the point that is a domain, not an error.
        lost = (np.nan,) * len(expected) if expected else None
        results = self._call_all(rows, lost)
        columns = [output_arrays(y, self.name, integers=True) for y in results]
        first = tuple(Spec((), np.dtype(np.float64)) for _ in columns[0])
        for column, row in zip(columns, rows, strict=True):
            if len(column) != len(first) or any(y.shape != () for y in column):
                raise BridgeError(
                    f"{self.name}, wrapped with scalars=True, returned "
                    f"{' and '.join(map(str, specs_of(column)))} for "
                    f"the numbers {row}; expected {len(first)} number{'s' if len(first) > 1 else ''}"
                )
        return tuple(np.array(values).reshape(shape) for values in zip(*columns, strict=True))

    def _checked(self, result: Any, inputs: Sequence[Array], expected: Sequence[Spec] | None, why: str) -> Arrays:
        if type(result) is np.ndarray and expected == ((result.shape, result.dtype),):  # nearly always
            return (result,)
        outputs = output_arrays(result, self.name)
        if expected is not None:
            refuse_other_specs(specs_of(outputs), expected, self.name, why or "as at the point itself")
        if self.elementwise:
            shape = inputs[0].shape if len(inputs) == 1 else np.broadcast_shapes(*(x.shape for x in inputs))
            if any(y.shape[: len(shape)] != shape for y in outputs):
                raise BridgeError(
                    f"{self.name}, declared elementwise, returned shape "
                    f"{' and '.join(str(y.shape) for y in outputs)} "
                    f"for inputs that broadcast to {shape}; the output's shape must begin with that one"
                )
        return outputs

    def _call_all(self, rows: Sequence[Sequence[Any]], lost: Any = None) -> list[Any]:
        """Call fn with each row of inputs, in this order, and say for which input it raised.

        ``lost`` stands for what it returns where a number is outside its domain, if that is no error.
        """
        if self.executor is None or len(rows) == 1:
            call = self._call
            waiting: Sequence[Any] = rows
        else:
            self._refuse_nested_pool()
            sent = _Sendable(self.fn)
            waiting = [self.executor.submit(sent, *_filled(self.slots, row, self.tensors)) for row in rows]
            call = Future[Any].result
        found: list[Any] = []
        for row, each in zip(rows, waiting, strict=True):
            try:
                found.append(copied(call(each)))
            except Exception as error:
                if lost is None or not isinstance(error, ArithmeticError | ValueError):
                    add_input_note(error, row, self.name)
                    raise
                found.append(lost)
        return found

    def _refuse_nested_pool(self) -> None:
        """Raise where the function runs in the pool that it is to wait for: with all workers waiting, for ever."""
        inside = threading.current_thread() in getattr(self.executor, "_threads", ())
        if inside or os.getpid() != self.process:
            raise BridgeError(
                f"{self.name} is called in a worker of the pool that runs its evaluations (executor=): a pool that "
                "waits for itself hangs. Give the function inside no executor, or one of its own made in the worker"
            )


def copied(result: Any) -> Any:
    """Return what a function returned with memory of its own: the next call may write into the same buffer.

    An array that nobody else refers to, and that is no view of other memory, is nobody's buffer.
    """
    if type(result) is np.ndarray and result.base is None and sys.getrefcount(result) <= _ALONE:
        return result if result.flags.owndata else result.copy()
    if isinstance(result, np.ndarray):
        return result.copy()
    if isinstance(result, torch.Tensor):
        return result.detach().clone()
    return tuple(map(copied, result)) if isinstance(result, tuple) else result


def _references(result: Any) -> int:
    return sys.getrefcount(result)


_ALONE = _references(np.zeros(1))
"""How many references there are in :func:`copied` to what only it refers to: Pythons count differently."""


def _filled(slots: Sequence[Any], row: Sequence[Any], tensors: bool) -> list[Any]:
    """Return the arguments of one call, arrays copied."""
    values = iter(row)
    arguments: list[Any] = []
    for slot in slots:
        value = next(values) if slot is INPUT else slot
        if slot is INPUT and isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value)) if tensors else np.array(value)
        arguments.append(value)
    return arguments


def aligned(stacks: Sequence[Array], lead: int) -> list[Array]:
    """Give stacks the same number of dimensions, with ones after the ``lead`` first, so that they broadcast."""
    rank = max(s.ndim for s in stacks)
    return [s.reshape(s.shape[:lead] + (1,) * (rank - s.ndim) + s.shape[lead:]) for s in stacks]


class _Sendable:
    """A function on its way to another process.

    A decorated function cannot be pickled by its name, because under this name there is the wrapper now;
    it travels as "what the wrapper of this name wraps".
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, *arguments: Any) -> Any:
        return copied(self.fn(*arguments))  # here: the next call in this thread may come before anyone has looked

    def __reduce__(self) -> tuple[Any, ...]:
        module, name = getattr(self.fn, "__module__", ""), getattr(self.fn, "__qualname__", "")
        if getattr(look_up(module, name), "fn", None) is self.fn:
            return _unwrapped, (module, name)
        return _Sendable, (self.fn,)


def look_up(module: str, name: str) -> Any:
    """Return what stands under a qualified name in a module that is loaded, or None."""
    try:
        return attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError):
        return None


def _unwrapped(module: str, name: str) -> _Sendable:
    """Find a decorated function again, in another process."""
    __import__(module)
    return _Sendable(attrgetter(name)(sys.modules[module]).fn)
