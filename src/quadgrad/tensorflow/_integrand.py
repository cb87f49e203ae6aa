"""A TensorFlow function as the engine sees it, and as replay calls it: one place that checks what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.advice import Called, remedy, signature
from quadgrad._core.errors import IntegrandError
from quadgrad._core.verbs.inputs import refuse_other_than_functions
from quadgrad.tensorflow._crossing import is_tensor, tensorflow_dtype, to_tensorflow, to_torch
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._recording import add_note, is_watched, silence

__all__ = ["Function", "View"]


class Function:
    """A function f(x, *args) of TensorFlow tensors, checked at every call.

    Parameters
    ----------
    f : callable
    name : str
        What it is called in messages.
    point_ndim : int
        1 where x holds points of several coordinates, along its last dimension.
    """

    def __init__(self, f: Callable[..., Any], name: str = "integrand", point_ndim: int = 0) -> None:
        if not callable(f) and name == "integrand":
            refuse_other_than_functions(f)
        if not callable(f):
            raise TypeError(f"{name} must be a function f(x, *args), not {type(f).__name__}")
        self.f, self.name, self.point_ndim = f, name, point_ndim
        self.dtype: Any = tf.float32
        self.cast = True

    def __call__(self, x: Any, args: Sequence[Any]) -> Any:
        """Return f at x, in the dtype that f returns; x and floating arguments are cast to the working dtype."""
        if self.cast:
            x = _cast(x, self.dtype)
            args = [_cast(a, self.dtype) if is_tensor(a) else a for a in args]
        try:
            y: Any = self.f(x, *args)
        except Exception as error:
            add_note(error, _note(self, error, x, args))
            raise
        if isinstance(y, tf.Variable):
            y = tf.convert_to_tensor(y)
        if self.name == "integrand" and _is_number(y):
            y = self._spread(y, x, args)
        if not isinstance(y, tf.Tensor):
            raise IntegrandError(f"the {self.name} returned {_describe(y)}")
        if not (y.dtype.is_floating or y.dtype.is_complex):
            raise IntegrandError(
                f"the {self.name} returned {y.dtype.name}, which has no derivatives: tf.cast it to x.dtype"
            )
        grid = x.shape[: x.shape.rank - self.point_ndim]
        if y.shape.rank is None:  # where a graph does not know, there is no event: it says so when it runs
            y = tf.ensure_shape(y, grid)
        if y.shape.rank < grid.rank or not y.shape[: grid.rank].is_compatible_with(grid):
            raise IntegrandError(_wrong_shape(self, x, y, args))
        return y

    def _spread(self, y: complex, x: Any, args: Sequence[Any]) -> Any:
        """Return a number that f returned at each x; refuse one that it made of many x, which a graph cannot."""
        ones = tf.ones_like(x[..., 0] if self.point_ndim else x)
        if tf.executing_eagerly() and ones.shape.num_elements() > 1:
            points = tf.reshape(x, [-1, *x.shape[x.shape.rank - self.point_ndim :]])
            for one in (points[:1], points[-1:]):
                other = self.f(tf.reshape(tf.broadcast_to(one, points.shape), x.shape), *args)
                if is_tensor(other) or not (other == y or (other != other and y != y)):
                    raise IntegrandError(
                        f"the {self.name} returned one number for many x, {y!r}, and {other!r} where all x are the "
                        "first of them: leave out float() and .numpy(); a function of one number is wrapped by "
                        "quadgrad.tensorflow.wrap(f, scalars=True)"
                    )
        if isinstance(y, complex):
            ones = tf.cast(ones, tf.complex128 if x.dtype == tf.float64 else tf.complex64)
        return tf.constant(y, ones.dtype) * ones


def _is_number(y: object) -> bool:
    return isinstance(y, int | float | complex)


def _cast(tensor: Any, dtype: Any) -> Any:
    """Return floating numbers in the working dtype, complex ones in its complex counterpart."""
    own = tensor.dtype
    if own.is_floating:
        return tensor if own == dtype else tf.cast(tensor, dtype)
    if own.is_complex:
        wide = tf.complex128 if dtype == tf.float64 else tf.complex64
        return tensor if own == wide else tf.cast(tensor, wide)
    return tensor


def _describe(y: Any) -> str:
    """Say what was returned instead of a tensor, and what to do about it."""
    if isinstance(y, np.ndarray | np.generic):
        return (
            "NumPy numbers, which carry no gradient: use the functions of tf and tf.math, or wrap what needs NumPy "
            "by quadgrad.tensorflow.wrap"
        )
    if isinstance(y, Tensor):
        return "a torch.Tensor: integrate it by quadgrad.quad, or wrap it by quadgrad.tensorflow.wrap"
    if isinstance(y, float | int | complex):
        return f"the number {y!r}"
    if isinstance(y, list | tuple):
        return f"a {type(y).__name__}: tf.stack(..., axis=-1) makes it one tensor, with an event dimension"
    if y is None:
        return "None: is its return missing?"
    if is_tensor(getattr(y, "value", None)):
        return f"a {type(y).__name__}: return its value"
    return f"{type(y).__name__}, not a tf.Tensor" + (": it was not called, end it with (x)" if callable(y) else "")


def _shapes(x: Any, args: Sequence[Any]) -> str:
    shown = ", ".join(f"{a.dtype.name} {a.shape}" if is_tensor(a) else type(a).__name__ for a in args)
    return f"x was {x.dtype.name} of shape {x.shape}, args [{shown}]"


_ELEMENT = (
    "An argument that carries a vector, matrix or sequence for each integral is passed as "
    "quadgrad.tensorflow.element(t, ndim=k): otherwise every entry of it is another integral of the batch"
)


_ROWS = "A Keras model wants one row for each point: tf.reshape(model(tf.reshape(x, [-1, 1])), tf.shape(x))"


_POINTS = "A Keras model of d inputs takes points as they are, model(x)[..., 0], d being the length of a and b"


def _note(function: Function, error: Exception, x: Any, args: Sequence[Any]) -> str:
    """Say how f was called when it raised, and what usually helps."""
    text = f"quadgrad.tensorflow: raised by the {function.name}. {_shapes(x, args)}"
    said = str(error)
    text += remedy(error, Called(function.f, torch.empty(0), args), (signature,))
    if any(is_tensor(a) and a.shape.rank != 0 for a in args):
        text += f". {_ELEMENT}"
    if "incompatible with the layer" in said:  # whose text has dtypes and dimensions in it, too
        return f"{text}. {_POINTS if function.point_ndim else _ROWS}"
    one_number = any(word in said for word in ("ambiguous", "scalar", "real number"))
    if not one_number and any(word in said for word in ("double", "float", "half", "dtype")):
        text += (
            ". x has the dtype of the tensors among limits, args and points (Python numbers do not count; float32 "
            "if there are none), and TensorFlow does not mix dtypes: where f closes over others, give a limit in "
            "theirs, such as tf.constant(0.0, tf.float64)"
        )
    if "compatible with expected shape" in said:
        text += (
            ". A graph that does not know how many dimensions f returns takes it for those of x: where there are "
            "event dimensions behind them, say so by tf.ensure_shape"
        )
    if one_number:
        text += (
            ". f is called with many x at once: tf.where decides for each, tf.math's functions stand in for those "
            "of math, and quadgrad.tensorflow.wrap(f, scalars=True) takes a function of one number"
        )
    elif any(word in said for word in ("ndim", "rank", "dimension")) and "out of bounds" not in said:
        text += f". {_POINTS if function.point_ndim else _ROWS}"
    return text


def _wrong_shape(function: Function, x: Any, y: Any, args: Sequence[Any]) -> str:
    like = "x.shape[:-1]" if function.point_ndim else "x.shape"
    return (
        f"the {function.name} returned shape {y.shape}; expected {like} = "
        f"{x.shape[: x.shape.rank - function.point_ndim]} with or without event dimensions behind it. "
        f"{_shapes(x, args)}. A tensor with the shape of the batch must not be closed over: pass it in args. "
        f"{_ELEMENT}. {_ROWS}"
    )


class View:
    """A TensorFlow function on torch tensors; where torch records, its first derivatives too.

    Parameters
    ----------
    function : Function
    sources, leaves : sequence
        Tensors or variables that f may close over although they are passed, and their leaves in torch: a limit,
        above all. f's derivatives by these are what it closes over, beside those by x and its arguments.
    recorded : bool
        Whether derivatives may be asked for at all.
    always : bool
        Whether f's values are to count as differentiated even where they depend on nothing watched.
    """

    def __init__(
        self, function: Function, sources: Sequence[Any], leaves: Sequence[Tensor], recorded: bool, always: bool
    ) -> None:
        self.function, self.sources, self.leaves = function, tuple(sources), tuple(leaves)
        self.recorded, self.always = recorded, always
        self.flag = torch.zeros(0, requires_grad=recorded)

    def __call__(self, x: Tensor, *args: Any) -> Tensor:
        """Return f at x."""
        self.function.dtype = tensorflow_dtype(x.dtype)
        if self.recorded and torch.is_grad_enabled():
            return _Taped.apply(self, self.flag, x, *self.leaves, *args)
        with silence():
            return to_torch(self.function(to_tensorflow(x), [_cross(a) for a in args]))


def _cross(value: Any) -> Any:
    return to_tensorflow(value) if isinstance(value, Tensor) else value


class _Taped(torch.autograd.Function):
    """A call of f that torch differentiates once, by a tape."""

    @staticmethod
    def forward(ctx: Any, view: View, flag: Tensor, x: Tensor, *rest: Any) -> Tensor:
        """Call f under a tape of its own."""
        count = len(view.leaves)
        given = [to_tensorflow(x), *map(_cross, rest[count:])]
        ctx.inputs = [given[0], *view.sources, *given[1:]]
        with tf.GradientTape(persistent=True) as tape:
            for value, needed in zip(ctx.inputs, ctx.needs_input_grad[2:], strict=True):
                if needed:
                    tape.watch(value)
            y = view.function(given[0], given[1:])
            connected = view.always or is_watched(y)
        ctx.tape, ctx.y = tape, y
        values = to_torch(y)
        if not connected:
            ctx.mark_non_differentiable(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Ask the tape."""
        (gradient,) = gradients
        needed = ctx.needs_input_grad[2:]
        asked = [value for value, one in zip(ctx.inputs, needed, strict=True) if one]
        with silence():
            found = iter(ctx.tape.gradient(ctx.y, asked, output_gradients=to_tensorflow(gradient)))
        each = [next(found) if one else None for one in needed]
        return None, None, *(None if g is None else to_torch(tf.convert_to_tensor(g)) for g in each)
