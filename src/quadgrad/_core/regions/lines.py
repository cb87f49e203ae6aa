"""Where functions vanish along lines through cells; and how those places move, in ordinary torch.

Coordinates are those of the unit cube. No decision here carries a gradient: what moves is rebuilt afterwards by
steps ``t - g(t) / slope`` with the slope held fixed, each of which makes one more order of derivatives right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import product

import torch
from torch import Tensor

from quadgrad._core.breakpoints.roots import Bracket, find_zeros
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.box import Box
from quadgrad._core.rehearsal import current_rehearsal

__all__ = ["ORDER", "Level", "Roots", "find_roots", "moved", "on_axis", "on_faces"]

SAMPLES = 4
"""Parts of a line, between whose ends changes of sign are looked for."""

TURNS = 0.25
"""A parabola through three samples is followed to where it turns if it falls there below this part of the
largest."""

ORDER = 3
"""Steps, and so derivatives that are right; the slope is a difference, so that each also mends what that is off."""

STEP = 2.0**-14
"""Distance of the points whose difference is the slope, as a part of the cell's side."""

ALIKE = 0.5
"""Slopes over distances of which one is four times the other agree so well unless the root is a triple one: then
they differ by a factor of 4 or more."""

ALONE = 2.0**-10
"""A root that a second one is closer to than about this part of a cell's side counts as one that is only touched:
of nearly double roots a line has a pair or none, and they move infinitely fast. Where lines run on the faces of
cells that does no harm: what is integrated over the other axes is continuous there."""

DOUBLE = 2.0**-23
"""A root of the outer axes to which a second one is closer than that is left out: rounding decides where it is, and
between the two a line may look as if it met no boundary at all."""

VALUE_ULPS, FLAT = 4.0, 1e-3
"""A value of g is uncertain by so many eps times its size; a root by no more than this part of a cell's side."""


@dataclass(frozen=True, eq=False)
class Level:
    """The functions that cut the boxes, in coordinates of the unit cube."""

    g: Integrand
    box: Box

    def __call__(self, u: Tensor, owner: Tensor) -> Tensor:
        """Return all functions at points ``(n, d)`` of the integrals ``owner``: ``(n, functions)``."""
        x, _ = self.box.take(owner).place(u[None])
        return self.g(x, owner)[0]


def on_axis(u: Tensor, axis: Tensor, t: Tensor) -> Tensor:
    """Return points ``(n, d)`` with another coordinate t along one axis each."""
    return u.scatter(1, axis[:, None], t[:, None])


@dataclass(frozen=True, eq=False)
class Roots:
    """Places on lines where one of the functions vanishes; all ``(k,)``.

    Attributes
    ----------
    line : Tensor of int64
    t : Tensor
        The coordinate along the line's axis.
    which : Tensor of int64
        The function that vanishes.
    upper : Tensor of bool, shape (k, d)
        At which faces of the cell the line is, of the axes that are not yet integrated over.
    slope : Tensor
    sound : Tensor of bool
        Where g passes through 0 at a finite slope, so that the place has a derivative.
    flat : Tensor of bool
        Where it does not, other than where the line nearly touches the boundary.
    """

    line: Tensor
    t: Tensor
    which: Tensor
    upper: Tensor
    slope: Tensor
    sound: Tensor
    flat: Tensor


def on_faces(u: Tensor, rest: Tensor, low: Tensor, side: Tensor, upper: Tensor) -> Tensor:
    """Return the points ``(k, d)`` of lines: u, but on faces of the cells for the axes of ``rest`` ``(k, r)``.

    ``low`` and ``side`` ``(k, d)`` are those of the cells, ``upper`` tells which faces.
    """
    if rest.shape[1] == 0:
        return u
    at = low.gather(1, rest) + side.gather(1, rest) * upper[:, : rest.shape[1]]
    return u.scatter(1, rest, at)


def find_roots(
    level: Level, u: Tensor, owner: Tensor, axis: Tensor, rest: Tensor, low: Tensor, side: Tensor, active: Tensor
) -> Roots:  # fmt: skip
    """Find the zeros of the active functions on lines through cells.

    Parameters
    ----------
    level : Level
        Outside of all transforms.
    u : Tensor, shape (m, d)
        A point of each line.
    owner : Tensor, shape (m,)
    axis : Tensor, shape (m,)
        Along which the lines run.
    rest : Tensor, shape (m, r)
        The axes not yet integrated over: there is a line at each of the faces.
    low, side : Tensor, shape (m, d)
        Of the cells.
    active : Tensor of bool, shape (m, functions)
    """
    here = active.any(1).nonzero().squeeze(1)
    parts: list[Roots] = []
    for faces in product((False, True), repeat=rest.shape[1]):
        upper = torch.zeros((here.shape[0], max(1, rest.shape[1])), dtype=torch.bool, device=u.device)
        if faces:
            upper[:] = torch.tensor(faces, device=u.device)
        points = on_faces(u[here], rest[here], low[here], side[here], upper)
        line, t, which, *more = _on_lines(
            level, points, owner[here], axis[here], low[here], side[here], active[here], rest.shape[1] == 0
        )
        parts.append(Roots(here[line], t, which, upper[line], *more))
    return Roots(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Roots)))


def _on_lines(
    level: Level, points: Tensor, owner: Tensor, axis: Tensor, low: Tensor, side: Tensor, active: Tensor,
    innermost: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the zeros on lines through points: the line, place, function, slope, if it is sound, and if flat."""
    m = points.shape[0]
    start, width = (t.gather(1, axis[:, None]) for t in (low, side))
    at = start + width * torch.linspace(0.0, 1.0, SAMPLES + 1, dtype=start.dtype, device=start.device)
    each = torch.arange(m, device=points.device)[:, None].expand(m, SAMPLES + 1).flatten()
    v = level(on_axis(points[each], axis[each], at.flatten()), owner[each]).unflatten(0, (m, SAMPLES + 1))
    points_of = lambda line, t: on_axis(points[line], axis[line], t)
    value = lambda line, which, t: level(points_of(line, t), owner[line]).gather(1, which[:, None]).squeeze(1)
    positive = v >= 0.0
    line, place, which = ((positive[:, 1:] != positive[:, :-1]) & active[:, None]).nonzero().unbind(1)
    ends = (place, place + 1)
    sides = [at[line, end] for end in ends] + [v[line, end, which] for end in ends]
    line, which, sides = _with_pairs(value, at, v, active, line, which, sides)
    bracket = Bracket(*sides)
    if line.numel() == 0:
        return line, bracket.left, which, bracket.left, line > 0, line > 0

    def function(t: Tensor) -> Tensor:
        return torch.stack([value(line, which, one) for one in t])

    t, _, _ = find_zeros(function, bracket)
    width = width[line, 0]
    (near, _), (far, bend) = (_slope(function, t, step * width) for step in (STEP, 4.0 * STEP))
    size = v.abs().amax(1)[line, which]
    rounding = VALUE_ULPS * torch.finfo(level.g.call_dtype).eps * size
    steep = near.isfinite() & (near.abs() >= rounding / (FLAT * width)) & ((far - near).abs() <= ALIKE * near.abs())
    alone = near.abs() >= ALONE * width * bend
    sound = steep & alone
    found = torch.ones_like(sound) if innermost else near.abs() >= DOUBLE * width * bend
    return line[found], t[found], which[found], near[found], sound[found], (~steep & alone)[found]


def _with_pairs(
    value: Callable[[Tensor, Tensor, Tensor], Tensor], at: Tensor, v: Tensor, active: Tensor, line: Tensor,
    which: Tensor, sides: list[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """Add the brackets of pairs of zeros between samples of one sign, where a parabola turns before it leaves them.

    A surface that pokes through a face by little would else be cut off there, and how the cut moves be missed.
    """
    v = v.movedim(2, 1)  # (m, functions, samples)
    sign = torch.where(v[..., 1] >= 0.0, 1.0, -1.0)[..., None]
    low, here, high = (sign * v[..., k : k + v.shape[2] - 2] for k in range(3))
    slope, bend = 0.5 * (high - low), high - 2.0 * here + low
    turn = -slope / bend  # in steps from the middle sample
    one_sign = (low >= 0.0) & (here >= 0.0) & (high >= 0.0) & (bend > 0.0) & (turn.abs() < 1.0)
    deep = here + 0.5 * slope * turn <= TURNS * torch.maximum(torch.maximum(low, high), here)
    turns = one_sign & deep & active[..., None]
    # Two parabolas may turn between the same samples: the pair there counts once, or a surface would count twice.
    turns[..., 1:] &= ~(turns[..., :-1] & (turn[..., :-1] >= 0.0) & (turn[..., 1:] < 0.0))
    i, j, k = turns.nonzero().unbind(1)
    if i.numel() == 0:
        return line, which, sides
    step = at[:, 1] - at[:, 0]
    middle, turn, sign = k + 1, turn[i, j, k], sign[i, j, 0]
    left = torch.where(turn < 0.0, middle - 1, middle)
    x = at[i, middle] + turn * step[i]
    y = sign * value(i, j, x)
    # Once more, through the point found and its neighbours.
    ends = [(at[i, end], sign * v[i, j, end]) for end in (left, left + 1)]
    better = _vertex(ends[0], (x, y), ends[1])
    again = sign * value(i, j, better)
    lower = again < y
    x, y = torch.where(lower, better, x), torch.where(lower, again, y)
    found = (y < 0.0).nonzero().squeeze(1)
    i, j, x, y = i[found], j[found], x[found], (sign * y)[found]
    (x0, y0), (x1, y1) = ((a[found], (sign * b)[found]) for a, b in ends)
    more = ((x0, x), (x, x1), (y0, y), (y, y1))
    sides = [
        torch.cat((one, *others)) for one, others in zip(sides, zip(*_in_order(more), strict=True), strict=True)
    ]
    return torch.cat((line, i, i)), torch.cat((which, j, j)), sides


def _in_order(pairs: tuple[tuple[Tensor, Tensor], ...]) -> list[list[Tensor]]:
    """Return two brackets (left, right, at left, at right) from the ends of the stretches on both sides."""
    (l0, r0), (l1, r1), (a0, b0), (a1, b1) = pairs
    return [[l0, r0, a0, b0], [l1, r1, a1, b1]]


def _vertex(left: tuple[Tensor, Tensor], here: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Tensor:
    """Return where the parabola through three points turns, between the outer ones."""
    (x0, y0), (x1, y1), (x2, y2) = left, here, right
    down, up = (y1 - y0) * (x2 - x1), (y2 - y1) * (x1 - x0)
    turn = x1 - 0.5 * (down * (x2 - x1) + up * (x1 - x0)) / (up - down)
    return torch.where(turn.isfinite() & (turn > x0) & (turn < x2), turn, x1)


def _slope(function: Callable[[Tensor], Tensor], t: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Return the difference quotient around t, or close by inside of the unit cube, and the second one's size.

    Places on both sides are equally far: between a root and the face that it is on, to rounding, there is no slope.
    """
    centre = t.clamp(step, 1.0 - step)
    below, here, above = function(torch.stack((centre - step, centre, centre + step)))
    bend = (above - 2.0 * here + below) / step**2
    return (above - below) / (2.0 * step), bend.nan_to_num(0.0, 0.0, 0.0).abs()


def moved(level: Level, roots: Roots, points: Tensor, owner: Tensor, axis: Tensor) -> Tensor:
    """Return the places of roots on lines through ``points`` ``(k, d)``, differentiable; their values stay."""
    place = roots.t
    steep = torch.where(roots.sound, roots.slope, 1.0)
    for _ in range(ORDER):
        value = level(on_axis(points, axis, place), owner).gather(1, roots.which[:, None]).squeeze(1)
        place = place - torch.where(roots.sound, value, 0.0) / steep
    if current_rehearsal() is not None:  # roots are those of another run
        return place
    return place + (roots.t - place).detach()
