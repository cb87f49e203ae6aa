"""Inverse distribution functions that torch lacks: SciPy's values, with derivatives of every order.

What is computed is the logarithm of the modulus: over the whole of (0, 1) it is smooth in the parameters, and no
quantile underflows, while those of Gamma(0.01) range over 2,000 orders of magnitude. Derivatives are differences of
sixth order in the parameters' logarithms: steps of half a percent of a parameter leave ten digits of the first
derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import scipy  # which imports scipy.special when that is first used: a sixth of the start
import torch
from torch import Tensor

__all__ = ["elementwise", "log_quantile"]

STEP = 2.0**-8
"""Of a difference, in the logarithm of a parameter: truncation and rounding are both near 1e-12."""

SMALL = 1e-290
"""Below this a quantile is taken from the power law that it follows there."""

Array = np.ndarray[Any, np.dtype[np.float64]]


def _gamma(u: Array, a: Array) -> Array:
    x = scipy.special.gammaincinv(a, u)
    small = (np.log(u) + scipy.special.gammaln(a + 1.0)) / a
    return np.where(x < SMALL, small, np.log(np.maximum(x, SMALL)))


def _beta(u: Array, a: Array, b: Array) -> Array:
    x = scipy.special.betaincinv(a, b, u)
    small = (np.log(u) + np.log(a) + scipy.special.betaln(a, b)) / a
    return np.where(x < SMALL, small, np.log(np.maximum(x, SMALL)))


def _student(u: Array, df: Array) -> Array:
    return np.log(np.maximum(np.abs(scipy.special.stdtrit(df, np.minimum(u, 1.0 - u))), SMALL))


FAMILIES: dict[str, Callable[..., Array]] = {"gamma": _gamma, "beta": _beta, "student": _student}


def log_quantile(family: str, u: Tensor, *parameters: Tensor) -> Tensor:
    """Return the logarithm of the modulus of a quantile, differentiable by the parameters but not by u.

    Parameters
    ----------
    family : str
        ``"gamma"`` (concentration), ``"beta"`` (both) or ``"student"`` (degrees of freedom), of unit scale.
    u : Tensor
        Probabilities, within (0, 1).
    *parameters : Tensor
        Positive; broadcast with u.
    """
    logs = [torch.log(p) for p in parameters]
    return _LogQuantile.apply(family, (0,) * len(logs), u, *logs)


class _LogQuantile(torch.autograd.Function):
    """A derivative of the logarithm, ``orders[i]`` times by the logarithm of parameter i."""

    generate_vmap_rule = False

    @staticmethod
    def forward(family: str, orders: tuple[int, ...], u: Tensor, *logs: Tensor) -> Tensor:
        arrays = [np.asarray(t.detach().cpu().double()) for t in (u, *logs)]
        y = np.asarray(_difference(FAMILIES[family], orders, *arrays))
        wide = torch.float32 if u.device.type == "mps" else torch.float64
        return torch.as_tensor(y, dtype=wide, device="cpu").to(u.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.family, ctx.orders, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        u, *logs = ctx.saved_tensors
        found: list[Tensor | None] = []
        for i, log in enumerate(logs):
            if ctx.needs_input_grad[3 + i]:
                slope = _LogQuantile.apply(ctx.family, _raised(ctx.orders, i), u, *logs)
                found.append((gradients[0] * slope).sum_to_size(log.shape).to(log.dtype))
            else:
                found.append(None)
        return None, None, None, *found

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        u, *logs = ctx.saved_tensors
        total = None
        for i, tangent in enumerate(tangents[3:]):
            if tangent is not None:
                term = tangent * _LogQuantile.apply(ctx.family, _raised(ctx.orders, i), u, *logs)
                total = term if total is None else total + term
        return total

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, int]:
        family, orders, *tensors = inputs
        return _LogQuantile.apply(family, orders, *_align(tensors, in_dims[2:])), 0


def elementwise(function: Callable[..., Array], *tensors: Tensor) -> Tensor:
    """Return a function of NumPy arrays, which are broadcast, without derivatives, at tensors; also under vmap."""
    return _Elementwise.apply(function, *(t.detach() for t in tensors))


class _Elementwise(torch.autograd.Function):
    generate_vmap_rule = False

    @staticmethod
    def forward(function: Callable[..., Array], *tensors: Tensor) -> Tensor:
        y = np.asarray(function(*(np.asarray(t.detach().cpu().double()) for t in tensors)))
        wide = torch.float32 if tensors[0].device.type == "mps" else torch.float64
        return torch.as_tensor(y, dtype=wide, device="cpu").to(tensors[0].device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, int]:
        function, *tensors = inputs
        return _Elementwise.apply(function, *_align(tensors, in_dims[1:])), 0


def _align(tensors: list[Any], lanes: tuple[int | None, ...]) -> list[Any]:
    """Return tensors that broadcast, with the lanes of a vmap as their first dimension."""
    pairs = list(zip(tensors, lanes, strict=True))
    ndim = max(t.ndim - (lane is not None) for t, lane in pairs)
    moved = [(t if lane is None else t.movedim(lane, 0), lane) for t, lane in pairs]
    return [
        t if lane is None else t.reshape(t.shape[0], *(1,) * (ndim - t.ndim + 1), *t.shape[1:]) for t, lane in moved
    ]


def _raised(orders: tuple[int, ...], place: int) -> tuple[int, ...]:
    return tuple(n + (i == place) for i, n in enumerate(orders))


@cache
def _stencil(order: int) -> tuple[tuple[int, float], ...]:
    """Return steps and coefficients of a difference; orders above 2 are made of those of order 1 and 2."""
    first = np.array([-1 / 60, 3 / 20, -3 / 4, 0.0, 3 / 4, -3 / 20, 1 / 60])
    second = np.array([1 / 90, -3 / 20, 3 / 2, -49 / 18, 3 / 2, -3 / 20, 1 / 90])
    whole = np.ones(1)
    for one in [second] * (order // 2) + [first] * (order % 2):
        whole = np.convolve(whole, one)
    reach = whole.size // 2
    return tuple((k - reach, float(c)) for k, c in enumerate(whole) if c != 0.0)


def _difference(function: Callable[..., Array], orders: tuple[int, ...], u: Array, *logs: Array) -> Array:
    total: Any = 0.0
    for corner in product(*(_stencil(n) for n in orders)):
        moved = [np.exp(log + STEP * k) for log, (k, _) in zip(logs, corner, strict=True)]
        weight = np.prod([c for _, c in corner])
        total = total + weight * function(u, *moved)
    return total / STEP ** sum(orders)
