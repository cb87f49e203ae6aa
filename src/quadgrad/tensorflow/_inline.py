"""A traced function run operation by operation, in the thread that calls it.

A search in a graph holds a thread of the pool in which TensorFlow runs operations, and a function that it calls
asks the pool for another: on one core it would wait for itself for ever, several at once for each other. So
functions, branches and loops are run here, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._recording import function_graph

__all__ = ["Inline"]


@dataclass(frozen=True)
class _Step:
    """One operation: the names of the tensors it takes, in groups by argument, and of those that it makes."""

    function: Callable[..., Any]
    groups: dict[str, Any]
    attributes: dict[str, Any]
    made: list[str]


class Inline:
    """The operations of a traced function, in order; it holds nothing of the graph.

    Raises
    ------
    NotImplementedError
        Where an operation is not one of TensorFlow's own.
    """

    def __init__(self, graph: Any, count: int | None = None) -> None:
        """Take the graph of a concrete function, and its first ``count`` outputs: tapes append what they keep."""
        self._inputs = [t.name for t in graph.inputs]
        self._outputs = [t.name for t in graph.outputs[:count]]
        wanted, steps = set(self._outputs), list[_Step]()
        self._protos, self._constants = dict[str, Any](), None
        for op in reversed(graph.get_operations()):
            made = [t.name for t in op.outputs]
            if wanted.isdisjoint(made) or op.type == "Placeholder":
                continue
            if op.type == "Const":
                self._protos[made[0]] = op.get_attr("value")
                continue
            steps.append(_step(op, made))
            wanted.update(t.name for t in op.inputs)
        self._steps = steps[::-1]

    def __call__(self, inputs: list[Any]) -> list[Any]:
        """Return the outputs for these inputs, captures among them."""
        if self._constants is None:
            self._constants = {name: tf.constant(tf.make_ndarray(p)) for name, p in self._protos.items()}
        known = self._constants | dict(zip(self._inputs, inputs, strict=True))
        for step in self._steps:
            taken = {
                name: [known[t] for t in group] if isinstance(group, list) else known[group]
                for name, group in step.groups.items()
            }
            made = tf.nest.flatten(step.function(**taken, **step.attributes))
            known.update(zip(step.made, made, strict=True))
        return [known[name] for name in self._outputs]


def _flow(op: Any) -> Callable[..., list[Any]] | None:
    """Return what an operation does that calls functions, or None."""
    count = len(op.outputs)
    called = lambda name: Inline(function_graph(op.graph, op.get_attr(name).name), count)
    kind = op.type.removeprefix("Stateless").removeprefix("Stateful")
    if kind == "PartitionedCall":
        inner = called("f")
        return lambda args: inner(args)
    if kind == "If":
        then, other = called("then_branch"), called("else_branch")
        return lambda cond, input: (then if tf.cast(cond, tf.bool) else other)(input)
    if kind == "Case":
        branches = [Inline(function_graph(op.graph, branch.name), count) for branch in op.get_attr("branches")]
        choose = lambda i: branches[i] if 0 <= i < len(branches) else branches[-1]
        return lambda branch_index, input: choose(int(branch_index))(input)
    if kind == "While":
        goes_on, body = called("cond"), called("body")

        def loop(input: list[Any]) -> list[Any]:
            while tf.cast(goes_on(input)[0], tf.bool):
                input = body(input)
            return input

        return loop
    return None


def _step(op: Any, made: list[str]) -> _Step:
    flow, function = _flow(op), getattr(tf.raw_ops, op.type, None)
    if flow is not None:
        return _Step(flow, _groups(op, {}), {}, made)
    if function is None or op.type == "SymbolicGradient":
        raise _unknown(op)
    names = [name for name in inspect.signature(function).parameters if name != "name"]
    inputs, attributes = [a.name for a in op.op_def.input_arg], {a.name for a in op.op_def.attr}
    # Some operations name their inputs otherwise in Python, in the same order.
    renamed = [name for name in names if name not in inputs and name not in attributes]
    missing = [name for name in inputs if name not in names]
    if len(renamed) != len(missing):
        raise _unknown(op)
    groups = _groups(op, dict(zip(missing, renamed, strict=True)))
    return _Step(function, groups, {n: op.get_attr(n) for n in names if n not in groups}, made)


def _groups(op: Any, called: dict[Any, str]) -> dict[str, Any]:
    """Return the names of the tensors that each argument takes; ``called`` are arguments by other names."""
    rest, groups = [t.name for t in op.inputs], dict[str, Any]()
    for argument in op.op_def.input_arg:
        name = str(called.get(argument.name, argument.name))
        if argument.number_attr or argument.type_list_attr:
            size = op.get_attr(argument.number_attr or argument.type_list_attr)
            size = size if argument.number_attr else len(size)
            groups[name], rest = rest[:size], rest[size:]
        else:
            groups[name], rest = rest[0], rest[1:]
    return groups


def _unknown(op: Any) -> NotImplementedError:
    return NotImplementedError(
        f"f uses {op.type}, which is not among tf.raw_ops: to search it in a graph, its operations are run one by "
        "one. Integrate outside of tf.function"
    )
