"""The data model of search: cells of all integrals as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quadgrad.lanes import somewhere

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

KEEP, HALVE, LEFT, RIGHT, REVERT, TURN, CLOSER = range(7)
"""How to refine a cell: not at all; halve it; halve its left or right half, too; halve one whose logarithmic nodes
did not help; give it logarithmic nodes, being at an end; part one that has them."""

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
    blame for the error: -1 the left, 1 the right, 0 both, -2 and 2 if it still will be after one bisection (for
    logarithmic nodes at an end: 1 where they do not help).
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
    """How many cells are halved, have a half halved again, are reverted, turned, and parted closer to the end."""

    halved: int
    again: int
    reverted: int
    turned: int
    closer: int

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
    leftward, rightward = somewhere(cells.lean < 0.0), somewhere(cells.lean > 0.0)
    left, right = somewhere(cells.lean == -2.0), somewhere(cells.lean == 2.0)
    at_lower, at_upper = cells.start == 0.0, cells.stop == 0.0
    level = -torch.log2(cells.stop - cells.start)
    tried = torch.where(level > 2.0, level % EVERY >= 2.0, level < 1.0)
    towards = (at_lower & leftward) | (at_upper & rightward) | ((at_lower | at_upper) & (level >= DEEP))
    move = HALVE + left.to(torch.int8) * (LEFT - HALVE) + right.to(torch.int8) * (RIGHT - HALVE)
    move = move.masked_fill(towards & ~tried, TURN)
    # Where logarithmic nodes are of no help, the cell gets linear ones again.
    closer = torch.where(rightward, REVERT, CLOSER).to(torch.int8)
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
    again, closer = ((move == LEFT) | (move == RIGHT)).to(torch.int64), (move == CLOSER).to(torch.int64)
    return 2 * split + again - turned, again + (move == REVERT) + BESIDE * (2 * closer + turned)


def refine(
    start: Tensor, stop: Tensor, known: Tensor, move: Tensor, counts: Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Refine cells: the parent of each child, its start and stop; those with logarithmic nodes come last.

    The halves of halves come after the other halves, then the reverted ones. ``known`` ``(3, n)`` is the integrand
    at the cells' starts, stops and middles; last is returned what is known at the children's starts and stops.
    """
    everyone = torch.arange(start.shape[0], device=start.device)
    if counts.cells == counts.halved:
        return _halve(everyone, start, stop, known, move, counts.again)
    halved, reverted, turned, closer = (
        locate(mask, count)
        for mask, count in (
            ((move > KEEP) & (move < REVERT), counts.halved),
            (move == REVERT, counts.reverted),
            (move == TURN, counts.turned),
            (move == CLOSER, counts.closer),
        )
    )
    groups = (
        _halve(halved, start[halved], stop[halved], known[:, halved], move[halved], counts.again),
        (reverted.repeat_interleave(2), *bisect(start[reverted], stop[reverted]), _apart(known[:2, reverted])),
        (turned, start[turned], stop[turned], known[:2, turned]),
        (
            closer.repeat_interleave(2),
            *_close_in(start[closer], stop[closer]),
            known[:2, closer.repeat_interleave(2)] * torch.nan,
        ),
    )
    parent, start, stop, known = (torch.cat(column, dim=-1) for column in zip(*groups, strict=True))
    return parent, start, stop, known


def _apart(known: Tensor) -> Tensor:
    """Return what is known of pairs of neighbours that share the cells' starts and stops: nothing between them."""
    at_start, at_stop = known
    nowhere = torch.full_like(at_start, torch.nan)
    return torch.stack((torch.stack((at_start, nowhere), 1), torch.stack((nowhere, at_stop), 1))).flatten(1)


def _halve(
    parent: Tensor, start: Tensor, stop: Tensor, known: Tensor, move: Tensor, n_again: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve cells, and where told their left or right half once more; the halves of halves come last."""
    parent = parent.repeat_interleave(2)
    start, stop = bisect(start, stop)
    at_start, at_stop, at_middle = known
    known = torch.stack((torch.stack((at_start, at_middle), 1), torch.stack((at_middle, at_stop), 1))).flatten(1)
    if n_again == 0:
        return parent, start, stop, known
    again = torch.stack((move == LEFT, move == RIGHT), dim=1).flatten()
    once, twice = locate(~again, start.shape[0] - n_again), locate(again, n_again)
    finer = (parent.index_select(0, twice).repeat_interleave(2), *bisect(start[twice], stop[twice]))
    whole = (t.index_select(0, once) for t in (parent, start, stop))
    parent, start, stop = (torch.cat(pair) for pair in zip(whole, finer, strict=True))
    inner = _apart(known.index_select(1, twice))
    return parent, start, stop, torch.cat((known.index_select(1, once), inner), dim=1)


def _close_in(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Part cells with logarithmic nodes at the logarithm's middle, those at an end close to it."""
    mean = (start.abs().sqrt() * stop.abs().sqrt()).copysign(stop + start)
    middle = torch.where(start == 0.0, stop * STEP, torch.where(stop == 0.0, start * STEP, mean))
    return torch.stack((start, middle), dim=1).flatten(), torch.stack((middle, stop), dim=1).flatten()
