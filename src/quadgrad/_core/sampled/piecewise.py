"""Cubic pieces between knots, given by values and slopes at these: what a spline is once its slopes are known.

Knots stand along the last dimension, and so do the places asked about. It knows nothing of kinds of splines.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quadgrad._core.broadcasting import broadcast_shapes

__all__ = ["Pieces"]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Values and slopes ``(*batch, n)`` at knots ``x``, ``(n,)`` or ``(*batch, n)``, that increase."""

    x: Tensor
    y: Tensor
    slopes: Tensor

    def locate(self, t: Tensor) -> Tensor:
        """Return the piece of each place ``(m,)`` or ``(*batch, m)``; the first and last reach to infinity."""
        # Zero of x's shape gives each row, and each lane of a vmap, places of its own, which searchsorted wants.
        places = t.detach() + 0.0 * self.x.detach()[..., :1]
        x = self.x.detach()
        if x.ndim > 1:
            rows = broadcast_shapes(places.shape[:-1], x.shape[:-1])
            places, x = places.expand(*rows, -1), x.expand(*rows, -1)
        place = torch.searchsorted(_dense(x), _dense(places), right=True)
        return (place - 1).clamp(0, self.x.shape[-1] - 2)

    def coefficients(self, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return those of 1, u, u^2 and u^3 in the pieces asked for, u being the part from the left knot.

        Not the distance: cubes of distances of 1e-15 or 1e15 are no numbers in single precision.
        """
        h = self._gap(place)
        y0, y1, s0, s1 = (_pick(t, place + i) for t in (self.y, self.slopes) for i in (0, 1))
        rise, s0, s1 = y1 - y0, s0 * h, s1 * h
        bend = s0 + s1 - 2 * rise
        return y0, s0, rise - s0 - bend, bend

    def value(self, t: Tensor, order: int) -> Tensor:
        """Return a derivative at places."""
        place = self.locate(t)
        h = self._gap(place)
        u = (t - _pick(self.x, place)) / h
        coefficients = list(self.coefficients(place))
        for _ in range(order):
            coefficients = [power * c for power, c in enumerate(coefficients)][1:]
        total = 0.0 * u * _pick(self.y, place)  # NaN where u is, of whatever order
        for c in reversed(coefficients):
            total = total * u + c
        for _ in range(order):
            total = total / h
        return total

    def knot_integrals(self) -> Tensor:
        """Return the integral from the first knot to each: shape ``(*batch, n)``."""
        h = self.x.diff(dim=-1)
        return torch.nn.functional.pad(self._areas(h).cumsum(-1), (1, 0))

    def whole(self) -> Tensor:
        """Return the integral from the first knot to the last: shape ``(*batch, 1)``."""
        return self._areas(self.x.diff(dim=-1)).sum(-1, keepdim=True)

    def antiderivative(self, t: Tensor) -> Tensor:
        """Return the integral from the first knot to places."""
        place = self.locate(t)
        left = _pick(self.x, place)
        return _pick(self.knot_integrals(), place) + self._stretch(place, left, t)

    def between(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the integral from each a to its b.

        Within one piece it is the piece's own: the difference of two integrals from the first knot would leave of a
        short stretch far from there no more than their rounding.
        """
        first, last = self.locate(a), self.locate(b)
        first, last = torch.broadcast_tensors(first, last)
        running = self.knot_integrals()
        onset, rest = _pick(self.x, first), _pick(self.x, last)
        apart = _pick(running, last) - _pick(running, first)
        apart = apart + self._stretch(last, rest, b) - self._stretch(first, onset, a)
        return torch.where(first == last, self._stretch(first, a, b), apart)

    def _stretch(self, place: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return the integral from a to b of the pieces asked for."""
        left, h = _pick(self.x, place), self._gap(place)
        u, v = (a - left) / h, (b - left) / h
        c0, c1, c2, c3 = self.coefficients(place)
        mean = u + v
        squares = u * u + v * v
        return (b - a) * (c0 + c1 * mean / 2 + c2 * (squares + u * v) / 3 + c3 * mean * squares / 4)

    def _gap(self, place: Tensor) -> Tensor:
        """Return how wide the pieces asked for are."""
        return _pick(self.x, place + 1) - _pick(self.x, place)

    def _areas(self, h: Tensor) -> Tensor:
        """Return the integral over each piece."""
        return h * ((self.y[..., 1:] + self.y[..., :-1]) / 2 - h * self.slopes.diff(dim=-1) / 12)


def _pick(values: Tensor, place: Tensor) -> Tensor:
    """Return the entries of ``(n,)`` or ``(*batch, n)`` at places ``(m,)`` or ``(*batch, m)``."""
    if place.ndim == 1:
        return values.index_select(-1, place)
    if values.ndim == 1:
        return values[place]
    rows = broadcast_shapes(values.shape[:-1], place.shape[:-1])
    return values.expand(*rows, -1).gather(-1, place.expand(*rows, -1))


def _dense(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
