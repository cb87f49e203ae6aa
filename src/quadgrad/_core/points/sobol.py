"""Sobol's sequence, randomized by Matousek's linear scramble and a digital shift. The default of sampling.

Index i in binary says which direction numbers are added, digit by digit and without carry, to give a point, so
that any slice is made where it is needed. The scramble is a random lower triangular matrix over the field of two
elements for each replicate and dimension (*J. Complexity* 14, 1998). Neither it nor the shift changes how many
points lie in an elementary interval of a kind, and each point is uniformly distributed.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from quadgrad._core.points.digits import BITS
from quadgrad._core.points.hashing import hash_bits
from quadgrad._core.points.joe_kuo import DIMENSIONS, direction_numbers
from quadgrad._core.points.sequence import Sequence, power_of_two

__all__ = ["Sobol"]

MATRIX, SHIFT = 0x4D545258, 0x53484654
"""Keys of the scrambling matrices and of the shifts."""

TABLE = 18
"""Logarithm of how many sums are kept, of all replicates and dimensions: 2 MB, which stay in a cache."""

LONGEST, SHORTEST = 10, 4
"""Logarithms of how many points a table of sums is for: longer ones gain nothing, shorter ones cost time."""


@final
class Sobol(Sequence):
    """Scrambled Sobol points, in the order of Gray's code; see :class:`Sequence`.

    Parameters
    ----------
    d, seed, replicates, device, dtype
        As for :class:`Sequence`; d is at most 4,096.
    scramble : bool
        Whether to randomize. Otherwise the points are those of SciPy and torch, moved by half a digit: no 0.
    """

    name: ClassVar[str] = "sobol"

    def __init__(
        self,
        d: int,
        seed: int = 0,
        replicates: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
        *,
        scramble: bool = True,
    ) -> None:
        super().__init__(d, seed, replicates, device, dtype)
        if self.d > DIMENSIONS:
            raise ValueError(
                f"d={self.d}: Sobol points have up to {DIMENSIONS:,} dimensions. "
                'Pass sequence="random", which has any number of them'
            )
        if self.replicates > 1 and not scramble:
            raise ValueError(f"replicates={self.replicates} are all the same without a scramble: pass replicates=1")
        self.scramble = scramble
        self._steps = torch.empty(0, dtype=torch.int64)
        self._tables: dict[int, Tensor] = {}
        self._origin: Tensor | None = None

    def slice(self, start: int, count: int) -> Tensor:
        """Return digits of points below the bits of 1.0, shape ``(replicates, d, count)``.

        An index is cut into three: its last binary digits select from a table of sums, those before from another,
        and what is left is the same for all points or takes two values. So each point costs one operation, on
        tables that are small.
        """
        longest = max(SHORTEST, min(LONGEST, TABLE - (self.replicates * self.d - 1).bit_length()))
        low = min(longest, (count - 1).bit_length())
        first, last = start >> low, (start + count - 1) >> low
        middle = (last - first).bit_length()
        high = range(first >> middle, (last >> middle) + 1)
        self._prepare(high.stop << (low + middle))
        origins = torch.stack([self._sum(number << (low + middle)) for number in high], dim=-1)
        blocks = (origins[..., None] ^ self._table(low, middle)[..., None, :]).flatten(-2)
        blocks = blocks.narrow(-1, first - (high.start << middle), last - first + 1)
        digits = (blocks[..., None] ^ self._table(0, low)[..., None, :]).flatten(-2)
        return digits.narrow(-1, start - (first << low), count)

    def rounded(self, n: int) -> int:
        """Return the next power of two: any other number of points, even one more, is less evenly spread."""
        return power_of_two(n)

    def moved(self, digits: Tensor, shift: Tensor) -> Tensor:
        """Return digits with those of the shift added without carry."""
        return digits ^ shift

    def _prepare(self, stop: int) -> None:
        """Make all that is needed of indices below ``stop``: few binary digits of one, so few direction numbers."""
        count = min(BITS, max(16, -(-(stop - 1).bit_length() // 8) * 8))
        if self._origin is not None and count <= self._steps.shape[-1]:
            return
        directions = direction_numbers(self.d, self.device)[:, :count]
        replicate = torch.arange(self.replicates, device=self.device)[:, None]
        dimension = torch.arange(self.d, device=self.device)
        if self.scramble:
            directions = scrambled(directions, self.seed, replicate, dimension)
            shift = hash_bits((self.seed, SHIFT), replicate, dimension) & ((1 << BITS) - 1)
        else:
            directions = directions[None]
            shift = (replicate + dimension) * 0
        # Gray's code of i is i ^ (i >> 1): digit k of i counts in places k and k - 1.
        steps = directions.clone()
        steps[..., 1:] ^= directions[..., :-1]
        self._steps = self.digits.leading(steps)
        self._origin = self.digits.leading(shift) | self.digits.one

    def _sum(self, index: int) -> Tensor:
        """Return the point with an index, below the bits of 1.0, shape ``(replicates, d)``."""
        assert self._origin is not None
        total = self._origin
        for k in range(index.bit_length()):
            if index >> k & 1:
                total = total ^ self._steps[..., k]
        return total

    def _table(self, first: int, count: int) -> Tensor:
        """Return the sums for all values of ``count`` binary digits of an index from digit ``first`` on.

        Shape ``(replicates, d, 2**count)``. It is kept, and begins with the table of fewer digits.
        """
        kept = self._tables.get(first)
        if kept is None or kept.shape[-1] < 1 << count:
            shape = (*self._steps.shape[:2], 1 << count)
            kept = torch.zeros(shape, dtype=self._steps.dtype, device=self.device)
            for k in range(count):
                half = 1 << k
                step = self._steps[..., first + k, None]
                torch.bitwise_xor(kept[..., :half], step, out=kept[..., half : 2 * half])
            self._tables[first] = kept
        return kept[..., : 1 << count]


def scrambled(directions: Tensor, seed: int, replicate: Tensor, dimension: Tensor) -> Tensor:
    """Return direction numbers ``(d, count)`` times a random matrix per replicate and dimension, ``(R, d, count)``.

    Column b of a matrix has a one in place b, which keeps it regular, and random digits behind. The numbers given
    have digits in their first ``count`` places alone, so other columns are not made.
    """
    column = torch.arange(directions.shape[-1], device=directions.device)
    one = 1 << (BITS - 1 - column)
    matrices = hash_bits((seed, MATRIX), replicate[..., None], dimension[:, None], column) & (one - 1) | one
    product = torch.zeros_like(matrices)
    for b in range(len(column)):
        # All ones where a number has digit b, which then adds column b.
        has_digit = directions << (63 - BITS + 1 + b) >> 63
        product.bitwise_xor_(has_digit & matrices[..., b, None])
    return product
