"""From what was handed over to the value: marks that move, f in the dtype of the sums, logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from quadgrad.tensorflow._call import Inputs
from quadgrad.tensorflow._crossing import is_tensor
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._integrand import Function
from quadgrad.tensorflow._sums import (
    Arguments,
    Values,
    align,
    boundary_sum,
    cell_sum,
    moves,
    zeros_with_derivatives,
)

__all__ = ["make_values", "replay", "take_logarithm"]


def make_values(function: Function, arguments: Arguments, shift: Any = None) -> Values:
    """Return f in the dtype of the sums; ``exp(f - shift)`` if a shift is given."""

    def values(x: Any, owner: Any) -> Any:
        y = function(x, arguments.at(owner))
        y = tf.cast(y, tf.complex128 if y.dtype.is_complex else tf.float64)
        return y if shift is None else tf.exp(y - tf.gather(shift, owner))

    return values


def replay(
    function: Function, jumps: Function | None, inputs: Inputs, searched: Any, batch_shape: Any, batch: Any,
    columns: Sequence[int], movable: bool, block: int | None = None,
) -> Any:  # fmt: skip
    """Return the integrals ``(batch, *event)``, differentiable, in the dtype of the sums.

    Parameters
    ----------
    function, jumps : Function
    inputs : Inputs
    searched : Searched
        With TensorFlow tensors.
    batch_shape, batch : sequence of int or tensor, int or tensor
    columns : sequence of int
        Of the epsilon table, those that are looked up.
    movable : bool
        Whether a limit or breakpoint may carry a derivative.
    block : int, optional
        Cells evaluated at a time.
    """
    w, arguments = searched.written, Arguments(inputs.args, batch_shape)
    values, d = make_values(function, arguments, searched.shift), None
    if movable:
        marks: list[Any] = [end if is_tensor(end) else None for end in (inputs.a, inputs.b)]
        if jumps is not None:
            g = make_values(jumps, arguments)
            marks.append([zeros_with_derivatives(g, searched.place, searched.component, searched.sound)])
        if isinstance(inputs.points, np.ndarray):
            marks += [None] * inputs.points.shape[-1]
        elif inputs.points is not None:
            k = tf.shape(inputs.points)[-1:]
            shape = tf.concat([tf.cast(batch_shape, tf.int32), k], 0)
            marks.append([tf.reshape(tf.broadcast_to(inputs.points, shape), tf.concat([[batch], k], 0))])
        d = moves(marks, batch_shape, batch, w.x.dtype)
    total = cell_sum(values, w, d, batch, columns, block)
    total = align(w.orientation, total) * total
    if d is not None:
        total = total + boundary_sum(values, w, d, batch, searched.direction)
    return total


def take_logarithm(value: Any, shift: Any) -> Any:
    """Return the logarithm of integrals of ``exp(f - shift)``: -inf of 0, without derivatives; NaN below."""
    positive, nan = value > 0.0, tf.constant(float("nan"), value.dtype)
    rest = tf.where(tf.stop_gradient(value) == 0.0, tf.constant(-float("inf"), value.dtype), nan)
    return tf.where(positive, shift + tf.math.log(tf.where(positive, value, tf.ones_like(value))), rest)
