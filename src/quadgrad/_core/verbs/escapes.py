"""Tensors that require grad, that f closes over, and that leave torch inside of it: no graph shows that.

What f gives requires no grad, as where nobody wants a gradient. So f is called once more, by one who watches, but
only where a look at the names in its code finds such a tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from quadgrad._core.gradient.parameters import captured
from quadgrad._core.problem import Problem

__all__ = ["escaped"]

ESCAPES = {"__complex__", "__float__", "__int__", "ge", "gt", "item", "le", "lt", "tensor", "tolist"}
"""Torch functions out of which no derivative comes. What is detached, or computed under ``no_grad``, is meant."""

DEPTH = 3
"""So many functions deep names are looked at."""


def escaped(problem: Problem) -> list[str]:
    """Return the names of tensors that f closes over and that leave torch in it, where what it gives has no graph.

    The call is outside of transforms, and gradients are on.
    """
    function = problem.integrand.function
    if not any(_requires_grad(value) for value in _visible(function, DEPTH)):
        return []
    with torch.enable_grad(), _Watch() as watch:
        problem.integrand.probe(problem.limits.part(0, 1).detach().inner_points(1))
    names = {id(tensor): name for name, tensor in captured(function)}
    return [names.get(id(t), "a tensor that f closes over") for t in watch.left.values()]


class _Watch(TorchFunctionMode):
    """Collects what leaves torch."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a torch function."""
        if getattr(func, "__name__", "") in ESCAPES and torch.is_grad_enabled():
            self.left |= {id(t): t for t in args if isinstance(t, Tensor) and t.requires_grad}
        return func(*args, **(kwargs or {}))


def _requires_grad(value: Any) -> bool:
    if isinstance(value, Module):
        return any(p.requires_grad for p in value.parameters())
    return isinstance(value, Tensor) and value.requires_grad and value.numel() > 0  # else a mere flag


def _visible(function: Any, depth: int) -> Iterator[Any]:
    """Yield what the names in a function's code stand for; ``inspect`` takes so long that calls would notice."""
    for value in _names(function) if depth else ():
        yield value
        if not isinstance(value, Tensor | Module):
            yield from _visible(value, depth - 1)


def _names(function: Any) -> Iterable[Any]:
    if isinstance(function, functools.partial):
        return (function.func, *function.args, *function.keywords.values())
    if isinstance(function, Module):
        return (function,)
    if isinstance(function, MethodType):
        return (function.__self__, function.__func__)
    if isinstance(function, FunctionType):
        cells = (getattr(cell, "cell_contents", None) for cell in function.__closure__ or ())
        return (*cells, *map(function.__globals__.get, function.__code__.co_names))
    return () if isinstance(function, type | ModuleType) else getattr(function, "__dict__", {}).values()
