"""What boxes see next to nothing of: scouts find it among points of their own, and search closes in on it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import quadgrad as qg

SHAPES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[int], float]]] = {
    "box": (lambda u: (u.abs() < 1.0).all(-1).to(u.dtype), lambda d: 2.0**d),
    "tent": (lambda u: (1.0 - u.abs()).clamp_min(0.0).prod(-1), lambda d: 1.0),
    "cap": (
        lambda u: (1.0 - u.square().sum(-1)).clamp_min(0.0),
        lambda d: {2: math.pi / 2, 3: 8 * math.pi / 15}[d],
    ),
    "bell": (lambda u: torch.exp(-0.5 * u.square().sum(-1)), lambda d: (2.0 * math.pi) ** (d / 2)),
}
"""Functions of what is meant to be of order 1, and their integrals."""


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("d", "width"), ((2, 0.02), (3, 0.06)))
@pytest.mark.parametrize("shape", ("box", "tent", "cap"))
def test_what_ends_at_once(shape: str, d: int, width: float, seed: int) -> None:
    f, integral = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)
    centre = width + (1.0 - 2.0 * width) * torch.rand(d, generator=generator, dtype=torch.float64)
    result = qg.cubature(
        lambda x: f((x - centre) / width), [0.0] * d, torch.ones(d, dtype=torch.float64), rtol=1e-2,
        max_nfev=300_000, on_failure="ignore",
    )  # fmt: skip
    true = integral(d) * width**d
    if bool(result.converged):
        assert abs(float(result.value) / true - 1.0) <= 1e-2
    else:
        assert float(result.value) > 0.5 * true


@pytest.mark.parametrize("seed", range(12))
def test_a_bell_that_underflows_at_all_nodes(seed: int) -> None:
    f, integral = SHAPES["bell"]
    generator = torch.Generator().manual_seed(seed)
    centre = 0.1 + 0.8 * torch.rand(2, generator=generator, dtype=torch.float64)
    result = qg.cubature(lambda x: f((x - centre) / 1e-3), [0.0] * 2, torch.ones(2, dtype=torch.float64), rtol=1e-3)
    assert abs(float(result.value) / (integral(2) * 1e-6) - 1.0) <= 1e-3


@pytest.mark.parametrize("seed", (2, 5))
def test_a_narrow_ridge_of_which_a_scout_sees_the_foot(seed: int) -> None:
    f, integral = SHAPES["bell"]
    generator = torch.Generator().manual_seed(seed)
    centre = 0.1 + 0.8 * torch.rand(2, generator=generator, dtype=torch.float64)
    width = torch.tensor([5e-4, 1e-5], dtype=torch.float64)
    result = qg.cubature(
        lambda x: f((x - centre) / width), [0.0] * 2, torch.ones(2, dtype=torch.float64), rtol=1e-3
    )
    assert abs(float(result.value) / (integral(2) * 5e-9) - 1.0) <= 1e-3
