"""What is asked for: f, perhaps a weight, and a distribution whose parameters travel as arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.advice import Called, remedy, spread
from quadgrad._core.broadcasting import broadcast_shapes
from quadgrad._core.distributions.parts import Parts, floating, take_apart
from quadgrad._core.errors import IntegrandError
from quadgrad._core.integrand import Element, element, take_arguments, tensor_and_ndim
from quadgrad._core.tolerance import sum_dtype, working_dtype

__all__ = ["Question", "ask", "core_ndim"]


@dataclass(slots=True)
class Question:
    """The mean of f over a distribution, or the quotient of those of ``f * weight`` and of ``weight``.

    ``args`` are the caller's, tensors and :class:`Element`. ``dtype`` is that in which f is called, ``wide`` that
    of places and sums. ``event`` is f's, known once it was called.
    """

    f: Callable[..., Any]
    weight: Callable[..., Any] | None
    args: tuple[Any, ...]
    distribution: Any
    parts: Parts
    batch_shape: tuple[int, ...]
    dtype: torch.dtype
    wide: torch.dtype
    device: torch.device
    event: tuple[int, ...] = ()

    @property
    def event_ndim(self) -> int:
        """The number of dimensions of one value of the distribution."""
        return len(self.distribution.event_shape)

    def still(self) -> Any:
        """Return the distribution without gradient, in the dtype of the sums."""
        return self.parts.build(floating([t.tensor.detach() for t in self.parts.tensors], self.wide))

    def without_gradient(self, places: Sequence[int]) -> Question:
        """Return the question with these arguments detached."""
        if not places:
            return self
        args = list(self.args)
        for i in places:
            given = args[i]
            args[i] = Element(given.tensor.detach(), given.ndim) if isinstance(given, Element) else given.detach()
        return replace(self, args=tuple(args))

    def with_still_parameters(self) -> Question:
        """Return the question with the distribution's parameters detached."""
        tensors = tuple(Element(t.tensor.detach(), t.ndim) for t in self.parts.tensors)
        return replace(self, parts=replace(self.parts, tensors=tensors))

    def arguments(self, *more: Any, detached: bool = False) -> tuple[Any, ...]:
        """Return arguments and parameters, then ``more`` of a method's own, as those of one integrand."""
        parameters = self.parts.tensors
        if detached:
            parameters = tuple(Element(t.tensor.detach(), t.ndim) for t in parameters)
        return (*self.args, *parameters, *more)

    def split(self, tensors: Sequence[Any]) -> tuple[Sequence[Any], list[Any], Sequence[Any]]:
        """Return arguments, parameters in the dtype of the sums, and the method's own among those that arrived."""
        first, last = len(self.args), len(self.args) + len(self.parts.tensors)
        return tensors[:first], floating(tensors[first:last], self.wide), tensors[last:]

    def values(self, x: Tensor, args: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Return f at x ``(*lead, *event)``: ``(*lead, *f's event)``, and the weights ``lead``."""
        lead = x.shape[: x.ndim - self.event_ndim]
        if x.is_floating_point():
            x = x.to(self.dtype)
        if not self.batch_shape:  # as one distribution gives it, whatever lanes of a transform have joined
            x = x.reshape(-1, *self.distribution.event_shape)
            args = [_flatten(a, core_ndim(own), lead) for a, own in zip(args, self.args, strict=True)]
        count = x.ndim - self.event_ndim
        y = _call("f", self.f, x, args, count)
        self.event = tuple(y.shape[count:])
        weight = None
        if self.weight is not None:
            weight = _call("weight", self.weight, x, args, count)
            if weight.ndim > count:
                raise IntegrandError(
                    f"weight returned shape {tuple(weight.shape)} for x of shape {tuple(x.shape)}: one number for "
                    f"each draw is needed, {tuple(x.shape[:count])}"
                )
            weight = weight.reshape(lead)
        return y.reshape(*lead, *self.event), weight

    def columns(self, y: Tensor) -> Tensor:
        """Return values ``(*lead, *event)`` with one dimension for the event."""
        return y.reshape((*y.shape[: y.ndim - len(self.event)], math.prod(self.event)))


def core_ndim(given: Any) -> int:
    """Return the number of dimensions that each element of an argument has."""
    return given.ndim if isinstance(given, Element) else 0


def _flatten(value: Any, core: int, lead: Sequence[int]) -> Any:
    """Return an argument for draws in one dimension."""
    if not isinstance(value, Tensor):
        return value
    shape = value.shape[value.ndim - core :]
    if value.shape[: value.ndim - core].numel() == 1:
        return value.reshape(shape)
    return value.expand(*lead, *shape).reshape(-1, *shape)


ONE_BY_ONE = "quadgrad.bridge.wrap(f, scalars=True)"
"""What makes a function of draws of a function of one number."""

COORDINATES = ": coordinate i is x[..., i], the sum of all x.sum(-1)"


def _call(name: str, function: Callable[..., Any], x: Tensor, args: Sequence[Any], count: int) -> Tensor:
    """Return what a function is at draws, whose first ``count`` dimensions are not the event's."""
    called = Called(function, x, args, point_ndim=x.ndim - count, one_by_one=ONE_BY_ONE)
    try:
        y = function(x, *args)
    except Exception as error:
        if not any(said.startswith("quadgrad") for said in getattr(error, "__notes__", ())):  # nearer to f
            error.add_note(
                f"quadgrad: raised by {name}; x of shape {tuple(x.shape)}{COORDINATES * (x.ndim > count)}"
                + remedy(error, called)
            )
        raise
    if not isinstance(y, Tensor):
        y = spread(name, y, called)
    if y.shape[:count] != x.shape[:count]:
        raise IntegrandError(
            f"{name} returned shape {tuple(y.shape)}; expected {tuple(x.shape[:count])}, one value for each draw, "
            f"perhaps followed by an event; x has shape {tuple(x.shape)}{COORDINATES * (x.ndim > count)}. "
            "A tensor with the batch shape must not "
            "be closed over: pass it in args, a vector or matrix for each element as quadgrad.element(t, ndim=k)"
        )
    return y if y.is_floating_point() or y.is_complex() else y.to(torch.get_default_dtype())


def _instead(value: Any) -> str:
    """Say what to write for what is taken for a distribution."""
    if isinstance(value, Tensor | np.ndarray):
        return ": the mean over a sample is f(sample).mean(0)"
    if type(value).__module__.startswith("scipy."):
        return ": take the one of torch.distributions, or integrate f times the density, wrapped, by quadgrad.quad"
    return ""


def ask(f: Any, distribution: Any, args: Any, params: Any, weight: Any) -> Question:
    """Check what the caller passed, and return it."""
    for name, function in (("f", f), ("weight", weight)):
        if not callable(function) and not (name == "weight" and function is None):
            hint = ": f comes first, expectation(f, distribution)" * callable(distribution)
            raise TypeError(f"{name} must be a function {name}(x, *args), not {type(function).__name__}{hint}")
    params = params if isinstance(params, tuple | list) else (params,)
    if not isinstance(distribution, torch.distributions.Distribution):
        if not callable(distribution):
            raise TypeError(
                "distribution must be a torch.distributions.Distribution or a function of params that returns one, "
                f"not {type(distribution).__name__}{_instead(distribution)}"
            )
        if isinstance(distribution, type) and not params:
            name = distribution.__name__
            raise TypeError(f"distribution is the class {name}: pass an object of it, {name}(...), or its params=")
        made = distribution(*(p.tensor if isinstance(p, Element) else p for p in params))
        if not isinstance(made, torch.distributions.Distribution):
            raise TypeError(f"distribution(*params) returned {type(made).__name__}, not a Distribution")
        try:
            parts = take_apart(made)
        except TypeError:
            parts = _from_params(distribution, params)
        distribution = made
    elif params:
        raise ValueError("params are passed on to a function that returns the distribution: this is one already")
    else:
        parts = take_apart(distribution)
    args = take_arguments(args)
    tensors = [tensor_and_ndim(v)[0] for v in (*args, *parts.tensors)]
    tensors = [t for t in tensors if isinstance(t, Tensor)]
    device = tensors[-1].device if tensors else torch.device("cpu")
    shapes = {f"args[{i}]": tuple(_lead(v)) for i, v in enumerate(args) if isinstance(v, Tensor | Element)}
    shapes["distribution.batch_shape"] = tuple(distribution.batch_shape)
    try:
        batch_shape = tuple(broadcast_shapes(*shapes.values()))
    except RuntimeError:
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"the batch shapes do not broadcast: {shown}. Dimensions that belong to one draw are made part of the "
            "event by torch.distributions.Independent, those of one argument by quadgrad.element(t, ndim=k)"
        ) from None
    wide = sum_dtype(device)
    return Question(f, weight, args, distribution, parts, batch_shape, working_dtype(tensors), wide, device)


def _lead(value: Tensor | Element) -> torch.Size:
    tensor, ndim = tensor_and_ndim(value)
    return tensor.shape[: tensor.ndim - ndim]


def _from_params(function: Callable[..., Any], params: Sequence[Any]) -> Parts:
    """Return the parts of a distribution that only the caller's function can build."""
    elements = [p if isinstance(p, Element) else element(p, 0) if isinstance(p, Tensor) else None for p in params]

    def build(tensors: Sequence[Any]) -> Any:
        left = iter(tensors)
        return function(*(p if e is None else next(left) for p, e in zip(params, elements, strict=True)))

    return Parts(tuple(e for e in elements if e is not None), build)
