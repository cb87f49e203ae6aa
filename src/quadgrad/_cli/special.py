"""Special functions of a formula that torch lacks, or lacks the derivatives of.

Called by the formulas of the command line, with float64 tensors on the CPU.
"""

from __future__ import annotations

from typing import Any

import scipy
import torch
from torch import Tensor

__all__ = ["bessel", "gamma"]

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
