"""`gradient_error`: never below the true error, and close to it where the integrand is smooth."""

from __future__ import annotations

from math import inf

import mpmath as mp
import pytest
import torch
from torch import Tensor
from torch.func import grad

import quadgrad as qg
from benchmarks.derivatives import ROWS, Row
from helpers import leaf, t64

EPS = torch.finfo(torch.float64).eps
RTOLS = (1e-2, 1e-4, 1e-6, 1e-8, 1e-11)


def errors_of(row: Row, rtol: float, mode: qg.GradientMode) -> tuple[float, float]:
    """Return the true and the estimated error of a row's gradient, relative to the gradient."""
    p = leaf(row.parameter)
    result = qg.quad(row.f, row.a, row.b, (p,), rtol=rtol, gradient=mode, on_failure="ignore")
    (gradient,) = torch.autograd.grad(result.value, p)
    estimated = float(qg.gradient_error(result, p))
    return abs(float(gradient) - row.exact) / abs(row.exact), estimated / abs(row.exact)


@pytest.mark.parametrize("rtol", RTOLS)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_at_least_the_true_error(row: Row, rtol: float) -> None:
    true, estimated = errors_of(row, rtol, qg.Reuse())
    assert true <= estimated


@pytest.mark.parametrize("rtol", RTOLS)
@pytest.mark.parametrize("row", [row for row in ROWS if row.smooth], ids=str)
def test_within_a_thousand_of_the_true_error_of_smooth_rows(row: Row, rtol: float) -> None:
    true, estimated = errors_of(row, rtol, qg.Reuse())
    assert estimated <= 1000 * max(true, EPS)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_of_a_resolved_derivative(row: Row) -> None:
    true, estimated = errors_of(row, 1e-4, qg.Resolve(rtol=1e-6))
    assert true <= estimated <= 1e-5


def steep(x: Tensor, p: Tensor) -> Tensor:
    return torch.sqrt(x**2 + p**2)


def steep_area(p: Tensor) -> Tensor:
    return 0.5 * torch.sqrt(1 + p**2) + 0.5 * p**2 * torch.asinh(1 / p)


def slopes(tensors: tuple[Tensor, ...], value: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, tensors, retain_graph=True)


def check(result: qg.Result, exact: Tensor, *wrt: Tensor) -> None:
    """Compare true and estimated errors of the gradient of a weighted sum of the values."""
    weight = torch.linspace(1.0, -2.0, exact.numel(), dtype=torch.float64).reshape(exact.shape)
    estimated = qg.gradient_error(result, wrt, weight)
    ours, theirs = slopes(wrt, (result.value * weight).sum()), slopes(wrt, (exact * weight).sum())
    for one, other, error in zip(ours, theirs, estimated, strict=True):
        assert error.shape == one.shape
        assert ((one - other).abs() <= error).all()
        assert (error <= 0.1 * other.abs().max()).all()  # it says something


def test_batch_with_a_shared_and_an_own_argument() -> None:
    p, q = leaf([1e-2, 0.03, 0.5]), leaf(2.0)
    result = qg.quad(lambda x, p, q: q * steep(x, p), 0.0, 1.0, (p, q), rtol=1e-6)
    check(result, q * steep_area(p), p, q)


def test_what_arguments_were_computed_from() -> None:
    p, w = leaf([0.5, 1.0]), leaf([[1.0, 2.0], [0.0, -1.0]])
    width = 1e-2 * torch.exp(w @ p)
    check(qg.quad(steep, 0.0, 1.0, (width,), rtol=1e-6), steep_area(width), p, w, width)


def test_element_arguments() -> None:
    p = leaf([[1e-2, 0.5], [0.02, 0.1]])
    f = lambda x, p: steep(x[..., None], p).sum(-1)
    check(qg.quad(f, 0.0, 1.0, (qg.element(p, 1),), rtol=1e-6), steep_area(p).sum(-1), p)


@pytest.mark.parametrize("computed", (False, True))
def test_closed_over_tensors(computed: bool) -> None:
    p = leaf([1e-2, 0.5])
    q = 2 * p if computed else p
    result = qg.quad(lambda x: steep(x, q[0]) + steep(x, q[1]), t64(0.0), 1.0, rtol=1e-6)
    check(result, steep_area(q).sum(), p)


def test_events_and_complex_numbers() -> None:
    p = leaf([1e-2, 0.03])
    f = lambda x, p: torch.stack((steep(x, p), x * p), dim=-1)
    result = qg.quad(f, 0.0, 1.0, (p,), rtol=1e-6)
    check(result, torch.stack((steep_area(p), p / 2), dim=-1), p)
    z = t64([1e-2, 0.03]).to(torch.complex128).requires_grad_()
    result = qg.quad(steep, 0.0, 1.0, (z,), rtol=1e-3)
    error, gradient = qg.gradient_error(result, z), torch.autograd.grad(result.value.real.sum(), z)[0]
    assert not error.is_complex()
    assert ((gradient - grad(lambda p: steep_area(p).sum())(p.detach())).abs() <= error).all()


def test_limits_and_breakpoints() -> None:
    a, b, s = leaf(-1.0), leaf([1.0, 2.0]), leaf(0.3)
    f = lambda x, s: torch.exp(x) * torch.where(x > s, 2.0, 1.0)
    exact = 2 * torch.exp(b) - torch.exp(s) - torch.exp(a)
    check(qg.quad(f, a, b, (s,), points=s, rtol=1e-12), exact, a, b, s)


def test_limits_that_a_singularity_follows_and_one_that_it_does_not() -> None:
    b = leaf([0.7, 2.0])
    check(qg.quad(lambda x, b: (b - x) ** -0.5, 0.0, b, (b,), rtol=1e-5), 2 * b**0.5, b)
    a = leaf(0.0)
    with pytest.warns(qg.IntegrationWarning, match="infinite"):
        result = qg.quad(lambda x: x**-0.5, a, 1.0)
    assert float(qg.gradient_error(result, a)) == torch.inf


# -- singular ends: the cell at the end is extrapolated --------------------------------------------------

LOGS = lambda s, k: (-1) ** k * mp.factorial(k) / (1 - s) ** (k + 1)
SINGULAR = {
    "x^-s": (lambda x, s: x**-s, 0.0, 1.0, lambda s: LOGS(s, 0)),
    "(1-x)^-s": (lambda x, s: (1 - x) ** -s, 0.0, 1.0, lambda s: LOGS(s, 0)),
    "x^-s log x": (lambda x, s: x**-s * torch.log(x), 0.0, 1.0, lambda s: LOGS(s, 1)),
    "x^-s log(x)^2": (lambda x, s: x**-s * torch.log(x) ** 2, 0.0, 1.0, lambda s: LOGS(s, 2)),
    "x^-s (1-x)^-s": (lambda x, s: x**-s * (1 - x) ** -s, 0.0, 1.0, lambda s: mp.beta(1 - s, 1 - s)),
    "x^-s + x^(-s/2)": (lambda x, s: x**-s + x ** (-s / 2), 0.0, 1.0, lambda s: LOGS(s, 0) + LOGS(s / 2, 0)),
    "x^-s (1+x)": (lambda x, s: x**-s * (1 + x), 0.0, 1.0, lambda s: LOGS(s, 0) + 1 / (2 - s)),
    "(1-x)^-s x": (lambda x, s: (1 - x) ** -s * x, 0.0, 1.0, lambda s: LOGS(s, 0) - 1 / (2 - s)),
    "half-line x^-(1+s)": (lambda x, s: x ** -(1 + s), 1.0, inf, lambda s: 1 / s),
    "half-line 1/(x^s (1+x))": (
        lambda x, s: x**-s / (1 + x), 1.0, inf, lambda s: (mp.digamma((s + 1) / 2) - mp.digamma(s / 2)) / 2,
    ),
}  # fmt: skip
MODES = {"Reuse": lambda rtol: qg.Reuse(), "Resolve": lambda rtol: qg.Resolve(rtol=rtol)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rtol", RTOLS)
@pytest.mark.parametrize("power", (0.3, 0.5, 0.9))
@pytest.mark.parametrize("name", SINGULAR)
def test_by_the_power_of_a_singularity(name: str, power: float, rtol: float, mode: str) -> None:
    f, a, b, area = SINGULAR[name]
    with mp.workdps(30):
        exact = float(mp.diff(area, mp.mpf(power)))
    s = leaf(power)
    searched = rtol if mode == "Reuse" else 1e-4
    result = qg.quad(f, a, b, (s,), rtol=searched, gradient=MODES[mode](rtol), on_failure="ignore")
    true = abs(float(torch.autograd.grad(result.value, s)[0]) - exact)
    estimated = float(qg.gradient_error(result, s))
    assert true <= estimated < inf
    if result.derivative is not None:
        assert estimated <= 2e-2 * abs(exact)
        assert true <= float(result.derivative.error)
        # Beside 1 numbers are eps apart: what is closer to the end than that cannot be seen.
        if "1-x" not in name:
            assert bool(result.derivative.converged)
            assert true <= rtol * abs(exact)


def test_by_a_shift_that_changes_the_power_of_a_singularity() -> None:
    # The series of f says nothing of that of the derivative: the cell has to come close to the end.
    for power in (0.3, 0.7):
        p = leaf(0.0)
        f = lambda x, p, power=power: (x + p) ** power
        for mode in (qg.Reuse(), qg.Resolve(rtol=1e-9)):
            result = qg.quad(f, 0.0, 1.0, (p,), rtol=1e-4, gradient=mode)
            true = abs(float(torch.autograd.grad(result.value, p)[0]) - 1)
            assert true <= float(qg.gradient_error(result, p))
        assert true <= float(result.derivative.error) <= 1e-9


@pytest.mark.parametrize("way", ("batch", "closed over", "computed", "vector", "complex", "element"))
def test_at_singular_ends_in_every_way(way: str) -> None:
    s = leaf([0.3, 0.6])
    area = 1 / (1 - s) + 1 / (2 - s)
    f = lambda x, s: x**-s * (1 + x)
    if way == "batch":
        check(qg.quad(f, 0.0, 1.0, (s,), rtol=1e-6), area, s)
    elif way == "closed over":
        check(qg.quad(lambda x: f(x, s[0]) + f(x, s[1]), t64(0.0), 1.0, rtol=1e-6), area.sum(), s)
    elif way == "computed":
        check(qg.quad(f, 0.0, 1.0, (s**2,), rtol=1e-6), 1 / (1 - s**2) + 1 / (2 - s**2), s)
    elif way == "vector":
        g = lambda x, s: torch.stack((f(x, s), torch.exp(-s * x)), dim=-1)
        check(qg.quad(g, 0.0, 1.0, (s,), rtol=1e-6), torch.stack((area, (1 - torch.exp(-s)) / s), dim=-1), s)
    elif way == "element":
        g = lambda x, s: f(x, s[..., 0]) + f(x, s[..., 1])
        check(qg.quad(g, 0.0, 1.0, (qg.element(s, 1),), rtol=1e-6), area.sum(), s)
    else:
        z = torch.complex(s.detach(), t64([0.5, 0.2])).requires_grad_()
        for mode in (qg.Reuse(), qg.Resolve(rtol=1e-9)):
            result = qg.quad(f, 0.0, 1.0, (z,), rtol=1e-6, gradient=mode)
            error, weight = qg.gradient_error(result, z), t64([1.0, 1.0])
            (ours,) = torch.autograd.grad(result.value.real, z, weight)
            (exact,) = torch.autograd.grad((1 / (1 - z) + 1 / (2 - z)).real, z, weight)
            assert ((ours - exact).abs() <= error).all()
        assert (error <= 1e-8 * exact.abs()).all()


def test_peaks_of_all_widths_are_never_underestimated() -> None:
    generator = torch.Generator().manual_seed(7)
    c, decades = torch.rand((2, 2000), generator=generator, dtype=torch.float64)
    c, e = leaf(c), leaf(10 ** (4 * decades - 5))
    exact = (torch.atan((1 - c) / e) + torch.atan(c / e)).sum()
    for rtol in (1e-3, 1e-6):
        result = qg.quad(lambda x, c, e: e / ((x - c) ** 2 + e**2), 0.0, 1.0, (c, e), rtol=rtol)
        errors = qg.gradient_error(result, (c, e))
        # By the centre, by its closed form that does not cancel.
        by_centre = e / (c**2 + e**2) - e / ((1 - c) ** 2 + e**2)
        ours = torch.autograd.grad(result.value.sum(), (c, e))
        assert ((ours[0] - by_centre).abs() <= errors[0]).all()
        assert ((ours[1] - slopes((e,), exact)[0]).abs() <= errors[1]).all()


def test_what_cannot_be_estimated_is_refused() -> None:
    p = leaf(0.5)
    with pytest.raises(ValueError, match="needs a result with a gradient"):
        qg.gradient_error(qg.quad(steep, 0.0, 1.0, (p.detach(),)), p)
    result = qg.quad(steep, 0.0, 1.0, (p,))
    with pytest.raises(ValueError, match=r"wrt\[1\] of shape \(\) does not require grad"):
        qg.gradient_error(result, (p, t64(1.0)))


def test_no_gradient_of_the_caller_is_touched() -> None:
    p = leaf(0.5)
    p.grad = t64(7.0)
    qg.gradient_error(qg.quad(steep, 0.0, 1.0, (p,)), p)
    assert float(p.grad) == 7.0
