"""Where two functions vanish together in a plane through cells; and how those places move, in ordinary torch.

The integral over one axis has a kink where the boundaries of two functions cross: it is cut into pieces there, each
of which is smooth. Like roots on lines such places move by steps with slopes that are held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import combinations, product

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
        The functions.
    upper : Tensor of bool, shape (k, r)
        At which faces of the cell the plane is, of the axes that are not yet integrated over.
    inverse : Tensor, shape (k, 2, 2)
        What makes a step along both axes of the values of both functions.
    """

    line: Tensor
    axes: Tensor
    t: Tensor
    which: Tensor
    upper: Tensor
    inverse: Tensor

    def take(self, index: Tensor) -> Corners:
        """Return some of them."""
        return Corners(*(getattr(self, field.name)[index] for field in fields(self)))


def find_corners(
    level: Level, u: Tensor, owner: Tensor, axis: Tensor, rest: Tensor, low: Tensor, side: Tensor, active: Tensor
) -> tuple[Corners, Tensor]:  # fmt: skip
    """Find where two of the active functions vanish together over lines, which are given as for roots.

    Also tell of which lines ``(m,)`` more might be.
    """
    (m, r), functions = rest.shape, active.shape[1]
    pairs = torch.tensor(list(combinations(range(functions), 2)), device=u.device).reshape(-1, 2)
    line, pair = active[:, pairs].all(2).nonzero().unbind(1)
    # Where three functions vanish together two more axes are needed: such places are not looked for.
    unsure = (active.sum(1) > 2) & (r > 1)
    parts: list[Corners] = []
    for free in range(r):
        for faces in product((False, True), repeat=r - 1):
            upper = torch.tensor((*faces[:free], False, *faces[free:]), device=u.device).expand(len(line), r)
            every = Corners(
                line, torch.stack((axis[line], rest[line, free]), 1), low.new_zeros(len(line), 2), pairs[pair], upper,
                low.new_zeros(len(line), 2, 2),
            )  # fmt: skip
            points = on_faces(u[line], rest[line], low[line], side[line], upper)
            found, sure = _in_planes(level, every, points, owner[line], low[line], side[line])
            unsure = unsure.index_put((line[~sure],), torch.ones_like(unsure[:1]).expand(int((~sure).sum())))
            parts.append(found)
    joined = (torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Corners))
    return Corners(*joined), unsure


def _in_planes(
    level: Level, corners: Corners, points: Tensor, owner: Tensor, low: Tensor, side: Tensor
) -> tuple[Corners, Tensor]:
    """Return those corners that are in the cells, completed, and of which planes it is sure that there are no more."""
    low, side = (t.gather(1, corners.axes) for t in (low, side))

    def value(q: Tensor) -> Tensor:
        """Return both functions at parts q ``(j, k, 2)`` of the sides, ``(j, k, 2)``."""
        j = len(q)
        t = (low + side * q).flatten(0, 1)
        return _both(level, corners.axes.repeat(j, 1), t, corners.which.repeat(j, 1), points.repeat(j, 1),
                     owner.repeat(j)).unflatten(0, (j, -1))

    square = low.new_tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    at = value(square[:, None].expand(-1, len(points), -1))
    mean = at[:4].mean(0)
    slope = torch.stack((at[2] + at[3] - at[0] - at[1], at[1] + at[3] - at[0] - at[2]), -1) / 2  # (k, function, axis)
    change = slope.abs().sum(2)
    bent = (at[4] - mean).abs() + (at[0] + at[3] - at[1] - at[2]).abs() / 4
    sure = (bent <= LINEAR * change).all(1) & (torch.linalg.det(slope).abs() >= CROSSES * change.prod(1))
    # One function has one sign all over the square.
    apart = ((at > 0.0).all(0) | (at < 0.0).all(0)).any(1)
    q = (0.5 - _step(slope, mean)).nan_to_num(0.5)
    moves = STEP * torch.eye(2, dtype=q.dtype, device=q.device)[:, None]
    for _ in range(STEPS):
        place = q.clamp(0.0, 1.0)
        inner = q.clamp(STEP, 1.0 - STEP)
        here, *around = value(torch.stack((place, *(inner + moves), *(inner - moves))))
        slope = torch.stack((around[0] - around[2], around[1] - around[3]), -1) / (2.0 * STEP)
        step = _step(slope, here)
        q = place - step
    inside = (q == q.clamp(0.0, 1.0)).all(1) & (step.abs() <= SETTLED).all(1)
    inside &= torch.linalg.det(slope) != 0.0
    found = corners.take(inside)
    return replace(
        found, t=(low + side * q)[inside], inverse=side[inside, :, None] * torch.linalg.inv(slope[inside])
    ), sure & (inside | (q != q.clamp(0.0, 1.0)).any(1)) | apart


def _step(slope: Tensor, value: Tensor) -> Tensor:
    """Return what slopes ``(k, 2, 2)`` times it are values ``(k, 2)``; not finite where they are singular."""
    (a, b), (c, d) = slope.movedim(0, -1)
    x, y = value.unbind(1)
    return torch.stack((d * x - b * y, a * y - c * x), 1) / (a * d - b * c)[:, None]


def _both(level: Level, axes: Tensor, t: Tensor, which: Tensor, points: Tensor, owner: Tensor) -> Tensor:
    """Return two functions each at points that have the coordinates t ``(k, 2)`` along two axes, ``(k, 2)``."""
    return level(points.scatter(1, axes, t), owner).gather(1, which)


def moved_corners(level: Level, corners: Corners, points: Tensor, owner: Tensor) -> Tensor:
    """Return the places of corners along their lines, ``(k,)``, differentiable; their values stay.

    ``points`` ``(k, d)`` are in the planes.
    """
    t = corners.t
    for _ in range(ORDER):
        value = _both(level, corners.axes, t, corners.which, points, owner)
        t = t - (corners.inverse * value[:, None]).sum(2)
    if current_rehearsal() is not None:  # corners are those of another run
        return t[:, 0]
    return corners.t[:, 0] + (t[:, 0] - t[:, 0].detach())
