"""Direction numbers of Sobol's sequence, from Joe and Kuo's table, which lies beside this file with its licence.

The table (new-joe-kuo-6.21201, *SIAM J. Sci. Comput.* 30, 2008) gives for each dimension a primitive polynomial
over the field of two elements and the first direction numbers; a recurrence gives the others.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quadgrad._core._torch import outside_transforms
from quadgrad._core.points.digits import BITS

__all__ = ["DIMENSIONS", "direction_numbers"]

DIMENSIONS = 4096
"""As many as the table is cut to."""

Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@lru_cache(maxsize=16)
def direction_numbers(d: int, device: torch.device) -> Tensor:
    """Return the direction numbers of the first d dimensions, int64 of shape ``(d, BITS)``, to be left as they are.

    Number k has its last digit in place k, counted from the most significant of ``BITS`` digits.
    """
    with outside_transforms(), torch.inference_mode(False):  # kept, so not what belongs to either
        return torch.from_numpy(recur(*read_table(d))).to(device)


def read_table(d: int) -> tuple[Integers, Integers]:
    """Return the polynomials as their binary digits, ``(d,)``, and initial direction numbers ``(d, degrees)``.

    The latter are integers, which have their last digit in the place of 1, and zero beyond a polynomial's degree.
    """
    with np.load(Path(__file__).with_name("joe_kuo.npz")) as table:
        return table["polynomials"][:d].astype(np.int64), table["initial"][:d].astype(np.int64)


def recur(polynomials: Integers, initial: Integers) -> Integers:
    """Return all direction numbers: Bratley and Fox (*ACM TOMS* 14, 1988, eq. 2), all dimensions in step.

    With ``x^s + a_1 x^(s-1) + ... + a_s`` it is ``m_k = 2 a_1 m_(k-1) ^ ... ^ 2^s a_s m_(k-s) ^ m_(k-s)``.
    """
    d, most = initial.shape
    degree = np.frexp(polynomials)[1] - 1  # exact: they are far below 2**53
    back = np.arange(most, 0, -1)  # how far behind k, in the order of memory
    place = degree[:, None] - back
    present = (back <= degree[:, None]) & (polynomials[:, None] >> np.maximum(place, 0) & 1 == 1)
    masks, rows = -present.astype(np.int64), np.arange(d)
    numbers = np.zeros((d, most + BITS), dtype=np.int64)  # zeros in front, for the polynomials of low degree
    for k in range(BITS):
        now = most + k
        sums = np.bitwise_xor.reduce((numbers[:, k:now] << back) & masks, axis=1) ^ numbers[rows, now - degree]
        numbers[:, now] = np.where(k < degree, initial[:, k], sums) if k < most else sums
    numbers[0] = 1  # the first dimension has no polynomial: van der Corput's sequence
    return numbers[:, most:] << np.arange(BITS - 1, -1, -1)
