"""Programs of single precision run in double precision: every operation gets what it asks for, but wider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import belongs_to_transform, flatten_tree, unflatten_tree
from quadgrad.doctor.names import is_in_place

__all__ = ["NARROW", "widen", "wider"]

NARROW = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_CASTS = {
    "float": Tensor.double,
    "half": Tensor.double,
    "bfloat16": Tensor.double,
    "cfloat": lambda t: t.to(torch.complex128),
}
_EXACT = frozenset(("tensor", "as_tensor", "full", "scalar_tensor"))
_LEAVES_ALONE = frozenset(("data=", "set_", "requires_grad_", "grad="))


def wider(value: Any) -> Any:
    """Return a tensor, or a dtype, of double precision; other things as they are."""
    if isinstance(value, Tensor):
        return value.to(NARROW[value.dtype]) if value.dtype in NARROW else value
    return NARROW.get(value, value) if isinstance(value, torch.dtype) else value


def widen(func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
    """Call a torch function with tensors and dtypes of double precision; what it writes to stays what it is."""
    if name in _CASTS and not kwargs:
        return _CASTS[name](args[0])
    if name in _LEAVES_ALONE:
        return func(*args, **kwargs)
    if is_in_place(name):
        double = isinstance(args[0], Tensor) and args[0].dtype not in NARROW
        rest, form = flatten_tree((args[1:], kwargs))
        rest = [wider(each) if double or isinstance(each, torch.dtype) else each for each in rest]
        more, kwargs = unflatten_tree(rest, form)
        return func(args[0], *more, **kwargs)
    leaves, form = flatten_tree((args, kwargs))
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        # What draws numbers draws the same ones as it does in single precision; they are widened afterwards. A
        # number that becomes a tensor would be rounded on the way.
        result = func(*args, **kwargs)
        if name in _EXACT and isinstance(result, Tensor) and result.dtype in NARROW:
            return func(*args, **{**kwargs, "dtype": NARROW[result.dtype]})
        return _widened(result)
    args, kwargs = unflatten_tree([wider(leaf) for leaf in leaves], form)
    return _widened(func(*args, **kwargs))


def _widened(result: Any) -> Any:
    """Return what a function made in double precision; a leaf that requires grad again as one."""
    if isinstance(result, Tensor):
        if result.dtype not in NARROW or belongs_to_transform(result):
            return result
        if result.requires_grad and result.is_leaf:
            return wider(result.detach()).requires_grad_()
        return wider(result)
    return result
