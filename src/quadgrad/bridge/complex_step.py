"""The complex step, Im f(x + i h) / h: exact to rounding where f is analytic, and silently wrong where it is not.

So f is probed first: an array that remembers what is done to it is sent through f, and one directional
derivative is compared with central differences (Squire and Trapp, *SIAM Review* 40, 1998; Martins, Sturdza
and Alonso, *ACM TOMS* 29, 2003, list the operations that break it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quadgrad.bridge.contract import Array
from quadgrad.bridge.differences import differentiate
from quadgrad.bridge.problem import TINY, Problem, along

__all__ = ["complex_direction", "complex_jacobian", "refusal", "tracer"]

STEP = 1e-20
"""Relative to x where that is below 1: small beside any line that numbers can tell, at least 1e-16 of x wide."""
MARGIN = 8.0
"""Reported error over the noise of the output."""
SPACINGS = 2.0
"""Rounding inside f is taken to move its inputs by less than so many of their spacings."""
AGREEMENT, ROUNDING = 5.0, 1e-6
"""How far the two may be apart: in errors of the differences, and relatively."""

_UFUNCS = frozenset((
    "absolute", "arctan2", "ceil", "conjugate", "copysign", "equal", "fabs", "floor", "floor_divide", "fmax",
    "fmin", "fmod", "frexp", "greater", "greater_equal", "heaviside", "hypot", "less", "less_equal",
    "logaddexp", "maximum", "minimum", "modf", "nextafter", "not_equal", "remainder", "rint", "sign",
    "signbit", "spacing", "trunc", "vecdot",
))  # fmt: skip
_FUNCTIONS = frozenset((
    "allclose", "angle", "argmax", "argmin", "argsort", "array_equal", "clip", "histogram", "imag", "interp",
    "isclose", "max", "median", "min", "norm", "partition", "percentile", "ptp", "quantile", "real",
    "real_if_close", "round", "searchsorted", "sort", "vdot",
))  # fmt: skip
_METHODS = (
    "argmax",
    "argmin",
    "argpartition",
    "argsort",
    "clip",
    "conj",
    "conjugate",
    "partition",
    "round",
    "sort",
)


def complex_jacobian(problem: Problem, evaluate: Callable[[Array], Array]) -> tuple[Array, Array]:
    """Return the compressed Jacobian and its error from one complex evaluation for each group.

    Beside a narrow line it takes two: what f rounds moves its derivative, by as much as that changes over a few
    spacings of x.

    ``evaluate`` takes complex points ``(k, n)``, ``problem`` says where.
    """
    structure = problem.structure
    groups = np.arange(structure.groups)
    step = np.maximum(STEP * np.minimum(problem.near, 1.0), TINY)
    points = problem.x + 1j * step * structure.members(groups)
    width = structure.spread(step, groups)
    value = np.imag(evaluate(points)) / width if groups.size else np.zeros((0, problem.value.size))
    known = structure.known(groups)
    # No difference is taken, but what f loses in cancellation its derivative loses too, and 1 / x more.
    with np.errstate(all="ignore"):
        relative = np.where(problem.value != 0.0, problem.noise / np.abs(problem.value), 0.0)
    relative = np.maximum(relative, problem.precision)
    near = structure.spread(problem.near, groups)
    error = MARGIN * (relative * np.abs(value) + problem.noise / near)
    if problem.look is not None:
        length = np.abs(structure.spread(problem.look.direction, groups))
        with np.errstate(all="ignore"):
            moved = SPACINGS * problem.precision * near * problem.look.bend / length**2
        if np.any(known & (moved > error)):
            points += SPACINGS * problem.resolution * np.where(problem.upper > problem.x, 1.0, -1.0)
            error += np.abs(np.imag(evaluate(points)) / width - value)
    return np.where(known, value, 0.0), np.where(known, error, 0.0)


def complex_direction(problem: Problem, evaluate: Callable[[Array], Array], direction: Array) -> Array:
    """Return the derivatives along a direction, ``(m,)``, from one complex evaluation."""
    step = _along(problem, direction)
    return np.imag(evaluate(problem.x[None] + 1j * step * direction))[0] / step


def _along(problem: Problem, direction: Array) -> float:
    """Return the step along a direction, in units of it."""
    moving = direction != 0.0
    step = np.min(np.minimum(problem.near[moving], 1.0) / np.abs(direction[moving]), initial=1.0)
    return max(STEP * float(step), TINY)


def refusal(problem: Problem, evaluate: Callable[[Array], Array], traced: Callable[[list[str]], Any]) -> str | None:
    """Return why the complex step is wrong for a function, or None.

    Parameters
    ----------
    problem : Problem
        The function and the point.
    evaluate : callable
        From complex points ``(k, n)`` to outputs ``(k, m)``.
    traced : callable
        Calls the function with inputs from :func:`tracer` that append to the list what is done to them.
    """
    if np.iscomplexobj(problem.value):
        return "its output is complex"
    seen: list[str] = []
    signs = np.where(np.arange(problem.x.size) % 3 == 1, -1.0, 1.0)
    direction = signs * problem.scale / (1.0 + np.arange(problem.x.size) * 0.618 % 1.0)
    try:
        traced(seen)
        step = _along(problem, direction)
        output = evaluate(problem.x[None] + 1j * step * direction)[0]
    except Exception as error:
        return seen[0] if seen else f"it does not take complex numbers ({type(error).__name__}: {error})"
    if seen:
        return seen[0]
    if not np.iscomplexobj(output):
        return "it drops the imaginary part: its output is real for a complex input"
    central = differentiate(along(problem, direction), "central")
    with np.errstate(all="ignore"):
        allowed = AGREEMENT * central.error[0] + ROUNDING * np.abs(central.value[0])
        gap = np.abs(output.imag / step - central.value[0]) > allowed
        moved = np.abs(output.real - problem.value) > 1e3 * problem.noise + ROUNDING * np.abs(problem.value).max()
    if gap.any():
        i = int(np.argmax(gap))
        return (
            f"it differs from central differences: {output.imag[i] / step:.6g}, not {central.value[0, i]:.6g}, "
            f"along one "
            "direction (a modulus, a conjugate or a part taken inside?)"
        )
    return "its real part changes with an imaginary step" if moved.any() else None


# ------------------------------------------------------------------------------------------------ tracing


class _Traced(np.ndarray[Any, Any]):
    """A complex array that notes what breaks the complex step."""

    seen: list[str]

    def __array_finalize__(self, obj: Any) -> None:
        self.seen = getattr(obj, "seen", [])

    def _note(self, name: str) -> None:
        self.seen.append(f"it uses {name}, which is not analytic")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **keywords: Any) -> Any:
        if ufunc.__name__ in _UFUNCS:
            self._note(f"numpy.{ufunc.__name__}")
        if out is not None:
            keywords["out"] = tuple(_plain(o) for o in out)
        result = getattr(ufunc, method)(*(_plain(x) for x in inputs), **keywords)
        return self._wrapped(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func.__name__ in _FUNCTIONS:
            self._note(f"{func.__module__}.{func.__name__}")
        return self._wrapped(super().__array_function__(func, types, args, kwargs))

    def _wrapped(self, result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(self._wrapped(part) for part in result)
        if isinstance(result, np.ndarray | np.generic) and result.dtype.kind == "c":
            view = _plain(np.asarray(result)).view(_Traced)
            view.seen = self.seen
            return view
        return result

    def __getitem__(self, key: Any) -> Any:
        return self._wrapped(super().__getitem__(key))

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        self._note("float()")
        raise TypeError("float() of a complex number")

    def __abs__(self) -> Any:
        return np.absolute(self)

    @property
    def real(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._note(".real")
        return np.real(_plain(self))

    @property
    def imag(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._note(".imag")
        return np.imag(_plain(self))

    def astype(self, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        if not np.issubdtype(np.dtype(dtype), np.complexfloating):
            self._note(f".astype({np.dtype(dtype)})")
        return super().astype(dtype, *args, **kwargs)


def _noting(name: str) -> Callable[..., Any]:
    def method(self: _Traced, *args: Any, **kwargs: Any) -> Any:
        self._note(f".{name}()")  # pyright: ignore[reportPrivateUsage]
        return self._wrapped(getattr(_plain(self), name)(*args, **kwargs))  # pyright: ignore[reportPrivateUsage]

    return method


for _name in _METHODS:
    setattr(_Traced, _name, _noting(_name))


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, _Traced) else value


def tracer(inputs: Sequence[Array], seen: list[str]) -> list[Array]:
    """Return complex copies of the floating inputs that append to ``seen`` what breaks the complex step."""
    traced: list[Array] = []
    for x in inputs:
        if np.issubdtype(x.dtype, np.floating):
            x = np.asarray(x + 1j * STEP * np.minimum(np.abs(x), 1.0)).view(_Traced)
            x.seen = seen
        traced.append(x)
    return traced
