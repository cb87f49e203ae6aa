"""Fit a level set: gradient descent on where a function is positive, until area and centre are those asked for.

    python examples/level_set_volume.py

The shape is where a sum of two bells exceeds a level. Its area and centre are integrals over a region that moves
with the bells and the level; no point of it is masked, so that they are differentiable, and exact to the tolerance.
The logarithm of the sum is what is compared with the level's: it is nowhere constant, as the sum is far from the
bells.
"""

from __future__ import annotations

import torch
from torch import Tensor

import quadgrad as qg

AREA, CENTER = 0.8, torch.tensor([0.1, -0.2], dtype=torch.float64)
CORNERS = torch.tensor([-1.5, -1.5], dtype=torch.float64), torch.tensor([1.5, 1.5], dtype=torch.float64)


def height(x: Tensor, bells: Tensor, level: Tensor) -> Tensor:
    """Return how far the logarithm of two bells at ``bells`` ``(2, 2)`` is above a level, at x ``(..., 2)``."""
    distance = ((x[..., None, :] - bells) ** 2).sum(-1)
    return torch.logsumexp(-4.0 * distance, dim=-1) - level


def moments(bells: Tensor, level: Tensor, rtol: float = 1e-4) -> Tensor:
    """Return the area of the shape and its first moments, ``(3,)``."""
    shape = qg.Where(lambda x: height(x, bells, level))
    f = lambda x: torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)
    return qg.cubature(f, *CORNERS, region=shape, rtol=rtol, atol=1e-6).value


def loss(moments: Tensor) -> Tensor:
    """Return the squared distance from the area and the centre that are asked for."""
    return (moments[0] - AREA) ** 2 + ((moments[1:] / moments[0] - CENTER) ** 2).sum()


def fit(steps: int = 10) -> tuple[Tensor, Tensor, list[float]]:
    """Return bells and level of a shape that fits, and the losses on the way."""
    bells = torch.tensor([[-0.3, 0.0], [0.3, 0.1]], dtype=torch.float64, requires_grad=True)
    level = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([bells, level], max_iter=2, line_search_fn="strong_wolfe")
    losses: list[float] = []

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(moments(bells, level))
        value.backward()
        return value.item()

    for _ in range(steps):
        losses.append(optimizer.step(closure))
        if losses[-1] < 1e-12:
            break
    return bells.detach(), level.detach(), losses


def main() -> None:
    """Fit a shape."""
    bells, level, losses = fit()
    found = moments(bells, level, rtol=1e-8)
    print(f"loss {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses)} steps")
    print(f"area {found[0].item():.8f}, centre {[round(c, 8) for c in (found[1:] / found[0]).tolist()]}")


if __name__ == "__main__":
    main()
