"""A number that came out of a tensor, and notes how it is compared and rounded: there a program jumps.

What torch does is seen; what Python does with ``x.item()`` is not, but for this.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["Number", "listener", "numbers_in"]

listener: ContextVar[Callable[[str, float, str, Any], Any] | None] = ContextVar("quadgrad_listener", default=None)
"""Is told of the operation, the quantity that decides, at which levels, and what came out; returns what counts."""


class Number(float):
    """A float that tells of comparisons and roundings; sums and products are such numbers again."""

    __slots__ = ()
    __hash__ = float.__hash__

    def __gt__(self, other: Any) -> Any:
        return _compare("gt", self, other, float.__gt__)

    def __lt__(self, other: Any) -> Any:
        return _compare("lt", self, other, float.__lt__)

    def __ge__(self, other: Any) -> Any:
        return _compare("ge", self, other, float.__ge__)

    def __le__(self, other: Any) -> Any:
        return _compare("le", self, other, float.__le__)

    def __int__(self) -> int:
        return _note("int", float(self), "integers", int(float(self)))

    def __trunc__(self) -> int:
        return _note("int", float(self), "integers", int(float(self)))

    def __floor__(self) -> int:
        return _note("floor", float(self), "integers", float(self).__floor__())

    def __ceil__(self) -> int:
        return _note("ceil", float(self), "integers", float(self).__ceil__())

    def __round__(self, ndigits: Any = None) -> Any:
        value = float(self)
        if ndigits is None:
            return _note("round", value, "halves", round(value))
        return _note("round", value * 10.0**ndigits, "halves", round(value, ndigits))

    def __floordiv__(self, other: Any) -> Any:
        value = float.__floordiv__(self, other)
        if value is NotImplemented:
            return value
        return _note("floordiv", float(self) / float(other), "integers", value)

    def __mod__(self, other: Any) -> Any:
        value = float.__mod__(self, other)
        if value is NotImplemented:
            return value
        _note("mod", float(self) / float(other), "integers", value)
        return Number(value)

    def __neg__(self) -> Number:
        return Number(-float(self))

    def __abs__(self) -> Number:
        return Number(abs(float(self)))


def _compare(op: str, a: Number, b: Any, compare: Callable[[float, Any], Any]) -> Any:
    value = compare(a, b)
    if value is NotImplemented or not isinstance(b, int | float):
        return value
    return _note(op, float(a) - float(b), "zero", value)


def _note(op: str, quantity: float, levels: str, value: Any) -> Any:
    hear = listener.get()
    return value if hear is None else hear(op, quantity, levels, value)


def _arithmetic(name: str) -> Callable[[Number, Any], Any]:
    operation = getattr(float, name)

    def compute(self: Number, other: Any) -> Any:
        value = operation(self, other)
        return Number(value) if type(value) is float else value

    compute.__name__ = name
    return compute


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow"):
    setattr(Number, f"__{_name}__", _arithmetic(f"__{_name}__"))


def numbers_in(value: Any) -> Any:
    """Return a float, or nested lists of them, as numbers that tell."""
    if type(value) is float:
        return Number(value)
    if type(value) is list:
        return [numbers_in(each) for each in value]
    return value
