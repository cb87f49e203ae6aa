"""Budgets that rounding has eaten up end ROUNDOFF, of derivatives too, and MAX_NFEV where f is only hard."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core.search.kernel import opening

ROUNDED: dict[str, Callable[..., Tensor]] = {
    "exp(px) - 1 - px": lambda x, p: (torch.exp(1e-4 * p * x) - 1 - 1e-4 * p * x) / 1e-8,
    "lgamma far out": lambda x, p: torch.lgamma(p * x + 1e6 + 0.3) - torch.lgamma(p * x + 1e6),
    "the same, more so": lambda x, p: (torch.exp(1e-6 * p * x) - 1 - 1e-6 * p * x) / 1e-12,
}

HARD: dict[str, Callable[..., Tensor]] = {
    "fast waves": lambda x, p: torch.sin(1e6 * p * x),
    "very fast waves": lambda x, p: torch.sin(3e7 * p * x),
    "steps": lambda x, p: torch.floor(1000 * p * x) + 0 * p,
    "nowhere smooth": lambda x, p: sum((0.5**k * torch.cos(3.0**k * p * x) for k in range(24)), 0 * x),
    "fast kinks": lambda x, p: torch.sin(3e4 * p * x).abs(),
}


def ended(f: Callable[..., Tensor], p: Any, **options: Any) -> qg.Result:
    return qg.quad(f, t64(0.1), 1.0, (p,), rtol=1e-12, on_failure="ignore", **options)


@pytest.mark.parametrize("kind", ROUNDED)
def test_rounding_is_told(kind: str) -> None:
    for p in (1.0, 1.7, 0.6):
        assert ended(ROUNDED[kind], t64(p)).status == int(qg.Status.ROUNDOFF)


@pytest.mark.parametrize("kind", HARD)
def test_what_is_only_hard_ran_out_of_its_budget(kind: str) -> None:
    for p in (1.0, 1.7):
        assert ended(HARD[kind], t64(p)).status == int(qg.Status.MAX_NFEV)


def test_each_of_a_batch_by_itself() -> None:
    f = lambda x, p, rough: torch.where(rough > 0, ROUNDED["lgamma far out"](x, p), HARD["fast waves"](x, p))
    result = qg.quad(f, t64(0.1), 1.0, (t64([1.0, 1.0]), t64([1.0, 0.0])), rtol=1e-12, on_failure="ignore")
    assert result.status.tolist() == [int(qg.Status.ROUNDOFF), int(qg.Status.MAX_NFEV)]


@pytest.mark.parametrize("kernel", [True, False])
def test_what_could_not_be_looked_for_is_not_rounding(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a function that is 0 at all nodes a small budget does not let look for needles; nor beside feet."""
    if not kernel:
        monkeypatch.setattr(opening, "load", lambda: None)
    late = int(qg.Status.MAX_NFEV)
    nothing = qg.quad(lambda x: 0.0 * x, t64(0.0), 1.0, max_nfev=50, on_failure="ignore")
    assert nothing.status == late
    foot = lambda x, c: torch.cos(0.2 * x) + 33.0 * torch.exp(-(((x - c) / 1e-3) ** 2))
    cut = qg.quad(foot, t64(0.0), 1.0, (t64([0.69, 0.31]),), rule="cc17", max_nfev=50, on_failure="ignore")
    assert cut.status.tolist() == [late, late]


@pytest.mark.parametrize("kernel", [True, False])
def test_what_is_not_finite_is_not_rounding(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells with NaN tell nothing of rounding; in a batch, too, where others have finite ones."""
    if not kernel:
        monkeypatch.setattr(opening, "load", lambda: None)
    f = lambda x, q: torch.where(x > q, x, torch.nan)
    q = t64([0.75, 0.55, 0.95])
    result = qg.quad(f, torch.zeros_like(q), 1.0, (q,), rule="gk15", max_nfev=100, on_failure="ignore")
    single = [qg.quad(f, t64(0.0), 1.0, (one,), rule="gk15", max_nfev=100, on_failure="ignore") for one in q]
    assert result.status.tolist() == [int(one.status) for one in single] == [int(qg.Status.MAX_NFEV)] * 3


def test_derivatives_made_of_rounding() -> None:
    """The derivative by p is the cancelling difference; the value is nearly all something else."""
    p = leaf([1.0, 1.7])
    f = lambda x, p: torch.exp(x) + 1e-6 * ROUNDED["lgamma far out"](x, p)
    result = qg.quad(f, t64(0.1), 1.0, (p,), rtol=1e-8, gradient=qg.Resolve(rtol=1e-13), on_failure="ignore")
    assert result.derivative is not None and bool(result.converged.all())
    assert not bool((result.derivative.status == int(qg.Status.MAX_NFEV)).any())


def test_derivatives_of_differences_of_what_is_rounded() -> None:
    p = leaf([1.0, 1.7])
    rough = lambda x, p: p * (torch.lgamma(x + 1e6 + 0.3) - torch.lgamma(x + 1e6))
    f = lambda x, p: 1e5 * torch.exp(x) + rough(x, p)
    result = qg.quad(f, t64(0.1), 1.0, (p,), rtol=1e-8, gradient=qg.Resolve(rtol=1e-12), on_failure="ignore")
    assert result.derivative is not None and bool(result.converged.all())
    assert result.derivative.status.tolist() == [int(qg.Status.ROUNDOFF)] * 2


@pytest.mark.parametrize("engine", ("kernel", "tensors"))
@pytest.mark.parametrize("name", ("step", "peak", "kink"))
@pytest.mark.parametrize(("low", "upper"), ((0.0, True), (1.0, True), (1.0, False)))
def test_what_is_close_to_an_end_in_single_precision(
    name: str, low: float, upper: bool, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Close to an end other than 0 nodes soon are equal numbers; farther out cells are halved all the same."""
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    end, sign = low + upper, 1.0 if upper else -1.0
    place = end - sign * torch.linspace(0.01, 0.05, 21)
    apart = (end - place.double()).abs()
    f, exact = {
        "step": (lambda x, p: torch.where(sign * (x - p) > 0.0, 1.0, 0.0), apart),
        "peak": (
            lambda x, p: torch.exp(-(((x - p) * 300.0) ** 2)),
            (torch.erf(apart * 300.0) + 1.0) * (math.pi**0.5 / 600.0),
        ),
        "kink": (lambda x, p: (x - p).abs(), (apart**2 + (1.0 - apart) ** 2) / 2.0),
    }[name]
    result = qg.quad(f, low, low + 1.0, (place,), on_failure="ignore")
    assert int(result.converged.sum()) >= (19 if name == "peak" else 21)  # without halves 8 and 10
    assert bool(((result.value.double() - exact).abs() <= result.error.double() + 2e-6 * exact).all())
