"""A traced function run operation by operation, in the thread that calls it.

A search in a graph holds a thread of the pool in which TensorFlow runs operations, and a function that it calls
asks the pool for another: on one core it would wait for itself for ever, on busy ones each call waits for its turn.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from quadgrad.tensorflow._framework import tf

__all__ = ["Inline"]

_ELSEWHERE = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase", "SymbolicGradient"}


@dataclass(frozen=True)
class _Step:
    """One operation: the names of the tensors it takes, in groups by argument, and of those that it makes."""

    function: Any
    groups: dict[str, Any]
    attributes: dict[str, Any]
    made: list[str]


class Inline:
    """The operations of a concrete function, in order."""

    def __init__(self, concrete: Any, steps: list[_Step], constants: dict[str, Any]) -> None:
        self._inputs = [t.name for t in concrete.inputs]
        self._output = concrete.outputs[0].name
        self._steps, self._protos = steps, constants
        self._constants: dict[str, Any] | None = None

    @staticmethod
    def of(concrete: Any) -> Inline | None:
        """Return a function's operations, or None if it calls functions or branches: TensorFlow has to run it."""
        wanted, steps, constants = {concrete.outputs[0].name}, list[_Step](), dict[str, Any]()
        for op in reversed(concrete.graph.get_operations()):
            made = [t.name for t in op.outputs]
            if wanted.isdisjoint(made) or op.type == "Placeholder":
                continue
            if op.type == "Const":
                constants[made[0]] = op.get_attr("value")
                continue
            step = _step(op, made)
            if step is None:
                return None
            steps.append(step)
            wanted.update(t.name for t in op.inputs)
        return Inline(concrete, steps[::-1], constants)

    def __call__(self, inputs: list[Any]) -> Any:
        """Return the output for these inputs, captures among them."""
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
        return known[self._output]


def _step(op: Any, made: list[str]) -> _Step | None:
    function = getattr(tf.raw_ops, op.type, None)
    if function is None or op.type in _ELSEWHERE or "PartitionedCall" in op.type:
        return None
    names = [name for name in inspect.signature(function).parameters if name != "name"]
    inputs, attributes = [a.name for a in op.op_def.input_arg], {a.name for a in op.op_def.attr}
    # Some operations name their inputs otherwise in Python, in the same order.
    renamed = [name for name in names if name not in inputs and name not in attributes]
    missing = [name for name in inputs if name not in names]
    if len(renamed) != len(missing):
        return None
    called = dict(zip(missing, renamed, strict=True))
    rest, groups = [t.name for t in op.inputs], dict[str, Any]()
    for argument in op.op_def.input_arg:
        name = str(called.get(argument.name, argument.name))
        if argument.number_attr or argument.type_list_attr:
            size = op.get_attr(argument.number_attr or argument.type_list_attr)
            size = size if argument.number_attr else len(size)
            groups[name], rest = rest[:size], rest[size:]
        else:
            groups[name], rest = rest[0], rest[1:]
    return _Step(function, groups, {n: op.get_attr(n) for n in names if n not in groups}, made)
