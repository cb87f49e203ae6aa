"""The trapezoidal rule: the integral, and its running value at each sample."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from quadgrad._core.keywords import names_ours
from quadgrad._core.sampled.difference import integrate
from quadgrad._core.sampled.parabolas import trapezoid_error, trapezoid_gap_errors
from quadgrad._core.sampled.running import accumulate
from quadgrad._core.sampled.samples import Samples, prepare

__all__ = ["cumulative_trapezoid", "running_trapezoids", "trapezoid", "trapezoid_sum"]


@overload
def trapezoid(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, return_error: Literal[False] = False
) -> Tensor: ...
@overload
def trapezoid(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, return_error: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@names_ours
def trapezoid(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, return_error: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Integrate samples by the trapezoidal rule, as ``scipy.integrate.trapezoid`` does.

    Parameters
    ----------
    y : Tensor
        Samples along ``dim``: real, complex or integer.
    x : Tensor, optional
        Where they are: shape ``(n,)``, the same for all rows, or one that broadcasts with y. In any order: each gap
        counts with its sign.
    dx : float or Tensor, optional
        Their spacing, where x is not given: a number, or one for each row, of size 1 along ``dim``.
    dim : int, optional
        The dimension of y along which the samples stand.
    return_error : bool, optional
        Also return an estimate of the absolute error.

    Returns
    -------
    Tensor, or (Tensor, Tensor) with ``return_error``
        Integrals of y's shape without ``dim``, differentiable any number of times with respect to y, x and dx; and
        their errors, real and without gradient: the difference from the rule on every second sample, or twice that
        from Simpson's rule, whichever is more; infinity for two samples.

    Raises
    ------
    ValueError
        Shapes that do not fit.
    TypeError
        Complex x or dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Notes
    -----
    The sum of ``(x[i+1] - x[i]) (y[i] + y[i+1]) / 2``: its error falls with the square of the spacing, and faster
    for periodic functions over a period. Half precision is summed and returned in float32; integers count as
    float64. A function that can be called is better integrated by :func:`quadgrad.quad`, which knows its error.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> x = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    >>> value, error = qg.trapezoid(x**2, x, return_error=True)
    >>> print(f"{value:.6f} {error:.1e}")
    0.333350 5.0e-05
    """
    samples = prepare(y, x, dx, dim, 0, "trapezoid")
    return integrate(trapezoid_sum, samples, return_error, trapezoid_error)


@overload
def cumulative_trapezoid(
    y: Any,
    x: Any = None,
    *,
    dx: Any = 1.0,
    dim: int = -1,
    initial: Any = None,
    return_error: Literal[False] = False,
) -> Tensor: ...
@overload
def cumulative_trapezoid(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, initial: Any = None, return_error: Literal[True]
) -> tuple[Tensor, Tensor]: ...
@names_ours
def cumulative_trapezoid(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, initial: Any = None, return_error: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Integrate samples up to each one by the trapezoidal rule, as ``scipy.integrate.cumulative_trapezoid`` does.

    Parameters
    ----------
    y, x, dx, dim
        As in :func:`trapezoid`; at least one sample.
    initial : float or Tensor, optional
        The integral at the first sample: it is put in front and added to the others. A number, or one for each row,
        of size 1 along ``dim``. By default results begin with the second sample.
    return_error : bool, optional
        Also return an estimate of the absolute error of each.

    Returns
    -------
    Tensor, or (Tensor, Tensor) with ``return_error``
        Of y's shape, with one less along ``dim`` unless ``initial`` is given; differentiable. Errors are real,
        without gradient: what the parabolas through each gap's neighbours add to the trapezoids, added up without
        signs.

    Raises
    ------
    ValueError
        No samples, or shapes that do not fit.
    TypeError
        Complex x or dx, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> qg.cumulative_trapezoid(torch.tensor([1.0, 2.0, 4.0]), dx=0.5, initial=0.0)
    tensor([0.0000, 0.7500, 2.2500])
    """
    samples = prepare(y, x, dx, dim, 1, "cumulative_trapezoid")
    running = running_trapezoids(samples)
    return accumulate(samples, running, initial, trapezoid_gap_errors if return_error else None)


def trapezoid_sum(samples: Samples) -> Tensor:
    """Return the trapezoidal rule's integrals, ``(*batch, 1)``, before dx."""
    places = () if samples.x is None else (samples.x,)
    return torch.trapezoid(samples.y, *places, dim=-1).unsqueeze(-1)


def running_trapezoids(samples: Samples) -> Tensor:
    """Return them up to each sample but the first, ``(*batch, n - 1)``, before dx."""
    places = () if samples.x is None else (samples.x,)
    return torch.cumulative_trapezoid(samples.y, *places, dim=-1)
