"""What f takes and returns, as the compiled kernel reads it: plain numbers in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from quadgrad._core.integrand import Argument
from quadgrad._core.search.kernel.memory import in_memory

__all__ = ["UnreadableError", "as_dtype", "read", "spreads"]


class UnreadableError(Exception):
    """What f returns are not the numbers that were expected, or not in memory."""


def read(y: Tensor, parts: int) -> Tensor:
    """Return numbers, complex ones have two ``parts``, in double precision, contiguous, in memory."""
    if y.is_complex():
        if parts == 1:
            raise UnreadableError
        y = y.resolve_conj()
    y = as_dtype(y.resolve_neg(), torch.float64 if parts == 1 else torch.complex128).contiguous()
    if not in_memory(y):
        raise UnreadableError
    return y


def spreads(argument: Argument) -> bool:
    """Whether the kernel can spread an argument over cells: plain numbers of eight bytes, one for each integral."""
    value = argument.value
    if argument.shared or type(value) not in (Tensor, Parameter):
        return False
    plain = value.ndim == 1 and value.element_size() == 8 and value.is_contiguous() and not value.is_neg()
    return plain and not value.is_conj() and in_memory(value)


def as_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers of a dtype."""
    # To ask whether anything is to be done is quicker than to ask for it: 4 us of 130 of a single integral.
    return t if t.dtype == dtype else t.to(dtype)
