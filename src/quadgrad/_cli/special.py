"""Special functions of a formula that torch lacks, or lacks the derivatives of.

Called by the formulas of the command line, with float64 tensors on the CPU.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import scipy
import torch
from torch import Tensor

__all__ = [
    "bessel", "gamma", "i0", "i1", "iv", "j0", "j1", "jv", "k0", "k1", "kv", "softplus", "where", "y0", "y1", "yv",
]  # fmt: skip

KINDS = {"jv": (0.5, -0.5), "yv": (0.5, -0.5), "iv": (0.5, 0.5), "kv": (-0.5, -0.5)}
"""The derivative of each of SciPy's Bessel functions by x: shares of those of the orders below and above (DLMF
10.6.1, 10.29.1)."""


class _Bessel(torch.autograd.Function):
    """A Bessel function of an order that is no variable, with all derivatives by x."""

    @staticmethod
    def forward(ctx: Any, kind: str, order: Tensor, x: Tensor) -> Tensor:
        """Call SciPy's function."""
        ctx.kind = kind
        ctx.save_for_backward(order, x)
        values = getattr(scipy.special, kind)(order.numpy(force=True), x.numpy(force=True))
        return torch.as_tensor(values, dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return the derivative by x, made of functions of other orders."""
        order, x = ctx.saved_tensors
        below, above = KINDS[ctx.kind]
        slope = below * bessel(ctx.kind, order - 1.0, x) + above * bessel(ctx.kind, order + 1.0, x)
        return None, None, (gradients[0] * slope).sum_to_size(x.shape)


def bessel(kind: str, order: Tensor, x: Tensor) -> Tensor:
    """Return ``scipy.special.jv``, ``yv``, ``iv`` or ``kv``, differentiable by x; NaN where it is not real.

    Raises
    ------
    ValueError
        If a derivative by the order is asked for.
    """
    if order.requires_grad:
        raise ValueError(f"{kind}: there is no derivative by the order of a Bessel function")
    return _Bessel.apply(kind, order, x)


def gamma(x: Tensor) -> Tensor:
    """Return the gamma function: torch has its logarithm only, which drops the sign."""
    sign = torch.where(x > 0.0, 1.0, 1.0 - 2.0 * torch.remainder(x.detach().floor(), 2.0))
    return sign * torch.exp(torch.lgamma(x))


def softplus(x: Tensor) -> Tensor:
    """Return ``log(1 + exp(x))``."""
    return torch.logaddexp(x, torch.zeros_like(x))


def where(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Return one where a number is not 0, the other where it is."""
    return torch.where(condition != 0.0, yes, no)


def _of_order(kind: str, order: float, x: Tensor) -> Tensor:
    return bessel(kind, torch.full_like(x, order, requires_grad=False), x)


jv, yv, iv, kv = (partial(bessel, kind) for kind in ("jv", "yv", "iv", "kv"))
(j0, j1), (y0, y1), (i0, i1), (k0, k1) = (
    [partial(_of_order, kind, order) for order in (0.0, 1.0)] for kind in ("jv", "yv", "iv", "kv")
)
