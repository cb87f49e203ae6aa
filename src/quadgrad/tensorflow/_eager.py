"""A call outside of graphs: f is called as it is, never made a ``tf.function``, which would freeze its closure."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from quadgrad._core.gradient.written import Written
from quadgrad.tensorflow._call import Inputs, Leaves
from quadgrad.tensorflow._crossing import tensorflow_dtype, to_tensorflow, to_torch
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._integrand import Function
from quadgrad.tensorflow._recording import is_recording
from quadgrad.tensorflow._replay import replay, take_logarithm
from quadgrad.tensorflow._result import Result
from quadgrad.tensorflow._search import HandOver, Options, Searched, in_its_words, search, speaking

__all__ = ["cross", "integrate_eagerly"]


def integrate_eagerly(function: Function, jumps: Function | None, inputs: Inputs, options: Options) -> Result:
    """Search, and, if a tape or an accumulator may see it, replay."""
    recorded, replayed = is_recording(), list[Any]()
    leaves = Leaves(inputs, everything=False)

    def in_tensorflow(searched: Searched) -> Tensor:
        written = searched.written
        columns = sorted(set(written.column.tolist()))
        block = options.chunk_size and max(1, options.chunk_size // written.x.shape[0])
        batch, movable = written.orientation.shape[0], len(written.mark) > 0
        crossed = cross(searched)
        value = replay(function, jumps, inputs, crossed, searched.batch_shape, batch, columns, movable, block)
        replayed.append(value if searched.shift is None else take_logarithm(value, crossed.shift))
        return to_torch(value)

    with speaking():
        found = search(function, jumps, inputs, leaves, [], recorded, False, options, HandOver(in_tensorflow))
    error, status, nfev = (to_tensorflow(v) for v in (found.error, found.status, found.nfev))
    value = found.value
    if replayed:
        kept = tf.reshape(tf.cast(replayed[0], tensorflow_dtype(value.dtype)), tuple(value.shape))
    else:
        kept = to_tensorflow(value)
    return Result(kept, error, status, nfev, found.plan, in_its_words(found.detail))


def cross(searched: Searched) -> Any:
    """Return what was searched in TensorFlow tensors."""
    each = {f.name: getattr(searched.written, f.name) for f in fields(Written)}
    written = Written(**{n: to_tensorflow(v) if isinstance(v, Tensor) else v for n, v in each.items()})
    rest = {n: v for n, v in vars(searched).items() if isinstance(v, Tensor)}
    return replace(searched, written=written, **{n: to_tensorflow(v) for n, v in rest.items()})
