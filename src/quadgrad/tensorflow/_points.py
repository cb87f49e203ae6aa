"""The replay of a sample in TensorFlow's own operations: points that move with the limits, weights, a mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.mesh.box import Box
from quadgrad._core.plans.points import PointsPlan
from quadgrad.tensorflow._call import Inputs
from quadgrad.tensorflow._crossing import is_tensor
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._integrand import Function
from quadgrad.tensorflow._replay import make_values
from quadgrad.tensorflow._sums import Arguments, align

__all__ = ["Points", "replay_points", "write_points"]


@dataclass(frozen=True)
class Points:
    """The points of a sample as arrays without gradient; ``m`` of all replicates, one replicate after the other.

    Attributes
    ----------
    x : Tensor, shape (m, batch, d)
        An integral with fewer points has its first one in the place of the others.
    weights : Tensor, shape (m, batch)
        By what f is multiplied, but for the sides that are finite; 0 where a point does not count.
    side : Tensor, shape (batch, d)
        The finite sides, b - a; 1 where a side is infinite.
    first, last : Tensor, shape (m or 1, batch or 1, d)
        How points move with a and b.
    finite : Tensor of bool, shape (batch or 1, d)
        Which sides are.
    """

    x: Tensor
    weights: Tensor
    side: Tensor
    first: Tensor
    last: Tensor
    finite: Tensor


@torch.no_grad()
def write_points(plan: PointsPlan, box: Box) -> Points:
    """Write down all points of a plan, those of one replicate if it has one alone."""
    batch, most = plan.batch, int(plan.n.max()) if plan.batch else 0
    a, b = box.detach().marks
    finite = a.isfinite() & b.isfinite()
    side = torch.where(finite, b - a, 1.0)
    # A side without width has weight 0, and a derivative: it is multiplied later.
    wide = replace(box.detach(), b=torch.where(finite & (a == b), a + 1.0, b))
    u, _ = plan.unit_points(0, most)
    x, _ = plan.place(box.detach(), 0, most)
    _, weights = plan.place(wide, 0, most)
    known = torch.where(finite, wide.b - wide.a, 1.0).prod(-1)
    index = torch.arange(x.shape[0]) % max(1, most)
    counts = index[:, None] < plan.n
    weights = torch.where(counts, weights / known / (plan.count * plan.n.clamp_min(1)), 0.0)
    x = x.expand(-1, batch, -1)
    x = x if bool(counts.all()) else torch.where(counts[:, :, None], x, x[:1])
    first, last = (torch.where(finite, moved, end.isfinite().to(u)) for moved, end in ((1.0 - u, a), (u, b)))
    if box.infinite:  # there a finite side is measured from its lower end
        down = finite & (b < a)
        first, last = torch.where(down, u, first), torch.where(down, 1.0 - u, last)
    return Points(x, weights, side.expand(batch, -1), first, last, finite)


def replay_points(function: Function, inputs: Inputs, points: Any, batch_shape: Any, batch: Any) -> Any:
    """Return the means ``(batch, *event)``, differentiable, in the dtype of the sums; ``points`` in TensorFlow."""
    x, weights, side = points.x, points.weights, points.side
    if is_tensor(inputs.a) or is_tensor(inputs.b):
        first, last = (_move(end, batch_shape, x) for end in (inputs.a, inputs.b))
        x = x + points.first * first + points.last * last
        side = side + tf.where(points.finite, last - first, tf.zeros_like(side))
    weights = weights * tf.reduce_prod(side, -1)
    values = make_values(function, Arguments(inputs.args, batch_shape))
    y = values(x, tf.range(tf.cast(batch, tf.int64)))
    return tf.reduce_sum(align(weights, y) * y, 0)


def _move(end: Any, batch_shape: Any, x: Any) -> Any:
    """Return a zero ``(batch, d)`` whose derivative by a corner is 1."""
    shape = tf.shape(x)[1:]
    if not is_tensor(end):
        return tf.zeros(shape, x.dtype)
    end = tf.cast(end, x.dtype)
    end = tf.where(tf.math.is_finite(end), end, tf.zeros_like(end))
    end = tf.broadcast_to(end, tf.concat([tf.cast(batch_shape, tf.int32), shape[-1:]], 0))
    return tf.reshape(end - tf.stop_gradient(end), shape)
