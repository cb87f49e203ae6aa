"""Errors of derivatives, by kind: what no node of the value's plan sees, rounding, what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64

FAINT = 1e-9
"""Height of a feature that the value, met to 1e-6, need not resolve; its derivative by the height is of size 1."""


def step(x: Tensor, c: Tensor) -> Tensor:
    return (x > c).to(x.dtype)


def kink(x: Tensor, c: Tensor) -> Tensor:
    return (x - c).abs()


def table(x: Tensor, c: Tensor) -> Tensor:
    """Piecewise linear, with knots at 0, c and 1."""
    return torch.where(x < c, x / c, (1 - x) / (1 - c))


def error_of(result: qg.Result, wrt: Tensor) -> Tensor:
    error = qg.gradient_error(result, wrt)
    assert isinstance(error, Tensor)
    return error


def derivative_of(result: qg.Result) -> Any:
    assert result.derivative is not None
    return result.derivative


def areas(feature: Callable[..., Tensor], c: Tensor) -> Tensor:
    return {step: 1 - c, kink: (c**2 + (1 - c) ** 2) / 2, table: 0.5 + 0 * c}[feature]


def beside_edges(count: int, edges: tuple[float, ...]) -> Tensor:
    """Return places at 1e-6 to 3e-3 from both sides of the edges, and as many anywhere."""
    generator = torch.Generator().manual_seed(count)
    uniform = lambda: torch.rand(count, generator=generator, dtype=torch.float64)
    away = 10 ** (-6 + 3.5 * uniform())
    sides = [edge + sign * away for edge in edges for sign in (-1, 1)]
    c = torch.cat([*sides, uniform()])
    return c[(c > 0) & (c < 1)]


@pytest.mark.parametrize("rule", ("gk15", "gk21", "cc33"))
@pytest.mark.parametrize("feature", (step, kink, table))
def test_what_the_values_plan_does_not_see(feature: Callable[..., Tensor], rule: str) -> None:
    c = beside_edges(40, (0.0, 0.5, 1.0))
    h = torch.full_like(c, FAINT).requires_grad_()
    f = lambda x, h, c: torch.cos(x) + h * feature(x, c)
    for limits in ((0.0, 1.0), (1.0, 0.0)):
        sign = limits[1] - limits[0]
        result = qg.quad(f, *limits, (h, c), points=t64(0.5), rtol=1e-6, rule=rule)
        (slope,) = torch.autograd.grad(result.value.sum(), h, retain_graph=True)
        true = (slope - sign * areas(feature, c)).abs()
        assert bool(result.converged.all())
        assert bool((true <= error_of(result, h)).all())


@pytest.mark.parametrize("feature", (step, kink, table))
def test_a_searched_derivative_sees_it(feature: Callable[..., Tensor]) -> None:
    c = beside_edges(12, (0.0, 0.5, 1.0))
    h = torch.full_like(c, FAINT).requires_grad_()
    f = lambda x, h, c: torch.cos(x) + h * feature(x, c)
    result = qg.quad(f, 0.0, 1.0, (h, c), points=t64(0.5), rtol=1e-6, gradient=qg.Resolve(rtol=1e-7))
    (slope,) = torch.autograd.grad(result.value.sum(), h)
    true = (slope - areas(feature, c)).abs()
    assert bool(derivative_of(result).converged.all())
    # A derivative below that is within the rounding of the value over h.
    clear = areas(feature, c) > 1e-3
    assert bool((true <= 1e-7 * areas(feature, c))[clear].all())
    if feature is step:
        assert bool((true <= derivative_of(result).error[:, 0]).all())


@pytest.mark.parametrize("feature", (step, kink))
def test_between_the_cells_at_a_singular_end(feature: Callable[..., Tensor]) -> None:
    """There nodes are spread over the logarithm, and so are the gaps before the first of them."""
    c = beside_edges(25, tuple(2.0**-k for k in (1, 2, 4, 6, 7, 8)))
    h = torch.full_like(c, FAINT).requires_grad_()
    f = lambda x, h, c: x**-0.3 + h * feature(x, c)
    result = qg.quad(f, 0.0, 1.0, (h, c), rtol=1e-6)
    (slope,) = torch.autograd.grad(result.value.sum(), h, retain_graph=True)
    true = (slope - areas(feature, c)).abs()
    assert bool((true <= error_of(result, h)).all())


def test_the_place_of_a_kink() -> None:
    """The derivative by c is a step."""
    c = beside_edges(60, (0.0, 0.25, 0.5, 1.0)).requires_grad_()
    result = qg.quad(lambda x, c: torch.exp(x) + FAINT * kink(x, c), 0.0, 1.0, (c,), rtol=1e-8)
    (slope,) = torch.autograd.grad(result.value.sum(), c, retain_graph=True)
    true = (slope - FAINT * (2 * c - 1)).abs().detach()
    error = error_of(result, c)
    assert bool((true <= error).all())
    assert float(error.median()) <= 0.5 * FAINT  # it says something


def test_weights_of_a_network_with_kinks() -> None:
    """Each unit's kink is somewhere else, the value a sum of them all that is nearly smooth."""
    c = beside_edges(20, (0.0, 0.5, 1.0))
    w = torch.full_like(c, FAINT).requires_grad_()
    f = lambda x: torch.exp(x) + torch.relu(x[..., None] - c) @ w
    result = qg.quad(f, t64(0.0), 1.0, points=t64(0.5), rtol=1e-6)
    (slope,) = torch.autograd.grad(result.value, w, retain_graph=True)
    true = (slope - (1 - c) ** 2 / 2).abs()
    assert bool((true <= error_of(result, w)).all())


def test_a_kink_right_between_two_cells_costs_nothing() -> None:
    c = leaf([0.5, 0.25])
    result = qg.quad(lambda x, c: (x - c).abs(), 0.0, 1.0, (c,), points=t64([0.25, 0.5]))
    assert bool((error_of(result, c) <= 1e-13).all())
    result = qg.quad(lambda x, c: (x - c).abs(), 0.0, 1.0, (c,), points=t64([0.25, 0.5]), gradient=qg.Resolve())
    assert bool(derivative_of(result).converged.all())
    assert bool((derivative_of(result).error <= 1e-13).all())


@pytest.mark.parametrize("mode", (qg.Reuse(), qg.Resolve()))
@pytest.mark.parametrize("power", (-0.6, -0.3, 0.4))
def test_singular_ends_in_single_precision(power: float, mode: qg.GradientMode) -> None:
    c, p = (torch.tensor(v, requires_grad=True) for v in ([0.3, 0.7], [power, power]))
    f = lambda x, c, p: (x - c).abs() ** p
    marks = c[:, None] if isinstance(mode, qg.Reuse) else c.detach()[:, None]
    result = qg.quad(f, 0.0, 1.0, (c, p), points=marks, rtol=1e-3, gradient=mode, on_failure="ignore")
    (slope,) = torch.autograd.grad(result.value.sum(), p, retain_graph=True)
    places, powers = c.detach().double(), p.detach().double().requires_grad_()
    area = (places ** (powers + 1) + (1 - places) ** (powers + 1)) / (powers + 1)
    (exact,) = torch.autograd.grad(area.sum(), powers)
    error = error_of(result, p) if isinstance(mode, qg.Reuse) else derivative_of(result).error[:, 1]
    assert error.isfinite().all()
    assert bool(((slope.double() - exact).abs() <= error.double()).all())


def test_powers_at_infinity() -> None:
    p = torch.linspace(2.3, 6.0, 150, dtype=torch.float64).requires_grad_()
    for rule in ("gk15", "gk21"):
        for rtol in (3e-3, 1e-4, 1e-6):
            result = qg.quad(lambda x, p: x**-p, 0.4, inf, (p,), rtol=rtol, rule=rule)
            (slope,) = torch.autograd.grad(result.value.sum(), p, retain_graph=True)
            (exact,) = torch.autograd.grad((0.4 ** (1 - p) / (p - 1)).sum(), p)
            assert bool(((slope - exact).abs() <= error_of(result, p) + 2e-16 * exact.abs()).all())


def test_halves_that_contradict_their_cell() -> None:
    """Kinks of order p far inside a cell with logarithmic nodes, where the null rules see a decay."""
    generator = torch.Generator().manual_seed(1)
    uniform = lambda: torch.rand(300, generator=generator, dtype=torch.float64)
    c, p = 10 ** (-4 + 3 * uniform()), (1 + 3 * uniform()).requires_grad_()
    result = qg.quad(lambda x, c, p: (x - c).abs() ** p, 0.0, 1.0, (c, p), rtol=3.6e-7)
    (slope,) = torch.autograd.grad(result.value.sum(), p, retain_graph=True)
    (exact,) = torch.autograd.grad(((c ** (p + 1) + (1 - c) ** (p + 1)) / (p + 1)).sum(), p)
    assert bool(((slope - exact).abs() <= error_of(result, p)).all())


def test_readings_at_limits_where_f_is_a_staircase() -> None:
    """The derivative by b is f(b), to the rounding of f there, which f's size there does not tell."""
    generator = torch.Generator().manual_seed(2)
    uniform = lambda: torch.rand(4000, generator=generator, dtype=torch.float64)
    b, phase, w = (0.02 + uniform()).requires_grad_(), 6.3 * uniform(), 10 ** (1 + 2 * uniform())
    f = lambda x, w, phase: torch.sin(w * (x + 1) + phase)
    result = qg.quad(f, -1.0, b, (w, phase), rtol=1e-4, on_failure="ignore")
    (slope,) = torch.autograd.grad(result.value.sum(), b, retain_graph=True)
    exact = _sine(w, b.detach() + 1, phase)
    error = error_of(result, b)
    # What rounding does to a phase of w (b + 1) is seen at 64 places close by, or it is as small as f's own.
    assert bool(((slope - exact).abs() <= error).float().mean() > 0.999)
    assert bool(((slope - exact).abs() <= 4 * error).all())
    assert bool((error <= 1e-9).all())


def _sine(w: Tensor, x: Tensor, phase: Tensor) -> Tensor:
    """Return sin(w x + phase), correctly rounded or nearly so."""
    with mp.workdps(30):
        numbers = zip(w.tolist(), x.tolist(), phase.tolist(), strict=True)
        return t64([float(mp.sin(mp.mpf(a) * mp.mpf(b) + mp.mpf(c))) for a, b, c in numbers])


@pytest.mark.parametrize("s", (1.31, 1.63, 2.4, 3.5))
def test_resolve_where_f_or_its_derivative_overflows_far_out(s: float) -> None:
    """d/dt is 0 times infinity beyond 700 t: whatever becomes of it, the value and d/ds stand."""
    f = lambda x, s, t: x ** (s - 1) / torch.expm1(x / t)
    for t0 in (0.06, 2.2):
        for rtol in (1e-4, 3e-8):
            for own in (1e-4, 1e-8):
                p, t = leaf(s), leaf(t0)
                mode = qg.Resolve(rtol=own)
                result = qg.quad(f, 0.0, inf, (p, t), rtol=rtol, gradient=mode, on_failure="ignore")
                exact = lambda s, t0=t0: mp.gamma(s) * mp.zeta(s) * mp.mpf(t0) ** s
                assert bool(result.converged)
                assert abs(float(result.value.detach()) - float(exact(s))) <= float(result.error)
                slope = torch.autograd.grad(result.value, p)[0]
                assert bool(slope.isfinite())
                assert abs(float(slope) - float(mp.diff(exact, s))) <= float(derivative_of(result).error[0])
