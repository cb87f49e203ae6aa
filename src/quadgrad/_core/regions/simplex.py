"""Triangles, tetrahedra and their like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quadgrad._core.regions.mapped import Mapped, as_parameter, as_seen, beside

__all__ = ["Simplex"]


@dataclass(frozen=True, eq=False)
class Simplex(Mapped):
    """The points between corners: a triangle, a tetrahedron; also a segment or a triangle in space.

    Parameters
    ----------
    corners : Tensor or sequence, shape ``(*batch, m + 1, d)``
        With m up to d. Where m is less than d the integral is one over a surface or curve, with respect to its area
        or length. The order of the corners does not matter: the volume is positive.

    Raises
    ------
    ValueError
        Corners that are NaN or infinite, or too many or too few of them.
    TypeError
        Corners that are complex or no numbers.

    Notes
    -----
    The unit cube is collapsed onto the simplex (M. G. Duffy, *SIAM J. Numer. Anal.* 19, 1982): a polynomial map.

    Examples
    --------
    The mean of x_1 x_2 over a triangle, and how it changes as one corner moves:

    >>> import torch, quadgrad as qg
    >>> corner = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    >>> corners = torch.stack([torch.zeros_like(corner), corner, torch.tensor([0.0, 1.0], dtype=torch.float64)])
    >>> value, error = qg.cubature(lambda x: x[..., 0] * x[..., 1], region=qg.Simplex(corners))
    >>> value.backward()
    >>> torch.allclose(value, value.new_tensor(1 / 24)), corner.grad
    (True, tensor([0.0833, 0.0833], dtype=torch.float64))
    """

    corners: Any

    def __post_init__(self) -> None:
        """Check the corners."""
        corners = as_parameter("corners", self.corners, 2)
        shape = tuple(as_seen(corners).shape)
        if not 2 <= shape[-2] <= shape[-1] + 1:
            raise ValueError(
                f"corners of shape {shape} must have shape (*batch, m + 1, d) with 1 <= m <= d: a triangle in the "
                "plane has shape (3, 2)"
            )
        object.__setattr__(self, "corners", corners)
        object.__setattr__(self, "_m", shape[-2] - 1)

    @property
    def dims(self) -> int:
        """The number of dimensions of the unit cube."""
        return vars(self)["_m"]

    def parameters(self) -> list[tuple[Any, int]]:
        """Return the corners; see :class:`Mapped`."""
        return [(self.corners, 2)]

    def place(
        self, u: Tensor, parameters: tuple[Any, ...] | None = None, args: tuple[Any, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Map points of the unit cube ``(..., m)`` onto the simplex; return them and the volume element."""
        corners = beside(u, self.corners if parameters is None else parameters[0])
        m = self.dims
        steps = corners[..., 1:, :] - corners[..., :-1, :]
        x = corners[..., 0, :] + (u.cumprod(-1)[..., None] * steps).sum(-2)
        edges = corners[..., 1:, :] - corners[..., :1, :]
        if m == corners.shape[-1]:
            volume = torch.linalg.det(edges).abs()
        else:
            volume = torch.linalg.det(edges @ edges.mT).sqrt()
        powers = torch.arange(m - 1, -1, -1, device=u.device)
        return x, volume * (u**powers).prod(-1)
