"""What the caller gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from quadgrad._core.misuse import NotItsValue, refusal
from quadgrad._core.printing import Printed
from quadgrad._core.result import Result as TorchResult
from quadgrad._core.result import describe
from quadgrad._core.status import Status
from quadgrad.tensorflow._crossing import to_torch
from quadgrad.tensorflow._framework import tf

__all__ = ["Result"]


@dataclass(frozen=True, eq=False, repr=False)
class Result(NotItsValue, Printed):
    """Integrals in TensorFlow tensors, and how far to trust them; ``value, error = result`` unpacks.

    A ``tf.function`` may return it.

    Attributes
    ----------
    value : tf.Tensor, shape ``batch + event``
        The integrals, differentiable.
    error : tf.Tensor, shape ``batch``
        Estimated absolute error (the largest over the event; of the modulus if complex). No gradient.
    status : tf.Tensor of int64, shape ``batch``
        A :class:`quadgrad.Status` for each integral.
    nfev : tf.Tensor of int64, shape ``batch``
        Nodes or points at which search called the integrand.
    plan : Plan or None
        The cells or points that were used; None in a ``tf.function``, where they are found anew at every call.
    detail : str
        More on a failure, for :attr:`message`.
    primal : object
        The call itself, for :func:`quadgrad.tensorflow.gradient_error`.
    """

    value: Any
    error: Any
    status: Any
    nfev: Any
    plan: Any
    detail: str = ""
    primal: Any = None
    its_array: ClassVar[str] = "result.value.numpy()"
    parts: ClassVar[tuple[str, ...]] = TorchResult.parts
    elsewhere: ClassVar[dict[str, str]] = TorchResult.elsewhere

    def __iter__(self) -> Iterator[Any]:
        yield self.value
        yield self.error

    @property
    def converged(self) -> Any:
        """Where the error meets its tolerance: tf.bool, shape ``batch``."""
        return tf.equal(self.status, int(Status.CONVERGED))

    @property
    def message(self) -> str:
        """How the integrals ended, in a sentence for each way."""
        if tf.is_symbolic_tensor(self.status):
            return "How the integrals end is not known before the graph runs: return status from it."
        return describe(to_torch(self.status), self.plan) + self.detail

    def __tf_tensor__(self, dtype: Any = None, name: Any = None) -> NoReturn:
        """Refuse to be an argument of a TensorFlow function."""
        raise TypeError(refusal(type(self), self.its_value))

    def __tf_flatten__(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Tell TensorFlow which parts are tensors."""
        return (self.plan, self.detail), (self.value, self.error, self.status, self.nfev)

    @classmethod
    def __tf_unflatten__(cls, metadata: tuple[Any, ...], leaves: tuple[Any, ...]) -> Result:
        """Put them together again."""
        return cls(*leaves, *metadata)

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed: the same as of torch's results."""
        if tf.is_symbolic_tensor(self.value):
            return "Result of integrals in a graph", {"value": str(self.value)}
        value, error, status, nfev = map(to_torch, (self.value, self.error, self.status, self.nfev))
        twin = TorchResult(value, error, status, nfev, self.plan, self.detail)
        return twin._facts()  # pyright: ignore[reportPrivateUsage]
