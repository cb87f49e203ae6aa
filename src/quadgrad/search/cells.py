"""The data model of search: cells of all integrals as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quadgrad.lanes import largest, somewhere

__all__ = [
    "GEOMETRIC",
    "LINEAR",
    "Cells",
    "Counts",
    "bisect",
    "count_children",
    "is_faint",
    "locate",
    "plan_moves",
    "refine",
    "to_scan",
]

LINEAR, GEOMETRIC = 0, 1
"""Kinds of cells: the nodes are spread evenly, or over the logarithm of the distance from an end of the piece.

Kinds beyond: the same where the cell touches the end; the integral is extrapolated to it in column ``kind - 2``.
"""

FAINT = 0.1
"""An integral, or a cell, is faint if its error is more than this part of its value."""

SCANNED = 2.0**-7
"""Faint cells are halved to this part of their piece before a faint integral is believed."""

KEEP, REVERT, TURN, CLOSER, HALVE = range(5)
"""How to refine a cell: not at all; halve one whose logarithmic nodes did not help; give it such nodes, being at an
end; part one that has them; halve it. Beyond: halve it, and as many times more the half that is to blame."""

LEVELS = 5
"""How many times a cell is bisected at once, at most."""

STEP = 2.0**-6
"""The part of a cell at an end that is left to the extrapolation when the cell is refined."""

BESIDE = 2
"""Calls of f for a first cell, and for one with logarithmic nodes, beside those at its nodes: at its edges."""

LIMIT = 2.0**-44
"""How close to a limit f is called for the first cell, as a part of its piece: a thin layer there must not hide.

At least :data:`ULPS` eps, and not at all where rounding would move it onto the limit."""

ULPS = 16.0

DEEP = 4.0
"""Cells at an end, halved as often as this, get logarithmic nodes when refined, be they rough there or not."""

EVERY = 4.0
"""Where logarithmic nodes did not help they are tried again after that many halvings."""


@dataclass(frozen=True)
class Cells:
    """Cells with what the rule found on them; all arrays have the cells along their first dimension.

    ``row`` is the piece among all pieces of the call, ``start`` and ``stop`` are fractions of it.
    ``value`` ``(n, *event)``, ``error`` and ``floor`` (the part of the error that rounding explains)
    may carry hidden lanes; ``refinable`` tells where bisection can still help, ``lean`` which half is to
    blame for the error, the left one if negative, the right one if positive, and by how many bisections that will
    take (for logarithmic nodes at an end: 1 where they do not help); ``spot`` where on the cell f is largest,
    from 0 to 1.
    ``kind`` is :data:`LINEAR`, :data:`GEOMETRIC` or beyond.
    """

    row: Tensor
    start: Tensor
    stop: Tensor
    value: Tensor
    error: Tensor
    floor: Tensor
    refinable: Tensor
    lean: Tensor
    spot: Tensor
    kind: Tensor

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


@dataclass(frozen=True)
class Counts:
    """How many cells are halved, how many halves again, how many cells reverted, turned, and parted at the end.

    ``deepest``: how many times more than once a cell is halved, at most.
    """

    halved: int
    again: int
    reverted: int
    turned: int
    closer: int
    deepest: int

    @property
    def cells(self) -> int:
        """The number of cells that are refined."""
        return self.halved + self.reverted + self.turned + self.closer

    @property
    def linear(self) -> int:
        """The number of children with evenly spread nodes."""
        return 2 * self.halved + self.again + 2 * self.reverted


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


def plan_moves(cells: Cells, split: Tensor) -> Tensor:
    """Say how each cell marked in ``split`` is to be refined (:data:`KEEP` and following), int8, ``(n,)``."""
    leftward, rightward = -largest(-cells.lean), largest(cells.lean)
    at_lower, at_upper = cells.start == 0.0, cells.stop == 0.0
    low, high = -largest(-cells.spot), largest(cells.spot)
    level = -torch.log2(cells.stop - cells.start)
    tried = torch.where(level > 2.0, level % EVERY >= 2.0, level < 1.0)
    towards = (
        (at_lower & (leftward < 0.0)) | (at_upper & (rightward > 0.0)) | ((at_lower | at_upper) & (level >= DEEP))
    )
    levels = torch.where(leftward < 0.0, torch.where(rightward > 0.0, 1.0, -leftward), rightward).clamp_min(1.0)
    # A cell with the peak at an end of the piece might have to get logarithmic nodes in between.
    vague = (low < high) | (at_lower & (low == 0.0)) | (at_upper & (high == 1.0))
    levels = torch.where(vague, levels.clamp_max(2.0), levels)
    move = (levels + (HALVE - 1.0)).to(torch.int8).masked_fill(towards & ~tried, TURN)
    # Where logarithmic nodes are of no help, the cell gets linear ones again.
    closer = torch.where(rightward > 0.0, REVERT, CLOSER).to(torch.int8)
    return torch.where(cells.kind == LINEAR, move, closer) * split


def is_faint(value: Tensor, error: Tensor) -> Tensor:
    """Tell, for each hidden lane, whose value may be anything for what was seen."""
    if value.numel() == 0:  # an event without components has nothing to be seen
        return torch.zeros_like(error, dtype=torch.bool)
    size = value.abs().flatten(1).sum(1) if value.ndim > 1 else value.abs()
    return error >= FAINT * size


def to_scan(cells: Cells, most: Tensor) -> Tensor:
    """Tell which cells have to be refined before a faint integral is believed: more might be between the nodes.

    These are wide ones, those at an end, and the one that has more than ``most`` of the integral's error.
    """
    empty = cells.floor == 0.0
    unseen = is_faint(cells.value, cells.error)
    rough = somewhere(unseen & (cells.error > cells.floor)) & cells.refinable
    at_end = (cells.start == 0.0) | (cells.stop == 0.0)
    wide = ((cells.kind == LINEAR) & at_end) | (cells.stop - cells.start > SCANNED)
    return ((rough | somewhere(unseen & empty)) & wide) | (rough & somewhere(cells.error > most))


def count_children(move: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many children each cell gets, and at how many places beside their nodes f is called, int64."""
    split, turned = (move > KEEP).to(torch.int64), (move == TURN).to(torch.int64)
    again, closer = (move - HALVE).clamp_min(0).to(torch.int64), (move == CLOSER).to(torch.int64)
    return 2 * split + again - turned, again + (move == REVERT) + BESIDE * (2 * closer + turned)


def refine(
    cells: Cells, known: Tensor, move: Tensor, counts: Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Refine cells: the parent of each child, its start and stop; those with logarithmic nodes come last.

    Children of one parent stand next to each other, in order. ``known`` ``(3, n)`` is the integrand at the cells'
    starts, stops and middles; last are returned what is known at the children's starts and stops, and the children
    between which and the ones before it is not.
    """
    everyone = torch.arange(len(cells), device=move.device)
    if counts.cells == counts.halved:
        return _halve(everyone, cells, known, move, counts)
    halved, reverted, turned, closer = (
        locate(mask, count)
        for mask, count in (
            (move >= HALVE, counts.halved),
            (move == REVERT, counts.reverted),
            (move == TURN, counts.turned),
            (move == CLOSER, counts.closer),
        )
    )
    start, stop = cells.start, cells.stop
    *children, asked = _halve(halved, cells.take(halved), known[:, halved], move[halved], counts)
    groups = (
        children,
        (reverted.repeat_interleave(2), *bisect(start[reverted], stop[reverted]), _apart(known[:2, reverted])),
        (turned, start[turned], stop[turned], known[:2, turned]),
        (
            closer.repeat_interleave(2),
            *_close_in(start[closer], stop[closer]),
            known[:2, closer.repeat_interleave(2)] * torch.nan,
        ),
    )
    parent, start, stop, known = (torch.cat(column, dim=-1) for column in zip(*groups, strict=True))
    apart = torch.arange(counts.reverted, device=move.device) * 2 + (counts.linear - 2 * counts.reverted + 1)
    return parent, start, stop, known, torch.cat((asked, apart))


def _apart(known: Tensor) -> Tensor:
    """Return what is known of pairs of neighbours that share the cells' starts and stops: nothing between them."""
    at_start, at_stop = known
    nowhere = torch.full_like(at_start, torch.nan)
    return torch.stack((torch.stack((at_start, nowhere), 1), torch.stack((nowhere, at_stop), 1))).flatten(1)


def _halve(
    parent: Tensor, cells: Cells, known: Tensor, move: Tensor, counts: Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Halve cells, and where told the half that is to blame again, towards the spot; see :func:`refine`."""
    start, stop, (at_start, at_stop, between) = cells.start, cells.stop, known
    if counts.again == 0:
        known = torch.stack((torch.stack((at_start, between), 1), torch.stack((between, at_stop), 1))).flatten(1)
        return parent.repeat_interleave(2), *bisect(start, stop), known, parent[:0]
    n, again = 2 * counts.halved + counts.again, (move - HALVE).to(torch.int64)
    last = (again + 2).cumsum(0) - 1
    first = last - again - 1
    right, spot, low = largest(cells.lean) > 0.0, largest(cells.spot), torch.zeros_like(start)
    asked = torch.ones(n, dtype=torch.bool, device=move.device)
    asked[first] = asked[torch.where(right, first + 1, last)] = False
    parent = parent.repeat_interleave(again + 2, output_size=n)
    place, known = start.new_empty((2, n + 1)), known.new_full((2, n + 1), torch.nan)
    # What is beside the half to blame gets the first or the last place that is left; then the same with that half.
    for step in range(counts.deepest + 1):
        active = again >= step
        at = torch.stack(torch.broadcast_tensors(at_start, between, at_stop))
        halves = torch.stack(bisect(start, stop)).unflatten(1, (-1, 2)).unbind(2)
        where = torch.where(right, first, last).masked_fill(~active, n)
        place[:, where] = torch.where(right, *halves)
        known = known.index_copy(1, where, torch.where(right, at[:2], at[1:]))
        first, last = first + (active & right), last - (active & ~right).long()
        start, stop = torch.where(active, torch.where(right, *halves[::-1]), torch.stack((start, stop)))
        at_start, at_stop = torch.where(active, torch.where(right, at[1:], at[:2]), at[::2])
        width, between = 0.5 ** (step + 1), torch.full_like(between, torch.nan)
        low = low + width * right
        right = spot >= low + 0.5 * width
    place[:, first] = torch.stack((start, stop))
    known = known.index_copy(1, first, torch.stack((at_start, at_stop)))
    return parent, place[0, :n], place[1, :n], known[:, :n], locate(asked, counts.again)


def _close_in(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Part cells with logarithmic nodes at the logarithm's middle, those at an end close to it."""
    mean = (start.abs().sqrt() * stop.abs().sqrt()).copysign(stop + start)
    middle = torch.where(start == 0.0, stop * STEP, torch.where(stop == 0.0, start * STEP, mean))
    return torch.stack((start, middle), dim=1).flatten(), torch.stack((middle, stop), dim=1).flatten()
