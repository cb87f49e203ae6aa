"""What the caller gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quadgrad._torch import register_pytree
from quadgrad.plan import Plan
from quadgrad.status import Status

__all__ = ["Result", "describe"]


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
    """

    value: Tensor
    error: Tensor
    status: Tensor
    nfev: Tensor
    plan: Plan
    detail: str = ""

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


def _flatten(result: Result) -> tuple[list[Tensor], tuple[Plan, str]]:
    return [result.value, result.error, result.status, result.nfev], (result.plan, result.detail)


def _unflatten(leaves: Any, context: tuple[Plan, str]) -> Result:
    value, error, status, nfev = leaves
    return Result(value, error, status, nfev, *context)


# As a leaf the plan would grow a lane dimension under vmap; it rides in the context.
register_pytree(Result, _flatten, _unflatten)
