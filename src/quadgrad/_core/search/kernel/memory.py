"""The memory that searches in the compiled kernel work in, handed from one to the next.

To touch new memory, page by page, takes a tenth of a search for cheap integrands.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.search.kernel.library import CELL, INTEGRAL, LEAF

__all__ = ["BYTES", "INTEGERS", "REALS", "Memory", "numbers", "spare"]

SPARE, SEARCHES = 2**23, 2
"""How many numbers' memory is kept from one search for the next at most, and of how many searches."""

REALS, INTEGERS, BYTES = (
    torch.empty(0, dtype=dtype, device="cpu") for dtype in (torch.float64, torch.int64, torch.int8)
)
"""Asking a tensor for more like it is quicker than naming dtype and device."""


def numbers(*shape: int) -> Tensor:
    """Return new memory."""
    return REALS.new_empty(*shape)


class Memory:
    """What a search works in: two rooms for cells in turn, one for all that settle, and those for other things.

    ``size`` is how many numbers it holds.
    """

    __slots__ = ("decisions", "integrals", "leaves", "places", "questions", "rooms", "settled", "size")

    def __init__(self) -> None:
        self.rooms, self.leaves, self.decisions = [numbers(0, CELL)] * 2, numbers(0, LEAF), numbers(0, 1)
        self.places, self.questions, self.integrals = numbers(0, 1), numbers(0, 1), numbers(0, INTEGRAL)
        self.settled = self.size = 0

    def room(self, rows: int) -> Tensor:
        """Return room for cells; what was there before last is overwritten."""
        last, room = self.rooms
        self.rooms = [self._at_least(room, rows, CELL), last]
        return self.rooms[0]

    def leaves_for(self, rows: int) -> tuple[int, int]:
        """Return where the settled cells are, and how many have room there: that many more at least."""
        old, rows = self.leaves, rows + self.settled
        if rows > old.shape[0]:
            self.leaves = self._at_least(old, rows + rows // 4, LEAF)
            for was, now in zip(_leaves_and_tags(old), _leaves_and_tags(self.leaves), strict=True):
                now[: self.settled] = was[: self.settled]
        return self.leaves.data_ptr(), self.leaves.shape[0]

    def scratch(self, rows: int) -> int:
        """Return where decisions may be put."""
        self.decisions = self._at_least(self.decisions, rows, 1)
        return self.decisions.data_ptr()

    def books(self, rows: int) -> Tensor:
        """Return room for integrals."""
        self.integrals = self._at_least(self.integrals, rows, INTEGRAL)
        return self.integrals

    def layout(self, n: int) -> Tensor:
        """Return room for where cells lie, ``(3, n)``; what was there before is overwritten."""
        self.places = self._at_least(self.places, 3 * n, 1)
        return self.places[: 3 * n].view(3, n)

    def between(self, n: int) -> Tensor:
        """Return room for where to ask for f between cells, ``(3, n)``; what was there before is overwritten."""
        self.questions = self._at_least(self.questions, 3 * n, 1)
        return self.questions[: 3 * n].view(3, n)

    def _at_least(self, room: Tensor, rows: int, columns: int) -> Tensor:
        if room.shape[0] >= rows:
            return room
        self.size += (rows - room.shape[0]) * columns
        return numbers(rows, columns)

    @staticmethod
    def take() -> Memory:
        """Return what an earlier search has left, if no other thread, nor a search around this one, has it."""
        try:
            return spare.pop()
        except IndexError:
            return Memory()

    def leave(self) -> None:
        """Leave it to the next search, unless that would be much to hold on to."""
        self.settled = 0
        self.rooms.sort(key=len, reverse=True)  # the first cells of a search are few: they get the smaller room
        if len(spare) < SEARCHES and self.size <= SPARE:
            spare.append(self)


def _leaves_and_tags(room: Tensor) -> tuple[Tensor, Tensor]:
    """Return settled cells, a row for each, and their tags."""
    whole = room.view(-1)
    split = whole.shape[0] // LEAF * (LEAF - 1)
    return whole[:split].view(-1, LEAF - 1), whole[split:]


# A C library like glibc hands memory that is free back, and takes it again page by page, until a large block (for
# glibc of 32 MiB at most) has come and gone: then it expects more of them. Else what f makes is new memory in every
# search.
numbers(31 * 2**17)

spare: list[Memory] = []
"""What no search works in."""
