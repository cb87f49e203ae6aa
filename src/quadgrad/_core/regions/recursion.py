"""Nodes in the part of a cell where functions are positive: one axis after the other, between zeros.

R. I. Saye, *SIAM J. Sci. Comput.* 37, 2015: the innermost axis is one along which the functions are steep, so that
a line meets each of them once. The axes outside of it are cut where the functions vanish on the faces of the cell:
between such places the integral over the inner axes is smooth, and a rule for smooth functions integrates it.

The number of nodes differs from cell to cell: everything is flat, and knows to which cell it belongs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.regions.corners import Corners, find_corners, moved_corners
from quadgrad._core.regions.lines import Level, Roots, find_roots, moved, on_axis, on_faces

__all__ = ["Cut", "Line", "Nodes", "Skeleton", "rebuild", "trace"]

LARGEST = 3
"""Dimensions in which stretches end at corners and turns: of more axes there are too many planes to look at."""

LEAST = 1e-14
"""Stretches narrower than this part of the cell's side are left out, where only values are wanted."""


@dataclass(frozen=True, eq=False)
class Cut:
    """Cells in coordinates of the unit cube, each of shape ``(n, ...)``.

    ``low`` and ``side`` ``(n, d)``; ``order`` ``(n, d)`` are the axes, the outermost first; ``active`` ``(n,
    functions)`` tells which functions may vanish in the cell; ``owner`` are the integrals.
    """

    owner: Tensor
    low: Tensor
    side: Tensor
    order: Tensor
    active: Tensor

    def __len__(self) -> int:
        return self.owner.shape[0]

    def take(self, index: Tensor | slice) -> Cut:
        """Return some cells."""
        return Cut(*(t[index] for t in (self.owner, self.low, self.side, self.order, self.active)))


@dataclass(frozen=True, eq=False)
class Line:
    """A rule on the unit interval: nodes and weights ``(m,)``, and the weights of two lower rules, ``(2, m)``."""

    nodes: Tensor
    weights: Tensor
    lower: Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """What was decided for one axis: the ends of the stretches of each line, among faces and roots.

    ``cell`` ``(m,)`` and ``axis`` ``(m,)`` are those of the lines; ``line``, ``start`` and ``stop`` ``(k,)`` of
    each stretch its line and its ends, numbers among the lower faces, the upper faces, the roots and the corners,
    one after the other. Of the last axis of a surface, roots themselves are meant: ``start`` is theirs, ``stop`` is
    empty.
    """

    cell: Tensor
    axis: Tensor
    rest: Tensor
    roots: Roots
    corners: Corners | None
    line: Tensor
    start: Tensor
    stop: Tensor


@dataclass(frozen=True, eq=False)
class Skeleton:
    """All that was decided for some cells: from it nodes are rebuilt, differentiably.

    ``kinked`` ``(n,)`` tells in which boundaries may cross where no stretch ends.
    """

    cells: Cut
    steps: list[Step]
    kinked: Tensor


@dataclass(frozen=True, eq=False)
class Nodes:
    """Points ``(n, d)`` of the unit cube, the cells ``(n,)`` they are in, and weights ``(n, columns)``.

    The columns are those of the rule, then of the rule with the first lower one along each axis, then the second.
    """

    u: Tensor
    weight: Tensor
    cell: Tensor


def trace(level: Level, cells: Cut, rule: Line, surface: bool, moving: bool = False) -> tuple[Nodes, Skeleton]:
    """Place nodes where all functions are positive, or (``surface``) where the one there is vanishes.

    ``level`` is outside of all transforms, and nothing carries a gradient. With ``moving`` stretches of no width
    are kept: where the boundary meets a corner of a cell, a root is a face, and what lies between the two grows
    from nothing as the boundary moves. Without it the derivative lacks that, and is as good as arbitrary.
    """
    d = cells.low.shape[1]
    nodes = _first(cells, 1 + 2 * d)
    steps: list[Step] = []
    several = cells.active.sum(1) > 1
    kinked = several if d > LARGEST else torch.zeros_like(several)
    for number in range(d):
        cell = nodes.cell
        axis, rest = cells.order[cell, number], cells.order[cell, number + 1 :]
        owner, low, side, active = cells.owner[cell], cells.low[cell], cells.side[cell], cells.active[cell]
        roots = find_roots(level, nodes.u, owner, axis, rest, low, side, active)
        last = number == d - 1
        bottom, width = (t.gather(1, axis[:, None]).squeeze(1) for t in (low, side))
        place, root_lines, corners = torch.cat((bottom, bottom + width, roots.t)), roots.line, None
        if not last and (d == LARGEST or d < LARGEST and bool(several.any())):
            corners, unsure = find_corners(level, nodes.u, owner, axis, rest, low, side, active)
            kinked[cell[unsure]] = True
            place, root_lines = torch.cat((place, corners.t[:, 0])), torch.cat((root_lines, corners.line))
        if last and surface:
            ends = roots.line, torch.arange(roots.t.shape[0], device=place.device) + 2 * cell.shape[0], axis[:0]
        else:
            line, start, stop = ends = _stretches(place, root_lines, width, moving)
            if last:
                inside = _inside(level, nodes.u[line], owner[line], axis[line], place, ends, width)
                ends = line[inside], start[inside], stop[inside]
        step = Step(cell, axis, rest, roots, corners, *ends)
        steps.append(step)
        nodes = _advance(nodes, step, place, rule)
    return nodes, Skeleton(cells, steps, kinked)


def rebuild(level: Level, skeleton: Skeleton, rule: Line, columns: int = 1) -> tuple[Nodes, Tensor]:
    """Return the nodes again, moving with all that the functions depend on, and which innermost roots do not.

    Only the first ``columns`` of the weights are formed.
    """
    cells = skeleton.cells
    nodes, stuck = _first(cells, columns), torch.zeros(len(cells), dtype=torch.bool, device=cells.low.device)
    for step in skeleton.steps:
        cell, roots = step.cell, step.roots
        low, side = cells.low[cell], cells.side[cell]
        bottom, width = (t.gather(1, step.axis[:, None]).squeeze(1) for t in (low, side))
        line = roots.line
        places = [bottom, bottom + width, roots.t]
        if line.numel():
            points = on_faces(nodes.u[line], step.rest[line], low[line], side[line], roots.upper)
            places[2] = moved(level, roots, points, cells.owner[cell[line]], step.axis[line])
        if step.corners is not None and (over := step.corners.line).numel():
            points = on_faces(nodes.u[over], step.rest[over], low[over], side[over], step.corners.upper)
            places.append(moved_corners(level, step.corners, points, cells.owner[cell[over]]))
        if step is skeleton.steps[-1]:
            stuck[cell[line[roots.flat]]] = True
        nodes = _advance(nodes, step, torch.cat(places), rule)
    return nodes, stuck


def _first(cells: Cut, columns: int) -> Nodes:
    """Return a point of each cell, to start with."""
    return Nodes(
        cells.low + 0.5 * cells.side,
        cells.low.new_ones(len(cells), columns),
        torch.arange(len(cells), device=cells.low.device),
    )


def _stretches(place: Tensor, root_lines: Tensor, width: Tensor, narrow: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the line and both ends of the stretches between neighbouring places of each line."""
    m = width.shape[0]
    each = torch.arange(m, device=place.device)
    line = torch.cat((each, each, root_lines))
    # Roots that are on a face lie inside of it: those on an upper face come before it.
    order = torch.cat((each, torch.arange(2 * m, place.shape[0], device=place.device), each + m))
    order = order[place[order].argsort(stable=True)]
    order = order[line[order].argsort(stable=True)]
    start, stop = order[:-1], order[1:]
    keep = line[start] == line[stop]
    if not narrow:
        keep &= place[stop] - place[start] > LEAST * width[line[start]]
    start, stop = start[keep], stop[keep]
    return line[start], start, stop


def _inside(
    level: Level, u: Tensor, owner: Tensor, axis: Tensor, place: Tensor, ends: tuple[Tensor, Tensor, Tensor],
    width: Tensor,
) -> Tensor:  # fmt: skip
    """Tell which stretches of the innermost axis are where all functions are positive.

    In the middle of one that has no width a function is 0, to rounding. Between a face and a root the sign is the
    one that was taken at the face when roots were looked for, where 0 is positive: so it is on both sides of the
    face, and exactly one of two cells has the root. Between two roots nothing is.
    """
    line, start, stop = ends
    low, high = place[start], place[stop]
    narrow = high - low <= LEAST * width[line]
    faces = 2 * width.shape[0]
    t = torch.where(narrow, torch.where(start < faces, low, high), 0.5 * (low + high))
    v = level(on_axis(u, axis, t), owner)
    positive = (v > 0.0) | (v == 0.0) & narrow[:, None]
    return positive.all(1) & ~(narrow & (start >= faces) & (stop >= faces))


def _advance(nodes: Nodes, step: Step, place: Tensor, rule: Line) -> Nodes:
    """Put nodes on the stretches of one axis, or on its roots."""
    line, columns = step.line, nodes.weight.shape[1]
    if step.stop.numel() == 0 and step.start.numel():  # roots of a surface
        u = on_axis(nodes.u[line], step.axis[line], place[step.start])
        return Nodes(u, nodes.weight[line], nodes.cell[line])
    m, k = rule.nodes.shape[0], line.shape[0]
    start = place[step.start][:, None]
    length = place[step.stop][:, None] - start
    t = (start + length * rule.nodes).flatten()
    axis = step.axis[line]
    weight = rule.weights[:, None].expand(m, columns)
    if columns > 1:
        d = nodes.u.shape[1]
        lower = rule.lower.T.repeat_interleave(d, dim=1)  # (m, 2 d)
        own = torch.arange(d, device=t.device).repeat(2) == axis[:, None]
        lower = torch.where(own[:, None], lower, weight[:, 1:])
        weight = torch.cat((weight[:, :1].expand(k, m, 1), lower), dim=2)
    weight = (nodes.weight[line][:, None] * length[..., None] * weight).reshape(m * k, columns)
    spread = line[:, None].expand(k, m).flatten()
    axis = axis[:, None].expand(k, m).flatten()
    return Nodes(on_axis(nodes.u[spread], axis, t), weight, nodes.cell[spread])
