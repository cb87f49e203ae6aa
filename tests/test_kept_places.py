"""Kept plans with places that search has found: jumps, kinks and singularities that move from call to call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

import quadgrad as qg
from helpers import t64
from quadgrad._core.search.kernel import opening

P = -0.4
pytestmark = pytest.mark.filterwarnings("ignore::quadgrad.UnmarkedJumpWarning")  # that it is there is the subject


def step(x: Tensor, c: Tensor) -> Tensor:
    return torch.where(x < c, 2.0, 1.0) * torch.exp(-x)


def box(x: Tensor, c: Tensor) -> Tensor:
    return ((x > c) & (x < c + 0.2)) * (1.0 + x)


def power(x: Tensor, c: Tensor) -> Tensor:
    return (x - c).abs() ** P


def pole(x: Tensor, c: Tensor) -> Tensor:
    return (x - c).abs().log()


def kink(x: Tensor, c: Tensor) -> Tensor:
    return (x - c).abs() * torch.cos(x)


def waves(x: Tensor, c: Tensor) -> Tensor:
    return torch.sin(12 * (x - c)).abs()


def waves_area(c: Tensor) -> Tensor:
    def up_to(u: Tensor) -> Tensor:  # integral of |sin| from 0
        turns = torch.floor(u / torch.pi)
        return 2 * turns + 1 - torch.cos(u - turns * torch.pi)

    return (up_to(12 * (1 - c)) - up_to(-12 * c)) / 12


FAMILIES: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor], float]] = {
    "step": (step, lambda c: 2 - torch.exp(-c) - torch.exp(t64(-1.0)), 1e-8),
    "box": (box, lambda c: 0.2 + ((c + 0.2) ** 2 - c**2) / 2, 1e-8),
    "power": (power, lambda c: (c ** (1 + P) + (1 - c) ** (1 + P)) / (1 + P), 1e-8),
    "pole": (pole, lambda c: c * c.log() + (1 - c) * (1 - c).log() - 1, 1e-8),
    "kink": (kink, lambda c: torch.sin(t64(1.0)) * (1 - c) + torch.cos(t64(1.0)) + 1 - 2 * torch.cos(c), 1e-11),
    "waves": (waves, waves_area, 1e-10),
}  # fmt: skip
DRIFTS = (1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 5e-3)


@pytest.fixture(params=("kernel", "tensors"))
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    return request.param


def close(result: qg.Result, exact: Tensor, eps: float = 2.3e-16) -> bool:
    off = (result.value - exact).abs().detach()
    return bool((off <= result.error + 2 * eps * exact.abs()).all() and result.converged.all())


@pytest.mark.parametrize(("engine", "gradient"), [("kernel", True), ("kernel", False), ("tensors", True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_places_are_followed_however_far_they_move(
    family: str, engine: str, gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    f, area, rtol = FAMILIES[family]
    c, spent, fresh, kept = t64([0.31, 0.47, 0.632]), 0, 0, qg.Integrator(rtol=rtol, on_failure="ignore")
    kept(f, t64(0.0), 1.0, (c,))
    assert getattr(kept.plan, "places", None) is not None
    for drift in DRIFTS:
        c, k = c + drift, t64([1.0, 2.0, 3.0]).requires_grad_(gradient)
        result = kept(lambda x, c, k: k * f(x, c), t64(0.0), 1.0, (c, k))
        assert close(result, k * area(c))
        if gradient:
            slope = torch.autograd.grad(result.value.sum(), k)[0]
            assert bool(((slope - area(c)).abs() <= 2 * rtol * area(c).abs()).all())
        spent += int(result.nfev.sum())
        fresh += int(qg.quad(f, t64(0.0), 1.0, (c,), rtol=rtol, on_failure="ignore").nfev.sum())
    assert kept.started == 1 and spent <= 0.65 * fresh


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("gradient", (True, False))
def test_a_place_that_vanishes_appears_or_leaves(gradient: bool) -> None:
    """Nothing of it, a step, two steps, one that has moved far, one beyond the limits, and back."""
    kept = qg.Integrator(rtol=1e-8, on_failure="ignore")
    f = lambda x, c, d, h: torch.exp(x) + h * ((x < c).to(x) - (x < d).to(x))
    for c, d, h in (
        (0.3, 0.3, 1.0), (0.3, 1.7, 1.0), (0.3, 0.8, 1.0), (0.31, 0.8, 1.0), (0.31, 0.8, 0.0), (0.7, 0.1, 2.0),
        (0.7, 0.1, 2.0), (-0.5, 0.1, 2.0), (0.3, 0.30001, 1.0), (0.2, 0.9, 1.0),
    ):  # fmt: skip
        args = (t64([c]), t64([d]), t64([h]).requires_grad_(gradient))
        result = kept(f, t64(0.0), 1.0, args)
        inside = [min(max(v, 0.0), 1.0) for v in (c, d)]
        assert close(result, t64([torch.e - 1 + h * (inside[0] - inside[1])]))


@pytest.mark.parametrize("make", (lambda y: torch.stack((y, 2 - y), -1), lambda y: y * (1 + 2j)))
def test_components_and_complex_values(make: Callable[[Tensor], Tensor]) -> None:
    kept, area = qg.Integrator(rtol=1e-8), FAMILIES["power"][1]
    for drift in (0.0, 1e-12, 1e-6, 1e-3):
        c = t64([0.31, 0.632]) + drift
        result = kept(lambda x, c: make(power(x, c)), t64(0.0), 1.0, (c,))
        off = (result.value - make(area(c))).abs().reshape(2, -1).amax(1)
        assert bool((off <= result.error + 1e-15).all() and result.converged.all())
    assert kept.started == 1


def test_single_precision() -> None:
    kept = qg.Integrator()
    for drift in (0.0, 1e-7, 1e-5, 1e-3):
        c = torch.tensor([0.31, 0.632]) + drift
        result = kept(step, torch.tensor(0.0), 1.0, (c,))
        assert close(result, FAMILIES["step"][1](c.double()), 1.2e-7)
    assert kept.started == 1 and result.value.dtype == torch.float32


def test_on_the_line_and_beside_breakpoints_of_the_caller() -> None:
    kept = qg.Integrator(rtol=1e-8)
    for drift in (0.0, 1e-12, 1e-4, 1e-2):
        c = t64([-0.4, 1.3]) + drift
        f = lambda x, c: torch.where(x < c, 2.0, 1.0) * torch.exp(-(x**2))
        result = kept(f, t64(-torch.inf), torch.inf, (c,), points=t64(0.5))
        assert close(result, 0.5 * torch.pi**0.5 * (3 + torch.erf(c)))
    assert kept.started == 1


def test_budgets_hold_and_few_nodes_are_no_reason_to_look() -> None:
    for most in (450, 700, 1_500):
        kept = qg.Integrator(rtol=1e-8, max_nfev=most, on_failure="ignore")
        for drift in (0.0, 1e-9, 1e-3, 2e-2):
            c = t64([0.31, 0.632]) + drift
            result = kept(step, t64(0.0), 1.0, (c,))
            assert int(result.nfev.max()) <= most
            off = (result.value - FAMILIES["step"][1](c)).abs()
            assert bool((off <= result.error + 1e-15)[result.converged].all())


def test_inside_vmap_each_lane_has_its_own() -> None:
    c = t64([0.31, 0.47, 0.632])
    plan = qg.quad(step, t64(0.0), 1.0, (c,), rtol=1e-8).plan
    moved = c + 1e-4
    assert close(qg.quad(step, t64(0.0), 1.0, (moved,), rtol=1e-8, plan=plan), FAMILIES["step"][1](moved))
    lanes = vmap(lambda c: qg.quad(step, t64(0.0), 1.0, (c,), rtol=1e-8).value)(c)
    torch.testing.assert_close(lanes, FAMILIES["step"][1](c), rtol=1e-8, atol=0.0)


def test_one_plan_for_a_whole_batch() -> None:
    plan = qg.quad(step, t64(0.0), 1.0, (t64(0.3),), rtol=1e-8).plan
    c = t64([0.3, 0.301, 0.9])
    assert plan.places is not None and close(
        qg.quad(step, t64(0.0), 1.0, (c,), rtol=1e-8, plan=plan), FAMILIES["step"][1](c)
    )


@pytest.mark.parametrize("gradient", (True, False))
def test_a_plan_without_places_finds_those_that_appear(gradient: bool) -> None:
    """In the check, too: bisection down to the last digits costs a kept plan three times what a fresh call does."""
    kept, f = qg.Integrator(rtol=1e-8), lambda x, h: torch.exp(x) + h * (x < 0.3)
    for height in (0.0, 0.0, 1.0, 1.1):
        h = t64([height, 0.0]).requires_grad_(gradient)
        result = kept(f, t64(0.0), 1.0, (h,))
        fresh = qg.quad(f, t64(0.0), 1.0, (h,), rtol=1e-8)
        assert close(result, torch.e - 1 + 0.3 * h)
        assert bool((result.nfev <= 1.25 * fresh.nfev).all())
        if gradient and height:  # else there is nothing of it to be seen in the value
            slope = torch.autograd.grad(result.value.sum(), h)[0][0]
            torch.testing.assert_close(slope, t64(0.3), rtol=1e-12, atol=0.0)
    assert getattr(kept.plan, "places", None) is not None


def test_gradients_through_followed_places() -> None:
    area = FAMILIES["power"][1]
    kept = qg.Integrator(rtol=1e-9)
    f = lambda x, c, k: k * torch.exp(-k * x) * power(x, c.detach())
    for drift in (0.0, 1e-9, 1e-4, 1e-3):
        c, k = t64([0.31, 0.632]) + drift, t64([0.5, 2.0]).requires_grad_()
        slope = torch.autograd.grad(kept(f, t64(0.0), 1.0, (c, k)).value.sum(), k, create_graph=True)[0]
        curve = torch.autograd.grad(slope.sum(), k)[0]
        marked = qg.quad(f, t64(0.0), 1.0, (c, k), points=c[:, None], rtol=1e-11).value.sum()
        exact = torch.autograd.grad(marked, k, create_graph=True)[0]
        torch.testing.assert_close(slope, exact, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(curve, torch.autograd.grad(exact.sum(), k)[0], rtol=1e-8, atol=1e-8)
    assert bool((area(c) > 0).all()) and kept.started == 1
