"""Tensors that the integrand closes over, declared with ``params=`` so that their derivative can be searched.

A mode that differentiates f node by node has to call it with other tensors in the place of those it closes
over. Undeclared ones are found by doing just that and looking whether a derivative is left.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from quadgrad._core._torch import carries_derivative, leaves_behind
from quadgrad._core.closure import Closure
from quadgrad._core.errors import IntegrandError
from quadgrad._core.integrand import Integrand

__all__ = ["Parameters", "captured", "closure_of", "declare", "is_variable", "refuse_undeclared"]


@dataclass(frozen=True)
class Parameters:
    """Declared tensors and what messages call them."""

    names: tuple[str, ...] = ()
    tensors: tuple[Tensor, ...] = ()

    @staticmethod
    def of(named: Iterable[tuple[str, Tensor]]) -> Parameters:
        """Return tensors with their names."""
        pairs = list(named)
        return Parameters(tuple(name for name, _ in pairs), tuple(tensor for _, tensor in pairs))

    def differentiated(self) -> Parameters:
        """Return those that a derivative is asked of."""
        pairs = zip(self.names, self.tensors, strict=True)
        return Parameters.of((name, t) for name, t in pairs if is_variable(t))

    def replaced(self, tensors: Iterable[Tensor]) -> Closure:
        """Return a context in which torch computes with others in their place, wherever f has them from."""
        return Closure(zip(self.tensors, tensors, strict=True))

    def held_still(self) -> Closure:
        """Return a context in which no derivative flows to them."""
        return self.replaced(tensor.detach() for tensor in self.tensors)

    def one(self, place: int) -> Parameters:
        """Return one of them alone."""
        return Parameters((self.names[place],), (self.tensors[place],))


def is_variable(value: Any) -> bool:
    """Whether the value is a tensor of real or complex numbers to which derivatives flow."""
    numbers = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return numbers and carries_derivative(value)


def declare(params: Any) -> Parameters:
    """Return what ``params=`` names: a tensor or module, or a sequence or mapping of them.

    Raises
    ------
    TypeError
        If it holds anything else.
    """
    pairs: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _named(params, "params"):
        pairs.setdefault(id(tensor), (name, tensor))
    return Parameters.of(pairs.values())


def _named(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if value is None:
        return
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Module):
        yield from ((f"{name}.{path}", tensor) for path, tensor in value.named_parameters())
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _named(each, f"{name}[{key!r}]")
    elif isinstance(value, Sequence) and not isinstance(value, str) or isinstance(value, Iterator):
        for i, each in enumerate(value):
            yield from _named(each, f"{name}[{i}]")
    else:
        raise TypeError(
            f"{name} is {type(value).__name__}: params takes tensors and modules, or a sequence of them"
        )


def refuse_undeclared(integrand: Integrand, declared: Parameters, x: Tensor) -> None:
    """Raise if f at the node ``x`` depends on a tensor that is neither an argument nor declared.

    Raises
    ------
    IntegrandError
        Naming the tensor by its shape and, where there is one, the name it has in f's closure.
    """
    with torch.enable_grad(), declared.held_still():
        _, y = integrand.with_still_arguments().probe(x)
    if not carries_derivative(y):
        return
    named = {id(tensor): (name, tensor) for name, tensor in captured(integrand.function)}
    allowed = {id(tensor) for tensor in declared.tensors}
    lost = [t for t in leaves_behind(y) if id(t) not in allowed]
    if not lost:
        lost = [t for _, t in named.values() if id(t) not in allowed and carries_derivative(t)]
    if lost:
        text = ", ".join(
            f"a tensor of shape {tuple(t.shape)}" + (f" ({named[id(t)][0]})" if id(t) in named else "")
            for t in lost
        )
    else:
        text = "a tensor computed outside f from a declared one (compute it inside f, or declare it instead)"
    raise IntegrandError(
        f"the integrand depends on {text}, which is neither in args nor in params: the derivative with respect to "
        "it would not be resolved. Pass it in args if it has one value for each integral, else name it in params="
    )


def captured(f: Any, depth: int = 4) -> Iterator[tuple[str, Tensor]]:
    """Name the tensors that a function closes over, those of modules by their path."""
    for name, value in closure_of(f):
        if isinstance(value, Tensor | Module):
            yield from _named(value, name)
        elif isinstance(value, list | tuple):
            yield from ((f"{name}[{i}]", each) for i, each in enumerate(value) if isinstance(each, Tensor))
        elif isinstance(value, Mapping):
            yield from ((f"{name}[{key!r}]", each) for key, each in value.items() if isinstance(each, Tensor))
        elif callable(value) and depth and not inspect.isclass(value):
            yield from captured(value, depth - 1)


def closure_of(f: Any) -> Iterator[tuple[str, Any]]:
    """Name what a function closes over, or an object that is called holds."""
    if isinstance(f, functools.partial):
        yield from ((f"argument {i} of functools.partial", value) for i, value in enumerate(f.args))
        yield from f.keywords.items()
        yield "function", f.func
    elif isinstance(f, Module):
        yield type(f).__name__, f
    elif inspect.ismethod(f):
        yield from vars(f.__self__).items() if not isinstance(f.__self__, Module) else [("self", f.__self__)]
        yield "function", f.__func__
    elif inspect.isfunction(f):
        variables = inspect.getclosurevars(f)
        yield from variables.nonlocals.items()
        yield from variables.globals.items()
    elif hasattr(f, "__dict__"):
        yield from vars(f).items()
        yield "call", getattr(type(f), "__call__", None)  # noqa: B004
