"""Boxes in d dimensions, with infinite sides too, as images of the unit cube."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad._core._torch import derivatives_open

__all__ = ["Box"]

INNER = (0.4375, 0.5625)
"""Where in a box f is called to see what it returns: neither in the middle nor on the diagonal."""


@dataclass(slots=True)
class Box:
    """Where each integral is taken.

    The corners ``a`` and ``b`` have shape ``(batch, d)``, or ``(1, d)`` where all integrals share them.
    ``infinite`` tells whether any side is. ``x_dtype`` is the dtype in which f is called, or single precision if
    that is coarser.
    """

    a: Tensor
    b: Tensor
    infinite: bool
    x_dtype: torch.dtype
    points: None = None
    shareable: bool = True
    count: int = 1

    @property
    def d(self) -> int:
        """The number of dimensions."""
        return self.a.shape[1]

    @property
    def marks(self) -> tuple[Tensor, ...]:
        """All places that can carry a gradient."""
        return self.a, self.b

    def with_marks(self, marks: tuple[Tensor, ...]) -> Box:
        """Return a box with other corners."""
        return replace(self, a=marks[0], b=marks[1])

    def pieces(self) -> Box:
        """Return what nodes are placed on: the box itself."""
        return self

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

    def inner_points(self, batch: int) -> Tensor:
        """Return a harmless point of each integral, ``(batch, d)``."""
        place = self.a.new_tensor([INNER[k % 2] + 2.0**-10 * k / self.d for k in range(self.d)])
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
        if not self.infinite:
            side = self.b - self.a
            # In place: memory fresh from the system would cost more than the sum.
            return self._inside((u * side).add_(self.a)), side.prod(-1)[None]
        # The last bin of a map may be so narrow that a point in it is rounded to 1.
        u = u.clamp(max=1.0 - 2.0**-53)
        lower, upper = torch.minimum(self.a, self.b), torch.maximum(self.a, self.b)
        below, above = lower == -torch.inf, upper == torch.inf
        both, rest = below & above, 1.0 - u
        # What is infinite is left out before it is used: its derivatives would be NaN.
        start, stop = lower.masked_fill(below, 0.0), upper.masked_fill(above, 0.0)
        whole = torch.tan(math.pi * (torch.where(both, u, 0.5) - 0.5))
        x = torch.where(
            both,
            whole,
            torch.where(above, start + u / rest, torch.where(below, stop - rest / u, start + u * (stop - start))),
        )
        stretch = torch.where(
            both,
            math.pi * (1.0 + whole * whole),
            torch.where(above, rest**-2, torch.where(below, u**-2, stop - start)),
        )
        sign = torch.where(self.b < self.a, -1.0, 1.0).prod(-1)
        return self._inside(x), stretch.prod(-1) * sign

    def _inside(self, x: Tensor) -> Tensor:
        """Keep points that would be rounded to a limit, where f may be infinite, next to it; x is overwritten."""
        a, b = self.a.detach(), self.b.detach()
        rounding = torch.finfo(self.x_dtype)
        lower, upper = torch.minimum(a, b), torch.maximum(a, b)
        lower, upper = (
            end + sign * torch.where(end.isinf(), 0.0, rounding.eps * end.abs()).clamp_min(rounding.tiny)
            for end, sign in ((lower, 1.0), (upper, -1.0))
        )
        return x.clamp_(min=lower).clamp_(max=upper)

    def tensors(self) -> list[Tensor]:
        """Return what may carry a gradient."""
        return [self.a, self.b]

    def with_tensors(self, tensors: list[Any]) -> Box:
        """Return the box with other corners."""
        return replace(self, a=tensors[0], b=tensors[1])
