"""Forward and backward of wrapped functions beside a hand-written ``autograd.Function``, in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Figure, Target, compare
from benchmarks.timing import interleave

__all__ = ["measure_hand_written"]

STEP = 6e-6


class Exact(torch.autograd.Function):
    """exp with its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.exp(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * torch.from_numpy(np.exp(x.numpy()))


class TwoPoint(torch.autograd.Function):
    """sin with a two-point difference."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x = ctx.saved_tensors[0].numpy()
        h = STEP * np.maximum(np.abs(x), 1.0)
        return g * torch.from_numpy((np.sin(x + h) - np.sin(x - h)) / (2.0 * h))


def simulate(x: np.ndarray) -> np.ndarray:
    """Work for about 100 microseconds."""
    total = 0.0
    for i in range(1500):
        total += i * 1e-9
    return np.array([np.sum(np.sin(x)) + total, np.prod(x)])


class Loop(torch.autograd.Function):
    """The simulator with a two-point difference for each input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(simulate(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x = ctx.saved_tensors[0].numpy()
        rows = [(simulate(x + h) - simulate(x - h)) / (2.0 * STEP) for h in STEP * np.eye(x.size)]
        return torch.from_numpy(np.stack(rows) @ g.numpy())


def step(f: Callable[[Tensor], Tensor], x: Tensor, turns: int, shift: float) -> None:
    """Go forward and backward, each time at another point."""
    for i in range(turns):
        leaf = (x + shift * i).requires_grad_()
        y = f(leaf)
        y.backward(torch.ones_like(y))


def measure_hand_written(repeats: int) -> list[Figure]:
    """Time each beside what one would write by hand."""
    given = qg.bridge.wrap(lambda x: np.exp(x), derivative=lambda x: np.exp(x))
    product = qg.bridge.wrap(lambda x: np.exp(x), vjp=lambda x, g: g * np.exp(x))
    differences = qg.bridge.wrap(lambda x: np.sin(x), sparsity="elementwise")
    simulator = qg.bridge.wrap(simulate)
    figures: list[Figure] = []
    for count, turns, limit in ((10**6, 3, 1.5), (10, 300, 4.0)):
        x = torch.linspace(0.1, 1.0, count, dtype=torch.float64)
        peers = {"hand": Exact.apply, "derivative=": given, "vjp=": product}
        seconds = interleave({n: partial(step, f, x, turns, 0.0) for n, f in peers.items()}, repeats)
        for name in ("derivative=", "vjp="):
            label = f"{name} of {count:,} elements: times the hand-written function"
            figures.append(compare(label, seconds[name], seconds["hand"], Target(limit)))
    x = torch.linspace(0.1, 1.0, 10**6, dtype=torch.float64)
    for label, limit, functions, at, turns in (
        ("central of 1,000,000 elements: times the two-point difference", 5.0, (TwoPoint.apply, differences), x, 3),
        ("simulator of ten inputs: times the two-point loop", 2.0, (Loop.apply, simulator), x[::100_000], 20),
    ):  # fmt: skip
        names = dict(zip(("hand", "ours"), functions, strict=True))
        seconds = interleave({n: partial(step, f, at, turns, 1e-3) for n, f in names.items()}, repeats)
        figures.append(compare(label, seconds["ours"], seconds["hand"], Target(limit)))
    return figures
