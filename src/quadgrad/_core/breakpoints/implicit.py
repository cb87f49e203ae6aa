"""Derivatives of the zeros of ``jumps``: the implicit function theorem, by Newton steps in ordinary torch.

A zero p of g(x, theta) has dp/dtheta = -g_theta / g_x. The step ``p - g(p, theta) / slope`` from the known zero,
with the slope held fixed, has this derivative and, being ordinary torch, needs no rule of its own; each further
step makes one more order of derivatives right, because it shrinks an error of order n in the change of
theta to order n + 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from quadgrad._core._torch import in_transform
from quadgrad._core.breakpoints.crossings import Zeros
from quadgrad._core.errors import IntegrandError
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.limits import Limits

__all__ = ["attach_derivatives"]

ORDER = 4
"""Derivatives of a zero are right up to this order."""

VALUE_ULPS = 4.0
"""The value of g is taken to be uncertain by this many eps times its magnitude near the zero."""

FLAT_ZERO = 1e-3
"""Where that makes the zero uncertain by more than this share of the stretch it was found in, g is flat there."""


def attach_derivatives(g: Integrand, zeros: Zeros, limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
    """Make the zeros differentiable with respect to whatever g depends on.

    Parameters
    ----------
    g : Integrand
        The function given as ``jumps``.
    zeros : Zeros
    limits : Limits
        Without gradient, for the number of integrals and a place where g may be called.

    Returns
    -------
    place : Tensor, shape (batch, k)
        The zeros, their values unchanged; NaN where there is none.
    blur : Tensor, shape (batch, k)
        How far each may be from the true one, because of its bracket and the rounding of g.
    sound : Tensor of bool, shape (batch, k)
        Where the derivative exists: g passes through 0 there and is not flat.
    """
    batch, k = zeros.place.shape
    valid = ~zeros.place.isnan()
    start = torch.where(valid, zeros.place, limits.inner_points(batch)[:, None]).T
    component = zeros.component.T

    def function(x: Tensor) -> Tensor:
        y = g(x, slice(0, batch))
        y = y.reshape(k, batch, math.prod(y.shape[2:]))
        return y.gather(2, component[:, :, None]).squeeze(2)

    slope = _slope(function, start).T
    rounding = VALUE_ULPS * torch.finfo(slope.dtype).eps * zeros.size / slope.abs()
    sound = valid & zeros.vanishes & slope.isfinite() & (rounding <= FLAT_ZERO * zeros.reach)
    steep = torch.where(sound, slope, 1.0).T
    place = start
    for _ in range(ORDER):
        place = place - torch.where(sound.T, function(place), 0.0) / steep
    place = place + (start - place).detach()
    blur = torch.where(sound, zeros.width + rounding, zeros.width)
    blur = torch.maximum(blur, VALUE_ULPS * torch.finfo(g.call_dtype).eps * start.T.abs())
    return torch.where(valid, place.T, torch.nan), blur, sound


def _slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the derivative of an elementwise function in x, itself without derivatives."""
    if x.numel() == 0:
        return x.detach()
    if in_transform():
        pulled = torch.func.vjp(function, x.detach())
        return pulled[1](torch.ones_like(x))[0].detach()
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
        slope = torch.autograd.grad(y.sum(), x, allow_unused=True)[0] if y.requires_grad else None
    if slope is None:
        raise IntegrandError(
            "jumps: the output does not depend on x through torch, so that the movement of its zeros cannot be "
            "found; write it with torch operations, without .detach(), .item() or NumPy"
        )
    return slope.detach()
