"""Splines through samples: their values, and their integrals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from quadgrad._core.broadcasting import broadcast_shapes
from quadgrad._core.keywords import names_ours
from quadgrad._core.lanes import plain
from quadgrad._core.misuse import NotItsValue
from quadgrad._core.printing import Printed, counted
from quadgrad._core.sampled.cubic import End, cubic_slopes, periodic_slopes
from quadgrad._core.sampled.local_slopes import akima_slopes, pchip_slopes
from quadgrad._core.sampled.piecewise import Pieces
from quadgrad._core.sampled.samples import (
    Samples,
    as_real,
    as_tensor,
    prepare,
    real_epsilon,
    require,
    require_increasing,
)

__all__ = ["Spline", "spline"]

ENDS: dict[str, End] = {"not-a-knot": None, "natural": (2, 0.0), "clamped": (1, 0.0)}
LOCAL = ("akima", "makima", "pchip")
KINDS = (*ENDS, "periodic", *LOCAL)


@names_ours
def spline(
    y: Any, x: Any = None, *, dx: Any = 1.0, dim: int = -1, kind: Any = "not-a-knot", extrapolate: Any = None
) -> Spline:
    """Return the spline through samples, which can be evaluated and integrated.

    Parameters
    ----------
    y : Tensor
        Samples along ``dim``, two at least: real, complex (Akima's and PCHIP real only) or integer.
    x : Tensor, optional
        The knots, increasing: shape ``(n,)``, the same for all rows, or one that broadcasts with y.
    dx : float or Tensor, optional
        Their spacing, where x is not given; the first knot is then 0. A number, or one for each row, of size 1
        along ``dim``.
    dim : int, optional
        The dimension of y along which the samples stand.
    kind : str or pair, optional
        Two continuous derivatives: ``"not-a-knot"`` (default; the third too at the second and last but one knot),
        ``"natural"`` (second derivative 0 at the ends), ``"clamped"`` (first derivative 0), ``"periodic"`` (the
        last sample must equal the first), or a pair, one for each end, of these (but periodic) or of ``(order,
        value)``: the first or second derivative, a number or a tensor of the batch's shape. One continuous
        derivative, from a few neighbours: ``"akima"``, ``"makima"`` (modified, overshoots less), ``"pchip"``
        (monotone where the samples are).
    extrapolate : bool or "periodic", optional
        Beyond the knots: the first and last pieces go on (True), NaN (False), or the spline repeats. By default as
        in SciPy: periodic splines repeat, Akima's end, all others go on.

    Returns
    -------
    Spline
        ``s(t)`` evaluates it, ``s.integral(a, b)`` integrates it, ``s.cumulative(t)`` gives the integral up to t.

    Raises
    ------
    ValueError
        Shapes that do not fit, fewer than two samples, an unknown kind, x that does not increase (repeated or
        unsorted), NaN or infinity in x or y, ends of a periodic spline that differ. In a compiled function, which
        cannot look at numbers, the result is NaN instead.
    TypeError
        Complex x or dx, complex y where that has no meaning, or what is no tensor of numbers.
    IndexError
        y has no such ``dim``.

    Notes
    -----
    Values are those of ``scipy.interpolate.CubicSpline``, ``Akima1DInterpolator`` and ``PchipInterpolator``;
    Akima's rule for flat data compares with the row's own largest slope, SciPy's with that of all rows. Everything
    is differentiable any number of times with respect to y, x, dx, end values, t and limits. Memory and time are
    linear in the number of knots: slopes come from seven halvings of the tridiagonal system, not from a loop.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> x = torch.linspace(0.0, 3.0, 20, dtype=torch.float64)
    >>> s = qg.spline(torch.sin(x), x)
    >>> print(f"{s.integral():.6f} {s.integral(1.0, 2.0):.6f} {s(1.5):.6f}")
    1.989991 0.956448 0.997493
    >>> s.cumulative().shape
    torch.Size([20])
    """
    samples = prepare(y, x, dx, dim, 2, "spline")
    if samples.x is None:
        steps = torch.arange(samples.count, dtype=samples.y.real.dtype, device=samples.y.device)
        samples = Samples(samples.y, steps * samples.dx, 1.0, samples.dim)
    if extrapolate not in (None, True, False, "periodic"):
        raise ValueError(f"extrapolate={extrapolate!r} must be True, False or 'periodic'")
    if extrapolate is None:
        extrapolate = "periodic" if kind == "periodic" else kind not in ("akima", "makima")
    return Spline(_pieces(samples, kind), samples.dim, kind, extrapolate)


class Spline(NotItsValue, Printed):
    """A cubic spline through samples, from :func:`quadgrad.spline`.

    Attributes
    ----------
    x : Tensor, shape ``(n,)`` or ``(*batch, n)``
        The knots.
    y, slopes : Tensor, shape ``(*batch, n)``
        The values there and the first derivatives.
    dim : int
        Where the samples stood in the caller's y, counted from its end.
    kind, extrapolate : object
        As they were asked for.

    Notes
    -----
    The batch is y's shape without ``dim``.
    """

    its_value = "S(x)"
    its_array = "S(x).numpy(force=True)"

    def __init__(self, pieces: Pieces, dim: int, kind: Any, extrapolate: bool | str) -> None:
        self._pieces = pieces
        self.dim, self.kind, self.extrapolate = dim, kind, extrapolate

    @property
    def x(self) -> Tensor:
        """The knots."""
        return self._pieces.x

    @property
    def y(self) -> Tensor:
        """The values at the knots, which stand along the last dimension."""
        return self._pieces.y

    @property
    def slopes(self) -> Tensor:
        """The first derivatives at the knots, which stand along the last dimension."""
        return self._pieces.slopes

    def __call__(self, t: Any, nu: int = 0) -> Tensor:
        """Return values, or a derivative.

        Parameters
        ----------
        t : float or Tensor
            Where: a number; shape ``(m,)``, the same places for all rows; or one for each row, a shape that
            broadcasts with y but along ``dim``. If y has one dimension only, any shape.
        nu : int, optional
            The order of the derivative.

        Returns
        -------
        Tensor
            Of y's shape, with t's places along ``dim``; without ``dim`` if t is a number.

        Raises
        ------
        ValueError
            t has another shape, nu is negative.
        TypeError
            t is complex.
        """
        if not isinstance(nu, int) or nu < 0:
            raise ValueError(f"nu={nu!r} must be an integer, zero or positive: the order of the derivative")
        return self._at(t, lambda places: self._pieces.value(self._wrapped(places)[0], nu))

    def cumulative(self, t: Any = None) -> Tensor:
        """Return the integral from the first knot to t.

        Parameters
        ----------
        t : float or Tensor, optional
            As in a call of the spline; by default each knot: the result then has y's shape and begins with 0.

        Returns
        -------
        Tensor
            Shaped as values are.

        Raises
        ------
        ValueError
            t has another shape.
        TypeError
            t is complex.
        """
        if t is None:
            return self._pieces.knot_integrals().movedim(-1, self.dim)

        def integral(places: Tensor) -> Tensor:
            places, periods = self._wrapped(places)
            value = self._pieces.antiderivative(places)
            return value if periods is None else value + periods * self._pieces.whole()

        return self._at(t, integral)

    def integral(self, a: Any = None, b: Any = None) -> Tensor:
        """Return the integral from a to b.

        Parameters
        ----------
        a, b : float or Tensor, optional
            Limits that broadcast with the batch; by default the first and the last knot. ``a > b`` gives minus the
            integral with the limits swapped.

        Returns
        -------
        Tensor, shape ``broadcast(batch, a, b)``
            Differentiable with respect to the limits as well.

        Raises
        ------
        ValueError
            Limits that are NaN or do not broadcast.
        TypeError
            Complex limits.
        """
        if a is None and b is None:
            return self._pieces.whole()[..., 0]
        batch = self.y.shape[:-1]
        ends = [
            self._limit(name, self.x[..., place] if end is None else end)
            for name, end, place in (("a", a, 0), ("b", b, -1))
        ]
        try:
            shape = broadcast_shapes(batch, *(end.shape for end in ends))
        except RuntimeError:
            shown = ", ".join(f"{n} {tuple(end.shape)}" for n, end in zip("ab", ends, strict=True))
            raise ValueError(f"limits do not broadcast with the batch of splines {tuple(batch)}: {shown}") from None
        # Dimensions in front of the batch's are so many integrals of each spline: they go where its places stand.
        front = len(shape) - len(batch)
        own = shape[front:]
        lower, upper = (end.expand(shape).reshape(shape[:front].numel(), *own).movedim(0, -1) for end in ends)
        lower, first = self._wrapped(lower)
        upper, last = self._wrapped(upper)
        value = self._pieces.between(lower, upper)
        if first is not None and last is not None:
            value = value + (last - first) * self._pieces.whole()
        return value.movedim(-1, 0).reshape(shape)

    def _at(self, t: Any, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Call the function with places along the last dimension, and give what it returns the caller's shape."""
        t = as_real("t", t, self.x.device).to(self.x.dtype)
        ndim = self.y.ndim
        if ndim == 1:
            return function(t.reshape(-1)).reshape(t.shape)
        if t.ndim <= 1:
            value = function(t.reshape(-1)).movedim(-1, self.dim)
            return value if t.ndim else value.squeeze(self.dim)
        shape = t.movedim(self.dim, -1).shape[:-1] if t.ndim == ndim else None
        if shape is None or not all(p == q or 1 in (p, q) for p, q in zip(shape, self.y.shape[:-1], strict=True)):
            raise ValueError(
                f"t of shape {tuple(t.shape)} fits no spline through y of shape {self._shown()}: give a number, "
                f"shape (m,) for all rows, or one that broadcasts with y but along dim={self.dim}"
            )
        return function(t.movedim(self.dim, -1)).movedim(-1, self.dim)

    def _limit(self, name: str, value: Any) -> Tensor:
        end = as_real(name, value, self.x.device).to(self.x.dtype)
        return require(~end.isnan().unsqueeze(-1), end.unsqueeze(-1), lambda: f"limit {name} is NaN").squeeze(-1)

    def _wrapped(self, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return places as extrapolation has them, and how many periods they were away."""
        if self.extrapolate is True:
            return t, None
        start, stop = self.x[..., :1], self.x[..., -1:]
        if self.extrapolate is False:
            return torch.where((t >= start) & (t <= stop), t, torch.nan), None
        period = stop - start
        periods = ((t - start) / period).detach().floor()
        return t - periods * period, periods

    def _shown(self) -> tuple[int, ...]:
        return tuple(self.y.movedim(-1, self.dim).shape)

    def _facts(self) -> tuple[str, dict[str, str]]:
        knots, batch = self.y.shape[-1], math.prod(self.y.shape[:-1])
        heading = f"{counted(batch, 'spline')} through {counted(knots, 'knot')}"
        return heading, {"kind": str(self.kind), "batch": str(tuple(self.y.shape[:-1])), "dtype": str(self.y.dtype)}


def _pieces(samples: Samples, kind: Any) -> Pieces:
    """Check the samples and return the pieces."""
    gaps = require_increasing(samples, "spline")
    y, x = samples.y, cast(Tensor, samples.x)
    y = y.expand(*broadcast_shapes(y.shape[:-1], x.shape[:-1]), -1)
    y = require(y.isfinite(), y, lambda: _not_finite(y))
    secants = y.diff(dim=-1) / gaps
    if isinstance(kind, str) and kind in LOCAL:
        if y.is_complex():
            raise TypeError(f"kind={kind!r} compares slopes, so y must be real: take y.real and y.imag one by one")
        slopes = pchip_slopes(gaps, secants) if kind == "pchip" else akima_slopes(secants, kind == "makima")
    elif isinstance(kind, str) and kind == "periodic":
        closed = (y[..., :1] - y[..., -1:]).abs() <= 4 * real_epsilon(y) * y.abs().amax(-1, keepdim=True)
        secants = require(closed, secants, lambda: _not_closed(y))
        slopes = periodic_slopes(gaps, secants)
    else:
        start, stop = _ends(kind, y)
        slopes = cubic_slopes(gaps, secants, start, stop)
    return Pieces(x, y, slopes)


def _ends(kind: Any, y: Tensor) -> tuple[End, End]:
    """Return what is asked of either end."""
    if isinstance(kind, str):
        if kind not in ENDS:
            raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}, or a pair of ends")
        return ENDS[kind], ENDS[kind]
    if not isinstance(kind, tuple | list) or len(kind) != 2:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}, or a pair: what is asked of either end")
    start, stop = (_end(end, y) for end in kind)
    return start, stop


def _end(end: Any, y: Tensor) -> End:
    if isinstance(end, str):
        if end not in ENDS:
            raise ValueError(f"kind has {end!r} for one end: an end is one of {', '.join(ENDS)}, or (order, value)")
        return ENDS[end]
    if not isinstance(end, tuple | list) or len(end) != 2 or end[0] not in (1, 2):
        raise ValueError(f"kind has {end!r} for one end: a derivative is given as (1, value) or (2, value)")
    value, batch = as_tensor("kind", end[1], y.device), tuple(y.shape[:-1])
    if not all(p in (1, q) for p, q in zip(value.shape[::-1], batch[::-1], strict=False)) or value.ndim > len(
        batch
    ):
        raise ValueError(
            f"kind has a derivative of shape {tuple(value.shape)} for one end of a batch of splines {batch}: "
            "it must broadcast to the batch"
        )
    return end[0], value.unsqueeze(-1)


def _not_finite(y: Tensor) -> str:
    bad = (~plain(y).isfinite()).nonzero()
    where = tuple(bad[0].tolist())
    return (
        f"spline needs finite samples, but y is {plain(y)[where].item()} at index {where}, samples last "
        f"({bad.shape[0]} of {y.numel()} are not finite): leave those samples out"
    )


def _not_closed(y: Tensor) -> str:
    ends = plain(y)[..., [0, -1]].reshape(-1, 2)
    first, last = ends[(ends[:, 0] - ends[:, 1]).abs().argmax()].tolist()
    return (
        f"a periodic spline's last sample must equal its first, but {first!r} and {last!r} differ: repeat the "
        "first sample at the end of the period, or choose another kind"
    )
