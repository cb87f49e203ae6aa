"""Jumps of which no operation tells: sizes, counts, texts, indices of NumPy's, operations on nobody's list, ties.

Beside them what is steep, bent or fast and jumps nowhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import quadgrad as qg
from helpers import t64

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")

Program = Callable[[Tensor], Any]
START = [0.8, -0.4, 1.3, 0.15, -0.9, 0.55, -0.2, 1.1]
WEIGHTS = t64([0.3, 1.7, -0.6, 0.9, 2.0, -1.1, 0.4, 1.2])
IMAGE = torch.arange(30.0, dtype=torch.float64).sin().reshape(1, 1, 5, 6)


def grid(x: Tensor) -> Tensor:
    return 0.9 * torch.tanh(x.reshape(1, 2, 2, 2))


def unpooled(x: Tensor) -> Tensor:
    largest, places = F.max_pool1d(x[None, None], 2, return_indices=True)
    return F.max_unpool1d(largest, places, 2)[0, 0] @ WEIGHTS


def routed(x: Tensor) -> Tensor:
    gates, experts = torch.softmax(x, 0).topk(2)
    return (gates / gates.sum() * WEIGHTS[experts]).sum() * x.sum()


JUMPS: dict[str, Program] = {
    "grid_sampler": lambda x: torch.grid_sampler(IMAGE, grid(x), 1, 0, True).pow(2).sum() + x.sum(),
    "grid_sampler_2d": lambda x: torch.grid_sampler_2d(IMAGE, grid(x), 1, 0, True).pow(2).sum() + x.sum(),
    "histc": lambda x: torch.histc(x, 5, -2, 2) @ WEIGHTS[:5] + x.sum(),
    "histogram": lambda x: torch.histogram(x.detach(), 5, range=(-2.0, 2.0))[0] @ WEIGHTS[:5] + x.sum(),
    "copysign": lambda x: torch.copysign(torch.ones_like(x), x) @ WEIGHTS + x.sum(),
    "frexp": lambda x: torch.frexp(x + 3).mantissa.sum() + x.sum(),
    "unpooled": unpooled,
    "places of a pool": lambda x: WEIGHTS[F.max_pool1d(x[None], 2, return_indices=True)[1]].sum() + x.sum(),
    "routed": routed,
    "finite": lambda x: torch.isfinite(torch.log(F.relu(x))).double() @ WEIGHTS + x.sum(),
    "close": lambda x: (2.0 if torch.allclose(x[:1], torch.ones_like(x[:1]), atol=0.5) else 1.0) * x.sum(),
    "size of a range": lambda x: torch.arange(0, 5 * float(x[0])).sum() * x.sum(),
    "scale of an image": lambda x: F.interpolate(IMAGE, scale_factor=float(x[2])).sum() * x.sum(),
    "text": lambda x: float(f"{x[0].item():.1f}") * x.sum(),
    "digitized": lambda x: WEIGHTS[np.digitize(x.detach().numpy(), [-1, -0.3, 0.5])].sum() + x.sum(),
    "NumPy's place": lambda x: WEIGHTS[np.argmax(x.detach().numpy())] * x.sum(),
    "NumPy's sign": lambda x: torch.from_numpy(np.sign(x.detach().numpy())) @ WEIGHTS + x.sum(),
    "length": lambda x: len(F.relu(x).nonzero()) * x.sum(),
    "Python's floor": lambda x: math.floor(3 * x[0].item()) * x.sum(),
}


@pytest.mark.parametrize("kind", JUMPS)
def test_a_jump_is_told_with_its_line_and_a_remedy(kind: str) -> None:
    report = qg.doctor.check(JUMPS[kind], t64(START).requires_grad_())
    assert report.verdict == "STEP", str(report)
    first = report.findings[0]
    assert first.file == __file__ and first.source and first.remedy, str(report)
    beside = any("beside" in note for note in report.notes)  # examined twice: first where it jumps at the point
    assert report.runs <= 25 + 6 * len(report.rows) + 12 * beside


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.where(x > 0.1, x + 1.0, x).sum()


def test_a_jump_that_no_operation_shows_is_told_without_a_line() -> None:
    report = qg.doctor.check(scripted, t64(START).requires_grad_())
    assert report.verdict == "SEVERED OR WRONG" and "jumps" in report.cause and "TorchScript" in report.cause


def test_a_decision_that_is_meant_stays_what_it_is() -> None:
    def f(x: Tensor) -> Tensor:
        with qg.doctor.intended("a gate"):
            gate = x > 0.1
        return torch.where(gate, x + 1.0, x**2).sum()

    assert qg.doctor.check(f, t64(START).requires_grad_()).ok


TIES: dict[str, Program] = {
    "argmin": lambda x: x[F.relu(x).argmin()] + 0.3 * x.sum(),
    "argsort": lambda x: WEIGHTS[F.relu(x).argsort(stable=True)[1]] * x.sum(),
    "min": lambda x: WEIGHTS[F.relu(x).min(0).indices] * x.sum(),
    "argmax": lambda x: WEIGHTS[x.clamp(max=0.3).argmax()] * x.sum(),
    "eq": lambda x: (F.relu(x) == 0).double() @ WEIGHTS[:4] + x.sum(),
    "sign": lambda x: torch.sign(F.relu(x)) @ WEIGHTS[:4] + x.sum(),
}


@pytest.mark.parametrize("tie", TIES)
def test_ties_that_break_under_a_move_are_steps(tie: str) -> None:
    for values in itertools.islice(itertools.permutations([0.5, -0.6, 0.2, -0.9]), 0, None, 4):
        report = qg.doctor.check(TIES[tie], t64(values).requires_grad_())
        assert report.verdict == "STEP", (values, str(report))


MATRIX = torch.linspace(-1.0, 1.0, 64, dtype=torch.float64).mul(7.0).sin().reshape(8, 8)


def solved(x: Tensor) -> Tensor:
    y = torch.ones((), dtype=torch.float64)
    for _ in range(60):
        step = (y**3 + y - x.sum()) / (3 * y**2 + 1)
        y = y - step
        if step.abs().item() < 1e-12:
            break
    return y


SMOOTH: dict[str, Program] = {
    "steep": lambda x: torch.sigmoid(100 * (x - 0.1)).sum(),
    "fast": lambda x: torch.sin(300 * x).sum(),
    "sharp": lambda x: torch.softmax(50 * x, 0) @ WEIGHTS,
    "narrow": lambda x: (1 / (x.square() + 1e-3)).sum(),
    "growing": lambda x: (10 * x).exp().sum(),
    "pole": lambda x: (1 / x).sum(),
    "root": lambda x: x.abs().sqrt().sum(),
    "logarithm": lambda x: x.abs().log().sum(),
    "bends": lambda x: (MATRIX @ x).abs().sum() + F.relu(1 - x * WEIGHTS).sum() + (MATRIX * x).amax(1).sum(),
    "orders": lambda x: x.sort().values @ WEIGHTS + x.cummax(0).values.sum() + torch.quantile(x, 0.4),
    "spectrum": lambda x: torch.linalg.eigvalsh(MATRIX + MATRIX.T + torch.diag(x)).abs().sum(),
    "solve": lambda x: torch.linalg.solve(MATRIX + 3 * torch.diag(WEIGHTS + x), WEIGHTS).sum(),
    "solver": solved,
    "large": lambda x: 1e8 * x.sum() + x.pow(2).sum(),
    "small": lambda x: 1e-12 * x.sin().sum(),
}  # fmt: skip


@pytest.mark.parametrize("kind", SMOOTH)
def test_what_is_steep_bent_or_fast_jumps_nowhere(kind: str) -> None:
    report = qg.doctor.check(SMOOTH[kind], t64(START).requires_grad_())
    assert report.ok and not report.findings, str(report)


ISOLATED = {
    "number": lambda x: (2.0 if x[0].item() == 0.8 else 1.0) * x.sum(),
    "added": lambda x: (2.0 if x[0].item() == 0.8 else 1.0) + x.sum(),
    "tensor": lambda x: (x != 0.15).double().sum() + x.sum(),
    "key": lambda x: {0.8: 3.0}.get(x[0].item(), 1.0) * x.sum(),
    "masked": lambda x: torch.where(x == 0.55, x + 1.0, x).sum(),
}
"""What is another number at the very point than beside it."""


@pytest.mark.parametrize("name", ISOLATED)
def test_values_of_a_single_point_are_no_ok(name: str) -> None:
    report = qg.doctor.check(ISOLATED[name], t64(START).requires_grad_())
    assert not report.ok and "very point" in report.cause


@pytest.mark.parametrize(
    "kink", [lambda x: (x - 0.55).abs(), lambda x: torch.relu(x - 0.8), lambda x: x.clamp_max(1.3)]
)
def test_kinks_at_the_point_are_no_finding(kink: Callable[[Tensor], Tensor]) -> None:
    assert qg.doctor.check(lambda x: (kink(x) + x * x).sum(), t64(START).requires_grad_()).ok


def test_a_tie_that_one_line_alone_breaks_widens_its_bar() -> None:
    """Steps agree on the mean of two slopes: the loss is .5 to either side of what it is by all lines together."""

    def tied(x: Tensor) -> Tensor:
        copy = x.detach().clone()
        both = torch.stack((copy[0] * x[1], x[0] * x[1]))
        return both.sort().values[1] * 2.0 + both.sort().values[0] + x.sum()

    report = qg.doctor.check(tied, t64(START).requires_grad_())
    (row,) = report.findings
    exact = report.true - report.autograd
    assert row.operation == "detach" and abs(row.lost - exact) <= row.error
