"""What a sequence of points in the unit cube is: any slice of it, for any number of independent replicates.

Sampling draws from it. A sequence knows nothing of integrands, domains or how many points are enough.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from copy import copy
from numbers import Real
from typing import Any, ClassVar, Self, final

import torch
from torch import Tensor

from quadgrad._core._torch import outside_transforms
from quadgrad._core.points.digits import BITS, digits_of
from quadgrad._core.points.hashing import fold_seed, hash_bits

__all__ = ["Sequence"]

ITEM = 0x4954454D
"""Key of the shifts of items, so that none is that of a replicate."""


class Sequence(ABC):
    """Points in the open unit cube, each a function of seed, replicate and index alone.

    No state moves on: every process that asks for the same slice gets the same bits, in whatever pieces, on
    whatever device. A replicate does not depend on how many there are.

    Parameters
    ----------
    d : int
        Dimensions.
    seed : int
        Any integer, also negative or longer than 64 bits.
    replicates : int
        Independent randomizations of the same points.
    device : torch.device or str or None
        Where the points are made; by default torch's default device.
    dtype : torch.dtype
        float64 (52 binary digits) or float32 (the leading 23 of them).

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or size; the message says what to pass instead.
    """

    name: ClassVar[str]
    limit: ClassVar[tuple[int, str] | None] = None
    """Dimensions that it has tables for, and what to pass beyond them."""

    first = 0
    """The number of the first replicate."""

    def __init__(
        self,
        d: int,
        seed: int = 0,
        replicates: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.d = counted("d", d)
        if self.limit is not None and self.d > self.limit[0]:
            most, instead = self.limit
            raise ValueError(f"d={self.d}: sequence={self.name!r} has up to {most:,} dimensions. Pass {instead}")
        self.seed = fold_seed(seed)
        self.replicates = counted("replicates", replicates)
        self.device = torch.get_default_device() if device is None else torch.device(device)
        self.dtype = dtype
        self.digits = digits_of(dtype)

    @final
    def points(self, start: int, count: int) -> Tensor:
        """Return the points with indices ``start`` to ``start + count - 1`` of every replicate.

        Returns
        -------
        Tensor, shape (replicates, count, d)
            Each coordinate lies strictly between 0 and 1. In memory one dimension follows another: ``x[..., j]`` is
            contiguous within a replicate, and ``x`` is not.

        Raises
        ------
        ValueError
            If the slice is not within the 2**52 points that can be told apart.
        """
        start, count = operator.index(start), operator.index(count)
        if start < 0 or count < 0 or start + count > 1 << BITS:
            raise ValueError(
                f"start={start}, count={count}: indices go from 0 to 2**{BITS} - 1, and count must not be negative"
            )
        # Constants, whatever surrounds the caller: kept tables must not become wrappers that outlive a transform.
        with outside_transforms(), torch.inference_mode(False), torch.no_grad():
            if count == 0:
                return torch.empty(self.replicates, 0, self.d, dtype=self.dtype, device=self.device)
            return self.digits.numbers(self.slice(start, count)).transpose(-1, -2)

    def replicate(self, number: int) -> Self:
        """Return one replicate alone."""
        one = copy(self)
        one.first, one.replicates = self.first + number, 1
        return one

    @final
    def random_bits(self, key: int) -> Tensor:
        """Return 64 random bits for each replicate and dimension, int64 of shape ``(replicates, d)``."""
        return hash_bits((self.seed, key), self.numbers()[:, None], torch.arange(self.d, device=self.device))

    @final
    def numbers(self) -> Tensor:
        """Return the numbers of the replicates, by which their random bits are known."""
        return torch.arange(self.first, self.first + self.replicates, device=self.device)

    @abstractmethod
    def slice(self, start: int, count: int) -> Tensor:
        """Return digits of points below the bits of 1.0, shape ``(replicates, d, count)``, to be overwritten."""

    @abstractmethod
    def rounded(self, n: int) -> int:
        """Return the least number of points per replicate, n or more, that are evenly spread."""

    @abstractmethod
    def moved(self, digits: Tensor, shift: Tensor) -> Tensor:
        """Return digits below the bits of 1.0, moved by shifts of as many digits in a way that keeps them even."""

    @final
    def shifted(self, points: Tensor, keys: Tensor) -> Tensor:
        """Return one replicate's points, randomly shifted anew for every key.

        A shift depends on seed, key and dimension. Each shifted point is uniformly distributed, shifts of different
        keys are independent, and the points of one key stay as evenly spread as they were.

        Parameters
        ----------
        points : Tensor, shape (count, d)
            From :meth:`points`, in this sequence's dtype.
        keys : Tensor of int64, any shape
            For example the numbers of a data set's items.

        Returns
        -------
        Tensor, shape (*keys.shape, count, d)
            In memory like :meth:`points`.

        Raises
        ------
        TypeError, ValueError
            If the points are not of this sequence's dtype and dimensions, or the keys are no integers.
        """
        self._refuse_others(points)
        shift = self.shifts(keys)
        digits = self.digits.digits(points.transpose(-1, -2))
        return self.digits.numbers(self.moved(digits, shift[..., None])).transpose(-1, -2)

    @final
    def shifts(self, keys: Tensor) -> Tensor:
        """Return the shifts that :meth:`shifted` gives the points of each key, for :meth:`moved_by`.

        Parameters
        ----------
        keys : Tensor of int64, any shape

        Returns
        -------
        Tensor of int32 or int64, shape (*keys.shape, d)
            Of the size of a number of this sequence's dtype.
        """
        if keys.is_floating_point() or keys.is_complex():
            raise TypeError(f"keys of {keys.dtype} are not integers: pass the numbers of items")
        item, dimension = keys.to(self.device, torch.int64)[..., None], torch.arange(self.d, device=self.device)
        bits = hash_bits((self.seed, ITEM), item, dimension)
        return self.digits.leading(bits & ((1 << BITS) - 1))

    @final
    def moved_by(self, points: Tensor, shifts: Tensor) -> Tensor:
        """Return points moved by shifts, which are broadcast: their last dimensions are those of the cube."""
        self._refuse_others(points)
        return self.digits.numbers(self.moved(self.digits.digits(points), shifts))

    def _refuse_others(self, points: Tensor) -> None:
        if points.dtype != self.dtype:
            raise TypeError(f"points of {points.dtype} are not of this sequence, which makes {self.dtype}")
        if points.shape[-1] != self.d:
            raise ValueError(f"points of shape {tuple(points.shape)} are not of this sequence of d={self.d}")


def is_whole(number: Any) -> bool:
    """Whether something is a number without a fraction, of any type but bool: n may be given as 1e6."""
    return isinstance(number, Real) and not isinstance(number, bool) and float(number).is_integer()


def whole_number(argument: str, value: Any, least: int = 1) -> int:
    """Return a number that a caller has passed, which may be given as 1e6.

    Raises
    ------
    ValueError
        If it is none without a fraction, or less than ``least``.
    """
    if not is_whole(value) or value < least:
        raise ValueError(f"{argument}={value!r} must be a whole number, at least {least}")
    return int(value)


def counted(argument: str, value: Any) -> int:
    """Return a number of things, at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}={value!r} is not an integer") from None
    if number < 1:
        raise ValueError(f"{argument}={number} must be at least 1")
    return number


def power_of_two(n: int) -> int:
    """Return the least power of two that is n or more."""
    return 1 << (counted("n", n) - 1).bit_length()
