"""Cells against their neighbours: a large one may be blind to what small ones beside it see at their faces.

A peak close to a face of a large cell reaches into it, where no node is: the small cells on the other side have
resolved their part, and the tail would be lost. So before an integral is believed, f at the faces of its cells is
held against the nodes of the cells across.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.mesh.boxes import HINTS, unit_corners
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.search.books import sum_by_owner
from quadgrad._core.search.kernel.boxes import locate_native

__all__ = ["FACES", "SHARE_SEEN", "Sample", "find_blind", "find_unseen", "halve_widest", "locate_points"]

FACES = 4
"""The row of real numbers from which on cells keep the size of f at their faces."""

HIGHER = 3.0
"""A cell may be blind to a face where f is so many times higher than at its nodes, if it is wider than that along
an axis of the face. What is beyond the face may be larger all the same: along ridges and sheets cells are long."""

MATTERS, EACH, LEAST = 0.05, 0.01, 1e-4
"""What may be missed counts if it is this part of the allowed error, and a cell with this part of that is
halved. Faces are looked at with this part of the allowed error."""

SHARE_SEEN = 1 / 32
"""For so many of the nodes that an integral has cost f is called at points anywhere."""

ABOVE = 1.5
"""A cell may be blind to a point where f is so many times higher than at its nodes."""


@dataclass(slots=True)
class Sample:
    """The size of f times the volume element, ``height`` ``(k,)``, at points ``(d, k)`` of cubes.

    Of these the integrals ``mine`` have ``count`` each, one after another, and each of them stands for a ``share``.
    """

    mine: Tensor
    count: Tensor
    share: Tensor
    point: Tensor
    height: Tensor


def find_blind(cells: Cells, d: int, allowed: Tensor, done: Tensor) -> Tensor:
    """Tell which cells of integrals that are ``done`` are blind, given the errors ``allowed``, ``(integrals,)``."""
    owner, blind = cells.whole[0], torch.zeros_like(cells.whole[0], dtype=torch.bool)
    some = done[owner]
    if not bool(some.all()):
        some = some.nonzero().squeeze(1)
        return blind.index_put((some,), find_blind(cells.take(some), d, allowed, done))
    level, place = cells.whole[HINTS : HINTS + d], cells.whole[HINTS + d :]
    low, width = unit_corners(level, place)
    volume = width.prod(0)
    mass = cells.real[FACES : FACES + 2 * d] * volume
    # At the sides of the cube there is nothing across.
    inside = torch.stack(
        (place > 0, place + 1 < torch.bitwise_left_shift(torch.ones_like(level), level.clamp_max(62))), 1
    )
    counts = inside.flatten(0, 1) & (mass > LEAST * allowed[owner])
    face, cell = counts.nonzero().unbind(1)
    if not len(face):
        return blind
    point = low[:, cell] + 0.5 * width[:, cell]
    across = torch.arange(d, device=owner.device)[:, None] == face // 2
    step = (face % 2 - 0.5) * (1.0 + 2.0**-12)
    point = torch.where(across, point + step * width[:, cell], point)
    large = locate_points(owner, level, place, owner[cell], point)
    higher = cells.real[FACES : FACES + 2 * d][face, cell] > HIGHER * cells.real[0][large]
    seen = higher & ((level[:, large] < level[:, cell]) & ~across).any(0)
    each = torch.zeros_like(volume).index_add_(0, large, mass[face, cell] * seen)
    whole = sum_by_owner(each[None], owner, len(allowed))[0]
    return (each > EACH * whole[owner]) & (whole > MATTERS * allowed)[owner]


def find_unseen(cells: Cells, d: int, allowed: Tensor, sample: Sample) -> Tensor:
    """Tell which cells are blind to what is at points anywhere, given the errors ``allowed``, ``(integrals,)``."""
    owner, level, place = cells.whole[0], cells.whole[HINTS : HINTS + d], cells.whole[HINTS + d :]
    whose, share = (t.repeat_interleave(sample.count) for t in (sample.mine, sample.share))
    at = locate_points(owner, level, place, whose, sample.point)
    seen, height = cells.real[0][at], sample.height
    missed = (height - seen) * share * (height > ABOVE * seen)
    each = torch.zeros_like(cells.real[0]).index_add_(0, at, missed)
    whole = sum_by_owner(each[None], owner, len(allowed))[0]
    return (each > EACH * whole[owner]) & (whole > MATTERS * allowed)[owner]


def halve_widest(cells: Cells, d: int, blind: Tensor) -> None:
    """Have cells that are blind halved along a widest axis: that which their nodes tell is none of what they miss.

    A ridge that runs through a long cell between two nodes is met by halving its length, never by its width.
    """
    level, axis = cells.whole[HINTS : HINTS + d], cells.whole[3]
    narrower = level.gather(0, axis[None])[0] > level.amin(0)
    cells.whole[3] = torch.where(blind & narrower, level.argmin(0), axis)


def locate_points(owner: Tensor, level: Tensor, place: Tensor, whose: Tensor, point: Tensor) -> Tensor:
    """Return in which of the cells points of the unit cubes are.

    Cells are those of bisections, which are found again from above: a cube was halved along an axis along which
    none of its cells is as wide as it is. Cells without points are dropped on the way.

    Parameters
    ----------
    owner : Tensor of int64, shape (n,)
        The integral of each cell; those of each fill its cube.
    level, place : Tensor of int64, shape (d, n)
        See :mod:`quadgrad._core.mesh.boxes`.
    whose : Tensor of int64, shape (k,)
    point : Tensor, shape (d, k)

    Returns
    -------
    Tensor of int64, shape (k,)
    """
    if (located := locate_native(owner, level, place, whose, point)) is not None:
        return located
    answer = torch.zeros_like(whose)
    cell, at = torch.arange(len(owner), device=owner.device), torch.arange(len(whose), device=owner.device)
    node, knot = owner, whose  # the cube, among all of this depth, that each cell and each point is in
    depth = level.new_zeros((len(level), int(owner.max()) + 1))
    corner = torch.zeros_like(depth)
    while len(at):
        size = depth.shape[1]
        many = torch.bincount(node, minlength=size)
        alone = torch.zeros_like(many).index_put((node,), cell)  # the only cell, where there is but one
        found = many[knot] == 1
        answer[at[found]] = alone[knot[found]]
        at, knot = at[~found], knot[~found]
        open_ = torch.zeros_like(many, dtype=torch.bool).index_fill(0, knot, True)
        keep = open_[node]
        cell, node = cell[keep], node[keep]
        rank = open_.cumsum(0) - 1
        depth, corner = depth[:, open_], corner[:, open_]
        node, knot = rank[node], rank[knot]
        own, size = level[:, cell], depth.shape[1]
        least = torch.full_like(depth, 127).scatter_reduce_(1, node.expand(len(level), -1), own, "amin")
        axis = (least > depth).to(torch.int8).argmax(0)
        along = axis[node][None]
        shift = own.gather(0, along)[0] - depth[:, node].gather(0, along)[0] - 1
        upper = torch.bitwise_right_shift(place[:, cell].gather(0, along)[0], shift) & 1
        middle = (corner + 0.5) * torch.exp2(-depth.double())
        beyond = point[:, at].gather(0, axis[knot][None])[0] >= middle.gather(0, axis[None])[0][knot]
        node, knot = 2 * node + upper, 2 * knot + beyond
        halved = torch.arange(len(level), device=owner.device)[:, None] == axis
        corner = torch.where(halved, 2 * corner, corner)
        corner = torch.stack((corner, corner + halved), dim=2).flatten(1)
        depth = (depth + halved).repeat_interleave(2, dim=1)
    return answer
