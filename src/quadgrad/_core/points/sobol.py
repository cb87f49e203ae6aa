"""Sobol's sequence, randomized by Matousek's linear scramble and a digital shift. The default of sampling.

The binary digits of an index say which direction numbers are added, digit by digit and without carry. The scramble
is a random lower triangular matrix over the field of two elements for each replicate and dimension (*J. Complexity*
14, 1998). Neither it nor the shift changes how many points lie in an elementary interval of a kind, and each point
is uniformly distributed.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from quadgrad._core.points.binary import BinarySequence
from quadgrad._core.points.digits import BITS
from quadgrad._core.points.hashing import hash_bits
from quadgrad._core.points.joe_kuo import DIMENSIONS, direction_numbers

__all__ = ["Sobol"]

MATRIX, SHIFT = 0x4D545258, 0x53484654
"""Keys of the scrambling matrices and of the shifts."""


@final
class Sobol(BinarySequence):
    """Scrambled Sobol points, in the order of Gray's code; see :class:`Sequence`.

    Parameters
    ----------
    d, seed, replicates, device, dtype
        As for :class:`Sequence`; d is at most 4,096.
    scramble : bool
        Whether to randomize. Otherwise the points are those of SciPy and torch, moved by half a digit: no 0.
    """

    name: ClassVar[str] = "sobol"
    limit = DIMENSIONS, 'sequence="random", which has any number of them'

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
        if self.replicates > 1 and not scramble:
            raise ValueError(f"replicates={self.replicates} are all the same without a scramble: pass replicates=1")
        self.scramble = scramble

    def make_origin(self) -> Tensor:
        """Return the digital shift below the bits of 1.0: sums without carry leave those alone."""
        shift = self.random_bits(SHIFT) & ((1 << BITS) - 1)
        return self.digits.leading(shift if self.scramble else shift * 0) | self.digits.one

    def make_steps(self, count: int) -> Tensor:
        """Return what the last ``count`` binary digits of an index add, ``(replicates, d, count)``."""
        directions = direction_numbers(self.d, self.device)[:, :count]
        directions = self._scrambled(directions) if self.scramble else directions[None]
        # Gray's code of i is i ^ (i >> 1): digit k of i counts in places k and k - 1.
        steps = directions.clone()
        steps[..., 1:] ^= directions[..., :-1]
        return self.digits.leading(steps)

    def add(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the sum without carry."""
        return torch.bitwise_xor(x, y, out=out)

    def finish(self, sums: Tensor) -> Tensor:
        """Return the sums: the origin has brought the bits of 1.0."""
        return sums

    def moved(self, digits: Tensor, shift: Tensor) -> Tensor:
        """Return digits with those of the shift added without carry."""
        return digits ^ shift

    def _scrambled(self, directions: Tensor) -> Tensor:
        """Return direction numbers ``(d, count)`` times a random matrix for each replicate and dimension.

        Column b of a matrix has a one in place b, which keeps it regular, and random digits behind. The numbers
        have digits in their first ``count`` places alone, so other columns are not made.
        """
        replicate = self.numbers()[:, None, None]
        dimension = torch.arange(self.d, device=self.device)[:, None]
        column = torch.arange(directions.shape[-1], device=self.device)
        one = 1 << (BITS - 1 - column)
        matrices = hash_bits((self.seed, MATRIX), replicate, dimension, column) & (one - 1) | one
        product = torch.zeros_like(matrices)
        for b in range(len(column)):  # all at once is 80 us faster at best, and 80 times slower in 1,000 dimensions
            # All ones where a number has digit b, which then adds column b.
            has_digit = directions << (63 - BITS + 1 + b) >> 63
            product.bitwise_xor_(has_digit & matrices[..., b, None])
        return product
