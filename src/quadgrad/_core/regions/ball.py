"""Balls and ellipsoids, and their surfaces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.lanes import plain
from quadgrad._core.regions.mapped import Mapped, as_parameter, as_seen, beside

__all__ = ["Ball", "Sphere"]


@dataclass(frozen=True, eq=False)
class _Round(Mapped):
    """A centre, a radius, and the matrix that makes an ellipsoid of a ball."""

    center: Any
    radius: Any = 1.0
    axes: Any = None

    def __post_init__(self) -> None:
        """Check the parameters, and keep them as tensors where they are."""
        own = {"center": as_parameter("center", self.center, 1), "radius": as_parameter("radius", self.radius, 0)}
        d = as_seen(own["center"]).shape[-1]
        negative = plain(as_seen(own["radius"]) < 0)
        if bool(negative.any()):
            raise ValueError(f"radius is negative at index {tuple(negative.nonzero()[0].tolist())}")
        if self.axes is not None:
            own["axes"] = as_parameter("axes", self.axes, 2)
            shape = tuple(as_seen(own["axes"]).shape)
            if shape[-2:] != (d, d):
                raise ValueError(
                    f"axes of shape {shape} must end in ({d}, {d}), the columns being semi-axes in units of the "
                    "radius: of axes along the coordinates pass torch.diag_embed(lengths)"
                )
        for name, value in own.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_d", d)

    @property
    def d(self) -> int:
        """The number of coordinates."""
        return vars(self)["_d"]

    def parameters(self) -> list[tuple[Any, int]]:
        """Return the centre, the radius and, if there are any, the axes; see :class:`Mapped`."""
        return [(self.center, 1), (self.radius, 0)] + ([] if self.axes is None else [(self.axes, 2)])

    def _own(self, u: Tensor, parameters: tuple[Any, ...] | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return centre, radius and axes as tensors beside u."""
        values = [value for value, _ in self.parameters()] if parameters is None else parameters
        center, radius, *axes = (beside(u, value) for value in values)
        return center, radius, axes[0] if axes else None


def _onto(center: Tensor, radius: Tensor, axes: Tensor | None, y: Tensor) -> Tensor:
    """Return the points of a region that those of the unit ball, or its surface, go to."""
    if axes is not None:
        y = (axes @ y[..., None])[..., 0]
    return center + radius[..., None] * y


@dataclass(frozen=True, eq=False)
class Ball(_Round):
    """The points of a ball or an ellipsoid.

    Parameters
    ----------
    center : Tensor or sequence of float, shape ``(*batch, d)``
    radius : Tensor or float, shape ``batch``
    axes : Tensor, shape ``(*batch, d, d)``, optional
        Its columns are the semi-axes in units of the radius: the region is ``center + radius * axes @ y`` with
        ``|y| < 1``. Of an ellipse along the coordinates it is ``torch.diag_embed(lengths)``; a Cholesky factor of a
        covariance matrix gives its ellipsoids.

    Raises
    ------
    ValueError
        A parameter that is NaN or infinite, a negative radius, axes whose shape does not fit.
    TypeError
        A parameter that is complex or no number.

    Notes
    -----
    Coordinates are taken one after the other, each between limits that the ones before leave, and every one goes
    through ``s = 3 u^2 - 2 u^3``: then ``s (1 - s) = u^2 (1 - u)^2 (3 - 2 u) (1 + 2 u)`` has a smooth square root,
    and neither the map nor its derivatives have a singularity, as polar coordinates have none, but with fewer
    evaluations.

    Examples
    --------
    The integral of exp(x_1) over a disc, and its derivative by the radius, 2 pi r I_0(r):

    >>> import torch, quadgrad as qg
    >>> r = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    >>> f = lambda x: torch.exp(x[..., 0])
    >>> value, error = qg.cubature(f, region=qg.Ball([0.0, 0.0], r))
    >>> value.backward()
    >>> bool(abs(value - 1.182636314690361313) <= error), bool(abs(r.grad - 4.116914032711371885) < 1e-8)
    (True, True)
    """

    @property
    def dims(self) -> int:
        """The number of dimensions of the unit cube."""
        return self.d

    def place(
        self, u: Tensor, parameters: tuple[Any, ...] | None = None, args: tuple[Any, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Map points of the unit cube ``(..., d)`` onto the region; return them and the volume element."""
        center, radius, axes = self._own(u, parameters)
        v = 1.0 - u
        y = u * u * (3.0 - 2.0 * u) - v * v * (1.0 + 2.0 * u)  # -1 to 1, of the width that is left
        narrow = 2.0 * u * v * torch.sqrt((3.0 - 2.0 * u) * (1.0 + 2.0 * u))
        width = torch.cat((torch.ones_like(u[..., :1]), narrow[..., :-1].cumprod(-1)), dim=-1)
        weight = (12.0 * u * v * width).prod(-1) * radius**self.d
        if axes is not None:
            weight = weight * torch.linalg.det(axes).abs()
        return _onto(center, radius, axes, width * y), weight


@dataclass(frozen=True, eq=False)
class Sphere(_Round):
    """The surface of a ball or an ellipsoid: integrals over it are with respect to its area (in the plane, length).

    Parameters
    ----------
    center : Tensor or sequence of float, shape ``(*batch, d)``
        d is at least 2.
    radius : Tensor or float, shape ``batch``
    axes : Tensor, shape ``(*batch, d, d)``, optional
        As of :class:`Ball`.

    Raises
    ------
    ValueError
        A parameter that is NaN or infinite, a negative radius, axes whose shape does not fit, one dimension only.
    TypeError
        A parameter that is complex or no number.

    Notes
    -----
    Spherical coordinates: ``d - 2`` angles from 0 to pi, the last one around the circle. The area element of an
    ellipsoid is that of the sphere times ``|det A| |A^-T y|``.

    Examples
    --------
    >>> import torch, quadgrad as qg
    >>> r = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> value, error = qg.cubature(lambda x: x[..., 2] ** 2, region=qg.Sphere([0.0, 0.0, 0.0], r))
    >>> value.backward()
    >>> torch.allclose(value, 4 / 3 * torch.pi * r**4), torch.allclose(r.grad, 16 / 3 * torch.pi * r**3)
    (True, True)
    """

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.d < 2:
            raise ValueError("a sphere needs a center with 2 coordinates at least")

    @property
    def dims(self) -> int:
        """The number of dimensions of the unit cube."""
        return self.d - 1

    def place(
        self, u: Tensor, parameters: tuple[Any, ...] | None = None, args: tuple[Any, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Map points of the unit cube ``(..., d - 1)`` onto the surface; return them and the area element."""
        center, radius, axes = self._own(u, parameters)
        turns = u.new_tensor([1.0] * (self.d - 2) + [2.0])
        angle = math.pi * turns * u
        sine, cosine = angle.sin(), angle.cos()
        one = torch.ones_like(u[..., :1])
        width = sine.cumprod(-1)
        y = torch.cat((one, width), dim=-1) * torch.cat((cosine, one), dim=-1)
        polar = [sine[..., k] ** (self.d - 2 - k) for k in range(self.d - 2)]
        weight = radius ** (self.d - 1) * (2.0 * math.pi**self.dims)
        for factor in polar:
            weight = weight * factor
        if axes is not None:
            normal = torch.linalg.solve(axes.mT, y[..., None])[..., 0]
            weight = weight * torch.linalg.det(axes).abs() * torch.linalg.vector_norm(normal, dim=-1)
        return _onto(center, radius, axes, y), weight.expand(u.shape[:-1])
