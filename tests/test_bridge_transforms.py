"""Every transform of torch over wrapped functions, beside the same functions in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from helpers import t64
from quadgrad import bridge

METHODS = ["central", "forward", "richardson", "complex", "spsa", "auto"]


@dataclass(frozen=True, eq=False)
class Grid:
    """A function with its double in torch and with derivatives to give."""

    name: str
    fn: Callable[..., Any]
    twin: Callable[..., Any]
    x: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)

    def wrap(self, method: str) -> Any:
        if method in METHODS:
            return bridge.wrap(self.fn, method, **self.options)
        names = {"vjp and jvp": ("vjp", "jvp")}.get(method, (method,))
        options = self.options if method != "jacobian" else {}
        return bridge.wrap(self.fn, **{name: self.given[name] for name in names}, **options)


MIX = np.array([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]])


def mixed(x: np.ndarray) -> np.ndarray:
    return np.sin(MIX @ x) * x[0]


def mixed_jacobian(x: np.ndarray) -> np.ndarray:
    found = np.cos(MIX @ x)[:, None] * MIX * x[0]
    found[:, 0] += np.sin(MIX @ x)
    return found


def product(a: np.ndarray) -> np.ndarray:
    return a @ a


FUNCTIONS = [
    Grid(
        "elementwise",
        lambda x: np.exp(np.sin(x)) * x,
        lambda x: torch.exp(torch.sin(x)) * x,
        t64([0.3, 0.7, 1.2]),
        {"sparsity": "elementwise"},
        {"derivative": lambda x: np.exp(np.sin(x)) * (1 + x * np.cos(x))},
    ),
    Grid(
        "to a number",
        lambda x: np.sum(x**3) * x[0],
        lambda x: (x**3).sum() * x[0],
        t64([0.5, 1.1, -0.4]),
        {"vectorized": False},
        {
            "vjp": lambda x, g: g * (3 * x**2 * x[0] + np.sum(x**3) * np.eye(3)[0]),
            "jvp": lambda x, v: np.sum(3 * x**2 * v) * x[0] + np.sum(x**3) * v[0],
        },
    ),
    Grid(
        "vector to vector",
        mixed,
        lambda x: torch.sin(t64(MIX) @ x) * x[0],
        t64([0.4, -0.2, 0.9]),
        {},
        {
            "jacobian": mixed_jacobian,
            "vjp": lambda x, g: mixed_jacobian(x).T @ g,
            "jvp": lambda x, v: mixed_jacobian(x) @ v,
        },
    ),
    Grid(
        "matrix to matrix",
        product,
        lambda a: a @ a,
        t64([[0.2, 1.0], [-0.6, 0.8]]),
        {"vectorized": True},
        {"vjp": lambda a, g: g @ a.T + a.T @ g},
    ),
]
CASES = [
    pytest.param(grid, method, id=f"{grid.name}, {method}")
    for grid in FUNCTIONS
    for method in [*METHODS, *grid.given, *(["vjp and jvp"] if {"vjp", "jvp"} <= set(grid.given) else [])]
]
every = pytest.mark.parametrize(("grid", "method"), CASES)
FIRST = {"forward": 1e-6}
SECOND = 1e-6


def close(found: Tensor, exact: Tensor, rtol: float) -> None:
    assert found.shape == exact.shape
    assert found.dtype == exact.dtype
    assert (found - exact).abs().max() <= rtol * exact.abs().max()


def cotangent(like: Tensor) -> Tensor:
    return torch.linspace(0.5, -1.3, like.numel(), dtype=torch.float64).reshape(like.shape)


@every
def test_first_derivatives(grid: Grid, method: str) -> None:
    f, twin, x, rtol = grid.wrap(method), grid.twin, grid.x, FIRST.get(method, 1e-9)
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    g = cotangent(y)
    y.backward(g)
    close(leaf.grad, vjp(twin, x)[1](g)[0], rtol)
    close(vjp(f, x)[1](g)[0], vjp(twin, x)[1](g)[0], rtol)
    v = cotangent(x) + 0.1
    value, slope = jvp(f, (x,), (v,))
    close(value, twin(x), 1e-15)
    close(slope, jvp(twin, (x,), (v,))[1], rtol)
    close(jacrev(f)(x), jacrev(twin)(x), rtol)
    close(jacfwd(f)(x), jacrev(twin)(x), rtol)


@every
def test_second_derivatives(grid: Grid, method: str) -> None:
    f, twin, x = grid.wrap(method), grid.twin, grid.x
    leaf = x.clone().requires_grad_()
    y = f(leaf)
    g = cotangent(y)
    (slope,) = torch.autograd.grad(y, leaf, g, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), leaf)
    close(second, grad(lambda x: vjp(twin, x)[1](g)[0].sum())(x), SECOND)
    exact = hessian(twin)(x)
    for transform in (hessian(f), jacrev(jacrev(f)), jacfwd(jacfwd(f)), jacrev(jacfwd(f))):
        close(transform(x), exact, SECOND)


@every
def test_vmap(grid: Grid, method: str) -> None:
    f, twin = grid.wrap(method), grid.twin
    many = torch.stack([grid.x + shift for shift in (0.0, 0.3, -0.1)])
    rtol = FIRST.get(method, 1e-9)
    close(vmap(f)(many), vmap(twin)(many), 1e-15)
    close(vmap(f, in_dims=1, out_dims=-1)(many.movedim(0, 1)), vmap(twin, out_dims=-1)(many), 1e-15)
    close(vmap(jacrev(f))(many), vmap(jacrev(twin))(many), rtol)
    close(vmap(jacfwd(f))(many), vmap(jacrev(twin))(many), rtol)
    close(vmap(hessian(f))(many), vmap(hessian(twin))(many), SECOND)
    nested = torch.stack([many, many * 1.1])
    close(vmap(vmap(f))(nested), vmap(vmap(twin))(nested), 1e-15)
    close(jacrev(lambda x: vmap(f)(x).sum(0))(many), jacrev(lambda x: vmap(twin)(x).sum(0))(many), rtol)


@every
def test_gradcheck_with_batched_gradients(grid: Grid, method: str) -> None:
    f, leaf = grid.wrap(method), grid.x.clone().requires_grad_()
    loose = {"atol": 1e-5, "rtol": 1e-4} if method == "forward" else {"atol": 1e-7, "rtol": 1e-6}
    assert gradcheck(
        f, (leaf,), check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True, **loose
    )


@pytest.mark.parametrize("grid", FUNCTIONS, ids=lambda g: g.name)
@pytest.mark.parametrize("method", ["central", "complex", "vjp"])
def test_gradgradcheck(grid: Grid, method: str) -> None:
    if method == "vjp" and "vjp" not in grid.given:
        method = "derivative"
    # gradgradcheck divides the error of a first derivative by its step: 1e-6 would leave nothing of 1e-11.
    options = {"eps": 1e-4, "atol": 1e-5, "rtol": 1e-5}
    leaf = grid.x.clone().requires_grad_()
    assert gradgradcheck(grid.wrap(method), (leaf,), check_batched_grad=True, check_fwd_over_rev=True, **options)


class Doubled(torch.nn.Module):
    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(2.0 * x).sum() + x.sum()


@every
def test_compilers(grid: Grid, method: str) -> None:
    """Without a call before: shapes are found by the fake kernel."""
    torch.compiler.reset()
    f, x = grid.wrap(method), grid.x
    module, exact = Doubled(f), Doubled(grid.twin)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    y = compiled(leaf)
    y.backward()
    close(y.detach(), exact(x), 1e-14)
    close(leaf.grad, grad(exact)(x), FIRST.get(method, 1e-9))
    for strict in (False, True):
        exported = torch.export.export(module, (x,), strict=strict).module()
        close(exported(1.5 * x), exact(1.5 * x), 1e-14)


def test_compiled_code_tells_two_wrapped_functions_apart() -> None:
    torch.compiler.reset()
    results = [
        torch.compile(Doubled(bridge.wrap(fn)), fullgraph=True, backend="aot_eager")(t64([1.0]))
        for fn in (np.sin, np.cos)
    ]
    assert results[0] == torch.sin(t64(2.0)) + 1
    assert results[1] == torch.cos(t64(2.0)) + 1


def test_compile_with_changing_shapes() -> None:
    torch.compiler.reset()
    f = bridge.wrap(np.tanh)
    compiled = torch.compile(lambda x: (f(x) ** 2).sum(), fullgraph=True, backend="aot_eager")
    for size in (3, 5, 7):
        leaf = torch.linspace(0, 1, size, dtype=torch.float64, requires_grad=True)
        compiled(leaf).backward()
        exact = grad(lambda x: (torch.tanh(x) ** 2).sum())(leaf.detach())
        close(leaf.grad, exact, 1e-9)


def test_a_third_derivative_raises() -> None:
    f = bridge.wrap(np.sin)
    with pytest.raises(NotImplementedError, match="third"):
        grad(grad(grad(lambda x: f(x))))(t64(0.3))
    with pytest.raises(NotImplementedError, match="third"):
        jacfwd(jacfwd(jacfwd(f)))(t64(0.3))


def test_transforms_inside_a_compiler_are_refused_not_answered_with_zeros() -> None:
    f, x = bridge.wrap(np.sin), t64([0.3, 0.7])
    for inside in (lambda x: jvp(f, (x,), (x,))[1], jacfwd(f), grad(lambda x: f(x).sum())):
        torch.compiler.reset()
        with pytest.raises(Exception, match="torch.func transform"):
            torch.compile(inside, fullgraph=True, backend="aot_eager")(x)


def test_several_inputs_and_outputs_under_transforms() -> None:
    def fn(x: np.ndarray, p: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x * np.exp(-p * k), np.sum(x**2) * p

    def twin(x: Tensor, p: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return x * torch.exp(-p * k), (x**2).sum() * p

    f = bridge.wrap(fn)
    x, p, k = t64([1.0, 2.0]), t64(0.4), torch.tensor(3)
    for argnums in ((0,), (1,), (0, 1)):
        for found, exact in zip(
            torch.utils._pytree.tree_leaves(jacrev(f, argnums)(x, p, k)),
            torch.utils._pytree.tree_leaves(jacrev(twin, argnums)(x, p, k)),
            strict=True,
        ):
            close(found, exact, 1e-9)
    many = vmap(jacfwd(lambda p: f(x, p, k)))(t64([0.1, 0.2, 0.3]))
    exact_many = vmap(jacfwd(lambda p: twin(x, p, k)))(t64([0.1, 0.2, 0.3]))
    for found, exact in zip(many, exact_many, strict=True):
        close(found, exact, 1e-9)
    # An output that does not take part, and an input without gradient.
    leaf = x.clone().requires_grad_()
    f(leaf, p, k)[1].backward()
    close(leaf.grad, 2 * x * p, 1e-9)
