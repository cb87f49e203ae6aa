"""Wrapped functions inside integrals, and integrals inside wrapped functions."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch.autograd import gradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import quadgrad as qg
from bridge_problems import libm
from helpers import leaf, t64
from quadgrad import bridge


def damped(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.exp(-p * x) * np.cos(x)


def exact(p: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the integral of ``damped`` from 0 to b."""
    return (p + torch.exp(-p * b) * (torch.sin(b) - p * torch.cos(b))) / (p**2 + 1)


WRAPPED = {
    "elementwise": bridge.wrap(damped, sparsity="elementwise"),
    "vectorized": bridge.wrap(damped, sparsity="elementwise", vectorized=True),
    "plain": bridge.wrap(damped),
    "numbers": bridge.wrap(lambda x, p: math.exp(-p * x) * math.cos(x), scalars=True),
    "complex step": bridge.wrap(damped, "complex", sparsity="elementwise"),
    "derivative": bridge.wrap(
        damped, derivative=lambda x, p: (-np.exp(-p * x) * (p * np.cos(x) + np.sin(x)), -x * damped(x, p))
    ),
}
every = pytest.mark.parametrize("f", WRAPPED.values(), ids=WRAPPED)


@every
def test_value_parameters_and_limits(f: Any) -> None:
    p, b = leaf(0.7), leaf(2.0)
    result = qg.quad(f, 0.0, b, args=(p,), rtol=1e-10)
    truth = exact(p, b)
    assert result.converged.all()
    assert (result.value - truth).abs() <= result.error
    found = torch.autograd.grad(result.value, (p, b), create_graph=True)
    wanted = torch.autograd.grad(truth, (p, b), create_graph=True)
    for g, e in zip(found, wanted, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(
        torch.autograd.grad(found[0], (p, b)), torch.autograd.grad(wanted[0], (p, b)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["elementwise", "vectorized", "numbers", "derivative"])
def test_a_batch_of_integrals(name: str) -> None:
    p, b = leaf([0.3, 0.7, 2.0]), leaf([1.0, 2.0, 3.0])
    value, error = qg.quad(WRAPPED[name], 0.0, b, args=(p,), rtol=1e-10)
    assert ((value - exact(p, b)).abs() <= error).all()
    found = torch.autograd.grad(value.sum(), (p, b))
    wanted = torch.autograd.grad(exact(p, b).sum(), (p, b))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


@every
def test_an_integrand_of_numbers_in_quad(f: Any) -> None:
    """With vectorized=False quad hands over Python floats and the parameters that need a gradient as tensors."""
    p, b = leaf(0.7), leaf(2.0)
    value, _ = qg.quad(f, 0.0, b, args=(p,), vectorized=False)
    torch.testing.assert_close(value, exact(p, b))
    torch.testing.assert_close(
        torch.autograd.grad(value, (p, b)), torch.autograd.grad(exact(p, b), (p, b)), rtol=1e-8, atol=1e-9
    )


def test_transforms_over_integrals() -> None:
    f = WRAPPED["elementwise"]
    area = lambda q: qg.quad(f, 0.0, q[1], args=(q[0],)).value
    truth = lambda q: exact(q[0], q[1])
    q = t64([0.7, 2.0])
    torch.testing.assert_close(grad(area)(q), grad(truth)(q), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(jacfwd(area)(q), jacrev(truth)(q), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(jvp(area, (q,), (q,))[1], jvp(truth, (q,), (q,))[1], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(hessian(area)(q), hessian(truth)(q), rtol=1e-5, atol=1e-6)
    many = torch.stack([q, 1.5 * q])
    torch.testing.assert_close(vmap(grad(area))(many), vmap(grad(truth))(many), rtol=1e-8, atol=1e-9)
    assert gradcheck(area, (q.clone().requires_grad_(),))


@pytest.mark.parametrize("name", WRAPPED)
def test_resolve(name: str) -> None:
    """A derivative that is searched to a tolerance of its own, which the errors of the wrapped function must allow.

    Those of one that is not known to work elementwise are wider: what all its nodes miss is charged to each.
    """
    p, b, rtol = leaf(0.7), leaf(2.0), 1e-8 if name == "plain" else 1e-9
    value = qg.quad(WRAPPED[name], 0.0, b, args=(p,), gradient=qg.Resolve(rtol=rtol)).value
    wanted = torch.autograd.grad(exact(p, b), (p, b))
    torch.testing.assert_close(value, exact(p, b))
    torch.testing.assert_close(torch.autograd.grad(value, (p, b)), wanted, rtol=1e-11, atol=0.0)


def test_resolve_under_transforms_and_for_a_batch() -> None:
    f = WRAPPED["elementwise"]
    p, b = t64([0.3, 0.7, 2.0]), t64([1.0, 2.0, 3.0])
    area = lambda p, b: qg.quad(f, 0.0, b, args=(p,), gradient=qg.Resolve(rtol=1e-9)).value
    leaves = p.clone().requires_grad_(), b.clone().requires_grad_()
    found = torch.autograd.grad(area(*leaves).sum(), leaves)
    wanted = grad(lambda p, b: exact(p, b).sum(), (0, 1))(p, b)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(vmap(grad(area, (0, 1)))(p, b), wanted, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(jacfwd(area)(p[0], b[0]), wanted[0][0], rtol=1e-8, atol=1e-9)


def test_breakpoints_infinite_limits_and_vector_values() -> None:
    step = bridge.wrap(lambda x, s: np.where(x > s, 1.0, 0.0) * np.ones_like(x), sparsity="elementwise")
    s = leaf(0.3)
    value, _ = qg.quad(step, -1.0, 1.0, args=(s,), points=s)
    value.backward()
    torch.testing.assert_close(s.grad, t64(-1.0))
    p = leaf(2.0)
    value, _ = qg.quad(WRAPPED["elementwise"], 0.0, math.inf, args=(p,))
    value.backward()
    torch.testing.assert_close(value, p / (p**2 + 1))
    torch.testing.assert_close(p.grad, ((1 - p**2) / (p**2 + 1) ** 2).detach(), rtol=1e-7, atol=0.0)
    vector = bridge.wrap(lambda x, p: np.stack([x * p, np.sin(p * x)], -1), sparsity="elementwise")
    p = leaf(2.0)
    value, _ = qg.quad(vector, 0.0, 1.0, args=(p,))
    torch.testing.assert_close(value, torch.stack([p / 2, (1 - torch.cos(p)) / p]))
    torch.testing.assert_close(
        torch.autograd.grad(value.sum(), p)[0],
        torch.autograd.grad(p / 2 + (1 - torch.cos(p)) / p, p)[0],
    )


def test_a_compiled_function_through_ctypes() -> None:
    erf = bridge.wrap(libm.erf, scalars=True)
    b = leaf(1.3)
    value, error = qg.quad(lambda x: erf(x), 0.0, b)
    truth = b * torch.erf(b) + (torch.exp(-(b**2)) - 1) / math.pi**0.5
    assert (value - truth).abs() <= error
    torch.testing.assert_close(torch.autograd.grad(value, b)[0], torch.erf(b.detach()))


def test_no_severed_gradient_warning_where_the_bridge_is_used() -> None:
    p = leaf(0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qg.quad(WRAPPED["elementwise"], 0.0, 1.0, args=(p,)).value.backward()
    with pytest.warns(qg.SeveredGradientWarning, match="bridge.wrap"):
        qg.quad(lambda x, p: torch.from_numpy(damped(x.numpy(), p.detach().numpy())), 0.0, 1.0, args=(p,))


def test_an_expensive_integrand_runs_through_an_executor() -> None:
    p, b = leaf(0.7), leaf(2.0)
    alone = qg.quad(WRAPPED["numbers"], 0.0, b, args=(p,))
    expected = torch.autograd.grad(alone.value, (p, b))
    with ThreadPoolExecutor(2) as pool:
        f = bridge.wrap(lambda x, p: math.exp(-p * x) * math.cos(x), scalars=True, executor=pool)
        value = qg.quad(f, 0.0, b, args=(p,)).value
        assert torch.equal(value, alone.value)
        for found, wanted in zip(torch.autograd.grad(value, (p, b)), expected, strict=True):
            assert torch.equal(found, wanted)


@bridge.wrap(noise=1e-12)
def by_scipy(p: np.ndarray, b: np.ndarray) -> np.ndarray:
    value, _ = scipy.integrate.quad(lambda x: np.exp(-p * x) * np.cos(x), 0.0, float(b), epsabs=1e-13, epsrel=1e-13)
    return np.asarray(value)


def test_scipys_quad_as_a_function_of_its_parameters() -> None:
    p, b = leaf(0.7), leaf(2.0)
    found = torch.autograd.grad(by_scipy(p, b), (p, b))
    wanted = torch.autograd.grad(exact(p, b), (p, b))
    for g, e, error in zip(found, wanted, by_scipy.info.gradient_error, strict=True):
        assert (g - e).abs() <= float(error) < 1e-6
    torch.testing.assert_close(
        vmap(grad(by_scipy))(t64([0.5, 0.7]), t64([1.0, 2.0])),
        vmap(grad(exact))(t64([0.5, 0.7]), t64([1.0, 2.0])), rtol=1e-7, atol=1e-8,
    )  # fmt: skip
