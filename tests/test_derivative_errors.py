"""Errors of derivatives leave nothing out: what is read beside breakpoints, and gradients that are NaN."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64

# ------------------------------------------------------------------------- breakpoints, jumps and limits


def step(x: Tensor, s: Tensor) -> Tensor:
    return torch.exp(x) * (x > s)


def tilted(x: Tensor, s: Tensor) -> Tensor:
    return torch.where(x > s, torch.cos(s * x), s * x)


def by_points(f: Any, s: Tensor, **options: Any) -> qg.Result:
    return qg.quad(f, t64(0.0), 1.0, (s,), points=s[..., None], **options)


def by_jumps(f: Any, s: Tensor, **options: Any) -> qg.Result:
    return qg.quad(f, t64(0.0), 1.0, (s,), jumps=lambda x, s: x - s, **options)


def by_limits(f: Any, s: Tensor, **options: Any) -> qg.Result:
    return qg.quad(f, s / 2, 1.0, (s,), points=s[..., None], **options)


def exact(f: Any, s: Tensor, low: Tensor) -> Tensor:
    if f is step:
        return math.e - torch.exp(s)
    return s * (s**2 - low**2) / 2 + (torch.sin(s) - torch.sin(s**2)) / s


@pytest.mark.parametrize("way", (by_points, by_jumps, by_limits))
@pytest.mark.parametrize("f", (step, tilted))
@pytest.mark.parametrize("place", (0.3, [0.3, 0.7, 0.9], "shared"))
def test_what_is_read_beside_a_mark_is_in_the_error_of_the_derivative(way: Any, f: Any, place: Any) -> None:
    one = leaf(0.4 if place == "shared" else place)
    s = one * t64([1.0, 1.5]) if place == "shared" else one
    result = way(f, s, gradient=qg.Resolve(rtol=1e-9))
    low = s / 2 if way is by_limits else torch.zeros_like(s)
    ours, theirs = (torch.autograd.grad(v.sum(), s, retain_graph=True)[0] for v in (result.value, exact(f, s, low)))
    error = result.derivative.error.reshape(ours.shape)
    assert bool(result.derivative.converged.all()) and (error > 0).all()
    assert ((ours - theirs).abs() <= error).all() and (error <= 1e-6).all()
    assert (qg.gradient_error(result, s) > 0).all()


def test_a_blurred_zero_shows_in_the_error_of_the_derivative() -> None:
    s = leaf(0.3)
    f = lambda x, s: (x > s) * torch.exp(300 * (x - 1))
    g = lambda x, s: torch.round((x - s) * 2**20) / 2**20 + (x - s) * 1e-12
    result = qg.quad(f, t64(0.0), 1.0, (s,), jumps=g, gradient=qg.Resolve(rtol=1e-6), on_failure="ignore")
    (slope,) = torch.autograd.grad(result.value, s)
    assert abs(float(slope) + math.exp(-210)) <= float(result.derivative.error)


# ------------------------------------------------------------------------------------ gradients that are NaN


def occupied(x: Tensor, eta: Tensor) -> Tensor:
    return torch.exp(-(x**2)) / (torch.exp(x**2 - eta) + 1)


def scaled(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(-x) * torch.sqrt(torch.relu(p * x - 1))


def powered(x: Tensor, p: Tensor) -> Tensor:
    return torch.where(x > 0.5, (x - 0.5).clamp_min(0) ** p, 0.0 * p)


@pytest.mark.parametrize("wrap", (None, "batch", "checkpoint"))
@pytest.mark.parametrize(
    ("f", "p", "a", "b"),
    [(occupied, 0.5, -math.inf, math.inf), (scaled, 2.0, 0.0, 3.0), (powered, 0.5, 0.0, 1.0)],
)
def test_a_gradient_that_is_nan_is_told_with_its_place(f: Any, p: float, a: float, b: float, wrap: Any) -> None:
    p = leaf([p, 1.1 * p] if wrap == "batch" else p)
    result = qg.quad(f, t64(a), b, (p,), rtol=1e-6, chunk_size=63 if wrap == "checkpoint" else None)
    assert result.value.isfinite().all()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result.value.sum().backward()
    if p.grad.isnan().any():
        (one,) = caught
        assert one.category is qg.IntegrationWarning and one.filename == __file__
        text = str(one.message)
        assert "args[0] is NaN" in text and "0 times infinity" in text
        x = float(text.split("at x = ")[1].split(",")[0])
        with torch.enable_grad():
            q = leaf(float(p.detach().flatten()[0]))
            (slope,) = torch.autograd.grad(f(t64(x), q), q)
        assert slope.isnan() or wrap == "batch"
    else:
        assert not caught


def test_nothing_is_said_of_gradients_that_are_finite() -> None:
    p = leaf([0.5, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qg.quad(lambda x, p: torch.exp(-p * x), 0.0, math.inf, (p,)).value.sum().backward()


@pytest.mark.parametrize("f", (occupied, scaled))
def test_a_searched_derivative_that_is_nan_has_a_status(f: Any) -> None:
    p, (a, b) = leaf(0.5 if f is occupied else 2.0), (-math.inf, math.inf) if f is occupied else (0.0, 3.0)
    result = qg.quad(f, t64(a), b, (p,), rtol=1e-6, gradient=qg.Resolve(rtol=1e-3), on_failure="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (slope,) = torch.autograd.grad(result.value, p)
    told = result.derivative
    assert not told.error.isnan().any()
    assert not slope.isnan() or (int(told.status) != qg.Status.CONVERGED and told.error.isinf().all())
