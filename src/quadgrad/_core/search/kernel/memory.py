"""The memory that searches in the compiled kernel work in, handed from one to the next.

To touch new memory, page by page, takes a tenth of a search for cheap integrands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BYTES", "INTEGERS", "REALS", "CellMemory", "Memory", "in_memory", "numbers", "pointer", "spare"]

SPARE, SEARCHES = 2**23, 2
"""How many numbers' memory is kept from one search for the next at most, and of how many searches."""

REALS, INTEGERS, BYTES = (
    torch.empty(0, dtype=dtype, device="cpu") for dtype in (torch.float64, torch.int64, torch.int8)
)
"""Asking a tensor for more like it is quicker than naming dtype and device."""


def numbers(*shape: int) -> Tensor:
    """Return new memory."""
    return REALS.new_empty(*shape)


def pointer(t: Tensor | None) -> int | None:
    """Return where a tensor's numbers begin."""
    return None if t is None else t.data_ptr()


def in_memory(t: Tensor) -> bool:
    """Whether there is memory behind a tensor to read from: subclasses, too, may have none."""
    return t.is_cpu and (t.data_ptr() != 0 or t.numel() == 0)


@dataclass(slots=True)
class CellMemory:
    """``n`` cells of ``width`` numbers in memory that is kept for them, from the number ``at`` on."""

    room: Tensor
    n: int
    width: int
    at: int = 0

    @property
    def pointer(self) -> int:
        """Where the first cell begins."""
        return self.room.data_ptr() + 8 * self.at

    def parts(self, step: int) -> Iterator[CellMemory]:
        """Yield so many cells at a time."""
        for low in range(0, self.n, step):
            n = min(step, self.n - low)
            yield self if n == self.n else CellMemory(self.room, n, self.width, self.at + low * self.width)


class Memory:
    """What a search works in: rooms of numbers of eight bytes by name, ``size`` of them in all."""

    __slots__ = ("rooms", "size", "turn")

    def __init__(self) -> None:
        self.rooms: dict[str | int, Tensor] = {}
        self.size, self.turn = 0, 0

    def room(self, name: str | int, size: int, used: int = 0) -> Tensor:
        """Return a room for so many numbers at least, of which the first that are ``used`` are kept."""
        room = self.rooms.get(name, REALS)
        if room.shape[0] < size:
            grown = numbers(size + used // 4)
            grown[:used] = room[:used]
            self.size += grown.shape[0] - room.shape[0]
            self.rooms[name] = room = grown
        return room

    def cells(self, size: int) -> Tensor:
        """Return a room for new cells; those before stay, and those before them are overwritten."""
        self.turn = 1 - self.turn
        return self.room(self.turn, size)

    @staticmethod
    def take() -> Memory:
        """Return what an earlier search has left, if no other thread, nor a search around this one, has it."""
        try:
            return spare.pop()
        except IndexError:
            return Memory()

    def leave(self) -> None:
        """Leave it to the next search, unless that would be much to hold on to."""
        first, second = self.rooms.get(0, REALS), self.rooms.get(1, REALS)
        # The first cells of a search are few: they get the smaller room.
        self.turn = int(second.shape[0] > first.shape[0])
        if len(spare) < SEARCHES and self.size <= SPARE:
            spare.append(self)


spare: list[Memory] = []
"""What no search works in."""
