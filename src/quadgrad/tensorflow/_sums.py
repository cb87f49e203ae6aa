"""The replay of a plan that was written out, in TensorFlow's own operations: what differentiates these, does it.

Sums over cells are segment sums: what scatters cannot be vectorised by ``pfor``, which ``tape.jacobian`` uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quadgrad._core.estimates.epsilon import COLUMNS
from quadgrad._core.gradient.boundary import NODES, WEIGHTS
from quadgrad.tensorflow._call import Element
from quadgrad.tensorflow._crossing import is_tensor
from quadgrad.tensorflow._framework import tf

__all__ = [
    "Arguments",
    "Values",
    "align",
    "boundary_sum",
    "cell_sum",
    "is_shared",
    "moves",
    "zeros_with_derivatives",
]

ORDER = 4
"""Derivatives of the zeros of ``jumps`` are right up to this order."""

Values = Callable[[Any, Any], Any]
"""f at x ``(m, n)`` for the integrals ``(n,)``, in the dtype of the sums: ``(m, n, *event)``."""


class Arguments:
    """The arguments of f, flattened over the batch: ``at`` gives those of some integrals."""

    def __init__(self, args: Sequence[Any], batch_shape: Any) -> None:
        self._each = [_flatten(v, batch_shape) for v in args]

    def at(self, owner: Any) -> list[Any]:
        """Return each argument at these integrals, ``(n, *element)``, or the one that all share."""
        return [value if shared else tf.gather(value, owner) for value, shared in self._each]


def _flatten(value: Any, batch_shape: Any) -> tuple[Any, bool]:
    """Return an argument flattened over the batch, and whether all integrals share it."""
    tensor, ndim = (value.tensor, value.ndim) if isinstance(value, Element) else (value, 0)
    if not is_tensor(tensor):
        return tensor, True
    rank = tensor.shape.rank
    static = None if rank is None else tensor.shape[rank - ndim :]
    if static is not None and static.is_fully_defined():
        core = static.as_list()
    else:
        core = tf.shape(tensor)[tf.rank(tensor) - ndim :]
    if is_shared(value):
        return tf.reshape(tensor, tf.concat([[1], core], 0) if ndim else []), True
    whole = tf.concat([tf.cast(batch_shape, tf.int32), tf.cast(core, tf.int32)], 0)
    flat = tf.reshape(tf.broadcast_to(tensor, whole), tf.concat([[-1], tf.cast(core, tf.int32)], 0))
    return tf.ensure_shape(flat, [None, *([None] * ndim if static is None else static)]), False


def is_shared(value: Any) -> bool:
    """Whether all integrals are known to share an argument."""
    tensor, ndim = (value.tensor, value.ndim) if isinstance(value, Element) else (value, 0)
    rank = tensor.shape.rank
    return rank is not None and all(size == 1 for size in tensor.shape[: rank - ndim])


def align(weights: Any, y: Any) -> Any:
    """Return weights in y's dtype, with as many dimensions: theirs are its first ones."""
    missing = y.shape.rank - weights.shape.rank
    if missing:
        weights = tf.reshape(weights, tf.concat([tf.shape(weights), [1] * missing], 0))
    return weights if weights.dtype == y.dtype else tf.cast(weights, y.dtype)


def moves(marks: Sequence[Any], batch_shape: Any, batch: Any, dtype: Any) -> Any:
    """Return zeros ``(1 + marks, batch)`` whose derivatives by their marks are 1; the last row has none.

    A mark is None where it has no derivatives, a tensor that broadcasts with the batch, or ``(batch, k)`` in a
    list: k marks at once.
    """
    rows: list[Any] = []
    for mark in [*marks, None]:
        if mark is None:
            rows.append(tf.zeros([1, batch], dtype))
            continue
        mark = mark[0] if isinstance(mark, list) else tf.reshape(tf.broadcast_to(mark, batch_shape), [-1, 1])
        mark = tf.transpose(tf.cast(mark, dtype))
        # An infinite limit, and a breakpoint that is missing, stay where they are.
        finite = tf.math.is_finite(mark)
        mark = tf.where(finite, mark, tf.zeros_like(mark))
        rows.append(mark - tf.stop_gradient(mark))
    return tf.concat(rows, 0)


def cell_sum(values: Values, w: Any, d: Any, batch: Any, columns: Sequence[int], block: int | None = None) -> Any:
    """Return the integral over the cells of each integral, ``(batch, *event)``, by ``block`` cells at a time.

    ``w`` is what was written out, ``d`` are the moves, None where nothing can move, and ``columns`` those of the
    epsilon table that are looked up.
    """
    x, weights, factor = w.x, w.weights, w.end_factor
    if d is not None and w.moving is not False:
        flat = tf.reshape(d, [-1])
        at = lambda mark: tf.gather(flat, mark * tf.cast(batch, tf.int64) + w.owner)
        lower, upper = at(w.lower_mark), at(w.upper_mark)
        x, wider = x + w.lower * lower + w.upper * upper, upper - lower
        weights = weights + w.rate * wider
        factor = factor + w.end_rate * tf.gather(wider, w.extrapolated)
    y: Any = None
    if block is None:
        y = values(x, w.owner)
        sums = tf.reduce_sum(align(weights, y) * y, 0)
        y = tf.gather(y, w.extrapolated, axis=1) if columns else y
    else:
        parts: list[Any] = []
        for low in range(0, max(1, x.shape[1]), block):
            y = values(x[:, low : low + block], w.owner[low : low + block])
            parts.append(tf.reduce_sum(align(weights[:, low : low + block], y) * y, 0))
        sums = tf.concat(parts, 0)
        y = values(tf.gather(x, w.extrapolated, axis=1), tf.gather(w.owner, w.extrapolated)) if columns else y
    total = _segment_sum(sums, w.owner, batch)
    if not columns:
        return total
    ends = tf.tensordot(tf.cast(w.end_functionals, y.dtype), align(factor, y) * y, [[1], [0]])
    return total + _segment_sum(
        _extrapolated(ends[0], ends[1:], w.column, columns), tf.gather(w.owner, w.extrapolated), batch
    )


def _segment_sum(values: Any, owner: Any, batch: Any) -> Any:
    if isinstance(batch, int) and batch == 1:
        return tf.reduce_sum(values, 0, keepdims=True)
    return tf.math.unsorted_segment_sum(values, owner, batch)


def _extrapolated(plain: Any, terms: Any, column: Any, columns: Sequence[int]) -> Any:
    """Return each series in its own column of the epsilon table; ``terms`` ``(s, k, *event)``, sums ``plain``."""
    harmless = align(tf.constant(0.5 ** np.arange(terms.shape[0])), terms)
    for c in columns:
        if c:
            chosen = align(tf.cast(column == c, tf.float64), tf.math.real(plain)) > 0
            # Where another column is taken, what this one cannot sum must not reach the gradient.
            plain = tf.where(chosen, _limit(tf.where(chosen, terms, harmless), c), plain)
    return plain


def _limit(terms: Any, column: int) -> Any:
    """Return the last entry of a column of Wynn's table, see :mod:`quadgrad._core.estimates.epsilon`."""
    size = tf.stop_gradient(tf.reduce_max(tf.abs(terms), 0))
    tiny = np.finfo(size.dtype.as_numpy_dtype).tiny
    size, still = tf.cast(tf.maximum(size, tiny), terms.dtype), tiny**0.5
    now = tf.concat([tf.zeros_like(terms[:1]), tf.cumsum(terms / size)], 0)
    before = tf.zeros_like(now)[1:]
    for _ in range(column):
        for rest in (1.0 / still, 0.0):
            # Where a sequence stands still its limit is reached: then nothing is to be added in the second step.
            step = now[1:] - now[:-1]
            stands = tf.abs(step) <= still
            turned = 1.0 / tf.where(stands, tf.ones_like(step), step)
            turned = tf.where(stands, tf.cast(rest, step.dtype), turned)
            now, before = before[: turned.shape[0]] + turned, now[1:]
    return now[-1] * size


def boundary_sum(values: Values, w: Any, d: Any, batch: Any, direction: Any = None) -> Any:
    """Return zeros ``(batch, *event)`` with the derivatives by the boundaries, those of limits and breakpoints.

    ``direction`` ``(r, batch, *event)`` is f's sign where they are infinite, if they are anywhere.
    """
    nodes, weights = (tf.constant(each, d.dtype) for each in (NODES, WEIGHTS))
    move = tf.gather(d, w.mark)
    move = tf.where(w.sign == 0.0, tf.zeros_like(move), move)
    steep = tf.sqrt(tf.where(w.endless, move, tf.ones_like(move)))  # 0 with an infinite derivative
    width = tf.cast(w.sign, d.dtype) * tf.where(w.endless, steep, move)
    move = tf.where(w.endless, tf.zeros_like(move), move)
    x = w.start[:, None] + move[:, None] * nodes[:, None]  # (r, nodes, batch)
    y = values(tf.reshape(x, [-1, batch]), tf.range(tf.cast(batch, tf.int64)))
    y = tf.reshape(y, tf.concat([tf.shape(x), tf.shape(y)[2:]], 0))
    means = tf.reduce_sum(align(weights[:, None], y[0]) * y, 1)
    if direction is not None:  # the sign is enough there
        endless = align(tf.cast(w.endless, tf.float64), tf.math.real(means)) > 0
        means = tf.where(endless, tf.cast(direction, means.dtype), means)
    return tf.reduce_sum(align(width, means) * means, 0)


def zeros_with_derivatives(g: Values, place: Any, component: Any, sound: Any) -> Any:
    """Return the zeros ``(batch, k)`` of ``jumps`` with the derivatives of the implicit function theorem.

    See :mod:`quadgrad._core.breakpoints.implicit`: Newton steps with a fixed slope, of which each makes one more
    order of derivatives right. Those that are not ``sound`` have none.
    """
    sound, start = tf.transpose(sound), tf.transpose(place)
    start = tf.where(sound, start, tf.reduce_mean(tf.where(sound, start, tf.zeros_like(start)), 0, keepdims=True))
    which = tf.transpose(component)[:, :, None]
    owner = tf.range(tf.shape(start, out_type=tf.int64)[1])

    def at(x: Any) -> Any:
        y = g(x, owner)
        y = tf.reshape(y, tf.concat([tf.shape(x), [-1]], 0))
        return tf.gather(y, which, axis=2, batch_dims=2)[:, :, 0]

    with tf.GradientTape() as tape:
        tape.watch(start)
        y = at(start)
    slope = tf.stop_gradient(tape.gradient(y, start, unconnected_gradients="zero"))
    slope = tf.where(sound & (slope != 0), slope, tf.ones_like(slope))
    moved = start
    for _ in range(ORDER):
        moved = moved - tf.where(sound, at(moved), tf.zeros_like(moved)) / slope
    return tf.transpose(start + moved - tf.stop_gradient(moved))


assert COLUMNS == 3  # replay extrapolates in column 0, 1 or 2
