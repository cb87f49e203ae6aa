"""A call inside of a graph: search runs in a ``py_function``, replay is part of the graph.

The ``py_function`` gets everything that f depends on and may change from run to run: limits, arguments, symbolic
tensors that f closes over, and the handles of variables, which puts it in order among what reads and assigns them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.gradient.written import Written
from quadgrad._core.rules.rule import SHARES
from quadgrad._core.tolerance import returned_dtype
from quadgrad.tensorflow._call import Element, Inputs, Leaves
from quadgrad.tensorflow._crossing import is_tensor, tensorflow_dtype, to_tensorflow, torch_dtype
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._inline import Inline
from quadgrad.tensorflow._integrand import Function
from quadgrad.tensorflow._recording import calling_line, in_xla
from quadgrad.tensorflow._replay import replay, take_logarithm
from quadgrad.tensorflow._result import Result
from quadgrad.tensorflow._search import HandOver, Options, Searched, search, speaking
from quadgrad.tensorflow._sums import is_shared

__all__ = ["Traced", "integrate_in_graph", "refuse_xla", "run_outside"]

_RANKS = {
    "x": 2, "weights": 2, "owner": 1, "extrapolated": 1, "column": 1, "end_functionals": 2, "end_factor": 2,
    "end_rate": 2, "lower_mark": 1, "upper_mark": 1, "lower": 2, "upper": 2, "rate": 2, "mark": 1, "start": 2,
    "sign": 2, "endless": 2, "orientation": 1,
}  # fmt: skip
_INTEGERS = ("owner", "extrapolated", "column", "lower_mark", "upper_mark", "mark")


class Traced:
    """A function that was traced by itself, to be called from outside of the graph with what it captured.

    x is traced with two dimensions (and those of a point), an argument with one for the batch unless all share it.
    """

    def __init__(self, function: Function, inputs: Inputs) -> None:
        self.function = function
        self.args = inputs.args
        self.specs = [_spec(v) for v in inputs.args if _tensor_of(v) is not None]
        x = tf.TensorSpec([None] * (2 + function.point_ndim), function.dtype)
        traced = tf.function(self._call, autograph=False)
        concrete = traced.get_concrete_function(x, *self.specs)
        self.captured: list[Any] = list(concrete.captured_inputs)
        self.output: Any = concrete.outputs[0]
        self.inline = Inline(concrete.graph)

    def _call(self, x: Any, *tensors: Any) -> Any:
        rest = iter(tensors)
        return self.function(x, [v if _tensor_of(v) is None else next(rest) for v in self.args])

    def outside(self, places: dict[int, int]) -> Callable[[Sequence[Any]], Function]:
        """Return what makes the function to be called eagerly of the values of tensors, enumerated by ``places``.

        It holds no tensor of the graph: TensorFlow never frees a graph that one of its Python functions refers to.
        """
        # What is no part of the graph keeps its identity, by which tapes know it.
        kept = [None if tf.is_symbolic_tensor(t) else t for t in self.captured]
        at = [places[id(t)] for t in self.captured]
        name, specs, point, inline = self.function.name, self.specs, self.function.point_ndim, self.inline

        def fill(values: Sequence[Any]) -> Function:
            captured = [values[i] if k is None else k for i, k in zip(at, kept, strict=True)]

            def call(x: Any, *args: Any) -> Any:
                tensors = [a for a in args if is_tensor(a)]
                tensors = [_fit(a, spec) for a, spec in zip(tensors, specs, strict=True)]
                grid, end = tuple(x.shape)[: x.shape.rank - point], tuple(x.shape)[x.shape.rank - point :]
                flat = x if len(grid) == 2 else tf.reshape(x, (-1, 1, *end))
                (y,) = inline([flat, *tensors, *captured])
                return y if len(grid) == 2 else tf.reshape(y, (*grid, *tuple(y.shape)[2:]))

            outside = Function(call, name, point)
            outside.cast = False
            return outside

        return fill


def _tensor_of(value: Any) -> Any:
    """Return the tensor of an argument, or None if it is none."""
    value = value.tensor if isinstance(value, Element) else value
    return value if is_tensor(value) else None


def _spec(value: Any) -> Any:
    tensor, ndim = (value.tensor, value.ndim) if isinstance(value, Element) else (value, 0)
    rank = tensor.shape.rank
    core = [None] * ndim if rank is None else list(tensor.shape[rank - ndim :])
    if is_shared(value):
        return tf.TensorSpec([1, *core] if ndim else [], tensor.dtype)
    return tf.TensorSpec([None, *core], tensor.dtype)


def _fit(value: Any, spec: Any) -> Any:
    """Return what the engine gives as an argument in the rank that was traced."""
    if value.shape.rank == spec.shape.rank:
        return value
    ndim = max(0, spec.shape.rank - 1)
    core = tuple(value.shape)[value.shape.rank - ndim :] if ndim else ()
    return tf.reshape(value, (-1, *core) if spec.shape.rank else ())


def refuse_xla(verb: str) -> None:
    """Refuse to search where XLA compiles.

    Raises
    ------
    NotImplementedError
        It cannot call back to Python.
    """
    if in_xla():
        raise NotImplementedError(
            f"quadgrad.tensorflow.{verb} searches, which XLA cannot compile (jit_compile=True): call it outside, "
            "or keep the plan of an earlier result and compile quadgrad.tensorflow.replay"
        )


_TAG: list[Any] = []


def _tag() -> Any:
    """Return what is read from a resource that no model tracks: a SavedModel refuses its name.

    Only what is read: a resource itself would bind searches to its device, also those of other replicas. And read
    by itself: of what a variable reads, graphs keep the variable, which Keras then saves with a model.
    """
    if not _TAG:
        with tf.init_scope():
            name = (
                "quadgrad_SEARCHES_IN_PYTHON_which_cannot_be_saved/save_a_plan_and_call_quadgrad.tensorflow.replay"
            )
            _TAG.append(tf.Variable(0, trainable=False, name=name))
    return tf.raw_ops.ReadVariableOp(resource=_TAG[0].handle, dtype=_TAG[0].dtype)


def run_outside(run: Any, inputs: Inputs, traced: Sequence[Traced], dtypes: Sequence[Any]) -> list[Any]:
    """Put a ``py_function`` into the graph that calls ``run(inputs, functions)`` with eager inputs and functions.

    What enters and what leaves it carries no gradient: by itself a ``py_function`` would be differentiated.
    """
    tensors = inputs.tensors()
    entering = list({id(v): v for v in [*tensors, *(c for t in traced for c in t.captured)]}.values())
    places = {id(v): i for i, v in enumerate(entering)}
    fill, functions = inputs.emptied(), [t.outside(places) for t in traced]
    given = [places[id(t)] for t in tensors]
    floats = [places[id(c)] for t in traced for c in t.captured if c.dtype.is_floating or c.dtype.is_complex]

    def outside(*values: Any) -> list[Any]:
        called = [function(values) for function in functions]
        return [
            to_tensorflow(v) for v in run(fill([values[i] for i in given]), called, [values[i] for i in floats])
        ]

    found = tf.py_function(
        outside, [*map(_stopped, entering), _tag()], list(dtypes),
        name="quadgrad_searches_in_Python__vectorized_map_needs_its_while_loop",
    )  # fmt: skip
    return [tf.stop_gradient(v) for v in found]


def _stopped(tensor: Any) -> Any:
    return tf.stop_gradient(tensor) if tensor.dtype.is_floating or tensor.dtype.is_complex else tensor


def integrate_in_graph(function: Function, jumps: Function | None, inputs: Inputs, options: Options) -> Result:
    """Put search and replay into the graph."""
    refuse_xla("quad")
    site = calling_line()
    traced = [Traced(one, inputs) for one in (function, jumps) if one is not None]
    output = torch_dtype(traced[0].output.dtype)
    real = returned_dtype(inputs.dtype, output.to_real() if output.is_complex else output)
    names = [*_RANKS, "direction", "place", "component", "sound", *(["shift"] if options.log else [])]
    dtypes = [_dtype(name) for name in names]
    dtypes[len(_RANKS)] = tf.complex128 if output.is_complex else tf.float64
    dtypes += [tensorflow_dtype(real), tf.int64, tf.int64, tf.int64]
    ends = {"limit a": inputs.a, "limit b": inputs.b}
    still = [name for name, end in ends.items() if is_tensor(end) and tf.get_static_value(end) is not None]
    still += ["limit a and limit b"] if len(still) == 2 else []
    run = lambda given, functions, captured: _search(given, functions, captured, options, (site, True, still))
    found = run_outside(run, inputs, traced, dtypes)
    event = traced[0].output.shape[2:]
    each = dict(zip(names, found, strict=False))
    ranks = _RANKS | {"direction": 2 + event.rank, "place": 2, "component": 2, "sound": 2, "shift": 1 + event.rank}
    each = {name: tf.ensure_shape(v, [None] * ranks[name]) for name, v in each.items()}
    each["end_functionals"] = tf.ensure_shape(each["end_functionals"], [1 + SHARES, None])
    error, status, nfev, shape = found[-4:]
    batch_shape = tf.ensure_shape(shape, [None])
    batch = tf.cast(tf.shape(each["orientation"])[0], tf.int32)
    searched = Searched(
        Written(**{n: each[n] for n in _RANKS}, moving=True), (), each["direction"], each["place"],
        each["component"], each["sound"], each.get("shift"),
    )  # fmt: skip
    movable = any(is_tensor(v) for v in (inputs.a, inputs.b, inputs.points)) or jumps is not None
    value = replay(function, jumps, inputs, searched, batch_shape, batch, (0, 1, 2), movable)
    if searched.shift is not None:
        value = take_logarithm(value, searched.shift)
    value = tf.cast(value, tensorflow_dtype(real.to_complex() if output.is_complex else real))
    value = tf.reshape(value, tf.concat([tf.cast(batch_shape, tf.int32), tf.shape(value)[1:]], 0))
    static = _static_shape(inputs)
    value.set_shape(static.concatenate(event))
    for one in (error, status, nfev):
        one.set_shape(static)
    return Result(value, error, status, nfev, None)


def _dtype(name: str) -> Any:
    if name in (*_INTEGERS, "component"):
        return tf.int64
    return tf.bool if name in ("endless", "sound") else tf.float64


def _static_shape(inputs: Inputs) -> Any:
    """Return what is known of the batch's shape."""
    shapes = [tf.TensorShape([])]
    for v in (inputs.a, inputs.b, *inputs.args):
        tensor, ndim = _tensor_of(v), v.ndim if isinstance(v, Element) else 0
        if tensor is not None:
            shapes.append(tensor.shape[: tensor.shape.rank - ndim] if tensor.shape.rank is not None else None)
    if inputs.points is not None:
        points = tf.TensorShape(inputs.points.shape)
        shapes.append(points[:-1] if points.rank is not None else None)
    if None in shapes:
        return tf.TensorShape(None)
    joined = shapes[0]
    for shape in shapes[1:]:
        joined = tf.broadcast_static_shape(joined, shape)
    return joined


def _search(
    inputs: Inputs, functions: Sequence[Function], captured: Sequence[Any], options: Options, warnings: Any
) -> list[Tensor]:
    """Search, outside of the graph, and return what replay needs in the order in which the graph expects it."""
    function, jumps = functions[0], functions[1] if len(functions) > 1 else None
    leaves, kept = Leaves(inputs, everything=True), list[Searched]()
    with speaking(*warnings):
        found = search(function, jumps, inputs, leaves, captured, True, True, options, HandOver(kept.append))
    (searched,) = kept
    written = [getattr(searched.written, name) for name in _RANKS]
    rest = [searched.direction, searched.place, searched.component, searched.sound]
    if searched.shift is not None:
        rest.append(searched.shift)
    shape = torch.tensor(searched.batch_shape, dtype=torch.int64)
    return [*written, *rest, found.error, found.status, found.nfev, shape]


assert {f.name for f in fields(Written)} == {*_RANKS, "moving"}
