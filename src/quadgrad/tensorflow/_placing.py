"""Nodes and boundary terms of a plan between limits that only the graph knows: no search, no torch when it runs.

Where the limits are known, :mod:`quadgrad._core.gradient.written` does the same; here a graph, or XLA, does it when
it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from quadgrad._core.gradient.boundary import AWAY_GAP, AWAY_ULPS
from quadgrad._core.gradient.written import place_in_pieces
from quadgrad._core.mesh.limits import INNER
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad.tensorflow._crossing import to_tensorflow
from quadgrad.tensorflow._framework import tf

__all__ = ["Placed", "place"]


@dataclass
class Placed:
    """What :class:`quadgrad._core.gradient.written.Written` holds, with derivatives in nodes and weights."""

    x: Any
    weights: Any
    owner: Any
    extrapolated: Any
    column: Any
    end_functionals: Any
    end_factor: Any
    orientation: Any
    mark: Any = None
    start: Any = None
    sign: Any = None
    endless: Any = None
    moving: bool = False


def place(
    plan: IntervalPlan, a: Any, b: Any, points: Any, asked: list[bool], x_dtype: Any, singular: Callable[[Any], Any]
) -> tuple[Placed, Any]:
    """Return the plan's nodes and boundary terms, and the marks' moves ``(marks, batch)``.

    Parameters
    ----------
    plan : IntervalPlan
    a, b, points : tensor, shape ``(batch,)`` and ``(batch, k)``
        In the dtype of the sums; ``points`` may be None.
    asked : list of bool
        Which marks (a, b, then the breakpoints) may carry a derivative.
    x_dtype : tf.DType
        To which x is rounded when f is called.
    singular : callable
        Tells of places ``(marks, batch)`` where f is not finite: there nodes move with the mark.
    """
    columns = [] if points is None else tf.unstack(points, plan.pieces - 1, axis=1)
    marks = [a, b, *columns]
    fixed = [tf.stop_gradient(mark) for mark in marks]
    followed, moves = fixed, tf.zeros([0, plan.batch], a.dtype)
    inner, pathwise = _inner_points(fixed[0], fixed[1]), None
    if any(asked):
        pathwise = singular(tf.stack([tf.where(tf.math.is_finite(m), m, inner) for m in fixed]))
        followed = [
            tf.where(pathwise[i], mark, still) if asked[i] else still
            for i, (mark, still) in enumerate(zip(marks, fixed, strict=True))
        ]
        safe = [tf.where(tf.math.is_finite(m), m, tf.zeros_like(m)) for m in marks]
        moves = tf.stack([m - tf.stop_gradient(m) for m in safe])
    placed = _place_nodes(plan, followed)
    placed.orientation = tf.where(fixed[1] < fixed[0], -tf.ones_like(a), tf.ones_like(a))
    if any(asked):
        _read_beside(placed, fixed, pathwise, asked, x_dtype, inner)
    return placed, moves


def _inner_points(a: Any, b: Any) -> Any:
    """Return a harmless point of each integral."""
    low, high = tf.math.is_finite(a), tf.math.is_finite(b)
    start, stop = (tf.where(ok, end, tf.zeros_like(end)) for ok, end in ((low, a), (high, b)))
    beside = tf.where(
        low, start + tf.sign(b - start) * INNER, tf.where(high, stop + tf.sign(a - stop) * INNER, INNER)
    )
    return tf.where(low & high, start + INNER * (stop - start), beside)


def _place_nodes(plan: IntervalPlan, marks: list[Any]) -> Placed:
    """Place the nodes in pieces whose ends are marks, see :mod:`quadgrad._core.mesh.interval`."""
    at = place_in_pieces(plan)
    p, q, density = map(to_tensorflow, (at.from_lower, at.from_upper, at.density))
    a, b, *points = marks
    low, high = tf.minimum(a, b), tf.maximum(a, b)
    if points:
        inside = tf.stack([tf.where(tf.math.is_nan(point), high, point) for point in points], 1)
        inside = tf.maximum(tf.minimum(inside, high[:, None]), low[:, None])
        # Not tf.sort: this is differentiated by a gather, which pfor can vectorise.
        inside = tf.gather(inside, tf.argsort(tf.stop_gradient(inside), axis=1), batch_dims=1)
        edges = tf.concat([low[:, None], inside, high[:, None]], 1)
        low, high = tf.reshape(edges[:, :-1], [-1]), tf.reshape(edges[:, 1:], [-1])
    row = to_tensorflow(plan.row)
    low, high = tf.gather(low, row), tf.gather(high, row)
    if plan.infinite:
        x, factor = _place_beyond(p, q, density, low, high)
    else:
        x, factor = q * low + p * high, density * (high - low)
    rule = to_tensorflow(plan.weight)
    shares = to_tensorflow(plan.functionals)
    ends, column = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    kept = torch.ones(len(plan), dtype=torch.float64)
    if plan.extrapolated is not None and plan.column is not None:
        ends, column = plan.extrapolated, plan.column.to(torch.int64)
        kept = kept.index_fill(0, ends, 0.0)
    ends = to_tensorflow(ends)
    return Placed(
        x, rule[:, None] * factor * to_tensorflow(kept), to_tensorflow(plan.owner), ends, to_tensorflow(column),
        shares, tf.gather(factor, ends, axis=1), None,
    )  # fmt: skip


def _place_beyond(p: Any, q: Any, density: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Do so where some pieces are infinite."""
    no_low, no_high = tf.math.is_inf(low), tf.math.is_inf(high)
    bounded = ~(no_low | no_high)
    # Placeholders keep what is infinite out of the branches that are not taken: its derivatives would be NaN.
    low, high = tf.where(no_low, tf.zeros_like(low), low), tf.where(no_high, tf.zeros_like(high), high)
    half = 0.5 * tf.ones_like(p)
    p_beyond, q_beyond = tf.where(bounded, half, p), tf.where(bounded, half, q)
    zero = tf.zeros_like(p)
    up = tf.where(no_high, p_beyond / q_beyond, zero)
    down = tf.where(no_low, q_beyond / p_beyond, zero)
    slope = tf.where(no_high, q_beyond**-2, zero) + tf.where(no_low, p_beyond**-2, zero)
    x = tf.where(bounded, q * low + p * high, low + high + up - down)
    return x, density * tf.where(bounded, high - low + zero, slope)


def _read_beside(
    placed: Placed, fixed: list[Any], pathwise: Any, asked: list[bool], x_dtype: Any, inner: Any
) -> None:
    """Tell where f is read for the derivatives by the boundaries, see :mod:`quadgrad._core.gradient.boundary`."""
    a, b = fixed[:2]
    low, high = tf.minimum(a, b), tf.maximum(a, b)
    mark, start, sign = list[int](), list[Any](), list[Any]()

    def add(i: int, usable: Any, place: Any, direction: Any) -> None:
        usable = usable & ~pathwise[i]
        mark.append(i)
        start.append(tf.where(usable, place, inner))
        sign.append(tf.where(usable, direction * tf.ones_like(place), tf.zeros_like(place)))

    for i, other in ((0, b), (1, a)):
        if asked[i]:
            add(i, tf.math.is_finite(fixed[i]), _next_to(fixed[i], other, x_dtype), -1.0 if i == 0 else 1.0)
    edges = [low, high, *(tf.maximum(tf.minimum(p, high), low) for p in fixed[2:])]
    for i, here in enumerate(fixed):
        if i < 2 or not asked[i]:
            continue
        usable = (here > low) & (here < high)
        for other in fixed[2:i]:  # of equal ones the first counts
            usable = usable & (other != here)
        infinite = tf.fill(tf.shape(here), tf.constant(float("inf"), here.dtype))
        gaps = [tf.where(edge != here, tf.abs(edge - here), infinite) for edge in edges]
        gap = tf.reduce_min(tf.stack([tf.where(tf.math.is_nan(g), infinite, g) for g in gaps]), 0)
        gap = tf.where(tf.math.is_finite(gap), gap, 1.0 + tf.abs(here))
        least = AWAY_ULPS * tf.abs(_next_to(here, infinite, x_dtype) - here)
        away = tf.minimum(tf.maximum(least, AWAY_GAP * gap), 0.25 * gap)
        add(i, usable, here - away, placed.orientation)
        add(i, usable, here + away, -placed.orientation)
    placed.mark = tf.constant(mark, tf.int64)
    placed.start, placed.sign = tf.stack(start), tf.stack(sign)
    placed.endless = tf.zeros_like(placed.sign, tf.bool)


def _next_to(place: Any, towards: Any, dtype: Any) -> Any:
    """Return a number one or two after ``place`` on the way, among those that x is rounded to.

    Not tf.math.nextafter, which pfor cannot vectorise.
    """
    numbers = np.finfo(dtype.as_numpy_dtype)
    rounded = tf.cast(place, dtype)
    step = tf.maximum(tf.abs(rounded) * numbers.eps, tf.constant(numbers.tiny, dtype))
    return tf.cast(rounded + tf.sign(tf.cast(towards, dtype) - rounded) * step, place.dtype)
