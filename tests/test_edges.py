"""Edges of the contract: gradients of empty batches in every way, and equal limits, where f is not called."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64


def none(*shape: int) -> Tensor:
    return torch.zeros(0, *shape, dtype=torch.float64, requires_grad=True)


def decay(x: Tensor, p: Tensor) -> Tensor:
    return torch.exp(-p * x)


def step(x: Tensor, s: Tensor) -> Tensor:
    return torch.where(x > s, 1.0 + 0 * s, 0.0 * s)


MODES = {"reuse": qg.Reuse(), "resolve": qg.Resolve()}

EMPTY: dict[str, Callable[..., qg.Result]] = {
    "argument": lambda p, **o: qg.quad(decay, t64(0.0), 1.0, (p,), **o),
    "argument, infinite": lambda p, **o: qg.quad(decay, t64(0.0), math.inf, (p,), **o),
    "chunks": lambda p, **o: qg.quad(decay, t64(0.0), 1.0, (p,), chunk_size=21, **o),
    "limit": lambda p, **o: qg.quad(lambda x: x, t64(0.0), p, **o),
    "events": lambda p, **o: qg.quad(lambda x, p: torch.stack((x, p * x), -1), t64(0.0), p, (p,), **o),
    "complex": lambda p, **o: qg.quad(lambda x, p: torch.exp(1j * p * x), t64(0.0), 1.0, (p,), **o),
    "breakpoint": lambda p, **o: qg.quad(step, t64(0.0), 1.0, (p,), points=p[..., None], **o),
    "jump": lambda p, **o: qg.quad(step, t64(0.0), 1.0, (p,), jumps=lambda x, s: x - s, **o),
    "logarithm": lambda p, **o: qg.quad(lambda x, p: -p * x, t64(0.0), 1.0, (p,), log=True, **o),
    "box": lambda p, **o: qg.cubature(lambda x, p: decay(x.sum(-1), p), t64([0.0, 0.0]), 1.0, (p,), **o),
}


@pytest.mark.parametrize("shape", ((), (3,)))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", EMPTY)
def test_gradients_of_an_empty_batch(kind: str, mode: str, shape: tuple[int, ...]) -> None:
    p = none(*shape)
    result = EMPTY[kind](p, gradient=MODES[mode])
    assert result.value.shape[: p.ndim] == p.shape == result.status.shape
    slope = torch.autograd.grad(result.value.abs().sum(), p, retain_graph=True)[0]
    assert slope.shape == p.shape
    error = qg.gradient_error(result, p)
    assert isinstance(error, Tensor) and error.shape == p.shape
    if result.derivative is not None:
        assert result.derivative.error.shape[:-1] == p.shape


@pytest.mark.parametrize("mode", ("reuse", "resolve"))
def test_what_f_closes_over_has_a_gradient_of_zero_by_an_empty_batch(mode: str) -> None:
    q = leaf(1.3)
    gradient = qg.Resolve(params=q) if mode == "resolve" else qg.Reuse()
    qg.quad(lambda x, p: decay(x, p * q), t64(0.0), 1.0, (none(),), gradient=gradient).value.sum().backward()
    assert q.grad is not None and float(q.grad) == 0.0


@pytest.mark.parametrize("keyed", (False, True))
def test_an_integrator_bears_empty_batches(keyed: bool) -> None:
    kept = qg.Integrator(qg.quad)
    for count in (2, 0, 3, 0, 1):
        p = torch.full((count,), 1.5, dtype=torch.float64, requires_grad=True)
        options = {"key": list(range(count))} if keyed else {}
        kept(decay, t64(0.0), 1.0, (p,), **options).value.sum().backward()
        assert p.grad is not None and p.grad.shape == (count,)
        exact = torch.autograd.grad(((1 - torch.exp(-p)) / p).sum(), p)[0]
        assert bool(((p.grad - exact).abs() <= 1e-9).all())


@pytest.mark.parametrize("way", ("grad", "jacrev", "vmap"))
def test_transforms_of_an_empty_batch(way: str) -> None:
    f = lambda p: qg.quad(decay, t64(0.0), 1.0, (p,)).value
    p = torch.zeros(0, dtype=torch.float64)
    if way == "grad":
        assert torch.func.grad(lambda p: f(p).sum())(p).shape == (0,)
    elif way == "vmap":
        assert torch.func.vmap(lambda b: qg.quad(decay, t64(0.0), b, (p,)).value)(t64([1.0, 2.0])).shape == (2, 0)
    else:
        assert getattr(torch.func, way)(f)(p).shape == (0, 0)


# ------------------------------------------------------------------------------------ no interval, no call


def never(*_: Any) -> float:
    raise AssertionError("f was called where there is nothing to integrate")


NOTHING: dict[str, Callable[[], qg.Result]] = {
    "one": lambda: qg.quad(never, t64(1.0), 1.0, vectorized=False),
    "batch": lambda: qg.quad(never, t64([1.0, 2.0]), t64([1.0, 2.0]), vectorized=False),
    "infinite": lambda: qg.quad(never, t64(math.inf), math.inf, vectorized=False),
    "argument": lambda: qg.quad(never, t64(1.0), 1.0, (leaf(2.0),), vectorized=False),
    "number": lambda: qg.quad(never, 1.0, 1.0, (2.0,), vectorized=False),
    "resolve": lambda: qg.quad(never, t64(1.0), 1.0, (leaf(2.0),), vectorized=False, gradient=qg.Resolve()),
    "breakpoint": lambda: qg.quad(never, t64(1.0), 1.0, vectorized=False, points=t64(1.0)),
    "events do not matter": lambda: qg.quad(never, t64([1.0]), t64([1.0]), (t64([2.0]),), vectorized=False),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_equal_limits_do_not_call_a_function_of_numbers(kind: str) -> None:
    result = NOTHING[kind]()
    assert bool((result.value == 0.0).all()) and bool((result.error == 0.0).all()) and bool(result.converged.all())
    if result.value.requires_grad:
        result.value.sum().backward()


def test_some_equal_limits_call_it_for_the_others_alone() -> None:
    seen: list[float] = []

    def f(x: float, p: float) -> float:
        seen.append(p)
        return p * x

    result = qg.quad(f, t64([0.0, 1.0]), t64([1.0, 1.0]), (t64([2.0, 3.0]),), vectorized=False)
    assert result.value.tolist() == pytest.approx([1.0, 0.0]) and set(seen) == {2.0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vectorized", (True, False))
def test_equal_limits_have_derivatives_all_the_same(vectorized: bool, mode: str) -> None:
    a, b = leaf(0.5), leaf(0.5)
    f = torch.exp if vectorized else math.exp
    qg.quad(f, a, b, vectorized=vectorized, gradient=MODES[mode]).value.backward()
    assert a.grad is not None and b.grad is not None
    assert float(b.grad) == pytest.approx(math.exp(0.5)) and float(a.grad) == pytest.approx(-math.exp(0.5))
