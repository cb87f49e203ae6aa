"""Points held out from all rules: f there is compared with the polynomials through the nodes of the cells around.

A small error says how well f is known between the nodes unless there is something that no node sees. What no node
sees, a narrow bump on something smooth, is seen by one of many points spread evenly, if only its foot: where f is
smooth the polynomial says what f should be to many digits, so that the foot of a bump shows far from it, where it
does not matter. What is seen so is followed uphill (:mod:`quadgrad._core.search.boxes.ascent`). ADR 61.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadgrad._core.mesh.boxes import HINTS, Boxes, NewBoxes, unit_corners
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.points import make_sequence
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import reals
from quadgrad._core.rules import BoxRule
from quadgrad._core.rules.fit import fit_of
from quadgrad._core.rules.rule import Array

__all__ = [
    "COARSE",
    "DOUBTS",
    "SEED",
    "HeldOut",
    "compare_nodes",
    "component_weights",
    "doubted_places",
    "group_shapes",
    "held_out_bits",
    "held_out_points",
    "one_column",
]

SEED = 2
"""Of the sequence whose first points are held out."""

SHALLOW = 5
"""Cells that were halved more often are not looked at: in them nodes are closer to each other than these points."""

COARSE = 8
"""Nor is any polynomial drawn in those that were halved more often than so."""

BEYOND = 6.0
"""How many times more than at the nodes themselves f may be off the polynomial."""

ROUGHER = 1.5
"""How many times more than at the nodes of the cell it is half of f may be off at the nodes of a cell."""

DOUBTS = 4
"""Rows of real numbers of cells that tell how far f is off what is expected, 0 if no more than may be; where: the
number of a point that is held out or, counted down from -1, of a node; how far off it is at nodes; at which."""

TOGETHER, LARGEST = 32, 2**22
"""So many cells of one shape are multiplied at once, and no more numbers than so."""

ROUNDED = 64.0
"""Nor is anything told by so many eps of f's largest value in the cell."""


@dataclass(slots=True)
class Drawn:
    """Polynomials ``coefficients`` ``(k, n)`` in cells ``index``; how far off, where, and how large f is there."""

    index: Tensor
    coefficients: Tensor
    told: Tensor


class HeldOut:
    """The points of all integrals of a search, and f there times the volume element; NaN where it was not asked."""

    def __init__(self, problem: Problem, mesh: Boxes, rows: Tensor, spent: Tensor) -> None:
        """Call f at as many points as what the integrals ``rows`` have ``spent`` leaves room for."""
        self.mesh, self.rule, points = mesh, mesh.rule, count_points(mesh.rule.d)
        self.count = count = max(0, min(points, problem.max_nfev - int(spent.max()))) if len(rows) else 0
        self.values = torch.full((problem.batch, points), torch.nan, dtype=torch.float64, device=mesh.device)
        # On the device once for all blocks and rounds.
        self.points = torch.as_tensor(held_out_points(mesh.rule.d)[:count], device=mesh.device)
        self.fit = fit_of(self.rule)
        self.matrices = [torch.as_tensor(t, device=mesh.device) for t in (self.fit.coefficients, self.fit.basis)]
        u = self.points[:, None]
        for owner in rows.split(max(1, problem.block // max(1, count))) if count else ():
            x, factor = mesh.domain.take(owner).place(u.expand(-1, len(owner), -1))
            self.values[owner, :count] = (one_column(problem.integrand(x, owner).detach()) * factor).T

    def draw(self, new: NewBoxes, part: slice, y: Tensor, factor: Tensor) -> Drawn | None:
        """Draw polynomials in those of some cells that are large enough, of f there ``(rows, n, *event)``."""
        deep = new.level[:, part].sum(0)
        coarse = (deep <= COARSE).nonzero().squeeze(1)
        if not len(coarse):
            return None
        coefficients, basis = self.matrices
        m, every = len(basis), len(coarse) == len(deep)
        body = one_column(y[:m] if every else y[:m, coarse])
        # The polynomial is that of f times the volume element, where infinite sides have one.
        scale = torch.exp2(deep[coarse].double())
        if len(factor) > 1:
            body = body * (factor[:m] if every else factor[:m, coarse])
        else:
            scale = scale * factor[0, coarse]
        drawn = coefficients @ body
        off, node = torch.addmm(body, basis, drawn, beta=-1.0).abs_().max(0)
        size = body.abs().amax(0)
        told = torch.stack((off, node.double(), size))
        told[::2] *= scale.abs()
        return Drawn(coarse + (part.start or 0), drawn * scale, told)

    def compare(self, new: NewBoxes, drawn: list[Drawn], noise: float) -> Tensor:
        """Return what is told of cells in which polynomials were drawn: see :data:`DOUBTS`, ``(4, n)``."""
        told = torch.zeros((DOUBTS, len(new)), dtype=torch.float64, device=new.row.device)
        if not drawn:
            return told
        index = torch.cat([each.index for each in drawn])
        off, node, size = torch.cat([each.told for each in drawn], 1)
        least = ROUNDED * noise * size
        off = torch.maximum(off, least).nan_to_num(0.0, 0.0)
        told[2, index], told[3, index] = off, node
        deep = new.level[:, index].sum(0)
        # Of the first cells nothing need be told where they will be halved in any case.
        some = (deep <= SHALLOW) & ((deep > 1) | (off <= least))
        some = some.nonzero().squeeze(1)
        if not len(some) or not self.count:
            return told
        cells = index[some]
        coefficients = torch.cat([each.coefficients for each in drawn], 1)[:, some]
        most, worst = self.largest_gaps(new.row[cells], new.level[:, cells], new.place[:, cells], coefficients)
        told[0, cells] = torch.where(most > BEYOND * off[some], most, 0.0)
        told[1, cells] = worst.double()
        return told

    def largest_gaps(self, row: Tensor, level: Tensor, place: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far f is off polynomials ``drawn`` ``(k, n)`` at most at the points in cells, and at which.

        Cells of one shape, of any integrals, have the same points in them, and the same products there: they are
        multiplied together, a few cells of one shape at a time in one product of stacks of matrices.
        """
        order, first = group_shapes(level, place)
        n, k, counts = len(row), len(drawn), first.diff()
        wide = min(TOGETHER, int(counts.max()))
        strips = (counts + wide - 1).div(wide, rounding_mode="floor")
        shape = torch.arange(len(counts), device=row.device).repeat_interleave(strips)
        rank = torch.arange(len(shape), device=row.device) - (strips.cumsum(0) - strips)[shape]
        slot = (first[:-1][shape] + wide * rank)[:, None] + torch.arange(wide, device=row.device)
        own = order[slot.clamp_max(n - 1)]  # (strips, wide), with cells of the next shape where there is room
        most, worst = drawn.new_zeros(n), torch.zeros_like(row)
        shown, lead = drawn.T, order[first[:-1]]
        most_points = max(self.count >> int(level.sum(0).min()), 1)
        step = max(1, LARGEST // (2 * most_points * (k + wide)))
        for low in range(0, len(shape), step):
            at = slice(low, low + step)
            begin, end = int(shape[at][0]), int(shape[at][-1]) + 1
            inside, products = self._points_in(level[:, lead[begin:end]], place[:, lead[begin:end]])
            if not inside.shape[1]:
                continue
            mine, group = own[at], shape[at] - begin
            gap = torch.bmm(products[group], shown[mine].transpose(1, 2))
            seen = inside[group]
            gap -= self.values[row[mine][:, None], seen.clamp_min(0)[..., None]]
            gap = gap.abs_().nan_to_num_(0.0, 0.0)
            high, number = gap.max(1)
            real = slot[at] < first[1:][shape[at]][:, None]
            most[mine[real]], worst[mine[real]] = high[real], seen.gather(1, number)[real]
        return most, worst.clamp_min(0)

    def _points_in(self, level: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return which points are in cells, ``(n, m)``, and the products there; -1 and NaN where no more are."""
        u = self.points[:, :, None] * torch.exp2(level.double()) - place
        within = ((u >= 0.0) & (u < 1.0)).all(1).T
        many = within.sum(1)
        cell, point = within.nonzero().unbind(1)
        rank = torch.arange(len(cell), device=cell.device) - (many.cumsum(0) - many)[cell]
        inside = torch.full((len(many), int(many.max())), -1, device=cell.device)
        inside[cell, rank] = point
        products = u.new_full((*inside.shape, len(self.fit.powers)), torch.nan)
        products[cell, rank] = self.fit.products(u[point, :, cell])
        return inside, products


def group_shapes(level: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order by level and place ``(d, n)`` of cells halved a few times, and where groups end."""
    code = torch.bitwise_left_shift(torch.ones_like(level), level) + place  # another one for each cell of an axis
    key = torch.zeros_like(code[0])
    for axis, more in enumerate(code):
        if axis % 8 == 7:  # what goes before is counted before it gets too large
            key = key.unique(return_inverse=True)[1]
        key = (key << (SHALLOW + 1)) + more
    key, order = key.sort(stable=True)
    edge = torch.ones(len(key) + 1, dtype=torch.bool, device=key.device)
    edge[1:-1] = key[1:] != key[:-1]
    return order, edge.nonzero().squeeze(1)


def compare_nodes(cells: Tensor, parents: Tensor) -> None:
    """Doubt children, halves side by side, that are rougher than their parents: their nodes saw what is new."""
    off, before = cells[2], parents[2].repeat_interleave(2)
    seen = (off > ROUGHER * before) & (before > 0.0) & (off > cells[0])
    cells[0], cells[1] = torch.where(seen, off, cells[0]), torch.where(seen, -1.0 - cells[3], cells[1])


def count_points(d: int) -> int:
    """Return how many points are held out in d dimensions."""
    return 256 if d <= 2 else 512


def doubted_places(rule: BoxRule, cells: Cells) -> Tensor:
    """Return the places in the unit cube that some cells are doubted at, ``(n, d)``."""
    number, d = cells.real[1 - DOUBTS].long(), rule.d
    low, width = unit_corners(cells.whole[HINTS : HINTS + d], cells.whole[HINTS + d :])
    node = torch.as_tensor(rule.nodes, device=low.device)[(-1 - number).clamp_min(0)].T
    point = torch.as_tensor(held_out_points(d), device=low.device)[number.clamp_min(0)].T
    return torch.where(number < 0, low + width * node, point).T


def one_column(y: Tensor) -> Tensor:
    """Return one real number for f ``(m, n, *event)``: a sum of its components, which no symmetry makes nothing."""
    y = reals(y, 2)
    if y.ndim == 2:
        return y.double()
    return y.double() @ component_weights(y.shape[2], y.device)


def component_weights(count: int, device: torch.device) -> Tensor:
    """Return the weights of components in their sum."""
    return 1.0 + 0.5 * torch.frac(0.6180339887498949 * torch.arange(count, device=device).double())


@cache
def held_out_points(d: int) -> Array:
    """Return the points, ``(count, d)``."""
    return make_sequence("sobol", d, SEED, 1, "cpu").points(0, count_points(d))[0].double().numpy()


@cache
def held_out_bits(d: int) -> tuple[Array, np.ndarray[Any, np.dtype[np.uint64]]]:
    """Return the points ``(d, count)``, and which of them are in the cells of each axis: one bit for each.

    The cells of an axis are those of no halving, of one, and so on to :data:`SHALLOW`, ``(d, cells, words)``.
    """
    points = np.ascontiguousarray(held_out_points(d).T)
    halved = [np.floor(points * 2**k)[:, None] == np.arange(2**k)[:, None] for k in range(SHALLOW + 1)]
    bits = np.packbits(np.concatenate(halved, axis=1), axis=2, bitorder="little")
    return points, np.ascontiguousarray(bits).view(np.uint64)
