"""What the caller passed: checked, with names, and the same numbers as torch sees them.

Shapes, dtypes and NaN are checked by the engine, with its own sentences; here is what only TensorFlow can get
wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.integrand import Element as TorchElement
from quadgrad._core.verbs.inputs import unlike_points
from quadgrad.tensorflow._crossing import is_tensor, to_torch, torch_dtype
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._recording import is_watched

__all__ = ["Element", "Inputs", "Leaves", "element", "take_inputs"]


@dataclass(frozen=True, eq=False)
class Element:
    """A tensor whose last ``ndim`` dimensions belong to each element of the batch; see :func:`element`."""

    tensor: Any
    ndim: int


def element(t: Any, ndim: int) -> Element:
    """Mark an argument that carries a vector, matrix or sequence for each element of the batch.

    Parameters
    ----------
    t : tf.Tensor, tf.Variable or array, shape ``(*batch, *element)``
        The leading dimensions broadcast with the batch, the last ``ndim`` arrive whole in f.
    ndim : int
        How many trailing dimensions belong to one element.

    Raises
    ------
    ValueError
        If ``t`` has fewer than ``ndim`` dimensions or ``ndim`` is negative.

    Examples
    --------
    A polynomial with three coefficients for each of two integrals:

    >>> import tensorflow as tf, quadgrad.tensorflow as qgt
    >>> c = tf.constant([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]])
    >>> f = lambda x, c: tf.reduce_sum(c * x[..., None] ** tf.range(3.0), -1)
    >>> qgt.quad(f, 0.0, 1.0, args=(qgt.element(c, ndim=1),)).value.numpy().round(4)
    array([2., 1.], dtype=float32)
    """
    if not is_tensor(t):
        t = tf.convert_to_tensor(t)
    rank = t.shape.rank
    if ndim < 0 or (rank is not None and ndim > rank):
        raise ValueError(f"element: ndim={ndim} does not fit a tensor of shape {t.shape}")
    return Element(t, ndim)


@dataclass(slots=True)
class Inputs:
    """Limits, arguments and breakpoints: numbers as they are, all else as tensors.

    ``a``, ``b`` are numbers or tensors, ``points`` a tensor, an array of plain numbers or None, ``args`` numbers
    and other objects, tensors and :class:`Element`. ``originals`` maps the identity of a tensor to the variable
    that it was read from.
    """

    a: Any
    b: Any
    args: tuple[Any, ...]
    points: Any
    originals: dict[int, Any] = field(default_factory=lambda: {})

    def tensors(self) -> list[Any]:
        """Return all tensors, each once, in a fixed order."""
        each = [self.a, self.b, self.points, *(v.tensor if isinstance(v, Element) else v for v in self.args)]
        return list({id(v): v for v in each if is_tensor(v)}.values())

    def emptied(self) -> Callable[[Sequence[Any]], Inputs]:
        """Return what makes the same of others in the place of :meth:`tensors`; it holds none of these.

        Arguments that are no tensors are None.
        """
        places = {id(tensor): i for i, tensor in enumerate(self.tensors())}
        ndims = [v.ndim if isinstance(v, Element) else 0 for v in self.args]
        inner = [v.tensor if isinstance(v, Element) else v for v in self.args]
        at = [places.get(id(v)) for v in (self.a, self.b, self.points, *inner)]
        rest = [v if place is None else None for v, place in zip((self.a, self.b, self.points), at, strict=False)]
        originals = {places[i]: v for i, v in self.originals.items() if i in places}

        def fill(tensors: Sequence[Any]) -> Inputs:
            a, b, points, *args = [None if place is None else tensors[place] for place in at]
            a, b, points = (v if v is not None else r for v, r in zip((a, b, points), rest, strict=True))
            args = [Element(v, ndim) if ndim and v is not None else v for v, ndim in zip(args, ndims, strict=True)]
            return Inputs(a, b, tuple(args), points, {id(tensors[i]): v for i, v in originals.items()})

        return fill

    @property
    def dtype(self) -> torch.dtype:
        """The working dtype: that of all floating tensors together, or TensorFlow's own default."""
        found = [torch_dtype(t.dtype) for t in self.tensors()]
        found = [d.to_real() if d.is_complex else d for d in found if d.is_floating_point or d.is_complex]
        return reduce(torch.promote_types, found) if found else torch.float32


def take_inputs(a: Any, b: Any, args: Any, points: Any) -> Inputs:
    """Return what was passed, read from variables; refuse what belongs to another library.

    Raises
    ------
    TypeError
        Tensors of torch, of Keras' symbolic kind, or torch's :func:`quadgrad.element`.
    """
    originals: dict[int, Any] = {}
    read: dict[int, Any] = {}  # each variable once: the search knows by it that an argument moves with a limit

    def take(name: str, value: Any) -> Any:
        if isinstance(value, Element):
            return Element(take(name, value.tensor), value.ndim)
        _refuse(name, value)
        if is_tensor(getattr(value, "value", None)):  # a variable of Keras, which tapes do not know
            value = value.value
        if not is_tensor(value) and hasattr(value, "__array__"):
            return tf.constant(np.asarray(value))
        if not is_tensor(value):
            return value
        tensor = read.setdefault(id(value), tf.convert_to_tensor(value))
        if tensor is not value:
            originals[id(tensor)] = value
        return tensor

    items = args if isinstance(args, tuple | list) else (args,)
    ends = [take(name, _stack(end)) for name, end in (("a", a), ("b", b))]
    if points is not None:
        plain = isinstance(points, list | tuple | np.ndarray)
        points = _stack(points) if plain else take("points", points)
        try:
            points = points if is_tensor(points) else np.asarray(points, np.float64)
        except (TypeError, ValueError) as error:
            raise unlike_points(points, error) from None
        points = _at_least_one_dimension(points)
    return Inputs(ends[0], ends[1], tuple(take(f"args[{i}]", v) for i, v in enumerate(items)), points, originals)


def _refuse(name: str, value: Any) -> None:
    """Refuse what belongs to another library, or is not one dense array."""
    kind = type(value).__name__
    if isinstance(value, TorchElement):
        raise TypeError(f"{name} is a quadgrad.element, of torch: mark it by quadgrad.tensorflow.element")
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name} is a torch.Tensor: give its numbers, .numpy(force=True), or integrate by quadgrad.quad, "
            "with a function of torch tensors"
        )
    if kind == "KerasTensor":
        raise TypeError(
            f"{name} is a symbolic tensor of Keras, which holds no numbers yet: call this in the call() of a "
            "keras.layers.Layer"
        )
    if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        raise TypeError(
            f"{name} is a {kind}: give a dense tensor, .to_tensor() or tf.sparse.to_dense, or, of rows of several "
            "lengths, .flat_values, whose integrals are a batch"
        )


def _at_least_one_dimension(points: Any) -> Any:
    if not is_tensor(points) or points.shape.rank is not None:
        return points[None] if len(points.shape) == 0 else points
    return tf.reshape(
        points, tf.concat([tf.shape(points), tf.ones([tf.cast(tf.rank(points) == 0, tf.int32)], tf.int32)], 0)
    )


def _stack(values: Any) -> Any:
    """Return a list that holds tensors as one tensor, enumerated along its last dimension; all else as it is."""
    if not isinstance(values, list | tuple) or not any(is_tensor(v) for v in values):
        return values
    dtype = next(v.dtype for v in values if is_tensor(v))
    each = [tf.cast(v, dtype) for v in values]
    shape = each[0]
    for one in each[1:]:
        shape = shape + one
    return tf.stack([tf.broadcast_to(one, tf.shape(shape)) for one in each], -1)


class Leaves:
    """Tensors of TensorFlow as leaves of torch, which require grad where derivatives may be asked for."""

    def __init__(self, inputs: Inputs, everything: bool) -> None:
        """With ``everything`` all floating tensors require grad."""
        self.sources: list[Any] = []
        self.tensors: list[Tensor] = []
        self._by_identity: dict[int, Tensor] = {}
        for tensor in inputs.tensors():
            leaf = to_torch(tensor)
            source = inputs.originals.get(id(tensor), tensor)
            if leaf.is_floating_point() or leaf.is_complex():
                leaf.requires_grad_(everything or is_watched(tensor))
                if leaf.requires_grad:
                    self.sources.append(source)
                    self.tensors.append(leaf)
            self._by_identity[id(tensor)] = leaf

    def of(self, value: Any) -> Any:
        """Return the leaf of a tensor, and what is none as it is."""
        if isinstance(value, Element):
            return TorchElement(self.of(value.tensor), value.ndim)
        if isinstance(value, np.ndarray):  # breakpoints that are plain numbers
            return torch.from_numpy(value)
        return self._by_identity[id(value)] if is_tensor(value) else value
