"""Tridiagonal systems, many at once, in ordinary torch: differentiable any number of times, and compiled.

It knows nothing of splines, but relies on what their systems have: a diagonal that dominates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["LEVELS", "interleave", "solve_tridiagonal"]

LEVELS = 7
"""After so many halvings 128 rows lie between two unknowns. Where the diagonal is at least twice the sum of the
other entries (an end's row may have less), each row passes on at most half of what reaches it: 2^-127 is left."""


def solve_tridiagonal(lower: Tensor, upper: Tensor, right: Tensor, levels: int = LEVELS) -> Tensor:
    """Solve ``lower[i] s[i-1] + s[i] + upper[i] s[i+1] = right[i]``, s being 0 beyond both ends.

    Cyclic reduction (Hockney, *J. ACM* 12, 1965): every second unknown is eliminated, and the system that is left
    is half as large and dominated more. A loop over rows would be n dependent steps, each a node of autograd's
    graph; here are seven levels of a few operations whatever n is, on n + n/2 + n/4 ... numbers.

    Parameters
    ----------
    lower, upper : Tensor, shape ``(n,)`` or ``(*batch, n)``
        Entries beside the diagonal, which is 1.
    right : Tensor, shape ``(*batch, n)``
        Real or complex.
    levels : int
        How many more halvings are made.
    """
    n = right.shape[-1]
    if n <= 1 or levels == 0:
        return right
    if n % 2 == 0:  # a row that says s = 0, so that each row kept has a neighbour on either side
        lower, upper, right = (pad(t, (0, 1)) for t in (lower, upper, right))
    (lower_out, lower_in), (upper_out, upper_in), (right_out, right_in) = (
        (t[..., ::2], t[..., 1::2]) for t in (lower, upper, right)
    )
    diagonal = 1 - lower_in * upper_out[..., :-1] - upper_in * lower_out[..., 1:]
    inner = solve_tridiagonal(
        -lower_in * lower_out[..., :-1] / diagonal,
        -upper_in * upper_out[..., 1:] / diagonal,
        (right_in - lower_in * right_out[..., :-1] - upper_in * right_out[..., 1:]) / diagonal,
        levels - 1,
    )
    after = pad(inner, (0, 1))
    return interleave(right_out - lower_out * pad(inner, (1, 0)) - upper_out * after, after)[..., :n]


def interleave(even: Tensor, odd: Tensor) -> Tensor:
    """Return ``even[0], odd[0], even[1], odd[1] ...`` along the last dimension."""
    return torch.stack((even, odd), -1).flatten(-2)
