"""Intervals as a geometry of the search: their nodes, what refining them costs, and their children.

Cells with evenly spread nodes are bisected, as often at once as a pole beside them asks for; those at an end of their
piece get nodes spread over the logarithm of the distance from it, and are parted there if these help. The same stands
in the kernel's ``decisions.c`` and ``nodes.c``, for one cell at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import (
    AT_END,
    BESIDE,
    CLOSER,
    DEEP,
    DEEPEST,
    EVERY,
    LIMIT,
    PART,
    SCANNED,
    STEP,
    TURN,
    ULPS,
    AtEdges,
    NewIntervals,
    locate,
)
from quadgrad._core.mesh.interval import DEPTH, LINEAR, Layout, Pieces, lay_out
from quadgrad._core.mesh.poles import Ellipse, is_near, middles_near
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.reduce import one_number

__all__ = ["Intervals", "Refinement", "Spots", "find_parts"]


@dataclass(slots=True)
class Spots:
    """Where f is called: of the nodes ``(m, n)``, or of single places ``(k,)``, with what to multiply it by."""

    x: Tensor
    owner: Tensor
    factor: Tensor | None


class FirstCells(Protocol):
    """Cells to start with, sorted by row; ``kind`` is None where all have evenly spread nodes."""

    row: Tensor
    start: Tensor
    stop: Tensor
    kind: Tensor | None


@dataclass(slots=True)
class Refinement:
    """How cells are to be refined: see :class:`quadgrad._core.mesh.protocol.Moves`.

    The cells ``towards`` have a pole beside them, for which they are parted at those ``middles`` that are ``near`` it.
    """

    move: Tensor
    further: Tensor
    price: Tensor
    table: Tensor
    towards: Tensor | None = None
    middles: Tensor | None = None
    near: Tensor | None = None

    @property
    def splits(self) -> Tensor:
        """Which cells are refined."""
        return self.move > 0

    def restrict(self, keep: Tensor, afford: Tensor) -> Tensor:
        """Count cells that are refined, children, nodes, logarithmic children, reverted cells, and further parts."""
        self.move = self.move * keep
        counts = self.table.index_select(1, self.move).sum(1)
        if self.near is None or self.towards is None:
            return torch.cat((counts, counts.new_zeros(1)))
        afford = afford & keep
        self.near = self.near & afford.index_select(0, self.towards)
        return torch.cat((counts, self.near.sum()[None]))


class Intervals:
    """The pieces of all integrals, bisected for a rule with the nodes ``tau``.

    ``eps`` and ``tiny`` are those of the numbers that f is called with.
    """

    def __init__(self, pieces: Pieces, tau: Tensor, shape: Ellipse, shares: int, info: torch.finfo) -> None:
        self.pieces, self.tau, self.shape, self.shares = pieces, tau, shape, shares
        self.nodes, self.eps, self.tiny = tau.shape[0], info.eps, info.tiny
        m, self.first_nodes = self.nodes, self.nodes + BESIDE
        # Of each move, from KEEP to PART: cells refined, children, nodes, logarithmic children, halves put back.
        beside = (0, 1, BESIDE, 2 * BESIDE, 0)
        children = (0, 2, 1, 2, 2)
        table = ((0, 1, 1, 1, 1), children, [m * c + b for c, b in zip(children, beside, strict=True)])
        self.table = torch.tensor((*table, (0, 0, 1, 2, 0), (0, 1, 0, 0, 0)), device=tau.device)
        self.edge = tau.new_zeros(1)

    # ------------------------------------------------------------------------------------------------ nodes

    def start(self, first: FirstCells) -> NewIntervals:
        """Return the cells to start with."""
        row, start, stop, linear = first.row, first.start, first.stop, first.row.shape[0]
        if first.kind is not None:
            linear, order = int((first.kind == LINEAR).sum()), (first.kind != LINEAR).sort(stable=True).indices
            row, start, stop = (t.index_select(0, order) for t in (row, start, stop))
        layout = self._lay_out(row, start, stop, linear)
        unknown = torch.full_like(start, torch.nan)
        return NewIntervals(self._integral(row), row, start, stop, unknown, unknown, linear, None, layout)

    def _lay_out(self, row: Tensor, start: Tensor, stop: Tensor, linear: int) -> Layout:
        n = row.shape[0]
        kind = None if linear == n else torch.arange(n, device=row.device) >= linear
        return lay_out(self.pieces, row, start, stop, kind)

    def _integral(self, row: Tensor) -> Tensor:
        return row if self.pieces.count == 1 else row // self.pieces.count

    def place(self, new: NewIntervals, part: slice) -> Spots:
        """Return the nodes ``(m, n)``."""
        x, factor = new.layout.nodes(self.tau, part)
        return Spots(x, self._integral(new.row[part]), factor)

    def beside(self, new: NewIntervals) -> Spots | None:
        """Return places between new cells, or at the edges of first ones; and at those of cells with logarithms."""
        rows: list[Tensor] = []
        fractions: list[Tensor] = []
        if new.asked is None:
            rows, fractions = [new.row[: new.linear]] * 2, self._first_edges(new)
        elif new.asked.shape[0]:
            rows, fractions = [new.row[new.asked]], [new.start[new.asked]]
        if len(new) > new.linear:
            rows += [new.row[new.linear :]] * 2
            fractions += self._edges(new)
        if not rows:
            return None
        row, fraction = torch.cat(rows), torch.cat(fractions)
        layout = lay_out(self.pieces, row, fraction, fraction, None)
        owner = self._integral(row)
        if layout.image is None:
            return Spots(layout.base, owner, None)
        x, slope = layout.image.nodes(layout.base[None], torch.ones_like(layout.base)[None], slice(None))
        return Spots(x[0], owner, slope[0])

    def _first_edges(self, new: NewIntervals) -> list[Tensor]:
        """Return where edges are called for of first cells, and mark by 0 instead of NaN where this is at the edge.

        At the end of a piece it is right beside it, because f must not be called there. Where rounding would move it
        onto the end, and where that is infinite (so far out ``exp(x)`` overflows), it is in the middle instead.
        """
        part, layout = slice(new.linear), new.layout
        start, stop, extent = new.start[part], new.stop[part], layout.extent[part]
        near = max(LIMIT, ULPS * self.eps)
        origin, no_lower, no_upper = layout.base[part], None, None
        if layout.image is not None:
            no_lower, no_upper = layout.image.no_lower[part], layout.image.no_upper[part]
            origin = torch.where(no_lower | no_upper, layout.image.origin[part], origin)
        beside_limit = near * extent > 4.0 * self.eps * (origin.abs() + extent)
        at_lower, at_upper = (beside_limit if no is None else beside_limit & ~no for no in (no_lower, no_upper))
        width, inner_start, inner_stop = stop - start, start != 0.0, (stop != 0.0) & (stop != 1.0)
        middle = start + 0.5 * width
        lower = torch.where(inner_start, start, torch.where(at_lower, near * width, middle))
        upper = torch.where(inner_stop, stop, torch.where(at_upper, -near * width, middle))
        new.at_start, new.at_stop = new.at_start.clone(), new.at_stop.clone()
        new.at_start[part].masked_fill_(inner_start | at_lower, 0.0)
        new.at_stop[part].masked_fill_(inner_stop | at_upper, 0.0)
        return [lower, upper]

    def _edges(self, new: NewIntervals) -> list[Tensor]:
        """Return the outer and the inner edges of cells with logarithmic nodes.

        Where the cell touches the end the second is as close to it as numbers allow, instead: there it shows whether
        the series goes on as it seems to.
        """
        layout, part = new.layout, slice(new.linear, None)
        assert layout.outer is not None and layout.rate is not None
        outer, rate, span, scale = (t[part] for t in (layout.outer, layout.rate, layout.extent, layout.scale))
        depth = (ULPS * self.eps * layout.reach[part] / span).clamp_min(max(DEEPEST, self.tiny**0.5))
        octaves = torch.log2(outer.abs() / depth) - DEPTH
        usable = (new.start[part] * new.stop[part] == 0.0) & (octaves > DEPTH)
        if layout.image is not None:  # that far out exp(x) overflows
            image = layout.image
            usable = usable & ~torch.where(outer > 0, image.no_lower[part], image.no_upper[part])
        inner = torch.where(usable, depth.copysign(outer), outer * torch.exp(rate))
        steps = torch.where(usable, octaves * (self.shares / DEPTH), 0.0)
        new.edges = AtEdges(steps, outer.abs() * scale, inner.abs() * scale)
        return [outer, inner]

    def enter(self, new: NewIntervals, places: Spots, y: Tensor) -> None:
        """Take note of f at the places that :meth:`beside` has returned."""
        if places.factor is not None:
            y = y * places.factor.reshape(places.factor.shape + (1,) * (y.ndim - 1))
        beside = 2 * new.linear if new.asked is None else new.asked.shape[0]
        if beside:
            known = one_number(y[:beside])
            if new.asked is None:
                first, last = known.split(new.linear)
                new.at_start[: new.linear] += first
                new.at_stop[: new.linear] += last
            else:
                new.at_start.index_copy_(0, new.asked, known)
                new.at_stop.index_copy_(0, new.asked - 1, known)
        if new.edges is not None:
            tail = (-1, *(1,) * (y.ndim - 1))
            outer, inner = y[beside:].chunk(2)
            edges = new.edges
            edges.outer, edges.inner = outer * edges.outer.reshape(tail), inner * edges.inner.reshape(tail)

    # ------------------------------------------------------------------------------------------- refinement

    def unseen(self, cells: Cells) -> Tensor:
        """Tell which cells are wide, or at an end with nodes spread evenly."""
        start, stop = cells.real[0], cells.real[1]
        return ((cells.whole[3] == LINEAR) & (start * stop == 0.0)) | (stop - start > SCANNED)

    def propose(self, cells: Cells, marked: Tensor) -> Refinement:
        """Say how the marked cells are refined."""
        _, _, _, kind = cells.whole.unbind()
        start, stop, lean, pole, height, *_ = cells.real.unbind()
        at_lower, at_upper, linear = start == 0.0, stop == 0.0, kind == LINEAR
        level = -torch.log2(stop - start)
        tried = torch.where(level > 2.0, level % EVERY >= 2.0, level < 1.0)
        rightward = lean > 0.0
        rough = (at_lower & (lean < 0.0)) | (at_upper & rightward) | ((at_lower | at_upper) & (level >= DEEP))
        # TURN is 2 below PART. So is REVERT below CLOSER: where logarithms are of no help cells get linear nodes again.
        lower = torch.where(linear, rough & ~tried, rightward)
        move = ((CLOSER + linear.to(torch.int64)) - 2 * lower) * marked
        pole, high = self._pole(at_lower, at_upper | (stop == 1.0), lean, pole, height)
        asks = (high < torch.inf) & (move == PART)
        further, count = torch.zeros_like(move), int(asks.sum())
        towards = middles = near = None
        if count:
            towards = locate(asks, count)
            middles, near = middles_near(pole[towards], high[towards], self.shape.along)
            further = further.index_copy(0, towards, near.sum((0, 1)))
        _, children, nodes, _, _ = self.table.index_select(1, move).unbind()
        price = torch.stack((children, nodes, further, (self.nodes + 1) * further))
        return Refinement(move, further, price, self.table, towards, middles, near)

    def _pole(
        self, at_lower: Tensor, at_upper: Tensor, lean: Tensor, pole: Tensor, height: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the pole towards which cells are bisected, and its squared height; infinite where there is none.

        Where none asks for more, the half that is to blame is bisected, too, if bisecting once is not enough.
        """
        at_end = (at_lower & (pole < AT_END)) | (at_upper & (pole > 1.0 - AT_END))
        high = height.masked_fill(at_end, torch.inf) ** 2 * self.shape.across
        asks = is_near((pole - 0.5).abs() - 0.25, high, self.shape.along, 0.0625)  # beside either half
        blamed = torch.where(lean.abs() > 1.0, 2.0**-5, torch.inf)
        return torch.where(asks, pole, 0.5 + 0.125 * lean), torch.where(asks, high, blamed)

    def split(self, cells: Cells, moves: Refinement, counts: list[int]) -> NewIntervals:
        """Return the children, those of one cell next to each other, in order; those with logarithmic nodes last."""
        refined, children, _, logarithmic, reverted, further = counts
        linear = children - logarithmic + further
        parent, low, high = find_parts(moves, refined, children, logarithmic, further)
        owner, _, row, kind = cells.whole.index_select(1, parent).unbind()
        start, stop, _, _, _, middle, at_start, at_stop = cells.real.index_select(1, parent).unbind()
        span, first, last = stop - start, low == 0.0, high == 1.0
        low_end = torch.addcmul(start, span, low)
        high_end = torch.where(last, stop, torch.addcmul(start, span, high))
        if logarithmic:
            tail = slice(linear, None)
            between = _part_logarithms(start[tail], stop[tail])
            low_end[tail] = torch.where(first[tail], start[tail], between)
            high_end[tail] = torch.where(last[tail], stop[tail], between)
            parted = kind[tail] != LINEAR
            at_start[tail].masked_fill_(parted, torch.nan)
            at_stop[tail].masked_fill_(parted, torch.nan)
        turn = (~first & (low_end >= 0.5)).to(low_end.dtype)  # beyond the middle of a whole piece: see bisect
        unknown = torch.full_like(middle, torch.nan)
        at_start = torch.where(first, at_start, torch.where(low == 0.5, middle, unknown))
        at_stop = torch.where(last, at_stop, torch.where(high == 0.5, middle, unknown))
        asks = ~first & (low != 0.5)
        if reverted:
            asks = asks | (~first & (kind != LINEAR))
        asked = locate(asks[:linear], reverted + further)
        start, stop = low_end - turn, high_end - turn
        layout = self._lay_out(row, start, stop, linear)
        return NewIntervals(owner, row, start, stop, at_start, at_stop, linear, asked, layout)

    def recall(self, cells: Cells) -> Cells:
        """Forget poles, and f at the edges: the kernel's books of settled cells do not have them."""
        cells.real[4].fill_(torch.inf)
        cells.real[5:].fill_(torch.nan)
        return cells


def find_parts(
    moves: Refinement, refined: int, children: int, logarithmic: int, further: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parent of each child, and where in it the child begins and ends, from 0 to 1.

    A child begins at 0, at 0.5 or at another middle that is near the pole: sorting the parents' numbers plus these
    places gives all of them in order.
    """
    move, n = moves.move, moves.move.shape[0]
    number = torch.arange(n, dtype=torch.float64, device=move.device)
    turned = move == TURN
    if logarithmic:
        number = number + n * (turned | (move == CLOSER))
    splits = moves.splits
    begins = torch.stack((number, number + 0.5)).flatten()
    begins = begins.index_select(0, locate(torch.stack((splits, splits & ~turned)).flatten(), children))
    if further:
        assert moves.towards is not None and moves.middles is not None and moves.near is not None
        others = (moves.middles + moves.towards).flatten()
        begins = torch.cat((begins, others.index_select(0, locate(moves.near.flatten(), further))))
    begins = begins.sort().values
    parent = begins.floor()
    low = begins - parent
    high = low.roll(-1)
    high = torch.where(high == 0.0, 1.0, high)
    parent = parent.to(torch.int64)
    return (parent % n if logarithmic else parent), low, high


def _part_logarithms(start: Tensor, stop: Tensor) -> Tensor:
    """Return where cells with logarithmic nodes are parted: at the logarithm's middle, or close to the end."""
    total = start + stop
    mean = (start.abs().sqrt() * stop.abs().sqrt()).copysign(total)
    return torch.where(start * stop == 0.0, total * STEP, mean)
