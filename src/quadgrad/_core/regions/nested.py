"""Regions between limits that depend on the coordinates before: iterated integrals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.integrand import Integrand
from quadgrad._core.lanes import plain
from quadgrad._core.mesh.box import Box
from quadgrad._core.regions.mapped import Mapped, as_parameter, beside

__all__ = ["Nested"]


@dataclass(frozen=True, eq=False)
class Nested(Mapped):
    """The region between limits that are functions of the outer coordinates and of the arguments.

    Parameters
    ----------
    limits : sequence of pairs
        ``(lower, upper)`` of each coordinate, the outermost, ``x[..., 0]``, first. Each is a number, a tensor of
        shape ``batch``, or a function ``limit(x, *args)`` of the coordinates before it, ``x`` of shape
        ``(..., k)`` for coordinate k, and of the arguments of f, which arrive as they do in f; it returns a
        tensor of shape ``x.shape[:-1]``, or a number. Numbers and tensors may be infinite.

    Raises
    ------
    ValueError
        Limits that are NaN, or that are no pairs.
    TypeError
        Limits that are complex, or neither numbers, tensors nor functions.

    Notes
    -----
    Where a lower limit exceeds the upper one, what lies between counts with the opposite sign, as in
    :func:`quadgrad.quad` and SciPy's ``nquad``: limits that cross give the difference of two regions, which is what
    the iterated integral is, and the derivative is its own. If the region is meant to end where they cross, end the
    outer limits there, or cut the upper one off: ``torch.maximum(lower, upper)``, a kink that costs evaluations.

    SciPy's ``nquad`` has the innermost coordinate first.

    Examples
    --------
    The triangle below a line through the origin, and how its area changes with the slope:

    >>> import torch, quadgrad as qg
    >>> slope = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> below = qg.Nested([(0.0, 1.0), (0.0, lambda x, slope: slope * x[..., 0])])
    >>> area = lambda x, slope: torch.ones_like(x[..., 0])
    >>> value, error = qg.cubature(area, region=below, args=(slope,))
    >>> value.backward()
    >>> torch.allclose(value, value.new_tensor(1.0)), torch.allclose(slope.grad, value.new_tensor(0.5))
    (True, True)
    """

    limits: Sequence[tuple[Any, Any]]

    def __new__(cls, *limits: Any, **named: Any) -> Nested:
        """Refuse pairs that are not in one list."""
        if len(limits) > 1:
            raise TypeError("Nested takes one list of pairs: Nested([(0.0, 1.0), (0.0, lambda x: x[..., 0])])")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check the limits."""
        pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in self.limits or ((),)]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError("limits must be pairs (lower, upper), one for each coordinate, the outermost first")
        ends = ("lower", "upper")
        checked = [
            tuple(
                end
                if callable(end)
                else as_parameter(f"the {which} limit of coordinate {k}", end, 0, infinite=True)
                for which, end in zip(ends, pair, strict=True)
            )
            for k, pair in enumerate(pairs)
        ]
        object.__setattr__(self, "limits", tuple(checked))

    @property
    def dims(self) -> int:
        """The number of coordinates."""
        return len(self.limits)

    def parameters(self) -> list[tuple[Any, int]]:
        """Return the limits that are no functions; see :class:`Mapped`."""
        return [(end, 0) for pair in self.limits for end in pair if not callable(end)]

    def place(
        self, u: Tensor, parameters: tuple[Any, ...] | None = None, args: tuple[Any, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Map points of the unit cube ``(..., d)`` onto the region; return them and the volume element, signed."""
        own = iter([value for value, _ in self.parameters()] if parameters is None else parameters)
        coordinates, weight = list[Tensor](), torch.ones_like(u[..., 0])
        for k, pair in enumerate(self.limits):
            before = torch.stack(coordinates, dim=-1) if k else u[..., :0]
            low, high = (
                _limit(end, f"limit {which} of coordinate {k}", before, args) if callable(end) else next(own)
                for which, end in zip(("lower", "upper"), pair, strict=True)
            )
            x, stretch = _between(u[..., k], beside(u, low), beside(u, high))
            coordinates.append(x)
            weight = weight * stretch
        return torch.stack(coordinates, dim=-1), weight


def _limit(function: Callable[..., Any], name: str, x: Tensor, args: tuple[Any, ...]) -> Any:
    """Return a limit at the coordinates before it."""
    limit = function(x, *args)
    if not isinstance(limit, Tensor) or limit.ndim < x.ndim - 1:
        return limit
    # Its shape is checked as that of an integrand.
    checked = Integrand(lambda _: limit, (), 0, x.dtype, x.dtype, True, (), name=name, point_ndim=1)
    return checked.call(x, [])


def _between(u: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Map u onto the stretch between limits; return it, and what it is stretched by, with its sign."""
    if bool(plain(low.isinf()).any()) or bool(plain(high.isinf()).any()):
        box = Box(low[..., None], high[..., None], True, u.dtype)
        x, stretch = box.place(u[..., None])
        return x[..., 0], stretch
    side = high - low
    return low + u * side, side
