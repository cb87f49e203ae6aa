"""Intervals as a geometry of the search: their nodes, what refining them costs, and their children.

Cells with evenly spread nodes are bisected, as often at once as a pole beside them asks for; those at an end of
their piece get nodes spread over the logarithm of the distance from it, and are parted there if these help. The
same stands in the kernel's ``decisions.c`` and ``nodes.c``, for one cell at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.mesh.cells import BESIDE, BESIDE_END, LIMIT, STEP, ULPS, WHOLE, NewIntervals, locate
from quadgrad._core.mesh.interval import DEPTH, LINEAR, LOGARITHMIC, Pieces, lay_out
from quadgrad._core.mesh.poles import Ellipse, is_near, middles_near, part_numbers
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.reduce import align, one_number
from quadgrad._core.rules import Rule
from quadgrad._core.rules.rule import SHARES

__all__ = ["Intervals", "Refinement", "Spots", "find_parts"]

KEEP, REVERT, TURN, CLOSER, PART = range(5)
"""How to refine a cell: not at all; halve one whose logarithmic nodes did not help; give it such nodes, being at an
end; part one that has them; bisect it, as often as its pole asks for, see :mod:`quadgrad._core.mesh.poles`."""

AT_END = 2.0**-6
"""A pole less than this part of the cell away from an end of its piece is none: there may be a singularity."""

DEEPEST = 2.0**-400
"""How close to an end f is called to see whether the series goes on as it seems to, as a part of the piece."""

DEEP = 4.0
"""Cells at an end, halved as often as this, get logarithmic nodes when refined, be they rough there or not."""

EVERY = 4.0
"""Where logarithmic nodes did not help they are tried again after that many halvings."""

EXPONENTS = 2048
"""Exponents of numbers that are told apart, a power of 2."""

FEW = 512
"""So many cells are all looked at for what is near their poles: to have them counted first takes longer."""


@dataclass(slots=True)
class Spots:
    """Where f is called: of the nodes ``(m, n)``, or of single places ``(k,)``, with what to multiply it by.

    Of first cells, f at the edges ``(2, n)`` is ``seen`` only where the place is there; ``looks`` tells whether
    places between nodes are last. Of cells with logarithmic nodes, ``touches`` ``(n,)`` tells which reach an end,
    ``steps`` ``(2, n)`` is how many terms of its series beyond the nodes the last two places are, or 0: one far
    beyond, one at :data:`LIMIT`, where ``near`` is the factor, but for that of the map of an infinite piece.
    """

    owner: Tensor
    x: Tensor
    factor: Tensor | None
    seen: Tensor | None = None
    looks: bool = False
    touches: Tensor | None = None
    steps: Tensor | None = None
    near: Tensor | None = None


@dataclass(slots=True)
class Refinement:
    """How cells are to be refined: see :class:`quadgrad._core.mesh.protocol.Moves`.

    The cells ``towards``, or any if that is None, have a pole beside them, for which they are parted at those
    ``middles`` that are ``near`` it. Each column of the ``table`` is for a move: whether a cell is refined, and has
    a second child, how many logarithmic ones, and how many middles are asked for. ``chosen`` ``(4, n)`` are those
    of the cells, once it is known which are refined.
    """

    move: Tensor
    price: Tensor
    table: Tensor
    middles: Tensor
    near: Tensor
    towards: Tensor | None = None
    chosen: Tensor = field(init=False)

    @property
    def splits(self) -> Tensor:
        """Which cells are refined."""
        return self.move > 0

    def restrict(self, keep: Tensor, afford: Tensor) -> Tensor:
        """Count cells that are refined, second and logarithmic children, middles asked for, further parts."""
        self.move = self.move * keep
        self.chosen, afford = self.table.index_select(1, self.move), afford & keep
        self.near = self.near & (afford if self.towards is None else afford.index_select(0, self.towards))
        return torch.cat((self.chosen.sum(1), self.near.sum()[None]))


def beside_ends(origin: Tensor, extent: Tensor, eps: float) -> Tensor:
    """Return how far from the ends of pieces first cells see f, as a part of the piece."""
    return (origin.abs() / extent + 1.0).mul_(ULPS * eps).clamp_min_(LIMIT)


class Intervals:
    """The pieces of all integrals, bisected for a rule, towards poles in an ellipse of the given shape."""

    def __init__(self, pieces: Pieces, rule: Rule, shape: Ellipse) -> None:
        self.pieces, self.shape = pieces, shape
        self.tau = tau = rule.tensors(torch.float64, pieces.lower.device).nodes[:, None]
        self.nodes = m = tau.shape[0]
        self.looks = rule.tensors(torch.float64, pieces.lower.device).looks[:, None]
        self.eps, self.tiny = pieces.rounding.eps, pieces.rounding.tiny
        # Between halves f is known if a node was in the middle.
        asks = self.blind = int(abs(rule.nodes[m // 2] - 0.5) > 1e-14)
        # Of each move, from KEEP to PART: children, nodes, middles asked for.
        beside, children = (0, 1, BESIDE_END, 2 * BESIDE_END, asks), (0, 2, 1, 2, 2)
        nodes = [m * c + b for c, b in zip(children, beside, strict=True)]
        # And what a further part costs beyond those; then cells refined, second and logarithmic children.
        self.prices = torch.tensor((children, nodes, (0,) * 5, (0,) * 5), device=tau.device)
        self.further = torch.tensor((0, 0, 1, m + 1), device=tau.device)[:, None]
        table = ((0, 1, 1, 1, 1), (0, 1, 0, 1, 1), (0, 0, 1, 2, 0), (0, 1, 0, 0, asks))
        self.table = torch.tensor(table, device=tau.device)
        self.edges, self.parts = tau.new_tensor([[0.0], [1.0]]), part_numbers(tau)
        # Beside an end poles do not count: how close, and from which edge of the cell.
        self.inward, self.at_end = tau.new_tensor([[1.0], [-1.0]]), tau.new_tensor([[AT_END], [AT_END - 1.0]])
        self.middle, self.blamed, self.nowhere = tau.new_tensor([0.5, 2.0**-5, torch.inf]).unbind()
        self.turning = _turning(tau)
        # Of cells with logarithmic nodes: their places, all but the last two; how close to the end these are.
        self.deep = torch.cat((self.edges[:1], tau, self.looks))
        nearest = max(DEEPEST, self.tiny**0.5), max(LIMIT, ULPS * self.eps)
        self.nearest, self.least = tau.new_tensor(nearest)[:, None], tau.new_tensor([[DEPTH], [1.0]])
        self.none = tau.new_zeros(())

    # ------------------------------------------------------------------------------------------------ nodes

    def start(self, first: Any) -> list[NewIntervals]:
        """Return the cells of a plan to start with: whole pieces, others, those with logarithmic nodes."""
        row, start, stop, whole, linear = first.row, first.start, first.stop, first.whole, first.linear
        if first.even and bool(whole.all()):
            return [self._group(row, (start, stop), False, looks=True)]
        groups = [
            self._group(row[mine], (start[mine], stop[mine]), logarithmic, looks=looks)
            for mine, logarithmic, looks in (
                (whole & linear, False, True), (~whole & linear, False, False), (~linear, True, True),
            )
        ]  # fmt: skip
        return [group for group in groups if len(group)] or groups[:1]

    def _group(
        self, row: Tensor, ends: Iterable[Tensor], logarithmic: bool, owner: Tensor | None = None,
        at_edges: Tensor | None = None, asked: Tensor | None = None, looks: bool = False,
    ) -> NewIntervals:  # fmt: skip
        start, stop = ends
        layout = lay_out(self.pieces, row, start, stop, LOGARITHMIC if logarithmic else None)
        rows = self.nodes + (BESIDE_END if logarithmic else WHOLE if looks else BESIDE * (at_edges is None))
        owner = self._integral(row) if owner is None else owner
        at_edges = start.new_full((2, len(start)), torch.nan) if at_edges is None else at_edges
        return NewIntervals(owner, row, start, stop, at_edges, rows, logarithmic, asked, layout)

    def _integral(self, row: Tensor) -> Tensor:
        return row if self.pieces.count == 1 else row // self.pieces.count

    def beside(self, new: NewIntervals) -> Spots | None:
        """Return the places between cells and the ones before them where f is not known."""
        if new.asked is None or not new.asked.shape[0]:
            return None
        owner = self._integral(new.row.index_select(0, new.asked))
        if new.layout.image is None:
            return Spots(owner, new.layout.base.index_select(0, new.asked), None)
        layout = new.layout.part(new.asked)
        x, factor = layout.nodes(self.edges[:1])
        return Spots(owner, x[0], factor[0] / layout.scale)

    def enter(self, new: NewIntervals, places: Spots, y: Tensor) -> None:
        """Take note of f there, ``(k, *event)``."""
        assert new.asked is not None
        between = one_number(y if places.factor is None else y * align(places.factor, y))
        new.at_edges[0].index_copy_(0, new.asked, between)
        new.at_edges[1].index_copy_(0, new.asked - 1, between)

    def place(self, new: NewIntervals) -> Spots:
        """Return where f is called: at the nodes, before and behind them at the edges where that is asked for."""
        owner = self._integral(new.row)
        if new.rows == self.nodes:
            return Spots(owner, *new.layout.nodes(self.tau))
        return self._look_deep(new, owner) if new.logarithmic else self._look_at_edges(new, owner)

    def _look_at_edges(self, new: NewIntervals, owner: Tensor) -> Spots:
        """Return the nodes of first cells between their edges.

        At the end of a piece that is right beside it, because f must not be called there: as close as rounding does
        not move it onto the end. Where nodes are as close, and where the end is infinite (so far out ``exp(x)``
        overflows), it is in the middle instead.
        """
        layout, start, stop = new.layout, new.start, new.stop
        inside = torch.stack((start != 0.0, (stop != 0.0) & (stop != 1.0)))
        origin, image = layout.base, layout.image
        if image is not None:
            origin = torch.where(image.no_lower | image.no_upper, image.origin, origin)
        near = beside_ends(origin, layout.extent, self.eps)
        seen = (near < 0.25 * self.tau[0]).expand(2, -1)
        if image is not None:
            seen = seen & ~torch.stack((image.no_lower, image.no_upper))
        at = torch.where(seen, near, 0.5).masked_fill(inside, 0.0)
        looks = new.rows == self.nodes + WHOLE
        tau = torch.cat((at[:1], self.tau.expand(-1, len(new)), 1.0 - at[1:]))
        tau = torch.cat((tau, self.looks.expand(-1, len(new)))) if looks else tau
        return Spots(owner, *layout.nodes(tau), seen=inside | seen, looks=looks)

    def _look_deep(self, new: NewIntervals, owner: Tensor) -> Spots:
        """Return the nodes of cells with logarithmic nodes between their edges.

        Where the cell touches the end, the inner edge is as close to it as numbers allow: f there shows whether the
        series goes on as it seems to. So does f at :data:`LIMIT`, where the first cell has seen it already.
        """
        layout, image, usable = new.layout, new.layout.image, new.start * new.stop == 0.0
        touches, octaves = usable, layout.octaves_left(ULPS * self.eps, self.nearest)
        if image is not None:  # that far out exp(x) overflows
            usable = usable & ~torch.where(image.from_lower, image.no_lower, image.no_upper)
        steps = torch.where((octaves > self.least) & usable, octaves, self.none) * (SHARES / DEPTH)
        beyond = steps / SHARES + 1.0
        x, factor = layout.nodes(torch.cat((self.deep.expand(-1, len(new)), beyond)))
        near = factor[-1]
        if image is not None:
            assert layout.outer is not None and layout.rate is not None
            near = layout.scale * (layout.outer * torch.exp(layout.rate * beyond[1])).abs()
        return Spots(owner, x, factor, looks=True, touches=touches, steps=steps, near=near)

    # ------------------------------------------------------------------------------------------- refinement

    def propose(self, cells: Cells, marked: Tensor) -> Refinement:
        """Say how the marked cells are refined."""
        start, stop, lean, pole, height, *_ = cells.real.unbind()
        # At the lower end of the piece, at the upper one, which is 0 or 1.
        touching, linear = cells.real[:2].frac() == 0.0, cells.whole[3] == LINEAR
        exponent = torch.frexp(stop - start).exponent.bitwise_and_(EXPONENTS - 1)
        outwards = lean * (start + stop)  # which is of the side's sign
        turns = touching.any(0) & (outwards < self.turning.index_select(0, exponent))
        # TURN is 2 below PART, and so is REVERT below CLOSER: where logarithms are of no help they are given up.
        move = (linear + CLOSER).add_(torch.where(linear, turns, lean > 0.0), alpha=-2).mul_(marked)
        asks, pole, high = self._pole(touching, lean, pole, height)
        asks, towards = asks & (move == PART), None
        if len(cells) > FEW:
            towards = locate(asks, int(asks.sum()))
            pole, high = pole.index_select(0, towards), high.index_select(0, towards)
        else:
            high = torch.where(asks, high, self.nowhere)
        middles, near = middles_near(pole, high, self.shape.along, self.parts)
        further = near.sum((0, 1))
        if towards is not None:
            further = torch.zeros_like(move).index_copy_(0, towards, further)
        price = torch.addcmul(self.prices.index_select(1, move), self.further, further)
        return Refinement(move, price, self.table, middles, near, towards)

    def _pole(self, touching: Tensor, lean: Tensor, pole: Tensor, height: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tell which cells ask for more than one bisection; return towards what pole, and its squared height.

        Where none is near, the half that is to blame is bisected, too, if bisecting once is not enough.
        """
        at_end = (touching & (pole * self.inward < self.at_end)).any(0)
        high = height.masked_fill(at_end, torch.inf) ** 2 * self.shape.across
        near = is_near((pole - 0.5).abs_().sub_(0.25), high, self.shape.along, 0.0625)  # beside either half
        asks, high = near | (lean.abs() > 1.0), torch.where(near, high, self.blamed)
        return asks, torch.where(near, pole, torch.add(self.middle, lean, alpha=0.125)), high

    def split(self, cells: Cells, moves: Refinement, counts: list[int]) -> list[NewIntervals]:
        """Return the children, those of one cell next to each other, in order; logarithmic ones in a group."""
        refined, second, logarithmic, middles, further = counts
        parent, ends = find_parts(moves, refined + second, logarithmic, further)
        owner, _, row, kind = cells.whole.index_select(1, parent).unbind()
        real, count = cells.real.index_select(1, parent), len(parent) - logarithmic
        start, stop, _, _, _, middle, *_ = real.unbind()
        outer, places, low = ends == self.edges, torch.lerp(start, stop, ends), ends[0]
        at_edges = torch.where(outer, real[6:], middle.masked_fill(ends != 0.5, torch.nan))
        if logarithmic:
            parted = real[:2, count:]
            closer = torch.where(outer[:, count:], parted, _part_close_in(parted))
            places = torch.cat((places[:, :count], closer), 1)
        places = places.add(places[0] >= 0.5, alpha=-1.0)  # beyond the middle of a whole piece: see bisect
        # Not where a cell begins at its parent's edge, nor in the middle, where evenly spread nodes saw f.
        asked = low if self.blind else low * (low - 0.5 + kind)
        columns, groups = (row, owner, places, at_edges, asked), list[NewIntervals]()
        if logarithmic:
            columns, closing_in = zip(*(t.split((count, logarithmic), -1) for t in columns), strict=True)
            row, owner, places, at_edges, _ = closing_in
            groups.append(self._group(row, places, True, owner, at_edges))
        if count:
            row, owner, places, at_edges, asked = columns
            asked = locate(asked, middles + further)
            groups.insert(0, self._group(row, places, False, owner, at_edges, asked))
        return groups

    def recall(self, cells: Cells) -> Cells:
        """Forget poles, and f at the edges: the kernel's books of settled cells do not have them."""
        cells.real[4].fill_(torch.inf)
        cells.real[5:].fill_(torch.nan)
        return cells


def _turning(like: Tensor) -> Tensor:
    """Return from what lean outwards on a cell at an end gets logarithmic nodes, by the exponent of its width.

    Where they did not help before, none is enough; cells halved often enough get them in any case.
    """
    level = 1 - torch.arange(EXPONENTS, dtype=like.dtype, device=like.device)
    level = torch.where(level < 0, level + EXPONENTS, level)
    tried = torch.where(level > 2.0, level % EVERY >= 2.0, level < 1.0)
    return torch.where(level >= DEEP, torch.inf, 0.0).masked_fill(tried, -torch.inf).to(like.dtype)


def _part_close_in(ends: Tensor) -> Tensor:
    """Return where cells with logarithmic nodes are parted: in the logarithm's middle or, if at an end, near it."""
    total, mean = ends.sum(0), ends.abs().sqrt_().prod(0)
    return torch.where(mean == 0.0, total * STEP, mean.copysign(total))


def find_parts(moves: Refinement, children: int, logarithmic: int, further: int) -> tuple[Tensor, Tensor]:
    """Return the parent of each child, and where in it the child begins and ends, ``(2, n)``, from 0 to 1.

    A child begins at 0, at 0.5 or at another middle that is near the pole: sorting the parents' numbers plus these
    places gives all of them in order. Of the ``children``, not counting the ``further`` ones beyond halves, so
    many get ``logarithmic`` nodes: they come last.
    """
    n = moves.move.shape[0]
    second, parent = torch.nonzero_static(moves.chosen[:2], size=children).unbind(1)
    begins = parent.to(torch.float64).add_(second, alpha=0.5)
    if logarithmic:
        begins = begins.add_(moves.chosen[2].index_select(0, parent) > 0, alpha=n)
    if further:
        towards = torch.arange(n, device=parent.device) if moves.towards is None else moves.towards
        others = (moves.middles + towards).flatten()
        begins = torch.cat((begins, others.index_select(0, locate(moves.near.flatten(), further))))
    begins = begins.sort().values
    parent, low = begins.to(torch.int64), begins.frac()
    high = low.roll(-1)
    return (parent % n if logarithmic else parent), torch.stack((low, high.masked_fill(high == 0.0, 1.0)))
