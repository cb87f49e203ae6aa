"""Random integrals whose values and derivatives are known: what a family draws, and its exact numbers.

A family gives a closed form in mpmath. Values are that form at the very floats that quad is given, in 50
digits, rounded once: 1/2 ulp. Derivatives are its central differences with a relative step of 1e-30 in 120
digits, by limits in 420 (an integrand may be 1e-300 of its integral there): 40 digits or more are right before
they are rounded once. So each has the same accuracy, and no formula of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mpmath as mp
import torch
from torch import Tensor

from benchmarks import families

__all__ = ["Draw", "Family", "Sample", "join"]

DIGITS, STEP = 50, mp.mpf(10) ** -30
FINE_DIGITS, LIMIT_DIGITS = 120, 420


@dataclass(frozen=True)
class Draw(families.Draw):
    """Random numbers for a family, whose interval, side and kinds stay the same however often they are drawn.

    So two samples of one family have the same limits, and what lies between their parameters is of the family, too.
    """

    same: dict[str, Any] = field(default_factory=dict[str, Any])

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self.same:
            self.same[name] = make()
        return self.same[name]

    def interval(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return limits a < b at any scale, up to five lengths away from 0, and the length."""
        return self._once("interval", super().interval)

    def length(self, low: float = -3.0, high: float = 3.0) -> Tensor:
        """Return a length in the given decades."""
        return self._once("length", lambda: self.decades(low, high))

    def side(self) -> Tensor:
        """Return 1 or -1."""
        return self._once("side", self.sign)

    def kind(self, count: int) -> Tensor:
        """Return one of 0, 1 ... ``count - 1``, as float64."""
        return self._once("kind", lambda: self.uniform(0, count).floor().clamp(max=count - 1))


@dataclass(frozen=True)
class Sample:
    """Integrals drawn from a family.

    Attributes
    ----------
    f : callable
        ``f(x, *args)``, in torch.
    a, b : Tensor, shape (n,)
        Limits.
    args : tuple of Tensor, shape (n,)
        The parameters.
    closed_form : callable
        ``closed_form(a, b, *args)`` in mpmath; a list of numbers where f has events.
    points : callable or None
        The breakpoints, ``(n, k)``, from the parameters: where these require grad the breakpoints move.
    jumps : callable or None
        What changes sign where f jumps, as for ``quad(jumps=)``.
    log_f : callable or None
        The logarithm of f.
    without : callable or None
        f without its hidden feature. What differs from it nowhere that f was called cannot be seen.
    wrt : tuple of int or None
        Places of the parameters whose derivatives are claimed; None for all.
    ends : bool
        Whether derivatives with respect to finite limits are claimed.
    single : bool
        Whether float32 can hold f.
    coarse : callable or None
        Returns the parameters that float32 can hold, from limits and parameters: nothing narrower than its grid.
    finest : float
        The finest relative tolerance that f in floating point allows, where that is no rounding of single values.
    """

    f: Callable[..., Tensor]
    a: Tensor
    b: Tensor
    args: tuple[Tensor, ...]
    closed_form: Callable[..., Any]
    points: Callable[..., Tensor] | None = None
    jumps: Callable[..., Tensor] | None = None
    log_f: Callable[..., Tensor] | None = None
    without: Callable[..., Tensor] | None = None
    wrt: tuple[int, ...] | None = None
    ends: bool = True
    single: bool = True
    coarse: Callable[..., tuple[Tensor, ...]] | None = None
    finest: float = 0.0

    @property
    def count(self) -> int:
        return self.a.numel()

    @property
    def variables(self) -> tuple[int, ...]:
        """Places of the parameters whose derivatives are claimed."""
        return tuple(range(len(self.args))) if self.wrt is None else self.wrt

    def part(self, which: Any) -> Sample:
        """Return some of the integrals, by a slice."""
        return replace(self, a=self.a[which], b=self.b[which], args=tuple(arg[which] for arg in self.args))

    def marks(self, args: Sequence[Tensor] | None = None) -> Tensor | None:
        """Return the breakpoints that go with parameters."""
        return None if self.points is None else self.points(*(self.args if args is None else args))

    def to(self, dtype: torch.dtype) -> Sample:
        """Return the integrals with limits and parameters rounded to another dtype."""
        args = self.args if self.coarse is None else self.coarse(self.a, self.b, *self.args)
        return replace(self, a=self.a.to(dtype), b=self.b.to(dtype), args=tuple(arg.to(dtype) for arg in args))

    def logarithm(self) -> Sample:
        """Return the integrals with f given by its logarithm."""
        assert self.log_f is not None
        return replace(self, f=self.log_f)

    def reversed(self) -> Sample:
        """Return the integrals from b to a."""
        closed = self.closed_form
        return replace(self, a=self.b, b=self.a, closed_form=lambda a, b, *args: -closed(b, a, *args))

    def towards(self, other: Sample, share: float) -> Sample:
        """Return integrals whose parameters lie between these and those of another sample."""
        args = tuple(p if p is q else p + share * (q - p) for p, q in zip(self.args, other.args, strict=True))
        return replace(self, args=args)

    def exact(self, log: bool = False) -> Tensor:
        """Return the values, ``(n,)`` or ``(n, events)``, or their logarithms; float64 or complex128."""
        with mp.workdps(DIGITS):
            return _tensor([_map(mp.log if log else _same, self.closed_form(*row)) for row in self._rows()])

    def slope(self, place: int, log: bool = False) -> Tensor:
        """Return the derivatives with respect to a limit (place 0 and 1) or a parameter (from 2 on)."""
        slopes: list[Any] = []
        with mp.workdps(LIMIT_DIGITS if place < 2 else FINE_DIGITS):
            for row in self._rows():
                length = abs(row[1] - row[0])
                scale = length if place < 2 and mp.isfinite(length) else mp.mpf(10) ** -20
                step = STEP * max(abs(row[place]), scale)
                up, down = ([*row[:place], row[place] + way * step, *row[place + 1 :]] for way in (1, -1))
                high, low = (_list(self.closed_form(*moved)) for moved in (up, down))
                size = _list(self.closed_form(*row)) if log else [mp.mpf(1)] * len(high)
                slopes.append([(up - down) / (2 * step) / s for up, down, s in zip(high, low, size, strict=True)])
            slope = _tensor(slopes)
        return slope[:, 0] if slope.shape[-1] == 1 else slope

    def _rows(self) -> list[list[Any]]:
        columns = [t.double().tolist() for t in (self.a, self.b, *self.args)]
        return [[mp.mpf(number) for number in row] for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Family:
    """A kind of integral.

    Attributes
    ----------
    make : callable
        Draws a sample.
    count : int
        Integrals a call, fewer where they are dear.
    skip : tuple of str
        Ways of calling that are not tried.
    paired : bool
        Whether two samples of one draw have the same limits.
    """

    make: Callable[[Draw], Sample]
    count: int = 200
    skip: tuple[str, ...] = ()
    paired: bool = True


def join(one: Sample, other: Sample, as_complex: bool) -> Sample:
    """Return two samples with the same limits as two events, or as real and imaginary part."""
    split = len(one.args)

    def both(f: Callable[..., Any], g: Callable[..., Any]) -> Callable[..., Tensor]:
        def pair(x: Tensor, *args: Tensor) -> Tensor:
            parts = f(x, *args[:split]), g(x, *args[split:])
            return torch.complex(*parts) if as_complex else torch.stack(parts, dim=-1)

        return pair

    def closed_form(a: Any, b: Any, *args: Any) -> Any:
        parts = one.closed_form(a, b, *args[:split]), other.closed_form(a, b, *args[split:])
        return mp.mpc(*parts) if as_complex else list(parts)

    def points(*args: Tensor) -> Tensor:
        assert one.points is not None and other.points is not None
        return torch.cat([one.points(*args[:split]), other.points(*args[split:])], dim=-1)

    return Sample(
        both(one.f, other.f), one.a, one.b, one.args + other.args, closed_form,
        points=points if one.points else None,
        without=both(one.without, other.without) if one.without and other.without else None,
        wrt=(*one.variables, *(split + i for i in other.variables)), ends=one.ends, single=one.single,
        finest=one.finest,
    )  # fmt: skip


def _same(number: Any) -> Any:
    return number


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    return [function(v) for v in value] if isinstance(value, list) else function(value)


def _tensor(values: list[Any]) -> Tensor:
    """Round numbers of mpmath once."""
    flat = [v for value in values for v in _list(value)]
    kind = complex if any(isinstance(v, mp.mpc) for v in flat) else float
    dtype = torch.complex128 if kind is complex else torch.float64
    return torch.tensor([_map(kind, value) for value in values], dtype=dtype)
