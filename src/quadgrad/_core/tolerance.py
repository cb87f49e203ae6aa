"""Precision is decided once, at the door: working dtype, dtype of the sums, tolerances."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

__all__ = ["Tolerance", "epsilon", "make_tolerance", "real_dtype", "returned_dtype", "sum_dtype", "working_dtype"]


@dataclass(frozen=True)
class Tolerance:
    """Converged means ``error <= max(atol, rtol * |value|)``; ``eps`` is the noise level of one value of f."""

    rtol: float
    atol: float
    eps: float

    @property
    def nothing(self) -> float:
        """What no integral can be told from 0 by: the smallest normal number over eps, of the dtype of the sums.

        Below it nothing is relative to anything: errors underflow before they are small beside their values.
        """
        info = torch.finfo(torch.float64 if self.eps < torch.finfo(torch.float32).eps else torch.float32)
        return info.tiny / info.eps


def working_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the promoted real dtype of all floating (or complex) tensors, or torch's default dtype."""
    dtype = None
    for tensor in tensors:
        if tensor.is_floating_point() or tensor.is_complex():
            real = real_dtype(tensor.dtype)
            dtype = real if dtype is None else torch.promote_types(dtype, real)
    return torch.get_default_dtype() if dtype is None else dtype


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the real part."""
    return dtype.to_real() if dtype.is_complex else dtype


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of places and sums, the widest that the device has, whatever f is called in.

    With sums in single precision search and replay, whose orders differ, would differ by more than their errors.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def returned_dtype(call_dtype: torch.dtype, output_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of integrals: that of x or of f's values, whichever is wider, single precision at least."""
    return torch.promote_types(torch.promote_types(call_dtype, output_dtype), torch.float32)


@cache
def epsilon(*dtypes: torch.dtype) -> float:
    """Return the spacing at 1 of the coarsest of the floating dtypes (integers and booleans are exact)."""
    return max(torch.finfo(d).eps for d in dtypes if d.is_floating_point or d.is_complex)


def make_tolerance(rtol: float | None, atol: float, eps: float) -> Tolerance:
    """Check the tolerances and fill in the default ``rtol = sqrt(eps)``."""
    for name, number in (("rtol", 0.0 if rtol is None else rtol), ("atol", atol)):
        try:
            sensible = math.isfinite(number) and number >= 0.0
        except (TypeError, ValueError, RuntimeError):
            text = f"{name}={number!r:.80} is no number: write {name}=1e-6, or leave it out"
            raise TypeError(text) from None
        if not sensible:
            raise ValueError(f"{name}={number!r} must be a finite number, zero or positive")
    if rtol is None:
        rtol = math.sqrt(eps)
    if rtol == 0.0 and atol == 0.0:
        raise ValueError(
            "rtol and atol are both 0: no numerical integral can be that exact; give one of them a positive value"
        )
    return Tolerance(float(rtol), float(atol), eps)
