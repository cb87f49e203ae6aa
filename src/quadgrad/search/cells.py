"""The data model of search: cells of all integrals as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["Cells", "bisect", "locate", "refine"]


@dataclass(frozen=True)
class Cells:
    """Cells with what the rule found on them; all arrays have the cells along their first dimension.

    ``row`` is the piece among all pieces of the call, ``start`` and ``stop`` are fractions of it.
    ``value`` ``(n, *event)``, ``error`` and ``floor`` (the part of the error that rounding explains)
    may carry hidden lanes; ``refinable`` tells where bisection can still help, ``lean`` which half is to
    blame for the error: -1 the left, 1 the right, 0 both.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    value: Tensor
    error: Tensor
    floor: Tensor
    refinable: Tensor
    lean: Tensor

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
    """Halve cells: start and stop of the two children of each, which stand next to each other.

    Halves of a whole piece are measured from different ends, see :mod:`quadgrad.maps`.
    """
    middle = 0.5 * (start + stop)
    turn = (middle >= 0.5).to(middle.dtype)
    return (
        torch.stack((start, middle - turn), dim=1).flatten(),
        torch.stack((middle, stop - turn), dim=1).flatten(),
    )


def refine(start: Tensor, stop: Tensor, left: Tensor, right: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Halve cells, and where told their left or right half once more; ``count`` children in all.

    Returns the parent of each child and its start and stop. The children of the halves come last.
    """
    parent = torch.arange(start.shape[0], device=start.device).repeat_interleave(2)
    start, stop = bisect(start, stop)
    n_again = count - start.shape[0]
    if n_again == 0:
        return parent, start, stop
    again = torch.stack((left, right), dim=1).flatten()
    once, twice = locate(~again, start.shape[0] - n_again), locate(again, n_again)
    finer = (parent.index_select(0, twice).repeat_interleave(2), *bisect(start[twice], stop[twice]))
    whole = (t.index_select(0, once) for t in (parent, start, stop))
    parent, start, stop = (torch.cat(pair) for pair in zip(whole, finer, strict=True))
    return parent, start, stop
