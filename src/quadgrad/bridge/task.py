"""A wrapped function as operators see it: many values at once, and products with many vectors.

Arrays carry ``lanes`` leading dimensions that all inputs and outputs share, one function value for each; vectors
may carry ``extra`` dimensions after these, several vectors for one function value. Everything here is NumPy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from quadgrad._core.errors import BridgeError
from quadgrad.bridge.contract import Array, Arrays, Spec, warn_not_finite
from quadgrad.bridge.evaluation import Callee
from quadgrad.bridge.linearization import Counter, Linearization, floating
from quadgrad.bridge.options import Info, Options

__all__ = ["Task"]

REMEMBERED = 16
"""At how many inputs values and Jacobians are kept."""


@dataclass(frozen=True)
class _Point:
    """A value of the function, and its linearizations with respect to some of the inputs."""

    inputs: Arrays
    outputs: Arrays
    linearizations: dict[tuple[int, ...], Linearization] = field(
        default_factory=dict[tuple[int, ...], Linearization]
    )


class Task:
    """One function with its static arguments.

    Parameters
    ----------
    callee : Callee
    options : Options
    names : sequence of str
        Of the inputs.
    report : callable
        Receives an :class:`Info` after each vector-Jacobian product.
    """

    def __init__(
        self, callee: Callee, options: Options, names: Sequence[str], report: Callable[[Info], None]
    ) -> None:
        self.callee = callee
        self.options = options
        self.names = names
        self.counter = Counter()
        self._report = report
        self._known: OrderedDict[Any, _Point] = OrderedDict()
        self._specs: dict[Any, tuple[Spec, ...]] = {}
        self._latest: tuple[list[Any], list[Any], int] | None = None
        self._refusals: dict[object, str | None] = {}

    # ------------------------------------------------------------------------------------------ values

    def value(self, inputs: Sequence[Array], *, remember: bool) -> Arrays:
        """Return the outputs at one point."""
        computed = self._widened(inputs)
        outputs = self.callee.one(computed)
        self.counter.nfev += 1
        if remember or self._known:
            self._notice(computed, outputs, remember)
        return self._given_back(inputs, outputs, 0)

    def values(self, lanes: int, inputs: Sequence[Array]) -> Arrays:
        """Return the outputs at many points."""
        shape = inputs[0].shape[:lanes]
        if 0 in shape:
            return tuple(np.zeros(shape + s.shape, s.dtype) for s in self.specs(_signature(inputs, lanes)))
        stacks = [x.reshape(-1, *x.shape[lanes:]) for x in self._widened(inputs)]
        found = self.callee.many(stacks)
        count = len(stacks[0])
        self.counter.nfev += count
        if count <= REMEMBERED:
            for i in range(count):
                self._notice(tuple(s[i] for s in stacks), tuple(y[i] for y in found), True)
        outputs = tuple(y.reshape(shape + y.shape[1:]) for y in found)
        return self._given_back(inputs, outputs, lanes)

    def _given_back(self, inputs: Sequence[Array], outputs: Arrays, lanes: int) -> Arrays:
        """Return checked outputs as the caller gets them."""
        if self.callee.scalars:  # numbers have no dtype of their own: theirs is that of the inputs
            which = floating(inputs)
            real = np.result_type(*(inputs[i] for i in which)) if which else np.dtype(np.float64)
            outputs = tuple(
                y.astype(real if y.dtype.kind == "f" else np.result_type(real, np.complex64)) for y in outputs
            )
        if self.options.out_shape is not None:
            self._refuse_other_shapes(_signature(inputs, lanes), _signature(outputs, lanes))
        # Not entered into the table of specs yet, which takes longer: few will ask.
        self._latest = [(x.shape, x.dtype) for x in inputs], [(y.shape, y.dtype) for y in outputs], lanes
        warn_not_finite(outputs, inputs, self.callee.name)
        return outputs

    def _widened(self, inputs: Sequence[Array]) -> Arrays:
        """Return inputs in the precision of the computation: numbers are float64 in Python."""
        if not self.callee.scalars:
            return tuple(inputs)
        return tuple(x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x for x in inputs)

    def _refuse_other_shapes(self, signature: Any, found: Sequence[Spec]) -> None:
        declared = self.options.output_shapes([spec.shape for spec in signature])
        if declared is not None and declared != tuple(spec.shape for spec in found):
            raise BridgeError(
                f"{self.callee.name} returned shape {' and '.join(str(s.shape) for s in found)}; "
                f"out_shape says {' and '.join(map(str, declared))}"
            )

    def specs(self, signature: tuple[Spec, ...]) -> tuple[Spec, ...]:
        """Return shape and dtype of the outputs for inputs like these, without data: for compilers.

        They are known from an earlier call, from ``out_shape``, or found by calling the function with ones.
        """
        if self._latest is not None:
            inputs, outputs, lanes = self._latest
            self._specs[_specs(inputs, lanes)] = _specs(outputs, lanes)
            self._latest = None
        if signature not in self._specs:
            declared = self.options.output_shapes([spec.shape for spec in signature])
            if declared is not None:
                kinds = [spec.dtype for spec in signature if np.issubdtype(spec.dtype, np.floating)]
                dtype = np.result_type(*kinds) if kinds else np.dtype(np.float64)
                return tuple(Spec(shape, dtype) for shape in declared)
            inputs = [self._stand_in(i, spec) for i, spec in enumerate(signature)]
            self._specs[signature] = _signature(self.value(inputs, remember=False), 0)
        return self._specs[signature]

    def _stand_in(self, position: int, spec: Spec) -> Array:
        lower, upper = self.options.limits(position, self.names[position], spec.shape)
        with np.errstate(invalid="ignore"):
            middle = 0.5 * (lower + upper)
        inside = np.where(np.isfinite(middle), middle, np.clip(1.0, lower, upper))
        return inside.reshape(spec.shape).astype(spec.dtype)

    # ------------------------------------------------------------------------------------------ points

    def _notice(self, inputs: Arrays, outputs: Arrays, remember: bool) -> None:
        """Remember a value; forget what was known where the function has changed."""
        key = _key(inputs)
        old = self._known.get(key)
        if old is not None and all(a.tobytes() == b.tobytes() for a, b in zip(old.outputs, outputs, strict=False)):
            return
        if old is not None:  # what is known elsewhere is of the function as it was
            self._known.clear()
        if old is not None or remember:
            self._keep(key, _Point(tuple(map(np.array, inputs)), tuple(map(np.array, outputs))))

    def _keep(self, key: Any, point: _Point) -> _Point:
        self._known[key] = point
        self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return point

    def linearize(self, inputs: Arrays, wanted: Sequence[int]) -> Linearization:
        """Return what is known at an input, evaluating the function there if nothing is."""
        inputs, chosen = self._widened(inputs), tuple(wanted)
        key = _key(inputs)
        point = self._known.get(key)
        if point is None:
            self.counter.nfev += 1
            point = _Point(tuple(map(np.array, inputs)), self.callee.one(inputs))
        self._keep(key, point)
        if chosen not in point.linearizations:
            point.linearizations[chosen] = Linearization(
                self.callee, self.options, self.names, point.inputs, point.outputs, chosen, self.counter,
                self._refusals, partial(self.linearize, wanted=chosen),
            )  # fmt: skip
        return point.linearizations[chosen]

    def forget(self) -> None:
        """Forget all values and Jacobians."""
        self._known.clear()

    # ------------------------------------------------------------------------------------------ products

    def vjp(
        self, wanted: Sequence[int], lanes: int, extra: int, inputs: Sequence[Array], cotangents: Sequence[Array]
    ) -> Arrays:
        """Return vector-Jacobian products, one for each wanted input."""
        before, seen = self.counter.nfev, list[tuple[Linearization, Array]]()

        def pull(point: Linearization, rows: Array) -> Array:
            seen.append((point, rows))
            return point.pull(rows)

        found = self._over_lanes(wanted, lanes, extra, inputs, [cotangents], pull, "inputs")
        self._report(_info(seen, inputs[0].shape[:lanes], self.counter.nfev - before))
        return found

    def jvp(
        self, wanted: Sequence[int], lanes: int, extra: int, inputs: Sequence[Array], tangents: Sequence[Array]
    ) -> Arrays:
        """Return Jacobian-vector products, one for each output."""
        return self._over_lanes(wanted, lanes, extra, inputs, [tangents], Linearization.push, "outputs")

    def second_vjp(
        self,
        wanted: Sequence[int],
        lanes: int,
        extra: int,
        inputs: Sequence[Array],
        cotangents: Sequence[Array],
        tangents: Sequence[Array],
    ) -> Arrays:
        """Return derivatives of vector-Jacobian products along tangents, one for each wanted input."""
        return self._over_lanes(
            wanted, lanes, extra, inputs, [cotangents, tangents], Linearization.second_pull, "inputs"
        )

    def second_jvp(
        self,
        wanted: Sequence[int],
        lanes: int,
        extra: int,
        inputs: Sequence[Array],
        first: Sequence[Array],
        second: Sequence[Array],
    ) -> Arrays:
        """Return second derivatives along pairs of directions, one for each output."""
        return self._over_lanes(wanted, lanes, extra, inputs, [first, second], Linearization.second_push, "outputs")

    def _over_lanes(
        self,
        wanted: Sequence[int],
        lanes: int,
        extra: int,
        inputs: Sequence[Array],
        vectors: Sequence[Sequence[Array]],
        product: Callable[..., Array],
        like: str,
    ) -> Arrays:
        """Apply a product of flat vectors in each lane."""
        lane_shape = inputs[0].shape[:lanes]
        extra_shape = vectors[0][0].shape[lanes : lanes + extra] if vectors[0] else ()
        count = int(np.prod(extra_shape))
        rows: list[list[Array]] = []
        for index in np.ndindex(*lane_shape):
            point = self.linearize(tuple(x[index] for x in inputs), wanted)
            flat = [np.concatenate([np.reshape(v[index], (count, -1)) for v in group], axis=1) for group in vectors]
            arrays = [point.inputs[i] for i in point.wanted] if like == "inputs" else list(point.outputs)
            if any(sum(each.size for each in side) == 0 for side in (point.outputs, [inputs[i] for i in wanted])):
                # Of nothing, or with respect to nothing: no method has a step to take.
                found = np.zeros((count, sum(a.size for a in arrays)))
            else:
                found = product(point, *flat)
            ends = np.cumsum([a.size for a in arrays])[:-1]
            parts = np.split(found, ends, axis=1)
            rows.append([p.reshape(extra_shape + a.shape) for p, a in zip(parts, arrays, strict=True)])
        return tuple(np.stack(column).reshape(lane_shape + column[0].shape) for column in zip(*rows, strict=True))


def _key(inputs: Sequence[Array]) -> Any:
    return tuple((x.dtype.char, x.shape, x.tobytes()) for x in inputs)


def _signature(inputs: Sequence[Array], lanes: int) -> tuple[Spec, ...]:
    return _specs([(x.shape, x.dtype) for x in inputs], lanes)


def _specs(given: Sequence[tuple[tuple[int, ...], Any]], lanes: int) -> tuple[Spec, ...]:
    return tuple(Spec(shape[lanes:], dtype) for shape, dtype in given)


def _info(seen: Sequence[tuple[Linearization, Array]], lane_shape: tuple[int, ...], nfev: int) -> Info:
    """Return what a backward pass found, over all lanes."""
    if not seen:
        return Info("none", nfev, None, None, None)
    first = seen[0][0]
    if first.options.given is not None:
        return Info("given", nfev, None, None, None)
    by_output = [_cut(point.jacobian.output_error(), point.outputs) for point, _ in seen]
    by_input = [_cut(_worst(point, rows), [point.inputs[i] for i in point.wanted]) for point, rows in seen]
    stack = lambda columns: tuple(
        np.stack(column).reshape(lane_shape + column[0].shape) for column in zip(*columns, strict=True)
    )
    note = first.complex_refusal or "" if first.options.method == "auto" else ""
    return Info(first.method, nfev, first.problem.roughness, stack(by_output), stack(by_input), note)


def _worst(point: Linearization, rows: Array) -> Array | None:
    error = point.jacobian.pull_error(rows)
    return None if error is None else error.max(axis=0, initial=0.0)


def _cut(flat: Array | None, arrays: Sequence[Array]) -> list[Array]:
    assert flat is not None
    parts = np.split(flat, np.cumsum([a.size for a in arrays])[:-1])
    return [p.reshape(a.shape) for p, a in zip(parts, arrays, strict=True)]
