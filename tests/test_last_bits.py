"""What the last bits of rules and of f may decide: the last bits of what is found, and nothing else.

Beside singular ends extrapolation multiplies rounding. Here the tables of a rule are off by up to an eps of each
entry, and f by up to 2 eps: integrals end alike, and what is reported holds.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core.rules import RULES, Rule, get_rule
from quadgrad._core.search.kernel import opening
from quadgrad._core.search.kernel.library import load

EPS = 2.0**-52

COUNT = 20
"""Integrals at once, each of an f with other last bits."""


@pytest.fixture(params=["kernel", "tensors"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    elif load() is None:
        pytest.skip("the package was installed without its compiled kernel")


@pytest.fixture(params=range(5))
def rule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a rule: gk21 as it is, or with other last bits."""
    known, seed = get_rule("gk21"), request.param
    if seed == 0:
        return known.name
    shaken = Rule(f"shaken{seed}", known.nodes, known.weights, known.degree)
    generator = np.random.default_rng(seed)
    for name in ("_coefficients", "_interpolated", "halves", "joint"):
        table = getattr(known, name)
        vars(shaken)[name] = table * (1.0 + EPS * generator.uniform(-1.0, 1.0, table.shape))
    monkeypatch.setitem(RULES, shaken.name, shaken)
    return shaken.name


def shake(y: Tensor, x: Tensor, seed: Tensor) -> Tensor:
    """Return y with other last bits, the same ones at the same x."""
    return y * (1.0 + EPS * torch.round(1.5 * torch.sin(1e9 * seed * torch.log(x.abs()))))


Case = tuple[Callable[[Tensor], Tensor], float, float, float, float]
"""An integrand, the interval, the integral, and the relative tolerance."""

SINGULAR: dict[str, Case] = {
    "x^-0.5": (lambda x: x**-0.5, 0.0, 1.0, 2.0, 1e-12),
    "x^-0.9": (lambda x: x**-0.9, 0.0, 1.0, 10.0, 1e-12),
    "x^-0.99": (lambda x: x**-0.99, 0.0, 1.0, 100.0, 1e-12),
    "x^-1.01 from 1": (lambda x: x**-1.01, 1.0, math.inf, 100.0, 1e-12),
    "x^-0.5 log(x)": (lambda x: x**-0.5 * x.log(), 0.0, 1.0, -4.0, 1e-12),
    "x^-0.9 log(x)": (lambda x: x**-0.9 * x.log(), 0.0, 1.0, -100.0, 1e-10),
    "x^-0.9 (1 + sqrt(x))": (lambda x: x**-0.9 * (1.0 + x.sqrt()), 0.0, 1.0, 10.0 + 1.0 / 0.6, 1e-12),
    "(1-x^2)^-0.5": (lambda x: (1.0 - x * x) ** -0.5, 0.0, 1.0, math.pi / 2.0, 1e-8),
}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("name", SINGULAR)
def test_singular_ends_are_reached_with_any_last_bits(name: str, rule: str) -> None:
    f, a, b, exact, rtol = SINGULAR[name]
    seed = torch.linspace(1.0, 2.0, COUNT, dtype=torch.float64)
    result = qg.quad(lambda x, s: shake(f(x), x, s), t64(a), b, (seed,), rtol=rtol, rule=rule)
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error).all()


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("power", [-1.0, -1.001, -1.01])
def test_what_diverges_does_not_converge_with_any_last_bits(power: float, rule: str) -> None:
    seed = torch.linspace(1.0, 2.0, COUNT, dtype=torch.float64)
    f = lambda x, s: shake(x**power, x, s)
    result = qg.quad(f, t64(0.0), 1.0, (seed,), rtol=1e-4, rule=rule, on_failure="ignore")
    assert not result.converged.any()


@pytest.mark.usefixtures("engine")
def test_a_derivative_that_is_singular_with_any_last_bits(rule: str) -> None:
    p = leaf(0.0)
    result = qg.quad(lambda x, p: (x + p) ** 0.3, t64(0.0), 1.0, (p,), gradient=qg.Resolve(rtol=1e-9), rule=rule)
    (slope,) = torch.autograd.grad(result.value, p)
    assert result.derivative.status == qg.Status.CONVERGED
    assert abs(slope - 1.0) <= 1e-9


NESTED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "(xy)^-0.5": (lambda x, y: (x * y) ** -0.5, 1.0, 4.0),
    "x^-0.25 y^-0.5": (lambda x, y: x**-0.25 * y**-0.5, 1.0, 8.0 / 3.0),
    "x^-0.5 y^-0.25": (lambda x, y: x**-0.5 * y**-0.25, 1.0, 8.0 / 3.0),
    "exp(-x^2-y^2)": (lambda x, y: torch.exp(-x * x - y * y), math.inf, math.pi / 4.0),
}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("name", NESTED)
def test_double_integrals_report_little_with_any_last_bits(name: str, rule: str) -> None:
    f, far, exact = NESTED[name]
    inner = lambda x: qg.quad(lambda y, x: f(x, y), 0.0 * x, far, (x,), rule=rule).value
    result = qg.quad(inner, t64(0.0), far, rule=rule)
    off = abs(result.value - exact)
    assert result.converged and off <= result.error <= max(1_000.0 * off, 1e-11)


TABLES = """
import hashlib
from quadgrad._core.rules import get_rule
for name in ("gk15", "gk21", "gk61", "cc31"):
    r = get_rule(name)
    tables = r.nodes, r.weights, r.functionals, r.shares, r.gaps, r.looks, r.at_looks, r.joint, r.barycentric
    print(name, *(hashlib.sha256(t.tobytes()).hexdigest() for t in tables))
"""


def test_rules_are_the_same_with_the_kernels_of_any_processor() -> None:
    """Those of NumPy for sines, too, where it has some for this processor."""
    ways = (
        {"OPENBLAS_CORETYPE": "Prescott"},
        {"OPENBLAS_CORETYPE": "Haswell"},
        {"NPY_DISABLE_CPU_FEATURES": "AVX2"},
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", TABLES], env=os.environ | way, check=True, capture_output=True, text=True
        ).stdout
        for way in ways
    }
    assert len(printed) == 1
