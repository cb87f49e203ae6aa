"""Empty batches, as the last minibatch of an epoch may be: every verb, with derivatives of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import quadgrad as qg

D = torch.float64
SQUARE = ([0.0, 0.0], [1.0, 1.0])
wave = lambda x, p: torch.cos(p * x)
plane = lambda x, p: torch.cos(p * x.sum(-1))
step = lambda x, p: torch.where(x < p, 1.0, 2.0) * p

VERBS: dict[str, Callable[[Tensor], Tensor]] = {
    "quad": lambda p: qg.quad(wave, 0.0, 1.0, (p,)).value,
    "limit": lambda p: qg.quad(torch.cos, 0.0, p).value,
    "infinite": lambda p: qg.quad(lambda x, p: torch.exp(-p * x), 0.0, math.inf, (p,)).value,
    "breakpoint": lambda p: qg.quad(wave, 0.0, 1.0, (p,), points=p[..., None]).value,
    "jump": lambda p: qg.quad(step, 0.0, 1.0, (p,), jumps=lambda x, p: x - p).value,
    "log": lambda p: qg.quad(lambda x, p: -p * x, 0.0, 1.0, (p,), log=True).value,
    "one number": lambda p: qg.quad(lambda x, p: x * p, 0.0, 1.0, (p,), vectorized=False).value,
    "Resolve": lambda p: qg.quad(wave, 0.0, 1.0, (p,), gradient=qg.Resolve()).value,
    "Integrator": lambda p: qg.Integrator(qg.quad)(wave, 0.0, 1.0, (p,)).value,
    "cubature": lambda p: qg.cubature(plane, *SQUARE, (p,)).value,
    "qmc": lambda p: qg.qmc(plane, *SQUARE, (p,), n=64).value,
    "vegas": lambda p: qg.vegas(plane, *SQUARE, (p,), n=256).value,
    "expectation": lambda p: qg.expectation(wave, Normal(torch.zeros((), dtype=D), 1.0), (p,)).value,
    "distribution": lambda p: qg.expectation(torch.cos, Normal(p, torch.ones_like(p))).value,
    "antiderivative": lambda p: qg.antiderivative(wave, 0.0, 1.0, (p,))(torch.full_like(p, 0.5)),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_under_every_transform(verb: str) -> None:
    value = VERBS[verb]
    total = lambda p: value(p).sum()
    none, lanes = torch.zeros(0, dtype=D), torch.zeros(3, 0, dtype=D)
    assert value(none).shape == (0,)
    assert value(torch.zeros(0, 2, dtype=D)).shape == (0, 2)
    assert torch.func.grad(total)(none).shape == (0,)
    assert torch.func.jvp(value, (none,), (none,))[1].shape == (0,)
    assert torch.func.jacrev(value)(none).shape == (0, 0)
    assert torch.func.jacfwd(value)(none).shape == (0, 0)
    assert torch.func.hessian(total)(none).shape == (0, 0)
    assert torch.func.vmap(value)(lanes).shape == (3, 0)
    assert torch.func.vmap(torch.func.grad(total))(lanes).shape == (3, 0)


@pytest.mark.parametrize("verb", VERBS)
def test_penalties_on_gradients_of_nothing(verb: str) -> None:
    """The gradient is differentiated again, as it is of batches that are not empty."""
    p = torch.zeros(0, dtype=D, requires_grad=True)
    (gradient,) = torch.autograd.grad(VERBS[verb](p).sum(), p, create_graph=True)
    gradient.square().sum().backward()
    assert p.grad is not None
    assert p.grad.shape == (0,)


def test_a_scale_that_all_share() -> None:
    """What an empty batch has in common with others has a gradient of 0."""
    scale = torch.tensor(2.0, dtype=D, requires_grad=True)
    p = torch.zeros(0, dtype=D, requires_grad=True)
    value = qg.quad(lambda x, p, s: torch.cos(s * p * x), 0.0, 1.0, (p, scale)).value
    assert torch.autograd.grad(value.sum(), scale)[0] == 0.0


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_functions_of_one_number_under_vmap(shape: tuple[int, ...]) -> None:
    """In lanes arguments are no floats: f gets tensors, as where they require grad."""
    p = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=D)
    value = torch.func.vmap(VERBS["one number"])(p)
    assert torch.allclose(value, p / 2, rtol=1e-12)
