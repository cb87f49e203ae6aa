"""Limits and breakpoints of all integrals of a call, flattened over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import derivatives_open
from quadgrad._core.mesh.interval import Pieces, lay_out
from quadgrad._core.reduce import align

__all__ = ["Limits", "just_inside", "stack_points"]

ROOT_ULPS = 8.0
"""How far from a limit f is read for the derivative by it, in spacings of numbers.

A limit that was computed from where f jumps or bends is a few spacings off: of 200 such roots 38 had the wrong side
one spacing inside, and none four inside."""

INNER = 0.4375
"""Where in an interval f is called to see what it returns."""


def just_inside(place: Tensor, other: Tensor, dtype: torch.dtype, times: int = 1) -> Tensor:
    """Return where f, called in ``dtype``, is read beside a limit: so many least distances towards the other one.

    It is the next number of ``dtype`` where these are coarser than the limit's own, or the other limit is near.
    """
    nearest = torch.nextafter(place.to(dtype), other.to(dtype)).to(place.dtype)
    apart, least = nearest - place, ROOT_ULPS * (torch.nextafter(place, other) - place)
    away = place + times * torch.where(apart.abs() > least.abs(), apart, least)
    return torch.where((away < other) == (place < other), away, nearest)


@dataclass(slots=True)
class Limits:
    """Where each integral begins and ends, and where its integrand is known to be rough.

    ``a`` and ``b`` have shape ``(batch,)``, or ``(1,)`` where all integrals share them; ``points``
    ``(batch or 1, k)``, NaN where an integral has fewer. ``infinite`` tells whether any limit is,
    ``ordered`` whether ``a <= b`` is known of all. ``blur`` ``(batch, k)`` is how far each breakpoint may be
    from the place it stands for, ``x_dtype`` the dtype in which f is called, or single precision if that is
    coarser. The last ``found`` breakpoints are places that search has found: they carry no gradient.
    """

    a: Tensor
    b: Tensor
    points: Tensor | None
    infinite: bool
    ordered: bool = False
    blur: Tensor | None = None
    x_dtype: torch.dtype | None = None
    found: int = 0

    @property
    def rounding(self) -> torch.finfo:
        """What is known of the numbers that x is rounded to when f is called: ``eps``, ``tiny`` ..."""
        return torch.finfo(self.x_dtype or self.a.dtype)

    def next_to(self, place: Tensor, towards: Tensor) -> Tensor:
        """Return the number after ``place`` on the way, among those that x is rounded to."""
        dtype = self.x_dtype or place.dtype
        return torch.nextafter(place.to(dtype), towards.to(dtype)).to(place.dtype)

    @property
    def shareable(self) -> bool:
        """Whether all integrals may share a limit: between breakpoints each has pieces of its own."""
        return self.points is None

    @property
    def marks(self) -> tuple[Tensor, ...]:
        """All places that can carry a gradient: a, b, then the breakpoints one by one."""
        if self.points is None:
            return self.a, self.b
        points = self.points.unbind(1)
        first = len(points) - self.found
        return self.a, self.b, *points[:first], *(place.detach() for place in points[first:])

    def with_found(self, places: Tensor | None, batch: int) -> Limits:
        """Return the limits with places ``(batch, k)`` that search has found among the breakpoints, or NaN."""
        if places is None:
            return self
        places = places.to(self.a.dtype)
        points = places if self.points is None else torch.cat((self.points.expand(batch, -1), places), dim=1)
        blur = self.blur if self.blur is None else torch.cat((self.blur, torch.zeros_like(places)), dim=1)
        a, b = self.a.expand(batch), self.b.expand(batch)
        return replace(self, a=a, b=b, points=points, blur=blur, found=self.found + places.shape[1])

    def with_marks(self, marks: tuple[Tensor, ...]) -> Limits:
        """Return the same limits at other places."""
        points = None if self.points is None else torch.stack(torch.broadcast_tensors(*marks[2:]), dim=1)
        return replace(self, a=marks[0], b=marks[1], points=points)

    def part(self, first: int, last: int) -> Limits:
        """Return the limits of the integrals from ``first`` to before ``last``."""
        cut = {
            name: t[first:last]
            for name in ("a", "b", "points", "blur")
            if (t := getattr(self, name)) is not None and t.shape[0] > 1
        }
        return replace(self, **cut)

    def detach(self) -> Limits:
        """Return the limits without gradient."""
        if not (self.a.requires_grad or self.b.requires_grad or self.points is not None or derivatives_open()):
            return self
        points = None if self.points is None else self.points.detach()
        return replace(self, a=self.a.detach(), b=self.b.detach(), points=points)

    def orient(self, value: Tensor) -> Tensor:
        """Return integrals ``(batch, *event)`` from lower to upper limits with the sign of the limits' order."""
        if self.ordered:
            return value
        return torch.where(align(self.b < self.a, value), -value, value)

    def inner_points(self, batch: int, shift: float = 0.0) -> Tensor:
        """Return a harmless point of each integral, ``(batch,)``: not in the middle, where singularities may be.

        Another ``shift`` gives another point.
        """
        place = INNER + shift
        if 0 in (self.a.numel(), self.b.numel()):
            return self.a.new_full((batch,), place)
        if not self.infinite:
            return torch.lerp(self.a, self.b, place).expand(batch)
        pieces = replace(self, points=None).pieces()
        start = pieces.lower.new_zeros(max(pieces.lower.shape[0], pieces.upper.shape[0]))
        x, _ = lay_out(pieces, slice(None), start, start + 1.0, None).nodes(start.new_tensor([place]))
        return x[0].expand(batch)

    def edges(self) -> Tensor:
        """Return the ends of all pieces, ascending, shape ``(batch or 1, k + 2)``.

        Breakpoints outside the interval lie on its nearer end, where they bound an empty piece.
        """
        lower, upper = torch.minimum(self.a, self.b)[:, None], torch.maximum(self.a, self.b)[:, None]
        if self.points is None:
            return torch.cat(torch.broadcast_tensors(lower, upper), dim=1)
        inside = torch.where(self.points.isnan(), upper, self.points)
        inside = torch.maximum(torch.minimum(inside, upper), lower).sort(dim=1).values
        batch = inside.shape[0]
        return torch.cat([lower.expand(batch, 1), inside, upper.expand(batch, 1)], dim=1)

    def pieces(self) -> Pieces:
        """Return the stretches between neighbouring limits and breakpoints."""
        if self.points is not None:
            edges = self.edges()
            lower, upper, count = edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1), edges.shape[1] - 1
        elif self.ordered:
            lower, upper, count = self.a, self.b, 1
        else:
            lower, upper, count = torch.minimum(self.a, self.b), torch.maximum(self.a, self.b), 1
        return Pieces(lower, upper, count, self.infinite, self.x_dtype)


def stack_points(points: Any) -> Tensor:
    """Return breakpoints as one tensor, enumerated along its last dimension.

    Python numbers become float64; they take no part in deciding the working dtype.
    """
    if not isinstance(points, Tensor | Sequence) and not hasattr(points, "__array__"):
        points = [points]
    if isinstance(points, Sequence) and any(isinstance(p, Tensor) for p in points):
        like = next(p for p in points if isinstance(p, Tensor))
        each = [p if isinstance(p, Tensor) else like.new_tensor(p) for p in points]
        return torch.stack(torch.broadcast_tensors(*each), dim=-1)
    points = points if isinstance(points, Tensor) else torch.as_tensor(points, dtype=torch.float64, device="cpu")
    return points.unsqueeze(-1) if points.ndim == 0 else points
