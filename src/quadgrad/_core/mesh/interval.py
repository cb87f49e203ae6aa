"""From fractions of a piece to abscissae: finite pieces, half lines and the whole line, mixed in a batch.

A piece is the stretch between two neighbouring limits or breakpoints. A *fraction* f of it is measured
from its lower end where ``f >= 0`` and from its upper end where ``f < 0``, so that cells can close in
on either end without losing digits. With p the distance from the lower and q = 1 - p that from the
upper end, infinite pieces are mapped by

    [c, inf): x = c + p / q        (-inf, c]: x = c - q / p        (-inf, inf): x = p / q - q / p

(QUADPACK's map written so that nothing cancels near c: ``c - 1 + 1 / q`` would lose digits.)
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["DEPTH", "EXTRAPOLATED", "LINEAR", "LOGARITHMIC", "Layout", "Pieces", "from_lower", "lay_out", "place"]

LINEAR, LOGARITHMIC, EXTRAPOLATED = 0, 1, 2
"""Kinds of cells, int8: nodes are spread evenly, or over the logarithm of the distance from an end of the piece.

``EXTRAPOLATED + c`` is the latter where the cell touches the end: the integral is extrapolated to it in column c of
the epsilon algorithm. Where the column is not chosen yet, such a cell is :data:`LOGARITHMIC`.
"""

DEPTH = 12
"""Octaves that the nodes of a cell that touches an end cover; the rest, 2^-12 of it, is extrapolated."""


@dataclass(slots=True)
class Pieces:
    """The pieces of all integrals, ``count`` for each, ascending: row ``owner * count + piece``.

    ``lower`` and ``upper`` each have shape ``(batch * count,)``, or ``(1,)`` where all integrals share it;
    ``infinite`` tells whether any is infinite. ``x_dtype`` is as in the limits.
    """

    lower: Tensor
    upper: Tensor
    count: int
    infinite: bool
    x_dtype: torch.dtype | None = None

    @property
    def rounding(self) -> torch.finfo:
        """What is known of the numbers that x is rounded to when f is called: ``eps``, ``tiny`` ..."""
        return torch.finfo(self.x_dtype or self.lower.dtype)

    def part(self, first: int, last: int) -> Pieces:
        """Return the pieces of the integrals from ``first`` to before ``last``."""
        if self.lower.shape[0] == 1 and self.upper.shape[0] == 1:
            return self
        rows = slice(first * self.count, last * self.count)
        lower, upper = (end if end.shape[0] == 1 else end[rows] for end in (self.lower, self.upper))
        return Pieces(lower, upper, self.count, self.infinite, self.x_dtype)

    def tensors(self) -> list[Tensor]:
        """Return what may carry a gradient."""
        return [self.lower, self.upper]

    def with_tensors(self, tensors: list[Tensor]) -> Pieces:
        """Return the same with others in their place."""
        lower, upper = tensors
        return replace(self, lower=lower, upper=upper)

    def ends(self, row: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return the lower and upper end of each row, shape ``(n,)`` or ``(1,)``."""
        return _at(self.lower, row), _at(self.upper, row)

    def touches(self, cells: Any, place: Tensor) -> Tensor:
        """Tell which of a plan's cells ends at a place, shape ``(n,)``, if that is an end of their piece."""
        lower, upper = self.ends(cells.row)
        at_upper = (cells.stop == 1.0) | ((cells.stop == 0.0) & (cells.start < 0.0))
        return ((cells.start == 0.0) & (lower == place)) | (at_upper & (upper == place))

    def lay_out(self, cells: Any) -> Layout:
        """Return the layout of a plan's cells."""
        return lay_out(self, cells.row, cells.start, cells.stop, None if cells.even else cells.kind)


def _at(ends: Tensor, row: Tensor | slice) -> Tensor:
    if ends.shape[0] == 1:
        return ends
    return ends[row] if isinstance(row, slice) else ends.index_select(0, row)


def place(
    pieces: Pieces, row: Tensor | slice, start: Tensor, stop: Tensor, kind: Tensor | None, tau: Tensor
) -> tuple[Tensor, Tensor]:
    """Place the nodes ``tau`` ``(m,)`` of the unit interval on cells of any kind.

    Parameters
    ----------
    pieces : Pieces
        Their ends may carry gradients; the cells' fractions carry none.
    row : Tensor of int64, shape (n,), or slice
    start, stop : Tensor, shape (n,)
    kind : Tensor of int8, shape (n,), or None
        None where all cells are :data:`LINEAR`: what logarithms ask for is left out then.
    tau : Tensor, shape (m,)

    Returns
    -------
    x : Tensor, shape (m, n)
    factor : Tensor, shape (m, n), or (1, n) where it is the same at all nodes
        ``abs(dx / dtau)``: by what f is multiplied.
    """
    return lay_out(pieces, row, start, stop, kind).nodes(tau)


def from_lower(place: Tensor) -> Tensor:
    """Return places of pieces measured from the lower end; negative ones are from the upper one."""
    return torch.where(place < 0.0, 1.0 + place, place)


@dataclass(slots=True)
class Layout:
    """What of :func:`place` does not depend on the nodes, for those who ask for several.

    On a finite piece a node is at ``base + extent * u``, where u is tau, or ``outer * exp(rate * tau)`` where
    ``logarithmic``. On an infinite one that is the fraction, which is mapped. ``scale`` is dx/dtau but for what
    varies along the cell. All have shape ``(n,)``.
    """

    base: Tensor
    extent: Tensor
    scale: Tensor
    logarithmic: Tensor | bool | None = None
    outer: Tensor | None = None
    rate: Tensor | None = None
    image: _Image | None = None

    def nodes(self, tau: Tensor, part: slice | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return abscissae and factors at the nodes ``tau`` of some cells or all, see :func:`place`.

        Each cell may have nodes of its own: ``tau`` ``(m, n)``.
        """
        if part is not None:
            return self.part(part).nodes(tau)
        along, factor = tau if tau.ndim > 1 else tau[:, None], self.scale[None]
        if self.logarithmic is not None:
            assert self.outer is not None and self.rate is not None
            # Nodes run from the far edge towards the end, so that no end of theirs is a fraction of 0.
            fraction = self.outer * torch.exp(along * self.rate)
            factor = factor * _where(self.logarithmic, fraction.abs(), 1.0)
            along = _where(self.logarithmic, fraction, along)
        x = torch.addcmul(self.base, along, self.extent)
        return (x, factor) if self.image is None else self.image.nodes(x, factor)

    def part(self, cells: slice | Tensor) -> Layout:
        """Return the layout of some of the cells, by a slice or by their places."""
        return Layout(*(_part(getattr(self, f.name), cells) for f in fields(self)))

    def octaves_left(self, spacing: float, nearest: float | Tensor) -> Tensor:
        """Return how many octaves closer nodes may come to the end that cells with logarithmic nodes touch.

        Until they are no farther apart than ``spacing`` times their own size, or ``nearest`` as a part of the
        piece.
        """
        assert self.outer is not None
        limit = (self.reach * spacing / self.extent).clamp_min(nearest)
        return torch.log2(self.outer.abs() / limit) - DEPTH

    @property
    def reach(self) -> Tensor:
        """How far 0 is from the end that nodes are measured from, in units of ``scale``, shape ``(n,)``.

        Rounding moves a node by up to eps times that.
        """
        return self.base.abs() if self.image is None else self.image.reach(self.base)


@dataclass(slots=True)
class _Image:
    """Which of ``n`` cells lie on infinite pieces, of which kind, measured from where (0, if from nowhere)."""

    no_lower: Tensor
    no_upper: Tensor
    from_lower: Tensor
    origin: Tensor

    def part(self, cells: slice | Tensor) -> _Image:
        """Return the same of some of the cells."""
        return _Image(*(_part(getattr(self, f.name), cells) for f in fields(self)))

    def nodes(self, place: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Map what is a fraction to x, and leave alone what is x."""
        no_lower, no_upper, from_lower = self.no_lower, self.no_upper, self.from_lower
        bounded = ~(no_lower | no_upper)
        # Placeholders keep bounded cells, where p or q may vanish, from making NaN gradients.
        p = torch.where(from_lower, place, 1.0 + place).masked_fill(bounded, 0.5)
        q = torch.where(from_lower, 1.0 - place, 0.0 - place).masked_fill(bounded, 0.5)
        up, down = (torch.where(no, t, 0.0) for no, t in ((no_upper, p / q), (no_lower, q / p)))
        slope = torch.where(no_upper, q**-2, 0.0) + torch.where(no_lower, p**-2, 0.0)
        x = torch.where(bounded, place, self.origin + up - down)
        return x, factor * torch.where(bounded, 1.0, slope)

    def reach(self, base: Tensor) -> Tensor:
        """Return the fraction's distance from its end, and that of x from 0, over dx/dfraction."""
        p, q = torch.where(self.from_lower, base, 1.0 + base), torch.where(self.from_lower, 1.0 - base, -base)
        up, down = self.no_upper.to(p.dtype), self.no_lower.to(p.dtype)
        away = base.abs() + p * q + self.origin.abs() * (up * q**2 + down * p**2)
        return torch.where(self.no_lower | self.no_upper, away, base.abs())


def _part(t: Any, cells: slice | Tensor) -> Any:
    if not isinstance(t, Tensor):
        return t.part(cells) if isinstance(t, _Image) else t
    return t[cells] if isinstance(cells, slice) else t.index_select(0, cells)


def _where(here: Tensor | bool, one: Tensor, other: Any) -> Tensor:
    """Return one where it is to be taken, or everywhere, else the other."""
    return torch.where(here, one, other) if isinstance(here, Tensor) else one


def lay_out(pieces: Pieces, row: Tensor | slice, start: Tensor, stop: Tensor, kind: Tensor | int | None) -> Layout:
    """Return the layout of cells, see :func:`place`; of cells that are all of the same kind if that is a number."""
    lower, upper = (end.to(start.dtype) for end in pieces.ends(row))
    no_lower = no_upper = None
    if pieces.infinite:
        no_lower, no_upper = lower.isinf(), upper.isinf()
        # Placeholders keep inf - inf, whose gradient is NaN, out of the branch that is not taken.
        lower, upper = lower.masked_fill(no_lower, 0.0), upper.masked_fill(no_upper, 0.0)
    span = upper - lower
    image, from_lower = None, start >= 0
    end = torch.where(from_lower, lower, upper)
    if isinstance(kind, int):  # nobody asks for nodes that are spread evenly
        base, extent = end, span
    else:
        # From one rounded end to the other, so that neighbours leave no gap: far from 0 rounding moves an end, and
        # all nodes with it, by as much as it moves a node.
        right = torch.where(stop == 1.0, upper, torch.addcmul(end, span, stop))
        middle = start == -0.5  # of the piece, which the cell before has from the lower end
        base = torch.addcmul(torch.where(middle, lower, end), span, start.masked_fill(middle, 0.5))
        extent = right - base
    if no_lower is not None and no_upper is not None:
        no_lower, no_upper = no_lower.expand(start.shape), no_upper.expand(start.shape)
        image, unbounded = _Image(no_lower, no_upper, from_lower, lower + upper), no_lower | no_upper
        image.origin = image.origin.expand(start.shape)
        base, extent = torch.where(unbounded, start, base), torch.where(unbounded, stop - start, extent)
        end, span = torch.where(unbounded, 0.0, end), torch.where(unbounded, 1.0, span)
    if kind is None:
        return Layout(base, extent, extent, image=image)
    outer, inner = torch.where(from_lower, stop, start), torch.where(from_lower, start, stop)
    # A cell that touches the end gets nodes on its outer octaves only.
    rate = (inner / outer).masked_fill(inner == 0, 2.0**-DEPTH).log()
    logarithmic, span = kind != LINEAR, span.expand(start.shape)
    scale = _where(logarithmic, -rate * span, extent)
    base, extent = _where(logarithmic, end, base), _where(logarithmic, span, extent)
    return Layout(base, extent, scale, logarithmic, outer, rate, image)
