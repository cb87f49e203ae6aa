"""On a CUDA device: everything stays there, agrees with the CPU, and does not depend on scheduling."""

from __future__ import annotations

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
    import numpy as np

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
