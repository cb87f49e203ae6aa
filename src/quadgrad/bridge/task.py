"""A wrapped function as operators see it: many values at once, and products with many vectors.

Arrays carry ``lanes`` leading dimensions that all inputs and outputs share, one function value for each; vectors
may carry ``extra`` dimensions after these, several vectors for one function value. Everything here is NumPy.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch

from quadgrad._core.errors import BridgeError, BridgeWarning, warn
from quadgrad.bridge.contract import Array, Arrays, Spec, cut, warn_not_finite
from quadgrad.bridge.evaluation import Callee
from quadgrad.bridge.given import Flat, elementwise_products, pulled
from quadgrad.bridge.linearization import Counter, Learnt, Linearization, NoDerivativeError, OutsideError, floating
from quadgrad.bridge.options import Info, Options
from quadgrad.bridge.report import GIVEN, Pulled, gradient_error, report

__all__ = ["Task"]

REMEMBERED = 16
"""At how many inputs values and Jacobians are kept, if the memory allowed suffices; at the last one always."""
WHOLE, SAMPLE = 2**14, 64
"""Inputs of more bytes are looked up by so many of their numbers, then compared."""


@dataclass
class _Point:
    """A value of the function, and its linearizations with respect to some of the inputs."""

    inputs: Arrays
    outputs: Arrays
    linearizations: dict[tuple[int, ...], Linearization] = field(
        default_factory=dict[tuple[int, ...], Linearization]
    )
    size: int = 0

    def is_at(self, inputs: Arrays) -> bool:
        """Whether this is the point, to the last bit."""
        return all(map(_same, self.inputs, inputs))

    def release(self) -> None:
        """Let go of what refers to itself, and would stay until Python looks for circles of references."""
        for linearization in self.linearizations.values():
            linearization.release()

    def weigh(self) -> None:
        """Write down how many bytes it remembers, shared arrays counted once."""
        arrays = [*self.inputs, *self.outputs]
        for linearization in self.linearizations.values():
            arrays += linearization.arrays()
        self.size = sum({id(a): a.nbytes for a in arrays}.values())


class Task:
    """One function with its static arguments.

    Parameters
    ----------
    callee : Callee
    options : Options
    names : sequence of str
        Of the inputs.
    report : callable
        Receives after each vector-Jacobian product what returns its :class:`Info`: few ask. None while it lasts.
    """

    def __init__(
        self,
        callee: Callee,
        options: Options,
        names: Sequence[str],
        report: Callable[[Callable[[], Info] | None], None],
    ) -> None:
        self.callee = callee
        self.options = options
        self.names = names
        self.counter = Counter()
        self._report = report
        self._known: OrderedDict[Any, _Point] = OrderedDict()
        self._specs: dict[Any, tuple[Spec, ...]] = {}
        self._latest: tuple[list[Any], list[Any], int] | None = None
        self._learnt = Learnt()

    # ------------------------------------------------------------------------------------------ values

    def value(self, inputs: Sequence[Array], *, remember: bool) -> Arrays:
        """Return the outputs at one point."""
        computed = self._widened(inputs)
        outputs = self.callee.one(computed)
        self.counter.nfev += 1
        if (remember and not self._stateless) or self._known:
            self._notice(computed, outputs, remember)
        return self._given_back(inputs, outputs, 0)

    def values(self, lanes: int, inputs: Sequence[Array]) -> Arrays:
        """Return the outputs at many points."""
        shape = inputs[0].shape[:lanes]
        if 0 in shape:
            return tuple(np.zeros(shape + s.shape, s.dtype) for s in self.specs(_signature(inputs, lanes)))
        count = prod(shape)
        stacks = [x.reshape(count, *x.shape[lanes:]) for x in self._widened(inputs)]
        found = self.callee.many(stacks)
        self.counter.nfev += count
        if count <= REMEMBERED and not self._stateless:
            for i in range(count):
                self._notice(tuple(s[i, ...] for s in stacks), tuple(y[i, ...] for y in found), True)
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
        old = self._recall(inputs)
        if old is not None and all(map(_same, old.outputs, outputs)):
            return
        if old is not None:  # what is known elsewhere is of the function as it was
            self.forget()
        if old is not None or remember:
            self._keep(_Point(tuple(map(np.array, inputs)), tuple(map(np.array, outputs))))

    def _recall(self, inputs: Arrays) -> _Point | None:
        point = self._known.get(_key(inputs)) if self._known else None
        return point if point is not None and point.is_at(inputs) else None

    def _keep(self, point: _Point) -> _Point:
        key = _key(point.inputs)
        if self._known.get(key) is not point:
            self._known[key] = point
            self._trim()
        self._known.move_to_end(key)
        return point

    def _trim(self) -> None:
        """Forget the oldest points while there are too many, or they take too much memory; but not the last."""
        if not self._known:
            return
        next(reversed(self._known.values())).weigh()  # the others have not changed since they were last
        size, allowed = sum(point.size for point in self._known.values()), self.options.memory * 2.0**20
        while len(self._known) > 1 and (len(self._known) > REMEMBERED or size > allowed):
            oldest = self._known.popitem(last=False)[1]
            size -= oldest.size
            oldest.release()

    def linearize(self, inputs: Arrays, wanted: Sequence[int]) -> Linearization:
        """Return what is known at an input, evaluating the function there if nothing is."""
        inputs, chosen = self._widened(inputs), tuple(wanted)
        point = self._recall(inputs)
        if point is None:
            self.counter.nfev += 1
            point = _Point(tuple(map(np.array, inputs)), self.callee.one(inputs))
        self._keep(point)
        if chosen not in point.linearizations:
            point.linearizations[chosen] = self._linearization(point.inputs, point.outputs, chosen)
        return point.linearizations[chosen]

    def _linearization(self, inputs: Arrays, outputs: Arrays, chosen: tuple[int, ...]) -> Linearization:
        # Weakly: a circle of references would keep what is forgotten until Python looks for circles.
        return Linearization(
            self.callee, self.options, self.names, inputs, outputs, chosen, self.counter, self._learnt,
            partial(_linearize, weakref.ref(self), chosen),
        )  # fmt: skip

    def _first_order(self, inputs: Arrays, wanted: Sequence[int]) -> Linearization:
        """Return the linearization for first-order products: of derivatives that need no value, without one."""
        if not self._stateless:
            return self.linearize(inputs, wanted)
        inputs = self._widened(inputs)
        outputs = tuple(np.broadcast_to(np.zeros((), t), shape) for shape, t in self._like_outputs(inputs))
        return self._linearization(inputs, outputs, tuple(wanted))

    def _like_outputs(self, inputs: Arrays) -> Sequence[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return shapes and dtypes of the outputs, mostly those of the last call."""
        latest = self._latest
        if latest is None or latest[2] or latest[0] != [(x.shape, x.dtype) for x in inputs]:
            return self.specs(_signature(inputs, 0))
        return latest[1]

    @property
    def _stateless(self) -> bool:
        """Whether first derivatives are given and cost no more than the function: nothing is remembered then."""
        return self.options.derivative is not None or self.options.vjp is not None

    def forget(self) -> None:
        """Forget all values and Jacobians."""
        for point in self._known.values():
            point.release()
        self._known.clear()
        self._learnt.quiet.clear()

    # ------------------------------------------------------------------------------------------ products

    def vjp(
        self,
        wanted: Sequence[int],
        lanes: int,
        extra: int,
        inputs: Sequence[Array],
        cotangents: Sequence[Array],
        dtypes: Sequence[torch.dtype] | None = None,
    ) -> Arrays:
        """Return vector-Jacobian products, one for each wanted input.

        ``dtypes`` are those in which they are handed on, if not those of the inputs.
        """
        if self._stateless and not lanes + extra:
            found = self._given_at_once(wanted, self._widened(inputs), cotangents)
            if found is not None:
                self._report(lambda: GIVEN)
                return found
        # What is there to say of the last pass keeps all that was known there, as much again as this one needs.
        self._report(None)
        before, seen = self.counter.nfev, list[Pulled]()
        kinds = dtypes or [torch.from_numpy(np.zeros(0, inputs[i].dtype)).dtype for i in wanted]

        def pull(point: Linearization, rows: Array) -> Array:
            found = point.pull(rows)
            if point.options.given is None:
                seen.append(Pulled(point, point.problem, gradient_error(point, rows, found, kinds)))
            else:
                seen.append(Pulled(point, None, []))
            return found

        found = self._over_lanes(wanted, lanes, extra, inputs, [cotangents], pull, self._first_order, "inputs")
        self._report(partial(report, seen, inputs[0].shape[:lanes], self.counter.nfev - before))
        self._trim()
        return found

    def _given_at_once(self, wanted: Sequence[int], inputs: Arrays, cotangents: Sequence[Array]) -> Arrays | None:
        """Return what a derivative that is given makes of one cotangent, where nothing is to be flat on the way."""
        specs = self._like_outputs(inputs)
        if not all(a.size for a in (*inputs, *cotangents)):
            return None
        if self.options.derivative is not None:
            if len(specs) > 1 or any(x.shape != specs[0][0] for x in inputs):
                return None
            callee = self.callee.about("derivative", Flat(self.options.derivative))
            return tuple(elementwise_products(callee, inputs, cotangents[0], wanted))
        assert self.options.vjp is not None
        vectors = [
            (g if t.kind == "c" else np.real(g)).astype(t, copy=False)
            for g, (_, t) in zip(cotangents, specs, strict=True)
        ]
        return tuple(pulled(self.callee.about("vjp", self.options.vjp), inputs, vectors, wanted))

    def gradient_error(
        self,
        wanted: Sequence[int],
        inputs: Sequence[Array],
        cotangents: Sequence[Array],
        dtypes: Sequence[torch.dtype],
    ) -> list[Array] | None:
        """Return how wrong a vector-Jacobian product is by each wanted input; None if derivatives are given."""
        if self.options.given is not None:
            return None
        rows = _flat(cotangents, 1)
        try:
            point = self._first_order(tuple(inputs), wanted)
            return gradient_error(point, rows, point.pull(rows), dtypes)
        except (NoDerivativeError, OutsideError):
            return [np.full(inputs[i].shape, np.inf) for i in wanted]

    def jvp(
        self, wanted: Sequence[int], lanes: int, extra: int, inputs: Sequence[Array], tangents: Sequence[Array]
    ) -> Arrays:
        """Return Jacobian-vector products, one for each output."""
        return self._over_lanes(
            wanted, lanes, extra, inputs, [tangents], Linearization.push, self._first_order, "outputs"
        )

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
            wanted,
            lanes,
            extra,
            inputs,
            [cotangents, tangents],
            Linearization.second_pull,
            self.linearize,
            "inputs",
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
        return self._over_lanes(
            wanted, lanes, extra, inputs, [first, second], Linearization.second_push, self.linearize, "outputs"
        )

    def _over_lanes(
        self,
        wanted: Sequence[int],
        lanes: int,
        extra: int,
        inputs: Sequence[Array],
        vectors: Sequence[Sequence[Array]],
        multiply: Callable[..., Array],
        linearize: Callable[[Arrays, Sequence[int]], Linearization],
        like: str,
    ) -> Arrays:
        """Apply a product of flat vectors in each lane."""
        lane_shape = inputs[0].shape[:lanes]
        extra_shape = vectors[0][0].shape[lanes : lanes + extra] if vectors[0] else ()
        count = prod(extra_shape)
        if like == "inputs":
            shapes = [inputs[i].shape[lanes:] for i in wanted]
        else:
            shapes = [spec.shape for spec in self.specs(_signature(inputs, lanes))]
        sizes = [prod(shape) for shape in shapes]
        rows: list[Array] = []
        lost: list[tuple[tuple[int, ...], Exception]] = []
        for index in product(*map(range, lane_shape)):
            at = (*index, ...)
            flat = [_flat([v[at] for v in group], count) for group in vectors]
            if any(rows.shape[1] == 0 for rows in flat) or not sum(sizes):
                # Of nothing, or with respect to nothing: no method has a step to take.
                rows.append(np.zeros((count, sum(sizes))))
                continue
            try:
                rows.append(multiply(linearize(tuple(x[at] for x in inputs), wanted), *flat))
            except (NoDerivativeError, OutsideError) as error:
                lost.append((index, error))
                rows.append(np.full((count, sum(sizes)), np.nan))
        if lost:
            self._warn_lost(lost, len(rows))
        if not rows:
            return tuple(np.zeros((*lane_shape, *extra_shape, *shape)) for shape in shapes)
        table = rows[0] if len(rows) == 1 else np.stack(rows)
        parts = zip(cut(table, sizes), shapes, strict=True)
        return tuple(p.reshape((*lane_shape, *extra_shape, *shape)) for p, shape in parts)

    def _warn_lost(self, lost: Sequence[tuple[tuple[int, ...], Exception]], count: int) -> None:
        """Warn of lanes that have no derivative; raise if none has one."""
        index, error = lost[0]
        if len(lost) == count:
            raise error
        warn(
            f"{error}. This is lane {list(index)}, and {len(lost)} of {count} lanes are such: their derivatives "
            "are NaN",
            BridgeWarning,
        )


def _linearize(task: weakref.ref[Task], wanted: tuple[int, ...], inputs: Arrays) -> Linearization:
    """Return the linearization at another input."""
    alive = task()
    assert alive is not None
    return alive.linearize(inputs, wanted)


def _flat(vectors: Sequence[Array], count: int) -> Array:
    """Return vectors side by side, ``(count, size)``."""
    rows = [v.reshape(count, -1) if v.size else np.zeros((count, 0)) for v in vectors]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays are the same to the last bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.nbytes > WHOLE and a.flags.c_contiguous and b.flags.c_contiguous:
        return bool(np.array_equal(a.reshape(-1).view(np.uint32), b.reshape(-1).view(np.uint32)))
    return a.tobytes() == b.tobytes()


def _key(inputs: Sequence[Array]) -> Any:
    return tuple((x.dtype.char, x.shape, _sample(x).tobytes()) for x in inputs)


def _sample(x: Array) -> Array:
    return x if x.nbytes <= WHOLE else x.reshape(-1)[:: max(1, x.size // SAMPLE)]


def _signature(inputs: Sequence[Array], lanes: int) -> tuple[Spec, ...]:
    return _specs([(x.shape, x.dtype) for x in inputs], lanes)


def _specs(given: Sequence[tuple[tuple[int, ...], Any]], lanes: int) -> tuple[Spec, ...]:
    return tuple(Spec(shape[lanes:], dtype) for shape, dtype in given)
