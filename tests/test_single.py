"""A single integral that its first cell settles is what a search makes of it, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from quadgrad._core.search.kernel.library import load
from quadgrad._core.search.single import settle_single
from quadgrad._core.search.task import Found
from quadgrad._core.verbs import solve

pytestmark = pytest.mark.skipif(load() is None, reason="the kernel was not built")

inf = math.inf
ZERO = torch.zeros((), dtype=torch.float64)

SETTLED: dict[str, tuple[Callable[..., Any], Any, Any, tuple[Any, ...], dict[str, Any]]] = {
    "a polynomial": (lambda x: x**4 - x, ZERO, 2.0, (), {}),
    "limits the other way round": (lambda x: x.exp(), 1.0, ZERO, (), {}),
    "a half line": (lambda x: torch.exp(-x), ZERO, inf, (), {"rtol": 1e-2}),
    "the line": (lambda x: 1 / (1 + x**2), -inf, inf, (), {"rtol": 1e-1}),
    "an argument outside": (lambda x, k: torch.sin(k * x), ZERO, 1.0, (ZERO + 3.0,), {}),
    "a number for an argument": (lambda x, k: torch.sin(k * x), ZERO, 1.0, (3.0,), {}),
    "single precision": (lambda x: torch.cos(x), torch.tensor(0.0), 1.0, (), {}),
    "half precision": (lambda x: torch.cos(x), torch.tensor(0.0, dtype=torch.bfloat16), 1.0, (), {}),
    "an absolute tolerance": (lambda x: torch.sin(9 * x), ZERO, 1.0, (), {"rtol": 0.0, "atol": 1e-3}),
    "another rule": (lambda x: torch.exp(x), ZERO, 1.0, (), {"rule": "gk15"}),
    "f at one x at a time": (math.cos, ZERO, 1.0, (), {"vectorized": False}),
    "more than rounding allows": (lambda x: torch.exp(x), ZERO, 1.0, (), {"rtol": 1e-18, "on_failure": "ignore"}),
}
SEARCHED: dict[str, tuple[Callable[..., Any], Any, Any, tuple[Any, ...], dict[str, Any]]] = {
    "a peak": (lambda x: 1 / (1e-4 + (x - 0.3) ** 2), ZERO, 1.0, (), {}),
    "a peak whose budget is spent": (
        lambda x: 1 / (1e-4 + (x - 0.3) ** 2), ZERO, 1.0, (), {"max_nfev": 26, "on_failure": "ignore"},
    ),
    "nothing": (lambda x: 0.0 * x, ZERO, 1.0, (), {}),
    "a bump between the nodes": (lambda x: torch.exp(-(((x - 0.37) * 1e4) ** 2)), ZERO, 1.0, (), {}),
    "an argument inside": (lambda x, k: torch.cos(x - k), ZERO, 1.0, (ZERO + 0.3,), {}),
    "a pole": (lambda x: 1 / x, ZERO, 1.0, (), {"on_failure": "ignore"}),
    "no number": (lambda x: x.log(), ZERO - 1.0, 1.0, (), {"on_failure": "ignore"}),
    "several components": (lambda x: torch.stack((x, x * x), -1), ZERO, 1.0, (), {}),
    "complex numbers": (lambda x: torch.exp(1j * x), ZERO, 1.0, (), {}),
    "an integral inside": (
        lambda x: qg.quad(lambda t, x: torch.cos(t * x), 0.0, 1.0, args=(x,)).value, ZERO, 1.0, (), {},
    ),
}  # fmt: skip


def compare(
    monkeypatch: pytest.MonkeyPatch, f: Callable[..., Any], a: Any, b: Any, args: Any, options: Any
) -> list[Found | None]:
    """Integrate with and without the short way, and return what the short way found where there is one integral."""
    told = list[Found | None]()

    def noted(problem: Any) -> Found | None:
        told.append(settle_single(problem))
        return told[-1]

    monkeypatch.setattr(solve, "settle_single", noted)
    short = qg.quad(f, a, b, args=args, **options)
    monkeypatch.setattr(solve, "settle_single", lambda problem: None)
    long = qg.quad(f, a, b, args=args, **options)
    for name in ("value", "error", "status", "nfev"):
        one, other = getattr(short, name), getattr(long, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other) or bool(one.isnan().all() and other.isnan().all())
    assert short.plan.same(long.plan) and torch.equal(short.plan.error, long.plan.error)
    assert (short.plan.even, short.plan.infinite, short.plan.pieces) == (True, long.plan.infinite, 1) or not told[
        -1
    ]
    return told


@pytest.mark.parametrize("name", SETTLED)
def test_what_the_first_cell_settles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(monkeypatch, *SETTLED[name])[-1] is not None


@pytest.mark.parametrize("name", SEARCHED)
def test_what_is_searched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(monkeypatch, *SEARCHED[name])[-1] is None


def test_waves_of_all_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    """From where one cell is enough to where it is not."""
    ways = {True: 0, False: 0}
    for k in torch.linspace(1.0, 80.0, 80).tolist():
        f = lambda x, k=k: torch.cos(k * x) + 0.3
        ways[compare(monkeypatch, f, ZERO, 1.0, (), {})[-1] is None] += 1
    assert min(ways.values()) > 10


def test_gradients_and_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    def derivatives() -> tuple[Tensor, ...]:
        k, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.0, 1.5))
        result = qg.quad(lambda x, k: torch.sin(k * x), 0.0, b, args=(k,))
        (first,) = torch.autograd.grad(result.value, k, create_graph=True)
        return first, *torch.autograd.grad(first, (k, b)), qg.replay(lambda x: x.exp(), result.plan, 0.0, 1.0)

    short = derivatives()
    monkeypatch.setattr(solve, "settle_single", lambda problem: None)
    assert all(torch.equal(one, other) for one, other in zip(short, derivatives(), strict=True))


def test_in_inference_mode_nothing_is_left_behind() -> None:
    """Plans share what is the same in all of them; no tensor of inference mode may be among that."""
    with torch.inference_mode():
        qg.quad(torch.exp, ZERO, 1.0, rule="gk31")
    plan = qg.quad(torch.exp, ZERO, 1.0, rule="gk31").plan
    assert not any(t.is_inference() for t in vars(plan).values() if isinstance(t, Tensor))
