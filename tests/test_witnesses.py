"""What arguments name is looked at: bells, boxes and modes whose place is an argument are not missed."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from quadgrad._core.search.kernel import opening
from tests.helpers import relative_error, t64

INF = math.inf
CENTRES = 40


def draw(low: float, high: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(CENTRES, generator=generator, dtype=torch.float64)


def bell(x: Tensor, c: Tensor, w: float) -> Tensor:
    return torch.exp(-(((x - c) / w) ** 2))


@pytest.mark.parametrize("rtol", (1e-3, 1e-8))
@pytest.mark.parametrize("width", (1e-3, 1e-5, 1e-7, 1e-9))
def test_needles_on_a_wave(width: float, rtol: float) -> None:
    c = draw(0.02, 0.98)
    f = lambda x, c: torch.cos(3 * x) + bell(x, c, width) / width
    result = qg.quad(f, 0.0, 1.0, (c,), rtol=rtol, on_failure="ignore")
    exact = math.sin(3.0) / 3 + math.sqrt(math.pi)
    rounding = 16 * torch.finfo(torch.float64).eps / width  # of x, in widths
    assert ((result.value - exact).abs() <= torch.maximum(result.error, t64(rounding))).all()
    assert result.converged.all() or rounding > rtol


@pytest.mark.parametrize(
    ("lower", "upper", "low", "high"), ((0.0, INF, 0.1, 50.0), (-INF, 0.0, -50.0, -0.1), (-INF, INF, -50.0, 50.0))
)
def test_bells_on_infinite_intervals(lower: float, upper: float, low: float, high: float) -> None:
    c = draw(low, high)
    result = qg.quad(lambda x, c: bell(x, t64(0.0), 2.0) + bell(x, c, 0.01), lower, upper, (c,), rtol=1e-8)
    exact = math.sqrt(math.pi) * (2.0 if lower == -upper else 1.0) + 0.01 * math.sqrt(math.pi)
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error).all()


@pytest.mark.parametrize("widths", (1e5, 1e6, 1e8))
def test_bells_near_the_middle_of_wide_intervals(widths: float) -> None:
    c = widths * draw(-0.01, 0.01)
    result = qg.quad(lambda x, c: bell(x, c, 1.0), -0.5 * widths, 0.5 * widths, (c,), rtol=1e-8)
    assert result.converged.all()
    assert ((result.value - math.sqrt(math.pi)).abs() <= result.error).all()


@pytest.mark.parametrize("complex_values", (False, True))
def test_each_of_two_components(complex_values: bool) -> None:
    """Where one is seen and the other is not."""
    c, d = 1e6 * draw(0.1, 0.9), 1e6 * draw(0.1, 0.9, seed=1)
    part = lambda x, c, d: (bell(x, c, 1.0), bell(x, d, 2.0))
    f = (lambda *a: torch.complex(*part(*a))) if complex_values else (lambda *a: torch.stack(part(*a), -1))
    result = qg.quad(f, 0.0, 1e6, (c, d), rtol=1e-8)
    value = torch.view_as_real(result.value) if complex_values else result.value
    assert result.converged.all()
    assert relative_error(value, math.sqrt(math.pi) * t64([1.0, 2.0]).expand(CENTRES, 2)) <= 1e-8


def test_float32_and_breakpoints() -> None:
    c = draw(0.02, 0.98).float()
    f = lambda x, c: torch.cos(3 * x) + 1e3 * bell(x, c, 1e-3)
    exact = math.sin(3.0) / 3 + math.sqrt(math.pi)
    for points in (None, torch.tensor([0.01, 0.5, 0.99])):
        result = qg.quad(f, 0.0, 1.0, (c,), points=points, rtol=1e-3, on_failure="ignore")
        assert result.converged.sum() >= CENTRES - 1
        assert ((result.value - exact).abs() <= result.error).all()


def test_tensor_operations_ask_too() -> None:
    c = draw(0.02, 0.98)
    f = lambda x, c: torch.cos(3 * x) + 1e4 * bell(x, c, 1e-4)
    exact = math.sin(3.0) / 3 + math.sqrt(math.pi)
    with patch.object(opening, "load", lambda: None):
        result = qg.quad(f, 0.0, 1.0, (c,), rtol=1e-8)
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error).all()


@pytest.mark.parametrize("c", (0.3, t64(0.3), t64([0.3])))
def test_an_argument_costs_one_node(c: float | Tensor) -> None:
    """Where it lies between the limits; a number that f divides by there, or none, does no harm."""
    f = lambda x, c: torch.exp(x) + 0.0 * c
    assert int(qg.quad(f, t64(0.0), 1.0, (c,)).nfev.sum()) == int(qg.quad(f, t64(0.0), 0.2, (c,)).nfev.sum()) + 1
    for power in (-0.5, -0.5 + 1j):
        assert qg.quad(lambda x, c, p=power: ((x - c).abs() + 0j) ** p, 0.0, t64(1.0), (c,)).value.isfinite().all()
    sinc = lambda x, c: torch.sin(x - c) / (x - c)
    result = qg.quad(sinc, t64(0.0), 1.0, (c,), rtol=1e-10)
    assert result.converged.all() and result.value.isfinite().all()


def test_a_budget_is_kept() -> None:
    c = draw(0.02, 0.98)
    f = lambda x, c: torch.cos(3 * x) + 1e4 * bell(x, c, 1e-4)
    for most in (26, 27, 30, 60, 200):
        result = qg.quad(f, 0.0, 1.0, (c,), max_nfev=most, on_failure="ignore")
        assert int(result.nfev.max()) <= most


def test_elements_are_single_calls_and_only_their_own_places_count() -> None:
    c = t64([0.2, 0.5, 7.0, -3.0, 0.9])
    f = lambda x, c: torch.cos(3 * x) + bell(x, c, 1e-5)
    together = qg.quad(f, 0.0, 1.0, (c,), rtol=1e-10)
    for i, one in enumerate(c):
        alone = qg.quad(f, 0.0, 1.0, (one,), rtol=1e-10)
        assert int(alone.nfev) == int(together.nfev[i])
        assert float(alone.value) == pytest.approx(float(together.value[i]), rel=1e-15)


@pytest.mark.parametrize("width", (3e-9, 1e-7, 2e-6))
@pytest.mark.parametrize("height", (0.4, 1.4))
def test_needles_at_a_breakpoint_on_something_of_the_other_sign(width: float, height: float) -> None:
    """Its value close to the end is told from the wave's by its sign, and by drifts of the series that grow."""
    c = draw(0.1, 0.9)
    f = lambda x, c: height * bell(x, c, width) - 0.5 * height * torch.cos(x - c)
    wave = 0.5 * height * (torch.sin(1.0 - c) + torch.sin(c))
    for rtol in (1e-5, 1e-7, 1e-8, 1e-9):
        result = qg.quad(f, 0.0, 1.0, (c,), points=c[:, None], rtol=rtol, on_failure="ignore")
        off = (result.value - (height * width * math.sqrt(math.pi) - wave)).abs()
        assert (off <= result.error)[result.converged].all()
        assert result.converged.float().mean() > 0.9
