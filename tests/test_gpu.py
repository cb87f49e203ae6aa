"""On a CUDA device: everything stays there, agrees with the CPU, and does not depend on scheduling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import quadgrad as qg
from helpers import t64
from quadgrad._core.points import SEQUENCES, make_sequence

pytestmark = pytest.mark.gpu


def lorentzian(x: torch.Tensor, c: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    return e / ((x - c) ** 2 + e**2)


def peaks(device: str, count: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    c, e = torch.rand(2, count, generator=generator, dtype=torch.float64)
    return c.to(device).requires_grad_(), (10 ** (-4 * e)).to(device).requires_grad_()


def test_everything_stays_on_the_device() -> None:
    result = qg.quad(lorentzian, 0.0, 1.0, peaks("cuda"))
    plan = result.plan
    tensors = [result.value, result.error, result.status, result.nfev, plan.row, plan.start, plan.stop, plan.weight]
    assert all(tensor.is_cuda for tensor in tensors)


def test_value_and_gradient_agree_with_the_cpu() -> None:
    there, here = (peaks(device) for device in ("cuda", "cpu"))
    ours, reference = (qg.quad(lorentzian, 0.0, 1.0, args, rtol=1e-9).value for args in (there, here))
    torch.testing.assert_close(ours.cpu(), reference, rtol=1e-8, atol=0.0)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), there), torch.autograd.grad(reference.sum(), here), strict=True
    ):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-8)


def test_logarithms_agree_with_the_cpu() -> None:
    def needle(x: torch.Tensor, c: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return -1e4 - ((x - c) / e) ** 2

    there, here = (peaks(device) for device in ("cuda", "cpu"))
    ours, reference = (qg.quad(needle, -1.0, 2.0, args, log=True).value for args in (there, here))
    assert ours.is_cuda
    torch.testing.assert_close(ours.cpu(), reference, rtol=0.0, atol=3e-8)
    for one, other in zip(
        torch.autograd.grad(ours.sum(), there), torch.autograd.grad(reference.sum(), here), strict=True
    ):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-6)


def test_two_calls_are_bitwise_equal() -> None:
    once, again = (qg.quad(lorentzian, 0.0, 1.0, peaks("cuda")) for _ in range(2))
    assert torch.equal(once.value, again.value)
    assert torch.equal(once.plan.start, again.plan.start)


@pytest.mark.parametrize("b", (1.0, float("inf")))
def test_limits_on_the_device_are_differentiated(b: float) -> None:
    a = t64(0.5).cuda().requires_grad_()
    qg.quad(lambda x: torch.exp(-x), a, torch.tensor(b, dtype=torch.float64, device="cuda")).value.backward()
    torch.testing.assert_close(a.grad, -torch.exp(-a.detach()), rtol=1e-12, atol=0.0)


def test_wrapped_functions_hand_their_results_back_to_the_device() -> None:
    x = torch.linspace(0.1, 1.0, 5, dtype=torch.float64, device="cuda", requires_grad=True)
    y = qg.bridge.wrap(np.sin)(x)
    y.sum().backward()
    assert y.is_cuda
    assert x.grad.is_cuda
    torch.testing.assert_close(x.grad, torch.cos(x.detach()))
    second = torch.func.hessian(lambda x: qg.bridge.wrap(np.sin)(x).sum())(x.detach())
    torch.testing.assert_close(second.diag(), -y.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_points_have_the_same_bits_as_on_the_cpu(name: str, dtype: torch.dtype) -> None:
    there, here = (make_sequence(name, 20, 3, 4, device, dtype) for device in ("cuda", "cpu"))
    points = there.points(12345, 5000)
    assert points.is_cuda
    assert torch.equal(points.cpu(), here.points(12345, 5000))
    keys = torch.arange(7)
    shifted = there.shifted(points[0], keys.cuda())
    assert torch.equal(shifted.cpu(), here.shifted(points[0].cpu(), keys))


# ------------------------------------------------------------------------------------------ every way of calling


def double(device: str, *numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def scaled(p: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return qg.quad(lambda x, p: torch.exp(-p * x), 0.0, 1.0, (p.to(dtype),)).value.double()


def curvature(p: torch.Tensor) -> torch.Tensor:
    area = lambda p: qg.quad(lambda x, p: torch.exp(-(p**2).sum() * x), 0.0, 1.0, (p,)).value
    return torch.func.hessian(area)(p)


def lanes(p: torch.Tensor) -> torch.Tensor:
    area = lambda p: qg.quad(lambda x, p: torch.exp(-p * x) * torch.cos(x), 0.0, INF, (p,)).value
    return torch.func.vmap(torch.func.grad(area))(p)


def kept(p: torch.Tensor) -> torch.Tensor:
    integrate = qg.Integrator(qg.quad, rtol=1e-10)
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
    "jump": lambda p: qg.quad(lambda x, p: (x > p) * torch.exp(-x), 0.0, 2.0, (p,), jumps=lambda x, p: x - p).value,
    "unmarked kink": lambda p: qg.quad(lambda x, p: (x - p).abs(), 0.0, 2.0, (p,)).value,
    "unmarked pole": lambda p: qg.quad(lambda x, p: p * (x - 0.3).abs() ** -0.5, 0.0, 1.0, (p,)).value,
    "wave": lambda p: qg.quad(lambda x, p: torch.sin(p * x) / x, 0.0, INF, (p,)).value,
    "needle": lambda p: qg.quad(lorentzian, 0.0, 1.0, (0.7 * p, 1e-5 * torch.ones_like(p))).value,
    "complex": lambda p: torch.view_as_real(qg.quad(lambda x, p: torch.exp(1j * p * x), 0.0, 3.0, (p,)).value),
    "events": lambda p: qg.quad(lambda x: torch.exp(-p * x[..., None]), 0.0, 3.0).value,
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
            lambda x, p: torch.exp(-50.0 * p[0] * (x - 0.5).square().sum(-1)),
            [0.0] * 4,
            [1.0] * 4,
            (p,),
            n=20_000,
            seed=0,
        ).value
    ),
    "expectation by quad": lambda p: expected(p, "quad"),
    "expectation by qmc": lambda p: expected(p, "qmc", 3),
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


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore::quadgrad.UnmarkedJumpWarning", "ignore::quadgrad.IntegrationWarning")
def test_every_way_of_calling_agrees_with_the_cpu(call: str) -> None:
    there, here = (double(device, 0.5, 0.7, 0.9).requires_grad_() for device in ("cuda", "cpu"))
    ours, reference = CALLS[call](there), CALLS[call](here)
    assert ours.is_cuda
    torch.testing.assert_close(ours.detach().cpu(), reference.detach(), rtol=1e-7, atol=1e-9)
    (slope,), (expected_slope,) = (torch.autograd.grad(v.sum(), p) for v, p in ((ours, there), (reference, here)))
    assert slope.is_cuda
    torch.testing.assert_close(slope.cpu(), expected_slope, rtol=1e-6, atol=1e-8)


def test_the_doctor_finds_what_leaves_the_device() -> None:
    p = double("cuda", 0.5, 0.7).requires_grad_()
    sick = lambda p: (p * p.detach().cpu().sum().item()).sum()
    report = qg.doctor.check(sick, p)
    assert not report.ok and "detach" in str(report)
    assert qg.doctor.check(lambda p: qg.quad(lorentzian, 0.0, 1.0, (p, 0.1)).value, p).ok
    assert p.is_cuda and p.requires_grad


def test_error_of_a_gradient_and_a_saved_plan(tmp_path) -> None:
    p = double("cuda", 0.5, 0.7).requires_grad_()
    result = qg.quad(lorentzian, 0.0, 1.0, (p, 0.1))
    bar = qg.gradient_error(result, p)
    assert bar.is_cuda and (bar < 1e-6).all()
    torch.save(result.plan, tmp_path / "plan.pt")
    plan = torch.load(tmp_path / "plan.pt", map_location="cpu", weights_only=False)
    again = qg.replay(lorentzian, plan, 0.0, 1.0, (p.detach().cpu(), 0.1))
    torch.testing.assert_close(again, result.value.detach().cpu(), rtol=1e-12, atol=0.0)


def test_devices_that_differ_are_named() -> None:
    p = double("cuda", 0.5)
    with pytest.raises((ValueError, TypeError, qg.IntegrandError), match="cuda"):
        qg.quad(lambda x: torch.exp(-p * x), 0.0, 1.0)
    with pytest.raises((ValueError, TypeError), match="cuda"):
        qg.quad(lambda x, p: torch.exp(-p * x), t64(0.0), 1.0, (p,))
