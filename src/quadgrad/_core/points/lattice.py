"""A rank-1 lattice with random shifts: the sequence for integrands that are smooth and periodic.

Point i is ``frac(v z + shift)`` with v the digits of i behind the point, in reverse: van der Corput's order, in
which the first ``2**m`` points are the lattice of that size for every m, and more points continue fewer. The
generating vector z was searched for this package (``docs/tables/lattice.py``), for 1,024 variables and up to
``2**20`` points. Beyond that the points still form lattices, though none that was searched for.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.points.binary import BinarySequence
from quadgrad._core.points.digits import BITS

__all__ = ["Lattice", "generating_vector"]

SHIFT = 0x4C415454
"""Key of the shifts."""

DIMENSIONS = 1024
"""As many as the generating vector has components."""


@cache
def generating_vector() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the generating vector, odd numbers below ``2**19``, shape ``(DIMENSIONS,)``."""
    return np.loadtxt(Path(__file__).with_name("lattice.csv"), dtype=np.int64)


@final
class Lattice(BinarySequence):
    """Points of a randomly shifted lattice; see :class:`Sequence`. d is at most 1,024."""

    name: ClassVar[str] = "lattice"
    limit = DIMENSIONS, 'sequence="sobol", which has 4,096, or "random", which has any number'

    def make_origin(self) -> Tensor:
        """Return the random shift."""
        return self.random_bits(SHIFT)

    def make_steps(self, count: int) -> Tensor:
        """Return ``z / 2, z / 4`` and so on modulo 1, ``(1, d, count)``: binary digits of an index in reverse."""
        vector = torch.from_numpy(generating_vector()[: self.d]).to(self.device)
        place = torch.arange(BITS - 1, BITS - 1 - count, -1, device=self.device)
        return (vector[:, None] << place)[None]

    def add(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the sum modulo 2**64, of which the last digits are right."""
        return torch.add(x, y, out=out)

    def finish(self, sums: Tensor) -> Tensor:
        """Return the sums modulo 1, below the bits of 1.0."""
        return self.digits.below_one(sums)

    def moved(self, digits: Tensor, shift: Tensor) -> Tensor:
        """Return digits plus a shift, modulo 1."""
        return (digits + shift) & ((1 << self.digits.count) - 1) | self.digits.one
