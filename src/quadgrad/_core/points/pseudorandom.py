"""Pseudo-random points: a hash of seed, replicate, dimension and index. For any number of dimensions."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from quadgrad._core.points.hashing import mix
from quadgrad._core.points.sequence import Sequence, counted

__all__ = ["Pseudorandom"]

POINT = 0x504F494E
"""Key of the coordinates, so that none is the shift of an item."""


@final
class Pseudorandom(Sequence):
    """Independent uniform points; see :class:`Sequence`."""

    name: ClassVar[str] = "random"

    def slice(self, start: int, count: int) -> Tensor:
        """Return digits of points below the bits of 1.0, shape ``(replicates, d, count)``."""
        column = self.random_bits(POINT)
        # Columns that stepped through the finalizer one index at a time would repeat each other where their starts
        # lie close. Indices that are hashed first scatter: columns can then agree in single numbers only.
        index = mix(torch.arange(start, start + count, device=self.device))
        return self.digits.below_one(mix(column[..., None] + index))

    def rounded(self, n: int) -> int:
        """Return n: any number of independent points is as good as it can be."""
        return counted("n", n)

    def moved(self, digits: Tensor, shift: Tensor) -> Tensor:
        """Return digits with those of the shift added without carry."""
        return digits ^ shift
