"""Every gradient mode x every way to differentiate x every kind of input x every kind of integral, in one test.

The integrand is ``(1 + q x) exp(-p x)``, twice that beyond a breakpoint s, from a to b. One of the five is
differentiated; q is closed over. All derivatives are those of the closed form, taken by torch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import quadgrad as qg
from helpers import declaring, leaf, t64

MODES = {"Reuse": qg.Reuse(), "Resolve": qg.Resolve(rtol=1e-11)}
KINDS = {"lower limit": "a", "upper limit": "b", "breakpoint": "s", "args": "p", "closure": "q"}
INTEGRALS = ("finite", "half-line", "batch", "vector", "complex")
TIGHT = 1e-9

Function = Callable[[Tensor], Tensor]


def values_of(integral: str, kind: str) -> dict[str, Tensor]:
    """Return a, b, s, p and q; on the half-line the limit that is not differentiated is infinite."""
    inputs = {"a": t64(-0.3), "b": t64(1.2), "s": t64(0.4), "p": t64(1.3), "q": t64(0.7)}
    if integral == "half-line":
        inputs["a" if kind == "b" else "b"] = t64(-inf if kind == "b" else inf)
        inputs["p"] = t64(-1.3 if kind == "b" else 1.3)
    if integral == "batch":
        shifts = {"a": [0.0, 0.1], "b": [0.2, 0.0], "s": [0.0, -0.3], "p": [0.0, 1.0]}
        inputs |= {name: inputs[name] + t64(shift) for name, shift in shifts.items()}
    return inputs


def rate(p: Tensor, integral: str) -> Tensor:
    return torch.complex(p, 0.5 * p) if integral == "complex" else p


def weights(integral: str) -> Tensor:
    """Return the weights of q in the components of the integrand."""
    return t64([1.0, -2.0]) if integral == "vector" else t64(1.0)


def integrate(
    integral: str, mode: qg.GradientMode, a: Tensor, b: Tensor, s: Tensor, p: Tensor, q: Tensor
) -> Tensor:
    """Return the integrals as real numbers."""
    weight = weights(integral)

    def f(x: Tensor, s: Tensor, p: Tensor) -> Tensor:
        y = torch.exp(-rate(p, integral) * x) * torch.where(x > s, 2.0, 1.0)
        return y[..., None] * (1 + weight * q * x[..., None]) if weight.ndim else y * (1 + q * x)

    mode = declaring(mode, q)
    result = qg.quad(f, a, b, (s, p), points=s[..., None], rtol=1e-12, rule="gk15", gradient=mode)
    return torch.view_as_real(result.value) if result.value.is_complex() else result.value


def closed_form(integral: str, a: Tensor, b: Tensor, s: Tensor, p: Tensor, q: Tensor) -> Tensor:
    p, q = rate(p, integral)[..., None], q * weights(integral)
    q = q if q.ndim else q[None]

    def antiderivative(x: Tensor) -> Tensor:
        still = torch.where(x.isinf(), 0.0, x)[..., None]
        value = -torch.exp(-p * still) * ((1 + q * still) / p + q / p**2)
        return torch.where(x.isinf()[..., None], 0.0, value)

    total = 2 * antiderivative(b) - antiderivative(s) - antiderivative(a)
    total = total if integral == "vector" else total[..., 0]
    return torch.view_as_real(total) if total.is_complex() else total


def weighted(function: Function) -> Function:
    """Return a number instead of many."""

    def total(theta: Tensor) -> Tensor:
        y = function(theta)
        return (y * torch.linspace(1.0, 2.0, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()

    return total


def agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= TIGHT * other.abs().max())


def by_dual_numbers(function: Function, theta: Tensor) -> Tensor:
    with forward_ad.dual_level():
        out = function(forward_ad.make_dual(theta, torch.ones_like(theta)))
        return forward_ad.unpack_dual(out).tangent


def lanes_of(theta: Tensor) -> Tensor:
    return torch.stack((theta, theta + 0.03))


CHECKS: dict[str, Callable[[Function, Function, Tensor], bool]] = {
    "gradcheck": lambda ours, _, theta: gradcheck(
        ours, (leaf(theta),), atol=1e-7, rtol=1e-6, check_batched_grad=True
    ),
    "gradgradcheck": lambda ours, _, theta: gradgradcheck(ours, (leaf(theta),), atol=1e-6, rtol=1e-5),
    "forward AD": lambda ours, exact, theta: agree(by_dual_numbers(ours, theta), by_dual_numbers(exact, theta)),
    "vmap of grad": lambda ours, exact, theta: agree(
        vmap(grad(weighted(ours)))(lanes_of(theta)), vmap(grad(weighted(exact)))(lanes_of(theta))
    ),
    "jacrev": lambda ours, exact, theta: agree(jacrev(ours)(theta), jacrev(exact)(theta)),
    "jacfwd": lambda ours, exact, theta: agree(jacfwd(ours)(theta), jacfwd(exact)(theta)),
    "hessian": lambda ours, exact, theta: agree(hessian(weighted(ours))(theta), hessian(weighted(exact))(theta)),
}


@pytest.mark.parametrize("integral", INTEGRALS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_every_way(mode: str, check: str, kind: str, integral: str) -> None:
    inputs, name = values_of(integral, kind), KINDS[kind]
    theta = inputs.pop(name)
    ours = lambda theta: integrate(integral, MODES[mode], **inputs, **{name: theta})
    exact = lambda theta: closed_form(integral, **inputs, **{name: theta})
    assert agree(ours(theta), exact(theta))
    assert CHECKS[check](ours, exact, theta)
