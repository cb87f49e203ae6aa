"""The examples with regions that move: known answers."""

from __future__ import annotations

import math

import pytest
import torch

from examples import level_set_volume, moving_polygon
from helpers import leaf, t64


def test_the_probability_of_a_rectangle_and_of_its_corners() -> None:
    low, high = t64([-0.5, -1.0]), t64([1.5, 0.25])
    corners = torch.stack(
        [low, torch.stack([high[0], low[1]]), high, torch.stack([low[0], high[1]])]
    ).requires_grad_()
    value = moving_polygon.probability(corners)
    scaled = lambda x: (x - moving_polygon.MEAN) / moving_polygon.SPREAD / math.sqrt(2.0)
    sides = 0.5 * (torch.erf(scaled(high)) - torch.erf(scaled(low)))
    assert value.item() == pytest.approx(sides.prod().item(), rel=1e-10)
    (slope,) = torch.autograd.grad(value, corners)
    # Both corners of a side moved outwards: the integral of the density over the side.
    edge = torch.exp(-(scaled(high)[0] ** 2)) / (math.sqrt(2 * math.pi) * moving_polygon.SPREAD[0])
    assert (slope[1, 0] + slope[2, 0]).item() == pytest.approx((edge * sides[1]).item(), rel=1e-9)
    assert torch.autograd.gradcheck(moving_polygon.probability, (corners,))


def test_the_polygon_moves_to_the_mean() -> None:
    square = leaf([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).detach()
    moved = moving_polygon.move(square)
    torch.testing.assert_close(moved.mean(0), moving_polygon.MEAN, rtol=0.0, atol=1e-7)
    exact = math.erf(1 / math.sqrt(2)) * math.erf(2 / math.sqrt(2))
    assert moving_polygon.probability(moved).item() == pytest.approx(exact, rel=1e-9)


def test_a_level_set_is_fitted() -> None:
    bells, level, losses = level_set_volume.fit()
    assert losses[0] > 0.05 and losses[-1] < 1e-8
    found = level_set_volume.moments(bells, level, rtol=1e-8)
    assert found[0].item() == pytest.approx(level_set_volume.AREA, abs=2e-4)
    torch.testing.assert_close(found[1:] / found[0], level_set_volume.CENTER, rtol=0.0, atol=2e-4)
