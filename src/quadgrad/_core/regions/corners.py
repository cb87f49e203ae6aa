"""Where boundaries cross and turn in planes through cells; and how those places move, in ordinary torch.

The integral over one axis has a kink where the boundaries of two functions cross, and a singularity where one turns
round on a face: it is cut into pieces there. Without, what pokes through a face between the nodes is missed, little
of a value but more of its derivative. Like roots on lines such places move by steps with slopes held fixed.
"""

from __future__ import annotations

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


def _join(parts: list[Corners]) -> Corners:
    return Corners(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Corners)))


def find_corners(
    level: Level, u: Tensor, owner: Tensor, axis: Tensor, rest: Tensor, low: Tensor, side: Tensor, active: Tensor
) -> tuple[Corners, Tensor]:  # fmt: skip
    """Find where the boundaries of active functions cross and turn over lines, which are given as for roots.

    Also tell over which lines ``(m,)`` they may cross elsewhere.
    """
    r, functions, count = rest.shape[1], torch.arange(active.shape[1], device=u.device), active.sum(1)
    pairs, alone = torch.combinations(functions).reshape(-1, 2), functions[:, None].expand(-1, 2)
    # Where three functions vanish together two more axes are needed: such places are not looked for.
    kinked = (count > 2) & (r > 1)
    empty = (rest.new_zeros(0, 2), low.new_zeros(0, 2), rest.new_zeros(0, 2), rest.new_zeros(0, r) > 0)
    parts = [Corners(rest[:0, 0], *empty, low.new_zeros(0, 2, 2), low[:0, 0])]
    for free in range(r):
        # A single function is steep along the last axis.
        turning = active & (count > 1)[:, None] if free == r - 1 else active
        for faces in product((False, True), repeat=r - 1):
            upper = torch.tensor((*faces[:free], False, *faces[free:]), device=u.device)
            for which, some in ((pairs, active[:, pairs].all(2)), (alone, turning)):
                line, number = some.nonzero().unbind(1)
                if not len(line):
                    continue
                axes, every = torch.stack((axis[line], rest[line, free]), 1), upper.expand(len(line), r)
                points = on_faces(u[line], rest[line], low[line], side[line], every)
                corner, sides = low[line].gather(1, axes), side[line].gather(1, axes)
                inverse = low.new_zeros(len(line), 2, 2)
                planes = _Planes(
                    level, points, owner[line], corner, sides,
                    Corners(line, axes, corner, which[number], every, inverse, STEP * sides[:, 1]),
                )  # fmt: skip
                if which is pairs:
                    found, sure = planes.crossings()
                    kinked[line[~sure]] = True
                    parts.append(found)
                else:
                    parts.append(planes.turns())
    return _join(parts), kinked


@dataclass(frozen=True, eq=False)
class _Planes:
    """Planes through points ``(k, d)`` of cells whose corners are ``low``, ``side`` ``(k, 2)`` in them.

    ``corners`` tells which functions are looked at.
    """

    level: Level
    points: Tensor
    owner: Tensor
    low: Tensor
    side: Tensor
    corners: Corners

    def __call__(self, q: Tensor) -> Tensor:
        """Return what is to vanish at parts q ``(j, k, 2)`` of the sides, ``(j, k, 2)``."""
        return _values(self.level, self.corners, self.points, self.owner, self.low + self.side * q)

    def crossings(self) -> tuple[Corners, Tensor]:
        """Return where pairs of functions vanish together, and tell of which planes it is sure that this is all."""
        square = self.low.new_tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
        at = self(square[:, None].expand(-1, len(self.low), -1))
        mean = at[:4].mean(0)
        slope = 0.5 * torch.stack((at[2] + at[3] - at[0] - at[1], at[1] + at[3] - at[0] - at[2]), -1)
        change = slope.abs().sum(2)
        bent = (at[4] - mean).abs() + 0.25 * (at[0] + at[3] - at[1] - at[2]).abs()
        alike = (bent <= LINEAR * change).all(1) & (torch.linalg.det(slope).abs() >= CROSSES * change.prod(1))
        apart = ((at > 0.0).all(0) | (at < 0.0).all(0)).any(1)
        found, settled, within = self._settle((0.5 - _step(slope, mean)).nan_to_num(0.5))
        return found, alike & (settled | ~within) | apart

    def turns(self) -> Corners:
        """Return where functions vanish together with their slopes along the second axis."""
        places = self.low.new_tensor(list(product(STARTS, (0.0, 1.0))))
        slopes = self(places[:, None].expand(-1, len(self.low), -1))[..., 1]
        turning = (~((slopes > 0.0).all(0) | (slopes < 0.0).all(0))).nonzero().squeeze(1)
        if not len(turning):
            return self.corners.take(turning)
        some = turning.repeat(len(STARTS))
        planes = replace(
            self, points=self.points[some], owner=self.owner[some], low=self.low[some], side=self.side[some],
            corners=self.corners.take(some),
        )  # fmt: skip
        starts = self.low.new_tensor([[start, 0.5] for start in STARTS])
        return planes._settle(starts.repeat_interleave(len(turning), 0))[0]

    def _settle(self, q: Tensor) -> tuple[Corners, Tensor, Tensor]:
        """Return where both values vanish, from parts q ``(k, 2)`` of the sides on.

        And of which planes that was found, and whether steps end in the cell.
        """
        moves = STEP * torch.eye(2, dtype=q.dtype, device=q.device)[:, None]
        step, slope = torch.full_like(q, torch.inf), q.new_zeros(len(q), 2, 2)
        for _ in range(STEPS):
            place, inner = q.clamp(0.0, 1.0), q.clamp(STEP, 1.0 - STEP)
            here, *around = self(torch.stack((place, *(inner + moves), *(inner - moves))))
            slope = torch.stack((around[0] - around[2], around[1] - around[3]), -1) / (2.0 * STEP)
            step = _step(slope, here)
            q = place - step
        within = (q == q.clamp(0.0, 1.0)).all(1)
        settled = within & (step.abs() <= SETTLED).all(1)
        inverse = self.side[settled, :, None] * torch.linalg.inv(slope[settled])
        found = replace(self.corners.take(settled), t=(self.low + self.side * q)[settled], inverse=inverse)
        return found, settled, within


def _values(level: Level, corners: Corners, points: Tensor, owner: Tensor, t: Tensor) -> Tensor:
    """Return what vanishes at corners, at places t ``(j, k, 2)`` of their planes, ``(j, k, 2)``."""
    turns = corners.which[:, 0] == corners.which[:, 1]
    places = [t]
    if bool(turns.any()):
        width = corners.width
        middle = torch.minimum(torch.maximum(t[..., 1], width), 1.0 - width)
        places += [torch.stack((t[..., 0], s), -1) for s in (middle - width, middle + width)]
    every = torch.stack(places)
    grid = every.shape[:-1]
    x = points.expand(*grid, -1).scatter(-1, corners.axes.expand(*grid, 2), every)
    v = level(x.flatten(0, -2), owner.expand(grid).flatten()).unflatten(0, grid)
    here, *around = v.gather(-1, corners.which.expand(*grid, 2))
    if not around:
        return here
    slope = around[1][..., 0] - around[0][..., 0]
    return torch.stack((here[..., 0], torch.where(turns, slope, here[..., 1])), -1)


def _step(slope: Tensor, value: Tensor) -> Tensor:
    """Return what slopes ``(k, 2, 2)`` times it are values ``(k, 2)``; not finite where they are singular."""
    (a, b), (c, d) = slope.movedim(0, -1)
    x, y = value.unbind(1)
    return torch.stack((d * x - b * y, a * y - c * x), 1) / (a * d - b * c)[:, None]


def moved_corners(level: Level, corners: Corners, points: Tensor, owner: Tensor) -> Tensor:
    """Return the places of corners along their lines, ``(k,)``, differentiable; their values stay.

    ``points`` ``(k, d)`` are in the planes.
    """
    t = corners.t
    for _ in range(ORDER):
        t = t - (corners.inverse * _values(level, corners, points, owner, t[None])[0, :, None]).sum(2)
    if current_rehearsal() is not None:  # corners are those of another run
        return t[:, 0]
    return corners.t[:, 0] + (t[:, 0] - t[:, 0].detach())
