"""Integrals of samples in TensorFlow's own operations: what :mod:`quadgrad._core.sampled` is for torch.

The formulas are the same, and SciPy's. They are differentiated as they stand, work in graphs that know no shapes,
and compile; errors, which have no gradient, are computed by torch.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch

from quadgrad._core.keywords import names_ours
from quadgrad._core.sampled import simpson as parabolas
from quadgrad._core.sampled import trapezoid as trapezoids
from quadgrad.tensorflow._crossing import is_tensor
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._recording import in_xla

__all__ = ["cumulative_simpson", "cumulative_trapezoid", "simpson", "trapezoid"]


@tf.autograph.experimental.do_not_convert
@names_ours
def trapezoid(y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, return_error: bool = False) -> Any:
    """Integrate samples by the trapezoidal rule, as ``scipy.integrate.trapezoid`` does.

    Parameters
    ----------
    y : tf.Tensor
        Samples along ``dim``: real, complex or integer; arrays and variables too.
    x : tf.Tensor, optional
        Where they are: shape ``(n,)``, the same for all rows, or one that broadcasts with y. In any order: each gap
        counts with its sign.
    dx : float or tf.Tensor, optional
        Their spacing, where x is not given: a number, or one for each row, of size 1 along ``dim``.
    dim : int, optional
        The dimension of y along which the samples stand.
    return_error : bool, optional
        Also return an estimate of the absolute error; see :func:`quadgrad.trapezoid`. Not under ``jit_compile``.

    Returns
    -------
    tf.Tensor, or (tf.Tensor, tf.Tensor) with ``return_error``
        Integrals of y's shape without ``dim``, differentiable any number of times with respect to y, x and dx; and
        their errors, real and without gradient.

    Raises
    ------
    ValueError
        Shapes that do not fit.
    TypeError
        Complex x or dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Notes
    -----
    The sum of ``(x[i+1] - x[i]) (y[i] + y[i+1]) / 2``. Half precision is summed and returned in float32; integers
    count as float64. A function that can be called is better integrated by ``quad``, which knows its error.

    Examples
    --------
    >>> import tensorflow as tf, quadgrad.tensorflow as qgt
    >>> x = tf.linspace(tf.constant(0.0, tf.float64), 1.0, 101)
    >>> value, error = qgt.trapezoid(x**2, x, return_error=True)
    >>> print(f"{value.numpy():.6f} {error.numpy():.1e}")
    0.333350 5.0e-05
    """
    samples = _Samples(y, x, dx, dim, 0, "trapezoid")
    return samples.returned(_trapezoids(samples), trapezoids.trapezoid if return_error else None)


@tf.autograph.experimental.do_not_convert
@names_ours
def simpson(y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, return_error: bool = False) -> Any:
    """Integrate samples by Simpson's rule, as ``scipy.integrate.simpson`` does: any number of them, uneven too.

    Parameters
    ----------
    y, x, dx, dim, return_error
        As in :func:`trapezoid`; at least one sample. x may decrease; a gap of 0 is passed over, with its pair.

    Returns
    -------
    tf.Tensor, or (tf.Tensor, tf.Tensor) with ``return_error``
        Integrals of y's shape without ``dim``, differentiable any number of times; and their errors.

    Raises
    ------
    ValueError
        No samples, or shapes that do not fit.
    TypeError
        Complex x or dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Notes
    -----
    A parabola through each pair of gaps; of an even number of samples the last gap is integrated by the parabola
    through the last three (K. V. Cartwright, *Journal of Mathematical Sciences and Mathematics Education* 12,
    2017).

    Examples
    --------
    >>> import tensorflow as tf, quadgrad.tensorflow as qgt
    >>> x = tf.linspace(tf.constant(0.0, tf.float64), 1.0, 10) ** 2
    >>> print(f"{qgt.simpson(tf.exp(x), x).numpy():.6f}")
    1.718490
    """
    samples = _Samples(y, x, dx, dim, 1, "simpson")
    value = _when(samples.count <= 2, lambda: _trapezoids(samples), lambda: _parabolas(samples))
    return samples.returned(value, parabolas.simpson if return_error else None)


@tf.autograph.experimental.do_not_convert
@names_ours
def cumulative_trapezoid(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, initial: Any = None, return_error: bool = False
) -> Any:
    """Integrate samples up to each one by the trapezoidal rule, as ``scipy.integrate.cumulative_trapezoid`` does.

    Parameters
    ----------
    y, x, dx, dim, return_error
        As in :func:`trapezoid`; at least one sample.
    initial : float or tf.Tensor, optional
        The integral at the first sample: it is put in front and added to the others. A number, or one for each row,
        of size 1 along ``dim``. By default results begin with the second sample.

    Returns
    -------
    tf.Tensor, or (tf.Tensor, tf.Tensor) with ``return_error``
        Of y's shape, with one less along ``dim`` unless ``initial`` is given; differentiable.

    Raises
    ------
    ValueError
        No samples, or shapes that do not fit.
    TypeError
        Complex x or dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Examples
    --------
    >>> import tensorflow as tf, quadgrad.tensorflow as qgt
    >>> print(qgt.cumulative_trapezoid(tf.constant([1.0, 2.0, 4.0]), dx=0.5, initial=0.0).numpy())
    [0.   0.75 2.25]
    """
    samples = _Samples(y, x, dx, dim, 1, "cumulative_trapezoid")
    running = tf.cumsum(_trapezoid_gaps(samples), axis=-1)
    return samples.accumulated(running, initial, trapezoids.cumulative_trapezoid if return_error else None)


@tf.autograph.experimental.do_not_convert
@names_ours
def cumulative_simpson(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, initial: Any = None, return_error: bool = False
) -> Any:
    """Integrate samples up to each of them by Simpson's rule, as ``scipy.integrate.cumulative_simpson`` does.

    Parameters
    ----------
    y, x, dx, dim, initial, return_error
        As in :func:`cumulative_trapezoid`. x must increase where there are three samples or more.

    Returns
    -------
    tf.Tensor, or (tf.Tensor, tf.Tensor) with ``return_error``
        Of y's shape, with one less along ``dim`` unless ``initial`` is given; differentiable.

    Raises
    ------
    ValueError
        No samples, shapes that do not fit, or x that does not increase. In a graph, which cannot look at numbers,
        the result is NaN instead.
    TypeError
        Complex x or dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Notes
    -----
    Over each gap the parabola of its pair, that of the last three samples over a last gap without one (Cartwright's
    equation 8, 2017). Fewer than three samples are integrated by the trapezoidal rule.

    Examples
    --------
    >>> import tensorflow as tf, quadgrad.tensorflow as qgt
    >>> x = tf.constant([0.0, 1.0, 2.0, 4.0])
    >>> print(qgt.cumulative_simpson(x**2, x).numpy().round(4))
    [ 0.3333  2.6667 21.3333]
    """
    samples = _Samples(y, x, dx, dim, 1, "cumulative_simpson")
    straight = _trapezoid_gaps(samples)
    curved = lambda: straight - _bends(samples, samples.increasing())
    running = tf.cumsum(_when(samples.count <= 2, lambda: straight, curved), axis=-1)
    return samples.accumulated(running, initial, parabolas.cumulative_simpson if return_error else None)


class _Samples:
    """Samples along the last dimension, and where they are; checked as far as shapes are known.

    Attributes
    ----------
    y : tf.Tensor, shape ``(*batch, n)``
    gaps : tf.Tensor
        The distances from each sample to the next, broadcastable with y's; ones if they are ``dx`` apart.
    dx : tf.Tensor
        Of shape () or ``(..., 1)``.
    count : int or tf.Tensor
        The number of samples.
    """

    def __init__(self, y: Any, x: Any, dx: Any, dim: int, least: int, rule: str) -> None:
        self.rule, self.passed = rule, (y, x, dx, dim)
        y, x, dx = _as_tensor("y", y), None if x is None else _as_real("x", x), _as_real("dx", dx)
        self.dim = _checked_dim(y, dim, rule)
        x = _checked(y, x, dx, self.dim, least, rule)
        real = _working_dtype([y] + [t for t in (x, dx) if t is not None and t.shape.rank != 0])
        paired = tf.complex128 if real == tf.float64 else tf.complex64
        dtype = paired if y.dtype.is_complex else real
        self.y = self._last(tf.cast(y, dtype))
        known: int | None = self.y.shape[-1] if self.y.shape.rank else None
        self.count: Any = tf.shape(self.y)[-1] if known is None else known
        self.x = None if x is None else tf.cast(self._last(x), real)
        self.dx = tf.cast(self._last(dx), dtype) if x is None else None
        ones = lambda: tf.ones([tf.maximum(self.count - 1, 0)], dtype)
        self.gaps = ones() if self.x is None else tf.cast(self.x[..., 1:] - self.x[..., :-1], dtype)

    def _last(self, tensor: Any, back: bool = False) -> Any:
        """Return a tensor with ``dim``, counted from the end, as the last dimension, or with the last one there."""
        if self.dim == -1 or tensor.shape.rank in (0, 1):
            return tensor
        rank = tf.rank(tensor) if tensor.shape.rank is None else tensor.shape.rank

        def moved() -> Any:
            at, every = rank + self.dim, tf.range(rank)
            order = [every[:at], [rank - 1], every[at:-1]] if back else [every[:at], every[at + 1 :], [at]]
            return tf.transpose(tensor, tf.concat(order, 0))

        return _when(rank < 2, lambda: tensor, moved)

    def scaled(self, integrals: Any) -> Any:
        """Return integrals ``(*batch, k)``, computed as if dx were 1, for the true dx."""
        return integrals if self.dx is None else integrals * self.dx

    def increasing(self) -> Any:
        """Return the gaps, which must be positive; in a graph NaN where a row's are not."""
        if self.x is None:
            return self.gaps
        gaps = tf.math.real(self.gaps)
        ok = (gaps > 0) & tf.math.is_finite(gaps)
        if not tf.executing_eagerly():
            return tf.where(tf.reduce_all(ok, -1, keepdims=True), self.gaps, tf.constant(np.nan, self.gaps.dtype))
        if not bool(tf.reduce_all(ok)):
            self._by_torch(parabolas.cumulative_simpson, None)  # which says where
        return self.gaps

    def returned(self, value: Any, rule: Callable[..., Any] | None) -> Any:
        """Return integrals ``(*batch, 1)`` for the true dx, and their errors if there is a rule to tell them."""
        value = tf.squeeze(self.scaled(value), -1)
        return value if rule is None else (value, self._error(rule, None, value))

    def accumulated(self, running: Any, initial: Any, rule: Callable[..., Any] | None) -> Any:
        """Return running integrals for the true dx, after ``initial``, along the caller's dim."""
        running = self.scaled(running)
        if initial is not None:
            first = _as_tensor("initial", initial)
            first = tf.cast(self._last(first), running.dtype)
            shape = tf.concat([tf.shape(running)[:-1], [1]], 0)
            try:
                running = tf.concat([tf.broadcast_to(first, shape), running + first], -1)
            except (tf.errors.InvalidArgumentError, ValueError):
                raise ValueError(
                    f"initial of shape {first.shape} is neither a number nor one for each row: that has size 1 "
                    f"along dim={self.dim} and otherwise y's sizes"
                ) from None
        running = self._last(running, back=True)
        return running if rule is None else (running, self._error(rule, initial, running))

    def _error(self, rule: Callable[..., Any], initial: Any, like: Any) -> Any:
        """Return the error that torch's rule reports."""
        real = like.dtype.real_dtype
        if tf.executing_eagerly():
            return tf.constant(self._by_torch(rule, initial), real)
        if in_xla():
            raise NotImplementedError(
                f"{self.rule}: errors are computed by torch, which jit_compile=True cannot compile"
            )
        y, x, dx, dim = self.passed
        names = {"y": y, "x": x, "dx": dx, "initial": initial}
        tensors = {name: tf.convert_to_tensor(v) for name, v in names.items() if v is not None}

        def later(*arrays: Any) -> Any:
            return _error_by_torch(rule, dim, **dict(zip(tensors, arrays, strict=True))).astype(real.as_numpy_dtype)

        found = tf.numpy_function(later, list(map(tf.stop_gradient, tensors.values())), real, stateful=False)
        return tf.ensure_shape(found, like.shape)

    def _by_torch(self, rule: Callable[..., Any], initial: Any) -> Any:
        y, x, dx, dim = self.passed
        given = {"y": y, "x": x, "dx": dx} | ({} if initial is None else {"initial": initial})
        return _error_by_torch(rule, dim, **{name: _as_array(value) for name, value in given.items()})


def _error_by_torch(rule: Callable[..., Any], dim: int, **passed: Any) -> Any:
    """Return the error that a rule reports for arrays."""
    found = rule(**{name: _as_torch(value) for name, value in passed.items()}, dim=dim, return_error=True)
    return found[1].numpy()


def _as_array(value: Any) -> Any:
    return tf.convert_to_tensor(value).numpy() if is_tensor(value) else value


def _as_torch(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        return value
    return torch.from_numpy(np.array(value, np.float32 if value.dtype.name in ("float16", "bfloat16") else None))


# ------------------------------------------------------------------------------------------------- the rules


def _when(condition: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Return one or the other, chosen now if the condition is known."""
    if isinstance(condition, bool):
        return yes() if condition else no()
    return tf.cond(condition, yes, no)


def _trapezoid_gaps(samples: _Samples) -> Any:
    """Return the trapezoid over each gap, ``(*batch, n - 1)``."""
    return samples.gaps * (samples.y[..., 1:] + samples.y[..., :-1]) / 2


def _trapezoids(samples: _Samples) -> Any:
    return tf.reduce_sum(_trapezoid_gaps(samples), -1, keepdims=True)


def _parabolas(samples: _Samples) -> Any:
    """Return the integral of parabolas over pairs of gaps; a last gap without a partner takes the last three."""
    pairs = tf.reduce_sum(_pairs(samples.gaps, samples.y, samples.count), -1, keepdims=True)
    if isinstance(samples.count, int) and samples.count % 2:
        return pairs
    last = lambda: pairs + tf.reduce_sum(_last_gap(samples.gaps, samples.y), -1, keepdims=True)
    return _when(samples.count % 2 == 1, lambda: pairs, last)


def _pairs(gaps: Any, y: Any, count: Any) -> Any:
    """Return the integral over each pair of gaps, of the parabola through its three samples."""
    even = (count - 1) // 2 * 2
    first, second = gaps[..., 0:even:2], gaps[..., 1:even:2]
    both, under_first, under_second = first + second, _divisor(first), _divisor(second)
    left = (2 - second / under_first) * y[..., 0:even:2]
    middle = (both / under_first) * (both / under_second) * y[..., 1:even:2]
    right = (2 - first / under_second) * y[..., 2 : even + 1 : 2]
    return both * (left + middle + right) / 6


def _last_gap(gaps: Any, y: Any) -> Any:
    """Return the integral over the last gap, of the parabola through the last three samples (Cartwright's)."""
    before, last = gaps[..., -2:-1], gaps[..., -1:]
    right = last * (2 * last + 3 * before) / _divisor(6 * (before + last)) * y[..., -1:]
    middle = last * (last + 3 * before) / _divisor(6 * before) * y[..., -2:-1]
    return right + middle - last**3 / _divisor(6 * before * (before + last)) * y[..., -3:-2]


def _bends(samples: _Samples, gaps: Any) -> Any:
    """Return by how much each gap's trapezoid lies above the parabola of its pair: shape ``(..., n - 1)``."""
    slopes = (samples.y[..., 1:] - samples.y[..., :-1]) / _divisor(gaps)
    bent = (slopes[..., 1:] - slopes[..., :-1]) / _divisor(gaps[..., 1:] + gaps[..., :-1])
    # The last three samples' too, which is one too many where the last gap has a partner.
    first = bent[..., ::2]
    own = tf.reshape(tf.stack([first, first], -1), tf.concat([tf.shape(first)[:-1], [-1]], 0))
    own = tf.concat([own, bent[..., -1:]], -1)[..., : samples.count - 1]
    return own * gaps**3 / 6


def _divisor(gaps: Any) -> Any:
    """Return what to divide by so that a quotient by a gap of 0 is 0, and has derivative 0."""
    return tf.where(gaps == 0, tf.constant(np.inf, gaps.dtype), gaps)


# ------------------------------------------------------------------------------------------------- the input


def _as_tensor(name: str, value: Any) -> Any:
    """Return what the caller passed as a tensor; lists and numbers are converted as NumPy does."""
    if isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a torch.Tensor, which quadgrad's own functions of this name take")
    if is_tensor(value):
        return tf.convert_to_tensor(value)
    if isinstance(value, list | tuple) and any(map(is_tensor, value)):
        raise TypeError(f"{name} is a {type(value).__name__} of tensors: join them with tf.stack")
    try:
        array = np.array(value)
        return tf.constant(array.astype(np.float64) if isinstance(value, Real) else array)
    except (TypeError, ValueError) as error:
        why = "what can be called is integrated by quad" if callable(value) else error
        raise TypeError(f"{name} must be a tensor of numbers, not {type(value).__name__}: {why}") from None


def _as_real(name: str, value: Any) -> Any:
    """Return a place, or places, as a tensor."""
    tensor = _as_tensor(name, value)
    if tensor.dtype.is_complex:
        raise TypeError(
            f"{name} is complex ({tensor.dtype.name}): samples stand on the real line. For an integral along a "
            "path z(t) multiply the samples by dz/dt and give t"
        )
    return tensor


def _checked_dim(y: Any, dim: Any, rule: str) -> int:
    """Return ``dim`` counted from the end."""
    rank = y.shape.rank
    if rank == 0:
        raise ValueError(f"y is a single number: {rule} needs samples along a dimension, such as y of shape (n,)")
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim={dim!r} must be an integer: the dimension of y along which the samples stand")
    if rank is None:
        if dim >= 0:
            raise ValueError(
                f"dim={dim}: y has an unknown number of dimensions here; count from the end, as in dim=-1"
            )
        return dim
    if not -rank <= dim < rank:
        raise IndexError(f"dim={dim} is out of range: y of shape {tuple(y.shape)} has -{rank} to {rank - 1}")
    return dim % rank - rank


def _checked(y: Any, x: Any, dx: Any, dim: int, least: int, rule: str) -> Any:
    """Check shapes as far as they are known; return x with as many dimensions as y, or one."""
    if y.shape.rank is None:
        return x
    n = y.shape[dim]
    if n is not None and n < least:
        raise ValueError(
            f"{rule} needs at least {least} sample: y of shape {tuple(y.shape)} has {n} along dim={dim}"
        )
    fits = lambda shape, along: (
        len(shape) == y.shape.rank
        and all(
            p in (along, None) if i - y.shape.rank == dim else None in (p, q) or p == q or 1 in (p, q)
            for i, (p, q) in enumerate(zip(shape, y.shape, strict=True))
        )
    )
    if x is None:
        if dx.shape.rank and not fits(dx.shape, 1):
            raise ValueError(
                f"dx of shape {tuple(dx.shape)} is neither a number nor one for each row of y of shape "
                f"{tuple(y.shape)}: that has size 1 along dim={dim} and broadcasts (tf.expand_dims); places that "
                "are not evenly spaced are given by x"
            )
        return x
    if x.shape.rank is not None and 1 < x.shape.rank < y.shape.rank:
        x = tf.reshape(x, tf.concat([tf.ones([y.shape.rank - x.shape.rank], tf.int32), tf.shape(x)], 0))
    shape = x.shape
    single = shape.rank == 1 and (n is None or shape[0] is None or shape[0] == n)
    if shape.rank is not None and not single and (shape.rank == 1 or not fits(shape, n)):
        raise ValueError(
            f"x of shape {tuple(shape)} does not fit y of shape {tuple(y.shape)} with its {n} samples along "
            f"dim={dim}: give x of shape ({n},) for all rows, or one that broadcasts with y and has {n} along dim"
        )
    return x


def _working_dtype(tensors: list[Any]) -> Any:
    """Return the real dtype in which to sum."""
    kinds = [t.dtype.real_dtype for t in tensors]
    kinds = [tf.float64 if kind.is_integer or kind == tf.bool else kind for kind in kinds[:1]] + kinds[1:]
    return tf.float64 if tf.float64 in kinds or kinds[0] == tf.float64 else tf.float32
