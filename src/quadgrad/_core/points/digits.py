"""Points as binary digits: which digits a floating number between 0 and 1 holds, and back.

A coordinate with leading digits k of ``count`` is the middle of those that begin so, ``(k + 1/2) / 2**count``:
never 0 or 1, symmetric about 1/2, and exact in its dtype. Its digits are made into the mantissa of a number in
[1, 2), which takes one operation on bits and one subtraction: no conversion from integers, and no rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BITS", "FLOAT32", "FLOAT64", "Digits", "digits_of"]

BITS = 52
"""Binary digits of a coordinate, and so of an index: those of float64's mantissa."""


@dataclass(frozen=True)
class Digits:
    """Leading binary digits of coordinates as integers, and the floating numbers that they stand for.

    Attributes
    ----------
    dtype, integer : torch.dtype
        Of the numbers, and of integers of the same size.
    count : int
        Digits that the mantissa holds.
    one : int
        The bits of 1.0; or-ed to digits it makes a number in [1, 2) of them.
    """

    dtype: torch.dtype
    integer: torch.dtype
    count: int
    one: int

    def leading(self, digits: Tensor) -> Tensor:
        """Return the leading digits of ``BITS`` digits in int64."""
        return digits if self.count == BITS else (digits >> (BITS - self.count)).to(self.integer)

    def below_one(self, bits: Tensor) -> Tensor:
        """Return the leading of the last ``BITS`` digits in int64, below the bits of 1.0; int64 is overwritten."""
        return self.leading(bits.bitwise_and_((1 << BITS) - 1)).bitwise_or_(self.one)

    def numbers(self, digits: Tensor) -> Tensor:
        """Return the coordinates whose digits stand below the bits of 1.0, which are overwritten."""
        return digits.view(self.dtype).sub_(1.0 - 0.5**self.count * 0.5)

    def digits(self, numbers: Tensor) -> Tensor:
        """Return the digits of coordinates, below the bits of 1.0; the inverse of :meth:`numbers`."""
        return (numbers + (1.0 - 0.5**self.count * 0.5)).view(self.integer)


FLOAT64 = Digits(torch.float64, torch.int64, BITS, 0x3FF << BITS)
FLOAT32 = Digits(torch.float32, torch.int32, 23, 0x7F << 23)


def digits_of(dtype: torch.dtype) -> Digits:
    """Return how points of a dtype are made of digits.

    Raises
    ------
    TypeError
        If it is neither float64 nor float32.
    """
    for digits in (FLOAT64, FLOAT32):
        if digits.dtype == dtype:
            return digits
    raise TypeError(f"points have dtype float64 or float32, not {dtype}: convert them afterwards")
