"""Fifteen programs as people bring them: what the doctor says, and that nothing is left to say after the remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import optimize, signal, special
from torch import Tensor, nn

import quadgrad as qg
from helpers import leaf, t64

IMAGE = t64([[0.2, 0.5, 0.1, 0.9], [0.7, 0.3, 0.8, 0.4], [0.6, 0.1, 0.2, 0.5], [0.3, 0.9, 0.4, 0.7]])


@dataclass
class Case:
    """A program, what it takes, the verdict, a part of the line and of the remedy, and the program after it."""

    sick: Callable[..., Any]
    inputs: Callable[[], list[Tensor]]
    verdict: str
    line: str
    remedy: str
    mended: Callable[..., Any]


def three() -> list[Tensor]:
    return [leaf([0.7, -0.4, 1.2])]


# -- results that were rewrapped, arrays in between


def rewrapped_scipy(x: Tensor) -> Tensor:
    value = special.erf(x.detach().numpy())
    return (torch.tensor(value, requires_grad=True) * x).sum()


erf = qg.bridge.wrap(special.erf)


def convolution_in_numpy(kernel: Tensor) -> Tensor:
    array = signal.convolve2d(IMAGE, kernel.detach().cpu().numpy(), mode="valid")
    return (torch.from_numpy(array) ** 2).sum() + 0.1 * (kernel**2).sum()


convolve = qg.bridge.wrap(lambda k: signal.convolve2d(IMAGE, k, mode="valid"))


def clipped_in_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.clip(x.detach().numpy(), -0.5, 1.0)).sum() * x.sum()


def root_of_a_solver(x: Tensor) -> Tensor:
    root = optimize.brentq(lambda r: r**3 + r - x[0].item(), -5.0, 5.0)
    return root * x.sum()


solve = qg.bridge.wrap(lambda c: np.asarray(optimize.brentq(lambda r: r**3 + r - c, -5.0, 5.0, xtol=1e-14)))


# -- numbers, lists, parameters


def penalty_as_a_number(x: Tensor) -> Tensor:
    penalty = 0.1 * (x**2).sum().item()
    return x.exp().sum() + penalty


def list_of_losses(x: Tensor) -> Tensor:
    losses = [(x[i] - i) ** 2 for i in range(3)]
    return torch.tensor(losses).sum() + 0.1 * x.sum()


class Reparametrised(nn.Module):
    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = raw

    def forward(self) -> Tensor:
        self.scale = nn.Parameter(F.softplus(self.raw))
        return (self.scale**2).sum()


def reparametrised(x: Tensor) -> Tensor:
    return Reparametrised(x)() + 0.1 * x.sum()


def written_into_a_buffer(x: Tensor) -> Tensor:
    out = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for i in range(3):
            out[i] = x[i] ** 2
    return (out * x).sum()


# -- derivatives of derivatives, sampling, steps


def penalty_on_the_gradient(x: Tensor) -> Tensor:
    y = (x**3).sum()
    (slope,) = torch.autograd.grad(y, x, retain_graph=True)
    return y + (slope**2).sum()


def penalty_mended(x: Tensor) -> Tensor:
    y = (x**3).sum()
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    return y + (slope**2).sum()


def sampled(x: Tensor) -> Tensor:
    z = torch.distributions.Normal(x, 0.5).sample()
    return (z**2 * x).sum()


def behind_a_comparison(x: Tensor) -> Tensor:
    return torch.where(x > 0.5, 1.0, 0.0).sum() + x.sum()


def step_in_an_integrand(x: Tensor) -> Tensor:
    return qg.quad(lambda t: (t > x[0]).to(t.dtype) * t, 0.0, 2.0).value + x[1] * x[2]


# -- custom functions


class Quotient(torch.autograd.Function):
    """A difference quotient with a step that single precision does not resolve."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] * (torch.sin(x + 1e-6) - torch.sin(x)) / 1e-6


class BatchedProduct(torch.autograd.Function):
    """``x @ w`` whose Jacobian is put together by ``bmm`` in the order that only fits a square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return torch.bmm(x, w)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, w = ctx.saved_tensors
        return torch.bmm(grads[0], w), torch.bmm(x.transpose(1, 2), grads[0])


def batched(x: Tensor) -> Tensor:
    w = leaf(np.arange(8.0).reshape(2, 2, 2) / 8)
    return (BatchedProduct.apply(x, w) ** 2).sum()


def goes_backward_from_a_vector(x: Tensor) -> None:
    y = x**2
    y.backward()


def mended_backward(x: Tensor) -> None:
    y = x**2
    y.sum().backward()


def masked_after_the_root(x: Tensor) -> Tensor:
    norm = torch.sqrt((x * 0.0).sum())
    return torch.where(norm > 0, norm, 0.0) + x.sum()


CASES = {
    "rewrapped": Case(
        rewrapped_scipy, three, "SEVERED", "special.erf", "bridge.wrap",
        lambda x: (erf(x) * x).sum(),
    ),
    "convolution": Case(
        convolution_in_numpy, lambda: [leaf([[0.5, -0.2], [0.1, 0.4]])], "SEVERED", ".detach().cpu().numpy()",
        "bridge.wrap", lambda k: (convolve(k) ** 2).sum() + 0.1 * (k**2).sum(),
    ),
    "clip": Case(
        clipped_in_numpy, three, "SEVERED", "np.clip", "torch.clamp",
        lambda x: x.clamp(-0.5, 1.0).sum() * x.sum(),
    ),
    "solver": Case(root_of_a_solver, three, "SEVERED", "brentq", ".item()", lambda x: solve(x[0]) * x.sum()),
    "number": Case(
        penalty_as_a_number, three, "SEVERED", ".item()", "leave out .item()",
        lambda x: (x.exp() + 0.1 * x**2).sum(),
    ),
    "list": Case(
        list_of_losses, three, "SEVERED", "torch.tensor(losses)", "torch.stack",
        lambda x: torch.stack([(x[i] - i) ** 2 for i in range(3)]).sum() + 0.1 * x.sum(),
    ),
    "parameter": Case(
        reparametrised, three, "SEVERED", "nn.Parameter(", "forward()",
        lambda x: (F.softplus(x) ** 2).sum() + 0.1 * x.sum()
    ),
    "buffer": Case(
        written_into_a_buffer, three, "SEVERED", "x[i] ** 2", "no_grad",
        lambda x: (torch.stack([x[i] ** 2 for i in range(3)]) * x).sum(),
    ),
    "gradient": Case(
        penalty_on_the_gradient, three, "SEVERED", "autograd.grad", "create_graph=True",
        penalty_mended,
    ),
    "sample": Case(
        sampled, three, "SEVERED", ".sample()", "rsample()",
        lambda x: (torch.distributions.Normal(x, 0.5).rsample() ** 2 * x).sum(),
    ),
    "comparison": Case(
        behind_a_comparison, three, "STEP", "x > 0.5", "torch.sigmoid",
        lambda x: torch.sigmoid((x - 0.5) / 0.1).sum() + x.sum()
    ),
    "integrand": Case(
        step_in_an_integrand, three, "STEP", "t > x[0]", "points=",
        lambda x: qg.quad(lambda t: (t > x[0]).to(t.dtype) * t, 0.0, 2.0, points=x[:1]).value + x[1] * x[2],
    ),
    "quotient": Case(
        lambda x: Quotient.apply(x).sum(), lambda: [torch.tensor([0.7, -0.4, 1.2], requires_grad=True)], "WRONG",
        "Quotient.apply", "single precision", lambda x: torch.sin(x).sum(),
    ),
    "bmm": Case(
        batched, lambda: [leaf(np.arange(8.0).reshape(2, 2, 2) / 5 - 0.6)], "WRONG", "BatchedProduct.apply",
        "gradcheck",
        lambda x: (torch.bmm(x, t64(np.arange(8.0).reshape(2, 2, 2) / 8)) ** 2).sum(),
    ),
    "vector": Case(
        goes_backward_from_a_vector, three, "RAISES", "y.backward()", "y.sum().backward()",
        mended_backward,
    ),
    "root": Case(
        masked_after_the_root, three, "NAN", "torch.sqrt", "torch.where(bad",
        lambda x: torch.sqrt(torch.where((s := (x * 0.0).sum()) > 0, s, 1.0)) * 0.0 + x.sum(),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True to a scalar"
)  # what torch says itself
@pytest.mark.parametrize("name", CASES)
def test_the_doctor_names_line_and_remedy_and_the_remedy_helps(name: str) -> None:
    case = CASES[name]
    report = qg.doctor.check(case.sick, *case.inputs())
    assert report.verdict.value == case.verdict, str(report)
    first = report.findings[0]
    assert case.line in first.source and case.remedy in first.remedy, str(report)
    assert {row.verdict for row in report.findings} == {report.verdict}
    inputs = case.inputs()
    report = qg.doctor.check(case.mended, *inputs)
    assert report.ok, str(report)
    assert all(t.grad is None for t in inputs)


def test_a_jacobian_by_bmm_that_does_not_fit_another_shape_raises_and_says_where() -> None:
    x, w = leaf(np.ones((2, 3, 2))), leaf(np.ones((2, 2, 4)))
    report = qg.doctor.check(lambda x, w: BatchedProduct.apply(x, w).sum(), x, w)
    assert report.verdict == "RAISES" and report.findings[0].remedy and "bmm" in report.findings[0].source
