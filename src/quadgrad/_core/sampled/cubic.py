"""Slopes at the knots of cubic splines with two continuous derivatives, for what is asked of their ends."""

from __future__ import annotations

import torch
from torch import Tensor

from quadgrad._core.broadcasting import broadcast_shapes
from quadgrad._core.sampled.tridiagonal import solve_tridiagonal

__all__ = ["End", "cubic_slopes", "periodic_slopes"]

End = tuple[int, float | Tensor] | None
"""What is asked of an end: a derivative's order, 1 or 2, and its value, ``(*batch, 1)``; None: not a knot."""

REACH = 64
"""A change at a knot is halved at the next one at least: so many away it is below double precision's spacing."""


def cubic_slopes(gaps: Tensor, secants: Tensor, start: End, stop: End) -> Tensor:
    """Return the slopes ``(*batch, n)`` of the spline with these secants over these gaps.

    Rows say that the second derivative is continuous, each divided by its diagonal (de Boor, *A Practical Guide to
    Splines*, 1978, chapter IV). Not-a-knot, a third derivative that is continuous too, would add end rows that are
    not dominated by their diagonal; their unknown is eliminated beforehand and computed last.
    """
    n = secants.shape[-1] + 1
    if n == 2:  # nothing but a line has no knot between the ends
        start, stop = start or (1, secants), stop or (1, secants)
    if n == 3 and start is None and stop is None:
        return _parabola(gaps, secants)
    lower, upper, right = _inner_rows(gaps, secants)
    if start is None:
        lower, upper, right = _merge_end(gaps, secants, lower, upper, right)
    else:
        coefficient, value = _end_row(gaps[..., :1], secants[..., :1], start)
        lower, upper, right = _put_first(0.0, lower), _put_first(coefficient, upper), _join(value, right)
    if stop is None:
        upper, lower, right = _merge_end(
            gaps.flip(-1), secants.flip(-1), upper.flip(-1), lower.flip(-1), right.flip(-1)
        )
        lower, upper, right = lower.flip(-1), upper.flip(-1), right.flip(-1)
    else:
        mirrored = stop if stop[0] == 1 else (2, -stop[1])
        coefficient, value = _end_row(gaps[..., -1:], secants[..., -1:], mirrored)
        upper = _put_first(0.0, upper.flip(-1)).flip(-1)
        lower = _put_first(coefficient, lower.flip(-1)).flip(-1)
        right = _join(right, value)
    slopes = solve_tridiagonal(lower, upper, right)
    if start is None:
        slopes = _join(_merged_slope(gaps, secants, slopes[..., :1]), slopes)
    if stop is None:
        slopes = _join(slopes, _merged_slope(gaps.flip(-1), secants.flip(-1), slopes[..., -1:]))
    return slopes


def periodic_slopes(gaps: Tensor, secants: Tensor) -> Tensor:
    """Return the slopes ``(*batch, n)`` of the spline whose last knot is its first.

    The samples are repeated beyond both ends until nothing of the ends' own is felt between them: the same system
    as for other splines, 128 rows longer, and no corner entries.
    """
    n = secants.shape[-1]
    place = torch.arange(-REACH, n + REACH, device=secants.device) % n
    slopes = solve_tridiagonal(*_inner_rows(gaps[..., place], secants[..., place]))[..., REACH - 1 : REACH - 1 + n]
    return _join(slopes, slopes[..., :1])


def _inner_rows(gaps: Tensor, secants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``h1 s0 + 2 (h0 + h1) s1 + h0 s2 = 3 (h1 m0 + h0 m1)`` of each inner knot, divided by the diagonal."""
    before, after = gaps[..., :-1], gaps[..., 1:]
    lower, upper = after / (2 * (before + after)), before / (2 * (before + after))
    return lower, upper, 3 * (lower * secants[..., :-1] + upper * secants[..., 1:])


def _end_row(gap: Tensor, secant: Tensor, end: tuple[int, float | Tensor]) -> tuple[float, Tensor]:
    """Return what multiplies the second slope, and the right side, of the first row ``(..., 1)``."""
    order, value = end
    if order == 1:
        return 0.0, secant * 0 + value
    return 0.5, (3 * secant - gap * value / 2) / 2


def _merge_end(
    gaps: Tensor, secants: Tensor, lower: Tensor, upper: Tensor, right: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace the first inner row by one without the end's slope."""
    h0, h1, m0, m1 = gaps[..., :1], gaps[..., 1:2], secants[..., :1], secants[..., 1:2]
    both = h0 + h1
    value = (h1 / both) ** 2 * m0 + (h0 / both) * ((2 * h0 + 3 * h1) / both) * m1
    return _put_first(0.0, lower[..., 1:]), _join(h0 / both, upper[..., 1:]), _join(value, right[..., 1:])


def _merged_slope(gaps: Tensor, secants: Tensor, slope: Tensor) -> Tensor:
    """Return the end's slope from that of its neighbour."""
    h0, h1, m0, m1 = gaps[..., :1], gaps[..., 1:2], secants[..., :1], secants[..., 1:2]
    both = h0 + h1
    return ((3 * h0 + 2 * h1) / both) * m0 + (h0 / h1) * (h0 / both) * m1 - both / h1 * slope


def _parabola(gaps: Tensor, secants: Tensor) -> Tensor:
    """Return the slopes of the parabola through three samples."""
    h0, h1, m0, m1 = gaps[..., :1], gaps[..., 1:], secants[..., :1], secants[..., 1:]
    middle = (h1 * m0 + h0 * m1) / (h0 + h1)
    return torch.cat((2 * m0 - middle, middle, 2 * m1 - middle), -1)


def _put_first(number: float, row: Tensor) -> Tensor:
    return torch.nn.functional.pad(row, (1, 0), value=number)


def _join(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate along the last dimension, the others broadcast."""
    rows = broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat((first.expand(*rows, -1), second.expand(*rows, -1)), -1)
