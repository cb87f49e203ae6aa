"""The check of a kept plan by the values that its replay computes: one pass gives value, gradient and error.

Replay shows each block of values to :class:`Watch`, which keeps what search would have found on the cells;
:func:`recheck` sums it up and says whether every integral may stop. Otherwise search goes on from the plan's cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quadgrad._core._torch import outside_transforms, without_derivatives
from quadgrad._core.estimates.endpoint_values import look_at_edges
from quadgrad._core.estimates.null_rules import apply_rule
from quadgrad._core.estimates.singular_ends import estimate_ends
from quadgrad._core.lanes import largest, plain, somewhere
from quadgrad._core.mesh.cells import BESIDE, GEOMETRIC, LINEAR, Cells, bisect, is_faint, to_scan
from quadgrad._core.mesh.interval import end_frame, frame
from quadgrad._core.reduce import total
from quadgrad._core.search.adaptive import allowed_error, linear_cells, node_blur
from quadgrad._core.search.start import First
from quadgrad._core.search.task import SHARE, Found, Task, noise
from quadgrad._core.status import Status

__all__ = ["Recheck", "Watch", "recheck"]


FEW = 6
"""Cells of a piece that is searched anew, not from them, when its error is too large."""


@dataclass
class Watch:
    """Sees the values of a replay of the cells ``first``, until it is closed: a backward pass may repeat them."""

    task: Task
    first: First
    closed: bool = False
    parts: list[tuple[Tensor, Cells]] = field(default_factory=list[tuple[Tensor, Cells]])

    def see(self, index: Tensor, y: Tensor, factor: Tensor) -> None:
        """Look at the values on some cells, and call f at their edges, too."""
        if self.closed:
            return
        kind, y, factor = self.first.kind, plain(y), plain(factor)
        with without_derivatives(), outside_transforms():
            if kind is None:
                self._see_linear(index, y, factor)
                return
            linear = kind[index] == LINEAR
            for mask, see in ((linear, self._see_linear), (~linear, self._see_ends)):
                if bool(mask.any()):
                    see(index[mask], y[:, mask], factor[:, mask])

    def _see_linear(self, index: Tensor, y: Tensor, factor: Tensor) -> None:
        task = self.task
        row, start, stop, real = self._cells(index)
        layout = frame(task.pieces, row, start.to(real), stop.to(real))
        rule, eps = task.rule.tensors(real, row.device), noise(task)
        known = look_at_edges(task, row, start, stop)
        slope = None if layout.tail is None else (factor / layout.scale).to(real)
        *columns, _ = apply_rule(rule, y, slope, task.rule.order_gap, eps, node_blur(layout), known)
        self.parts.append((index, linear_cells(task, row, start, stop, tuple(columns), layout, eps)))

    def _see_ends(self, index: Tensor, y: Tensor, _: Tensor) -> None:
        task, kind = self.task, self.first.kind
        assert kind is not None
        row, start, stop, real = self._cells(index)
        layout = end_frame(task.pieces, row, start.to(real), stop.to(real))
        rule, touches = task.rule.tensors(real, row.device), (start == 0) | (stop == 0)
        edge = rule.nodes.new_ones(1)
        x, slope = layout.nodes(torch.cat((0.0 * edge, rule.nodes, edge)), slice(None))
        outer, inner = task.integrand(x[[0, -1]], row // task.pieces.count).detach().split(1)
        held = kind[index].to(torch.int64) - (GEOMETRIC + 1)
        found = estimate_ends(task, rule, torch.cat((outer, y, inner)), slope, layout, touches, slice(None), held)
        self.parts.append((index, Cells(row, start, stop, *found)))

    def _cells(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.dtype]:
        first = self.first
        return first.row[index], first.start[index], first.stop[index], self.task.pieces.lower.dtype

    def restart(self) -> None:
        """Forget what was seen: all of it comes again."""
        self.parts.clear()

    def close(self) -> Cells:
        """Return all cells in the order of ``first``."""
        self.closed = True
        index, cells = torch.cat([index for index, _ in self.parts]), Cells.join([cells for _, cells in self.parts])
        return cells.take(index.argsort())


@dataclass(frozen=True)
class Recheck:
    """What the cells that were replayed are worth.

    ``done`` ``(batch,)`` tells which integrals may stop, ``coarse`` which cells have too large an error; each
    integral has so many ``pieces``.
    """

    found: Found
    done: Tensor
    coarse: Tensor
    pieces: int

    def unfinished(self) -> First:
        """Return the cells of the integrals that may not stop; linear ones that are too coarse are halved.

        Pieces of few cells start anew: that costs little more, and does not keep cells that are needed no longer.
        """
        found, kind = self.found, _kinds(self.found)
        mine = ~self.done[found.row // self.pieces]
        few = torch.bincount(found.row)[found.row] <= FEW
        anew = found.row[mine & few].unique()
        split = mine & self.coarse & (kind == LINEAR) & ~few
        stays = mine & ~split & ~few
        zero = torch.zeros(anew.shape, dtype=found.start.dtype, device=anew.device)
        halves = bisect(found.start[split], found.stop[split])
        row, order = torch.cat((anew, found.row[stays], found.row[split].repeat_interleave(2))).sort(stable=True)
        start, stop = (
            torch.cat((whole, t[stays], half))[order]
            for whole, t, half in zip((zero, zero + 1.0), (found.start, found.stop), halves, strict=True)
        )
        kinds = (torch.full_like(anew, LINEAR, dtype=torch.int8), kind[stays], kind[split].repeat_interleave(2))
        return First(row, start, stop, None if found.kind is None else torch.cat(kinds)[order])

    def join(self, mended: Found) -> Found:
        """Return what was found here of the integrals that are done, and what search has found of the others."""
        first, again = self.found, ~self.done
        stays = self.done[first.row // self.pieces]
        row, order = torch.cat((first.row[stays], mended.row)).sort(stable=True)
        columns = (
            (first.start, mended.start), (first.stop, mended.stop),
            (first.cell_error, largest(mended.cell_error)), (_kinds(first), _kinds(mended)),
        )  # fmt: skip
        start, stop, cell_error, kind = (torch.cat((old[stays], new))[order] for old, new in columns)
        tail = (1,) * (first.value.ndim - 1)
        value = torch.where(again.reshape(-1, *tail), mended.value, first.value)
        error, status = (
            torch.where(again, new, old)
            for old, new in ((first.error, mended.error), (first.status, mended.status))
        )
        nfev = first.nfev + torch.where(again, mended.nfev, 0)
        return Found(row, start, stop, cell_error, kind, value, error, status, nfev)


def recheck(watch: Watch) -> Recheck:
    """Judge the cells that were replayed, as search does."""
    task, cells = watch.task, watch.close()
    owner, n = cells.row // task.pieces.count, task.batch
    value, error, floor = (total(t, owner, n) for t in (cells.value, cells.error, cells.floor))
    allowed = allowed_error(task.tolerance, value, floor)
    met = largest(error / allowed) <= 1.0
    # Where rounding alone exceeds the tolerance, near it is near enough; what is faint is to be scanned.
    done = largest(error / torch.maximum(allowed, 2.0 * floor)) <= 1.0
    unseen = total(to_scan(cells, 0.5 * error[owner]).to(torch.int64), owner, n) > 0
    done = done & ~(unseen & somewhere(is_faint(value, error)))
    status = torch.where(met, int(Status.CONVERGED), int(Status.ROUNDOFF))
    kind, count = None if watch.first.kind is None else cells.kind, total(torch.ones_like(owner), owner, n)
    found = Found(
        cells.row, cells.start, cells.stop, largest(cells.error), kind, value, error, status,
        count * (task.rule.nodes.size + BESIDE),
    )  # fmt: skip
    coarse = found.cell_error > SHARE * (largest(allowed) / count.clamp_min(1))[owner]
    return Recheck(found, done, coarse, task.pieces.count)


def _kinds(found: Found) -> Tensor:
    return torch.full_like(found.row, LINEAR, dtype=torch.int8) if found.kind is None else found.kind
