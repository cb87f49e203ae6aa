"""What search has seen once is not forgotten: from new breakpoints, and where a kept plan is checked in replay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from quadgrad._core.search.kernel import opening
from tests.helpers import t64

ROOT_PI = math.sqrt(math.pi)
SHIFTS = (0.0, 0.3, -0.7, 1.3)


@pytest.fixture(params=("kernel", "tensors"))
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    return request.param


def bell(x: Tensor, m: Tensor | float = 0.0) -> Tensor:
    return torch.exp(-((x - m) ** 2))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("half", (1e5, 1e6, 2e6, 5e6, 1e7))
def test_narrow_bells_whose_place_becomes_a_breakpoint(half: float, dtype: torch.dtype) -> None:
    b = torch.tensor(half, dtype=dtype)
    for shift in SHIFTS:
        result = qg.quad(lambda x, shift=shift: bell(x, shift), -b, b)
        off = abs(float(result.value) - ROOT_PI)
        assert result.converged and off <= float(result.error) + 8 * torch.finfo(dtype).eps


@pytest.mark.usefixtures("engine")
def test_in_batches_with_components_and_complex_values() -> None:
    b = torch.tensor([1e5, 2e6, 5e6, 1e7])
    f = lambda x: torch.stack((bell(x, 0.3), (1 + 2j) * bell(x, 0.3)), -1)
    result = qg.quad(f, -b, b)
    exact = ROOT_PI * torch.tensor([1, 1 + 2j], dtype=torch.complex64)
    assert bool(((result.value - exact).abs().amax(1) <= result.error + 1e-6).all()) and bool(
        result.converged.all()
    )
    for one, half in zip(qg.quad(bell, -b, b).value, b, strict=True):
        torch.testing.assert_close(qg.quad(bell, -half, half).value, one, rtol=1e-6, atol=0.0)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("shift", SHIFTS)
def test_beside_something_wide(shift: float) -> None:
    b = torch.tensor(5e6)
    result = qg.quad(lambda x: 1e-3 + 1e5 * bell(x, shift), -b, b)
    assert abs(float(result.value) - 1e4 - 1e5 * ROOT_PI) <= float(result.error)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("m", (1e3, 3e3, -1e4))
def test_arguments_far_out_on_the_line_where_errors_underflow(m: float) -> None:
    result = qg.quad(bell, t64(-math.inf), math.inf, (t64(m),))
    assert abs(float(result.value) - ROOT_PI) <= float(result.error)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("lower", "upper", "before", "after"),
    [
        (0.0, math.inf, 5.0, (20.0, 300.0, 3e3)),
        (-math.inf, math.inf, 0.0, (10.0, 3e3, -1e4)),
        (-1e5, 1e5, 0.0, (30.0, 3e3, 5e4)),
    ],
)
@pytest.mark.parametrize("keeps", ("integrator", "keys", "plan"))
def test_kept_plans_follow_what_their_arguments_name(
    lower: float, upper: float, before: float, after: tuple[float, ...], keeps: str
) -> None:
    for m in after:
        place = t64([m]).requires_grad_()
        key = {"key": torch.tensor([0])} if keeps == "keys" else {}
        if keeps == "plan":
            plan = qg.quad(bell, t64(lower), upper, (t64([before]),)).plan
            result = qg.quad(bell, t64(lower), upper, (place,), plan=plan)
        else:
            integrate = qg.Integrator(qg.quad)
            integrate(bell, t64(lower), upper, (t64([before]),), **key)
            result = integrate(bell, t64(lower), upper, (place,), **key)
        assert abs(float(result.value.detach()) - ROOT_PI) <= float(result.error.detach())


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("m", (0.2, 0.37, 0.61, 0.93))
def test_kept_plans_of_needles_on_waves(m: float) -> None:
    def f(x: Tensor, m: Tensor) -> Tensor:
        return torch.sin(3.0 * x) + torch.exp(-(((x - m) / 1e-3) ** 2))

    plan = qg.quad(f, t64(0.0), 1.0, (t64(0.5),)).plan
    result = qg.quad(f, t64(0.0), 1.0, (t64(m).requires_grad_(),), plan=plan)
    exact = (1.0 - math.cos(3.0)) / 3.0 + 1e-3 * ROOT_PI
    assert abs(float(result.value.detach()) - exact) <= float(result.error.detach())


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("half", (1e6, 2e6, 5e6))
@pytest.mark.parametrize("shift", (0.0, 0.3))
def test_boxes_beside_whose_edge_a_breakpoint_is_found(half: float, shift: float) -> None:
    """One node sees a box, and an edge of it becomes a breakpoint: the box is beyond that, closer than any node."""
    b = torch.tensor(half, dtype=torch.float32)
    wide = half / 4 * 2 * math.atan(4.0) * 1e-3
    f = lambda x: ((x - shift).abs() < 0.5) + 1e-3 / (1 + (4 * x / b) ** 2)
    result = qg.quad(f, -b, b, rtol=1e-4)
    assert result.converged and abs(float(result.value) - 1.0 - wide) <= 1e-4 * wide


BESIDE = {
    "alone": (lambda x: 0.0 * x, 0.0),
    "beside exp": (lambda x: torch.exp(-x.abs()), 1.0),
    "beside a power": (lambda x: (1.0 + x.abs()) ** -1.2, 5.0),
}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("m", (1e4, 1e5, 3.3e6, 1e8))
def test_arguments_beyond_the_innermost_node_of_an_end(m: float, beside: str) -> None:
    """Fresh and on a kept plan, on half lines and the line."""
    wide, area = BESIDE[beside]
    f = lambda x, m: bell(x, m) + wide(x)
    for lower, upper, sign in ((0.0, math.inf, 1), (-math.inf, 0.0, -1), (-math.inf, math.inf, -1)):
        exact = ROOT_PI + area * (2 if lower == -upper else 1)
        plan = qg.quad(f, t64(lower), upper, (t64(5.0 * sign),)).plan
        place = t64(m * sign).requires_grad_()
        for kept in (None, plan):
            result = qg.quad(f, t64(lower), upper, (place,), plan=kept)
            off = abs(float(result.value.detach()) - exact)
            assert result.converged and off <= float(result.error.detach()) + 1e-14
