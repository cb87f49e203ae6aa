"""Adaptive integration of TensorFlow functions in one dimension, many integrals at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from quadgrad._core.gradient import Reuse
from quadgrad._core.keywords import names_ours
from quadgrad._core.plans.base import Plan
from quadgrad._core.verbs.inputs import check_limit_gradient, check_options
from quadgrad.tensorflow._call import take_inputs
from quadgrad.tensorflow._crossing import tensorflow_dtype
from quadgrad.tensorflow._eager import integrate_eagerly
from quadgrad.tensorflow._framework import tf
from quadgrad.tensorflow._graph import integrate_in_graph
from quadgrad.tensorflow._integrand import Function
from quadgrad.tensorflow._result import Result
from quadgrad.tensorflow._search import Options

__all__ = ["quad"]


@tf.autograph.experimental.do_not_convert
@names_ours
def quad(
    f: Callable[..., Any],
    a: Any,
    b: Any,
    args: Any = (),
    *,
    points: Any = None,
    jumps: Callable[..., Any] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    rule: str = "gk21",
    max_nfev: int | None = None,
    gradient: Any = None,
    plan: Plan | None = None,
    limit_gradient: Literal["auto", "boundary", "pathwise"] = "auto",
    vectorized: bool = True,
    log: bool = False,
    chunk_size: int | None = None,
    group: Any = None,
    on_failure: Literal["warn", "raise", "ignore"] = "warn",
) -> Result:
    """Integrate a TensorFlow function from a to b, adaptively and differentiably, for each element of a batch.

    The TensorFlow twin of :func:`quadgrad.quad`: the same search, options, statuses and warnings. Derivatives are
    those of TensorFlow's own operations: ``tf.GradientTape`` (nested, persistent, ``jacobian``), forward
    accumulators, ``tf.function``, ``tf.map_fn``.

    Parameters
    ----------
    f : callable
        ``f(x, *args)`` of TensorFlow tensors, elementwise over the batch: ``x`` has any shape and each argument
        arrives broadcastable against it; returns a tensor of that shape, optionally followed by *event* dimensions.
        Variables, models and tensors that are the same for the whole batch may be closed over and get their
        gradient too. A Keras model wants one row for each point: ``tf.reshape(model(tf.reshape(x, [-1, 1])),
        tf.shape(x))``.
    a, b : float, tf.Tensor or tf.Variable, shape ``batch`` (broadcast)
        Limits; infinite ones are allowed, also mixed within the batch.
    args : tuple
        Further arguments of f; tensors broadcast with the batch. Mark one that carries a vector or matrix for each
        element with :func:`quadgrad.tensorflow.element`.
        An argument by which a singularity moves along with a limit is passed as the same tensor or variable as the
        limit: TensorFlow does not tell that two slices ``theta[0]`` are one number.
    points : tf.Tensor or sequence, shape ``(*batch, k)``, optional
        Breakpoints: places where f jumps, has a kink or is singular. A tensor is differentiated, its jump included.
    jumps : callable, optional
        ``g(x, *args)``, called as f is: its zeros are found, become breakpoints, and are differentiated by the
        implicit function theorem.
    rtol, atol, rule, max_nfev, plan, limit_gradient, log, on_failure
        As in :func:`quadgrad.quad`.
    chunk_size : int, optional
        Nodes evaluated at a time. A tape keeps what f makes of all of them.
    gradient, vectorized, group
        Not in TensorFlow: what is differentiated is the sum on the value's own cells, as by
        :class:`quadgrad.Reuse`.

    Returns
    -------
    Result
        ``value`` of shape ``batch + event``; ``error``, ``status`` and ``nfev`` of shape ``batch``; ``plan``, which
        is None in a ``tf.function``. Half precision is summed, and returned, in float32.

    Raises
    ------
    NotImplementedError
        Under ``jit_compile=True``, where :func:`quadgrad.tensorflow.replay` works; in a graph, where f uses
        operations that are not TensorFlow's own; of options that are torch's alone.
    TypeError, ValueError, IntegrandError, IntegrationError
        As in :func:`quadgrad.quad`. While a graph runs, TensorFlow shows them as an error of its own, which holds
        the text.

    Warns
    -----
    IntegrationWarning, SeveredGradientWarning, UnmarkedJumpWarning
        As in :func:`quadgrad.quad`.

    Notes
    -----
    Outside of a ``tf.function`` f is called as it is. Inside, it is traced once for the search, which runs in
    Python whenever the graph runs, and is part of the graph for the replay: what f takes from Python is frozen
    then, as everything is. Such a graph cannot be compiled by XLA, saved, or vectorised by ``tf.vectorized_map``
    without its while loop: integrate a batch instead.

    Everything is computed in the promoted dtype of the floating tensors among limits, arguments and breakpoints,
    float32 if there are none; arguments are cast to it.

    Examples
    --------
    >>> import tensorflow as tf, quadgrad.tensorflow as qgt
    >>> theta = tf.Variable([1.0, 2.0], dtype=tf.float64)
    >>> with tf.GradientTape() as tape:
    ...     value, error = qgt.quad(lambda x: theta[0] * tf.sin(theta[1] * x), 0.0, tf.constant(1.0, tf.float64))
    >>> value.numpy().round(12), tape.gradient(value, theta).numpy().round(12)
    (np.float64(0.708073418274), array([0.70807342, 0.100612  ]))
    """
    refuse_torch_only(gradient=gradient, vectorized=vectorized, group=group)
    check_options(on_failure, chunk_size, Reuse())
    check_limit_gradient(limit_gradient)
    options = Options(rtol, atol, rule, max_nfev, plan, limit_gradient, log, chunk_size, on_failure)
    inputs = take_inputs(a, b, args, points)
    function = Function(f)
    switches = None if jumps is None else Function(jumps, "function given as jumps")
    if not tf.executing_eagerly():
        function.dtype = tensorflow_dtype(inputs.dtype)
        if switches is not None:
            switches.dtype = function.dtype
        return integrate_in_graph(function, switches, inputs, options)
    return integrate_eagerly(function, switches, inputs, options)


def refuse_torch_only(gradient: Any = None, vectorized: bool = True, group: Any = None) -> None:
    """Refuse what only torch's verbs can do.

    Raises
    ------
    NotImplementedError
        Naming the option and the remedy.
    """
    if gradient is not None and gradient != Reuse():
        raise NotImplementedError(
            f"gradient={gradient!r}: in TensorFlow the value's own cells are differentiated, as by "
            "quadgrad.Reuse(); where the derivative is harder than the value, tighten rtol"
        )
    if not vectorized:
        raise NotImplementedError(
            "vectorized=False: a TensorFlow integrand is called with tensors; a function of one number is wrapped "
            "by quadgrad.tensorflow.wrap, or called by tf.map_fn inside of f"
        )
    if group is not None:
        raise NotImplementedError(
            "group: ranks share the batch in quadgrad.quad only; under tf.distribute each replica calls this on "
            "its own part"
        )
