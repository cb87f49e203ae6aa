"""Slopes at the knots from a few neighbours: Akima's and PCHIP's, finite with their derivatives on any data.

Where a formula divides by what may be 0, the divisor is replaced before, not the quotient after: ``torch.where``
would multiply the infinite derivative of the branch not taken by 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["akima_slopes", "pchip_slopes"]

FLAT = 1e-9
"""Akima's weights, as a share of a row's largest, below which a slope counts as undetermined: SciPy's."""


def akima_slopes(secants: Tensor, modified: bool) -> Tensor:
    """Return Akima's slopes ``(*batch, n)`` (*J. ACM* 17, 1970), or the modified ones, which overshoot less.

    A secant is weighed by how little those on the other side differ. Where neither side differs at all, the mean of
    the outer two is taken, as SciPy does.
    """
    if secants.shape[-1] == 1:
        return secants.expand(*secants.shape[:-1], 2)
    after = 2 * secants[..., -1:] - secants[..., -2:-1]
    before = 2 * secants[..., :1] - secants[..., 1:2]
    m = torch.cat((2 * before - secants[..., :1], before, secants, after, 2 * after - secants[..., -1:]), -1)
    weights = m.diff(dim=-1).abs()
    if modified:
        weights = weights + (m[..., 1:] + m[..., :-1]).abs() / 2
    right, left = weights[..., 2:], weights[..., :-2]
    both = left + right
    flat = both <= FLAT * both.detach().amax(-1, keepdim=True)
    share = left / torch.where(flat, 1.0, both)
    near = m[..., 1:-2] + share * (m[..., 2:-1] - m[..., 1:-2])
    return torch.where(flat, (m[..., 3:] + m[..., :-3]) / 2, near)


def pchip_slopes(gaps: Tensor, secants: Tensor) -> Tensor:
    """Return the slopes ``(*batch, n)`` of the cubic that is monotone where the samples are.

    Weighted harmonic means of the secants (Fritsch and Butland, *SIAM J. Sci. Stat. Comput.* 5, 1984), 0 at an
    extremum of the samples; at the ends the three-point formula, held back (Moler, *Numerical Computing with
    MATLAB*, 2004).
    """
    if secants.shape[-1] == 1:
        return secants.expand(*secants.shape[:-1], 2)
    inner = _harmonic_means(gaps, secants)
    start = _end_slope(gaps[..., :1], gaps[..., 1:2], secants[..., :1], secants[..., 1:2])
    stop = _end_slope(gaps[..., -1:], gaps[..., -2:-1], secants[..., -1:], secants[..., -2:-1])
    return torch.cat((start, inner, stop), -1)


def _harmonic_means(gaps: Tensor, secants: Tensor) -> Tensor:
    """Return the slope at each inner knot.

    The mean is a quotient by the larger secant: reciprocals of a small one would overflow, and their derivatives
    first.
    """
    m0, m1 = secants[..., :-1], secants[..., 1:]
    w0, w1 = gaps[..., :-1] + 2 * gaps[..., 1:], 2 * gaps[..., :-1] + gaps[..., 1:]
    w0, w1 = w0 / (w0 + w1), w1 / (w0 + w1)
    same = m0.sign() * m1.sign() > 0
    first = m0.abs() <= m1.abs()
    small, large = torch.where(first, m0, m1), torch.where(first, m1, m0)
    own, other = torch.where(first, w0, w1), torch.where(first, w1, w0)
    return torch.where(same, small / (own + other * (small / torch.where(same, large, 1.0))), 0.0)


def _end_slope(h0: Tensor, h1: Tensor, m0: Tensor, m1: Tensor) -> Tensor:
    """Return the slope at an end from its two secants."""
    slope = m0 + (m0 - m1) * (h0 / (h0 + h1))
    steep = (m0.sign() != m1.sign()) & (slope.abs() > 3 * m0.abs())
    return torch.where(slope.sign() == m0.sign(), torch.where(steep, 3 * m0, slope), 0.0)
