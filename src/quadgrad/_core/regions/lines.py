"""Where functions vanish along lines through cells; and how those places move, in ordinary torch.

Coordinates are those of the unit cube. No decision here carries a gradient: what moves is rebuilt afterwards by steps
``t - g(t) / slope`` with the slope held fixed, each of which makes one more order of derivatives right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from quadgrad._core.breakpoints.roots import Bracket, find_zeros
from quadgrad._core.integrand import Integrand
from quadgrad._core.mesh.box import Box

__all__ = ["Level", "Roots", "find_roots", "moved", "on_axis"]

SAMPLES = 4
"""Parts of a line, between whose ends changes of sign are looked for."""

ORDER = 3
"""Steps, and so derivatives that are right; the slope is a difference, so that each also mends what that is off."""

STEP = 2.0**-14
"""Distance of the points whose difference is the slope, as a part of the cell's side."""

ALIKE = 0.5
"""Slopes over distances of which one is four times the other agree so well unless the root is a triple one: then
they differ by a factor of 4 or more."""

ALONE = 2.0**-10
"""A root that a second one is closer to than about this part of a cell's side counts as one that is only touched: of
nearly double roots a line has a pair or none, and they move infinitely fast. Where lines run on the faces of cells
that does no harm: what is integrated over the other axes is continuous there."""

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
    """

    line: Tensor
    t: Tensor
    which: Tensor
    upper: Tensor
    slope: Tensor
    sound: Tensor

    def on_faces(self, u: Tensor, rest: Tensor, low: Tensor, side: Tensor) -> Tensor:
        """Return the points ``(k, d)`` on the lines: u there, but on the faces for the axes of ``rest`` ``(k, r)``.

        ``low`` and ``side`` ``(k, d)`` are those of the cells.
        """
        return _on_faces(u, rest, low, side, self.upper)


def _on_faces(u: Tensor, rest: Tensor, low: Tensor, side: Tensor, upper: Tensor) -> Tensor:
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
        points = _on_faces(u[here], rest[here], low[here], side[here], upper)
        found = _on_lines(level, points, *(t[here] for t in (owner, axis, low, side, active)))
        line, *others = found
        parts.append(Roots(here[line], *others[:2], upper[line], *others[2:]))
    joined = ("line", "t", "which", "upper", "slope", "sound")
    return Roots(*(torch.cat([getattr(part, name) for part in parts]) for name in joined))


def _on_lines(
    level: Level, points: Tensor, owner: Tensor, axis: Tensor, low: Tensor, side: Tensor, active: Tensor
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return for the zeros on lines through points: the line, the place, the function, its slope, if it is sound."""
    m, d = points.shape
    start, width = (t.gather(1, axis[:, None]) for t in (low, side))
    at = start + width * torch.linspace(0.0, 1.0, SAMPLES + 1, dtype=start.dtype, device=start.device)
    each = torch.arange(m, device=points.device)[:, None].expand(m, SAMPLES + 1).flatten()
    v = level(on_axis(points[each], axis[each], at.flatten()), owner[each]).unflatten(0, (m, SAMPLES + 1))
    positive = v >= 0.0
    line, place, which = ((positive[:, 1:] != positive[:, :-1]) & active[:, None]).nonzero().unbind(1)
    base, along, whose = points[line], axis[line], owner[line]

    def function(t: Tensor) -> Tensor:
        rows = [level(on_axis(base, along, one), whose).gather(1, which[:, None]).squeeze(1) for one in t]
        return torch.stack(rows)

    ends = (place, place + 1)
    bracket = Bracket(*(at[line, end] for end in ends), *(v[line, end, which] for end in ends))
    if line.numel() == 0:
        return line, bracket.left, which, bracket.left, line > 0
    t, _, _ = find_zeros(function, bracket)
    width = width[line, 0]
    (near, _), (far, bend) = (_slope(function, t, step * width) for step in (STEP, 4.0 * STEP))
    size = v.abs().amax(1)[line, which]
    rounding = VALUE_ULPS * torch.finfo(level.g.call_dtype).eps * size
    least = torch.maximum(rounding / (FLAT * width), ALONE * width * bend)
    sound = near.isfinite() & (near.abs() >= least) & ((far - near).abs() <= ALIKE * near.abs())
    return line, t, which, near, sound


def _slope(function: Callable[[Tensor], Tensor], t: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Return the difference quotient around t, inside of the unit cube, and the size of the second derivative."""
    places = torch.stack(((t - step).clamp_min(0.0), t, (t + step).clamp_max(1.0)))
    below, here, above = function(places)
    left, right = t - places[0], places[2] - t
    bend = 2.0 * ((above - here) / right - (here - below) / left) / (left + right)
    return (above - below) / (left + right), bend.nan_to_num(0.0, 0.0, 0.0).abs()


def moved(level: Level, roots: Roots, points: Tensor, owner: Tensor, axis: Tensor) -> Tensor:
    """Return the places of roots on lines through ``points`` ``(k, d)``, differentiable; their values stay."""
    place = roots.t
    steep = torch.where(roots.sound, roots.slope, 1.0)
    for _ in range(ORDER):
        value = level(on_axis(points, axis, place), owner).gather(1, roots.which[:, None]).squeeze(1)
        place = place - torch.where(roots.sound, value, 0.0) / steep
    return place + (roots.t - place).detach()
