"""Regions that functions cut out of boxes, and the surfaces on which they vanish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from quadgrad._core.errors import IntegrandError
from quadgrad._core.regions.mapped import as_seen

__all__ = ["Boundary", "Where"]


@dataclass(frozen=True, eq=False)
class Where:
    """The part of a box where a function is positive; ``Where(g) & Where(h)`` is where both are.

    Parameters
    ----------
    g : callable
        ``g(x, *args)``, called as f is, with x of shape ``(..., d)`` and the arguments of f; it returns a real
        tensor of shape ``x.shape[:-1]``. With trailing dimensions it is several functions, all of which have to be
        positive. It has to be smooth where it vanishes, and a torch function, also where f is not vectorized.
    lipschitz : float or Tensor, shape ``batch``, optional
        A bound on the length of its gradient in the box: then what is said to be inside or outside is so, proven.

    Raises
    ------
    TypeError
        g is not a function, or the bound no number.
    ValueError
        The bound is negative, NaN or infinite.

    Notes
    -----
    For :func:`quadgrad.cubature` in up to five dimensions, and for :func:`quadgrad.qmc`, to a few digits, in any.

    Cells that the boundary crosses are integrated over one axis after the other, between the places where g
    vanishes (R. I. Saye, *SIAM J. Sci. Comput.* 37, 2015), and Newton steps from these make the integral
    differentiable by whatever g depends on. Nothing is masked: f is called inside of the region alone.

    What g shows of a cell decides whether it is inside or outside. With ``lipschitz`` that is rigorous. Without,
    the bound on its change is taken from differences between points of a lattice, after a look around: at 4,096
    points (``rtol`` of 1e-3) to 65,536 (6e-5 and less), with climbs from those that stand out of what is smooth. A
    part of the region, or a hole in it, as large as ``max(rtol, 6e-5)`` of the box is met by them; a smaller one is
    found if g changes at some distance from it already, as the foot of a narrow Gaussian does. One that is smaller,
    amid what is smooth without it, stays unseen: only ``lipschitz`` excludes that.

    Where g is constant over cells nothing points anywhere: such integrals do not converge (a saturated network:
    give what stands before its last ``tanh`` or ``sigmoid``; values that are known to be bounded away from 0: give
    ``lipschitz``).

    Where the gradient of g vanishes together with g the derivative of the integral need not exist; there a warning
    says that it lacks something.

    Examples
    --------
    The area of an ellipse, and how it changes with one of its axes:

    >>> import torch, quadgrad as qg
    >>> c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    >>> inside = qg.Where(lambda x, c: 1.0 - (x[..., 0] / c) ** 2 - x[..., 1] ** 2)
    >>> one = lambda x, c: torch.ones_like(x[..., 0])
    >>> value, error = qg.cubature(one, [-2.0, -2.0], 2.0, args=(c,), region=inside)
    >>> value.backward()
    >>> torch.allclose(value, torch.pi * c), torch.allclose(c.grad, torch.full_like(c, torch.pi))
    (True, True)
    """

    g: Callable[..., Any]
    lipschitz: Any = None
    others: tuple[Where, ...] = ()

    def __post_init__(self) -> None:
        """Check the function and its bound."""
        _check_function(type(self).__name__, self.g)
        if self.lipschitz is None:
            return
        try:
            bound = as_seen(self.lipschitz).to(torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lipschitz={self.lipschitz!r:.80} is no number or tensor: {error}") from None
        if not bool((bound.isfinite() & (bound >= 0.0)).all()):
            raise ValueError(f"lipschitz={self.lipschitz!r:.80} must be a number that is not negative")
        object.__setattr__(self, "lipschitz", bound.detach())

    def __and__(self, other: Any) -> Where:
        """Return where this one's and another one's functions are positive."""
        if not isinstance(other, Where):
            return NotImplemented
        return Where(self.g, self.lipschitz, (*self.others, Where(other.g, other.lipschitz), *other.others))

    @property
    def surface(self) -> bool:
        """Whether integrals are over a surface."""
        return False

    @property
    def functions(self) -> Together:
        """All functions as one."""
        return Together((self.g, *(other.g for other in self.others)))

    @property
    def bounds(self) -> tuple[Tensor, ...] | None:
        """The bounds of all functions, if there are any."""
        every = [self.lipschitz, *(other.lipschitz for other in self.others)]
        bounds = tuple(bound for bound in every if bound is not None)
        if bounds and len(bounds) < len(every):
            raise ValueError(
                "lipschitz is given for some of the functions only: give it for all of them, or for none"
            )
        return bounds or None


@dataclass(frozen=True, eq=False)
class Boundary:
    """The surface in a box on which a function vanishes (in the plane a curve): integrals are over its area.

    Parameters
    ----------
    g : callable
        ``g(x, *args)`` as for :class:`Where`, one function.

    Raises
    ------
    TypeError
        g is not a function.

    Notes
    -----
    Nodes lie on the surface, to rounding, and move with it. The element of area needs the gradient of g, which is
    taken by torch.

    Examples
    --------
    The circumference of a circle, and how it changes with the radius:

    >>> import torch, quadgrad as qg
    >>> r = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    >>> circle = qg.Boundary(lambda x, r: r**2 - (x**2).sum(-1))
    >>> one = lambda x, r: torch.ones_like(x[..., 0])
    >>> value, error = qg.cubature(one, [-1.0, -1.0], 1.0, args=(r,), region=circle)
    >>> value.backward()
    >>> torch.allclose(value, 2 * torch.pi * r), torch.allclose(r.grad, torch.full_like(r, 2 * torch.pi))
    (True, True)
    """

    g: Callable[..., Any]
    bounds: ClassVar[None] = None

    def __post_init__(self) -> None:
        """Check the function."""
        _check_function(type(self).__name__, self.g)

    @property
    def surface(self) -> bool:
        """Whether integrals are over a surface."""
        return True

    @property
    def functions(self) -> Together:
        """The function."""
        return Together((self.g,))


def _check_function(name: str, g: Any) -> None:
    if not callable(g):
        raise TypeError(f"{name} takes a function g(x, *args), not {type(g).__name__}")


@dataclass(frozen=True, eq=False)
class Together:
    """Several functions as one, whose last dimension enumerates them."""

    functions: tuple[Callable[..., Any], ...]
    called: ClassVar[str] = "function that says where to integrate"

    def __call__(self, x: Tensor, *args: Any) -> Tensor:
        """Return all functions at x ``(..., d)``: ``(..., functions)``."""
        return torch.cat([_columns(g(x, *args), x) for g in self.functions], dim=-1)


def _columns(y: Any, x: Tensor) -> Tensor:
    if not isinstance(y, Tensor):
        raise IntegrandError(
            f"the function that says where to integrate returned {type(y).__name__}, not a torch.Tensor: write it "
            "with torch operations"
        )
    grid = x.shape[:-1]
    if y.shape[: len(grid)] != grid:
        raise IntegrandError(
            f"the function that says where to integrate returned shape {tuple(y.shape)} for x of shape "
            f"{tuple(x.shape)}; expected {tuple(grid)}, followed by how many functions it is. "
            "Coordinate i is x[..., i], the sum of all x.sum(-1)"
        )
    if y.is_complex() or not y.is_floating_point():
        raise IntegrandError(
            f"the function that says where to integrate returned {y.dtype}: it must be real and pass through 0, "
            "such as r - x.norm(dim=-1) where the comparison is x.norm(dim=-1) < r"
        )
    return y.reshape(*grid, -1)
