"""What a watcher asks of a search in the compiled kernel: its cells and what they have cost, read where they stand.

See :mod:`quadgrad._core.search.piles.watch`.
"""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.problem import Problem
from quadgrad._core.search.decide import Totals, allowed_error
from quadgrad._core.search.kernel.library import CELL, END, INTEGRAL, STRETCH, Piles, Round
from quadgrad._core.search.kernel.memory import CellMemory, Memory
from quadgrad._core.search.piles.stretches import Piled
from quadgrad._core.search.projection import AtHand

__all__ = ["AT_START", "ERROR", "FLAGS", "NFEV", "ROW", "START", "STOP", "WatchedBodies"]

START, STOP, VALUE, ERROR, AT_START, ROW, FLAGS, SPLITTABLE = 0, 1, 2, 3, 5, 8, 9, 2
"""Columns of a cell: place, value, error, f where it is known (three), the row as an integer, bytes: first the
kind, and of that number whether splitting helps."""

WHO, NFEV = 3, 5
"""Columns of an integral: which it is, and the evaluations, as integers."""


class WatchedBodies:
    """The cells at hand and the books of a search."""

    task: Problem
    kernel: Any
    memory: Memory
    round: Round
    linear: CellMemory
    ends: CellMemory
    books: Tensor
    held: Tensor
    width: int
    parts: int

    def look_for_piles(self, far: float) -> Piled:
        """Look at the cells not judged yet of integrals whose error is ``far`` times what it may be, or more."""
        linear, ends, round = self.linear, self.ends, self.round
        n = linear.n + ends.n
        stretches, edges = self.memory.room("stretches", STRETCH * n), self.memory.room("ends of pieces", END * n)
        round.linear, round.n_linear, round.ends, round.n_ends = linear.pointer, linear.n, ends.pointer, ends.n
        piles = Piles.into(stretches, edges, far)
        self.kernel.look_for_piles(byref(round), byref(piles))
        return piles.read(stretches, edges)

    def settled_values(self, owner: Tensor) -> Tensor:
        """Return what the settled cells of some running integrals add up to, of one real component."""
        books, at = self._find(owner)
        return books.view(torch.float64)[at, 0]

    def cost(self, owner: Tensor) -> Tensor:
        """Return the nodes that some running integrals have cost."""
        books, at = self._find(owner)
        return books[at, NFEV]

    def charge(self, owner: Tensor, nodes: Tensor) -> None:
        """Have running integrals pay for further nodes."""
        books, at = self._find(owner)
        books[:, NFEV].index_add_(0, at, nodes)

    def at_hand(self, least: int, most: int) -> AtHand | None:
        """Return the integrals that run, and have cost from ``least`` to below ``most``; None if there is none."""
        books = self.books.view(-1)[: self.round.running * INTEGRAL].view(-1, INTEGRAL)
        who, spent = (books.view(torch.int64)[:, column] for column in (WHO, NFEV))
        late = (spent >= least) & (spent < most)
        if not bool(late.any()):
            return None
        cells = torch.cat([c.room[c.at :][: c.n * c.width].view(c.n, c.width) for c in (self.linear, self.ends)])
        row = cells.view(torch.int64)[:, ROW]
        owner = torch.searchsorted(who.contiguous(), row // self.task.pieces.count)
        values = self.held.view(-1, self.width)[who] if self.width else books[:, :1]
        sums = torch.cat((values, books[:, 1:3]), 1)
        new = torch.cat(
            (cells[:, CELL:] if self.width else cells[:, VALUE : VALUE + 1], cells[:, ERROR : ERROR + 2]), 1
        )
        totals = Totals.of(sums.index_add(0, owner, new).T, self.parts == 2)
        splittable = cells.view(torch.int8)[:, 8 * FLAGS + SPLITTABLE] > 0
        index = (splittable & late[owner]).nonzero().squeeze(1)
        columns = (late.cumsum(0) - 1)[owner], row, cells[:, START], cells[:, STOP], cells[:, ERROR]
        allowed = allowed_error(self.task.tolerance, totals)
        return AtHand(who[late], spent[late], allowed[late], *(t[index] for t in columns))

    def _find(self, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Return the books of the running integrals, and where some of these stand."""
        books = self.books.view(torch.int64).view(-1, INTEGRAL)[: self.round.running]
        return books, torch.searchsorted(books[:, WHO].contiguous(), owner)
