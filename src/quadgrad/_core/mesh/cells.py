"""The data model of search: cells of all integrals as arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quadgrad._core.lanes import largest, somewhere
from quadgrad._core.mesh.interval import LINEAR
from quadgrad._core.mesh.interval import LOGARITHMIC as GEOMETRIC
from quadgrad._core.mesh.poles import Ellipse, Parts, find_parts, is_near, one_pole

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
    "plan_parts",
    "refine",
    "to_scan",
]

FAINT = 0.1
"""An integral, or a cell, is faint if its error is more than this part of its value."""

SCANNED = 2.0**-7
"""Faint cells are halved to this part of their piece before a faint integral is believed."""

KEEP, REVERT, TURN, CLOSER, PART, HALVE = range(6)
"""How to refine a cell: not at all; halve one whose logarithmic nodes did not help; give it such nodes, being at an
end; part one that has them; bisect it as often as its pole asks for, see :mod:`.poles`; or once."""

AT_END = 2.0**-6
"""A pole less than this part of the cell away from an end of its piece is none: there may be a singularity."""

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
    take (for logarithmic nodes at an end: 1 where they do not help); ``pole`` and ``height`` where f seems to have
    a pole, in parts of the cell.
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
    pole: Tensor
    height: Tensor
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
    """How many cells are parted, into how many parts, and how many are reverted, turned, and parted at the end."""

    parted: int
    parts: int
    reverted: int
    turned: int
    closer: int

    @property
    def cells(self) -> int:
        """The number of cells that are refined."""
        return self.parted + self.reverted + self.turned + self.closer

    @property
    def linear(self) -> int:
        """The number of children with evenly spread nodes."""
        return self.parts + 2 * self.reverted


def locate(mask: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` true entries; the count being known, no device is waited for."""
    if mask.is_cuda:
        return torch.nonzero_static(mask, size=count).squeeze(1)
    return mask.nonzero().squeeze(1)


def bisect(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Halve cells: start and stop of the two children of each, which stand next to each other.

    Halves of a whole piece are measured from different ends, see :mod:`quadgrad._core.mesh.interval`.
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
    level = -torch.log2(cells.stop - cells.start)
    tried = torch.where(level > 2.0, level % EVERY >= 2.0, level < 1.0)
    towards = (
        (at_lower & (leftward < 0.0)) | (at_upper & (rightward > 0.0)) | ((at_lower | at_upper) & (level >= DEEP))
    )
    move = torch.where(towards & ~tried, TURN, PART).to(torch.int8)
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


def plan_parts(cells: Cells, move: Tensor, ellipse: Ellipse) -> Parts:
    """Return the parts of all cells that are bisected.

    Where no pole asks for more, the half that is to blame is bisected, too, if bisecting once is not enough.
    """
    index = (move >= PART).nonzero().squeeze(1)
    start, stop, pole, height, lean, move = (
        t.index_select(0, index) for t in (cells.start, cells.stop, cells.pole, cells.height, cells.lean, move)
    )
    at_lower, at_upper = start == 0.0, (stop == 0.0) | (stop == 1.0)
    at_end = (at_lower & (pole < AT_END)) | (at_upper & (pole > 1.0 - AT_END))
    high = height.masked_fill(at_end, torch.inf) ** 2 * ellipse.across
    asks = is_near(pole, high, ellipse.along, 0.25, 0.5) | is_near(pole, high, ellipse.along, 0.75, 0.5)
    pole = torch.where(asks, pole, 0.5 + 0.125 * lean)
    high = torch.where(asks, high, torch.where(lean.abs() > 1.0, 2.0**-5, torch.inf))
    pole, high = one_pole(pole, torch.where(move == HALVE, torch.inf, high), ellipse)
    return find_parts(index, pole, high, ellipse.along)


def count_children(move: Tensor, parts: Parts) -> tuple[Tensor, Tensor]:
    """Return how many children each cell gets, and at how many places beside their nodes f is called, int64."""
    own = torch.zeros_like(move, dtype=torch.int64).index_add(0, parts.origin, torch.ones_like(parts.origin))
    reverted, turned, closer = ((move == kind).to(torch.int64) for kind in (REVERT, TURN, CLOSER))
    between = (own - 2).clamp_min(0) + reverted
    return own + 2 * reverted + turned + 2 * closer, between + BESIDE * (2 * closer + turned)


def refine(
    cells: Cells, known: Tensor, move: Tensor, parts: Parts, counts: Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Refine cells: the parent of each child, its start and stop; those with logarithmic nodes come last.

    Children of one parent stand next to each other, in order. ``known`` ``(3, n)`` is the integrand at the cells'
    starts, stops and middles; last are returned what is known at the children's starts and stops, and the children
    between which and the ones before it is not.
    """
    *children, asked = bisected = _put_parts(cells, known, parts, counts)
    if counts.cells == counts.parted:
        return bisected
    reverted, turned, closer = (
        locate(move == kind, count)
        for kind, count in ((REVERT, counts.reverted), (TURN, counts.turned), (CLOSER, counts.closer))
    )
    start, stop = cells.start, cells.stop
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
    apart = torch.arange(counts.reverted, device=move.device) * 2 + (counts.parts + 1)
    return parent, start, stop, known, torch.cat((asked, apart))


def _apart(known: Tensor) -> Tensor:
    """Return what is known of pairs of neighbours that share the cells' starts and stops: nothing between them."""
    at_start, at_stop = known
    nowhere = torch.full_like(at_start, torch.nan)
    return torch.stack((torch.stack((at_start, nowhere), 1), torch.stack((nowhere, at_stop), 1))).flatten(1)


def _put_parts(
    cells: Cells, known: Tensor, parts: Parts, counts: Counts
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Put the parts of cells in their places; see :func:`refine`."""
    parent, low, high = parts.origin, parts.low, parts.low + parts.width
    start, stop, (at_start, at_stop, middle) = cells.start[parent], cells.stop[parent], known[:, parent]
    first, last, span = low == 0.0, high == 1.0, stop - start
    low_end = torch.where(first, start, start + span * low.to(start.dtype))
    high_end = torch.where(last, stop, start + span * high.to(start.dtype))
    turn = (~first & (low_end >= 0.5)).to(start.dtype)  # beyond the middle of a whole piece: see bisect
    at_start = torch.where(first, at_start, torch.where(low == 0.5, middle, torch.nan))
    at_stop = torch.where(last, at_stop, torch.where(high == 0.5, middle, torch.nan))
    asked = locate(~first & (low != 0.5), counts.parts - 2 * counts.parted)
    return parent, low_end - turn, high_end - turn, torch.stack((at_start, at_stop)), asked


def _close_in(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Part cells with logarithmic nodes at the logarithm's middle, those at an end close to it."""
    mean = (start.abs().sqrt() * stop.abs().sqrt()).copysign(stop + start)
    middle = torch.where(start == 0.0, stop * STEP, torch.where(stop == 0.0, start * STEP, mean))
    return torch.stack((start, middle), dim=1).flatten(), torch.stack((middle, stop), dim=1).flatten()
