"""Points held out from all rules: f there is compared with the polynomials through the nodes of the cells around.

A small error says how well f is known between the nodes unless there is something that no node sees. What no node
sees, a narrow bump on something smooth, is seen by one of many points spread evenly, if only its foot: where f is
smooth the polynomial says what f should be to many digits, so that the foot of a bump shows far from it, where it
does not matter. What is seen so is followed uphill (:mod:`quadgrad._core.search.ascent`). ADR 61.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
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
    "doubted_places",
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
        self.values = torch.full((points, problem.batch), torch.nan, dtype=torch.float64, device=mesh.device)
        u = torch.as_tensor(held_out_points(mesh.rule.d)[:count], device=mesh.device)[:, None]
        for owner in rows.split(max(1, problem.block // max(1, count))) if count else ():
            x, factor = mesh.domain.take(owner).place(u.expand(-1, len(owner), -1))
            self.values[:count, owner] = one_column(problem.integrand(x, owner).detach()) * factor

    def draw(self, new: NewBoxes, part: slice, y: Tensor, factor: Tensor) -> Drawn | None:
        """Draw polynomials in those of some cells that are large enough, of f there ``(rows, n, *event)``."""
        deep = new.level[:, part].sum(0)
        coarse = (deep <= COARSE).nonzero().squeeze(1)
        if not len(coarse):
            return None
        fit = fit_of(self.rule)
        coefficients, basis = (torch.as_tensor(t, device=y.device) for t in (fit.coefficients, fit.basis))
        m = len(basis)
        # The polynomial is that of f times the volume element, where infinite sides have one.
        stretch = factor[: m if len(factor) > 1 else 1, coarse] * torch.exp2(deep[coarse].double())
        body = one_column(y[:m, coarse]) * stretch
        drawn = coefficients @ body
        off, node = torch.addmm(body, basis, drawn, beta=-1.0).abs().max(0)
        return Drawn(coarse + (part.start or 0), drawn, torch.stack((off, node.double(), body.abs().amax(0))))

    def compare(self, new: NewBoxes, drawn: list[Drawn], noise: float) -> Tensor:
        """Return what is told of cells in which polynomials were drawn: see :data:`DOUBTS`, ``(4, n)``."""
        told = torch.zeros((DOUBTS, len(new)), dtype=torch.float64, device=new.row.device)
        if not drawn:
            return told
        index = torch.cat([each.index for each in drawn])
        coefficients = torch.cat([each.coefficients for each in drawn], 1)
        off, node, size = torch.cat([each.told for each in drawn], 1)
        least = ROUNDED * noise * size
        off = torch.maximum(off, least).nan_to_num(0.0, 0.0)
        told[2, index], told[3, index] = off, node
        deep = new.level[:, index].sum(0)
        # Of the first cells nothing need be told where they will be halved in any case.
        some = (deep <= SHALLOW) & ((deep > 1) | (off <= least))
        some = some.nonzero().squeeze(1)
        cells = index[some]
        shapes, which = torch.cat((new.level, new.place))[:, cells].unique(dim=1, return_inverse=True)
        order = which.argsort(stable=True)
        groups = order.split(torch.bincount(which, minlength=shapes.shape[1]).tolist())
        for shape, mine in zip(shapes.T.tolist(), groups, strict=True):
            at, products = (torch.as_tensor(t, device=index.device) for t in _seen_in(self.rule, tuple(shape)))
            if not len(at):
                continue
            cell, own = cells[mine], some[mine]
            gap = products @ coefficients[:, own] - self.values[at[:, None], new.row[cell]]
            most, worst = gap.abs_().nan_to_num_(0.0, 0.0).max(0)
            told[0, cell] = torch.where(most > BEYOND * off[own], most, 0.0)
            told[1, cell] = at[worst].double()
        return told


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
    weight = 1.0 + 0.5 * torch.frac(0.6180339887498949 * torch.arange(y.shape[2], device=y.device).double())
    return y.double() @ weight


@cache
def held_out_points(d: int) -> Array:
    """Return the points, ``(count, d)``."""
    return make_sequence("sobol", d, SEED, 1, "cpu").points(0, count_points(d))[0].double().numpy()


@lru_cache(1024)
def _seen_in(rule: BoxRule, shape: tuple[int, ...]) -> tuple[np.ndarray[Any, np.dtype[np.int64]], Array]:
    """Return which points are in a cell of some levels and places, and the products of the polynomial there."""
    level, place = np.array(shape).reshape(2, -1)
    u = held_out_points(rule.d) * 2.0**level - place
    at = np.flatnonzero(((u >= 0.0) & (u < 1.0)).all(1)).astype(np.int64)
    return at, fit_of(rule).products(u[at])
