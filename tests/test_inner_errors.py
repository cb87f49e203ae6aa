"""What integrals and wrapped functions inside f are off by: in the errors of the outer one and its derivatives."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64

OFF = 1.0 + 1e-12
"""Reported errors are summed in another order than true ones."""


def error_of(result: qg.Result, wrt: Tensor) -> Tensor:
    error = qg.gradient_error(result, wrt)
    assert isinstance(error, Tensor)
    return error


def slope_of(value: Tensor, wrt: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), wrt, retain_graph=True)[0]


# ----------------------------------------------------------------------------------------- inner integrals


def rounded(y: Tensor, q: Tensor) -> Tensor:
    """Nearly a kink at 0: its derivative by q is a peak that a loose value does not resolve."""
    return torch.sqrt(y**2 + q**2)


def area(q: Tensor) -> Tensor:
    return (torch.sqrt(1 + q**2) + q**2 * torch.asinh(1 / q)) / 2


def by_argument(q: Tensor, rtol: float, **options: Any) -> qg.Result:
    g = lambda y, x, q: x * rounded(y, q)
    f = lambda x, q: qg.quad(g, 0 * x, 1.0, (x, q), rtol=rtol, on_failure="ignore").value
    return qg.quad(f, t64(0.0), 1.0, (q,), rtol=1e-3, on_failure="ignore", **options)


def by_closure(q: Tensor, rtol: float, **options: Any) -> qg.Result:
    f = lambda x: qg.quad(lambda y, x: x * rounded(y, q), 0 * x, 1.0, (x,), rtol=rtol, on_failure="ignore").value
    return qg.quad(f, t64(0.0), 1.0, rtol=1e-3, on_failure="ignore", **options)


def by_thrice(q: Tensor, rtol: float, **options: Any) -> qg.Result:
    innermost = lambda z, x, y, q: 2 * y * x * rounded(z, q)
    g = lambda y, x, q: qg.quad(innermost, 0 * x, 1.0, (x, y, q), rtol=rtol, on_failure="ignore").value
    f = lambda x, q: qg.quad(g, 0 * x, 1.0, (x, q), rtol=rtol, rule="gk15", on_failure="ignore").value
    return qg.quad(f, t64(0.0), 1.0, (q,), rtol=1e-3, rule="gk15", on_failure="ignore", **options)


def by_limit(q: Tensor, rtol: float, **options: Any) -> qg.Result:
    """The same after y = q u: what is differentiated stands in a limit, too."""
    g = lambda y, x, q: x * q**2 * torch.sqrt(y**2 + 1)
    f = lambda x, q: qg.quad(g, 0 * x, 1 / q, (x, q), rtol=rtol, on_failure="ignore").value
    return qg.quad(f, t64(0.0), 1.0, (q,), rtol=1e-3, on_failure="ignore", **options)


WAYS: dict[str, Callable[..., qg.Result]] = {
    "argument": by_argument, "closure": by_closure, "thrice": by_thrice, "limit": by_limit,
}  # fmt: skip


@pytest.mark.parametrize("rtol", (1e-1, 1e-3, 1e-6))
@pytest.mark.parametrize("way", WAYS)
def test_inner_errors_are_in_gradient_error(way: str, rtol: float) -> None:
    for width in (3e-3, 0.03, 0.2) if way != "thrice" else (0.03,):
        q = leaf(width)
        result = WAYS[way](q, rtol)
        true = (slope_of(result.value, q) - slope_of(area(q) / 2, q)).abs()
        assert bool(true <= OFF * error_of(result, q) + 1e-15)


@pytest.mark.parametrize("way", WAYS)
def test_inner_errors_that_are_small_add_little(way: str) -> None:
    q = leaf(0.2)
    result = WAYS[way](q, 1e-10)
    assert bool(error_of(result, q) <= 1e-8)


@pytest.mark.parametrize("rtol", (1e-3, 1e-9))
@pytest.mark.parametrize("way", ("argument", "closure"))
def test_inner_errors_are_in_searched_derivatives(way: str, rtol: float) -> None:
    q = leaf([3e-3, 0.03]) if way == "argument" else leaf(3e-3)
    mode = qg.Resolve(rtol=1e-6, params=q if way == "closure" else None)
    result = WAYS[way](q, rtol, gradient=mode)
    true = (slope_of(result.value, q) - slope_of(area(q) / 2, q)).abs()
    assert result.derivative is not None
    assert bool((true <= OFF * result.derivative.error.reshape(q.shape)).all())
    told = result.derivative.status == int(qg.Status.CONVERGED)
    assert bool((result.derivative.error.reshape(q.shape) <= 1e-6 * slope_of(area(q) / 2, q))[told].all())
    assert bool(told.all()) is (rtol == 1e-9)


@pytest.mark.parametrize("rtol", (3e-2, 1e-4, 1e-8))
def test_what_f_makes_of_an_inner_value_is_off_with_it(rtol: float) -> None:
    """exp(-I): the derivative is off with I, too, not with the inner derivative alone."""
    q = leaf(0.05)

    def outer(inner: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, q: torch.exp(-3 * x * inner(x, q))

    coarse = lambda x, q: (
        qg.quad(lambda y, q: rounded(y, q), 0 * x, 1.0, (q,), rtol=rtol, on_failure="ignore").value
    )
    result = qg.quad(outer(coarse), t64(0.0), 1.0, (q,), rtol=1e-8, on_failure="ignore")
    exact = qg.quad(outer(lambda x, q: area(q) + 0 * x), t64(0.0), 1.0, (q,), rtol=1e-12)
    true = (slope_of(result.value, q) - slope_of(exact.value, q)).abs()
    assert bool(true <= OFF * error_of(result, q))


def test_boxes_hear_of_inner_integrals() -> None:
    q = leaf(3e-3)
    f = lambda x, q: (
        qg.quad(
            lambda y, s, q: s * rounded(y, q), 0 * x[..., 0], 1.0, (x.prod(-1), q), rtol=1e-3, on_failure="ignore"
        ).value
    )
    result = qg.cubature(f, t64([0.0, 0.0]), 1.0, (q,), rtol=1e-3, on_failure="ignore")
    true = (slope_of(result.value, q) - slope_of(area(q) / 4, q)).abs()
    assert bool(true <= OFF * error_of(result, q))


def test_what_a_transform_of_f_hides_is_not_known() -> None:
    q = leaf(0.03)
    one = lambda x, q: qg.quad(rounded, t64(0.0), 1.0, (q,), rtol=1e-3, on_failure="ignore").value * x
    f = lambda x, q: torch.func.vmap(one, (0, None))(x.reshape(-1), q.reshape(-1)[0]).reshape(x.shape)
    result = qg.quad(f, t64(0.0), 1.0, (q,), rtol=1e-3, on_failure="ignore")
    assert bool(error_of(result, q).isinf())


def test_integrals_of_numbers_inside_are_not_asked_for_what_they_do_not_have() -> None:
    q = leaf(0.5)
    f = lambda x, q: q * x * qg.quad(lambda y: y, t64(0.0), 1.0).value
    result = qg.quad(f, t64(0.0), 1.0, (q,))
    assert bool(error_of(result, q) <= 1e-14)


# --------------------------------------------------------------------------------------- wrapped functions

METHODS = ("forward", "central", "richardson", "complex", "spsa")


@pytest.mark.parametrize("closed", (False, True))
@pytest.mark.parametrize("method", METHODS)
def test_the_bar_of_a_wrapped_function_is_in_gradient_error(method: str, closed: bool) -> None:
    p = leaf(1.3)
    sparsity = None if method == "spsa" else "elementwise"
    wrapped = qg.bridge.wrap(lambda x, p: np.sin(p * x) * x, method, seed=0, sparsity=sparsity)
    f = (lambda x: wrapped(x, p)) if closed else (lambda x, p: wrapped(x, p))
    result = qg.quad(f, t64(0.0), 2.0, () if closed else (p,), rtol=1e-6)
    exact = (torch.sin(2 * p) - 2 * p * torch.cos(2 * p)) / p**2
    true = (slope_of(result.value, p) - slope_of(exact, p)).abs()
    error = error_of(result, p)
    assert bool(true <= OFF * error + 1e-15)
    if method == "forward":
        assert bool(error >= 1e-10)


def test_what_is_given_has_no_bar() -> None:
    p = leaf(1.3)
    wrapped = qg.bridge.wrap(lambda x, p: np.exp(p * x), lambda x, p: (p * np.exp(p * x), x * np.exp(p * x)))
    result = qg.quad(wrapped, t64(0.0), 1.0, (p,))
    assert bool(error_of(result, p) <= 1e-14)


def test_the_bar_of_a_wrapped_function_is_in_searched_derivatives() -> None:
    p = leaf([0.7, 1.3])
    wrapped = qg.bridge.wrap(lambda x, p: np.exp(-p * x), "forward", sparsity="elementwise")
    for rtol in (1e-5, 1e-10):
        result = qg.quad(wrapped, t64(0.0), 1.0, (p,), gradient=qg.Resolve(rtol=rtol), on_failure="ignore")
        true = (slope_of(result.value, p) - slope_of((1 - torch.exp(-p)) / p, p)).abs()
        assert result.derivative is not None
        assert bool((true <= result.derivative.error[:, 0]).all())
        assert bool((result.derivative.status == int(qg.Status.ROUNDOFF)).all()) is (rtol == 1e-10)


@pytest.mark.parametrize("event", (False, True))
@pytest.mark.parametrize("vectorized", (True, False))
@pytest.mark.parametrize("noise", ((1e-4, 0.0), (0.0, 1e-4), (1e-4, 1e-4)))
def test_declared_noise_is_in_the_error_of_the_value(noise: Any, vectorized: bool, event: bool) -> None:
    """An error that is smooth, which search by itself cannot see."""
    off = lambda x: np.exp(x) + 0.9e-4 * np.cos(x) * (1 if noise[0] == 0.0 else np.exp(x))
    wrapped = qg.bridge.wrap(off, scalars=not vectorized, noise=noise)
    f = (lambda x: torch.stack((wrapped(x), 2 * wrapped(x)), -1)) if event else wrapped
    result = qg.quad(f, t64(0.0), 1.0, rtol=1e-8, on_failure="ignore")
    true = (result.value - (math.e - 1) * t64([1.0, 2.0] if event else 1.0)).abs().max()
    assert result.status == int(qg.Status.ROUNDOFF)
    assert bool(true <= result.error) and float(result.error) <= 2e-3
    loose = qg.quad(f, t64(0.0), 1.0, rtol=1e-2)
    assert bool(loose.converged) and float(loose.error) >= 1e-5


# ------------------------------------------------------------------------------------------- one warning


def warned(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("chunk_size", (None, 21, 63))
def test_inner_failures_are_told_once_in_a_backward_pass_too(chunk_size: int | None) -> None:
    def call() -> None:
        p = leaf(0.5)
        g = lambda y, x, p: torch.sqrt((y - x).abs()) * p
        f = lambda x, p: qg.quad(g, 0 * x, 1.0, (x, p), rtol=1e-9, max_nfev=63).value
        result = qg.quad(f, t64(0.0), 1.0, (p,), rtol=1e-3, chunk_size=chunk_size)
        result.value.backward(retain_graph=True)
        qg.gradient_error(result, p)

    assert len(warned(call)) == 1


def test_a_wrapped_function_that_returns_nan_says_so_once() -> None:
    def call() -> None:
        wrapped = qg.bridge.wrap(lambda x: np.where(x > 0.3, x, np.nan), sparsity="elementwise")
        qg.quad(lambda x: wrapped(x), t64(0.0), 1.0)

    told = warned(call)
    assert sum("returned nan" in one for one in told) == 1 and len(told) == 2


def occupied(x: Tensor, eta: Tensor) -> Tensor:
    return torch.exp(-(x**2)) / (torch.exp(x**2 - eta) + 1)


class Holder:
    def __init__(self, value: Tensor) -> None:
        self.values = {"eta": value}

    def __call__(self, x: Tensor) -> Tensor:
        return occupied(x, self.values["eta"])


@pytest.mark.parametrize("chunk_size", (None, 64))
@pytest.mark.parametrize("kind", ("leaf", "computed", "module", "held", "grad", "hidden", "two integrals"))
def test_a_nan_gradient_of_what_f_closes_over_is_told_once(kind: str, chunk_size: int | None) -> None:
    eta = leaf(0.5)
    net = torch.nn.Linear(1, 2, dtype=torch.float64)
    computed, box = 2 * torch.sigmoid(eta), [[2 * eta]]
    functions: dict[str, Any] = {
        "leaf": lambda x: occupied(x, eta),
        "computed": lambda x: occupied(x, computed),
        "module": lambda x: occupied(x[..., None], net.bias).sum(-1),
        "held": Holder(eta),
        "grad": lambda x: occupied(x, eta),
        "hidden": lambda x: occupied(x, box[0][0]),
        "two integrals": lambda x: occupied(x, eta),
    }
    name = {"computed": "computed", "module": "net.bias", "held": "values['eta']", "hidden": "a tensor that"}

    def call() -> None:
        result = qg.quad(functions[kind], t64(-math.inf), math.inf, chunk_size=chunk_size)
        if kind == "grad":
            assert slope_of(result.value, eta).isnan()
        else:
            result.value.sum().backward()
            assert bool((net.bias if kind == "module" else eta).grad.isnan().all())

    (told,) = warned(call)
    assert f"with respect to {name.get(kind, 'eta')}" in told and "f closes over" in told
    if kind != "hidden":
        x = t64(float(told.split("at x = ")[1].split(",")[0]))
        assert slope_of(occupied(x, eta), eta).isnan()


def test_inside_another_integral_the_outer_one_tells_of_it() -> None:
    def call() -> None:
        eta = leaf(0.5)
        f = lambda x, eta: (
            qg.quad(
                lambda y, x, eta: x * occupied(y, eta), -math.inf * torch.ones_like(x), math.inf, (x, eta)
            ).value
        )
        qg.quad(f, t64(0.0), 1.0, (eta,)).value.backward()

    (told,) = warned(call)
    assert "args[0]" in told


class Weight:
    """What f closes over: it lives as long as f does."""

    def __init__(self) -> None:
        self.p = leaf(0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp(-self.p * x)


@pytest.mark.parametrize("backward", (False, True))
def test_nothing_is_said_of_closures_with_finite_gradients_and_no_graph_is_kept(backward: bool) -> None:
    f = Weight()
    alive = weakref.ref(f)
    value = qg.quad(f, t64(0.0), math.inf).value
    if backward:
        value.backward()
        assert f.p.grad is not None
    assert not f.p._backward_hooks
    del value, f
    gc.collect()
    assert alive() is None
