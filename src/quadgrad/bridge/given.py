"""Derivatives the user gives: elementwise, as a Jacobian, or as products; brought into one form and checked.

It knows nothing of differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from quadgrad._core.errors import BridgeError
from quadgrad.bridge.contract import Array, Arrays, add_input_note
from quadgrad.bridge.evaluation import INPUT, Callee, copied
from quadgrad.bridge.structure import Jacobian, Structure

__all__ = ["Flat", "elementwise_jacobian", "elementwise_products", "full_jacobian", "given_product", "pulled"]


def elementwise_jacobian(
    callee: Callee, inputs: Sequence[Array], outputs: Sequence[Array], which: Sequence[int]
) -> Jacobian:
    """Return the Jacobian from derivatives with the shape of the outputs.

    ``callee`` calls the derivative, a :class:`Flat`; it returns one for each floating input, for several outputs a
    tuple of these. ``which`` says which inputs are wanted.
    """
    shapes = [y.shape for y in outputs]
    rows: list[Array] = []
    for parts in _elementwise(callee, inputs, shapes, which):
        spread = [np.broadcast_to(part, shape).ravel() for part, shape in zip(parts, shapes, strict=True)]
        rows.append(spread[0] if len(spread) == 1 else np.concatenate(spread))
    whole = np.broadcast_shapes(*(x.shape for x in inputs))
    structure = Structure.elementwise(tuple(inputs[i].shape for i in which), tuple(shapes), whole)
    return Jacobian(structure, rows[0][None] if len(rows) == 1 else np.stack(rows), None)


def elementwise_products(
    callee: Callee, inputs: Sequence[Array], cotangent: Array, which: Sequence[int]
) -> list[Array]:
    """Return the gradients of the only output, which has the shape of every input, for one cotangent."""
    found = _elementwise(callee, inputs, [cotangent.shape], which)
    return [_product(part, cotangent) for (part,) in found]


def _product(part: Array, cotangent: Array) -> Array:
    """Return the real part of a derivative's conjugate times a cotangent, in the memory of the derivative."""
    if part.dtype.kind == "c" or cotangent.dtype.kind == "c":
        return np.real(np.conj(part) * cotangent)
    fits = part.flags.writeable and part.dtype == cotangent.dtype and part.shape == cotangent.shape
    return np.multiply(part, cotangent, out=part if fits else None)


def _elementwise(
    callee: Callee, inputs: Sequence[Array], shapes: Sequence[tuple[int, ...]], which: Sequence[int]
) -> list[Arrays]:
    """Return the derivatives by each input of ``which``, one for each output."""
    floats = [i for i, x in enumerate(inputs) if x.dtype.kind == "f"]
    found, count = callee.one(inputs), len(floats)
    if len(found) != count * len(shapes):
        raise BridgeError(_wrong_number(callee.name, len(found), len(shapes), count))
    columns = [found[floats.index(i) :: count] for i in which]
    for part, shape in ((part, shape) for column in columns for part, shape in zip(column, shapes, strict=True)):
        if part.shape != shape and np.broadcast_shapes(part.shape, shape) != shape:
            raise BridgeError(
                f"{callee.name} returned shape {part.shape}; an elementwise derivative has the output's shape, "
                f"{shape}. A matrix of derivatives is given as jacobian="
            )
    return columns


def full_jacobian(
    callee: Callee, inputs: Sequence[Array], outputs: Sequence[Array], which: Sequence[int]
) -> Jacobian:
    """Return the Jacobian from arrays of shape ``batch + output + input``.

    ``callee`` calls what returns them, a :class:`Flat`. The number of leading dimensions that outputs and inputs
    share as a batch follows from the number of dimensions: with none the array has those of the output followed by
    those of the input.
    """
    found = callee.one(inputs)
    floats = [i for i, x in enumerate(inputs) if np.issubdtype(x.dtype, np.floating)]
    count = len(floats)
    if len(found) != count * len(outputs):
        raise BridgeError(_wrong_number(callee.name, len(found), len(outputs), count))
    rows: list[Array] = []
    values: list[Array] = []
    colour: list[Array] = []
    offset = groups = 0
    for i in which:
        shape, k = inputs[i].shape, floats.index(i)
        parts = [
            _grouped(part, y.shape, shape, callee.name) for part, y in zip(found[k::count], outputs, strict=True)
        ]
        if len({own.shape[0] for _, own in parts}) > 1:
            raise BridgeError(f"{callee.name}: all outputs must share the same batch dimensions with input {i}")
        values.append(np.concatenate([value for value, _ in parts], axis=1))
        rows.append(offset + np.concatenate([own for _, own in parts], axis=1))
        core = values[-1].shape[0]
        colour.append(groups + np.arange(inputs[i].size) % max(1, core))
        offset, groups = offset + inputs[i].size, groups + core
    structure = Structure(np.concatenate(colour), np.concatenate(rows), values[0].shape[1])
    return Jacobian(_as_dense(structure), np.concatenate(values), None)


def _grouped(part: Array, output: tuple[int, ...], given: tuple[int, ...], name: str) -> tuple[Array, Array]:
    """Return a Jacobian as ``(core inputs, outputs)``, and which input each entry belongs to."""
    batch = len(output) + len(given) - part.ndim
    fits = 0 <= batch <= min(len(output), len(given)) and output[:batch] == given[:batch]
    if not fits or part.shape != output + given[batch:]:
        raise BridgeError(
            f"{name} returned shape {part.shape}; for an output of shape {output} and an input of shape {given} it "
            f"is {output + given}, or without the input's leading dimensions where it is one Jacobian for each "
            "element of a batch"
        )
    core, size = prod(given[batch:]), prod(output)
    lanes = prod(given[:batch])
    value = part.reshape(size, core).T
    element = np.repeat(np.arange(lanes), size // max(1, lanes))
    return value, element * core + np.arange(core)[:, None]


def _as_dense(structure: Structure) -> Structure:
    """Recognise a structure in which every output depends on every input."""
    if structure.groups == structure.colour.size:
        return Structure.dense(structure.groups, structure.outputs)
    return structure


def pulled(
    callee: Callee, inputs: Sequence[Array], cotangents: Sequence[Array], which: Sequence[int]
) -> list[Array]:
    """Return what the user's vjp makes of one cotangent for each output, for the inputs ``which``."""
    found = given_product(callee, inputs, cotangents, [x.shape for x in inputs], "input", which)
    return [np.real(a) if a.dtype.kind == "c" else a for a in found]


def given_product(
    callee: Callee,
    inputs: Sequence[Array],
    vectors: Sequence[Array],
    shapes: Sequence[tuple[int, ...]],
    what: str,
    which: Sequence[int] | None = None,
) -> list[Array]:
    """Call the user's vjp or jvp; return float64 or complex128 arrays of the given shapes, those of ``which`` only.

    ``vectors`` come last among its arguments, as one array or, if there are several, as a tuple.
    """
    last = np.array(vectors[0]) if len(vectors) == 1 else tuple(map(np.array, vectors))
    values = iter(inputs)
    filled = [np.array(next(values)) if slot is INPUT else slot for slot in callee.slots]
    try:
        result = copied(callee.fn(*filled, last))
    except Exception as error:
        add_input_note(error, [*inputs, *vectors], callee.name)
        raise
    parts = result if isinstance(result, tuple) else (result,)
    if len(parts) != len(shapes):
        raise BridgeError(
            f"{callee.name} returned {len(parts)} arrays; expected {len(shapes)}, one for each {what}"
        )
    arrays: list[Array] = []
    for place, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        if which is not None and place not in which:
            continue
        array = np.zeros(shape) if part is None else np.asarray(part)
        if array.shape != shape:
            raise BridgeError(
                f"{callee.name} returned shape {array.shape} for {what} {place}; expected {shape}, that of the "
                f"{what}"
            )
        arrays.append(array.astype(np.result_type(array, np.float64), copy=False))
    return arrays


class Flat:
    """A function whose nested tuples are flattened."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it."""
        result = self.fn(*arguments, **keywords)
        return tuple(_leaves(result)) if isinstance(result, tuple) else result


def _leaves(result: Any) -> Arrays:
    if not isinstance(result, tuple):
        return (result,)
    return tuple(leaf for part in result for leaf in _leaves(part))


def _wrong_number(name: str, found: int, outputs: int, inputs: int) -> str:
    return (
        f"{name} returned {found} arrays; expected {outputs * inputs}: for each of {outputs} outputs one for "
        f"each of "
        f"{inputs} inputs"
    )
