"""A wrapped function at one input: its Jacobian, products with it, and second-order products.

Vectors are flat here: tangents ``(e, n)`` over all wanted inputs, cotangents ``(e, m)`` over all outputs. It knows
nothing of tensors and lanes; :mod:`quadgrad.bridge.task` keeps linearizations and hands them out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from quadgrad._core.errors import BridgeError, BridgeWarning, warn
from quadgrad.bridge.complex_step import complex_direction, complex_jacobian, refusal, tracer
from quadgrad.bridge.contract import Array, Arrays, Spec, all_finite, cut, specs_of
from quadgrad.bridge.differences import Found, differentiate, directional, fixed_steps, slope_along
from quadgrad.bridge.evaluation import Callee
from quadgrad.bridge.given import Flat, elementwise_jacobian, full_jacobian, given_product, pulled
from quadgrad.bridge.glance import Quiet, glance
from quadgrad.bridge.lazy import lazy
from quadgrad.bridge.noise import with_noise
from quadgrad.bridge.options import Options
from quadgrad.bridge.problem import SMALL, Problem, along, scales
from quadgrad.bridge.spsa import SAMPLES, SampledJacobian, sample_jacobian
from quadgrad.bridge.structure import Jacobian, Structure

__all__ = ["Counter", "Learnt", "Linearization", "NoDerivativeError", "OutsideError", "floating"]


class OutsideError(ValueError):
    """A point outside the bounds."""


class NoDerivativeError(BridgeError):
    """A point with no domain around it."""


def floating(inputs: Sequence[Array]) -> list[int]:
    """Return which inputs can be differentiated."""
    return [i for i, x in enumerate(inputs) if np.issubdtype(x.dtype, np.floating)]


@dataclass
class Counter:
    """Counts evaluations."""

    nfev: int = 0


@dataclass(frozen=True)
class Learnt:
    """What one point of a function taught about others.

    Attributes
    ----------
    refusals : dict
        Why the complex step is wrong, by dtypes and shapes of inputs.
    quiet : dict
        How noisy the function was, by the inputs that move and the dtypes of all.
    """

    refusals: dict[object, str | None] = field(default_factory=dict[object, "str | None"])
    quiet: dict[object, Quiet] = field(default_factory=dict[object, Quiet])


@dataclass
class Linearization:
    """The function around one input.

    Attributes
    ----------
    callee, options
        What is called, and how it is differentiated.
    names : sequence of str
        The inputs' names, by which bounds are found.
    inputs, outputs : tuple of array
        The point.
    wanted : tuple of int
        With respect to which inputs; the others are constants.
    counter : Counter
    learnt : Learnt
        Shared by all points of a function.
    neighbour : callable
        Returns the linearization at other inputs.
    """

    callee: Callee
    options: Options
    names: Sequence[str]
    inputs: Arrays
    outputs: Arrays
    wanted: tuple[int, ...]
    counter: Counter
    learnt: Learnt
    neighbour: Callable[[Arrays], Linearization] = field(repr=False)

    # ---------------------------------------------------------------------------------------- the point

    @lazy
    def x(self) -> Array:
        """The wanted inputs, flat."""
        return self._joined([self.inputs[i] for i in self.wanted])

    @lazy
    def value(self) -> Array:
        """The outputs, flat."""
        return self._joined(self.outputs)

    def _joined(self, arrays: Sequence[Array]) -> Array:
        """Return arrays as one flat float64 or complex128 array."""
        parts = [a.ravel() for a in arrays]
        if len(parts) == 1:
            return parts[0].astype(np.result_type(parts[0], np.float64), copy=False)
        joined = np.concatenate(parts) if parts else np.zeros(0)
        return joined.astype(np.result_type(joined, np.float64))

    def arrays(self) -> list[Array]:
        """Return the arrays that are remembered here, apart from inputs and outputs."""
        found: list[Array] = []
        for name in ("x", "value", "quiet_problem", "problem", "steered", "_found", "jacobian", "smooth_jacobian"):
            kept = self.__dict__.get(name)
            parts = (
                [kept] if isinstance(kept, np.ndarray) else list(vars(kept).values()) if kept is not None else []
            )
            found += [part for part in parts if isinstance(part, np.ndarray)]
        return found

    def release(self) -> None:
        """Let go of the problems, which hold on to this object."""
        for name in ("quiet_problem", "problem", "steered"):
            self.__dict__.pop(name, None)

    def split(self, flat: Array) -> list[Array]:
        """Return ``(k, n)`` as one array for each wanted input, ``(k, *shape)`` in its dtype."""
        parts = cut(flat, [self.inputs[i].size for i in self.wanted])
        return [
            part.reshape(len(flat), *self.inputs[i].shape).astype(
                _with_precision(self.inputs[i].dtype, part), copy=False
            )
            for i, part in zip(self.wanted, parts, strict=True)
        ]

    def _placed(self, moved: Sequence[Array], count: int) -> list[Array]:
        """Return stacks of all inputs: the wanted ones moved, the others repeated."""
        places = dict(zip(self.wanted, moved, strict=True))
        return [
            places[i] if i in places else np.broadcast_to(x, (count, *x.shape)) for i, x in enumerate(self.inputs)
        ]

    def evaluate(self, points: Array) -> Array:
        """Return outputs ``(k, m)`` at points ``(k, n)``, real or complex."""
        self.counter.nfev += len(points)
        expected = None if np.iscomplexobj(points) else specs_of(self.outputs)
        found = self.callee.many(self._placed(self.split(points), len(points)), expected)
        if expected is None:
            self._refuse_other_shapes(found)
        if len(found) == 1:
            flat = found[0].reshape(len(points), -1)
            return flat.astype(np.result_type(flat, np.float64), copy=False)
        return np.concatenate([y.reshape(len(points), -1) for y in found], axis=1)

    def _evaluate_some(self, points: Array, chosen: Array) -> Array:
        """Return outputs ``(k, elements)`` of some elements only; inputs and the only output have one shape."""
        count, size = len(points), self.value.size
        self.counter.nfev += -(-count * chosen.size // size)
        moved = points.reshape(count, len(self.wanted), chosen.size)
        stacks = [
            np.broadcast_to(np.broadcast_to(x, self._broadcast_shape).reshape(-1)[chosen], (count, chosen.size))
            for x in self.inputs
        ]
        for k, i in enumerate(self.wanted):
            stacks[i] = moved[:, k].astype(self.inputs[i].dtype, copy=False)
        found = self.callee.many(stacks, [Spec((chosen.size,), y.dtype) for y in self.outputs])
        return found[0].astype(np.result_type(found[0], np.float64), copy=False)

    def _refuse_other_shapes(self, found: Arrays) -> None:
        """Raise where outputs at complex points have other shapes: bits read as numbers are twice as many."""
        shapes, known = [y.shape[1:] for y in found], [y.shape for y in self.outputs]
        if shapes != known:
            raise BridgeError(
                f"{self.callee.name} returned shape {' and '.join(map(str, shapes))} for complex inputs, "
                f"{' and '.join(map(str, known))} for real ones: use derivative='central'"
            )

    def at(self, point: Array) -> Linearization:
        """Return the linearization at other wanted inputs ``(n,)``, with the scales of this one.

        Steps that changed from point to point would add to a difference of derivatives what they change in
        truncation.
        """
        near = self.neighbour(tuple(s[0] for s in self._placed(self.split(point[None]), 1)))
        scale = self.steered.scale
        if "steered" not in near.__dict__ or not np.array_equal(near.steered.scale, scale):
            near.__dict__["steered"] = replace(near.quiet_problem, scale=scale)
            near.__dict__.pop("smooth_jacobian", None)
        return near

    @lazy
    def structure(self) -> Structure:
        """Which output depends on which input."""
        sparsity = self.options.sparsity
        if self.callee.elementwise:
            shapes = tuple(self.inputs[i].shape for i in self.wanted)
            return Structure.elementwise(shapes, tuple(y.shape for y in self.outputs), self._broadcast_shape)
        if sparsity is not None:
            return Structure.declared(sparsity, self.x.size, self.value.size)
        return Structure.dense(self.x.size, self.value.size)

    @property
    def _broadcast_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(*(x.shape for x in self.inputs))

    @lazy
    def quiet_problem(self) -> Problem:
        """The function for difference methods, as noisy as its dtype (or the user) says."""
        limits = [self.options.limits(i, self.names[i], self.inputs[i].shape) for i in self.wanted]
        lower, upper = (_side_by_side([pair[side] for pair in limits]) for side in (0, 1))
        x, value = self.x, self.value
        outside = (x < lower) | (x > upper)
        if outside.any():
            j = int(np.flatnonzero(outside)[0])
            said = (
                f"{self.callee.name}: differentiated at {x[j]:.17g} (element {j} of its inputs), outside the "
                f"bounds [{lower[j]:.6g}, {upper[j]:.6g}]"
            )
            if outside.all() or not self.callee.elementwise:
                raise OutsideError(said)
            warn(f"{said}; its derivative there is NaN", BridgeWarning)
            # What depends on it has no derivative; the others are not to be called outside either.
            groups = np.arange(self.structure.groups)
            x = np.clip(x, lower, upper)
            lost = self.structure.spread(outside.astype(np.float64), groups, fill=0.0).any(axis=0)
            value = np.where(lost, np.nan, value)
        precision = max((float(np.finfo(y.dtype).eps) for y in self.outputs), default=float(np.finfo(float).eps))
        relative, absolute = self.options.noise or (0.0, 0.0)
        noise = np.abs(value) * max(0.5 * precision, relative)
        noise += absolute
        kinds = [scales(self.inputs[i], one_unit=self.callee.elementwise) for i in self.wanted]
        scale, resolution = (_side_by_side([pair[k] for pair in kinds]) for k in (0, 1))
        return Problem(
            self.evaluate, x, scale, resolution, lower, upper, value, noise, precision, self.structure,
            single=self._single, some=self._evaluate_some if self.callee.any_shape else None,
            bounded=bool(self.options.bounds), one_by_one=self.callee.one_by_one,
        )  # fmt: skip

    @property
    def _single(self) -> Array | None:
        """Which of the wanted inputs are float32, flat; None if none is."""
        single = [self.inputs[i].dtype == np.float32 for i in self.wanted]
        return np.repeat(single, [self.inputs[i].size for i in self.wanted]) if any(single) else None

    @lazy
    def problem(self) -> Problem:
        """The function for difference methods, its noise estimated if it was not declared."""
        problem = self.quiet_problem
        if self.options.noise is not None:
            return problem
        quiet = self.learnt.quiet.setdefault((self.wanted, *(x.dtype for x in self.inputs)), Quiet())
        glanced = glance(problem, quiet)
        if glanced is not None:
            return glanced
        problem, odd = with_noise(problem)
        quiet.learn(problem, odd)
        return problem

    # ---------------------------------------------------------------------------------------- the method

    @lazy
    def method(self) -> str:
        """How derivatives are computed; ``"complex"`` and ``"auto"`` probe once for each kind of input."""
        if self.options.given or self.options.method not in ("complex", "auto"):
            return "given" if self.options.given else self.options.method
        reason = self.complex_refusal
        if reason is not None and self.options.method == "complex":
            raise BridgeError(
                f"the complex step is wrong for {self.callee.name}: {reason}. Use derivative='central', "
                "'richardson' or 'auto', or give the derivative"
            )
        return "complex" if reason is None else "central"

    @property
    def complex_refusal(self) -> str | None:
        """Why the complex step is wrong."""
        key = specs_of(self.inputs), self.wanted
        if key not in self.learnt.refusals:
            single = replace(self.callee, executor=None)

            def traced(seen: list[str]) -> None:
                if not single.scalars:
                    single.raw(tracer(self.inputs, seen))

            self.learnt.refusals[key] = refusal(self.problem, self.evaluate, traced)
        return self.learnt.refusals[key]

    # ---------------------------------------------------------------------------------------- first order

    @lazy
    def jacobian(self) -> Jacobian | SampledJacobian:
        """The Jacobian, as accurate as the method makes it."""
        given = self._given_jacobian()
        if given is not None:
            return given
        if self.method == "complex":
            value, error = complex_jacobian(self.problem, self.evaluate)
        elif self.method == "spsa":
            return sample_jacobian(self.problem, SAMPLES, self.options.seed)
        else:
            value, error = self._found.value, self._found.error
        if not all_finite(self.problem.value):
            value = np.where(np.isnan(self.problem.value), np.nan, value)
        self._refuse_lost(value)
        return Jacobian(self.structure, value, error)

    @lazy
    def _found(self) -> Found:
        """What differences found, the steps among it."""
        return differentiate(self.problem, self.method)

    @lazy
    def steered(self) -> Problem:
        """The function for steps that are fixed: at the scales that differences found."""
        by_differences = self.options.given is None and self.method in ("central", "forward", "richardson")
        return replace(self.quiet_problem, scale=self._found.scale) if by_differences else self.quiet_problem

    def _refuse_lost(self, value: Array) -> None:
        """Warn, or raise if nothing is left, where no derivative was found of outputs that are finite."""
        if all_finite(value):
            return
        lost = ~np.isfinite(value) & np.isfinite(self.problem.value) & self.structure.known(np.arange(len(value)))
        if not lost.any():
            return
        said = (
            f"{self.callee.name} is finite at the point itself, but not around it: {np.sum(lost)} of {value.size} "
        )
        if lost.all() or not self.callee.elementwise:
            raise NoDerivativeError(
                f"{said}derivatives could not be computed. Name the domain with bounds=(lower, upper)"
            )
        place = int(np.flatnonzero(lost.any(axis=0))[0])
        shape = self.outputs[0].shape
        index = (
            f"at index {[int(i) for i in np.unravel_index(place, shape)]}" if place < self.outputs[0].size else ""
        )
        warn(
            f"{said}derivatives are NaN, the first {index}. Name the domain with bounds=(lower, upper)",
            BridgeWarning,
        )

    def _given_jacobian(self) -> Jacobian | None:
        options = self.options
        if options.derivative is not None:
            callee = self.callee.about("derivative", Flat(options.derivative))
            return elementwise_jacobian(callee, self.inputs, self.outputs, self.wanted)
        if options.jacobian is not None:
            callee = self.callee.about("jacobian", Flat(options.jacobian))
            return full_jacobian(callee, self.inputs, self.outputs, self.wanted)
        if options.jvp is not None and options.vjp is None:
            rows = self.push(np.eye(self.x.size))
            return Jacobian(Structure.dense(self.x.size, self.value.size), rows, None)
        return None

    def pull(self, cotangents: Array) -> Array:
        """Return vector-Jacobian products ``(e, n)``."""
        return self._pull_given(cotangents) if self.options.vjp is not None else self.jacobian.pull(cotangents)

    def _pull_given(self, cotangents: Array) -> Array:
        assert self.options.vjp is not None
        callee = self.callee.about("vjp", self.options.vjp)
        rows: list[Array] = []
        for row in cotangents:
            found = pulled(callee, self.inputs, _parts(row, self.outputs), self.wanted)
            rows.append(found[0].ravel() if len(found) == 1 else np.concatenate([a.ravel() for a in found]))
        if len(rows) == 1:
            return rows[0][None]
        return np.stack(rows) if rows else np.zeros((0, self.x.size))

    def push(self, tangents: Array) -> Array:
        """Return Jacobian-vector products ``(e, m)``; one direction takes two evaluations."""
        options = self.options
        if options.jvp is not None:
            callee = self.callee.about("jvp", options.jvp)
            shapes = [y.shape for y in self.outputs]
            rows = [
                self._joined(given_product(callee, self.inputs, self._tangents(row), shapes, "output"))
                for row in tangents
            ]
            return np.stack(rows) if rows else np.zeros((0, self.value.size))
        if (
            options.derivative is not None
            or options.jacobian is not None
            or self._jacobian_is_cheaper(len(tangents))
        ):
            return self.jacobian.push(tangents)
        rows = [self._direction(row, fixed=False) for row in tangents]
        return np.stack(rows) if rows else np.zeros((0, self.value.size))

    def _tangents(self, row: Array) -> list[Array]:
        """Return a flat tangent as one for each input, zeros for those that are constants."""
        tangents = [np.zeros_like(x) for x in self.inputs]
        for i, part in zip(self.wanted, self.split(row[None]), strict=True):
            tangents[i] = part[0]
        return tangents

    def _jacobian_is_cheaper(self, directions: int) -> bool:
        if self.options.vjp is not None or self.method == "spsa":
            return False
        return "jacobian" in self.__dict__ or (directions > 1 and directions >= self.structure.groups)

    def _direction(self, tangent: Array, *, fixed: bool) -> Array:
        """Return the derivative along one direction; with ``fixed`` steps it is smooth in x."""
        if self.method == "complex":
            return complex_direction(self.quiet_problem, self.evaluate, tangent)
        if fixed:
            return directional(self.steered, "central", tangent, power=0.25)
        method = self.method if self.method in ("forward", "richardson") else "central"
        problem = self.steered if "_found" in self.__dict__ else self.problem
        if np.any((problem.scale < SMALL) & (tangent != 0.0)):  # which scale is right has to be found out
            return differentiate(along(problem, tangent), method).value[0]
        return directional(replace(problem, noise=self.problem.noise), method, tangent)

    # ---------------------------------------------------------------------------------------- second order

    @lazy
    def smooth_jacobian(self) -> Jacobian | SampledJacobian:
        """A Jacobian whose error changes smoothly with x, so that it can be differentiated by differences."""
        if self.options.given or self.method in ("complex", "spsa"):
            return self.jacobian
        return Jacobian(self.structure, fixed_steps(self.steered, power=0.25), None)

    def second_pull(self, cotangents: Array, tangents: Array) -> Array:
        """Return the derivatives of ``pull(cotangent)`` along tangents, ``(e, n)``: Hessian-vector products."""
        result = np.zeros((len(tangents), self.x.size))
        for rows, tangent in _distinct(tangents):
            chosen = cotangents[rows]
            pull = lambda near, chosen=chosen: (
                near.pull(chosen) if self.options.vjp is not None else near.smooth_jacobian.pull(chosen)
            )
            result[rows] = self._slope(pull, tangent, exact=self._exact)
        return result

    def second_push(self, first: Array, second: Array) -> Array:
        """Return the second derivatives along pairs of directions, ``(e, m)``."""
        result = np.zeros((len(first), self.value.size), self.value.dtype)
        for rows, tangent in _distinct(first):
            chosen = second[rows]
            push = lambda near, chosen=chosen: near.smooth_push(chosen)
            result[rows] = self._slope(push, tangent, exact=self._exact and self._pushes_exactly)
        return result

    def smooth_push(self, tangents: Array) -> Array:
        """Return :meth:`push` with an error that changes smoothly with x."""
        if self.options.given is not None and self._pushes_exactly:
            return self.push(tangents)
        return np.stack([self._direction(row, fixed=True) for row in tangents])

    @property
    def _exact(self) -> bool:
        """Whether first derivatives are exact to rounding."""
        return self.options.given is not None or self.method == "complex"

    @property
    def _pushes_exactly(self) -> bool:
        """Whether they are in forward mode too: a vjp alone cannot be pushed."""
        return self.options.vjp is None or self.options.jvp is not None

    def _slope(self, function: Callable[[Linearization], Array], tangent: Array, *, exact: bool) -> Array:
        """Differentiate a function of the linearization along a direction."""
        line = along(self.steered, tangent)
        return slope_along(line, lambda t: function(self.at(self.x + t * tangent)), 1 / 3 if exact else 1 / 4)


def _side_by_side(arrays: Sequence[Array]) -> Array:
    """Return flat arrays as one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays or [np.zeros(0)])


def _with_precision(dtype: np.dtype[np.generic], values: Array) -> np.dtype[np.generic]:
    """Return the dtype, or its complex partner where the values are complex."""
    return np.result_type(dtype, np.complex64) if np.iscomplexobj(values) else dtype


def _parts(row: Array, arrays: Sequence[Array]) -> list[Array]:
    """Cut a flat cotangent into one for each output, in its dtype."""
    return [
        (part if np.iscomplexobj(a) else np.real(part)).reshape(a.shape).astype(a.dtype, copy=False)
        for part, a in zip(cut(row, [a.size for a in arrays]), arrays, strict=True)
    ]


def _distinct(rows: Array) -> list[tuple[Array, Array]]:
    """Return each distinct nonzero row with the places where it stands."""
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    return [(np.flatnonzero(inverse == i), row) for i, row in enumerate(unique) if row.any()]
