"""From fractions of a piece to abscissae: finite pieces, half lines and the whole line, mixed in a batch.

A piece is the stretch between two neighbouring limits or breakpoints. A *fraction* f of it is measured
from its lower end where ``f >= 0`` and from its upper end where ``f < 0``, so that cells can close in
on either end without losing digits. With p the distance from the lower and q = 1 - p that from the
upper end, infinite pieces are mapped by

    [c, inf): x = c + p / q        (-inf, c]: x = c - q / p        (-inf, inf): x = p / q - q / p

(QUADPACK's map written so that nothing cancels near c: ``c - 1 + 1 / q`` would lose digits.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DEPTH", "EndFrame", "Frame", "Pieces", "end_frame", "frame"]

DEPTH = 12
"""Octaves that the nodes of a cell at an end span, see :func:`end_frame`."""


@dataclass(slots=True)
class Pieces:
    """The pieces of all integrals, ``count`` for each, ascending: row ``owner * count + piece``.

    ``lower`` and ``upper`` each have shape ``(batch * count,)``, or ``(1,)`` where all integrals share
    it; ``infinite`` tells whether any is infinite.
    """

    lower: Tensor
    upper: Tensor
    count: int
    infinite: bool

    def part(self, first: int, last: int) -> Pieces:
        """Return the pieces of the integrals from ``first`` to before ``last``."""
        if self.lower.shape[0] == 1 and self.upper.shape[0] == 1:
            return self
        rows = slice(first * self.count, last * self.count)
        lower, upper = (end if end.shape[0] == 1 else end[rows] for end in (self.lower, self.upper))
        return Pieces(lower, upper, self.count, self.infinite)

    def ends(self, row: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return the lower and upper end of each row, shape ``(n,)`` or ``(1,)``."""
        return _at(self.lower, row), _at(self.upper, row)


def _at(ends: Tensor, row: Tensor | slice) -> Tensor:
    if ends.shape[0] == 1:
        return ends
    return ends[row] if isinstance(row, slice) else ends.index_select(0, row)


@dataclass(slots=True)
class Frame:
    """Where ``n`` cells lie: what is needed to place nodes on any stretch of them.

    ``scale`` ``(n,)`` multiplies a cell's weighted sum; ``reach`` ``(n,)`` is the distance of one of its
    ends from 0, in the unit of ``scale``: rounding moves a node by up to eps times that.
    """

    left: Tensor
    scale: Tensor
    reach: Tensor
    tail: _Tail | None = None

    def nodes(self, tau: Tensor, part: slice | Tensor) -> tuple[Tensor, Tensor | None]:
        """Return abscissae ``(m, n)`` at the rule's nodes ``tau`` and, on infinite pieces, dx/dfraction."""
        if self.tail is None:
            return torch.addcmul(self.left[part], tau[:, None], self.scale[part]), None
        return self.tail.nodes(self.left[part], self.scale[part], tau, part)


@dataclass(frozen=True)
class _Infinite:
    """Which of ``n`` cells lie on infinite pieces, and of which kind."""

    no_lower: Tensor
    no_upper: Tensor

    def place(
        self, fraction: Tensor, from_lower: Tensor, left: Tensor, x: Tensor, part: slice | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return x and dx/dfraction: on bounded pieces the given ``x``, and 1."""
        no_lower, no_upper = self.no_lower[part], self.no_upper[part]
        bounded = ~(no_lower | no_upper)
        # Placeholders keep bounded cells, where p or q may vanish, from making NaN gradients.
        p = torch.where(from_lower, fraction, 1.0 + fraction).masked_fill(bounded, 0.5)
        q = torch.where(from_lower, 1.0 - fraction, -fraction).masked_fill(bounded, 0.5)
        up, down = no_upper.to(p.dtype), no_lower.to(p.dtype)
        x = torch.where(bounded, x, left + up * (p / q) - down * (q / p))
        return x, torch.where(bounded, 1.0, up / q**2 + down / p**2)

    def reach(self, fraction: Tensor, left: Tensor) -> Tensor:
        """Return the fraction's distance from its end, and that of x from 0, over dx/dfraction."""
        p = torch.where(fraction >= 0, fraction, 1.0 + fraction)
        q = torch.where(fraction >= 0, 1.0 - fraction, -fraction)
        up, down = self.no_upper.to(p.dtype), self.no_lower.to(p.dtype)
        return fraction.abs() + p * q + left.abs() * (up * q**2 + down * p**2)


@dataclass(frozen=True)
class _Tail:
    """Cells of which some lie on infinite pieces (there ``scale`` is the width as a fraction)."""

    start: Tensor
    infinite: _Infinite

    def nodes(self, left: Tensor, scale: Tensor, tau: Tensor, part: slice | Tensor) -> tuple[Tensor, Tensor]:
        start = self.start[part]
        fraction = torch.addcmul(start, tau[:, None], scale)
        x = torch.addcmul(left, tau[:, None], scale)
        return self.infinite.place(fraction, start >= 0, left, x, part)


@dataclass(frozen=True)
class EndFrame:
    """Where ``n`` cells lie whose nodes close in on an end of their piece: the fraction is ``outer exp(rate tau)``.

    ``left`` is the end, or what an infinite piece is measured from; ``scale``, ``-rate`` times the piece's
    ``span``, multiplies a cell's weighted sum; ``reach`` is the end's distance from 0. All have shape ``(n,)``.
    """

    left: Tensor
    scale: Tensor
    reach: Tensor
    outer: Tensor
    rate: Tensor
    span: Tensor
    infinite: _Infinite | None

    def nodes(self, tau: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Return abscissae ``(m, n)`` at the rule's nodes ``tau``, and what f has to be multiplied by."""
        left, outer = self.left[part], self.outer[part]
        fraction = outer * torch.exp(tau[:, None] * self.rate[part])
        x = torch.addcmul(left, self.span[part], fraction)
        if self.infinite is None:
            return x, fraction.abs()
        x, slope = self.infinite.place(fraction, outer > 0, left, x, part)
        return x, slope * fraction.abs()


def frame(pieces: Pieces, row: Tensor | slice, start: Tensor, stop: Tensor) -> Frame:
    """Lay out cells given by their piece and their two fractions of it, each of shape ``(n,)``."""
    lower, upper = pieces.ends(row)
    if not pieces.infinite:
        left, scale = _stretch(lower, upper, upper - lower, start, stop)
        return Frame(left, scale, left.detach().abs())
    low, high, span, infinite = _bounds(lower, upper, start.shape)
    bounded = ~(infinite.no_lower | infinite.no_upper)
    inner, scale = _stretch(low, high, span, start, stop)
    reach = torch.where(bounded, inner, infinite.reach(start, low + high)).detach().abs()
    left, scale = torch.where(bounded, inner, low + high), torch.where(bounded, scale, stop - start)
    return Frame(left, scale, reach, _Tail(start, infinite))


def _stretch(lower: Tensor, upper: Tensor, span: Tensor, start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """Return left end and width of cells: from one rounded end to the other, so that neighbours leave no gap.

    Far from 0 rounding moves an end, and all nodes with it, by as much as it moves a node.
    """
    end = torch.where(start < 0, upper, lower)
    right = torch.where(stop == 1.0, upper, torch.addcmul(end, span, stop))
    middle = start == -0.5  # of the piece, which the cell before has from the lower end
    left = torch.addcmul(torch.where(middle, lower, end), span, start.masked_fill(middle, 0.5))
    return left, right - left


def end_frame(pieces: Pieces, row: Tensor, start: Tensor, stop: Tensor) -> EndFrame:
    """Lay out cells whose nodes are spread evenly over the logarithm of the distance from an end of their piece.

    The end is the one from which ``start`` and ``stop`` are measured, and the nodes run towards it. A cell
    that touches it gets nodes on the outer :data:`DEPTH` octaves only.
    """
    lower, upper = pieces.ends(row)
    from_lower = start >= 0
    outer, inner = torch.where(from_lower, stop, start), torch.where(from_lower, start, stop)
    rate = torch.log(torch.where(inner == 0, 2.0**-DEPTH, inner / outer))
    if not pieces.infinite:
        end, span = torch.where(from_lower, lower, upper), (upper - lower).expand(rate.shape)
        return EndFrame(end, -rate * span, end.detach().abs(), outer, rate, span, None)
    low, high, span, infinite = _bounds(lower, upper, start.shape)
    end = torch.where(from_lower, low, high)
    left = torch.where(infinite.no_lower | infinite.no_upper, low + high, end)
    # Towards infinity x is as precise as the fraction.
    far = torch.where(from_lower, infinite.no_lower, infinite.no_upper)
    reach = end.detach().abs().masked_fill(far, 0.0)
    return EndFrame(left, -rate * span, reach, outer, rate, span, infinite)


def _bounds(lower: Tensor, upper: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, _Infinite]:
    """Return both ends, 0 where infinite, the span, 1 where infinite, and which are; the last two of ``shape``."""
    no_lower, no_upper = lower.isinf(), upper.isinf()
    # Placeholders keep inf - inf, whose gradient is NaN, out of the branch that is not taken.
    low, high = lower.masked_fill(no_lower, 0.0), upper.masked_fill(no_upper, 0.0)
    span = (high - low).masked_fill(no_lower | no_upper, 1.0)
    return low, high, span.expand(shape), _Infinite(no_lower.expand(shape), no_upper.expand(shape))
