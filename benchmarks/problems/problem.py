"""What a test integral is. It knows nothing of integrators; those who run the table ask it for its integrand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mpmath as mp
import numpy as np
import torch
from torch import Tensor

__all__ = ["Problem", "problem"]


@dataclass(frozen=True)
class Problem:
    """An integral whose value is known in closed form.

    Attributes
    ----------
    name : str
        Unique in the table.
    integrand : callable
        ``integrand(x, m)``, where m is the namespace it computes with: ``torch``, ``numpy`` (for one number at a
        time) or ``mpmath``, so that what is integrated and what is checked at high precision are the same. A
        vector-valued one returns a tuple.
    a, b : float
        Limits.
    closed_form : callable
        Returns the value as an mpmath number, a tuple of them for a vector.
    tags : frozenset of str
        What is difficult, and whether it is marked.
    points : tuple of float
        Breakpoints that belong to the problem.
    nfev : int or None
        The most nodes gk21 may spend at ``rtol``; None where no test holds it to a count.
    rtol : float
        The tolerance that ``nfev`` is for.
    features : tuple of float
        Where mpmath has to split, besides ``points``.
    power : int
        With what power of the distance from a break mpmath has to substitute, to remove a singularity.
    antiderivative : callable or None
        What to differentiate where no numerical check of the closed form would be accurate.
    """

    name: str
    integrand: Callable[[Any, Any], Any]
    a: float
    b: float
    closed_form: Callable[[], Any]
    tags: frozenset[str]
    nfev: int | None = None
    rtol: float = 1e-10
    points: tuple[float, ...] = ()
    features: tuple[float, ...] = ()
    power: int = 1
    antiderivative: Callable[[Any], Any] | None = None

    def f(self, x: Tensor) -> Tensor:
        """Return the integrand at x, as quadgrad calls it; components in the last dimension."""
        value = self.integrand(x, torch)
        return torch.stack(value, dim=-1) if isinstance(value, tuple) else value

    def components(self) -> list[Callable[[float], Any]]:
        """Return the integrand as functions of one number, a function for each component."""

        def component(place: int | None) -> Callable[[float], Any]:
            def at(x: float) -> Any:
                with np.errstate(all="ignore"):  # next to a singularity infinity is an answer, as in torch
                    value = self.integrand(np.float64(x), np)
                return value if place is None else value[place]

            return at

        return [component(None)] if self.size == 1 else [component(place) for place in range(self.size)]

    @property
    def size(self) -> int:
        """How many components the integrand has."""
        return len(self.values)

    @property
    def exact(self) -> complex:
        """The value of an integrand with one component."""
        (value,) = self.values
        return value

    @cached_property
    def values(self) -> tuple[complex, ...]:
        """The value of each component, rounded once from 30 digits."""
        with mp.workdps(30):
            value = self.closed_form()
            return tuple(complex(v) for v in (value if isinstance(value, tuple) else (value,)))

    def error_of(self, value: Any) -> float:
        """Return the true error of a value; of the worst component."""
        found = torch.as_tensor(value, dtype=torch.complex128).reshape(-1)
        return float((found - torch.tensor(self.values, dtype=torch.complex128)).abs().max())

    def tolerance(self, rtol: float, atol: float) -> float:
        """Return the largest error that a solution may have."""
        return max(atol, rtol * max(abs(value) for value in self.values))

    def __str__(self) -> str:
        return self.name


def problem(
    name: str,
    integrand: Callable[[Any, Any], Any],
    a: float,
    b: float,
    closed_form: Callable[[], Any],
    tags: str,
    nfev: int | None = None,
    **more: Any,
) -> Problem:
    """Return a problem; its tags are given as one string."""
    return Problem(name, integrand, a, b, closed_form, frozenset(tags.split()), nfev, **more)
