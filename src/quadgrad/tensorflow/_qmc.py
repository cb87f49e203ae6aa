"""Quasi-Monte Carlo integration of TensorFlow functions in any dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from quadgrad._core.estimates.replicates import half_width
from quadgrad._core.gradient import Differentiated, GradientMode, Reuse
from quadgrad._core.gradient.samples import SampledPrimal
from quadgrad._core.keywords import names_ours
from quadgrad._core.plans.base import Plan
from quadgrad._core.plans.points import PointsPlan
from quadgrad._core.progress import show_progress
from quadgrad._core.ranks import Ranks
from quadgrad._core.result import Result as TorchResult
from quadgrad._core.tolerance import returned_dtype
from quadgrad._core.verbs.inputs import check_options, prepare_box
from quadgrad._core.verbs.sample import integrate_samples, make_sample
from quadgrad.tensorflow._call import Inputs, Leaves, take_inputs
from quadgrad.tensorflow._crossing import tensorflow_dtype, to_tensorflow, to_torch, torch_dtype
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._graph import Traced, refuse_xla, run_outside
from quadgrad.tensorflow._integrand import Function, View
from quadgrad.tensorflow._points import Points, replay_points, write_points
from quadgrad.tensorflow._quad import refuse_torch_only
from quadgrad.tensorflow._recording import calling_line, is_recording
from quadgrad.tensorflow._result import Result
from quadgrad.tensorflow._search import speaking

__all__ = ["gradient_error", "qmc"]


@tf.autograph.experimental.do_not_convert
@names_ours
def qmc(
    f: Callable[..., Any],
    a: Any,
    b: Any,
    args: Any = (),
    *,
    sequence: Literal["sobol", "lattice", "random"] = "sobol",
    n: int | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    replicates: int = 16,
    confidence: float = 0.99,
    seed: int | None = None,
    gradient: Any = None,
    plan: Plan | None = None,
    vectorized: bool = True,
    chunk_size: int | None = None,
    group: Any = None,
    progress: bool = False,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Result:
    """Integrate f over boxes in d dimensions by randomised quasi-Monte Carlo, for each element of a batch.

    The TensorFlow twin of :func:`quadgrad.qmc`, which tells more of the method and of what is not listed here.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` of TensorFlow tensors, x of shape ``(..., d)``; each argument arrives broadcastable against
        ``x.shape[:-1]``, as ``c[..., None]`` against x. Returns a tensor of that shape, optionally followed by
        *event* dimensions. Variables, models and tensors that are the same for the whole batch may be closed over.
    a, b : tf.Tensor or sequence of float, shape ``(*batch, d)`` (broadcast)
        Corners of the boxes; infinite sides are allowed.
    args : tuple
        Further arguments of f; tensors broadcast with the batch. Mark one that carries a vector or matrix for each
        element with :func:`quadgrad.tensorflow.element`.
    sequence, n, rtol, atol, replicates, confidence, seed, plan, progress, on_failure
        As in :func:`quadgrad.qmc`.
    chunk_size : int, optional
        Values of f computed at a time by search. The differentiated replay evaluates all points at once: a tape
        keeps what f makes of them.
    gradient, vectorized, group
        Not in TensorFlow: the sample itself is differentiated.

    Returns
    -------
    Result
        ``error`` is the half-width of a Student-t interval, that of the gradient is
        :func:`quadgrad.tensorflow.gradient_error`.

    Raises
    ------
    NotImplementedError
        Under ``jit_compile=True``, and of options that are torch's alone.
    TypeError, ValueError, IntegrandError, IntegrationError
        As in :func:`quadgrad.qmc`.

    Warns
    -----
    IntegrationWarning, SeveredGradientWarning
        As in :func:`quadgrad.qmc`.

    Examples
    --------
    >>> import tensorflow as tf, quadgrad.tensorflow as qgt
    >>> s = tf.Variable(0.8, dtype=tf.float64)
    >>> f = lambda x, s: tf.exp(-tf.reduce_sum(x**2, -1) / s**2)
    >>> with tf.GradientTape() as tape:
    ...     result = qgt.qmc(f, [-1.0] * 6, [1.0] * 6, args=(s,))
    >>> side = lambda s: 3.141592653589793**0.5 * s * tf.math.erf(1 / s)
    >>> bool(result.converged), bool(abs(result.value - side(s) ** 6) <= result.error)
    (True, True)
    >>> slope = tape.gradient(result.value, s)
    >>> with tf.GradientTape() as exact:
    ...     power = side(s) ** 6
    >>> bool(abs(slope - exact.gradient(power, s)) <= qgt.gradient_error(result, s))
    True
    """
    refuse_torch_only(gradient=gradient, vectorized=vectorized, group=group)
    check_options(on_failure, chunk_size, Reuse())
    inputs, function = take_inputs(a, b, args, None), Function(f, point_ndim=1)
    function.dtype = tensorflow_dtype(inputs.dtype)

    def sample(given: Inputs, f: Function, captured: Sequence[Any], recorded: bool, always: bool, mode: Any) -> Any:
        leaves = Leaves(given, everything=always)
        blind = [torch.zeros(()) for _ in captured]
        view = View(f, [*leaves.sources, *captured], [*leaves.tensors, *blind], recorded, always)
        with torch.enable_grad(), Ranks(None) as ranks:
            ends, others = (leaves.of(given.a), leaves.of(given.b)), tuple(map(leaves.of, given.args))
            problem = prepare_box(view, *ends, others, True, (rtol, atol), chunk_size=chunk_size)
            if not given.tensors():  # TensorFlow's default, whatever torch's is
                problem.integrand.call_dtype = problem.limits.x_dtype = torch.float32
            made, said = make_sample(problem, sequence, n, (rtol, atol), replicates, confidence, seed, plan, ranks)
            with show_progress(progress, made.most * made.plan.replicates * problem.batch) as advance:
                return integrate_samples(problem, mode, replace(made, advance=advance), said, on_failure)

    if not tf.executing_eagerly():
        return _sample_in_graph(function, inputs, sample)
    return _sample_eagerly(function, inputs, sample, (a, b, args), confidence)


class _HandOver(GradientMode):
    """Hands a sample over to a replay elsewhere."""

    def __init__(self, replay: Callable[[SampledPrimal], Tensor | None]) -> None:
        self.replay = replay

    def apply(self, primal: Any) -> Differentiated:
        """See :class:`quadgrad._core.gradient.GradientMode`."""
        value = self.replay(cast(SampledPrimal, primal))
        return Differentiated(primal.value if value is None else value)


@dataclass(frozen=True)
class _Again:
    """How to evaluate a sample again: what the caller passed, and which points."""

    f: Callable[..., Any]
    passed: tuple[Any, Any, Any]
    plan: PointsPlan
    limits: Any
    dtype: Any
    confidence: float

    def mean(self, replicate: int) -> Any:
        """Return the integrals ``batch + event`` as one replicate alone gives them."""
        inputs, function = take_inputs(*self.passed, None), Function(self.f, point_ndim=1)
        function.dtype = self.dtype
        points = _cross(write_points(self.plan.replicate(replicate), self.limits))
        shape = list(self.plan.batch_shape)
        value = replay_points(function, inputs, points, shape, self.plan.batch)
        return tf.reshape(value, [*shape, *value.shape[1:]])


def _sample_eagerly(function: Function, inputs: Inputs, sample: Any, passed: Any, confidence: float) -> Result:
    replayed, again = list[Any](), list[_Again]()

    def in_tensorflow(primal: SampledPrimal) -> Tensor:
        plan, box, shape = primal.plan, primal.problem.limits, primal.problem.batch_shape
        points = _cross(write_points(plan, box))
        replayed.append(replay_points(function, inputs, points, list(shape), plan.batch))
        again.append(_Again(function.f, passed, plan, box.detach(), function.dtype, confidence))
        return to_torch(replayed[0])

    with speaking():
        found: TorchResult = sample(inputs, function, [], is_recording(), False, _HandOver(in_tensorflow))
    value = found.value
    kept = to_tensorflow(value)
    if replayed:
        kept = tf.reshape(tf.cast(replayed[0], tensorflow_dtype(value.dtype)), tuple(value.shape))
    error, status, nfev = (to_tensorflow(v) for v in (found.error, found.status, found.nfev))
    return Result(kept, error, status, nfev, found.plan, found.detail, again[0] if again else None)


def _cross(points: Points) -> Points:
    return Points(**{f.name: to_tensorflow(getattr(points, f.name)) for f in fields(Points)})


_RANKS = {"x": 3, "weights": 2, "side": 2, "first": 3, "last": 3, "finite": 2}


def _sample_in_graph(function: Function, inputs: Inputs, sample: Any) -> Result:
    refuse_xla("qmc")
    site, traced = calling_line(), Traced(function, inputs)
    output = torch_dtype(traced.output.dtype)
    real = returned_dtype(inputs.dtype, output.to_real() if output.is_complex else output)

    def run(given: Inputs, functions: Sequence[Function], captured: Sequence[Any]) -> list[Tensor]:
        kept: list[SampledPrimal] = []
        with speaking(site, symbolic=True):
            found: TorchResult = sample(given, functions[0], captured, True, True, _HandOver(kept.append))
        primal = kept[0]
        points = write_points(primal.plan, primal.problem.limits)
        shape = torch.tensor(primal.problem.batch_shape, dtype=torch.int64)
        return [*(getattr(points, name) for name in _RANKS), found.error, found.status, found.nfev, shape]

    dtypes = [tf.bool if name == "finite" else tf.float64 for name in _RANKS]
    found = run_outside(run, inputs, [traced], [*dtypes, tensorflow_dtype(real), tf.int64, tf.int64, tf.int64])
    points = Points(**{n: tf.ensure_shape(v, [None] * r) for (n, r), v in zip(_RANKS.items(), found, strict=False)})
    error, status, nfev, shape = found[-4:]
    shape = tf.ensure_shape(shape, [None])
    value = replay_points(function, inputs, points, shape, tf.shape(points.x)[1])
    value = tf.cast(value, tensorflow_dtype(real.to_complex() if output.is_complex else real))
    value = tf.reshape(value, tf.concat([tf.cast(shape, tf.int32), tf.shape(value)[1:]], 0))
    return Result(value, error, status, nfev, None)


def gradient_error(result: Result, wrt: Any, grad_outputs: Any = None) -> Any:
    """Estimate the absolute error of ``tape.gradient(result.value, wrt)`` of a sample.

    Each replicate of the points is differentiated by itself; the error is the half-width of Student's interval for
    the mean of these gradients, with the confidence that the sample was taken with.

    Parameters
    ----------
    result : Result
        Of :func:`quadgrad.tensorflow.qmc`, computed eagerly under a tape.
    wrt : tf.Variable, tf.Tensor or sequence of them
        Limits or arguments as they were passed, or what f closes over.
    grad_outputs : tf.Tensor, shape ``batch + event``, optional
        Weights of the values; ones unless given.

    Returns
    -------
    tf.Tensor or tuple of tf.Tensor
        For each of ``wrt`` the estimated error of each entry of its gradient, real and in its shape.

    Raises
    ------
    ValueError
        If the result is none of these, or does not depend on one of ``wrt``.
    """
    again = result.primal
    if not isinstance(again, _Again):
        raise ValueError(
            "gradient_error in TensorFlow is that of a sample: of a result of quadgrad.tensorflow.qmc that was "
            "computed outside of a graph and under a tape. Of quad, compare the gradients at two tolerances"
        )
    several = isinstance(wrt, list | tuple)
    tensors, each = list(wrt) if several else [wrt], list[list[Any]]()
    for number in range(again.plan.replicates):
        with tf.GradientTape() as tape:
            for tensor in tensors:
                tape.watch(tensor)
            value = again.mean(number)
        weight = None if grad_outputs is None else tf.cast(grad_outputs, value.dtype)
        each.append(tape.gradient(value, tensors, output_gradients=weight))
    errors: list[Any] = []
    for i, gradients in enumerate(zip(*each, strict=True)):
        if any(g is None for g in gradients):
            raise ValueError(
                f"wrt[{i}]: the sample does not depend on it. Give limits and arguments as they were passed, or "
                "what f closes over: from what they were computed, nothing is known here"
            )
        means = torch.stack([to_torch(tf.convert_to_tensor(g)) for g in gradients])
        errors.append(to_tensorflow(half_width(means, again.confidence)))
    return tuple(errors) if several else errors[0]
