"""Adaptive integration of TensorFlow functions in one dimension, many integrals at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from quadgrad._core.gradient import Reuse
from quadgrad._core.plans.base import Plan
from quadgrad._core.problem import LimitGradient
from quadgrad._core.verbs.quad import check_options
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
    """Integrate f from a to b."""
    refuse_torch_only(gradient=gradient, vectorized=vectorized, group=group)
    check_options(on_failure, chunk_size, Reuse())
    if limit_gradient not in get_args(LimitGradient):
        raise ValueError(
            f"limit_gradient={limit_gradient!r} is not one of {', '.join(map(repr, get_args(LimitGradient)))}"
        )
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
            "group: ranks share the batch in quadgrad.quad only; under tf.distribute each replica calls this on its "
            "own part"
        )
