"""Ways of calling the library, each a function of one tensor of three numbers, for tests of devices."""

from __future__ import annotations

import numpy as np
import torch

import quadgrad as qg

__all__ = ["CALLS", "lorentzian"]


def lorentzian(x: torch.Tensor, c: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return e / ((x - c) ** 2 + e**2)


def scaled(p: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return qg.quad(lambda x, p: torch.exp(-p * x), 0.0, 1.0, (p.to(dtype),)).value.double()


def curvature(p: torch.Tensor) -> torch.Tensor:
    area = lambda p: qg.quad(lambda x, p: torch.exp(-(p**2) * x), 0.0, 1.0, (p,)).value.sum()
    return torch.func.jacfwd(torch.func.grad(area))(p)


def lanes(p: torch.Tensor) -> torch.Tensor:
    area = lambda p: qg.quad(lambda x, p: torch.exp(-p * x) * torch.cos(x), 0.0, INF, (p,)).value
    return torch.func.vmap(torch.func.grad(area))(p)


def kept(p: torch.Tensor) -> torch.Tensor:
    integrate = qg.Integrator(qg.quad, rtol=1e-10)
    first = integrate(lorentzian, 0.0, 1.0, (0.5 * p.detach(), 1e-2)).value
    return first + integrate(lorentzian, 0.0, 1.0, (0.5 * p, 1e-2)).value


def keyed(p: torch.Tensor) -> torch.Tensor:
    integrate = qg.Integrator(qg.quad, key=[3, 5, 9], rtol=1e-10)
    first = integrate(lorentzian, 0.0, 1.0, (0.5 * p.detach(), 1e-2)).value
    return first + integrate(lorentzian, 0.0, 1.0, (0.5 * p, 1e-2)).value


def replayed(p: torch.Tensor) -> torch.Tensor:
    plan = qg.quad(lorentzian, 0.0, 1.0, (0.5 * p, 1e-2)).plan
    return qg.replay(lorentzian, plan, 0.0, 1.0, (0.5 * p, 1e-2))


def box(p: torch.Tensor, **options: object) -> torch.Tensor:
    """Three sides of the box move with ``p``."""
    f = lambda x: torch.exp(-x.square().sum(-1))
    return qg.cubature(f, torch.zeros_like(p), p, rtol=1e-9, **options).value


def bells(p: torch.Tensor) -> torch.Tensor:
    f = lambda x, p: torch.exp(-100.0 * p * (x - 0.5).square().sum(-1))
    return qg.cubature(f, [0.0] * 3, [1.0] * 3, (p,), rtol=1e-8).value


def disc(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    return p[0] ** 2 - x.square().sum(-1)


def antiderivative(p: torch.Tensor) -> torch.Tensor:
    curve = qg.antiderivative(lambda x, p: torch.exp(-p * x), 0.0, 2.0, (p[0],))
    return curve(p) + curve.inverse(0.2 * p)


def expected(p: torch.Tensor, method: str, dimension: int = 1) -> torch.Tensor:
    f = lambda x: torch.sin(x) if dimension == 1 else torch.sin(x).sum(-1)
    spread = torch.distributions.Normal(p, 0.5 * torch.ones_like(p))
    law = spread if dimension == 1 else torch.distributions.Independent(spread, 1)
    return qg.expectation(f, law, method=method, rtol=1e-3, seed=0).value


def perturbed(p: torch.Tensor) -> torch.Tensor:
    noise = torch.distributions.Normal(torch.zeros_like(p), torch.ones_like(p))
    loss = lambda x, y: (torch.tanh(x * p) - y).square().mean(-1)
    x, y = torch.ones(4, 3, dtype=p.dtype, device=p.device), torch.zeros(4, 3, dtype=p.dtype, device=p.device)
    return qg.perturbation_loss(loss, x, y, noise, n=8)


INF = float("inf")
CALLS = {
    "half line": lambda p: qg.quad(lambda x, p: torch.exp(-p * x) * torch.cos(x), 0.0, INF, (p,)).value,
    "whole line": lambda p: qg.quad(lambda x, p: torch.exp(-p * x**2), -INF, INF, (p,)).value,
    "singular end": lambda p: qg.quad(lambda x, p: x ** (-0.9 * p), 0.0, p.detach(), (0.6 * p,)).value,
    "breakpoint": lambda p: qg.quad(lambda x, p: (x - p).abs(), 0.0, 2.0, (p,), points=p[..., None]).value,
    "breakpoints as numbers": lambda p: (
        qg.quad(lambda x, p: (x - 0.3).abs() ** p, 0.0, 1.0, (p,), points=[0.3]).value
    ),
    "jump": lambda p: qg.quad(lambda x, p: (x > p) * torch.exp(-x), 0.0, 2.0, (p,), jumps=lambda x, p: x - p).value,
    "unmarked kink": lambda p: qg.quad(lambda x, p: (x - p).abs(), 0.0, 2.0, (p,)).value,
    "unmarked pole": lambda p: qg.quad(lambda x, p: p * (x - 0.3).abs() ** -0.5, 0.0, 1.0, (p,)).value,
    "wave": lambda p: qg.quad(lambda x, p: torch.sin(p * x) / x, 0.0, INF, (p,)).value,
    "needle": lambda p: qg.quad(lorentzian, 0.0, 1.0, (0.7 * p, 1e-5 * torch.ones_like(p))).value,
    "complex": lambda p: torch.view_as_real(qg.quad(lambda x, p: torch.exp(1j * p * x), 0.0, 3.0, (p,)).value),
    "events": lambda p: (
        qg.quad(lambda x, p: torch.exp(-p * x[..., None]), 0.0, 3.0, (qg.element(p, ndim=1),)).value
    ),
    "float32": lambda p: scaled(p, torch.float32),
    "logarithm": lambda p: qg.quad(lambda x, p: -1e3 * p * x**2, -1.0, 2.0, (p,), log=True).value,
    "chunks": lambda p: qg.quad(lorentzian, 0.0, 1.0, (p, 1e-3 * torch.ones_like(p)), chunk_size=64).value,
    "nested": lambda p: (
        qg.quad(
            lambda x, p: qg.quad(lambda y, x, p: torch.exp(-p * x * y), 0.0, x, (x, p)).value, 0.0, 1.0, (p,)
        ).value
    ),
    "hessian": curvature,
    "lanes": lanes,
    "kept": kept,
    "kept by key": keyed,
    "replayed": replayed,
    "resolved": lambda p: qg.quad(lorentzian, 0.0, 1.0, (0.5 * p, 1e-2), gradient=qg.Resolve()).value,
    "box": box,
    "box, product rule": lambda p: box(p, rule="gk21"),
    "box, resolved": lambda p: box(p, gradient=qg.Resolve()),
    "boxes": bells,
    "plane": lambda p: (
        qg.cubature(lambda x, p: torch.exp(-p * x.square().sum(-1)), [-INF] * 2, [INF] * 2, (p,), rtol=1e-8).value
    ),
    "ball": lambda p: qg.cubature(lambda x: torch.exp(x[..., 0]), region=qg.Ball([0.0, 0.0], p[0])).value,
    "sphere": lambda p: qg.cubature(lambda x: torch.exp(x[..., 0]), region=qg.Sphere([0.0] * 3, p[0])).value,
    "simplex": lambda p: (
        qg.cubature(
            lambda x: torch.exp(x[..., 0]),
            region=qg.Simplex(torch.cat([torch.zeros_like(p)[None, :2], torch.diag(p[:2])])),
        ).value
    ),
    "limits that move": lambda p: (
        qg.cubature(
            lambda x: torch.exp(x.sum(-1)), region=qg.Nested([(0.0, p[0]), (0.0, lambda x: x[..., 0])])
        ).value
    ),
    "level set": lambda p: (
        qg.cubature(
            lambda x, p: torch.exp(x[..., 0]), [-1.0] * 2, [1.0] * 2, (p,), region=qg.Where(disc), rtol=1e-8
        ).value
    ),
    "boundary": lambda p: (
        qg.cubature(
            lambda x, p: torch.exp(x[..., 0]), [-1.0] * 2, [1.0] * 2, (p,), region=qg.Boundary(disc), rtol=1e-8
        ).value
    ),
    "sample": lambda p: (
        qg.qmc(lambda x, p: torch.exp(-p * x.sum(-1)), [0.0] * 4, 1.0, (p,), rtol=1e-3, seed=0).value
    ),
    "lattice": lambda p: (
        qg.qmc(
            lambda x, p: torch.exp(-p * x.sum(-1)), [0.0] * 4, 1.0, (p,), sequence="lattice", rtol=1e-3, seed=0
        ).value
    ),
    "vegas": lambda p: (
        qg.vegas(
            lambda x, p: torch.exp(-50.0 * p * (x - 0.5).square().sum(-1)),
            [0.0] * 4,
            [1.0] * 4,
            (p,),
            n=20_000,
            seed=0,
        ).value
    ),
    "expectation by quad": lambda p: expected(p, "quad"),
    "expectation by qmc": lambda p: expected(p, "qmc", 3),
    "expectation, exact": lambda p: qg.expectation(lambda k: k**2.0, torch.distributions.Poisson(3.0 * p)).value,
    "expectation, mixture": lambda p: (
        qg.expectation(
            lambda x: x**2,
            torch.distributions.MixtureSameFamily(
                torch.distributions.Categorical(p), torch.distributions.Normal(p, 0.1 * torch.ones_like(p))
            ),
        ).value
    ),
    "perturbations": perturbed,
    "antiderivative": antiderivative,
    "trapezoid": lambda p: qg.trapezoid(
        torch.linspace(0, 1, 33, device=p.device, dtype=p.dtype) ** p[:, None], dx=0.1
    ),
    "Simpson": lambda p: qg.simpson(torch.linspace(0, 1, 33, device=p.device, dtype=p.dtype) ** p[:, None], dx=0.1),
    "Romberg": lambda p: qg.romb(torch.linspace(0, 1, 33, device=p.device, dtype=p.dtype) ** p[:, None], dx=0.1),
    "spline": lambda p: qg.spline(torch.linspace(0, 1, 33, device=p.device, dtype=p.dtype) ** p[:, None]).integral(
        0.1, 7.3
    ),
    "bridge": lambda p: (
        qg.quad(qg.bridge.wrap(lambda x, p: np.exp(-p * x), sparsity="elementwise"), 0.0, 1.0, (p,)).value
    ),
}
