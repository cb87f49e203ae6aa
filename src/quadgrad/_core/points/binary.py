"""Sequences whose points are sums, one term for each binary digit of the index: Sobol's and the lattice.

What adding means is theirs: digit by digit without carry, or modulo 1. An index is cut into three. Its last binary
digits select from a table of sums, those before from another, and what is left is the same for all points of a
slice or takes two values. So a point costs one operation, on tables that are small, wherever the slice begins.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Self, final

import torch
from torch import Tensor

from quadgrad._core.points.digits import BITS
from quadgrad._core.points.sequence import Sequence, power_of_two

__all__ = ["BinarySequence"]

TABLE = 18
"""Logarithm of how many sums the first table keeps, of all replicates and dimensions: 2 MB, which fit a cache."""

LONGEST, SHORTEST = 10, 4
"""Logarithms of how many points it is for: a longer one gains nothing, a shorter one costs time."""


class BinarySequence(Sequence):
    """Points that are sums over the binary digits of their index; see :class:`Sequence`."""

    _steps: Tensor | None = None
    """Terms of each binary digit, ``(replicates, d, digits)`` or ``(1, d, digits)``: as many as were needed."""

    _origin: Tensor | None = None
    """Point 0, ``(replicates, d)``."""

    _tables: dict[int, Tensor] | None = None
    """Sums by the binary digit that they begin with; each starts with the sums of fewer digits."""

    def replicate(self, number: int) -> Self:
        """Return one replicate alone, which makes tables of its own."""
        one = super().replicate(number)
        one._steps = one._origin = one._tables = None
        return one

    @abstractmethod
    def make_origin(self) -> Tensor:
        """Return point 0, shape ``(replicates, d)``."""

    @abstractmethod
    def make_steps(self, count: int) -> Tensor:
        """Return the terms of the last ``count`` binary digits, ``(replicates, d, count)`` or ``(1, d, count)``."""

    @abstractmethod
    def add(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the sum of two points."""

    @abstractmethod
    def finish(self, sums: Tensor) -> Tensor:
        """Return digits below the bits of 1.0 of points that were summed; these may be overwritten."""

    @final
    def slice(self, start: int, count: int) -> Tensor:
        """Return digits of points below the bits of 1.0, shape ``(replicates, d, count)``."""
        longest = max(SHORTEST, min(LONGEST, TABLE - (self.replicates * self.d - 1).bit_length()))
        low = min(longest, (count - 1).bit_length())
        first, last = start >> low, (start + count - 1) >> low
        middle = (last - first).bit_length()
        high = range(first >> middle, (last >> middle) + 1)
        steps = self._terms(high.stop << (low + middle))
        origins = torch.stack([self._sum(steps, number << (low + middle)) for number in high], dim=-1)
        blocks = self.add(origins[..., None], self._table(steps, low, middle)[..., None, :]).flatten(-2)
        blocks = blocks.narrow(-1, first - (high.start << middle), last - first + 1)
        sums = self.add(blocks[..., None], self._table(steps, 0, low)[..., None, :]).flatten(-2)
        return self.finish(sums).narrow(-1, start - (first << low), count)

    @final
    def rounded(self, n: int) -> int:
        """Return the next power of two: any other number of points, even one more, is less evenly spread."""
        return power_of_two(n)

    def _terms(self, stop: int) -> Tensor:
        """Return the terms for indices below ``stop``: few binary digits, as a rule, and little to set up."""
        count = min(BITS, max(16, -(-(stop - 1).bit_length() // 8) * 8))
        if self._steps is None or self._steps.shape[-1] < count:
            self._steps = self.make_steps(count)
        return self._steps

    def _sum(self, steps: Tensor, index: int) -> Tensor:
        """Return the point with an index, shape ``(replicates, d)``."""
        if self._origin is None:
            self._origin = self.make_origin()
        total = self._origin
        for k in range(index.bit_length()):
            if index >> k & 1:
                total = self.add(total, steps[..., k])
        return total

    def _table(self, steps: Tensor, first: int, count: int) -> Tensor:
        """Return the sums for all values of ``count`` binary digits from ``first`` on, ``(..., d, 2**count)``."""
        self._tables = {} if self._tables is None else self._tables
        table = self._tables.get(first)
        if table is None or table.shape[-1] < 1 << count:
            table = torch.zeros((*steps.shape[:2], 1 << count), dtype=steps.dtype, device=steps.device)
            for k in range(count):
                half = 1 << k
                self.add(table[..., :half], steps[..., first + k, None], out=table[..., half : 2 * half])
            self._tables[first] = table
        return table[..., : 1 << count]
