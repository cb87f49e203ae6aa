"""What the caller gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from quadgrad._core._torch import belongs_to_transform, register_pytree
from quadgrad._core.plans.interval import IntervalPlan
from quadgrad._core.status import Status

__all__ = ["Derivative", "Result", "describe"]


@dataclass(frozen=True, eq=False)
class Derivative:
    """How far to trust the derivative that :class:`quadgrad.Resolve` searched.

    Attributes
    ----------
    names : tuple of str
        What was differentiated: ``"args[0]"``, ``"params.0.weight"`` ...
    error : Tensor, shape ``batch + (len(names),)``
        Estimated absolute error of each integral's derivative with respect to each of them (the largest over
        its entries and over the event).
    status : Tensor of int64, shape ``batch``
        A :class:`Status` for each integral.
    nfev : Tensor of int64, shape ``batch``
        Nodes at which the derivative was computed.
    plan : Plan
        The cells on which the value is differentiated.
    """

    names: tuple[str, ...]
    error: Tensor
    status: Tensor
    nfev: Tensor
    plan: IntervalPlan

    @property
    def converged(self) -> Tensor:
        """Where the derivative's error meets its tolerance: bool, shape ``batch``."""
        return self.status == int(Status.CONVERGED)


@dataclass(frozen=True, eq=False)
class Result:
    """Integrals, and how far to trust them; ``value, error = result`` unpacks as SciPy's does.

    Attributes
    ----------
    value : Tensor, shape ``batch + event``
        The integrals, differentiable.
    error : Tensor, shape ``batch``
        Estimated absolute error (the largest over the event; of the modulus if complex). No gradient.
    status : Tensor of int64, shape ``batch``
        A :class:`Status` for each integral.
    nfev : Tensor of int64, shape ``batch``
        Nodes at which search called the integrand.
    plan : Plan
        The cells that were used.
    detail : str
        More on a failure, for :attr:`message`.
    derivative : Derivative or None
        Of a gradient mode that searches the derivative too.
    primal : object
        The call itself, for :func:`quadgrad.gradient_error`; None of results that left a transform.
    """

    value: Tensor
    error: Tensor
    status: Tensor
    nfev: Tensor
    plan: IntervalPlan
    detail: str = ""
    derivative: Derivative | None = None
    primal: Any = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Tensor]:
        yield self.value
        yield self.error

    @property
    def converged(self) -> Tensor:
        """Where the reported error meets the tolerance: bool, shape ``batch``."""
        return self.status == int(Status.CONVERGED)

    @property
    def message(self) -> str:
        """How the integrals ended, in a sentence for each way."""
        return describe(self.status) + self.detail


def describe(status: Tensor) -> str:
    """Say how many of how many integrals ended in which way, and what to do."""
    numbers = status.flatten().tolist()
    if not numbers:
        return "No integral was asked for."
    if len(numbers) == 1:
        return Status(numbers[0]).message
    return " ".join(f"{numbers.count(s)} of {len(numbers)}: {s.message}" for s in Status if numbers.count(s) > 0)


def _flatten(result: Result) -> tuple[list[Any], tuple[Any, ...]]:
    leaves = [result.value, result.error, result.status, result.nfev]
    # None would be a leaf, which transforms refuse to hand out.
    return leaves + ([result.derivative] if result.derivative else []), (result.plan, result.detail)


def _unflatten(leaves: Any, context: tuple[Any, ...]) -> Result:
    value, error, status, nfev, *derivative = leaves
    plan, detail = context
    # `vmap` with chunk_size joins the results of several calls, and hands out the plan of one of them.
    joined = isinstance(value, Tensor) and not belongs_to_transform(value)
    if joined and plan is not None and not Counter(plan.batch_shape) <= Counter(value.shape):
        plan = None
    return Result(value, error, status, nfev, plan, detail, derivative[0] if derivative else None)


def _flatten_derivative(found: Derivative) -> tuple[list[Any], tuple[Any, ...]]:
    return [found.error, found.status, found.nfev], (found.names, found.plan)


def _unflatten_derivative(leaves: Any, context: tuple[Any, ...]) -> Derivative:
    (names, plan), (error, status, nfev) = context, leaves
    return Derivative(names, error, status, nfev, plan)


# As a leaf the plan would grow a lane dimension under vmap; it rides in the context.
register_pytree(Result, _flatten, _unflatten)
register_pytree(Derivative, _flatten_derivative, _unflatten_derivative)
