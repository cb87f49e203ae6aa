"""Derivatives made of what a value does not see: next to ends of pieces, on any scale, and between nodes."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import quadgrad as qg

ROOT_PI = math.sqrt(math.pi)
INF = math.inf


def needles(seed: int, width: float, count: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centres, widths, heights and wave numbers of needles on waves, on [0, 1] or, odd ones, [100, 101]."""
    numbers = torch.Generator().manual_seed(seed)
    u = torch.rand(4, count, generator=numbers, dtype=torch.float64)
    start = 100.0 * (seed % 2)
    return start + 0.1 + 0.8 * u[0], width * (0.5 + u[1]), 0.1 + 3 * u[2], 1 + 10 * u[3]


def needle(x: Tensor, c: Tensor, w: Tensor, h: Tensor, k: Tensor) -> Tensor:
    return h * torch.exp(-(((x - c) / w) ** 2)) + torch.cos(k * x)


def exact_slopes(w: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return the derivatives by width and height; what lies outside the interval is below 1e-300."""
    return h * ROOT_PI, w * ROOT_PI


def assert_told(result: qg.Result, wrt: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[Tensor]:
    """Assert that all converged and no error of a derivative is understated; return what was reported."""
    assert bool(result.converged.all())
    weight = torch.ones_like(result.value)
    reported = list(qg.gradient_error(result, wrt))
    slopes = torch.autograd.grad(result.value, wrt, weight, materialize_grads=True)
    for slope, true, error in zip(slopes, exact, reported, strict=True):
        assert bool(((slope - true).abs() <= error + 1e-13 * true.abs()).all()), (slope - true).abs() / error
    return reported


@pytest.mark.parametrize("rule", ["gk15", "gk21", "gk51", "cc33"])
@pytest.mark.parametrize("width", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("seed", [0, 1])
def test_needles_at_a_breakpoint_that_the_value_does_not_see(seed: int, width: float, rule: str) -> None:
    c, w, h, k = needles(seed, width)
    w.requires_grad_()
    h.requires_grad_()
    a = 100.0 * seed
    result = qg.quad(needle, a, a + 1.0, (c, w, h, k), points=c[:, None], rtol=1e-4, rule=rule)
    assert_told(result, (w, h), exact_slopes(w.detach(), h.detach()))


@pytest.mark.parametrize("way", ["events", "complex", "reversed", "single"])
def test_the_same_in_other_ways_of_calling(way: str) -> None:
    c, w, h, k = needles(2, 1e-6)
    if way == "single":  # nothing narrower than what float32 resolves there
        c, w, h, k = (t.float() for t in (c, 100 * w, h, k))
    w.requires_grad_()
    h.requires_grad_()
    wave = lambda x, k: torch.sin(2 * k * x)
    f, limits, sign = needle, (0.0, 1.0), 1.0
    if way == "events":
        f = lambda x, *args: torch.stack((needle(x, *args), wave(x, args[-1])), dim=-1)
    elif way == "complex":
        f = lambda x, *args: torch.complex(needle(x, *args), wave(x, args[-1]))
    elif way == "reversed":
        limits, sign = (1.0, 0.0), -1.0
    result = qg.quad(f, *limits, (c, w, h, k), points=c[:, None], rtol=1e-3, on_failure="ignore")
    exact = exact_slopes(w.detach().double(), h.detach().double())
    slack = 1e-5 if way == "single" else 0.0
    reported = qg.gradient_error(result, (w, h))
    slopes = torch.autograd.grad(result.value, (w, h), torch.ones_like(result.value))
    for slope, true, error in zip(slopes, exact, reported, strict=True):
        told = (slope - sign * true).abs() <= error + slack * true
        assert bool((told | ~result.converged).all())
    assert int(result.converged.sum()) >= 3


def test_one_parameter_that_moves_both_what_is_seen_and_what_is_not() -> None:
    c, w, h, _ = needles(4, 1e-6)
    w.requires_grad_()
    f = lambda x, c, w, h: h * torch.exp(-(((x - c) / w) ** 2)) + torch.cos(1e6 * w * x)
    result = qg.quad(f, 0.0, 1.0, (c, w, h), points=c[:, None], rtol=1e-4)
    k = 1e6 * w.detach()
    wave = 1e6 * (torch.cos(k) / k - torch.sin(k) / k**2)
    assert_told(result, (w,), (wave + h * ROOT_PI,))


@pytest.mark.parametrize("k", [1e2, 1e5, 1e8, 1e11])
@pytest.mark.parametrize("side", [1, -1])
def test_decays_at_a_limit_beside_something_larger(side: int, k: float) -> None:
    """``exp(-k x)`` to infinity as an event beside ``exp(-q x)``."""
    rate = (k * torch.logspace(-0.5, 0.5, 8, dtype=torch.float64)).requires_grad_()
    other = torch.logspace(-3, 0, 8, dtype=torch.float64)
    f = lambda x, k, q: torch.stack((torch.exp(-k * side * x), torch.exp(-q * side * x)), dim=-1)
    limits = (0.0, INF) if side > 0 else (-INF, 0.0)
    result = qg.quad(f, *limits, (rate, other), rtol=1e-8)
    assert_told(result, (rate,), (-1 / rate.detach() ** 2,))


@pytest.mark.parametrize("width", [1e-2, 1e-4, 1e-6])
def test_resolve_finds_them(width: float) -> None:
    c, w, h, k = needles(6, width)
    w.requires_grad_()
    h.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qg.IntegrationWarning)
        result = qg.quad(
            needle, 0.0, 1.0, (c, w, h, k), points=c[:, None], rtol=1e-4, gradient=qg.Resolve(rtol=1e-6)
        )
    assert result.derivative is not None
    slopes = torch.autograd.grad(result.value, (w, h), torch.ones_like(result.value))
    for i, (slope, true) in enumerate(zip(slopes, exact_slopes(w.detach(), h.detach()), strict=True)):
        off = (slope - true).abs()
        assert bool((off <= 1e-6 * true).all())
        assert bool((off <= result.derivative.error[:, i]).all())
    assert int(result.derivative.converged.sum()) >= 10


def test_resolved_gradients_are_those_of_the_value() -> None:
    def value(w: Tensor, h: Tensor) -> Tensor:
        f = lambda x, w, h: h * torch.exp(-(((x - 0.3) / w) ** 2)) + torch.cos(3 * x)
        gradient = qg.Resolve(rtol=1e-9)
        return qg.quad(f, 0.0, 1.0, (w, h), points=0.3, rtol=1e-11, gradient=gradient).value

    inputs = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (1e-3, 2.0)]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("p", [-0.9, -0.5, 0.3, 1.5])
def test_what_is_singular_at_an_end_is_no_layer(p: float) -> None:
    """Errors of ``x^p (1 + x)`` by p stay what extrapolation makes of them."""
    power = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    result = qg.quad(lambda x, p: x**p * (1 + x), 0.0, 1.0, (power,), rtol=1e-10)
    exact = torch.tensor(-1 / (p + 1) ** 2 - 1 / (p + 2) ** 2, dtype=torch.float64)
    (reported,) = assert_told(result, (power,), (exact,))
    assert float(reported) < 1e-7 * float(exact.abs())


@pytest.mark.parametrize("seed", range(4))
def test_a_component_that_nothing_resolves(seed: int) -> None:
    """A peak between the nodes, 1e-60 of what the other component is."""
    numbers = torch.Generator().manual_seed(seed)
    c, w = torch.rand(2, 100, generator=numbers, dtype=torch.float64)
    c, w = c, 10 ** (-3 + 2 * w)
    h = torch.full_like(c, 1e-60, requires_grad=True)
    f = lambda x, c, w, h: torch.stack((h / (1 + ((x - c) / w) ** 2), torch.exp(x + 0 * c)), dim=-1)
    result = qg.quad(f, 0.0, 1.0, (c, w, h), rtol=1e-6)
    assert_told(result, (h,), (w * (torch.atan((1 - c) / w) + torch.atan(c / w)),))


@pytest.mark.parametrize("seed", range(3))
def test_kinks_whose_places_rounding_hides(seed: int) -> None:
    """Sums of ramps by the places of their knots: what search finds may be spacings of numbers off."""
    numbers = torch.Generator().manual_seed(seed)
    a = torch.tensor([0.0, 70.0, -3.0])[seed].double()
    slopes = 4 * torch.rand(40, 6, generator=numbers, dtype=torch.float64) - 2
    knots = (a + torch.rand(40, 6, generator=numbers, dtype=torch.float64)).requires_grad_()

    def f(x: Tensor, slopes: Tensor, knots: Tensor) -> Tensor:
        return 1.0 + (slopes * torch.relu(x[..., None] - knots)).sum(-1)

    args = (qg.element(slopes, 1), qg.element(knots, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qg.IntegrationWarning)
        result = qg.quad(f, a, a + 1.0, args, rtol=1e-8)
        reported = qg.gradient_error(result, knots)
        (slope,) = torch.autograd.grad(result.value.sum(), knots)
    exact = -slopes * (a + 1 - knots.detach())
    assert isinstance(reported, Tensor)
    assert bool(result.converged.all())
    assert bool(((slope - exact).abs() <= reported + 1e-15 * exact.abs()).all())


def test_a_needle_that_the_derivative_sees_and_the_value_does_not() -> None:
    """Resolve looks for what a derivative is made of; what it finds is in the value, too."""
    numbers = torch.Generator().manual_seed(3)
    u = torch.rand(2, 40, generator=numbers, dtype=torch.float64)
    place, w = 0.1 + 0.8 * u[0], (1e-3 * (0.3 + u[1])).requires_grad_()
    f = lambda x, p, w: torch.exp(-(((x - 1 + p) / w) ** 2)) + torch.cos(2 * x)
    exact = ROOT_PI * w.detach() + math.sin(2.0) / 2
    seen = qg.quad(f, 0.0, 1.0, (place, w.detach()), rtol=1e-4)
    missed = (seen.value - exact).abs() > seen.error + 1e-4 * exact
    result = qg.quad(f, 0.0, 1.0, (place, w), rtol=1e-4, gradient=qg.Resolve(rtol=1e-4), on_failure="ignore")
    assert bool(missed.any())  # or nothing is shown
    assert bool(((result.value - exact).abs() <= result.error + 1e-14).all())
    (slope,) = torch.autograd.grad(result.value.sum(), w)
    assert bool(((slope - ROOT_PI).abs() <= 1e-4 * ROOT_PI).all())


@pytest.mark.parametrize("seed", range(2))
def test_resolve_sees_jumps_far_below_what_the_integrand_is_elsewhere(seed: int) -> None:
    """``exp(k abs(x - c))`` bends at c, and its derivative jumps there, by 1e-5 to 1e-9 of what is at the ends."""
    numbers = torch.Generator().manual_seed(seed)
    u = torch.rand(2, 40, generator=numbers, dtype=torch.float64)
    c, k = 0.05 + 0.4 * u[0], 14 + 14 * u[1]
    c.requires_grad_()
    f = lambda x, c, k: torch.exp(k * (x - c).abs())
    result = qg.quad(f, 0.0, 1.0, (c, k), rtol=1e-7, gradient=qg.Resolve(rtol=1e-7), on_failure="ignore")
    (slope,) = torch.autograd.grad(result.value.sum(), c)
    exact = torch.exp(k * c.detach()) - torch.exp(k * (1 - c.detach()))
    assert result.derivative is not None
    off = (slope - exact).abs() - 1e-14 * exact.abs()
    assert bool((off <= result.derivative.error[:, 0]).all())
    assert int(result.derivative.converged.sum()) >= 20
