"""Integrals over what functions cut out of boxes as integrals over the unit cube, in any number of dimensions.

A point of the cube stands for the lines through it along all axes. On each the region is what lies between
crossings of its boundary, and f is called at one place in every piece. The value is the mean over the lines.

Its derivatives come from how the crossings move; there the lines through a place of the boundary share it by how
steeply they meet it, since those that graze it move infinitely fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import forward_mode_open, in_transform
from quadgrad._core.integrand import Argument, Integrand, tensor_and_ndim
from quadgrad._core.reduce import align
from quadgrad._core.regions.chords import EVEN, Crossings, Lines, axes_first, detached, own_component
from quadgrad._core.regions.where import Together

__all__ = ["Through"]

POWER, AREA_POWER = 4, 6
"""How much more of the boundary a steeper line gets. Derivatives are divided by the slope, the second ones by its
cube: with these powers the second derivatives of what is summed stay bounded."""

GRAZES = 1e-10
"""A line whose part of the boundary is less than this is left out there."""

MOVES = {False: 2, True: 3}
"""Steps to a crossing that moves, each of which makes one order of derivatives right; areas need one more."""


@dataclass(eq=False)
class Through:
    """f over a part of boxes, as a function ``(u, *args, a, b)`` on the unit cube in ``dims`` dimensions.

    Called with two more arguments, ``edges`` and ``anchor``, the points go through a map, see :class:`Lines`.

    Attributes
    ----------
    f : callable
    g : Together
        The functions that cut.
    kinds : tuple of Argument
        Of what kind the arguments of f are.
    d : int
        Dimensions of the boxes.
    surface : bool
        Whether the integral is over where g vanishes.
    vectorized : bool
    samples : int
        Places at which each line is looked at, beside its ends; a guide may want more.
    """

    f: Callable[..., Any]
    g: Together
    kinds: tuple[Argument, ...]
    d: int
    surface: bool
    vectorized: bool
    samples: int = 8

    @staticmethod
    def of(f: Any, g: Together, args: tuple[Any, ...], d: int, surface: bool, vectorized: bool) -> Through:
        """Return the function for arguments as the caller gives them."""
        kinds = [Argument(value, shared=False, element_ndim=ndim) for value, ndim in map(tensor_and_ndim, args)]
        return Through(f, g, tuple(kinds), d, surface, vectorized)

    @property
    def dims(self) -> int:
        """Dimensions of the cube: one more for places in pieces, one for which points a map moves."""
        return self.d + 2

    def __call__(self, u: Tensor, *given: Any) -> Tensor:
        """Return the means over the lines through points ``(m, *batch, dims)``: ``(m, *batch, *event)``."""
        lines = self._lines(u, given)
        still = self._lines(u, detached(given))
        y, weight = still.base()
        y, weight = y.detach(), weight.detach()
        crossings = still.cross(y)
        moving = torch.is_grad_enabled() or in_transform() or forward_mode_open()
        volume = lines.side.prod(-1).expand(u.shape[:-1])
        if self.surface:
            volume = volume.abs()
            value = self._area(lines, still, y, weight, crossings, moving)
        else:
            value = self._volume(lines, still, y, weight, crossings, u[..., self.d])
            if moving:
                value = value + self._shifts(lines, still, y, weight, crossings)
        value = value * align(volume, value)
        return torch.where(align(crossings.lost, value), torch.nan, value)

    def levels(self, u: Tensor, *given: Any) -> Tensor:
        """Return the smallest of the functions at the points themselves, ``(m, *batch)``."""
        lines = self._lines(u, given)
        return lines.level(lines.base()[0][None, None])[0, 0]

    def places(self, u: Tensor, *given: Any) -> Tensor:
        """Return the points themselves, in the unit cube of the boxes, ``(m, *batch, d)``."""
        return self._lines(u, given).base()[0]

    def lengths(self, u: Tensor, *given: Any) -> Tensor:
        """Return what each line through the points has in the region, weighted, ``(m, *batch, d)``."""
        lines = self._lines(u, given)
        y, weight = lines.base()
        crossings = lines.cross(y)
        if self.surface:
            length = (crossings.valid / crossings.chance).sum(0)
        else:
            length = ((crossings.stop - crossings.start) * crossings.share).sum(0)
        return (weight * length).movedim(0, -1)

    def missed(self, u: Tensor, *given: Any) -> Tensor:
        """Return how long the pieces of lines are, weighted, and those in which f would be called outside.

        ``(m, *batch, 2)``. In these a hole was not met, or several pieces were taken for one.
        """
        lines = self._lines(u, given)
        y, weight = lines.base()
        crossings = lines.cross(y)
        length = crossings.stop - crossings.start
        outside = lines.level(lines.points(y, crossings.start + u[..., self.d] * length)) <= 0.0
        length = weight * length * crossings.share
        return torch.stack((_mean(length), _mean(torch.where(outside, length, 0.0))), dim=-1)

    def _lines(self, u: Tensor, given: tuple[Any, ...]) -> Lines:
        count = len(self.kinds)
        args, (a, b, *guide) = given[:count], given[count:]
        edges, anchor = guide if guide else (None, torch.full_like(a, 0.4375))
        edges = None if edges is None else axes_first(edges.to(u.dtype), u.ndim - 1)
        return Lines(
            self.g,
            args,
            a,
            b - a,
            anchor.to(u.dtype),
            edges,
            u[..., : self.d],
            u[..., self.d + 1] < EVEN,
            self.samples,
        )

    def _f(self, lines: Lines, points: Tensor) -> Tensor:
        """Return f at points ``(k, d, *grid, d)`` of the unit cube, ``(k, d, *grid, *event)``."""
        # What f returns is checked here, where the caller's own shapes and x are known.
        own = Integrand(self.f, self.kinds, 0, points.dtype, points.dtype, self.vectorized, point_ndim=1)
        return own.call(lines.x(points), list(lines.args))

    def _volume(
        self, lines: Lines, still: Lines, y: Tensor, weight: Tensor, crossings: Crossings, place: Tensor
    ) -> Tensor:  # fmt: skip
        """Return the mean over the lines of the integrals along them, whose ends stay where they are."""
        length = crossings.stop - crossings.start
        points = lines.points(y, crossings.start + place * length)
        with torch.no_grad():  # a hole that no place on the line has met is not f's domain either
            inside = (crossings.share > 0.0) & (still.level(points).detach() > 0.0)
        values = self._f(lines, torch.where(inside[..., None], points, lines.anchor))
        values = torch.where(align(inside, values), values, 0.0)
        return _mean(values * align(weight * length * crossings.share, values))

    def _shifts(self, lines: Lines, still: Lines, y: Tensor, weight: Tensor, crossings: Crossings) -> Tensor:
        """Return 0, with the derivatives that come from how crossings move."""
        slope, part, change = still.slopes(y, crossings, POWER)
        sound = crossings.valid & (part > GRAZES) & slope.isfinite() & (slope != 0.0)
        shift = self._moved(lines, y, crossings, slope, sound)
        shift = shift - shift.detach()
        points = torch.where(sound[..., None], lines.points(y, crossings.inside + 0.5 * shift), lines.anchor)
        values = self._f(lines, points)
        values = torch.where(align(sound, values), values, 0.0)
        share = y.shape[-1] * weight * crossings.sign / crossings.chance * (part + 0.5 * change * shift)
        return _mean(values * align(torch.where(sound, share, 0.0) * shift, values))

    def _moved(self, lines: Lines, y: Tensor, crossings: Crossings, slope: Tensor, sound: Tensor) -> Tensor:
        """Return the coordinates of crossings, differentiable in whatever the functions depend on."""
        t, slope = crossings.t, torch.where(sound, slope, 1.0)
        for _ in range(MOVES[self.surface]):
            points = torch.where(sound[..., None], lines.points(y, t), lines.anchor)
            t = t - torch.where(sound, lines.level(points), 0.0) / slope
        return t + (crossings.t - t).detach()

    def _area(
        self, lines: Lines, still: Lines, y: Tensor, weight: Tensor, crossings: Crossings, moving: bool
    ) -> Tensor:  # fmt: skip
        """Return the mean over the lines of f where they cross the boundary, as parts of its area."""
        slope, part, _ = still.slopes(y, crossings, AREA_POWER)
        sound = crossings.valid & (part > GRAZES) & slope.isfinite() & (slope != 0.0)
        t = self._moved(lines, y, crossings, slope, sound) if moving else crossings.t
        points = torch.where(sound[..., None], lines.points(y, t), lines.anchor)
        in_x, gradient = lines.gradient(points)
        scale = gradient.detach().abs().amax(-1, keepdim=True)
        gradient = torch.where(sound[..., None], gradient / scale, 1.0)
        steep = torch.where(sound[..., None], in_x / scale, 1.0).norm(dim=-1)
        area = own_component(gradient).abs() ** (AREA_POWER - 1) / (gradient**AREA_POWER).sum(-1) * steep
        values = self._f(lines, points)
        values = torch.where(align(sound, values), values, 0.0)
        share = torch.where(sound, y.shape[-1] * weight / crossings.chance * area, 0.0)
        return _mean(values * align(share, values))


def _mean(values: Tensor) -> Tensor:
    """Return the mean over lines of the sums over the pieces or crossings of each, ``(k, d, *grid, *event)``."""
    return values.sum(0).mean(0)
