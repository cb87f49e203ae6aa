"""Points for the perturbations of items: one evenly spread set, shifted anew for every item.

They depend on the seed and on the item's key alone, not on the batch, the process or the order. The gradient of a
loss over a batch then has two thirds of the error that independent points give it, or less, and less than half of
what one set for all items does, whose errors add up (a net on digits in mid-training: .111, .182 and .273).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import outside_transforms
from quadgrad._core.points import Sobol
from quadgrad._core.points.hashing import fold_seed, hash_numbers, mix
from quadgrad._core.points.joe_kuo import DIMENSIONS

__all__ = ["Noise", "make_keys"]

BLOCK, ORDER = 0x424C4F43, 0x4F524452
"""Keys of the seeds of further blocks of coordinates, and of the orders of their points."""


class Noise:
    """``n`` points in d dimensions for every key.

    Beyond the dimensions of the Sobol tables the coordinates are cut into blocks. Each has a set of its own, the
    points of which are matched at random with those of the others: Latin supercube sampling (Owen, *ACM Trans.
    Model. Comput. Simul.* 8, 1998). Each coordinate, and each block, stays as evenly spread as before.

    Parameters
    ----------
    d, n : int
        Coordinates, and points for every key.
    seed : int
        Any integer: others give independent sets and shifts.
    dtype : torch.dtype
        float64 or float32.
    """

    def __init__(self, d: int, n: int, seed: Any, dtype: torch.dtype, device: torch.device) -> None:
        seed = fold_seed(seed)
        widths = [min(DIMENSIONS, d - low) for low in range(0, d, DIMENSIONS)]
        seeds = [seed, *(hash_numbers(seed, BLOCK, g) for g in range(1, len(widths)))]
        self.sequences = [Sobol(width, own, 1, device, dtype) for width, own in zip(widths, seeds, strict=True)]
        with outside_transforms(), torch.no_grad():
            number = torch.arange(n, device=device)
            self.sets: list[Tensor] = []
            for g, sequence in enumerate(self.sequences):
                points = sequence.points(0, n)[0]
                if g:
                    order = mix(number + hash_numbers(seed, ORDER, g)).argsort()
                    points = points[order]
                self.sets.append(points.contiguous())

    def shifts(self, keys: Tensor) -> list[Tensor]:
        """Return what moves the points of each key, ``(*keys.shape, width)`` for each block."""
        return [sequence.shifts(keys) for sequence in self.sequences]

    def points(self, shifts: list[Tensor], start: int, stop: int) -> Tensor:
        """Return the points ``start`` to ``stop - 1`` of every key, ``(stop - start, *keys.shape, d)``."""
        each: list[Tensor] = []
        for sequence, points, shift in zip(self.sequences, self.sets, shifts, strict=True):
            some = points[start:stop].reshape(-1, *(1,) * (shift.ndim - 1), sequence.d)
            each.append(sequence.moved_by(some, shift))
        return each[0] if len(each) == 1 else torch.cat(each, dim=-1)


def make_keys(index: Any, count: int, device: torch.device) -> Tensor:
    """Return the keys of items, by default their positions.

    Raises
    ------
    TypeError, ValueError
        If they are no integers, or not one for each item.
    """
    if index is None:
        return torch.arange(count, device=device)
    keys = torch.as_tensor(index, device=device)
    if keys.is_floating_point() or keys.is_complex() or keys.dtype == torch.bool:
        raise TypeError(f"index has dtype {keys.dtype}: pass an integer for each item, its number in the data set")
    if keys.shape != (count,):
        raise ValueError(f"index has shape {tuple(keys.shape)}: there must be one for each of {count} items")
    return keys
