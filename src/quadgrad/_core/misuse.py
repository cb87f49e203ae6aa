"""What is taken for its value: results in arithmetic, with an index, as tensors. It says what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch

__all__ = ["NotItsValue", "refusal"]

OPERATIONS = {
    "__add__": "{} + ...", "__radd__": "... + {}", "__sub__": "{} - ...", "__rsub__": "... - {}",
    "__mul__": "{} * ...", "__rmul__": "... * {}", "__truediv__": "{} / ...", "__rtruediv__": "... / {}",
    "__pow__": "{} ** ...", "__rpow__": "... ** {}", "__matmul__": "{} @ ...", "__rmatmul__": "... @ {}",
    "__lt__": "{} < ...", "__le__": "{} <= ...", "__gt__": "{} > ...", "__ge__": "{} >= ...",
    "__len__": "len({})", "__neg__": "-{}", "__abs__": "abs({})", "__round__": "torch.round({})",
    "__getitem__": "{}[...]", "__float__": "float({})", "__int__": "int({})", "__complex__": "complex({})",
    "__array__": "{}",
}  # fmt: skip
"""Python's names of what is asked for, and how that is written."""


TENSORFLOWS = ("get_shape",)
"""What tensors of TensorFlow have and torch's have not."""


class NotItsValue:
    """A class with a value, whose objects say so where they are used in its place."""

    its_value: ClassVar[str] = "result.value"
    """How the value is written."""

    its_array: ClassVar[str] = "result.value.numpy(force=True)"
    """How the value's array is written."""

    parts: ClassVar[tuple[str, ...]] = ()
    """What others would return as a tuple."""

    elsewhere: ClassVar[dict[str, str]] = {}
    """Attributes by the names that others give them."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        """Refuse to be an argument of a torch function."""
        name = str(getattr(function, "__name__", "exp")).strip("_")
        raise TypeError(f"this {cls.__name__} is not its value: give torch.{name} {cls.its_value} in its place")

    if not TYPE_CHECKING:  # for which attributes that do not exist stay mistakes

        def __getattr__(self, name: str) -> NoReturn:
            """Name what has another name here, and what the value has."""
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in self.elsewhere:
                text += f": that is {self.elsewhere[name]} here"
            elif not name.startswith("_") and (hasattr(torch.Tensor, name) or name in TENSORFLOWS):
                text += f", its value has: {self.its_value}.{name}"
            raise AttributeError(text, name=name, obj=self)

    def __bool__(self) -> bool:
        return True

    def __format__(self, spec: str) -> str:
        if spec:
            raise TypeError(refusal(type(self), f"f'{{{self.its_value}:{spec}}}'"))
        return str(self)


def refusal(kind: type[NotItsValue], instead: str) -> str:
    """Say what to write where an object was taken for its value."""
    return f"this {kind.__name__} is not its value: write {instead}"


def _refuser(name: str, written: str) -> Callable[..., NoReturn]:
    def refuse(self: NotItsValue, *others: Any, **options: Any) -> NoReturn:
        if name == "__array__":
            raise TypeError(refusal(type(self), self.its_array))
        index = others[0] if name == "__getitem__" else ...
        shown = written.format(self.its_value).replace("[...]", f"[{_show(index)}]")
        if name == "__getitem__" and isinstance(index, int) and 0 <= index < len(self.parts):
            shown += f" for one integral of a batch, {self.parts[index]} for what other libraries return there"
        raise TypeError(refusal(type(self), shown))

    refuse.__name__ = name
    refuse.__doc__ = f"Refuse, and say that ``{written.format(NotItsValue.its_value)}`` is meant."
    return refuse


def _show(index: Any) -> str:
    if isinstance(index, slice):
        return ":".join("" if part is None else str(part) for part in (index.start, index.stop))
    return "..." if index is ... else f"{index!r:.20}"


for _name, _written in OPERATIONS.items():
    setattr(NotItsValue, _name, _refuser(_name, _written))
