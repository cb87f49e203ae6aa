"""The books of a search: the integrals still running, the settled cells, and the totals of all integrals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import locate
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.search.decide import WAIT

__all__ = ["Books", "Running", "add_by_owner", "sum_by_owner"]


@dataclass(slots=True)
class Running:
    """The integrals still running.

    ``whole`` ``(4, n)`` are their numbers among all, the cells at hand of each, the nodes spent, and the rounds
    with values that are not finite; ``sums`` as of their settled cells, see
    :class:`quadgrad._core.mesh.protocol.Cells`.
    """

    whole: Tensor
    sums: Tensor

    def __len__(self) -> int:
        return self.whole.shape[1]

    def take(self, index: Tensor) -> Running:
        """Return the integrals at ``index``."""
        return Running(self.whole.index_select(1, index), self.sums.index_select(1, index))


class Books:
    """The settled cells, and the totals of the integrals that run no more, out of ``n``."""

    def __init__(self, n: int, sums: Tensor) -> None:
        """Open books for all integrals; ``sums`` are like those to be kept."""
        self.sums = sums.new_zeros(sums.shape[0], n)
        self.whole = torch.zeros((2, n), dtype=torch.int64, device=sums.device)
        self.settled: list[Cells] = []

    def settle(self, cells: Cells, who: Tensor) -> None:
        """Put cells away, under the number of their integrals among all."""
        cells.whole[0] = who
        if len(cells) or not self.settled:
            self.settled.append(cells)

    def enter(self, who: Tensor, code: Tensor, nfev: Tensor, sums: Tensor) -> None:
        """Keep how integrals have ended, and their sums."""
        self.whole.index_copy_(1, who, torch.stack((code, nfev)))
        self.sums.index_copy_(1, who, sums)

    def withdraw(self) -> tuple[Running, Cells]:
        """Take the integrals that wait back, with all their cells."""
        cells, waits = Cells.join(self.settled), self.whole[0] == WAIT
        again = waits.index_select(0, cells.whole[0])
        taken, integrals = torch.stack((again.sum(), waits.sum())).tolist()
        self.settled = [cells.take(locate(~again, len(cells) - taken))]
        cells, who = cells.take(locate(again, taken)), locate(waits, integrals)
        cells.whole[0] = (waits.cumsum(0) - 1).index_select(0, cells.whole[0])
        count = sum_by_owner(torch.ones_like(cells.whole[:1]), cells.whole[0], integrals)[0]
        whole = torch.stack((who, count, self.whole[1].index_select(0, who), torch.zeros_like(who)))
        return Running(whole, torch.zeros_like(self.sums[:, :integrals])), cells


def sum_by_owner(columns: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sum ``columns`` ``(k, n)`` over those of each owner, ``(k, count)``."""
    return add_by_owner(columns.new_zeros(columns.shape[0], count), columns, owner)


def add_by_owner(sums: Tensor, columns: Tensor, owner: Tensor) -> Tensor:
    """Return ``sums`` ``(k, count)`` plus ``columns`` ``(k, n)`` of each owner, added in the same order always."""
    if not columns.is_cuda:
        return sums.scatter_add(1, owner.expand(columns.shape), columns)
    # There the order of atomic additions is left to chance; an accumulating index_put sorts first.
    row = torch.arange(columns.shape[0], device=owner.device)[:, None]
    return sums.index_put((row, owner), columns, accumulate=True)
