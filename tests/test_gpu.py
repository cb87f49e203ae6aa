"""On a CUDA device: everything stays there, agrees with the CPU, and does not depend on scheduling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import quadgrad as qg
from calls import CALLS, lorentzian
from helpers import t64
from quadgrad._core.points import SEQUENCES, make_sequence

pytestmark = pytest.mark.gpu


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


def double(device: str, *numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, device=device)


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
    with pytest.raises(RuntimeError, match="cuda"):
        qg.quad(lambda x: torch.exp(-p * x), 0.0, 1.0)
    with pytest.raises(ValueError, match="cuda"):
        qg.quad(lambda x, p: torch.exp(-p * x), t64(0.0), 1.0, (p,))
