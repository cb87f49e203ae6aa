"""What the caller gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from quadgrad._core._torch import belongs_to_transform, register_pytree
from quadgrad._core.lanes import plain
from quadgrad._core.misuse import NotItsValue
from quadgrad._core.printing import Printed, counted, show_numbers
from quadgrad._core.status import Status

__all__ = ["Derivative", "Result", "describe", "restore_result"]

SHOWN = 4
"""So many names of variables are printed."""


BY_DEFAULT = "float32, torch's default for plain numbers: rtol is 3.5e-4, with a limit in float64 1.5e-8"
"""What is told of the dtype where nobody chose it."""


ONE_COMPONENT = "{}: f returned one component behind x; where f(x)[..., 0] is meant, as of a network, it is {}"


class _Outcome(Printed):
    """What results and derivatives have in common."""

    status: Tensor

    @property
    def converged(self) -> Tensor:
        """Where the error meets its tolerance: bool, shape ``batch``."""
        return self.status == int(Status.CONVERGED)

    def __reduce__(self) -> tuple[Any, ...]:
        """Say how to save it: by a function of the package and what has no gradient."""
        contents = {name: value for name, value in vars(self).items() if name != "primal"}
        contents = {name: v.detach() if isinstance(v, Tensor) else v for name, v in contents.items()}
        return restore_result, (type(self).__name__, contents)


@dataclass(frozen=True, eq=False, repr=False)
class Derivative(_Outcome):
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
        The cells or points on which the value is differentiated.
    """

    names: tuple[str, ...]
    error: Tensor
    status: Tensor
    nfev: Tensor
    plan: Any

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed."""
        names = ", ".join(self.names[:SHOWN]) + f" and {len(self.names) - SHOWN} more" * (len(self.names) > SHOWN)
        return f"Derivative with respect to {names}", _ended(self) | {"plan": _first_line(self.plan)}


@dataclass(frozen=True, eq=False, repr=False)
class Result(NotItsValue, _Outcome):
    """Integrals, and how far to trust them; ``value, error = result`` unpacks as SciPy's does.

    ``torch.save`` and ``torch.load``, with its ``weights_only=True`` too, keep everything but the gradient and what
    :func:`quadgrad.gradient_error` needs.

    Attributes
    ----------
    value : Tensor, shape ``batch + event``
        The integrals, differentiable.
    error : Tensor, shape ``batch``
        Estimated absolute error (the largest over the event; of the modulus if complex). No gradient.
    status : Tensor of int64, shape ``batch``
        A :class:`Status` for each integral.
    nfev : Tensor of int64, shape ``batch``
        Nodes or points at which search called the integrand.
    plan : Plan or None
        The cells or points that were used; None where an expectation was a sum, and where ``vmap(chunk_size=)``
        joined several calls.
    detail : str
        More on a failure, for :attr:`message`.
    derivative : Derivative or None
        Of a gradient mode that searches the derivative too.
    primal : object
        The call itself, for :func:`quadgrad.gradient_error`; None of results that left a transform.
    by_default : bool
        Whether nobody chose dtype and tolerance: they are those of float32, torch's default for plain numbers.
    """

    value: Tensor
    error: Tensor
    status: Tensor
    nfev: Tensor
    plan: Any
    detail: str = ""
    derivative: Derivative | None = None
    primal: Any = None
    by_default: bool = False
    parts: ClassVar[tuple[str, ...]] = ("result.value", "result.error")
    elsewhere: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("integral", "y", "result"), "value"),
        **dict.fromkeys(("abserr", "standard_error", "sdev", "err", "estimated_error"), "error"),
        **dict.fromkeys(("neval", "n_evals", "nit"), "nfev"),
        **dict.fromkeys(("success", "ier", "info", "infodict"), "status, and converged and message"),
        **dict.fromkeys(("intervals", "subdivisions", "nodes", "last"), "plan"),
    }

    def __iter__(self) -> Iterator[Tensor]:
        yield self.value
        yield self.error

    @property
    def message(self) -> str:
        """How the integrals ended, in a sentence for each way."""
        return describe(self.status, self.plan) + self.detail

    def __copy__(self) -> Result:
        return replace(self)

    def _facts(self) -> tuple[str, dict[str, str]]:
        """Return what is printed."""
        heading = f"Result of {counted(plain(self.status).numel(), 'integral')}"
        facts = (
            {"value": show_numbers(self.value, 10)}
            | _one_component(self)
            | _ended(self)
            | {"plan": _first_line(self.plan)}
        )
        if self.by_default:
            facts["dtype"] = BY_DEFAULT
        if self.derivative is not None:
            facts["derivative"] = (
                f"{_ended(self.derivative)['status']}; {_first_line(self.derivative).removeprefix('Derivative ')}"
            )
        return heading, facts if bool(plain(self.converged).all()) else facts | {"message": self.message}


def _ended(result: Result | Derivative) -> dict[str, str]:
    """Return error, status and nfev as they are printed."""
    numbers = plain(result.status).flatten().tolist()
    ends = [f"{numbers.count(s)} {s.name}" if len(numbers) > 1 else s.name for s in Status if s in numbers]
    error, nfev = plain(result.error), plain(result.nfev)
    worst = show_numbers(error, 2) if error.numel() <= 1 else f"{error.max():.2g} at most"
    spent = show_numbers(nfev, 10) if nfev.numel() <= 1 else f"{nfev.sum():,}, at most {nfev.max():,} for one"
    return {"error": worst, "status": ", ".join(ends), "nfev": spent}


def _one_component(result: Result) -> dict[str, str]:
    """Return the shape of a value with one component, as a network gives it: in a loss it would meet another."""
    shape, batch = tuple(result.value.shape), tuple(result.status.shape)
    return {"shape": ONE_COMPONENT.format(shape, batch)} if shape == (*batch, 1) else {}


def _first_line(printed: Any) -> str:
    return repr(printed).splitlines()[0]


def restore_result(kind: str, contents: dict[str, Any]) -> Result | Derivative:
    """Return what was saved."""
    return {"Result": Result, "Derivative": Derivative}[kind](**contents)


# Files name the package alone: what stands below it may move.
restore_result.__module__ = "quadgrad"
restore_result.__name__ = restore_result.__qualname__ = "_restore_result"
torch.serialization.add_safe_globals([restore_result])


def describe(status: Tensor, plan: Any = None) -> str:
    """Say how many of how many integrals ended in which way, and what to do, with a plan of such a kind."""
    numbers = plain(status).flatten().tolist()
    says = {s: s.message for s in Status} | dict(getattr(plan, "says", {}))
    if not numbers:
        return "No integral was asked for."
    if len(numbers) == 1:
        return says[Status(numbers[0])]
    return " ".join(f"{numbers.count(s)} of {len(numbers)}: {says[s]}" for s in Status if numbers.count(s) > 0)


def _flatten(result: Result) -> tuple[list[Any], tuple[Any, ...]]:
    leaves = [result.value, result.error, result.status, result.nfev]
    # None would be a leaf, which transforms refuse to hand out.
    return leaves + ([result.derivative] if result.derivative else []), (
        result.plan,
        result.detail,
        result.by_default,
    )


def _unflatten(leaves: Any, context: tuple[Any, ...]) -> Result:
    value, error, status, nfev, *derivative = leaves
    plan, detail, by_default = context
    # `vmap` with chunk_size joins the results of several calls, and hands out the plan of one of them.
    joined = isinstance(value, Tensor) and not belongs_to_transform(value)
    lost = joined and plan is not None and not Counter(plan.batch_shape) <= Counter(value.shape)
    context = (None if lost else plan, detail, derivative[0] if derivative else None)
    return Result(value, error, status, nfev, *context, by_default=by_default)


# As a leaf the plan would grow a lane dimension under vmap; it rides in the context.
register_pytree(Result, _flatten, _unflatten)
register_pytree(
    Derivative,
    lambda found: ([found.error, found.status, found.nfev], (found.names, found.plan)),
    lambda leaves, context: Derivative(*[context[0], *leaves, context[1]]),
)
