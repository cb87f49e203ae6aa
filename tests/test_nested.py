"""``quad`` inside the integrand of ``quad``: double integrals whose inner limit is the outer variable.

The integral of exp(p y) over 0 < y < x < b is (exp(p b) - 1 - p b) / p^2, which gives every derivative.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect
from functools import partial
from math import inf, pi

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, vmap

import quadgrad as qg
from helpers import integral, leaf, relative_error, t64
from quadgrad._core.search.kernel import opening


def inner(x: Tensor, p: Tensor) -> Tensor:
    return qg.quad(lambda y, p: torch.exp(p * y), torch.zeros_like(x), x, (p,), rtol=1e-12).value


def double(theta: Tensor) -> Tensor:
    b, p = theta.unbind(-1)
    return integral(inner, 0.0, b, p, rtol=1e-10)


def closed_form(theta: Tensor) -> Tensor:
    b, p = theta.unbind(-1)
    return (torch.exp(p * b) - 1 - p * b) / p**2


THETA = t64([0.9, 1.7])


@pytest.mark.parametrize("theta", [THETA, t64([[0.9, 1.7], [2.0, 0.4], [0.3, -1.0]])], ids=["one", "batch"])
def test_value(theta: Tensor) -> None:
    assert relative_error(double(theta), closed_form(theta)) <= 1e-10


def test_gradient_by_backward() -> None:
    ours, theirs = leaf(THETA.tolist()), leaf(THETA.tolist())
    double(ours).backward()
    closed_form(theirs).backward()
    assert relative_error(ours.grad, theirs.grad) <= 1e-10


@pytest.mark.parametrize("way", [hessian, lambda f: jacfwd(jacfwd(f))], ids=["hessian", "jacfwd of jacfwd"])
def test_hessian(way) -> None:
    exact = hessian(closed_form)(THETA)
    assert (way(double)(THETA) - exact).abs().max() <= 1e-9 * exact.abs().max()


def test_vmap_of_grad() -> None:
    lanes = t64([[0.9, 1.7], [2.0, 0.4]])
    assert relative_error(vmap(grad(double))(lanes), vmap(grad(closed_form))(lanes)) <= 1e-9


def test_limits_on_both_sides_depend_on_the_outer_variable() -> None:
    # The disc of radius r, by its chords.
    def chord(x: Tensor, r: Tensor) -> Tensor:
        half = torch.sqrt((r - x) * (r + x))
        return qg.quad(lambda y: torch.ones_like(y), -half, half).value

    r = t64([0.5, 2.0])
    value = qg.quad(chord, -r, r, (r,), rtol=1e-6).value
    assert relative_error(value, torch.pi * r**2) <= 1e-6


def test_inner_failure_is_one_warning() -> None:
    rough = lambda x: (
        qg.quad(lambda y, x: torch.sqrt((y - x).abs()), 0.0 * x, 1.0, (x,), rtol=1e-9, max_nfev=63).value
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qg.quad(rough, t64(0.0), t64(1.0), rtol=1e-3)
    assert [w.category for w in caught] == [qg.IntegrationWarning]


# An inner integral aims at a tenth of its tolerance.
@pytest.mark.parametrize("rtol", (1e-1, 1e-3, 1e-5))
def test_inner_error_is_the_noise_floor_of_the_outer(rtol: float) -> None:
    """The outer integral stops where the inner one's error hides the rest; it reports no less and not much more."""
    inner_errors: dict[float, float] = {}

    def coarse(x: Tensor) -> Tensor:
        solution = qg.quad(lambda y, x: torch.sqrt((y - x).abs()), 0.0 * x, 1.0, (x,), rtol=rtol)
        inner_errors.update(zip(x.flatten().tolist(), solution.error.flatten().tolist(), strict=True))
        return solution.value

    result = qg.quad(coarse, t64(0.0), t64(1.0), rtol=1e-10, on_failure="ignore")
    exact = lambda x: (x**1.5 + (1 - x) ** 1.5) / 1.5
    smooth, coarser = (qg.quad(exact, t64(0.0), t64(1.0), rtol=r) for r in (1e-10, float(result.error) * 15 / 8))
    assert abs(float(result.value) - 8 / 15) <= float(result.error)
    nodes, weights = (part(t64(0.0), t64(1.0)).flatten() for part in (result.plan.nodes, result.plan.weights))
    # The plan's nodes are those of the search but for the last bit, which the kernel and torch may round apart.
    called = sorted(inner_errors)
    nearest = lambda x: min(called[max(0, bisect(called, x) - 1) :][:2], key=lambda other: abs(other - x))
    assert all(abs(nearest(x) - x) <= 1e-15 for x in nodes.tolist())
    average = sum(w * inner_errors[nearest(x)] for x, w in zip(nodes.tolist(), weights.tolist(), strict=True))
    assert average <= float(result.error) <= 3 * average
    assert result.status == qg.Status.ROUNDOFF
    # As many nodes as an exact integrand takes to what is reported, and not what it takes to what was asked for.
    assert result.nfev <= coarser.nfev and result.nfev < 0.6 * smooth.nfev


# ------------------------------------------------------------- the errors of inner integrals, node by node


def decaying(y: Tensor, x: Tensor) -> Tensor:
    return torch.exp(-x * y)


def over(f, low, high, x: Tensor, **options) -> Tensor:
    """Integrate f(y, x) over y."""
    return qg.quad(f, low * torch.ones_like(x), high, (x,), **options).value


DOUBLES = {
    "quarter": (partial(over, lambda y, x: torch.exp(-(x**2) - y**2), 0.0, inf), 0.0, inf, pi / 4),
    "triangle": (lambda x, **o: over(lambda y, x: torch.cos(3 * x * y), 0, x, x, **o), 0.0, 1.0, 0.308108754666578),
    "kink": (partial(over, lambda y, x: (x - y).abs().sqrt(), 0.0, 1.0), 0.0, 1.0, 8 / 15),
    "scaled": (lambda x, **o: 1e-9 * over(decaying, 0.0, 1.0, x, **o), 0.0, 1.0, 7.965995992970531e-10),
    "half empty": (partial(over, lambda y, x: torch.relu(x - y - 0.5), 0.0, 1.0), 0.0, 1.0, 1 / 48),
}  # fmt: skip


@pytest.mark.parametrize("options", ({}, {"rtol": 1.5e-8, "atol": 1.5e-8}), ids=["defaults", "both tolerances"])
@pytest.mark.parametrize("name", DOUBLES)
@pytest.mark.parametrize("engine", ("kernel", "tensors"))
def test_double_integrals(name: str, options: dict[str, float], engine: str, monkeypatch) -> None:
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    inner, a, b, exact = DOUBLES[name]
    result = qg.quad(lambda x: inner(x, **options), t64(a), b, **options)
    true = abs(float(result.value) - exact)
    assert result.converged and true <= float(result.error) + 1e-15 * exact and true <= 1e-8
    # Once its place is found an inner kink costs no digits, but no error below the tolerance is looked for: what
    # inner integrals aim at, a tenth of that, is what they report.
    least = 0.2 * exact * torch.finfo(torch.float64).eps ** 0.5 if name == "kink" else 1e-11
    assert float(result.error) <= (max(1e3 * true, least) if not options else 3e-8)


def test_double_integral_of_numbers() -> None:
    inner = lambda x: float(qg.quad(lambda y: math.exp(-x * y), 0.0, 1.0, vectorized=False, rtol=1e-3).value)
    result = qg.quad(inner, t64(0.0), 1.0, vectorized=False, rtol=1e-6, on_failure="ignore")
    assert abs(float(result.value) - 0.7965995992970531) <= float(result.error)


def test_inner_atol_that_says_nothing_of_the_tail_does_not_spoil_the_rest() -> None:
    inner_errors: list[Tensor] = []

    def inner(x: Tensor) -> Tensor:
        result = qg.quad(lambda y, x: torch.exp(-x) * y**0.3, 0.0 * x, 1.0, (x,), atol=1e-4)
        inner_errors.append(result.error)
        return result.value

    result = qg.quad(inner, t64(0.0), inf, rtol=1e-3)
    assert result.converged and abs(float(result.value) - 1 / 1.3) <= float(result.error) <= 1e-3


def test_an_inner_integral_that_misses_its_aim_but_not_its_tolerance_has_not_failed() -> None:
    inner = lambda x: qg.quad(lambda y, x: (x - y).abs().sqrt(), 0.0 * x, 1.0, (x,), rtol=1e-3, max_nfev=300).value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = qg.quad(inner, t64(0.0), 1.0, rtol=1e-2)
    assert abs(float(result.value) - 8 / 15) <= float(result.error)


def test_a_kept_plan_of_a_double_integral() -> None:
    kept = qg.Integrator(qg.quad)
    for step in range(4):
        p = leaf(1.0 + 0.01 * step)
        outer = kept(lambda x, p: over(lambda y, x: torch.exp(-p * x * y), 0.0, 1.0, x), t64(0.0), 1.0, (p,))
        fresh = qg.quad(lambda x, p: over(lambda y, x: torch.exp(-p * x * y), 0.0, 1.0, x), t64(0.0), 1.0, (p,))
        assert outer.converged and abs(float((outer.value - fresh.value).detach())) <= float(outer.error)
        assert relative_error(*(torch.autograd.grad(r.value, p)[0] for r in (outer, fresh))) <= 1e-9


# ------------------------------------------------------------------ nested defaults, and how much they report

UNIT = (0.0, 1.0, lambda x: 0.0 * x, lambda x: 0.0 * x + 1.0)
TRIANGLE = (0.0, 1.0, lambda x: 0.0 * x, lambda x: x)
DISC = (-1.0, 1.0, lambda x: -(1 - x * x).sqrt(), lambda x: (1 - x * x).sqrt())
QUARTER = (0.0, inf, lambda x: 0.0 * x, lambda x: 0.0 * x + inf)
PLANE = (-inf, inf, lambda x: 0.0 * x - inf, lambda x: 0.0 * x + inf)

FAMILY = {
    "x y": (lambda x, y: x * y, UNIT, 0.25, True),
    "exp": (lambda x, y: torch.exp(x + y), UNIT, math.expm1(1) ** 2, True),
    "cosine": (lambda x, y: torch.cos(x + y), UNIT, 2 * math.cos(1) - math.cos(2) - 1, True),
    "1 / (1 + x + y)": (lambda x, y: 1 / (1 + x + y), UNIT, 3 * math.log(3) - 4 * math.log(2), True),
    "logarithms": (lambda x, y: -torch.log(x * y), UNIT, 2.0, True),
    "log of the sum": (lambda x, y: -torch.log(x + y), UNIT, 1.5 - 2 * math.log(2), False),
    "root of the sum": (lambda x, y: (x + y) ** -0.5, UNIT, 4 / 3 * (2**1.5 - 2), True),
    "(x y)^-1/2": (lambda x, y: (x * y) ** -0.5, UNIT, 4.0, True),
    "x^-1/2 y^-.3": (lambda x, y: x**-0.5 * y**-0.3, UNIT, 2 / 0.7, True),
    "(x y)^1/2": (lambda x, y: (x * y) ** 0.5, UNIT, 4 / 9, True),
    "ridge": (lambda x, y: (x - y).abs(), UNIT, 1 / 3, True),
    "root of a ridge": (lambda x, y: (x - y).abs() ** 0.5, UNIT, 8 / 15, False),
    "larger one": (torch.maximum, UNIT, 2 / 3, True),
    "triangle": (lambda x, y: x * y, TRIANGLE, 1 / 8, True),
    "exp(y / x)": (lambda x, y: torch.exp(y / x), TRIANGLE, math.expm1(1) / 2, True),
    "(x - y)^-1/2": (lambda x, y: (x - y) ** -0.5, TRIANGLE, 4 / 3, True),
    "1 / (x + y)": (lambda x, y: 1 / (x + y), TRIANGLE, math.log(2), True),
    "disc": (lambda x, y: x * x + y * y, DISC, pi / 2, False),
    "Gaussian on a disc": (lambda x, y: torch.exp(-x * x - y * y), DISC, -pi * math.expm1(-1), True),
    "quarter plane": (lambda x, y: torch.exp(-x * x - y * y), QUARTER, pi / 4, True),
    "plane": (lambda x, y: torch.exp(-x * x - y * y), PLANE, pi, True),
    "exp(-x - y)": (lambda x, y: torch.exp(-x - y), QUARTER, 1.0, False),
    "(1 + x + y)^-3": (lambda x, y: (1 + x + y) ** -3, QUARTER, 0.5, False),
    "x exp(-x (1 + y))": (lambda x, y: x * torch.exp(-x * (1 + y)), QUARTER, 1.0, False),
}
"""f, where, the exact value, and whether the error reported is close; elsewhere it is that of a single integral."""


@pytest.mark.parametrize("name", FAMILY)
def test_nested_defaults(name: str) -> None:
    f, (a, b, lower, upper), exact, is_close = FAMILY[name]
    outer = lambda x: qg.quad(lambda y, x: f(x, y), lower(x), upper(x), (x,)).value
    result = qg.quad(outer, t64(a), b)
    off, reported = abs(float(result.value) - exact), float(result.error)
    assert result.converged and off <= 1e-8 and off <= reported + 1e-15 * exact
    assert reported <= (max(1_000 * off, 1e-11) if is_close else 2e-9)
