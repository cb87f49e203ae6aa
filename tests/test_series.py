"""Series towards ends beyond one real number in double precision: Resolve, events, complex values, float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, log, pi, sqrt
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import leaf, t64
from quadgrad._core.search.ends.tails import are_quiet
from quadgrad._core.search.piles import watch

OFF = 1e-14
"""Of the exact numbers."""


def events(*parts: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*parts), -1)


def reals(y: Tensor) -> Tensor:
    return torch.view_as_real(y) if y.is_complex() else y


def slope_of(value: Tensor, wrt: Tensor, **options: Any) -> Tensor:
    return torch.autograd.grad(value.sum(), wrt, retain_graph=True, **options)[0]


def error_of(result: qg.Result, wrt: Tensor, weights: Tensor | None = None) -> Tensor:
    error = qg.gradient_error(result, wrt, weights)
    assert isinstance(error, Tensor)
    return error


# name: f, upper limit, values of the parameter, exact integral
ONE: dict[str, tuple[Callable[..., Tensor], float, list[float], Callable[[Tensor], Tensor]]] = {
    "sin wx / x": (lambda x, w: torch.sin(w * x) / x, inf, [0.3, 1.7, 9.0], lambda w: pi / 2 + 0 * w),
    "sin^2 wx / x^2": (lambda x, w: (torch.sin(w * x) / x) ** 2, inf, [0.8, 1.7], lambda w: w * pi / 2),
    "cos wx^2": (lambda x, w: torch.cos(w * x * x), inf, [0.3, 1.7, 4.0], lambda w: torch.sqrt(pi / 8 / w)),
    "x sin wx / (1 + x^2)": (
        lambda x, w: x * torch.sin(w * x) / (1 + x * x), inf, [0.4, 1.7], lambda w: pi / 2 * torch.exp(-w),
    ),
    "cos wx / sqrt x": (
        lambda x, w: torch.cos(w * x) / x.sqrt(), inf, [0.4, 1.7], lambda w: torch.sqrt(pi / 2 / w),
    ),
    "damped": (
        lambda x, w: torch.exp(-0.01 * x) * torch.sin(w * x), inf, [0.7, 1.7], lambda w: w / (w * w + 1e-4),
    ),
    "logarithmic end": (
        lambda x, p: 1 / (x * x.log().abs() ** p), 0.5, [1.5, 2.5], lambda p: log(2) ** (1 - p) / (p - 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE)
def test_resolve_takes_series(kind: str) -> None:
    f, b, values, exact = ONE[kind]
    w = leaf(values)
    result = qg.quad(f, t64(0.0), b, (w,), rtol=1e-8, gradient=qg.Resolve(rtol=1e-7, atol=1e-8))
    assert result.derivative is not None
    assert bool(result.converged.all()) and bool(result.derivative.converged.all())
    assert bool(((result.value - exact(w)).abs() <= result.error + OFF).all())
    ours, theirs = slope_of(result.value, w), slope_of(exact(w), w)
    told = result.derivative.error[:, 0]
    assert bool(((ours - theirs).abs() <= told + OFF).all()) and bool((told <= 1e-7 * theirs.abs() + 1e-8).all())
    assert bool(((ours - theirs).abs() <= error_of(result, w) + OFF).all())


def test_resolve_takes_series_that_close_over_parameters_and_second_derivatives() -> None:
    w = leaf(1.7)
    f = lambda x: torch.cos(w * x * x)
    result = qg.quad(f, t64(0.0), inf, rtol=1e-8, gradient=qg.Resolve(rtol=1e-8, params=w))
    assert result.derivative is not None and bool(result.derivative.converged)
    exact = torch.sqrt(pi / 8 / w)
    (first,), (theirs,) = (torch.autograd.grad(v, w, create_graph=True) for v in (result.value, exact))
    assert float((first - theirs).abs().detach()) <= float(result.derivative.error)
    second, true = (float(torch.autograd.grad(v, w)[0]) for v in (first, theirs))
    assert abs(second - true) <= 1e-6 * abs(true)


def test_the_cells_before_the_series_are_refined_for_the_derivative() -> None:
    e = leaf(0.3)
    bump = lambda x, e: e / ((x - 1) ** 2 + e**2) * torch.exp(-x)
    f = lambda x, e: torch.sin(3 * x) / x + bump(x, e)
    result = qg.quad(f, t64(0.0), inf, (e,), rtol=1e-4, gradient=qg.Resolve(rtol=1e-9))
    assert result.derivative is not None and bool(result.derivative.converged) and int(result.derivative.nfev) > 0
    alone = qg.quad(bump, t64(0.0), inf, (e,), rtol=1e-12)
    true = (slope_of(result.value, e) - slope_of(alone.value, e)).abs()
    assert bool(true <= result.derivative.error[0]) and float(true) <= 1e-12


SEVERAL: dict[str, tuple[Callable[..., Tensor], float, float, Callable[[Tensor], Tensor]]] = {
    "one frequency": (
        lambda x, w: events(
            torch.sin(w * x) / x, x * torch.sin(w * x) / (1 + x * x), torch.cos(w * x) / (1 + x * x)
        ),
        inf, 1.7, lambda w: torch.stack((pi / 2 + 0 * w, pi / 2 * torch.exp(-w), pi / 2 * torch.exp(-w))),
    ),
    "shifted phases": (
        lambda x, w: events(torch.sin(w * x) / x.sqrt(), torch.cos(w * x) / x.sqrt()),
        inf, 0.9, lambda w: torch.sqrt(pi / 2 / w).expand(2),
    ),
    "complex": (
        lambda x, w: torch.exp(1j * w * x) / x.sqrt(), inf, 2.3,
        lambda w: torch.complex(torch.sqrt(pi / 2 / w), torch.sqrt(pi / 2 / w)),
    ),
    "complex Fresnel": (
        lambda x, w: torch.exp(1j * w * x * x), inf, 1.7,
        lambda w: torch.complex(torch.sqrt(pi / 8 / w), torch.sqrt(pi / 8 / w)),
    ),
    "complex events": (
        lambda x, w: events(torch.exp(1j * w * x) / x.sqrt(), 2 * torch.exp(-1j * w * x) / x.sqrt()), inf, 1.1,
        lambda w: torch.stack((torch.complex(torch.sqrt(pi / 2 / w), torch.sqrt(pi / 2 / w)),
                               2 * torch.complex(torch.sqrt(pi / 2 / w), -torch.sqrt(pi / 2 / w)))),
    ),
    "one of them decays": (
        lambda x, w: events(torch.sin(w * x) / x, torch.exp(-w * x)), inf, 1.7,
        lambda w: torch.stack((pi / 2 + 0 * w, 1 / w)),
    ),
    "logarithmic ends": (
        lambda x, p: events(1 / (x * x.log().abs() ** p), 3 / (x * x.log().abs() ** p)), 0.5, 1.5,
        lambda p: torch.stack((log(2) ** (1 - p) / (p - 1), 3 * log(2) ** (1 - p) / (p - 1))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mode", (qg.Reuse(), qg.Resolve(rtol=1e-5, atol=1e-8)), ids=("reuse", "resolve"))
@pytest.mark.parametrize("kind", SEVERAL)
def test_several_components(kind: str, mode: qg.GradientMode) -> None:
    f, b, value, exact = SEVERAL[kind]
    w = leaf(value)
    result = qg.quad(f, t64(0.0), b, (w,), rtol=1e-8, gradient=mode)
    assert bool(result.converged)
    true = (result.value - exact(w)).abs().max()
    assert bool(true <= result.error + OFF) and int(result.nfev) <= 4000
    ours, theirs = reals(result.value).flatten(), reals(exact(w)).flatten()
    for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        weights = torch.zeros_like(ours.detach())
        weights[i] = 1.0
        weights = weights.reshape(reals(result.value).shape)
        weights = torch.view_as_complex(weights) if result.value.is_complex() else weights
        off = (slope_of(one, w) - slope_of(other, w)).abs()
        assert bool(off <= error_of(result, w, weights) + OFF) and bool(off <= 1e-8)


def test_a_batch_of_several_components_is_what_each_is_alone() -> None:
    f, b, _, exact = SEVERAL["one frequency"]
    w = t64([0.6, 1.7, 3.1])
    result = qg.quad(f, t64(0.0), b, (w,), rtol=1e-8)
    assert bool(result.converged.all())
    assert bool(((result.value - exact(w).T).abs().amax(1) <= result.error + OFF).all())
    for i in range(3):
        torch.testing.assert_close(
            qg.quad(f, t64(0.0), b, (w[i],), rtol=1e-8).value, result.value[i], rtol=0, atol=1e-15
        )


@pytest.mark.parametrize("way", ("vmap", "jacfwd", "hessian"))
def test_series_of_complex_values_under_transforms(way: str) -> None:
    real = lambda w: qg.quad(lambda x, w: torch.exp(1j * w * x * x), t64(0.0), inf, (w,), rtol=1e-8).value.real
    exact, w = lambda w: torch.sqrt(pi / 8 / w), t64([0.6, 1.7])
    if way == "vmap":
        ours, theirs = (torch.func.vmap(torch.func.grad(f))(w) for f in (real, exact))
    else:
        ours, theirs = (getattr(torch.func, way)(f)(w[1]) for f in (real, exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)


WRONG: dict[str, tuple[Callable[..., Tensor], Tensor]] = {
    "another frequency": (
        lambda x: events(torch.sin(x) / x, torch.sin(1.3 * x) / x), t64([pi / 2, pi / 2]),
    ),
    "one wave ends": (
        lambda x: events(torch.sin(x) / x, torch.where(x < 1000 * pi, torch.sin(x) / x, 0.0)),
        t64([pi / 2, 1.5704780172]),
    ),
    "a small one": (
        lambda x: events(torch.sin(x) / x, 1e-3 * torch.cos(2.7 * x) / x.sqrt()),
        t64([pi / 2, 1e-3 * sqrt(pi / 5.4)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rtol", (1e-4, 1e-8))
@pytest.mark.parametrize("kind", WRONG)
def test_a_component_that_the_cells_of_another_do_not_serve_is_not_believed(kind: str, rtol: float) -> None:
    f, exact = WRONG[kind]
    result = qg.quad(f, t64(0.0), inf, rtol=rtol, on_failure="ignore")
    assert not bool(result.converged) or bool((result.value - exact).abs().max() <= result.error)


SINGLE = ("sin wx / x", "cos wx / sqrt x", "damped")


@pytest.mark.parametrize("kind", SINGLE)
def test_single_precision(kind: str) -> None:
    """Zeros are known well enough of most waves, and of the others it is said that they are not."""
    f, _, _, exact = ONE[kind]
    w = torch.linspace(0.3, 9.0, 24, requires_grad=True)
    result = qg.quad(f, 0.0, inf, (w,), on_failure="ignore")
    done = result.converged
    assert result.value.dtype == torch.float32 and int(done.sum()) >= 12
    double = w.detach().double().requires_grad_()
    assert bool(((result.value - exact(double)).abs() <= result.error)[done].all())
    off = (slope_of(result.value, w) - slope_of(exact(double), double)).abs()
    assert bool((off <= error_of(result, w))[done].all())


@pytest.mark.parametrize("kind", ONE)
def test_single_precision_is_honest(kind: str) -> None:
    f, b, values, exact = ONE[kind]
    w = torch.tensor(values)
    result = qg.quad(f, 0.0, b, (w,), on_failure="ignore")
    wrong = (result.value - exact(w.double())).abs() > result.error
    assert not bool((wrong & result.converged).any())


def test_gradcheck() -> None:
    integral = partial(qg.quad, lambda x, w: torch.exp(1j * w * x) / x.sqrt(), t64(0.0), inf, rtol=1e-11)
    assert torch.autograd.gradcheck(lambda w: torch.view_as_real(integral((w,)).value), (leaf(1.7),), rtol=1e-5)


ENDS = {
    "peaks": (lambda x, k: k / ((x - 0.03 * k) ** 2 + 1e-4 * k**2), 0.0, 1.0),
    "waves": (lambda x, k: torch.sin(k * x) / (1 + x), 0.0, inf),
    "fast waves": (lambda x, k: torch.sin(k / x) / x, 0.0, 1.0),
    "roots": (lambda x, k: (x - k / 31).abs().sqrt(), 0.0, 1.0),
    "what rounding hides": (lambda x, k: x**0.2 / torch.expm1(k * x), 0.0, inf),
}
"""Integrands of an argument from 1 to 20, and limits: of some ends are quiet, of others not."""


def test_ends_are_told_together_what_each_is_told_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    k = torch.linspace(1.0, 20.0, 12, dtype=torch.float64)
    told: list[bool] = []

    def integrate(f: Callable[..., Tensor], a: float, b: float) -> qg.Result:
        return qg.quad(f, a, b, (k,), rtol=1e-8, on_failure="ignore")

    def together(*ends: Any) -> list[bool]:
        told.extend(are_quiet(*ends))
        return told[len(told) - len(ends[0]) :]

    monkeypatch.setattr(watch, "are_quiet", together)
    found = {name: integrate(*one) for name, one in ENDS.items()}
    assert set(told) == {False, True}
    monkeypatch.setattr(watch, "are_quiet", lambda lines, distances: [False] * len(lines))
    for name, one in ENDS.items():
        alone = integrate(*one)
        for column in ("value", "error", "status"):
            assert torch.equal(getattr(alone, column), getattr(found[name], column)), (name, column)


@pytest.mark.parametrize("name", ENDS)
def test_each_look_at_an_end_is_counted(name: str) -> None:
    f, a, b = ENDS[name]
    called = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal called
        called += x.numel()
        return f(x, 3.0)

    result = qg.quad(counted, t64(a), t64(b), rtol=1e-8, on_failure="ignore")
    assert called - 4 <= int(result.nfev) <= called  # but for a few places where only what f returns is looked at


@pytest.mark.parametrize("several", (False, True))
@pytest.mark.parametrize("turns", (3.0, 10.0, 40.0))
def test_damped_waves_converge_whether_bisected_or_summed(turns: float, several: bool) -> None:
    """What is before a series may be many times the whole: its tolerance is that of the whole."""
    generator = torch.Generator().manual_seed(int(turns))
    p = torch.rand(40, generator=generator, dtype=torch.float64) + 0.05
    w = turns * p * (0.5 + torch.rand(40, generator=generator, dtype=torch.float64))
    f = lambda x, p, w: torch.exp(-p * x) * torch.cos(w * x)
    g = (lambda x, p, w: torch.exp(torch.complex(-p * x, w * x))) if several else f
    result = qg.quad(g, 0.0, torch.inf, (p, w))
    true = p / (p**2 + w**2)
    assert bool(result.converged.all())
    assert bool(((result.value.real - true).abs() <= result.error).all())
    assert bool((result.nfev < 7_000).all())
    if turns <= 3.0:  # these bisection gets done with in a batch
        assert result.plan.term is None


@pytest.mark.parametrize("turns", (300, 700, 1000, 1500))
def test_fast_damped_waves_of_any_phase(turns: int) -> None:
    """Places see any other wave of these: of all 100 here 66 converged before that was looked for."""
    generator = torch.Generator().manual_seed(turns)
    p, ratio, q = (torch.rand(25, generator=generator, dtype=torch.float64) for _ in range(3))
    p, q = p + 0.05, 6.28 * q
    w = turns * p * (0.8 + 0.4 * ratio)
    result = qg.quad(
        lambda x, p, w, q: torch.exp(-p * x) * torch.cos(w * x + q), t64(0.0), inf, (p, w, q), rtol=1e-8,
        on_failure="ignore",
    )  # fmt: skip
    true = (p * q.cos() - w * q.sin()) / (p**2 + w**2)
    done = result.converged
    assert bool(((result.value - true).abs() <= result.error)[done].all()) and int(done.sum()) >= 21


@pytest.mark.parametrize("w", (0.5, 1.0, 3.0))
def test_a_complex_wave_that_falls_slowly_converges(w: float) -> None:
    result = qg.quad(lambda x: torch.exp(1j * w * x) / (x + 1).sqrt(), t64(0.0), inf, rtol=1e-8)
    root = mp.sqrt(-1j * w)
    exact = complex(mp.exp(-1j * w) * mp.sqrt(mp.pi) * mp.erfc(root) / root)
    assert result.converged and abs(complex(result.value) - exact) <= float(result.error) <= 1e-8 * abs(exact)
