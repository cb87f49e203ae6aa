"""NumPy and SciPy functions as TensorFlow functions: values and products with Jacobians by the bridge.

What a function is, how its derivatives are computed and what is remembered is :mod:`quadgrad.bridge`'s business.
Here its products become TensorFlow operations, each with the next one as its gradient, as
:mod:`quadgrad.bridge.functions` has it for torch: value, J^T g, J v, second-order products; the third order raises.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from quadgrad._core.errors import BridgeError
from quadgrad.bridge.contract import Array, Arrays, Spec, complex_input, unknown_input
from quadgrad.bridge.functions import THIRD
from quadgrad.bridge.options import Info
from quadgrad.bridge.task import Task
from quadgrad.bridge.wrap import Wrapped as BridgeWrapped
from quadgrad.bridge.wrap import wrap as bridge_wrap
from quadgrad.tensorflow._crossing import is_tensor
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._recording import in_xla, is_watched, record_operation

__all__ = ["Wrapped", "wrap"]

STAND_INS = (8, 9)
"""Two sizes for dimensions unknown to a trace: what differs between their outputs is unknown too."""

Wanted = tuple[int, ...]
"""With respect to which inputs."""
Tensors = Sequence[Any]
Compute = Callable[..., Arrays]
"""Returns arrays for a kind of product, the wanted inputs, and groups of arrays: inputs, vectors."""
Gradient = Callable[[Tensors, Tensors, Tensors], list[Any]]

_numbers = itertools.count()


def wrap(
    fn: Callable[..., Any] | None = None, derivative: str | Callable[..., Any] = "central", **options: Any
) -> Any:
    """Make a function that TensorFlow cannot see differentiable.

    NumPy and SciPy code, compiled functions and simulators become functions of TensorFlow tensors, with derivatives
    by `GradientTape` (nested and persistent too, `tape.jacobian`), `ForwardAccumulator`, and `tf.function`. It is
    :func:`quadgrad.bridge.wrap` for TensorFlow: the same options, the same derivatives, the same error estimates.

    Parameters
    ----------
    fn : callable, optional
        ``fn(*inputs)`` takes NumPy arrays and returns an array or a tuple of arrays (float32, float64, complex64 or
        complex128), or what :func:`quadgrad.bridge.wrap` made of it. Left out, ``wrap`` is a decorator.
    derivative : str or callable
        As for :func:`quadgrad.bridge.wrap`: ``"central"`` differences, ``"forward"``, ``"richardson"``,
        ``"complex"``, ``"auto"``, ``"spsa"``, or the derivative of an elementwise function.
    **options
        Of :func:`quadgrad.bridge.wrap`: ``jacobian``, ``vjp``, ``jvp``, ``vectorized``, ``scalars``, ``sparsity``,
        ``out_shape``, ``static``, ``bounds``, ``executor``, ``noise``, ``seed``.

    Returns
    -------
    Wrapped
        Or, without fn, a decorator.

    Raises
    ------
    BridgeError
        When called: if fn returns something else than it should. In a graph TensorFlow raises an error of its own,
        with this one's text.
    TypeError
        For options that are unknown, and inputs that are complex or no tensors, arrays or numbers.
    NotImplementedError
        If a third derivative is asked for.

    Notes
    -----
    The result has the dtype that fn returns: of a float32 model's tensors NumPy makes float64 as soon as a float64
    array joins them.

    Eager calls differentiate with respect to what a tape watches, and nothing else. A graph cannot know that: of a
    `tf.function` differentiated by a tape *outside*, TensorFlow computes all derivatives. Put the tape inside, or
    ``tf.stop_gradient`` around inputs of which no derivative is needed.

    A graph has to know what fn returns before it has run: from an earlier call with the same shapes, from
    ``out_shape``, or by a call with ones, in which dimensions the graph does not know are 8, then 9. A batch of a
    function of one point is ``tf.map_fn``. The operations are Python's: there is no `jit_compile`, and a SavedModel
    can be loaded only by the process that saved it.

    Examples
    --------
    >>> import numpy as np, tensorflow as tf
    >>> import quadgrad.tensorflow as qgt
    >>> @qgt.wrap
    ... def energy(x):
    ...     return np.sum(x**4) / 4
    >>> x = tf.Variable([1.0, 2.0, 3.0], dtype=tf.float64)
    >>> with tf.GradientTape() as tape:
    ...     y = energy(x)
    >>> gradient = tape.gradient(y, x)
    >>> print(np.round(gradient, 4))
    [ 1.  8. 27.]
    >>> bool(np.max(np.abs(gradient - x**3)) < energy.info.gradient_error[0].max())
    True
    """
    if fn is None:
        return lambda function: wrap(function, derivative, **options)
    if isinstance(fn, BridgeWrapped):
        if options or derivative != "central":
            raise TypeError(f"wrap: {fn!r} is wrapped already; give its options to the bridge")
        return Wrapped(fn)
    return Wrapped(bridge_wrap(fn, derivative, **options))


class Wrapped:
    """A function with derivatives; made by :func:`wrap`.

    Attributes
    ----------
    bridge : quadgrad.bridge.Wrapped
        The same function for torch and for :func:`quadgrad.bridge.check`.
    info : Info or None
        Error estimates, evaluations and noise level of the last backward pass.
    """

    def __init__(self, bridge: BridgeWrapped) -> None:
        self.bridge = bridge
        self.__doc__, self.__name__ = bridge.__doc__, getattr(bridge, "__name__", type(bridge.fn).__name__)
        self._infos: dict[Wanted, Info] = {}
        self._finished = True
        self._lock = threading.RLock()  # TensorFlow runs operations of a graph in several threads

    def __repr__(self) -> str:
        return f"<tensorflow.wrap of {self.bridge!r}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrapped:
        """Return the same object, as for every function."""
        return self

    @tf.autograph.experimental.do_not_convert
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with tensors, variables, arrays or numbers; return a tensor or a tuple of tensors."""
        values, statics = self.bridge.separated(args, kwargs)
        task, _ = self.bridge.task(len(values) + len(statics), statics)
        found = _value(partial(self._compute, task), task, _as_tensors(values, task.callee.name))
        return found[0] if len(found) == 1 else tuple(found)

    @property
    def info(self) -> Info | None:
        """What the last backward pass found."""
        infos = [self._infos[wanted] for wanted in sorted(self._infos)]
        return _joined(infos) if infos else None

    def forget(self) -> None:
        """Forget remembered values and Jacobians: after a change that the function's outputs do not show."""
        self.bridge.forget()

    def _compute(self, task: Task, kind: str, wanted: Wanted, inputs: Arrays, *vectors: Arrays) -> Arrays:
        """Return the value or a product; keep what the bridge says of a backward pass."""
        with self._lock:
            if kind == "value":
                self._finished = True
                return task.value(inputs, remember=bool(wanted))
            found = getattr(task, kind)(wanted, 0, 0, inputs, *(tuple(map(_wide, group)) for group in vectors))
            if kind == "vjp" and self.bridge.info is not None:
                if self._finished:  # in a graph, one pass has a product for each input
                    self._infos, self._finished = {}, False
                self._infos[wanted] = self.bridge.info
            return found


def _wide(vector: Array) -> Array:
    return vector.astype(np.complex128 if np.iscomplexobj(vector) else np.float64)


def _joined(infos: Sequence[Info]) -> Info:
    """Return what products with respect to one input each say together."""
    first = infos[0]
    if len(infos) == 1 or first.error is None:
        return replace(first, nfev=sum(info.nfev for info in infos))
    errors = zip(*(info.error or () for info in infos), strict=True)
    gradients = tuple(error for info in infos for error in info.gradient_error or ())
    return replace(
        first, nfev=sum(info.nfev for info in infos), noise=max(info.noise or 0.0 for info in infos),
        error=tuple(np.max(np.stack(each), axis=0) for each in errors), gradient_error=gradients,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- inputs


def _as_tensors(values: Sequence[Any], name: str) -> list[Any]:
    """Turn variables, arrays and numbers into tensors; Python floats take the dtype of the others."""
    found = [_as_tensor(value, i, name) for i, value in enumerate(values)]
    real = [t.dtype.as_numpy_dtype for t in found if is_tensor(t) and t.dtype.is_floating]
    dtype = np.result_type(*real) if real else np.float64
    found = [t if is_tensor(t) else tf.constant(t, dtype if isinstance(t, float) else None) for t in found]
    return [tf.cast(t, tf.float32) if t.dtype in (tf.float16, tf.bfloat16) else t for t in found]


def _as_tensor(value: Any, position: int, name: str) -> Any:
    if isinstance(value, bool | int | float) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = tf.constant(value)
    if not is_tensor(value) or type(value).__name__ == "KerasTensor":
        raise _unknown(value, position, name)
    tensor = tf.convert_to_tensor(value)
    if tensor.dtype.is_complex:
        raise complex_input(tensor.dtype.name)
    return tensor


def _unknown(value: Any, position: int, name: str) -> TypeError:
    kind = type(value).__name__
    if kind == "KerasTensor":
        return TypeError(
            f"{name}: input {position} is Keras' symbolic {kind}, which has no numbers yet: call the function "
            "inside a layer's call, or through keras.layers.Lambda"
        )
    if isinstance(value, torch.Tensor):
        return TypeError(f"{name}: input {position} is a torch tensor, which belongs to quadgrad.bridge.wrap")
    return unknown_input(value, position, name)


# ------------------------------------------------------------------------------------- values and products


def _value(compute: Compute, task: Task, inputs: Tensors) -> list[Any]:
    """Return the outputs, differentiable."""
    n, groups, specs = len(inputs), _groups(inputs), None
    if not tf.executing_eagerly():
        if in_xla():
            raise NotImplementedError(
                f"{task.callee.name} is Python, which jit_compile=True cannot compile: call it elsewhere"
            )
        specs = _specs_in_graph(task, inputs)
    elif not groups:
        return [tf.constant(y) for y in compute("value", (), _arrays(inputs))]

    def gradient(tensors: Tensors, outputs: Tensors, cotangents: Tensors) -> list[Any]:
        found: list[Any] = [None] * n
        for wanted in groups:
            for i, product in zip(wanted, _vjp(compute, wanted, tensors, outputs, cotangents), strict=True):
                found[i] = product
        return found

    return _operation(partial(compute, "value", groups[0] if groups else ()), [inputs], specs, gradient, state=True)


def _groups(inputs: Tensors) -> tuple[Wanted, ...]:
    """Return the inputs with respect to which there may be derivatives, those together that are computed together.

    Tapes tell when something is computed outside of a graph. In a graph nobody knows, so that each input has its
    own operation, and TensorFlow leaves out those that nobody reads.
    """
    real = [i for i, x in enumerate(inputs) if x.dtype.is_floating]
    if not tf.executing_eagerly():
        return tuple((i,) for i in real)
    watched = tuple(i for i in real if is_watched(inputs[i]))
    return (watched,) if watched else ()


def _vjp(compute: Compute, wanted: Wanted, inputs: Tensors, outputs: Tensors, cotangents: Tensors) -> list[Any]:
    """Return J^T g for each wanted input. Its derivatives are J dg and the Hessian of <g, f> times dx."""
    return _product(compute, "vjp", wanted, inputs, outputs, _dense(cotangents, outputs))


def _jvp(compute: Compute, wanted: Wanted, inputs: Tensors, outputs: Tensors, tangents: Tensors) -> list[Any]:
    """Return J v for each output. Its derivatives are J^T and second derivatives along v."""
    return _product(compute, "jvp", wanted, inputs, outputs, tangents)


def _product(
    compute: Compute, kind: str, wanted: Wanted, inputs: Tensors, outputs: Tensors, vectors: Tensors
) -> list[Any]:
    """Return a product with the Jacobian, whose gradient is the other one and a second-order product.

    The outputs are arguments too: what depends on an operation that has a state is not computed ahead by a graph's
    optimiser, which would freeze what the function closes over.
    """
    like = [inputs[i] for i in wanted] if kind == "vjp" else outputs
    groups, n, m = _groups(inputs), len(inputs), len(outputs)

    def gradient(tensors: Tensors, results: Tensors, incoming: Tensors) -> list[Any]:
        xs, own, ys = tensors[:n], tensors[n:-m], tensors[-m:]
        incoming = _dense(incoming, results)
        cotangents, tangents = (own, incoming) if kind == "vjp" else (incoming, own)
        by_input: list[Any] = [None] * n
        for group in groups:
            second = _second(compute, group, wanted, xs, ys, cotangents, tangents)
            for i, each in zip(group, second, strict=True):
                by_input[i] = each
        other = _jvp if kind == "vjp" else _vjp
        # Always: an accumulator, which transposes the backward pass, does not show that it watches own.
        return [*by_input, *other(compute, wanted, xs, ys, incoming), *[None] * m]

    return _operation(partial(compute, kind, wanted), [inputs, vectors], _specs(like), gradient, after=outputs)


def _second(
    compute: Compute,
    group: Wanted,
    wanted: Wanted,
    inputs: Tensors,
    outputs: Tensors,
    cotangents: Tensors,
    tangents: Tensors,
) -> list[Any]:
    """Return the derivatives by the inputs of ``group`` of <g, J v>, v the tangents of the ``wanted`` inputs.

    They are linear in g and v. An accumulator transposes them, so that they have derivatives by these.
    """
    union = tuple(sorted({*group, *wanted}))
    given = dict(zip(wanted, tangents, strict=True))
    moves = [given.get(i, tf.zeros_like(inputs[i])) for i in union]
    n, m = len(inputs), len(outputs)

    def gradient(tensors: Tensors, results: Tensors, incoming: Tensors) -> list[Any]:
        xs, gs, vs, ys = tensors[:n], tensors[n : n + m], tensors[n + m : -m], tensors[-m:]
        incoming = _dense(incoming, results)
        along = _operation(partial(compute, "second_jvp", union), [xs, vs, incoming], _specs(ys), after=ys)
        by_moves = _second(compute, union, union, xs, ys, gs, incoming)
        return [*[None] * n, *_without_derivative(along, [*xs, *vs, *incoming]), *by_moves, *[None] * m]

    like = [inputs[i] for i in union]
    found = _operation(
        partial(compute, "second_vjp", union), [inputs, cotangents, moves], _specs(like), gradient, after=outputs
    )
    parts = dict(zip(union, _without_derivative(found, inputs), strict=True))
    return [parts[i] for i in group]


def _without_derivative(values: Tensors, tensors: Tensors) -> list[Any]:
    """Return values of which a derivative by the tensors is refused, when one is asked for."""

    def refuse(*_: Any) -> Arrays:
        raise NotImplementedError(THIRD)

    def gradient(tensors: Tensors, results: Tensors, incoming: Tensors) -> list[Any]:
        count = len(tensors) - len(results)
        # Outside of a graph at once. A graph has gradients that nobody may read, and refuses when it computes one.
        found = _operation(refuse, [tensors, _dense(incoming, results)], _specs(tensors[:count]))
        return [*found, *[None] * len(results)]

    zeros = lambda _, values: tuple(map(np.zeros_like, values))
    found = _operation(zeros, [tensors, [tf.stop_gradient(v) for v in values]], _specs(values), gradient)
    return [value + zero for value, zero in zip(values, found, strict=True)]


def _dense(vectors: Tensors, like: Tensors) -> list[Any]:
    """Return cotangents as tensors: zeros for those that are missing, slices as what they are slices of."""
    return [tf.zeros_like(y) if v is None else tf.convert_to_tensor(v) for v, y in zip(vectors, like, strict=True)]


def _specs(tensors: Tensors) -> list[Any]:
    return [(t.shape, t.dtype) for t in tensors]


def _operation(
    compute: Callable[..., Arrays],
    groups: Sequence[Tensors],
    specs: Any,
    gradient: Gradient | None = None,
    *,
    after: Tensors = (),
    state: bool = False,
) -> list[Any]:
    """Compute now, or enter the computation into a graph; say what its gradient is.

    ``tf.custom_gradient`` would do, but for ``pfor``, which drops the gradients of it, and for graphs that are
    differentiated again when they are finished: its gradients refer to tensors, here they get the operation's own.

    Parameters
    ----------
    compute : callable
        Takes groups of arrays.
    groups : sequence of sequences of tensors
    specs : list of (shape, dtype) of the results, or None outside of a graph
    gradient : callable, optional
        Takes all tensors, the results and their gradients; returns gradients for all tensors.
    after : sequence of tensors
        Computed before.
    state : bool
        Whether it is computed even if nobody reads it, and each time.
    """
    tensors = [tensor for group in (*groups, after) for tensor in group]
    if tf.executing_eagerly():
        arrays = compute(*map(_arrays, groups))
        dtypes = [y.dtype for y in arrays] if specs is None else [dtype for _, dtype in specs]
        found = [tf.constant(y, dtype) for y, dtype in zip(arrays, dtypes, strict=True)]
    elif not specs:
        return []
    else:
        tensors = [tf.identity(t) for t in tensors]  # of this graph, also those that come from outside of it
        found = _in_graph(compute, list(map(len, groups)), tensors, specs, gradient, state)
    if gradient is not None:
        record_operation(found, tensors, lambda *incoming: gradient(tensors, found, incoming))
    return (
        found if specs is None else [tf.ensure_shape(y, shape) for y, (shape, _) in zip(found, specs, strict=True)]
    )


def _in_graph(
    compute: Callable[..., Arrays],
    sizes: list[int],
    tensors: Tensors,
    specs: Any,
    gradient: Gradient | None,
    state: bool,
) -> list[Any]:
    ends = list(itertools.accumulate(sizes))
    dtypes = [dtype for _, dtype in specs]

    def later(*arrays: Array) -> list[Array]:
        found = compute(*(tuple(arrays[end - size : end]) for end, size in zip(ends, sizes, strict=True)))
        return [np.asarray(y).astype(dtype.as_numpy_dtype) for y, dtype in zip(found, dtypes, strict=True)]

    name = f"QuadgradBridge{next(_numbers)}"
    if gradient is not None:
        tf.RegisterGradient(name)(lambda op, *incoming: gradient(op.inputs, op.outputs, incoming))
    overridden = {"PyFunc": name, "PyFuncStateless": name} if gradient is not None else {}
    with tf.compat.v1.get_default_graph().gradient_override_map(overridden):
        found = tf.numpy_function(later, tensors, dtypes, stateful=state)
    return found if isinstance(found, list) else [found]


def _arrays(tensors: Tensors) -> Arrays:
    return tuple(tensor.numpy() for tensor in tensors)


# ----------------------------------------------------------------------------------------- before a graph runs


def _specs_in_graph(task: Task, inputs: Tensors) -> list[Any]:
    """Return shapes and dtypes of the outputs, as far as the inputs' are known."""
    shapes = [x.shape for x in inputs]
    dtypes = [np.dtype(x.dtype.as_numpy_dtype) for x in inputs]
    whole = all(shape.is_fully_defined() for shape in shapes)
    found: list[tuple[Spec, ...]] = []
    for size in (0,) if whole else STAND_INS:
        signature = [Spec(_filled(shape, size), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        try:
            found.append(task.specs(tuple(signature)))
        except Exception as error:
            if whole:
                raise
            raise BridgeError(
                f"{task.callee.name} raised {type(error).__name__}: {error}. It was called while a graph is traced "
                f"with ones of shape {' and '.join(str(spec.shape) for spec in signature)}, as of the inputs' "
                f"shapes no more is known than {' and '.join(map(str, shapes))}: give out_shape=..."
            ) from error
    first, last = found[0], found[-1]
    if [len(y.shape) for y in first] != [len(y.shape) for y in last] or any(s.rank is None for s in shapes):
        return [(tf.TensorShape(None), tf.as_dtype(y.dtype)) for y in first]
    return [(_common(y.shape, z.shape), tf.as_dtype(y.dtype)) for y, z in zip(first, last, strict=True)]


def _filled(shape: Any, size: int) -> tuple[int, ...]:
    return (size,) if shape.rank is None else tuple(size if n is None else n for n in shape.as_list())


def _common(first: Sequence[int], last: Sequence[int]) -> Any:
    return tf.TensorShape([n if n == k else None for n, k in zip(first, last, strict=True)])
