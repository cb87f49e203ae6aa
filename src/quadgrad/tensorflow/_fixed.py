"""The fixed sum of a plan, without search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from quadgrad._core.keywords import names_ours
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.tolerance import returned_dtype
from quadgrad.tensorflow._call import take_inputs
from quadgrad.tensorflow._crossing import is_tensor, tensorflow_dtype
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._integrand import Function
from quadgrad.tensorflow._placing import place
from quadgrad.tensorflow._replay import make_values, take_logarithm
from quadgrad.tensorflow._sums import Arguments, Values, align, boundary_sum, cell_sum

__all__ = ["replay"]


@tf.autograph.experimental.do_not_convert
@names_ours
def replay(
    f: Callable[..., Any],
    plan: Plan,
    a: Any,
    b: Any,
    args: Any = (),
    *,
    points: Any = None,
    log: bool = False,
) -> Any:
    """Integrate f on the cells of a plan: no search, no error estimate, nothing but TensorFlow's operations.

    It is compiled by ``tf.function(jit_compile=True)``, vectorised by ``tf.vectorized_map``, and can be part of a
    SavedModel. The plan is trusted; to have it checked, pass it to :func:`quadgrad.tensorflow.quad` instead.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` as for :func:`quadgrad.tensorflow.quad`.
    plan : Plan
        From an earlier result, of TensorFlow or torch.
    a, b : float or tf.Tensor
        Limits, finite or infinite as the plan's were; broadcast to the plan's batch.
    args : tuple
        Further arguments of f.
    points : tf.Tensor, optional
        As many breakpoints as the plan was made with.
    log : bool
        Whether f returns a logarithm, as for :func:`quadgrad.tensorflow.quad`: then that of the sum is returned,
        NaN where ``a > b``.

    Returns
    -------
    tf.Tensor, shape ``batch + event``
        The integrals, differentiable with respect to everything. Limits and breakpoints at which f is finite move
        alone; where it is not, the nodes move with them.

    Raises
    ------
    TypeError, ValueError
        A plan that is not of cells, or does not fit the inputs.

    Examples
    --------
    >>> import tensorflow as tf, quadgrad.tensorflow as qgt
    >>> plan = qgt.quad(tf.sin, 0.0, tf.constant(1.0)).plan
    >>> fast = tf.function(lambda b: qgt.replay(tf.sin, plan, 0.0, b), jit_compile=True)
    >>> round(float(fast(tf.constant(2.0))), 4)
    1.4161
    """
    if not isinstance(plan, IntervalPlan):
        raise TypeError(f"a plan of quadgrad.quad is needed, not {type(plan).__name__}")
    inputs, function = take_inputs(a, b, args, points), Function(f)
    pieces = 1 if inputs.points is None else 1 + inputs.points.shape[-1]
    if plan.pieces != pieces:
        raise ValueError(f"the plan was made with {plan.pieces - 1} breakpoints for each integral")
    function.dtype = tensorflow_dtype(inputs.dtype)
    shape, batch = list(plan.batch_shape), plan.batch
    try:
        ends = [tf.reshape(tf.broadcast_to(tf.cast(end, tf.float64), shape), [-1]) for end in (inputs.a, inputs.b)]
        marks, arguments = None, Arguments(inputs.args, shape)
        if inputs.points is not None:
            marks = tf.broadcast_to(tf.cast(inputs.points, tf.float64), [*shape, pieces - 1])
            marks = tf.reshape(marks, [batch, pieces - 1])
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(f"an input does not broadcast to the plan's batch {plan.batch_shape}: {error}") from None
    values, everyone = make_values(function, arguments), tf.range(batch, dtype=tf.int64)

    def singular(places: Any) -> Any:
        y = tf.stop_gradient(values(places, everyone))
        good = tf.math.is_finite(tf.math.real(y)) & tf.math.is_finite(tf.math.imag(y) if y.dtype.is_complex else y)
        return ~tf.reduce_all(tf.reshape(good, [*places.shape, -1]), -1)

    asked = [is_tensor(inputs.a), is_tensor(inputs.b), *[is_tensor(inputs.points)] * (pieces - 1)]
    x_dtype = tensorflow_dtype(torch.promote_types(inputs.dtype, torch.float32))
    placed, moves = place(plan, ends[0], ends[1], marks, asked, x_dtype, singular)
    shift = None
    if log:
        shift = _scale(values, placed, batch)
        values = make_values(function, arguments, shift)
    columns = [] if plan.column is None else sorted(set(plan.column.tolist()))
    value = cell_sum(values, placed, None, batch, columns)
    value = align(placed.orientation, value) * value
    if any(asked):
        value = value + boundary_sum(values, placed, moves, batch)
    value = value if shift is None else take_logarithm(value, shift)
    dtype = returned_dtype(inputs.dtype, torch.float32)
    value = tf.cast(value, tensorflow_dtype(dtype.to_complex() if value.dtype.is_complex else dtype))
    return tf.reshape(value, [*shape, *value.shape[1:]])


def _scale(values: Values, placed: Any, batch: int) -> Any:
    """Return the largest logarithm of each integral, without gradient: what its sum is scaled by."""
    y = tf.stop_gradient(tf.reduce_max(values(placed.x, placed.owner), 0))
    most = tf.math.unsorted_segment_max(y, placed.owner, batch)
    return tf.where(tf.math.is_finite(most) & (most > np.finfo(np.float64).min), most, tf.zeros_like(most))
