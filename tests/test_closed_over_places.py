"""Singular places that search finds, and that move with what f closes over: told, in any batch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import quadgrad as qg
from helpers import leaf

PLACES = torch.linspace(0.2, 0.8, 60, dtype=torch.float64)


def told(f: Any, *args: Tensor) -> list[str]:
    """Return what is said of places that move."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        qg.quad(f, torch.zeros((), dtype=torch.float64), 1.0, args, rtol=1e-5)
    return [str(w.message) for w in heard if issubclass(w.category, qg.UnmarkedJumpWarning)]


@pytest.mark.parametrize("scale", (1.3, 1e-6, 1e6))
@pytest.mark.parametrize("mover", (0, 17, 59))
def test_one_that_moves_is_told_among_many_that_do_not(mover: int, scale: float) -> None:
    height, shift = leaf(scale), leaf(0.0)
    moves = torch.arange(60) == mover
    heard = told(lambda x, c, m: height * (x - c - shift * m).abs().log(), PLACES, moves.double())
    assert len(heard) == 1 and f"(integral {mover})" in heard[0]
    assert f"x = {float(PLACES[mover]):.6g} " in heard[0]


def test_heights_move_nothing() -> None:
    height = leaf([1.3, -0.2, 4.0])
    assert not told(lambda x, c: (height.sum() + height[0] * x) * (x - c).abs().log(), PLACES)


def test_a_network_that_moves_one_is_told() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    f = lambda x, c: (x - c - 0.01 * net(c[..., None])[..., 0]).abs().log()
    assert len(told(f, PLACES)) == 1
    assert not told(lambda x, c: net(x[..., None])[..., 0] * (x - c).abs().log(), PLACES)


class Scaled(torch.autograd.Function):
    """A product that counts its backward passes."""

    passes = 0

    @staticmethod
    def forward(ctx: Any, y: Tensor, height: Tensor) -> Tensor:
        ctx.save_for_backward(y, height)
        return y * height

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        Scaled.passes += 1
        y, height = ctx.saved_tensors
        return g * height, (g * y).sum()


def test_as_many_backward_passes_in_a_large_batch_as_in_a_small_one() -> None:
    height, counts = leaf(1.3), []
    for places in (PLACES[:3], PLACES):
        Scaled.passes = 0
        assert not told(lambda x, c: Scaled.apply((x - c).abs().log(), height), places)
        counts.append(Scaled.passes)
    assert counts[1] <= counts[0]


class Once(Scaled):
    """The same, of which no second derivative can be had."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        y, height = ctx.saved_tensors
        return g * height, (g * y).sum()


def test_functions_without_second_derivatives_are_asked_one_by_one() -> None:
    height, shift = leaf(1.3), leaf(0.0)
    f = lambda x, c, s: Once.apply((x - c - s).abs().log(), height)
    assert not told(lambda x, c: f(x, c, 0.0), PLACES[:5])
    heard = told(lambda x, c: f(x, c, shift), PLACES[:5])
    assert len(heard) == 1 and "(integral 0)" in heard[0]
