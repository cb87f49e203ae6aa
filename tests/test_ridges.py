"""Narrow ridges, sheets and rings: what is high along a line or a surface is not lost where no node meets it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

import quadgrad as qg
from helpers import t64


def bell(u: Tensor, width: float) -> Tensor:
    return torch.exp(-((u / width) ** 2))


def bell_area(low: float, high: float, width: float) -> float:
    """The integral of exp(-(u / width)**2) from low to high."""
    return width * math.sqrt(math.pi) / 2 * (math.erf(high / width) - math.erf(low / width))


def oblique(c: float, width: float) -> float:
    """The integral of exp(-((x - y - c) / width)**2) over the unit square, by second differences."""
    twice = lambda u: u * bell_area(0.0, u, width) + width**2 / 2 * math.exp(-((u / width) ** 2))
    return twice(1 - c) + twice(-1 - c) - 2 * twice(-c)


def check(f: Callable[[Tensor], Tensor], d: int, exact: float, rtol: float, low: float = 0.0) -> None:
    result = qg.cubature(f, t64([low] * d), t64([1.0] * d), rtol=rtol, on_failure="ignore")
    off = abs(float(result.value) - exact)
    assert off <= 1.0001 * float(result.error)
    assert int(result.status) != qg.Status.CONVERGED or off <= rtol * exact


@pytest.mark.parametrize("rtol", (1e-3, 1e-6))
@pytest.mark.parametrize(
    ("width", "c"),
    ((4.416e-3, -0.4154), (2.2278521456090654e-3, -0.25230148395439916), (2.263e-3, 0.338), (2.068e-3, -0.4155),
     (2.9305528917337705e-3, -0.007977341066165433)),
)  # fmt: skip
def test_oblique_ridges(width: float, c: float, rtol: float) -> None:
    """They leave long cells between two nodes, and where many cells are at hand through few of the faces."""
    check(lambda x: bell(x[..., 0] - x[..., 1] - c, width), 2, oblique(c, width), rtol)


@pytest.mark.parametrize("rtol", (1e-3, 1e-6))
@pytest.mark.parametrize(
    ("width", "c"),
    ((1.9762968078073265e-4, 0.9282110229603695), (1.888e-4, 0.788), (1.3236507370688883e-4, 0.8703849170433338),
     (1.5563e-4, 0.32492), (4e-4, 0.1), (1e-3, 0.6)),
)  # fmt: skip
def test_ridges_along_an_axis(width: float, c: float, rtol: float) -> None:
    """Of which one cell sees a long piece: those that it ends at see nothing."""
    exact = bell_area(-c, 1 - c, width) * (math.e - 1)
    check(lambda x: bell(x[..., 0] - c, width) * torch.exp(x[..., 1]), 2, exact, rtol)


def test_a_sheet() -> None:
    """A face that is thin along one axis only shows more than one as large that is thin along none."""
    width, c = 1.1224537750514176e-4, 0.4935715599433962
    exact = bell_area(-c, 1 - c, width) * (math.e - 1) ** 2
    check(lambda x: bell(x[..., 0] - c, width) * torch.exp(x[..., 1] + x[..., 2]), 3, exact, 1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_rings(seed: int) -> None:
    random = np.random.default_rng(seed)
    width, radius = math.exp(random.uniform(math.log(3e-3), math.log(0.03))), random.uniform(0.2, 0.45)
    centre = torch.tensor(random.uniform(-0.1, 0.1, 2))
    g = lambda r: 2 * math.pi * r * math.exp(-(((r - radius) / width) ** 2))
    ends = (max(0.0, radius - 8 * width), radius + 8 * width)
    exact = quad(g, *ends, points=[radius], epsabs=0.0, epsrel=1e-12)[0]
    for rtol in (1e-3, 1e-6):
        check(lambda x: bell((x - centre).norm(dim=-1) - radius, width), 2, exact, rtol, low=-1.0)
