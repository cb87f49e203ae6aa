"""Boxes in d dimensions, with infinite sides too, as images of the unit cube."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from quadgrad._core._torch import derivatives_open, in_transform
from quadgrad._core.mesh.boxes import FlatLayout, MappedLayout
from quadgrad._core.mesh.protocol import Domain

__all__ = ["Box", "Flat"]

INNER = (0.4375, 0.5625)
"""Where in a box f is called to see what it returns: neither in the middle nor on the diagonal."""


class Flat(NamedTuple):
    """What places points in boxes without infinite sides: ``u * side + start``, held between ``low`` and ``high``.

    Each of shape ``(1 or batch, d)``.
    """

    start: Tensor
    side: Tensor
    low: Tensor
    high: Tensor

    @property
    def volume(self) -> Tensor:
        """The volume element, with the sign of the limits' order, ``(1, 1 or batch)``."""
        return self.side.prod(-1)[None]


@dataclass
class Box(Domain):
    """Where each integral is taken.

    The corners ``a`` and ``b`` have shape ``(batch, d)``, or ``(1, d)`` where all integrals share them.
    ``infinite`` tells whether any side is. ``x_dtype`` is the dtype in which f is called, or single precision if
    that is coarser.
    """

    a: Tensor
    b: Tensor
    infinite: bool
    x_dtype: torch.dtype

    shareable: ClassVar[bool] = True

    @property
    def d(self) -> int:
        """The number of dimensions."""
        return self.a.shape[1]

    @property
    def empty(self) -> Tensor:
        """Which boxes have no volume, ``(batch or 1,)``."""
        return (self.a == self.b).any(1)

    @property
    def marks(self) -> tuple[Tensor, ...]:
        """All places that can carry a gradient."""
        return self.a, self.b

    def with_marks(self, marks: tuple[Tensor, ...]) -> Box:
        """Return a box with other corners."""
        return replace(self, a=marks[0], b=marks[1])

    def part(self, first: int, last: int) -> Box:
        """Return the boxes of the integrals from ``first`` to before ``last``."""
        return self.take(slice(first, last))

    def take(self, owner: Tensor | slice) -> Box:
        """Return the boxes of some integrals."""
        a, b = (t if t.shape[0] == 1 else t[owner] for t in (self.a, self.b))
        return replace(self, a=a, b=b)

    def detach(self) -> Box:
        """Return the box without gradient."""
        if not (self.a.requires_grad or self.b.requires_grad or derivatives_open()):
            return self
        return replace(self, a=self.a.detach(), b=self.b.detach())

    def lay_out(self, cells: Any) -> FlatLayout | MappedLayout:
        """Return how cells of the unit cube lie in the boxes of their owners; see :mod:`.boxes`."""
        owner, low, width = cells.owner, cells.low, cells.width
        if self.infinite:
            return MappedLayout(self.take(owner), low, width)
        a, b = (t.T if t.shape[0] == 1 else t.index_select(0, owner).T for t in (self.a, self.b))
        side = b - a
        sides = side * width
        return FlatLayout(torch.addcmul(a, side, low), sides, sides.prod(0)[None])

    def inner_points(self, batch: int, shift: float = 0.0) -> Tensor:
        """Return a harmless point of each integral, ``(batch, d)``, and another one for another ``shift``."""
        place = self.a.new_tensor([INNER[k % 2] + 2.0**-10 * k / self.d + shift for k in range(self.d)])
        if 0 in (self.a.shape[0], self.b.shape[0]):
            return place.expand(batch, self.d)
        return self.place(place.expand(1, 1, self.d))[0].reshape(-1, self.d).expand(batch, self.d)

    def place(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Map points of the unit cube onto the boxes.

        Half lines are the image of ``t / (1 - t)``, whole lines that of ``tan(pi (t - 1/2))``: both leave an
        integrand that falls as 1/x^2 bounded.

        Parameters
        ----------
        u : Tensor, shape (m, 1 or batch, d)
            Strictly inside of the unit cube.

        Returns
        -------
        x : Tensor, shape (m, 1 or batch, d)
            Strictly inside of the boxes, also once it is rounded to the dtype in which f is called.
        factor : Tensor, shape (1 or m, 1 or batch)
            The volume element, with the sign of the limits' order.
        """
        if self.infinite:
            return self._place_beyond(u)
        flat = self.flat()
        if in_transform():  # `vmap` has no rule for what is done in place
            x = torch.addcmul(self.a, u, flat.side).clamp(flat.low, flat.high)
        else:  # one bound after the other: a third of the time of addcmul and of clamp with both
            x = (u * flat.side).add_(self.a).clamp_(min=flat.low).clamp_(max=flat.high)
        return x, flat.volume

    def flat(self) -> Flat:
        """Return how to place points if no side is infinite."""
        side = self.b - self.a
        sign = side.detach().sign()
        first, last = (margin * sign for margin in self._margins(self.a, self.b, side))
        near, far = self.a + first, self.b - last
        # Points are held back, not drawn together: that would be off by as much as x is rounded.
        return Flat(self.a, side, torch.minimum(near, far), torch.maximum(near, far))

    def _place_beyond(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Do so where some sides are infinite."""
        # The last bin of a map may be so narrow that a point in it is rounded to 1.
        u = u.clamp(max=1.0 - 2.0**-53)
        lower, upper = torch.minimum(self.a, self.b), torch.maximum(self.a, self.b)
        below, above = lower == -torch.inf, upper == torch.inf
        both, rest = below & above, 1.0 - u
        # What is infinite is left out before it is used: its derivatives would be NaN.
        start, stop = lower.masked_fill(below, 0.0), upper.masked_fill(above, 0.0)
        side = stop - start
        first, last = self._margins(start, stop, torch.where(below | above, torch.inf, side))
        whole = torch.tan(math.pi * (torch.where(both, u, 0.5) - 0.5))
        half = torch.where(above, start + u / rest, stop - rest / u)
        x = torch.where(both, whole, torch.where(below | above, half, start + u * side))
        x = x.clamp((start + first).masked_fill(below, -torch.inf), (stop - last).masked_fill(above, torch.inf))
        half = torch.where(above, rest, u) ** -2
        whole = math.pi * (1.0 + whole * whole)
        stretch = torch.where(both, whole, torch.where(below | above, half, side))
        return x, stretch.prod(-1) * torch.where(self.b < self.a, -1.0, 1.0).prod(-1)

    def _margins(self, a: Tensor, b: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far from a and from b to stay, where f may be infinite: x is rounded before f sees it.

        Places are counted from a, so that they have all digits of their distance from it where it is zero. A margin
        is at most a quarter of a side, which a few numbers may fill.
        """
        rounding, first = torch.finfo(self.x_dtype), a.detach().abs()
        most = 0.25 * side.detach().abs()
        ends = first, torch.maximum(first, b.detach().abs())
        near, far = ((rounding.eps * end).clamp_min(rounding.tiny).minimum(most) for end in ends)
        return near, far
