"""Where the work goes: one integral with a narrow peak, and the cells its plan ended with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import quadgrad as qg
from quadgrad._demo.outcome import Check, Cost, cost_of

__all__ = ["PeakResult", "integrate_peak", "peak"]

CENTRE, WIDTH = 0.3, 1e-3


@dataclass(frozen=True)
class PeakResult:
    """The integral of a narrow peak over [0, 1].

    Attributes
    ----------
    lower, upper, error : Tensor
        Ends of the cells and their error estimates, from left to right. Shape (n,).
    checks : list of Check
        Value and derivative beside the closed form.
    cost : Cost
        What the integral cost.
    """

    lower: Tensor
    upper: Tensor
    error: Tensor
    checks: list[Check]
    cost: Cost


def peak(x: Tensor, centre: Tensor, width: Tensor) -> Tensor:
    """Return width / ((x - centre)^2 + width^2), a peak of height 1 / width."""
    return width / ((x - centre) ** 2 + width**2)


def integrate_peak() -> PeakResult:
    """Integrate the peak over [0, 1] and compare with the arctangent."""
    centre, width = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (CENTRE, WIDTH))
    result = qg.quad(peak, 0.0, 1.0, args=(centre, width))
    slopes = torch.autograd.grad(result.value, (centre, width))
    exact = torch.atan((1 - centre) / width) + torch.atan(centre / width)
    exact_slopes = torch.autograd.grad(exact, (centre, width))
    cost = cost_of(
        "narrow peak",
        lambda: qg.quad(peak, 0.0, 1.0, args=(centre, width)),
        exact.detach(),
        "formula",
    )
    checks = [
        Check("integral", "1", result.value.item(), exact.item(), 1e-7, digits=8),
        Check("d/dcentre", "1", slopes[0].item(), exact_slopes[0].item(), 1e-4, digits=6),
        Check("d/dwidth", "1", slopes[1].item(), exact_slopes[1].item(), 1e-4, digits=6),
    ]
    lower, upper = result.plan.cells(0.0, 1.0).T
    order = lower.argsort()
    return PeakResult(lower[order], upper[order], result.plan.error[order], checks, cost)
