"""Lines through what functions cut out of boxes: where they enter and leave it, in coordinates of the unit cube.

Through each point of a sample runs one line along each axis. Each is looked at in a few places, evenly spread and
as random as the point's coordinate along it, so that a piece of the region that is shorter than their distance is
met with a probability that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.breakpoints.roots import Bracket, find_zeros
from quadgrad._core.lanes import has_lanes
from quadgrad._core.regions.where import Together

__all__ = ["Crossings", "Lines", "axes_first", "detached"]

EVEN = 2.0**-5
"""The share of points that no map moves; see :mod:`quadgrad._core.mesh.grid`."""

INSIDE = 2.0**-26
"""How far inside of the region f is read beside a crossing, as a part of the distance of places; in single
precision a few eps."""

FINEST, STEPS = 2.0**-32, 24
"""Where a line crosses the boundary is known to such a part of the distance between places; steps to it at most."""

HALF_STEP = 2.0**-13
"""Half the distance of the points in which the gradient at a crossing is taken, as a part of the same distance."""


@dataclass(frozen=True, eq=False)
class Crossings:
    """Where lines cross the boundary, ``(r, d, *grid)``, in the order along each line; nothing carries a gradient.

    Attributes
    ----------
    t : Tensor
        The coordinate along the line.
    valid : Tensor of bool
        Lines with fewer crossings than others are filled up.
    inside : Tensor
        The coordinate along the line a little inside of the region, where f is read.
    sign : Tensor
        1 where the line leaves the region, -1 where it enters it.
    chance : Tensor
        How probable it was to meet the crossing.
    reach : Tensor
        The distance of the places between which it was found.
    start, stop, share : Tensor, shape ``(k, d, *grid)``
        The ends of the pieces of lines in the region, and one over the probability to meet them, 0 of those that
        fill up.
    lost : Tensor of bool, shape ``(*grid,)``
        Where a function was NaN.
    """

    t: Tensor
    valid: Tensor
    inside: Tensor
    sign: Tensor
    chance: Tensor
    reach: Tensor
    start: Tensor
    stop: Tensor
    share: Tensor
    lost: Tensor


@dataclass(frozen=True, eq=False)
class Lines:
    """The lines along all axes through points of the unit cube.

    Attributes
    ----------
    g : Together
        The functions that cut; the region is where the smallest is positive.
    args : tuple
        Their arguments.
    corner, side : Tensor, shape ``(*batch, d)``
        Of the boxes.
    anchor : Tensor, shape ``(*batch, d)``
        A point of the unit cube for f to be called at where there is no other.
    edges : Tensor, shape ``(d, ..., bins + 1)``, optional
        The ends of equally probable bins along each axis, as :func:`axes_first` returns them.
    u : Tensor, shape ``(m, *batch, d)``
        Evenly spread points, of which those marked ``even`` ``(m, *batch)`` are not moved.
    samples : int
        Places at which a line is looked at, beside its ends.
    """

    g: Together
    args: tuple[Any, ...]
    corner: Tensor
    side: Tensor
    anchor: Tensor
    edges: Tensor | None
    u: Tensor
    even: Tensor
    samples: int

    def along(self, w: Tensor) -> Tensor:
        """Return the coordinates along the axes ``(..., d, *grid)`` of which w are the shares of probability."""
        if self.edges is None:
            return w
        bins = self.edges.shape[-1] - 1
        bin = (w * bins).long().clamp(0, bins - 1)
        edges = self.edges.expand(*w.shape, bins + 1)
        low, high = (edges.gather(-1, (bin + k)[..., None]).squeeze(-1) for k in (0, 1))
        return torch.minimum(low + (w * bins - bin) * (high - low), high)

    def base(self) -> tuple[Tensor, Tensor]:
        """Return the points ``(*grid, d)``, and one over the density of those of each line ``(d, *grid)``."""
        u = self.u.movedim(-1, 0)
        if self.edges is None:
            return self.u, torch.ones_like(u)
        y = torch.where(self.even, u, self.along(u))
        bins = self.edges.shape[-1] - 1
        bin = (y[..., None] >= self.edges[..., 1:-1]).sum(-1, keepdim=True)
        width = self.edges.diff(dim=-1).expand(*y.shape, bins).gather(-1, bin).squeeze(-1)
        density = -(bins * width.double()).log()
        # Of a line along one axis the coordinates along the others matter.
        others = (density.sum(0) - density).exp()
        return y.movedim(0, -1), (1.0 / ((1.0 - EVEN) * others + EVEN)).to(u.dtype)

    def points(self, y: Tensor, t: Tensor) -> Tensor:
        """Return the points ``(k, d, *grid, d)`` of the lines through y that have the coordinates t along them."""
        d = y.shape[-1]
        own = torch.eye(d, dtype=torch.bool, device=y.device).reshape(d, *(1,) * (y.ndim - 1), d)
        return torch.where(own, t[..., None], y)

    def x(self, points: Tensor) -> Tensor:
        """Return points of the unit cube in the boxes."""
        return self.corner + self.side * points

    def level(self, points: Tensor) -> Tensor:
        """Return the smallest of the functions at points ``(k, d, *grid, d)`` of the unit cube."""
        return self.g(self.x(points), *self.args).amin(-1)

    def gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of that in x and in the coordinates of the unit cube, ``(k, d, *grid, d)``."""
        x = self.x(points)
        value, pull, *_ = torch.func.vjp(lambda x: self.g(x, *self.args).amin(-1), x)
        slope = pull(torch.ones_like(value))[0]
        return slope, slope * self.side

    @torch.no_grad()
    def cross(self, y: Tensor) -> Crossings:
        """Find where the lines through points y ``(*grid, d)`` cross the boundary."""
        u = self.u.movedim(-1, 0)
        inner = (
            torch.arange(self.samples, dtype=u.dtype, device=u.device).reshape(-1, *(1,) * u.ndim) + u
        ) / self.samples
        w = torch.cat((torch.zeros_like(u)[None], inner, torch.ones_like(u)[None]))
        v = self.level(self.points(y, self.along(w))).detach()
        positive = v > 0.0
        change = positive[1:] != positive[:-1]
        most = self.samples + 1 if has_lanes(v) else max(1, int(change.sum(0).amax()) if change.numel() else 1)
        place = (~change).byte().argsort(dim=0, stable=True)[:most]
        valid = change.gather(0, place)
        left = w.gather(0, place)
        right = torch.where(valid, w.gather(0, place + 1), left)
        bracket = Bracket(left, right, v.gather(0, place), v.gather(0, place + 1))
        function = lambda w: self.level(self.points(y, self.along(w[0]))).detach()[None]
        root = torch.where(valid, find_zeros(function, bracket, FINEST, STEPS)[0], 1.0)
        return self._pieces(root, valid, positive[0], left, right, v.isnan().any(0).any(0))

    def _pieces(
        self, root: Tensor, valid: Tensor, first: Tensor, left: Tensor, right: Tensor, lost: Tensor
    ) -> Crossings:
        """Return crossings at shares ``root`` of the probability; ``first`` tells which lines begin inside."""
        r = root.shape[0]
        ends = torch.cat((torch.zeros_like(root[:1]), root, torch.ones_like(root[:1])))
        number = torch.arange(r + 1, device=root.device).reshape(-1, *(1,) * (root.ndim - 1))
        # A piece between two crossings was met if one of the places is in it; one at an end is met in any case.
        inner = torch.cat((torch.zeros_like(valid[:1]), valid[1:], torch.zeros_like(valid[:1])))
        chance = torch.where(inner, (self.samples * ends.diff(dim=0)).clamp_max(1.0), 1.0)
        leaves = first ^ (number[:r] % 2 > 0)
        t = self.along(ends)
        pieces = (
            torch.arange(0, r + 1, 2, device=root.device).reshape(-1, *(1,) * (root.ndim - 1)) + (~first).long()
        )
        inside = pieces <= valid.sum(0)
        pieces = pieces.clamp_max(r)
        start, stop, one = t[:-1].gather(0, pieces), t[1:].gather(0, pieces), chance.gather(0, pieces)
        share = torch.where(inside & (stop > start), 1.0 / one.clamp_min(torch.finfo(one.dtype).eps), 0.0)
        sign = torch.where(leaves, 1.0, -1.0).to(root.dtype)
        reach = self.along(right) - self.along(left)
        little = max(INSIDE, 8.0 * torch.finfo(root.dtype).eps) * reach
        return Crossings(
            t=t[1:-1], valid=valid, inside=(t[1:-1] - sign * little).clamp(0.0, 1.0), sign=sign,
            chance=torch.minimum(chance[:-1], chance[1:]).clamp_min(torch.finfo(root.dtype).eps),
            reach=reach, start=start, stop=stop, share=share, lost=lost,
        )  # fmt: skip

    @torch.no_grad()
    def slopes(self, y: Tensor, crossings: Crossings, power: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slope along the lines at crossings, what part of the boundary is theirs, and its slope.

        All lines through a place of the boundary share it, as so high a power of the gradient's components.
        """
        t, reach = crossings.t, HALF_STEP * crossings.reach
        both = [(t - reach).clamp_min(0.0), (t + reach).clamp_max(1.0)]
        along: list[Tensor] = []
        part: list[Tensor] = []
        for one in both:
            gradient = self.gradient(self.points(y, one))[1].detach()
            along.append(own_component(gradient))
            gradient = gradient / gradient.abs().amax(-1, keepdim=True)
            part.append(own_component(gradient) ** power / (gradient**power).sum(-1))
        slope = (part[1] - part[0]) / (both[1] - both[0])
        return 0.5 * (along[0] + along[1]), 0.5 * (part[0] + part[1]), slope.nan_to_num(0.0, 0.0, 0.0)


def own_component(vectors: Tensor) -> Tensor:
    """Return of vectors ``(k, d, *grid, d)`` at points of lines the components along these."""
    d = vectors.shape[-1]
    own = torch.eye(d, dtype=vectors.dtype, device=vectors.device).reshape(d, *(1,) * (vectors.ndim - 3), d)
    return (vectors * own).sum(-1)


def axes_first(edges: Tensor, rank: int) -> Tensor:
    """Return ``(*batch, d, bins + 1)`` as ``(d, ..., bins + 1)``, to stand beside lines ``(d, *grid)``."""
    edges = edges.movedim(-2, 0)
    return edges.reshape(edges.shape[0], *(1,) * (rank - edges.ndim + 2), *edges.shape[1:])


def detached(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return values without gradient."""
    return tuple([value.detach() if isinstance(value, Tensor) else value for value in values])
