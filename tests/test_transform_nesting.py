"""Transforms inside f, around calls of `quad` that f makes, in threads, and after an exception.

f that differentiates something itself (a network by its input, as physics-informed losses do), f that integrates,
levels of dual numbers, and random numbers: against closed forms or the same written out by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import quadgrad as qg
from helpers import relative_error, t64

solve = partial(qg.quad, rtol=1e-10)
ZERO = t64(0.0)

# ------------------------------------------------------------------------- f that differentiates a network

NODES, WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(60))


def by_gauss(f: Callable[[Tensor], Tensor], b: Tensor | float = 1.0) -> Tensor:
    """Return the integral from 0 to b by a fixed rule good enough for smooth f."""
    return 0.5 * b * (WEIGHTS * f(0.5 * b * (1 + NODES))).sum()


def make_network() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(11)
    shapes = {"in": (8,), "bias": (8,), "out": (8,)}
    return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}


def network(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return (torch.tanh(x[..., None] * w["in"] + w["bias"]) * w["out"]).sum(-1)


def by_grad(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return vmap(grad(lambda x: network(w, x)))(x.reshape(-1)).reshape(x.shape)


def by_grad_of_sum(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return grad(lambda x: network(w, x).sum())(x)


def by_jacrev(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return vmap(jacrev(lambda x: network(w, x)))(x.reshape(-1)).reshape(x.shape)


def by_jvp(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return jvp(lambda x: network(w, x), (x,), (torch.ones_like(x),))[1]


def by_vjp(w: dict[str, Tensor], x: Tensor) -> Tensor:
    y, pull = vjp(lambda x: network(w, x), x)
    return pull(torch.ones_like(y))[0]


def by_autograd(w: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(network(w, x).sum(), x, create_graph=True)[0]


SLOPES = {f.__name__: f for f in (by_grad, by_grad_of_sum, by_jacrev, by_jvp, by_vjp, by_autograd)}
in_every_way = pytest.mark.parametrize("slope", SLOPES.values(), ids=SLOPES)
# torch refuses torch.autograd.grad with respect to a new leaf inside of torch.func's transforms.
in_every_transform = pytest.mark.parametrize(
    "slope", [f for f in SLOPES.values() if f is not by_autograd], ids=[n for n in SLOPES if n != "by_autograd"]
)


def residual(slope: Callable[..., Tensor], w: dict[str, Tensor], k: Tensor, x: Tensor) -> Tensor:
    """Return the squared residual of u' = -k u for the network u."""
    return (slope(w, x) + k * network(w, x)) ** 2


def closed_slope(w: dict[str, Tensor], x: Tensor) -> Tensor:
    hidden = torch.tanh(x[..., None] * w["in"] + w["bias"])
    return ((1 - hidden**2) * w["in"] * w["out"]).sum(-1)


def loss(slope: Callable[..., Tensor], w: dict[str, Tensor], k: Tensor) -> Tensor:
    return solve(lambda x, k: residual(slope, w, k, x), ZERO, 1.0, (k,)).value


def exact_loss(w: dict[str, Tensor], k: Tensor) -> Tensor:
    return by_gauss(lambda x: residual(closed_slope, w, k, x))


def assert_same(ours: dict[str, Tensor] | Tensor, exact: dict[str, Tensor] | Tensor, bound: float = 1e-8) -> None:
    pairs = [(ours[n], exact[n]) for n in exact] if isinstance(exact, dict) else [(ours, exact)]
    for mine, other in pairs:
        assert (mine - other).abs().max() <= bound * other.abs().max()


@in_every_way
def test_network_differentiated_inside_f(slope) -> None:
    w, k = make_network(), t64(0.7)
    assert_same(loss(slope, w, k), exact_loss(w, k))


@in_every_transform
def test_gradient_of_a_loss_that_differentiates_the_network(slope) -> None:
    w, k = make_network(), t64(0.7)
    by_w, by_k = grad(partial(loss, slope), argnums=(0, 1))(w, k)
    exact_w, exact_k = grad(exact_loss, argnums=(0, 1))(w, k)
    assert_same(by_w, exact_w)
    assert_same(by_k, exact_k)


@in_every_way
def test_the_same_by_backward(slope) -> None:
    w, k = make_network(), t64(0.7)
    leaves = [t.clone().requires_grad_() for t in w.values()]
    value = loss(slope, dict(zip(w, leaves, strict=True)), k)
    assert_same(dict(zip(w, torch.autograd.grad(value, leaves), strict=True)), grad(exact_loss)(w, k))


@in_every_transform
def test_gradients_in_lanes_of_networks_and_of_coefficients(slope) -> None:
    lanes, k = {name: torch.stack((t, 0.5 * t, -t)) for name, t in make_network().items()}, t64([0.7, 1.0, 0.2])
    assert_same(vmap(grad(partial(loss, slope)))(lanes, k), vmap(grad(exact_loss))(lanes, k))
    w = make_network()
    ours = vmap(grad(lambda k: loss(slope, w, k)))(k)
    assert_same(ours, vmap(grad(lambda k: exact_loss(w, k)))(k))


@in_every_transform
def test_forward_mode_through_a_derivative_inside_f(slope) -> None:
    w, k = make_network(), t64(0.7)
    value, tangent = jvp(lambda k: loss(slope, w, k), (k,), (t64(2.0),))
    assert_same(value, exact_loss(w, k))
    assert_same(tangent, 2 * grad(exact_loss, argnums=1)(w, k))


def test_forward_mode_in_the_weights() -> None:
    w, k = make_network(), t64(0.7)
    direction = {name: torch.ones_like(t) for name, t in w.items()}
    ours = jvp(lambda w: loss(by_grad_of_sum, w, k), (w,), (direction,))[1]
    assert_same(ours, jvp(lambda w: exact_loss(w, k), (w,), (direction,))[1])


def test_hessian_of_a_loss_that_differentiates_the_network() -> None:
    w, k = make_network(), t64(0.7)
    assert_same(hessian(lambda k: loss(by_grad_of_sum, w, k))(k), hessian(lambda k: exact_loss(w, k))(k))


def test_module_by_functional_call() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
    draw = torch.Generator().manual_seed(3)
    w = {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in module.named_parameters()}
    u = lambda w, x: functional_call(module, w, x[..., None])[..., 0]
    square = lambda w, x: grad(lambda x: u(w, x).sum())(x) ** 2
    ours = grad(lambda w: solve(lambda x: square(w, x), ZERO, 1.0).value)(w)
    assert_same(ours, grad(lambda w: by_gauss(lambda x: square(w, x)))(w))


# ------------------------------------------------------------------------------------------- nested quads
# The integral of exp(p y) over 0 < y < x < b is (exp(p b) - 1 - p b) / p^2.


def inner(x: Tensor, p: Tensor) -> Tensor:
    return qg.quad(lambda y, p: torch.exp(p * y), torch.zeros_like(x), x, (p,), rtol=1e-12).value


def triangle(b: Tensor, p: Tensor) -> Tensor:
    return solve(inner, ZERO, b, (p,)).value


def captured_triangle(b: Tensor, p: Tensor) -> Tensor:
    inside = lambda x: qg.quad(lambda y: torch.exp(p * y), torch.zeros_like(x), x, rtol=1e-12).value
    return solve(inside, ZERO, b).value


def closed_triangle(b: Tensor, p: Tensor) -> Tensor:
    return (torch.exp(p * b) - 1 - p * b) / p**2


B, P = t64([0.9, 2.0, 0.3]), t64([1.7, 0.4, -1.0])
either = pytest.mark.parametrize("double", [triangle, captured_triangle])


@either
def test_lanes_of_nested_integrals(double) -> None:
    value = vmap(double)(B, P)
    assert relative_error(value, closed_triangle(B, P)) <= 1e-9
    assert relative_error(value, torch.stack([double(b, p) for b, p in zip(B, P, strict=True)])) <= 1e-12


@either
def test_derivatives_of_lanes_of_nested_integrals(double) -> None:
    for i in range(2):
        assert relative_error(vmap(grad(double, i))(B, P), vmap(grad(closed_triangle, i))(B, P)) <= 1e-8
    ours, exact = (vmap(lambda b, p, f=f: hessian(lambda q: f(q[0], q[1]))(torch.stack((b, p))))(B, P)
                   for f in (double, closed_triangle))  # fmt: skip
    assert (ours - exact).abs().max() <= 1e-7 * exact.abs().max()


@either
def test_vmap_in_vmap_of_nested_integrals(double) -> None:
    value = vmap(lambda b: vmap(lambda p: double(b, p))(P))(B)
    assert relative_error(value, closed_triangle(B[:, None], P)) <= 1e-9


def test_derivative_of_an_integral_inside_an_integrand() -> None:
    """f differentiates an integral: d/dp of the inner one, integrated over the outer variable."""
    slopes = lambda x, p: jvp(lambda p: inner(x, p), (p,), (torch.ones_like(p),))[1]
    for p in P:
        value = solve(slopes, ZERO, t64(0.9), (p,)).value
        assert relative_error(value, grad(closed_triangle, 1)(t64(0.9), p)) <= 1e-8
    lanes = vmap(lambda p: solve(slopes, ZERO, t64(0.9), (p,)).value)(P)
    assert relative_error(lanes, vmap(lambda p: grad(closed_triangle, 1)(t64(0.9), p))(P)) <= 1e-8


# --------------------------------------------------------------------------------------------- dual levels


def decay(p: Tensor) -> Tensor:
    return solve(lambda x, p: torch.exp(-p * x), ZERO, 1.0, (p,)).value


def captured_decay(p: Tensor) -> Tensor:
    return solve(lambda x: torch.exp(-p * x), ZERO, 1.0).value


def closed_decay(p: Tensor) -> Tensor:
    return (1 - torch.exp(-p)) / p


decays = pytest.mark.parametrize("function", [decay, captured_decay])


@decays
def test_function_transforms_inside_a_dual_level(function) -> None:
    p = t64(1.7)
    with forward_ad.dual_level():
        slope = grad(function)(forward_ad.make_dual(p, t64(1.0)))
        value, second = forward_ad.unpack_dual(slope)
    assert relative_error(value, grad(closed_decay)(p)) <= 1e-9
    assert relative_error(second, grad(grad(closed_decay))(p)) <= 1e-9


@decays
def test_dual_level_in_lanes(function) -> None:
    with forward_ad.dual_level():
        lanes = forward_ad.make_dual(P.abs(), t64([1.0, 2.0, 3.0]))
        value, tangent = forward_ad.unpack_dual(vmap(function)(lanes))
    assert relative_error(value, closed_decay(P.abs())) <= 1e-9
    assert relative_error(tangent, t64([1.0, 2.0, 3.0]) * vmap(grad(closed_decay))(P.abs())) <= 1e-9


@decays
def test_dual_level_inside_jvp(function) -> None:
    """torch keeps dual numbers of one level only, but jvp of a backward pass is a second derivative."""
    slope = lambda p: vjp(function, p)[1](t64(1.0))[0]
    assert relative_error(jvp(slope, (t64(1.7),), (t64(1.0),))[1], grad(grad(closed_decay))(t64(1.7))) <= 1e-9


@decays
def test_backward_outside_and_transforms_inside(function) -> None:
    p = t64(1.7).requires_grad_()
    slope = grad(function)(p)
    (second,) = torch.autograd.grad(slope, p)
    assert relative_error(second, grad(grad(closed_decay))(p.detach())) <= 1e-9


@decays
@pytest.mark.parametrize(
    "order", [(grad, grad, grad), (jacfwd, grad, grad), (grad, jacfwd, jacrev), (jacfwd, jacfwd, jacfwd)]
)
def test_third_derivatives_in_any_order_in_lanes(function, order) -> None:
    ours, exact = function, closed_decay
    for transform in order:
        ours, exact = transform(ours), transform(exact)
    assert relative_error(vmap(ours)(P.abs()), vmap(exact)(P.abs())) <= 1e-8


# ------------------------------------------------------------------------------------------------- threads


def test_threads_under_different_transforms() -> None:
    """The stack of transforms belongs to a thread: six threads, each under transforms of its own, many times.

    None uses forward mode, whose level torch keeps for all threads together.
    """
    p = P.abs()
    ways: list[tuple[Callable[[], Tensor], Tensor]] = []
    for function in (decay, captured_decay):
        ways += [
            (lambda f=function: vmap(f)(p), closed_decay(p)),
            (lambda f=function: vmap(grad(f))(p), vmap(grad(closed_decay))(p)),
            (lambda f=function: jacrev(jacrev(f))(p[0]), grad(grad(closed_decay))(p[0])),
        ]
    with ThreadPoolExecutor(len(ways)) as pool:
        values = list(pool.map(lambda way: [way[0]() for _ in range(10)], ways))
    for (_, exact), mine in zip(ways, values, strict=True):
        assert max(relative_error(value, exact) for value in mine) <= 1e-9


# ------------------------------------------------------------------------------------------ what f may not do


class Refused(Exception):
    pass


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("way", ["vmap", "vmap of grad", "grad", "hessian", "jvp"])
def test_exception_of_f_is_passed_on_and_leaves_nothing_behind(way: str, call: int, capture: bool) -> None:
    calls = 0

    def value(p: Tensor) -> Tensor:
        def f(x: Tensor, *args: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == call:
                raise Refused("that much")
            return 1e-2 / ((x - 0.1 * (args[0] if args else p)) ** 2 + 1e-4)

        return solve(f, ZERO, 1.0, () if capture else (p,)).value

    p = t64([1.7, 3.0])
    run = {
        "vmap": lambda: vmap(value)(p),
        "vmap of grad": lambda: vmap(grad(value))(p),
        "grad": lambda: grad(value)(p[0]),
        "hessian": lambda: hessian(value)(p[0]),
        "jvp": lambda: jvp(value, (p[0],), (t64(1.0),))[1],
    }[way]
    level = torch._C._functorch.get_interpreter_stack()
    with pytest.raises(Refused, match="that much") as caught:
        run()
    assert any("quadgrad" in note for note in getattr(caught.value, "__notes__", [])), "where f was called"
    assert torch._C._functorch.get_interpreter_stack() == level
    again = run()  # `calls` is past `call`: this time it goes through
    exact = lambda c: torch.atan((1 - 0.1 * c) / 1e-2) + torch.atan(0.1 * c / 1e-2)
    true = {
        "vmap": lambda: exact(p),
        "vmap of grad": lambda: vmap(grad(exact))(p),
        "grad": lambda: grad(exact)(p[0]),
        "hessian": lambda: hessian(exact)(p[0]),
        "jvp": lambda: grad(exact)(p[0]),
    }[way]()
    assert relative_error(again, true) <= 1e-6


@pytest.mark.parametrize("randomness", ["different", "same", "error"])
@pytest.mark.parametrize("function", [decay, captured_decay])
def test_f_that_draws_nothing_may_be_mapped_with_any_randomness(function, randomness: str) -> None:
    state = torch.get_rng_state()
    assert relative_error(vmap(function, randomness=randomness)(P.abs()), closed_decay(P.abs())) <= 1e-9
    assert (
        relative_error(vmap(grad(function), randomness=randomness)(P.abs()), vmap(grad(closed_decay))(P.abs()))
        <= 1e-9
    )
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("randomness", ["different", "same"])
def test_f_that_draws_random_numbers_is_refused(randomness: str, capture: bool) -> None:
    def value(p: Tensor) -> Tensor:
        f = lambda x, *args: (args[0] if args else p) * x + torch.rand(x.shape, dtype=torch.float64)
        return qg.quad(f, ZERO, 1.0, () if capture else (p,), rtol=1e-2, atol=10.0).value

    with torch.random.fork_rng(), pytest.raises(qg.IntegrandError, match="not deterministic"):
        vmap(grad(value), randomness=randomness)(P.abs())
