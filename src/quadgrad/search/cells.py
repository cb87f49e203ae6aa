"""The data model of search: cells of all integrals as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["Cells", "bisect", "locate"]


@dataclass(frozen=True)
class Cells:
    """Cells with what the rule found on them; all arrays have the cells along their first dimension.

    ``row`` is the piece among all pieces of the call, ``start`` and ``stop`` are fractions of it.
    ``value`` ``(n, *event)``, ``error`` and ``floor`` (the part of the error that rounding explains)
    may carry hidden lanes; ``refinable`` tells where bisection can still help.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    value: Tensor
    error: Tensor
    floor: Tensor
    refinable: Tensor

    def __len__(self) -> int:
        return self.row.shape[0]

    def take(self, index: Tensor) -> Cells:
        """Return the cells at ``index``."""
        return Cells(*(getattr(self, f.name).index_select(0, index) for f in fields(self)))

    @staticmethod
    def join(parts: list[Cells]) -> Cells:
        """Return all parts as one."""
        if len(parts) == 1:
            return parts[0]
        return Cells(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Cells)))


def locate(mask: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` true entries; the count being known, no device is waited for."""
    if mask.is_cuda:
        return torch.nonzero_static(mask, size=count).squeeze(1)
    return mask.nonzero().squeeze(1)


def bisect(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Halve cells: the two children of each stand next to each other.

    Halves of a whole piece are measured from different ends, see :mod:`quadgrad.maps`.
    """
    middle = 0.5 * (start + stop)
    turn = (middle >= 0.5).to(middle.dtype)
    return (
        torch.stack((start, middle - turn), dim=1).flatten(),
        torch.stack((middle, stop - turn), dim=1).flatten(),
    )
