"""Derivatives with respect to the sides of boxes: integrals over their faces, in ordinary torch.

A side that moves by ``delta``, which is 0 but carries the derivative, adds a slab of that thickness: the face's
integral over the other axes of f averaged over the slab, by Gauss' rule, times ``delta``. Two sides of different
axes that move add the product of both over their common edge, or the second mixed derivative would be missing;
opposite faces have none. Moving the nodes instead is right only as far as the rule resolves f's derivative along
the side, which the value's tolerance says nothing of: a face is searched to the tolerance by itself. Only where f
is not finite on it the nodes move, as a singularity does that moves with its side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.gradient.boundary import NODES, WEIGHTS, carries_gradient
from quadgrad._core.integrand import Argument
from quadgrad._core.mesh.box import Box
from quadgrad._core.mesh.limits import just_inside
from quadgrad._core.plans.box import BoxPlan
from quadgrad._core.problem import Problem
from quadgrad._core.reduce import align
from quadgrad._core.replay import REPLAY_BLOCK, replay_plan
from quadgrad._core.rules import get_box_rule
from quadgrad._core.search.boxes.groups import search_groups
from quadgrad._core.status import Status

__all__ = ["Faces", "search_faces"]

TOGETHER, LARGEST = 3, 5
"""Sides of so many axes move together in up to so many dimensions, of two in more: mixed derivatives of that order.

With three f is called 1.5 times as often in four and five dimensions, twice as often in six.
"""


@dataclass(frozen=True)
class _Face:
    """What moves together: some axes, and for each combination of their sides (0 lower, 1 upper) the plan and more.

    ``plan`` is None where no axis is left. ``usable`` ``(batch, combinations)`` tells where f is finite.
    """

    axes: tuple[int, ...]
    sides: tuple[tuple[int, ...], ...]
    plan: BoxPlan | None
    usable: Tensor
    status: Tensor
    error: Tensor
    nfev: Tensor


@dataclass(frozen=True)
class Faces:
    """The faces of a problem's boxes whose sides carry a gradient.

    ``moving`` ``(2, batch, d)`` tells which sides the nodes follow, f not being finite there.
    """

    faces: tuple[_Face, ...]
    moving: Tensor | None

    def domain(self, box: Box) -> Box:
        """Return the boxes, with gradient only where nodes follow the sides."""
        still = box.detach()
        if self.moving is None or not bool(self.moving.any()):
            return still
        marks = zip(self.moving, box.marks, still.marks, strict=True)
        return box.with_marks(tuple(torch.where(moves, mark, fixed) for moves, mark, fixed in marks))

    def boundary_sum(self, problem: Problem) -> Tensor | float:
        """Return zeros ``(batch, *event)`` with the derivatives with respect to the sides."""
        box, total = problem.limits, 0.0
        for face in self.faces:
            part = _on_face(problem, self.domain(box), face.axes, face.sides, usable=face.usable)
            if face.plan is None:
                y = part.integrand(part.limits.a[None, :1].expand(1, part.batch, -1), slice(0, part.batch))[0]
            else:
                y = replay_plan(
                    part.integrand, face.plan, part.limits, part.chunk_size or REPLAY_BLOCK,
                    part.chunk_size is not None,
                )  # fmt: skip
            thickness = _moves(box, face.axes, face.sides, problem.batch).prod(0) * face.usable
            thickness = thickness * thickness.new_tensor([(-1.0) ** chosen.count(0) for chosen in face.sides])
            y = y.reshape(problem.batch, len(face.sides), *y.shape[1:])
            y = torch.where(align(face.usable, y), y, 0.0)
            total = total + (y * align(thickness, y)).sum(1)
        return total

    def errors(self, side: int, d: int) -> Tensor:
        """Return the errors of the derivatives by the lower (0) or upper (1) sides, ``(batch, d)``.

        Infinite where nodes follow the side: then the derivative is no integral over a face.
        """
        each = dict[int, Tensor]()
        for face in self.faces:
            if len(face.axes) == 1 and (side,) in face.sides:
                column = face.sides.index((side,))
                each[face.axes[0]] = face.error[:, column].double().masked_fill(~face.usable[:, column], torch.inf)
        return torch.stack([each[axis] for axis in range(d)], dim=1)

    @property
    def failed(self) -> int:
        """How many of the integrals over faces have not converged."""
        bad = [(f.usable & (f.status != int(Status.CONVERGED))).sum() for f in self.faces if len(f.axes) == 1]
        return int(torch.stack(bad).sum()) if bad else 0


def search_faces(problem: Problem) -> Faces:
    """Search the integrals over all faces, edges and so on that derivatives with respect to the sides need."""
    box: Box = problem.limits
    sides = [side for side, mark in enumerate(box.marks) if carries_gradient(mark)]
    if not sides or not problem.batch:
        return Faces((), None)
    never = torch.zeros(problem.batch, dtype=torch.bool, device=box.a.device)
    if not problem.integrand.vectorized:  # such a function takes floats, through which a slab cannot be told
        return Faces((), (~never)[None, :, None].expand(2, -1, box.d))
    faces = [_search_face(problem, axes, tuple(product(sides, repeat=len(axes)))) for axes in _together(box.d)]
    bad = {
        (side, face.axes[0]): ~face.usable[:, column]
        for face in faces if len(face.axes) == 1 for column, (side,) in enumerate(face.sides)
    }  # fmt: skip
    rows = [torch.stack([bad.get((side, axis), never) for axis in range(box.d)], dim=1) for side in (0, 1)]
    moving = torch.stack(rows)
    return Faces(tuple(_without(face, moving) for face in faces), moving)


def _without(face: _Face, moving: Tensor) -> _Face:
    """Return what moves together, unusable where nodes follow one of the sides."""
    follows = [
        torch.stack([moving[side, :, axis] for axis, side in zip(face.axes, chosen, strict=True)]).any(0)
        for chosen in face.sides
    ]
    return replace(face, usable=face.usable & ~torch.stack(follows, dim=1))


def _together(d: int) -> Iterator[tuple[int, ...]]:
    """Yield the axes that move together."""
    for count in range(1, min(d, TOGETHER if d <= LARGEST else 2) + 1):
        yield from combinations(range(d), count)


def _search_face(problem: Problem, axes: tuple[int, ...], sides: tuple[tuple[int, ...], ...]) -> _Face:
    """Search the integrals over what is left of the boxes where some axes are fixed at their sides."""
    part = _on_face(problem, problem.limits.detach(), axes, sides)
    shape = (problem.batch, len(sides))
    with _on_face(problem, problem.limits.detach(), axes, sides, beside=False).outside() as plain:
        y = plain.integrand(plain.limits.inner_points(plain.batch)[None], slice(0, plain.batch))[0].detach()
        fine = y.isfinite().reshape(*shape, -1).all(2)
    with part.outside() as plain:
        if part.limits.d == 1 and len(axes) == problem.limits.d:
            x = plain.limits.a[None, :1].expand(1, plain.batch, -1)
            y = plain.integrand(x, slice(0, plain.batch))[0].detach()
            fine = fine & y.isfinite().reshape(*shape, -1).all(2)
            zero = torch.zeros(shape, dtype=torch.int64, device=y.device)
            return _Face(axes, sides, None, fine, zero, zero.double(), zero)
        found = search_groups(plain, None)
    # Which the search of a face says of regions, not of places.
    usable = (found.status != int(Status.NONFINITE)) & found.error.isfinite()
    status, error, nfev = (t.reshape(shape) for t in (found.status, found.error, found.nfev))
    return _Face(axes, sides, found.plan, fine & usable.reshape(shape), status, error, nfev)


def _on_face(
    problem: Problem, box: Box, axes: tuple[int, ...], sides: tuple[tuple[int, ...], ...], beside: bool = True,
    usable: Tensor | None = None,
) -> Problem:  # fmt: skip
    """Return the problem of the integrals over faces, with one for each combination of sides: it counts fastest."""
    count, batch, d = len(sides), problem.batch, problem.limits.d
    rest = [axis for axis in range(d) if axis not in axes]
    arguments = tuple(
        a if a.shared else replace(a, value=a.value.repeat_interleave(count, 0))
        for a in problem.integrand.arguments
    )
    starts, moves = _starts(problem.limits, axes, sides, batch, beside), _moves(problem.limits, axes, sides, batch)
    if usable is not None:  # elsewhere f is called at a harmless place: what is infinite would make gradients NaN
        inner = problem.limits.detach().inner_points(batch)[:, list(axes)].T[..., None]
        starts, moves = torch.where(usable, starts, inner), torch.where(usable, moves, 0.0)
    slab = Argument(torch.stack((starts, moves)).flatten(2).movedim(2, 0), shared=False, element_ndim=2)
    function = partial(_in_slab, problem.integrand.function, axes, d)
    captured = problem.integrand.captured
    if captured is not None:
        captured = replace(captured, batch=captured.batch * count, rest=captured.rest[:, rest or [0]])
    integrand = replace(problem.integrand, function=function, arguments=(*arguments, slab), captured=captured)
    rows = rest or [0]  # a point has at least one coordinate, which is not looked at where none is left
    a, b = (t[:, rows] if t.shape[0] == 1 else t[:, rows].repeat_interleave(count, 0) for t in (box.a, box.b))
    rule = problem.rule if not rest else get_box_rule(_rule_for(problem.rule.name, len(rest)), len(rest))
    return replace(
        problem, integrand=integrand, limits=replace(box, a=a, b=b), rule=rule, stretches=None,
        batch_shape=(*problem.batch_shape, count), given=(), sources=(),
    )  # fmt: skip


def _rule_for(name: str, d: int) -> str:
    return "gk21" if d == 1 else name


def _in_slab(f: Any, axes: tuple[int, ...], d: int, y: Tensor, *args: Any) -> Tensor:
    """Return the mean of f over a slab at points of its face, whose other coordinates are those of y."""
    *others, slab = args
    mean: Any = 0.0
    for each in product(range(len(NODES)), repeat=len(axes)):
        weight, coordinates, left = 1.0, list[Tensor](), iter(y.unbind(-1))
        place = {axis: (k, NODES[node]) for k, (axis, node) in enumerate(zip(axes, each, strict=True))}
        for node in each:
            weight *= WEIGHTS[node]
        for axis in range(d):
            if axis in place:
                k, tau = place[axis]
                coordinates.append((slab[..., 0, k] + tau * slab[..., 1, k]).to(y.dtype).expand(y.shape[:-1]))
            else:
                coordinates.append(next(left))
        mean = mean + weight * f(torch.stack(coordinates, -1), *others)
    return mean


def _starts(
    box: Box, axes: tuple[int, ...], sides: tuple[tuple[int, ...], ...], batch: int, beside: bool
) -> Tensor:
    """Return where the slabs begin, just inside of the box: ``(axes, batch, combinations)``."""
    fixed, inner = box.detach(), box.detach().inner_points(batch)
    rows = list[Tensor]()
    for k, axis in enumerate(axes):
        for chosen in sides:
            mark, other = fixed.marks[chosen[k]][:, axis], fixed.marks[1 - chosen[k]][:, axis]
            start = just_inside(mark, other, box.x_dtype) if beside else mark
            rows.append(torch.where(mark.isfinite(), start, inner[:, axis]).expand(batch))
    return torch.stack(rows).unflatten(0, (len(axes), len(sides))).movedim(1, 2)


def _moves(box: Box, axes: tuple[int, ...], sides: tuple[tuple[int, ...], ...], batch: int) -> Tensor:
    """Return by how much each side moves outwards, 0 with a derivative: ``(axes, batch, combinations)``."""
    fixed = box.detach()
    rows = list[Tensor]()
    for k, axis in enumerate(axes):
        for chosen in sides:
            mark, still = box.marks[chosen[k]][:, axis], fixed.marks[chosen[k]][:, axis]
            move = torch.where(still.isfinite(), mark - still, 0.0)
            rows.append((move).expand(batch))
    return torch.stack(rows).unflatten(0, (len(axes), len(sides))).movedim(1, 2)
