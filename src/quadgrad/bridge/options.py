"""How a wrapped function is differentiated, checked once at the door; and what is said about a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from quadgrad.bridge.contract import Array

__all__ = ["METHODS", "Info", "Options", "make_options"]

METHODS = ("central", "forward", "richardson", "complex", "spsa", "auto")


@dataclass(frozen=True, eq=False)
class Info:
    """What the last backward pass of a wrapped function found.

    Attributes
    ----------
    method : str
        How derivatives were computed: ``"central"``, ..., ``"given"``.
    nfev : int
        Evaluations of the function in that pass, those of the noise table included.
    noise : float or None
        The relative noise level of the outputs; None for derivatives that were given.
    error : tuple of array, or None
        For each output, in its shape, how wrong the worst of its derivatives may be.
    gradient_error : tuple of array, or None
        For each differentiable input, in its shape, how wrong its gradient may be.
    note : str
        Why ``"auto"`` did not use the complex step.
    """

    method: str
    nfev: int
    noise: float | None
    error: tuple[Array, ...] | None
    gradient_error: tuple[Array, ...] | None
    note: str = ""

    def __repr__(self) -> str:
        """Tell the worst of each error in place of all."""
        worst = lambda errors: None if errors is None else tuple(float(f"{e.max(initial=0.0):.2g}") for e in errors)
        return (
            f"Info(method={self.method!r}, nfev={self.nfev}, noise={self.noise}, worst error={worst(self.error)}, "
            f"worst gradient_error={worst(self.gradient_error)}, note={self.note!r})"
        )


@dataclass(frozen=True)
class Options:
    """What :func:`quadgrad.bridge.wrap` was told about derivatives.

    Attributes
    ----------
    method : str
        One of :data:`METHODS`; how derivatives that are not given are computed.
    derivative, jacobian, vjp, jvp : callable or None
        Derivatives that are given.
    out_shape : tuple, sequence of tuples, callable or None
    bounds : mapping
        From names or positions of inputs, or None for all, to pairs.
    noise : float, pair of floats or None
    seed : int
    sparsity : matrix, ``"elementwise"`` or None
    memory : float
        Megabytes.
    """

    method: str
    derivative: Callable[..., Any] | None
    jacobian: Callable[..., Any] | None
    vjp: Callable[..., Any] | None
    jvp: Callable[..., Any] | None
    out_shape: Any
    bounds: Mapping[int | str | None, tuple[Any, Any]]
    noise: tuple[float, float] | None
    seed: int
    sparsity: Any
    memory: float

    @property
    def given(self) -> str | None:
        """The name of the derivative that is given, if one is."""
        return next((n for n in ("derivative", "jacobian", "vjp", "jvp") if getattr(self, n) is not None), None)

    def limits(self, position: int, name: str, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the lower and upper bounds of an input, flat."""
        for key in (position, name, None):
            if key in self.bounds:
                lower, upper = (np.broadcast_to(np.asarray(b, np.float64), shape).ravel() for b in self.bounds[key])
                return lower, upper
        return _no_bounds(prod(shape))

    def output_shapes(self, shapes: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...] | None:
        """Return the declared shapes of the outputs for inputs of these shapes."""
        declared: Any = self.out_shape(*shapes) if callable(self.out_shape) else self.out_shape
        if declared is None:
            return None
        several = any(isinstance(part, tuple | list) for part in declared)
        return tuple(tuple(int(size) for size in part) for part in (declared if several else (declared,)))


@lru_cache(maxsize=8)
def _no_bounds(size: int) -> tuple[Array, Array]:
    return np.broadcast_to(-np.inf, size), np.broadcast_to(np.inf, size)


def make_options(
    derivative: str | Callable[..., Any],
    given: Mapping[str, Callable[..., Any] | None],
    *,
    out_shape: Any,
    bounds: Any,
    noise: float | tuple[float, float] | None,
    seed: int | None,
    sparsity: Any,
    memory: float,
) -> Options:
    """Check what the user said, and say what is wrong with it."""
    named = dict(given)
    if callable(derivative):
        named["derivative"], method = derivative, "central"
    elif derivative in METHODS:
        method = derivative
    else:
        raise ValueError(f"derivative={derivative!r} is no callable and not one of {', '.join(METHODS)}")
    chosen = [name for name, fn in named.items() if fn is not None]
    if len(chosen) > 1 and set(chosen) != {"vjp", "jvp"}:
        raise ValueError(f"{' and '.join(chosen)} are given: one is enough (vjp and jvp may go together)")
    for name in chosen:
        if not callable(named[name]):
            raise TypeError(f"{name}={named[name]!r} must be a function")
    if not memory >= 0.0:
        raise ValueError(f"memory={memory!r} must be a number of megabytes, at least 0")
    if isinstance(sparsity, str) and sparsity != "elementwise":
        raise ValueError(f"sparsity={sparsity!r} must be 'elementwise' or a matrix (outputs, inputs)")
    return Options(
        method, named.get("derivative"), named.get("jacobian"), named.get("vjp"), named.get("jvp"), out_shape,
        _checked_bounds(bounds), _checked_noise(noise), 0 if seed is None else seed, sparsity, float(memory),
    )  # fmt: skip


def _checked_noise(noise: float | tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the relative and the absolute noise level."""
    if noise is None:
        return None
    relative, absolute = noise if isinstance(noise, tuple | list) and len(noise) == 2 else (noise, 0.0)
    if not isinstance(relative, int | float) or not 0.0 <= relative < 1.0:
        raise ValueError(
            f"noise={noise!r} must be a relative noise level, at least 0 and below 1, or a pair of it and "
            "an absolute one"
        )
    if not isinstance(absolute, int | float) or not 0.0 <= absolute < np.inf:
        raise ValueError(f"noise={noise!r}: the absolute noise level must be at least 0")
    return float(relative), float(absolute)


def _checked_bounds(bounds: Any) -> dict[int | str | None, tuple[Any, Any]]:
    if bounds is None:
        return {}
    table: dict[int | str | None, Any] = {**bounds} if isinstance(bounds, Mapping) else {None: bounds}
    for key, pair in table.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                f"bounds={bounds!r}: expected a pair (lower, upper) for all inputs, or a dict from the names or "
                "positions of inputs to pairs"
            )
        lower, upper = (np.asarray(b, np.float64) for b in pair)
        if not np.all(lower < upper):
            raise ValueError(f"bounds of {'every input' if key is None else key}: lower must be below upper")
    return table
