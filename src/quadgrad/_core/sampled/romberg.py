"""Romberg's rule: trapezoids of all spacings that the samples allow, extrapolated to spacing 0."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from quadgrad._core.keywords import names_ours
from quadgrad._core.sampled.difference import integrate
from quadgrad._core.sampled.samples import Samples, prepare

__all__ = ["romb"]


@overload
def romb(y: Any, *, dx: Any = 1.0, dim: int = -1, return_error: Literal[False] = False) -> Tensor: ...
@overload
def romb(y: Any, *, dx: Any = 1.0, dim: int = -1, return_error: Literal[True]) -> tuple[Tensor, Tensor]: ...
@names_ours
def romb(y: Any, *, dx: Any = 1.0, dim: int = -1, return_error: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """Integrate ``2^k + 1`` evenly spaced samples by Romberg's rule, as ``scipy.integrate.romb`` does.

    Parameters
    ----------
    y, dx, dim
        As in :func:`trapezoid`; 2, 3, 5, 9, 17 ... samples.
    return_error : bool, optional
        Also return an estimate of the absolute error.

    Returns
    -------
    Tensor, or (Tensor, Tensor) with ``return_error``
        Integrals of y's shape without ``dim``, differentiable with respect to y and dx; and their errors, real and
        without gradient: the difference from the rule on every second sample, infinity for two samples.

    Raises
    ------
    ValueError
        Another number of samples, or shapes that do not fit.
    TypeError
        Complex dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Notes
    -----
    Richardson's extrapolation of trapezoidal sums in the square of the spacing (W. Romberg, *Det Kongelige Norske
    Videnskabers Selskabs Forhandlinger* 28, 1955), written as one sum: the value at 0 of the polynomial through all
    of them.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> x = torch.linspace(0.0, 1.0, 17, dtype=torch.float64)
    >>> value, error = qg.romb(torch.exp(x), dx=1 / 16, return_error=True)
    >>> print(f"{value:.12f} {error:.1e}")
    1.718281828459 3.4e-10
    """
    samples = prepare(y, None, dx, dim, 2, "romb")
    n = samples.count - 1
    if n & (n - 1):
        raise ValueError(
            f"romb needs 2^k + 1 samples (2, 3, 5, 9, 17 ...), but y has {n + 1} along dim={samples.dim}. "
            "Simpson's rule takes any number"
        )
    return integrate(romberg_sum, samples, return_error)


def romberg_sum(samples: Samples) -> Tensor:
    """Return Romberg's integrals, ``(*batch, 1)``, before dx."""
    y = samples.y
    levels = (samples.count - 1).bit_length() - 1
    inner = (y[..., :1] + y[..., -1:]) / 2
    total = torch.zeros_like(inner)
    for level, share in enumerate(_shares(levels)):
        step = 1 << (levels - level)
        if level:  # the samples between those of wider spacings
            inner = inner + y[..., step :: 2 * step].sum(-1, keepdim=True)
        total = total + share * step * inner
    return total


def _shares(levels: int) -> list[float]:
    """Return what the trapezoidal sum of each spacing counts in the extrapolated value, the widest first."""
    squares = [0.25**level for level in range(levels + 1)]
    return [math.prod([o / (o - own) for o in squares if o != own]) for own in squares]
