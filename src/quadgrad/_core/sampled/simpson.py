"""Simpson's rule for any number of samples, evenly spaced or not: the integral, and its running value."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from quadgrad._core.keywords import names_ours
from quadgrad._core.sampled.difference import integrate
from quadgrad._core.sampled.parabolas import bends, divisor, simpson_error, simpson_gap_errors
from quadgrad._core.sampled.running import accumulate
from quadgrad._core.sampled.samples import Samples, prepare, require_increasing
from quadgrad._core.sampled.trapezoid import running_trapezoids, trapezoid_sum
from quadgrad._core.tolerance import real_dtype

__all__ = ["cumulative_simpson", "simpson"]


@overload
def simpson(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, return_error: Literal[False] = False
) -> Tensor: ...
@overload
def simpson(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, return_error: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@names_ours
def simpson(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, return_error: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Integrate samples by Simpson's rule, as ``scipy.integrate.simpson`` does: any number of them, uneven too.

    Parameters
    ----------
    y, x, dx, dim
        As in :func:`trapezoid`; at least one sample. x may decrease; a gap of 0 is passed over, with its pair.
    return_error : bool, optional
        Also return an estimate of the absolute error.

    Returns
    -------
    Tensor, or (Tensor, Tensor) with ``return_error``
        Integrals of y's shape without ``dim``, differentiable any number of times with respect to y, x and dx; and
        their errors, real and without gradient: the difference from the rule on every second sample, or twice what
        third differences say, whichever is more; infinity for two samples.

    Raises
    ------
    ValueError
        No samples, or shapes that do not fit.
    TypeError
        Complex x or dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Notes
    -----
    A parabola through each pair of gaps; of an even number of samples the last gap is integrated by the parabola
    through the last three (K. V. Cartwright, *Journal of Mathematical Sciences and Mathematics Education* 12,
    2017). The error falls with the fourth power of an even spacing, one power less for an even number of samples.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> x = torch.linspace(0.0, 1.0, 10, dtype=torch.float64) ** 2
    >>> value, error = qg.simpson(x.exp(), x, return_error=True)
    >>> print(f"{value:.6f} {error:.1e}")
    1.718490 1.7e-03
    """
    samples = prepare(y, x, dx, dim, 1, "simpson")
    return integrate(simpson_sum, samples, return_error, simpson_error)


@overload
def cumulative_simpson(
    y: Any,
    x: Any = None,
    *,
    dx: Any = 1.0,
    dim: int = -1,
    initial: Any = None,
    return_error: Literal[False] = False,
) -> Tensor: ...
@overload
def cumulative_simpson(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, initial: Any = None, return_error: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@names_ours
def cumulative_simpson(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, initial: Any = None, return_error: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Integrate samples up to each of them by Simpson's rule, as ``scipy.integrate.cumulative_simpson`` does.

    Parameters
    ----------
    y, x, dx, dim
        As in :func:`trapezoid`; at least one sample. x must increase where there are three samples or more.
    initial : float or Tensor, optional
        The integral at the first sample: it is put in front and added to the others. A number, or one for each row,
        of size 1 along ``dim``. By default results begin with the second sample.
    return_error : bool, optional
        Also return an estimate of the absolute error of each.

    Returns
    -------
    Tensor, or (Tensor, Tensor) with ``return_error``
        Of y's shape, with one less along ``dim`` unless ``initial`` is given; differentiable. Errors are real,
        without gradient: the difference of the two parabolas that share a gap, added up without signs.

    Raises
    ------
    ValueError
        No samples, shapes that do not fit, or x that does not increase. In a compiled function, which cannot look
        at numbers, the result is NaN instead.
    TypeError
        Complex x or dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Notes
    -----
    Over each gap the parabola of its pair, that of the last three samples over a last gap without one (Cartwright's
    equation 8, 2017). Fewer than three samples are integrated by the trapezoidal rule.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> x = torch.tensor([0.0, 1.0, 2.0, 4.0])
    >>> qg.cumulative_simpson(x**2, x)
    tensor([ 0.3333,  2.6667, 21.3333])
    """
    samples = prepare(y, x, dx, dim, 1, "cumulative_simpson")
    running = running_trapezoids(samples)
    if samples.count >= 3:
        gaps = None if samples.x is None else require_increasing(samples, "cumulative_simpson")
        running = running - bends(samples.y, gaps).cumsum(-1)
    return accumulate(samples, running, initial, simpson_gap_errors if return_error else None)


def simpson_sum(samples: Samples) -> Tensor:
    """Return Simpson's integrals, ``(*batch, 1)``, before dx."""
    if samples.count <= 2:
        return trapezoid_sum(samples)
    gaps, y = samples.gaps, samples.y
    if gaps is None:
        weights = _even_weights(samples.count, dtype=real_dtype(y.dtype), device=y.device)
        return (weights * y).sum(-1, keepdim=True) / 3
    total = _pairs(gaps, y).sum(-1, keepdim=True)
    return total if samples.count % 2 else total + _last_gap(gaps, y)


def _even_weights(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return three times the weights of three samples or more with spacing 1: these numbers have no rounding."""
    weights = torch.full((n,), 2.0, dtype=dtype, device=device)
    weights[1::2] = 4.0
    weights[0] = 1.0
    if n % 2:
        weights[-1] = 1.0
    else:
        weights[-3:] = torch.tensor([4.0 - 0.25, 1.0 + 2.0, 1.25], dtype=dtype, device=device)
    return weights


def _pairs(gaps: Tensor, y: Tensor) -> Tensor:
    """Return the integral over each pair of gaps, of the parabola through its three samples."""
    even = gaps.shape[-1] - gaps.shape[-1] % 2
    first, second = gaps[..., 0:even:2], gaps[..., 1:even:2]
    both, under_first, under_second = first + second, divisor(first), divisor(second)
    left = (2.0 - second / under_first) * y[..., 0:even:2]
    middle = (both / under_first) * (both / under_second) * y[..., 1:even:2]
    right = (2.0 - first / under_second) * y[..., 2 : even + 1 : 2]
    return both * (left + middle + right) / 6


def _last_gap(gaps: Tensor, y: Tensor) -> Tensor:
    """Return the integral over the last gap, of the parabola through the last three samples (Cartwright's)."""
    before, last = gaps[..., -2:-1], gaps[..., -1:]
    both, under = divisor(before + last), divisor(before)
    right = (2 * last + 3 * before) / both * y[..., -1:]
    middle = (last + 3 * before) / under * y[..., -2:-1]
    return last * (right + middle - (last / under) * (last / both) * y[..., -3:-2]) / 6
