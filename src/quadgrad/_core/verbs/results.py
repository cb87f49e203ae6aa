"""What verbs over several dimensions hand back of what was found."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.gradient.mode import Differentiated
from quadgrad._core.problem import Problem
from quadgrad._core.result import Result
from quadgrad._core.search.task import Found
from quadgrad._core.tolerance import real_dtype, returned_dtype

__all__ = ["make_result"]


def make_result(
    problem: Problem, probe: Tensor, found: Found, value: Tensor, derived: Differentiated, primal: Any, detail: str
) -> Result:
    """Return what was found, and the differentiable ``value``, in the caller's shape and dtype."""
    dtype = returned_dtype(problem.integrand.call_dtype, probe.dtype)
    error, shape = found.error, problem.batch_shape
    if value.dtype != dtype:
        value = value.to(dtype.to_complex() if value.is_complex() else dtype)
        error = error.to(real_dtype(dtype))
    return Result(
        value.reshape(shape + tuple(value.shape[1:])),
        error.reshape(shape),
        found.status.reshape(shape),
        found.nfev.reshape(shape),
        found.plan,
        detail,
        derived.derivative,
        primal if problem.flowing and not in_transform() else None,
    )
