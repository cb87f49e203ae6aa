"""Where the boundary has corners and turns in planes through cells; and how those places move, in ordinary torch.

The integral over one axis has a kink where the boundaries of two functions cross, and a singularity where one turns
round on a face: it is cut into pieces there. Without, what pokes through a face between the nodes is missed, which is
little of a value and more of its derivative. Like roots on lines such places move by steps with slopes held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import product

import torch
from torch import Tensor

from quadgrad._core.regions.lines import ORDER, Level, on_faces
from quadgrad._core.rehearsal import current_rehearsal

__all__ = ["Corners", "find_corners", "moved_corners"]

LINEAR, CROSSES = 0.25, 0.1
"""Functions that are off linear ones by no more than this part of their change, and whose slopes differ by no less
than this part of what is possible, vanish together in one place of a cell at most."""

STEPS, STEP = 8, 2.0**-7
"""Newton steps, and the distance of the points whose differences are slopes, as a part of the cell's sides."""

STARTS = (0.0, 0.5, 1.0)
"""Where along the line's axis one starts to look for turns."""

SETTLED = 1e-9
"""A place has been found if the last step is no larger than this part of the cell's sides."""


@dataclass(frozen=True, eq=False)
class Corners:
    """Places on lines over which two functions vanish together; each of shape ``(k, ...)``.

    Attributes
    ----------
    line : Tensor of int64
    axes : Tensor of int64, shape (k, 2)
        The axis of the line, and one of those that are not yet integrated over.
    t : Tensor, shape (k, 2)
        The coordinates along both.
    which : Tensor of int64, shape (k, 2)
        The functions; twice the same where it turns, and its slope along the second axis vanishes.
    upper : Tensor of bool, shape (k, r)
        At which faces of the cell the plane is, of the axes that are not yet integrated over.
    inverse : Tensor, shape (k, 2, 2)
        What makes a step along both axes of both values.
    width : Tensor, shape (k,)
        Over which a slope is taken.
    """

    line: Tensor
    axes: Tensor
    t: Tensor
    which: Tensor
    upper: Tensor
    inverse: Tensor
    width: Tensor

    def take(self, index: Tensor) -> Corners:
        """Return some of them."""
        return Corners(*(getattr(self, field.name)[index] for field in fields(self)))


def find_corners(
    level: Level, u: Tensor, owner: Tensor, axis: Tensor, rest: Tensor, low: Tensor, side: Tensor, active: Tensor
) -> tuple[Corners, Tensor]:  # fmt: skip
    """Find the corners and turns of the active functions over lines, which are given as for roots.

    Also tell over which lines ``(m,)`` there may be more corners.
    """
    (m, r), functions = rest.shape, active.shape[1]
    every = [(i, j) for i in range(functions) for j in range(i, functions)]
    pairs = torch.tensor(every, device=u.device)
    turns = pairs[:, 0] == pairs[:, 1]
    # Where three functions vanish together two more axes are needed: such places are not looked for.
    kinked = (active.sum(1) > 2) & (r > 1)
    parts: list[Corners] = []
    for free in range(r):
        # A single function is steep along the last axis.
        steep = turns & (active.sum(1) == 1)[:, None] & (free == r - 1)
        line, pair = (active[:, pairs].all(2) & ~steep).nonzero().unbind(1)
        for faces in product((False, True), repeat=r - 1):
            upper = torch.tensor((*faces[:free], False, *faces[free:]), device=u.device).expand(len(line), r)
            axes = torch.stack((axis[line], rest[line, free]), 1)
            here = Corners(
                line, axes, low[line].gather(1, axes), pairs[pair], upper, low.new_zeros(len(line), 2, 2),
                STEP * side[line].gather(1, axes[:, 1:]).squeeze(1),
            )  # fmt: skip
            planes = _Planes(level, on_faces(u[line], rest[line], low[line], side[line], upper), owner[line])
            for turn in (False, True):
                some = (turns[pair] == turn).nonzero().squeeze(1)
                if len(some):
                    found, sure = _in_planes(planes.take(some), here.take(some), side[line[some]], turn)
                    kinked[line[some[~sure]]] = True
                    parts.append(found)
    if not parts:
        parts.append(Corners(*(getattr(here, field.name)[:0] for field in fields(Corners))))
    joined = (torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Corners))
    return Corners(*joined), kinked


@dataclass(frozen=True, eq=False)
class _Planes:
    """Planes through points ``(k, d)``, of the integrals ``owner`` ``(k,)``."""

    level: Level
    points: Tensor
    owner: Tensor

    def take(self, index: Tensor) -> _Planes:
        """Return some of them."""
        return _Planes(self.level, self.points[index], self.owner[index])

    def __call__(self, corners: Corners, t: Tensor) -> Tensor:
        """Return what vanishes at corners, at other places t ``(..., k, 2)`` of their planes, ``(..., k, 2)``."""
        v = self._level(corners, t)
        first, second = v.gather(-1, corners.which.expand(*v.shape[:-1], 2)).unbind(-1)
        turns = corners.which[:, 0] == corners.which[:, 1]
        if bool(turns.any()):
            width = corners.width
            centre = torch.minimum(torch.maximum(t[..., 1], width), 1.0 - width)
            ends = torch.stack((centre - width, centre + width))
            ends = self._level(corners, torch.stack((t[..., 0].expand_as(ends), ends), -1))
            ends = ends.gather(-1, corners.which[:, :1].expand(*ends.shape[:-1], 1)).squeeze(-1)
            second = torch.where(turns, ends[1] - ends[0], second)
        return torch.stack((first, second), -1)

    def _level(self, corners: Corners, t: Tensor) -> Tensor:
        points = self.points.expand(*t.shape[:-1], -1).scatter(-1, corners.axes.expand_as(t), t)
        return self.level(points.flatten(0, -2), self.owner.expand(t.shape[:-1]).flatten()).unflatten(0, t.shape[:-1])


def _in_planes(planes: _Planes, corners: Corners, side: Tensor, turn: bool) -> tuple[Corners, Tensor]:
    """Return corners, or turns, that are in cells, and of which planes it is sure that no corner is missing.

    The corners that are given are where those of the cells are, ``side`` ``(k, d)``.
    """
    low, side = corners.t, side.gather(1, corners.axes)
    value = lambda q: planes(corners, low + side * q)
    sure = torch.ones_like(low[:, 0], dtype=torch.bool)
    if turn:
        starts = [torch.full_like(low, 0.5) for _ in STARTS]
        for q, start in zip(starts, STARTS, strict=True):
            q[:, 0] = start
    else:
        start, sure, apart = _linear(value, low)
        starts = [start]
    found: list[Corners] = []
    for start in starts:
        q, step, slope = _newton(value, start)
        within = (q == q.clamp(0.0, 1.0)).all(1)
        settled = within & (step.abs() <= SETTLED).all(1)
        inverse = side[settled, :, None] * torch.linalg.inv(slope[settled])
        found.append(replace(corners.take(settled), t=(low + side * q)[settled], inverse=inverse))
        if not turn:
            sure = sure & (settled | ~within) | apart
    joined = (torch.cat([getattr(part, field.name) for part in found]) for field in fields(Corners))
    return Corners(*joined), sure


def _linear(value: Callable[[Tensor], Tensor], low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where linear functions like two in squares vanish together, if they are like them, or never vanish."""
    square = low.new_tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    at = value(square[:, None].expand(-1, len(low), -1))
    mean = at[:4].mean(0)
    slope = torch.stack((at[2] + at[3] - at[0] - at[1], at[1] + at[3] - at[0] - at[2]), -1) / 2
    change = slope.abs().sum(2)
    bent = (at[4] - mean).abs() + (at[0] + at[3] - at[1] - at[2]).abs() / 4
    alike = (bent <= LINEAR * change).all(1) & (torch.linalg.det(slope).abs() >= CROSSES * change.prod(1))
    apart = ((at > 0.0).all(0) | (at < 0.0).all(0)).any(1)
    return (0.5 - _step(slope, mean)).nan_to_num(0.5), alike, apart


def _newton(value: Callable[[Tensor], Tensor], q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where both values vanish, in parts of the sides ``(k, 2)``; the last step; the slopes there."""
    moves = STEP * torch.eye(2, dtype=q.dtype, device=q.device)[:, None]
    step, slope = torch.full_like(q, torch.inf), q.new_zeros(len(q), 2, 2)
    for _ in range(STEPS):
        place, inner = q.clamp(0.0, 1.0), q.clamp(STEP, 1.0 - STEP)
        here, *around = value(torch.stack((place, *(inner + moves), *(inner - moves))))
        slope = torch.stack((around[0] - around[2], around[1] - around[3]), -1) / (2.0 * STEP)
        step = _step(slope, here)
        q = place - step
    return q, step, slope


def _step(slope: Tensor, value: Tensor) -> Tensor:
    """Return what slopes ``(k, 2, 2)`` times it are values ``(k, 2)``; not finite where they are singular."""
    (a, b), (c, d) = slope.movedim(0, -1)
    x, y = value.unbind(1)
    return torch.stack((d * x - b * y, a * y - c * x), 1) / (a * d - b * c)[:, None]


def moved_corners(level: Level, corners: Corners, points: Tensor, owner: Tensor) -> Tensor:
    """Return the places of corners along their lines, ``(k,)``, differentiable; their values stay.

    ``points`` ``(k, d)`` are in the planes.
    """
    planes, t = _Planes(level, points, owner), corners.t
    for _ in range(ORDER):
        t = t - (corners.inverse * planes(corners, t)[:, None]).sum(2)
    if current_rehearsal() is not None:  # corners are those of another run
        return t[:, 0]
    return corners.t[:, 0] + (t[:, 0] - t[:, 0].detach())
