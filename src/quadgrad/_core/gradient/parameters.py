"""Tensors that the integrand closes over, declared with ``params=`` so that their derivative can be searched.

A mode that differentiates f node by node has to call it with other tensors in the place of those it closes
over. Undeclared ones are found by doing just that and looking whether a derivative is left.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from quadgrad._core._torch import carries_derivative, leaves_behind
from quadgrad._core.errors import IntegrandError
from quadgrad._core.integrand import Integrand

__all__ = ["Parameters", "Substitution", "closure_of", "declare", "refuse_undeclared"]


@dataclass(frozen=True)
class Parameters:
    """Declared tensors and what messages call them."""

    names: tuple[str, ...] = ()
    tensors: tuple[Tensor, ...] = ()

    def wanted(self) -> Parameters:
        """Return those that a derivative is asked of."""
        chosen = [
            (name, tensor)
            for name, tensor in zip(self.names, self.tensors, strict=True)
            if is_differentiable(tensor) and carries_derivative(tensor)
        ]
        return Parameters(tuple(name for name, _ in chosen), tuple(tensor for _, tensor in chosen))

    def one(self, place: int) -> Parameters:
        """Return one of them alone."""
        return Parameters((self.names[place],), (self.tensors[place],))


NONE = Parameters()


def is_differentiable(value: Any) -> bool:
    """Whether the value is a tensor of real or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def declare(params: Any) -> Parameters:
    """Return what ``params=`` names: a tensor or module, or a sequence or mapping of them.

    Raises
    ------
    TypeError
        If it holds anything else.
    """
    if params is None:
        return NONE
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _named(params, "params"):
        found.setdefault(id(tensor), (name, tensor))
    return Parameters(tuple(name for name, _ in found.values()), tuple(tensor for _, tensor in found.values()))


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


class Substitution(TorchFunctionMode):
    """Inside, every torch function that is given one of ``old`` computes with the one of ``new`` in its place.

    Unlike ``torch.func.functional_call`` it reaches closed-over tensors too, not only those of a module.
    """

    def __init__(self, old: Sequence[Tensor], new: Sequence[Tensor]) -> None:
        super().__init__()
        self._new = {id(one): other for one, other in zip(old, new, strict=True)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self._exchange(args), **self._exchange(kwargs or {}))

    def _exchange(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._new.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)(self._exchange(each) for each in value)
        if type(value) is dict:
            return {key: self._exchange(each) for key, each in value.items()}
        return value


def refuse_undeclared(integrand: Integrand, declared: Parameters, x: Tensor) -> None:
    """Raise if f at the node ``x`` depends on a tensor that is neither an argument nor declared.

    Raises
    ------
    IntegrandError
        Naming the tensor by its shape and, where there is one, the name it has in f's closure.
    """
    still = tuple(tensor.detach() for tensor in declared.tensors)
    with torch.enable_grad(), Substitution(declared.tensors, still):
        _, y = integrand.with_still_arguments().probe(x)
    if not carries_derivative(y):
        return
    names = dict(_captured(integrand.function))
    known = {id(tensor): name for name, tensor in zip(declared.names, declared.tensors, strict=True)}
    lost = [t for t in leaves_behind(y) if id(t) not in known]
    if not lost:
        lost = [t for t, _ in names.values() if id(t) not in known and carries_derivative(t)]
    if lost:
        text = ", ".join(
            f"a tensor of shape {tuple(t.shape)}" + (f" ({names[id(t)][1]})" if id(t) in names else "")
            for t in lost
        )
    else:
        text = "a tensor computed outside f from a declared one (compute it inside f, or declare it instead)"
    raise IntegrandError(
        f"the integrand depends on {text}, which is neither in args nor in params: the derivative with respect to "
        "it would not be resolved. Pass it in args if it has one value for each integral, else name it in params="
    )


def _captured(f: Any, depth: int = 4) -> Iterator[tuple[int, tuple[Tensor, str]]]:
    """Name the tensors that a function closes over, those of modules by their path."""
    for name, value in closure_of(f):
        if isinstance(value, Tensor):
            yield id(value), (value, name)
        elif isinstance(value, Module):
            for path, tensor in value.named_parameters():
                yield id(tensor), (tensor, f"{name}.{path}")
        elif isinstance(value, list | tuple):
            for i, each in enumerate(value):
                if isinstance(each, Tensor):
                    yield id(each), (each, f"{name}[{i}]")
        elif callable(value) and depth and not inspect.isclass(value):
            yield from _captured(value, depth - 1)


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
