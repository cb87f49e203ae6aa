"""The probability that a point falls into a polygon, and where to move the polygon so that it does.

    python examples/moving_polygon.py

A parcel comes down at a place that is normally distributed; the net that shall catch it is a convex polygon. The
polygon is a fan of triangles, which are one batch of integrals: their sum is the probability, and its gradient by
the corners says where to move the net, and which corner to pull farther out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import quadgrad as qg

MEAN, SPREAD = torch.tensor([0.5, -0.25], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)


def density(x: Tensor) -> Tensor:
    """Return the density of the place, in km^-2, at x ``(..., 2)`` in km."""
    return torch.exp(-0.5 * (((x - MEAN) / SPREAD) ** 2).sum(-1)) / (2 * math.pi * SPREAD.prod())


def probability(corners: Tensor, rtol: float = 1e-10) -> Tensor:
    """Return how likely a point is to fall into a convex polygon with these corners, ``(n, 2)`` in order."""
    first = corners[:1].expand(len(corners) - 2, 2)
    triangles = torch.stack([first, corners[1:-1], corners[2:]], dim=1)
    return qg.cubature(density, region=qg.Simplex(triangles), rtol=rtol).value.sum()


def move(corners: Tensor, steps: int = 12) -> Tensor:
    """Return where the polygon should be: shifted by Newton's method to where the probability is largest."""
    shift = torch.zeros(2, dtype=corners.dtype)
    for _ in range(steps):
        value = lambda s: -torch.log(probability(corners + s, rtol=1e-8))
        slope, bend = torch.func.grad(value)(shift), torch.func.hessian(value)(shift)
        step = torch.linalg.solve(bend, slope)
        shift = shift - step
        if step.norm() < 1e-9:
            break
    return corners + shift


def main() -> None:
    """Move a net."""
    angles = 2 * math.pi * torch.arange(6, dtype=torch.float64) / 6
    corners = torch.stack([angles.cos(), 0.6 * angles.sin()], dim=-1).requires_grad_()
    value = probability(corners)
    value.backward()
    print(f"caught with probability {value.item():.6f}; a corner moved out by 1 km gains at most")
    assert corners.grad is not None
    print("  " + ", ".join(f"{gain:.3f}" for gain in corners.grad.norm(dim=1)))
    better = move(corners.detach())
    print(f"moved by {(better - corners).mean(0).tolist()} km: {probability(better).item():.6f}")


if __name__ == "__main__":
    main()
