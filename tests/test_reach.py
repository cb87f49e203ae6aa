"""What bisection alone does not reach: unmarked places, slowly decaying oscillations, ends like 1/(x log^2 x)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

import quadgrad as qg
from quadgrad._core.search.kernel import opening

inf = math.inf
Case = tuple[Callable[..., Any], float, float, float]


def t64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def gap(knots: Tensor, heights: Tensor, x: Tensor) -> Tensor:
    i = torch.searchsorted(knots, x.detach().contiguous(), right=True).clamp(1, len(knots) - 1)
    return heights[i - 1] + (heights[i] - heights[i - 1]) * (x - knots[i - 1]) / (knots[i] - knots[i - 1])


def power(c: float, p: float) -> float:
    return (c ** (p + 1) + (1 - c) ** (p + 1)) / (p + 1)


turns = math.floor(50 / math.pi)
SERIES: dict[str, Case] = {
    "sin wx / x": (lambda x: torch.sin(3 * x) / x, 0, inf, math.pi / 2),
    "sin^2 x / x^2": (lambda x: torch.sin(x) ** 2 / x**2, 0, inf, math.pi / 2),
    "cos wx^2": (lambda x: torch.cos(2 * x * x), 0, inf, math.sqrt(math.pi) / 4),
    "sin x^2": (lambda x: torch.sin(x * x), 0, inf, math.sqrt(math.pi / 8)),
    "x sin wx / (1 + x^2)": (lambda x: x * torch.sin(2 * x) / (1 + x * x), 0, inf, math.pi / 2 * math.exp(-2)),
    "J0": (lambda x: torch.from_numpy(scipy.special.j0(x.numpy())), 0, inf, 1.0),
    "cos x / sqrt x": (lambda x: torch.cos(x) / x.sqrt(), 0, inf, math.sqrt(math.pi / 2)),
    "slowly damped": (lambda x: torch.exp(-0.01 * x) * torch.sin(3 * x), 0, inf, 3 / 9.0001),
    "sin x / x^2": (lambda x: torch.sin(x) / x**2, 1, inf, math.sin(1) - float(mp.ci(1))),
    "sin 1/x": (lambda x: torch.sin(1 / x), 0, 1, math.sin(1) - float(mp.ci(1))),
    "1/(x log^2 x)": (lambda x: 1 / (x * torch.log(x) ** 2), 0, 0.5, 1 / math.log(2)),
    "1/(x |log x|^1.5)": (lambda x: 1 / (x * torch.log(x).abs() ** 1.5), 0, 0.5, 2 / math.sqrt(math.log(2))),
}
PLACES: dict[str, Case] = {
    "|x-1/3|^-.5": (lambda x: (x - 1 / 3).abs() ** -0.5, 0, 1, power(1 / 3, -0.5)),
    "|x-.3|^-.9": (lambda x: (x - 0.3).abs() ** -0.9, 0, 1, power(0.3, -0.9)),
    "log|x-.3|": (lambda x: (x - 0.3).abs().log(), 0, 1, 0.3 * math.log(0.3) + 0.7 * math.log(0.7) - 1),
    "|x^2-.1|^-.5": (lambda x: (x * x - 0.1).abs() ** -0.5, 0, 1, math.pi / 2 + math.acosh(math.sqrt(10))),
    "two": (
        lambda x: (x - 0.3).abs() ** -0.5 + (x - 0.7).abs() ** -0.25, 0, 1, power(0.3, -0.5) + power(0.7, -0.25),
    ),
    "step": (lambda x: (x > 0.3).double(), 0, 1, 0.7),
    "kink": (lambda x: (x - 0.3).abs(), 0, 1, 0.29),
    "|sin 50x|": (lambda x: torch.sin(50 * x).abs(), 0, 1, (2 * turns + 1 - math.cos(50 - turns * math.pi)) / 50),
    "log|sin 10x|": (
        lambda x: torch.sin(10 * x).abs().log(), 0, 1, float(-10 * mp.log(2) - mp.clsin(2, 20) / 2) / 10,
    ),
}  # fmt: skip


def series(of: Callable[[int], Any], first: int) -> float:
    """Return the integral of a power series from 0 to .5, of which ``of`` gives coefficients and exponents."""
    with mp.workdps(30):
        terms = (of(k) for k in range(first, 120))
        return float(mp.fsum(c * mp.mpf(0.5) ** (e + 1) / (e + 1) for c, e in terms))


def cancels(p: float) -> dict[str, Case]:
    """Integrands like ``x^(p-1)`` at 0, of which rounding hides the more the closer to it."""
    q = mp.mpf(p)
    return {
        f"x^{p} / (e^x - 1)": (
            lambda x: x**p / (torch.exp(x) - 1), 0, inf, float(mp.gamma(1 + q) * mp.zeta(1 + q)),
        ),
        f"(1 - cos x) x^{p}-3": (
            lambda x: (1 - torch.cos(x)) * x ** (p - 3), 0, 0.5,
            series(lambda k: ((-1) ** (k + 1) / mp.factorial(2 * k), 2 * k - 3 + q), 1),
        ),
        f"(sqrt(1 + x) - 1) x^{p}-2": (
            lambda x: (torch.sqrt(1 + x) - 1) * x ** (p - 2), 0, 0.5,
            series(lambda k: (mp.binomial(mp.mpf(0.5), k), k - 2 + q), 1),
        ),
        f"log(1 + x) x^{p}-2": (
            lambda x: torch.log(1 + x) * x ** (p - 2), 0, 0.5,
            series(lambda k: ((-1) ** (k + 1) / mp.mpf(k), k - 2 + q), 1),
        ),
    }  # fmt: skip


CANCELS: dict[str, Case] = {
    "sqrt x / (e^x - 1)": (lambda x: x.sqrt() / (torch.exp(x) - 1), 0, inf, float(mp.gamma(1.5) * mp.zeta(1.5))),
    **cancels(0.2),
}  # fmt: skip
ALL = SERIES | PLACES | CANCELS


@pytest.mark.parametrize("compiled", (True, False))
@pytest.mark.parametrize("name", ALL)
def test_reached_within_4000_nodes(name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(opening, "load", lambda: None)
    f, a, b, exact = ALL[name]
    result = qg.quad(f, t64(a), t64(b), rtol=1e-8)
    error = abs(float(result.value) - exact)
    assert bool(result.converged) and int(result.nfev) <= 4000
    assert error <= 1e-8 * abs(exact) and error <= float(result.error) + 4e-16 * abs(exact)
    again = qg.replay(f, result.plan, t64(a), t64(b))
    # What rounding does to the terms a series amplifies, in both sums.
    assert abs(float(again) - float(result.value)) <= 1e-13 * abs(exact) + 0.01 * float(result.error)


@pytest.mark.parametrize("p", (0.3, 0.05, 0.03))
def test_what_rounding_hides_keeps_its_best_value(p: float) -> None:
    """Also where rounding leaves less than the tolerance asks for."""
    for name, (f, a, b, exact) in cancels(p).items():
        result = qg.quad(f, t64(a), t64(b), rtol=1e-8, on_failure="ignore")
        assert qg.Status(int(result.status)) in (qg.Status.CONVERGED, qg.Status.ROUNDOFF), name
        assert abs(float(result.value) - exact) <= min(float(result.error), 1e-8 * exact), name
        assert float(result.error) <= 2e-7 * exact and int(result.nfev) <= 4000, name


@pytest.mark.parametrize("kind", ("step", "cut", "bump", "scale"))
@pytest.mark.parametrize("at", (1e-4, 1e-6, 1e-8, 1e-10))
def test_what_happens_before_rounding_hides_it_is_not_summed_over(kind: str, at: float) -> None:
    p = 0.2

    def changed(x: Tensor) -> Tensor:
        return {
            "step": 1 + 0.2 * (x > at), "cut": (x > at).double(),
            "bump": 1 + 0.3 * torch.exp(-((x / at).log() ** 2)),
            "scale": (1 + at / x) ** -0.1,
        }[kind]  # fmt: skip

    # x = e^-v, and a formula that does not cancel
    panels = torch.cat((torch.linspace(0, 300, 3001), -t64([at]).log())).sort().values.double()
    nodes, weights = (torch.from_numpy(t) for t in np.polynomial.legendre.leggauss(12))
    width = panels.diff()[:, None] / 2
    x = torch.exp(-(panels[:-1, None] + width * (1 + nodes)))
    exact = float((changed(x) * x ** (p + 1) / torch.expm1(x) * weights * width).sum())
    result = qg.quad(lambda x: changed(x) * x**p / (torch.exp(x) - 1), t64(0), 1.0, rtol=1e-8, on_failure="ignore")
    told = result.converged or int(result.status) == int(qg.Status.ROUNDOFF)
    assert not told or abs(float(result.value) - exact) <= float(result.error)


@pytest.mark.parametrize("p", (0.0, -0.05, -0.5))
def test_what_has_no_integral_is_not_summed_up(p: float) -> None:
    for f in (lambda x: x**p / (torch.exp(x) - 1), lambda x: 1 / (torch.exp(x) - 1) / (x.log() - 1).abs() ** -p):
        result = qg.quad(f, t64(0), 1.0, rtol=1e-8, on_failure="ignore")
        assert not result.converged and int(result.status) != int(qg.Status.ROUNDOFF)


def mixed(x: Tensor, c: Tensor, kind: Tensor, w: Tensor) -> Tensor:
    """Places, series, needles and what is smooth in one batch."""
    y = torch.where(kind == 0, (x - c).abs().clamp_min(1e-300) ** -0.5, torch.exp(0.1 * w * x))
    y = torch.where(kind == 1, (x > c).double(), torch.where(kind == 2, torch.sin(w / x), y))
    y = torch.where(kind == 3, torch.exp(-(((x - c) / 1e-5) ** 2)), y)
    return torch.where(kind == 4, torch.sin(10 * w * x).abs(), y)


@pytest.mark.parametrize("compiled", (True, False))
def test_a_batch_of_all_of_these_is_what_single_calls_are(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(opening, "load", lambda: None)
    n, draw = (24 if compiled else 12), torch.Generator().manual_seed(0)
    c, kind, w = (
        torch.rand(n, generator=draw).double(),
        torch.arange(n) % 6,
        1 + 30 * torch.rand(n, generator=draw).double(),
    )
    limits = t64([0.0]).expand(n), t64(1.0)
    together = qg.quad(mixed, *limits, (c, kind, w), rtol=1e-8, on_failure="ignore")
    for i in range(n):
        alone = qg.quad(mixed, t64(0.0), 1.0, (c[i], kind[i], w[i]), rtol=1e-8, on_failure="ignore")
        # With tensors the order in which the terms of a sum are added may depend on how many sums there are.
        for name, off in {"value": 1e-14, "error": 1e-4, "nfev": 0.0, "status": 0.0}.items():
            one, other = float(getattr(alone, name)), float(getattr(together, name)[i])
            assert abs(one - other) <= (0.0 if compiled else off * abs(one)), (i, name)
    replayed = qg.replay(mixed, together.plan, *limits, (c, kind, w))
    torch.testing.assert_close(replayed, together.value, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("seed", (5, 0, 1, 2))
@pytest.mark.parametrize("compiled", (True, False))
def test_a_table_within_4000_nodes(seed: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(opening, "load", lambda: None)
    draw = torch.Generator().manual_seed(seed)
    inner = torch.rand(18, generator=draw, dtype=torch.float64).sort().values
    knots, heights = torch.cat((t64(0.0)[None], inner, t64(1.0)[None])), torch.randn(20, generator=draw).double()
    result = qg.quad(lambda x: gap(knots, heights, x), t64(0.0), 1.0, rtol=1e-8)
    exact = float(torch.trapezoid(heights, knots))
    assert abs(float(result.value) - exact) <= max(float(result.error), 1e-14)
    assert bool(result.converged) and int(result.nfev) <= 4000


def test_tables_in_a_batch_are_what_single_ones_are() -> None:
    """Beside what is smooth; and the places found are the knots."""
    draw = torch.Generator().manual_seed(3)
    knots = torch.rand(5, 12, generator=draw, dtype=torch.float64).sort(1).values
    knots[:, 0], knots[:, -1] = 0.0, 1.0
    heights = torch.randn(5, 12, generator=draw, dtype=torch.float64)

    def f(x: Tensor, i: Tensor) -> Tensor:
        index = i.expand_as(x).long()
        y = torch.stack([gap(knots[k], heights[k], x) for k in range(5)])
        return torch.where(index < 5, y.gather(0, index.clamp_max(4)[None])[0], torch.exp(x))

    together = qg.quad(f, t64(0.0), 1.0, (torch.arange(6).double(),), rtol=1e-8)
    exact = torch.cat((torch.trapezoid(heights, knots), t64([math.e - 1])))
    assert together.converged.all() and ((together.value - exact).abs() <= together.error.clamp_min(1e-14)).all()
    for i in range(6):
        alone = qg.quad(f, t64(0.0), 1.0, (t64(float(i)),), rtol=1e-8)
        assert float(alone.value) == float(together.value[i]) and int(alone.nfev) == int(together.nfev[i])
    places = together.plan.places
    assert places is not None
    apart = (places[:5, :, None] - knots[:, None]).abs().amin(2)
    assert float(apart.nan_to_num(0.0).max()) <= 1e-12


Row = tuple[Callable[..., Tensor], float, float, tuple[float, ...], Callable[..., Any]]
DIFFERENTIATED: dict[str, Row] = {
    "sin wx / x": (lambda x, w: torch.sin(w * x) / x, 0, inf, (3.0,), lambda w: mp.pi / 2 + 0 * w),
    "cos wx^2": (lambda x, w: torch.cos(w * x * x), 0, inf, (2.0,), lambda w: mp.sqrt(mp.pi / w / 8)),
    "x sin wx": (lambda x, w: x * torch.sin(w * x) / (1 + x * x), 0, inf, (2.0,), lambda w: mp.pi / 2 * mp.exp(-w)),
    "damped": (
        lambda x, w, d: torch.exp(-d * x) * torch.sin(w * x), 0, inf, (3.0, 0.01), lambda w, d: w / (w * w + d * d),
    ),
    "cos wx / x^p": (
        lambda x, w, p: torch.cos(w * x) * x**-p, 0, inf, (1.0, 0.5),
        lambda w, p: mp.gamma(1 - p) * mp.sin(mp.pi * p / 2) * w ** (p - 1),
    ),
    "sin w/x": (lambda x, w: torch.sin(w / x), 0, 1, (1.0,), lambda w: mp.sin(w) - w * mp.ci(w)),
    "sin^2": (lambda x, w: torch.sin(w * x) ** 2 / x**2, 0, inf, (1.0,), lambda w: mp.pi * w / 2),
    "1/(x log^p)": (
        lambda x, p: 1 / (x * torch.log(x).abs() ** p), 0, 0.5, (1.5,), lambda p: mp.log(2) ** (1 - p) / (p - 1),
    ),
    "x^p / (e^x - 1)": (
        lambda x, p: x**p / (torch.exp(x) - 1), 0, inf, (0.2,), lambda p: mp.gamma(1 + p) * mp.zeta(1 + p),
    ),
    "scaled": (lambda x, s: s * (x - 0.3).abs() ** -0.9, 0, 1, (2.0,), lambda s: s * power(0.3, -0.9)),
    "exponent": (
        lambda x, p: (x - 0.3).abs() ** p, 0, 1, (-0.5,),
        lambda p: (mp.mpf(0.3) ** (p + 1) + (1 - mp.mpf(0.3)) ** (p + 1)) / (p + 1),
    ),
    "|sin wx|": (
        lambda x, w: torch.sin(w * x).abs(), 0, 1, (50.0,),
        lambda w: (2 * turns + 1 - mp.cos(w - turns * mp.pi)) / w,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENTIATED)
@pytest.mark.filterwarnings("ignore:second derivatives lack")  # of |sin wx|, whose kinks move
def test_derivatives(name: str) -> None:
    f, a, b, at, closed = DIFFERENTIATED[name]
    args = [t64(v).requires_grad_() for v in at]
    result = qg.quad(f, t64(a), t64(b), tuple(args), rtol=1e-8)
    first = torch.autograd.grad(result.value, args, create_graph=True)
    told = qg.gradient_error(result, args)
    for i, (g, error) in enumerate(zip(first, told, strict=True)):
        with mp.workdps(30):
            orders = [tuple(k * int(i == j) for j in range(len(at))) for k in (1, 2)]
            exact, second = (float(mp.diff(closed, at, order)) for order in orders)
        off = abs(float(g.detach()) - exact)
        assert off <= 1e-6 * max(1.0, abs(exact)) and off <= float(error) + 1e-13 * max(1.0, abs(exact))
        if name != "|sin wx|":
            (h,) = torch.autograd.grad(g, args[i], retain_graph=True, allow_unused=True)
            assert abs((0.0 if h is None else float(h)) - second) <= 1e-6 * max(1.0, abs(second))


def bent(c: Any, x: Any) -> Any:
    return abs(x - c) * (mp if isinstance(x, mp.mpf) else torch).exp(c * x)


def relu(c: Any, x: Any) -> Any:
    return (abs(x * x - c) + x * x - c) * (1 + c * x) / 2


def several(c: Any, x: Any) -> Any:
    return abs(x - c) * x + abs(x - 0.7 + c) * c**2


KINKS = {
    "bent": (bent, lambda c: [c]),
    "relu": (relu, lambda c: [mp.sqrt(c)]),
    "two": (several, lambda c: [c, 0.7 - c]),
}


@pytest.mark.parametrize("name", KINKS)
@pytest.mark.parametrize("way", ("reverse", "forward", "func", "captured", "vmap", "events", "turned", "replay"))
def test_second_derivatives_by_what_moves_a_kink(name: str, way: str) -> None:
    f, places = KINKS[name]
    at = 0.28
    with mp.workdps(30):
        integral = lambda c: mp.quad(lambda x: f(c, x), [0, *sorted(places(c)), 1])
        exact = float(mp.diff(integral, mp.mpf(at), 2))
    c = t64(at)
    value = lambda c: qg.quad(lambda x, c: f(c, x), t64(0.0), 1.0, (c,), rtol=1e-8).value
    captured = lambda c: qg.quad(lambda x: f(c, x), t64(0.0), 1.0, rtol=1e-8).value
    both = lambda c: (
        qg.quad(lambda x, c: torch.stack([f(c, x), x * c**2], -1), t64(0.0), 1.0, (c,), rtol=1e-8).value
    )
    plan = qg.quad(lambda x, c: f(c, x), t64(0.0), 1.0, (c,), rtol=1e-8).plan
    assert plan.places is not None and plan.found == len(places(at))
    hessian = torch.func.hessian
    found = {
        "reverse": lambda: torch.autograd.functional.hessian(value, c),
        "forward": lambda: torch.func.jacfwd(torch.func.jacfwd(value))(c),
        "func": lambda: hessian(value)(c),
        "captured": lambda: hessian(captured)(c),
        "vmap": lambda: torch.func.vmap(hessian(captured))(t64([0.31, at]))[1],
        "events": lambda: hessian(both)(c)[0],
        "turned": lambda: (
            -hessian(lambda c: qg.quad(lambda x, c: f(c, x), t64(1.0), 0.0, (c,), rtol=1e-8).value)(c)
        ),
        "replay": lambda: hessian(lambda c: qg.replay(lambda x, c: f(c, x), plan, t64(0.0), 1.0, (c,)))(c),
    }[way]()
    assert abs(float(found) - exact) <= 1e-6 * abs(exact)


def test_derivatives_where_only_some_of_a_batch_have_places() -> None:
    c = t64([0.3, 0.6, 1.7, 0.28]).requires_grad_()
    result = qg.quad(lambda x, c: (x - c).abs() + (x - c / 2).abs() * (c < 0.5), t64(0.0), 1.0, (c,), rtol=1e-8)
    assert result.plan.places is not None and result.plan.places.isnan().any()
    (first,) = torch.autograd.grad(result.value.sum(), c, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), c)
    exact = t64([2 * 0.3 - 1 + (2 * 0.15 - 1) / 2, 2 * 0.6 - 1, 1.0, 2 * 0.28 - 1 + (2 * 0.14 - 1) / 2])
    torch.testing.assert_close(first.detach(), exact, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(second, t64([2.5, 2.0, 0.0, 2.5]), rtol=1e-6, atol=1e-9)


STEEP = {
    "square root": (lambda x, c: (x - c).abs().sqrt(), True),
    "x log x": (lambda x, c: torch.xlogy((x - c).abs(), (x - c).abs()), True),
    "scaled": (lambda x, c: c * c * (x - 0.3).abs().sqrt(), False),
    "kink": (lambda x, c: c * (x - c).abs(), False),
}


@pytest.mark.parametrize("name", STEEP)
@pytest.mark.parametrize("way", ("reverse", "func"))
def test_second_derivatives_that_are_wrong_are_told(name: str, way: str) -> None:
    f, told = STEEP[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = lambda c: qg.quad(f, t64(0.0), 1.0, (c,), rtol=1e-8).value
        c = t64(0.3).requires_grad_()
        torch.autograd.grad(value(c), c)  # the first one is right
        torch.func.grad(value)(c.detach())
        assert not caught
        if way == "reverse":
            torch.autograd.grad(value(c), c, create_graph=True)
        else:
            torch.func.hessian(value)(c.detach())
    if way == "reverse" or told:
        assert [w.category for w in caught] == [qg.UnmarkedJumpWarning] * told
        assert not told or "x = 0.3" in str(caught[0].message)


@pytest.mark.parametrize("name", ("power", "logarithm", "step"))
def test_a_place_that_moves_is_told(name: str) -> None:
    f = {
        "power": lambda x, c: (x - c).abs() ** -0.5,
        "logarithm": lambda x, c: (x - c).abs().log(),
        "step": lambda x, c: c * (x > c),
    }[name]
    c = t64(0.3).requires_grad_()
    with pytest.warns(qg.UnmarkedJumpWarning, match="x = 0.3"):
        result = qg.quad(f, t64(0.0), 1.0, (c,), rtol=1e-8)
    assert float(qg.gradient_error(result, c)) == inf


@pytest.mark.parametrize("name", ("power", "logarithm"))
def test_a_place_that_stays_is_not_warned_about(name: str) -> None:
    s = t64(1.3).requires_grad_()
    f = {"power": lambda x: s * (x - 0.3).abs() ** -0.5, "logarithm": lambda x: s * (x - 0.3).abs().log()}[name]
    qg.quad(f, t64(0.0), 1.0, rtol=1e-8).value.backward()


@pytest.mark.parametrize("name", ("cut", "cut and decaying", "fast"))
def test_waves_that_end_are_no_series(name: str) -> None:
    """A wave that stops far out, and one on a finite interval, have no limit to be extrapolated to."""
    for far in (300.0, 5718.3, 8679.98):
        f, b, exact = {
            "cut": (lambda x, far=far: torch.where(x < far, torch.cos(x), 0.0), inf, math.sin(far)),
            "cut and decaying": (
                lambda x, far=far: torch.where(x < far, torch.sin(x) / x, 0.0),
                inf,
                float(mp.si(far)),
            ),
            "fast": (lambda x, far=far: torch.cos(far * x + 1), 1.0, (math.sin(far + 1) - math.sin(1)) / far),
        }[name]
        result = qg.quad(f, t64(0.0), t64(b), rtol=1e-6, on_failure="ignore")
        assert not bool(result.converged) or abs(float(result.value) - exact) <= float(result.error)


def test_a_plan_with_places_and_series_is_saved_joined_and_replayed() -> None:
    place = t64([0.3, 0.6])[:, None]
    result = qg.quad(lambda x, c: (x - c).abs() ** -0.5, t64(0.0), 1.0, (place[:, 0],), rtol=1e-8)
    assert torch.equal(result.plan.places, place) and result.plan.pieces == 2
    again = qg.replay(lambda x, c: (x - c).abs() ** -0.5, result.plan, t64(0.0), 1.0, (place[:, 0],))
    assert torch.allclose(again, result.value, rtol=1e-14)
    kept = qg.quad(lambda x, c: (x - c).abs() ** -0.5, t64(0.0), 1.0, (place[:, 0],), rtol=1e-8, plan=result.plan)
    assert kept.converged.all() and torch.allclose(kept.value, result.value, rtol=1e-12)


@pytest.mark.parametrize("engine", ("kernel", "tensors"))
def test_what_others_of_a_batch_have_found_asks_for_no_larger_budget(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a batch have as many pieces as the integral with the most kinks, a first round over which costs."""
    if engine == "tensors":
        monkeypatch.setattr(opening, "load", lambda: None)
    k = t64([1088.7945730802621, 353.0978505055281, 40.0])
    result = qg.quad(lambda x, k: torch.sin(k * x).abs(), t64(0.1), 1.0, (k,), rtol=1e-9, on_failure="ignore")
    assert bool((result.nfev <= 30_000).all()) and result.converged.tolist() == [False, False, True]
