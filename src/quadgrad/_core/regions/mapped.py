"""Regions that are images of the unit cube: what they have in common, and how f is integrated over one.

A region places points of the unit cube in itself and says how much it stretches them, in ordinary torch. Whatever
integrates over boxes integrates over it, and its parameters are arguments like any other: they may be batched,
and get the same derivatives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.integrand import Argument, Element, Integrand, take_arguments
from quadgrad._core.lanes import plain
from quadgrad._core.reduce import align

__all__ = ["Mapped", "as_parameter", "beside", "over_unit_cube"]


class Mapped(ABC):
    """A region that is the image of the unit cube in ``dims`` dimensions."""

    @property
    @abstractmethod
    def dims(self) -> int:
        """The number of dimensions of the unit cube."""

    @abstractmethod
    def parameters(self) -> list[tuple[Any, int]]:
        """Return what the region depends on, and how many trailing dimensions of each belong to one integral.

        What is no tensor is the same for all integrals.
        """

    @abstractmethod
    def place(self, u: Tensor, parameters: tuple[Any, ...] | None = None, args: tuple[Any, ...] = ()) -> Any:
        """Map points of the unit cube onto the region.

        Parameters
        ----------
        u : Tensor, shape ``(..., dims)``
        parameters : tuple, optional
            What stands in for the region's own parameters, each broadcastable against ``u.shape[:-1]``.
        args : tuple
            The arguments of f, which limits that are functions see, too.

        Returns
        -------
        x : Tensor, shape ``(..., d)``
        weight : Tensor, shape ``(...)``
            The volume element (of a surface the area element).
        """


@dataclass(frozen=True, eq=False)
class _Over:
    """f over a region, as a function on the unit cube: ``(u, *args, *parameters)``."""

    f: Callable[..., Any]
    kinds: tuple[Argument, ...]
    region: Mapped
    vectorized: bool

    def __call__(self, u: Tensor, *given: Any) -> Tensor:
        count = len(self.kinds)
        args, parameters = given[:count], given[count:]
        x, weight = self.region.place(u, parameters, args)
        # What f returns is checked here, where the caller's own shapes and x are known.
        own = Integrand(self.f, self.kinds, 0, u.dtype, u.dtype, self.vectorized, point_ndim=1)
        y = own.call(x, list(args))
        return y * align(weight, y)


def over_unit_cube(
    f: Any, region: Mapped, args: Any, vectorized: bool = True
) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """Return a function on the unit cube whose integral is that of f over a region, and its arguments.

    f is called by the same contract as over a box, with x in the region. The function is a vectorized one.
    """
    if not callable(f):
        raise TypeError(f"f must be a function f(x, *args), not {type(f).__name__}")
    given = take_arguments(args)
    pairs = [(v.tensor, v.ndim) if isinstance(v, Element) else (v, 0) for v in given]
    kinds = tuple([Argument(value, shared=False, element_ndim=ndim) for value, ndim in pairs])
    own = [Element(value, ndim) if isinstance(value, Tensor) else value for value, ndim in region.parameters()]
    return _Over(f, kinds, region, vectorized), (*given, *own)


def as_parameter(name: str, value: Any, ndim: int, infinite: bool = False) -> Any:
    """Return a region's parameter: a real tensor, or numbers that are the same for all integrals.

    Raises
    ------
    ValueError
        If it has fewer than ``ndim`` dimensions, or holds NaN, or infinite numbers unless they may be.
    TypeError
        If it is complex, or no number.
    """
    if isinstance(value, list | tuple) and _holds_tensors(value):
        value = torch.stack([as_seen(as_parameter(name, each, 0)) for each in value])
    try:
        seen = as_seen(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}={value!r:.80} is no real number, tensor, or list of them: {error}") from None
    if seen.is_complex():
        raise TypeError(f"{name} is complex: regions are real")
    if seen.ndim < ndim:
        raise ValueError(
            f"{name} of shape {tuple(seen.shape)} needs {ndim} dimensions at least, the last ones its own"
        )
    bad = plain(seen.isnan() if infinite else ~seen.isfinite()) if seen.is_floating_point() else seen.new_zeros(())
    if bool(bad.any()):
        which = f" at index {tuple(bad.nonzero()[0].tolist())}" if bad.ndim else ""
        raise ValueError(f"{name} is NaN{'' if infinite else ' or infinite'}{which}")
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        return seen if seen.is_floating_point() else seen.to(torch.get_default_dtype())
    return seen.to(torch.get_default_dtype()) if seen.ndim > ndim else value  # a list that is a batch


def as_seen(value: Any) -> Tensor:
    """Return a parameter as a tensor: where it is, or on the host."""
    if isinstance(value, Tensor):
        return value
    return torch.as_tensor(value, dtype=None if hasattr(value, "__array__") else torch.float64, device="cpu")


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or isinstance(value, list | tuple) and any(map(_holds_tensors, value))


def beside(u: Tensor, value: Any) -> Tensor:
    """Return a parameter as a tensor beside points of the unit cube; what is one already stays as it is."""
    return value if isinstance(value, Tensor) else u.new_tensor(value)
