"""Integrals of functions given by their logarithm: exact values, their errors, gradients and transforms."""

from __future__ import annotations

import math
from functools import partial
from math import inf, nan, pi
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import quadgrad as qg
from helpers import Recorder, cells_of, leaf, relative_error, same_plan, t64
from quadgrad._core.logspace import peaks

log_quad = partial(qg.quad, log=True)


def gauss(x: Tensor, c: Tensor, s: Tensor, height: Tensor | float = 0.0) -> Tensor:
    return height - 0.5 * ((x - c) / s) ** 2


def gamma(x: Tensor, z: Tensor) -> Tensor:
    return (z - 1) * torch.log(x) - x


def ramp(x: Tensor, p: Tensor) -> Tensor:
    return -1000.0 - p * x


def log_ramp(p: Tensor, a: Tensor | float = 0.0, b: Tensor | float = 1.0) -> Tensor:
    """Return the exact logarithm of the integral of exp(ramp) from a to b."""
    return -1000.0 - p * a + torch.log1p(-torch.exp(-p * (b - a))) - torch.log(p)


def assert_honest(result: qg.Result, exact: Tensor) -> None:
    """All have converged, to the default tolerance, and none is off by more than it says."""
    true = (result.value.detach() - exact).abs()
    assert result.converged.all(), result.message
    assert (true <= result.error).all(), (true / result.error).max()
    assert (result.error <= 1.5e-8).all()


def draw(n: int, low: float, high: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, dtype=torch.float64, generator=generator)


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("height", [0.0, -1e4, -1e6, 1e5])
@pytest.mark.parametrize("width", [1.0, 1e-3, 1e-6])
def test_gaussian_evidence(height: float, width: float) -> None:
    result = log_quad(gauss, -10.0, 10.0, (t64(0.3337), t64(width), t64(height)))
    assert_honest(result, t64(height + math.log(width * math.sqrt(2 * pi))))


def test_needles_whose_heights_differ_by_thousands() -> None:
    n = 1000
    c, s, height = draw(n, -1.0, 1.0, 0), 10.0 ** draw(n, -6.0, 0.0, 1), draw(n, -1e5, 1e5, 2)
    assert_honest(log_quad(gauss, -20.0, 20.0, (c, s, height)), height + torch.log(s * math.sqrt(2 * pi)))


def test_needles_of_every_form() -> None:
    n = 1000
    c, k = draw(n, 0.0, 1.0, 3), 10.0 ** draw(n, 0.0, 8.0, 4)
    exact = torch.log((-torch.expm1(-k * c) - torch.expm1(-k * (1 - c))) / k)
    assert_honest(log_quad(lambda x, c, k: -k * (x - c).abs(), 0.0, 1.0, (c, k)), exact)
    assert_honest(log_quad(lambda x, k: -k * x, 0.0, 1.0, (k,)), torch.log(-torch.expm1(-k) / k))
    bessel = torch.log(torch.special.i0e(k) * pi) + k
    assert_honest(log_quad(lambda x, k: k * torch.cos(x), 0.0, pi, (k[k < 1e5],)), bessel[k < 1e5])


def test_two_needles_far_from_each_other() -> None:
    n = 1000
    one, other, s, w = draw(n, 0.0, 1.0, 5), draw(n, 0.0, 1.0, 6), 10.0 ** draw(n, -6.0, -1.0, 7), draw(n, -5, 5, 8)

    def both(x: Tensor, one: Tensor, other: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return torch.logaddexp(gauss(x, one, s), gauss(x, other, s, w)) - 3e4

    exact = torch.log(s * math.sqrt(2 * pi)) + torch.nn.functional.softplus(w) - 3e4
    assert_honest(log_quad(both, -20.0, 20.0, (one, other, s, w)), exact)


def test_log_gamma_function_and_digamma() -> None:
    z = leaf([0.5, 2.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e5])
    result = log_quad(gamma, 0.0, inf, (z,), gradient=qg.Resolve())
    assert_honest(result, torch.lgamma(z.detach()))
    (slope,) = torch.autograd.grad(result.value.sum(), z)
    true = (slope - torch.digamma(z)).abs().detach()
    assert result.derivative.converged.all()
    assert (true <= result.derivative.error[:, 0]).all()
    assert relative_error(slope, torch.digamma(z)) <= 1e-8


def test_beta_function() -> None:
    p, q = 10.0 ** draw(300, 0.0, 5.0, 9), 10.0 ** draw(300, 0.0, 5.0, 10)
    with mpmath.workdps(40):
        pairs = [(mpmath.mpf(a), mpmath.mpf(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
        exact = t64([float(mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)) for a, b in pairs])
    assert_honest(
        log_quad(lambda x, p, q: (p - 1) * torch.log(x) + (q - 1) * torch.log1p(-x), 0.0, 1.0, (p, q)), exact
    )


def test_random_effects_of_hundreds_of_groups() -> None:
    """Gamma-Poisson: 250 counts in each group share a rate; the likelihood is known, and no float can hold it.

    Each term of log f is the difference of larger ones, whose rounding adds to the error that is reported.
    """
    groups, each, shape, rate = 300, 250, leaf(3.0), leaf(0.02)
    generator = torch.Generator().manual_seed(11)
    effects = 50.0 + 200.0 * torch.rand(groups, 1, dtype=torch.float64, generator=generator)
    counts = torch.poisson(effects.expand(groups, each), generator=generator)

    def log_f(u: Tensor, counts: Tensor, shape: Tensor, rate: Tensor) -> Tensor:
        u = u[..., None]
        likelihood = (counts * torch.log(u) - u - torch.lgamma(counts + 1)).sum(-1)
        u = u[..., 0]
        return likelihood + shape * rate.log() - torch.lgamma(shape) + (shape - 1) * torch.log(u) - rate * u

    def exact(shape: Tensor, rate: Tensor) -> Tensor:
        total = counts.sum(-1)
        return (
            torch.lgamma(shape + total) - torch.lgamma(shape) + shape * rate.log()
            - (shape + total) * torch.log(rate + each) - torch.lgamma(counts + 1).sum(-1)
        )  # fmt: skip

    result = log_quad(log_f, 0.0, inf, (qg.element(counts, ndim=1), shape, rate))
    known = exact(shape, rate)
    assert (torch.exp(known) == 0.0).all()
    terms = counts * effects.log() + effects + torch.lgamma(counts + 1)
    rounding = 2 * torch.finfo(torch.float64).eps * terms.sum(-1)
    assert result.converged.all()
    assert ((result.value - known).abs() <= result.error + rounding).all()
    found, right = (torch.autograd.grad(v.sum(), (shape, rate)) for v in (result.value, known))
    assert max(relative_error(*pair) for pair in zip(found, right, strict=True)) <= 1e-8


def test_success_rates_of_a_thousand_groups() -> None:
    """Beta-binomial: up to 1e5 outcomes in each group, and a group's rate drawn from a beta distribution."""
    each, one, other = (10.0 ** draw(1000, 2.0, 5.0, 12)).round(), leaf(2.0), leaf(3.0)
    hits = (each * draw(1000, 0.0, 1.0, 13)).round()

    def log_f(u: Tensor, hits: Tensor, each: Tensor, one: Tensor, other: Tensor) -> Tensor:
        likelihood = hits * torch.log(u) + (each - hits) * torch.log1p(-u)
        prior = (one - 1) * torch.log(u) + (other - 1) * torch.log1p(-u)
        return likelihood + prior - (torch.lgamma(one) + torch.lgamma(other) - torch.lgamma(one + other))

    def exact(one: Tensor, other: Tensor) -> Tensor:
        def log_beta(p: Tensor, q: Tensor) -> Tensor:
            return torch.lgamma(p) + torch.lgamma(q) - torch.lgamma(p + q)

        return log_beta(hits + one, each - hits + other) - log_beta(one, other)

    result = log_quad(log_f, 0.0, 1.0, (hits, each, one, other))
    known = exact(one, other)
    assert float((known < -745.0).double().mean()) > 0.5
    rounding = 4 * torch.finfo(torch.float64).eps * torch.lgamma(each)  # of the closed form
    assert result.converged.all()
    assert ((result.value - known).abs() <= result.error + rounding).all()
    found, right = (torch.autograd.grad(v.sum(), (one, other)) for v in (result.value, known))
    assert max(relative_error(*pair) for pair in zip(found, right, strict=True)) <= 1e-8


def test_narrow_posteriors_are_found_where_the_plain_integral_sees_nothing() -> None:
    c, s = t64(0.123456), t64(1e-9)
    # Where no argument tells where it is: else f is called there.
    assert float(qg.quad(lambda x, c, s: torch.exp(gauss(x, c - 8.0, s)), -1.0, 1.0, (c + 8.0, s)).value) == 0.0
    result = log_quad(gauss, -1.0, 1.0, (c, s))
    assert float((result.value - math.log(1e-9 * math.sqrt(2 * pi))).abs()) <= float(result.error)
    assert result.converged


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="where the wide peak's flank is higher at all nodes, log f does not show the narrow one",
)
def test_needle_in_the_flank_of_a_wide_peak() -> None:
    s, height = t64(1e-6), t64(30.0)
    result = log_quad(lambda x: torch.logaddexp(-(x**2), gauss(x, 0.3, s, height)), -10.0, 10.0)
    narrow = height + torch.log(s * math.sqrt(2 * pi))
    assert_honest(result, torch.logaddexp(t64(0.5 * math.log(pi)), narrow))


def test_rounding_of_x_on_the_whole_line() -> None:
    n = 300
    c, s = draw(n, 2.0, 5.0, 14), t64(1e-5)
    assert_honest(log_quad(gauss, -inf, inf, (c, s)), torch.log(s * math.sqrt(2 * pi)))


def test_far_out_on_infinite_intervals() -> None:
    c, s = t64([1e3, -1e5, 3e6]), t64([1.0, 30.0, 1e3])
    assert_honest(log_quad(gauss, -inf, inf, (c, s)), torch.log(s * math.sqrt(2 * pi)))
    assert_honest(
        log_quad(gauss, t64([0.0, -inf, 1e2]), t64([inf, 5.0, inf]), (c, s)), torch.log(s * math.sqrt(2 * pi))
    )


def test_tail_probabilities_beyond_any_float() -> None:
    """The logarithm of the normal distribution function, at its steep end: the needle is at the limit."""
    z = t64([-5.0, -40.0, -1e3])
    result = log_quad(lambda x: -0.5 * x**2 - 0.5 * math.log(2 * pi), -inf, z)
    exact = torch.special.log_ndtr(z)
    assert_honest(result, exact)


# ---------------------------------------------------------------------------------------------- zeros of f


def test_zero_integrals_are_minus_infinity() -> None:
    p = leaf([1.0, 2.0, 3.0])
    a, b = t64([0.0, 0.5, 0.0]), t64([1.0, 0.5, 1.0])
    result = log_quad(lambda x, p: torch.where(p > 2.5, -inf, ramp(x, p)), a, b, (p,))
    result.value[0].backward(retain_graph=True)
    result.value[1:].sum().backward()
    assert result.value[1:].tolist() == [-inf, -inf]
    assert result.error[1:].tolist() == [0.0, 0.0]
    assert result.converged.all()
    assert relative_error(p.grad, [float(grad(log_ramp)(p.detach()[0])), 0.0, 0.0]) <= 1e-7


@pytest.mark.parametrize("edge", [0.4, 0.999, 1e-6])
def test_support_that_ends_inside(edge: float) -> None:
    def log_f(x: Tensor) -> Tensor:
        return torch.where(x < edge, -1e4 - x, -inf)

    b = t64(1.0)
    assert_honest(log_quad(log_f, 0.0, b), t64(-1e4 + math.log(-math.expm1(-edge))))
    assert_honest(log_quad(log_f, 0.0, b, points=[edge]), t64(-1e4 + math.log(-math.expm1(-edge))))


def test_small_support_of_a_needle() -> None:
    """f is zero at all nodes of the first cell but two, and 1e-4000 at these."""
    s = t64(1e-3)
    result = log_quad(lambda x: torch.where((x - 0.41).abs() < 0.03, gauss(x, 0.4, s), -inf), 0.0, t64(1.0))
    part = torch.special.log_ndtr(0.04 / s) + torch.log1p(-torch.exp(torch.special.log_ndtr(-0.02 / s)))
    assert_honest(result, torch.log(s * math.sqrt(2 * pi)) + part)


def test_components_have_scales_of_their_own() -> None:
    p = leaf(3.0)

    def log_f(x: Tensor, p: Tensor) -> Tensor:
        return torch.stack((ramp(x, p), 1e5 + gauss(x, 0.3, p * 1e-5), torch.full_like(x, -inf), -2e3 * x), -1)

    result = log_quad(log_f, 0.0, 1.0, (p,))
    exact = torch.stack((log_ramp(p), 1e5 + torch.log(p * 1e-5 * math.sqrt(2 * pi)), -torch.log(t64(2e3))))
    kept = result.value[[0, 1, 3]]
    assert result.value[2] == -inf
    assert result.error.shape == ()
    assert result.converged
    assert float((kept - exact).detach().abs().max()) <= float(result.error) <= 1.5e-8
    for i, j in ((0, 0), (1, 1), (3, 2)):
        found, right = (torch.autograd.grad(v, p, retain_graph=True)[0] for v in (result.value[i], exact[j]))
        assert relative_error(found, right) <= 1e-7


def test_no_components() -> None:
    result = log_quad(lambda x: x[..., None].expand(*x.shape, 0), 0.0, t64([1.0, 2.0]))
    assert result.value.shape == (2, 0)
    assert result.error.tolist() == [0.0, 0.0]
    assert result.converged.all()


@pytest.mark.parametrize("shape", ((0,), (0, 3), (2, 0)))
def test_empty_batch(shape: tuple[int, ...]) -> None:
    """No integral is none to search: only the probe calls f."""
    f, p = Recorder(ramp), torch.empty(shape, dtype=torch.float64)
    result = log_quad(f, 0.0, t64(1.0), (p,))
    for values, dtype in (
        (result.value, torch.float64), (result.error, torch.float64),
        (result.status, torch.int64), (result.nfev, torch.int64),
    ):  # fmt: skip
        assert (values.shape, values.dtype) == (shape, dtype)
    assert result.plan.batch_shape == shape
    assert result.plan.owner.numel() == 0
    assert f.calls == f.largest_call == 1


# --------------------------------------------------------------------------------------- limits and breakpoints


def test_derivatives_of_limits() -> None:
    p, a, b = leaf([2.0, 300.0]), leaf([0.1, 0.2]), leaf([0.7, 0.9])
    value = log_quad(ramp, a, b, (p,), rtol=1e-12).value
    found, right = (torch.autograd.grad(v.sum(), (p, a, b)) for v in (value, log_ramp(p, a, b)))
    assert max(relative_error(*pair) for pair in zip(found, right, strict=True)) <= 1e-10


def test_singular_limit() -> None:
    z = leaf([0.1, 0.5, 0.9])
    result = log_quad(lambda x, z: (z - 1) * torch.log(x) - 5e3, 0.0, 1.0, (z,))
    assert_honest(result, -5e3 - z.detach().log())
    (found,) = torch.autograd.grad(result.value.sum(), z)
    assert relative_error(found, -1 / z) <= 1e-6


def test_breakpoints_and_jumps_are_differentiated() -> None:
    s, low = leaf(0.3), 700.0

    def log_f(x: Tensor, s: Tensor) -> Tensor:
        return -1e4 + torch.where(x > s, -x, -low * x)

    exact = -1e4 + torch.log(-torch.expm1(-low * s) / low + torch.exp(-s) - math.exp(-1))
    (right,) = torch.autograd.grad(exact, s)
    for marks in ({"points": [s]}, {"jumps": lambda x, s: x - s}):
        result = log_quad(log_f, 0.0, 1.0, (s,), **marks)
        assert_honest(result, exact.detach())
        assert relative_error(torch.autograd.grad(result.value, s)[0], right) <= 1e-8


def test_unmarked_jump_is_noted() -> None:
    s = leaf(0.3)
    with pytest.warns(qg.UnmarkedJumpWarning, match=r"jumps at x = 0\.3,"):
        log_quad(lambda x, s: torch.where(x > s, -1e4 - s * x, -1e4 + 2.0), 0.0, 1.0, (s,))


def test_descending_limits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"limit a lies above limit b at index \(1,\) \(1 of 3 do\)"):
        log_quad(lambda x: x, t64([0.0, 2.0, 0.0]), 1.0)


# ------------------------------------------------------------------------------------------------- gradients


def test_gradcheck() -> None:
    def value(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return log_quad(lambda x, p: ramp(x, p) - 10 * x**2, a, b, (p,), rtol=1e-11).value

    inputs = leaf([3.0, 20.0]), leaf([0.1, 0.2]), leaf([0.9, 1.5])
    assert gradcheck(value, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(value, inputs)


@pytest.mark.parametrize("mode", [qg.Reuse(), qg.Resolve()])
def test_transforms(mode: qg.GradientMode) -> None:
    def value(p: Tensor, b: Tensor) -> Tensor:
        return log_quad(ramp, 0.0, b, (p,), gradient=mode, rtol=1e-12).value

    def exact(p: Tensor, b: Tensor) -> Tensor:
        return log_ramp(p, 0.0, b)

    p, b = t64([1.0, 30.0, 400.0]), t64([1.0, 0.5, 0.1])
    for transform in (
        lambda f: vmap(grad(f, (0, 1))),
        lambda f: vmap(hessian(f)),
        lambda f: jacrev(lambda p, b: vmap(f)(p, b)),
        lambda f: jacfwd(lambda p, b: vmap(f)(p, b), (0, 1)),
        lambda f: lambda p, b: jvp(f, (p[0], b[0]), (p[1], b[1])),
    ):
        found, right = (torch.utils._pytree.tree_leaves(transform(f)(p, b)) for f in (value, exact))
        assert max(relative_error(*pair) for pair in zip(found, right, strict=True)) <= 1e-8


def test_vmap_of_needles_of_very_different_height() -> None:
    c, s, height = t64([0.2, 0.5, 0.8]), t64([1e-1, 1e-3, 1e-5]), t64([0.0, -1e5, 1e4])
    value = vmap(lambda *args: log_quad(gauss, -9.0, 9.0, args).value)(c, s, height)
    assert float((value - height - torch.log(s * math.sqrt(2 * pi))).abs().max()) <= 1e-8


def test_networks_and_closures() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    w = leaf(50.0)

    def log_f(x: Tensor) -> Tensor:
        return 1e3 * network(x[..., None])[..., 0] - w * x

    parameters = [*network.parameters(), w]
    a, b = t64(0.0), t64(1.0)
    result = log_quad(log_f, a, b, rtol=1e-12)
    x = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    y = log_f(x)
    weights = torch.full_like(x, 1 / 200_000)
    weights[[0, -1]] /= 2
    naive = torch.logsumexp(y + weights.log(), 0)
    found, right = (torch.autograd.grad(v, parameters) for v in (result.value, naive))
    assert relative_error(result.value, naive) <= 1e-9
    assert max(relative_error(f, r) for f, r in zip(found, right, strict=True)) <= 1e-4
    resolved = log_quad(log_f, a, b, gradient=qg.Resolve(params=[network, w]))
    again = torch.autograd.grad(resolved.value, parameters)
    assert resolved.derivative.converged
    assert max(float((f - r).abs().max() / r.abs().max()) for f, r in zip(again, found, strict=True)) <= 1e-7


def test_resolve_resolves_value_and_derivative() -> None:
    """At a loose tolerance of the value, the quotient of derivative and value is right all the same."""
    p = leaf([50.0, 700.0])
    result = log_quad(ramp, 0.0, 1.0, (p,), rtol=1e-2, gradient=qg.Resolve(rtol=1e-10))
    (found,) = torch.autograd.grad(result.value.sum(), p)
    (right,) = torch.autograd.grad(log_ramp(p).sum(), p)
    assert result.derivative.converged.all()
    assert ((found - right).abs() <= result.derivative.error[:, 0]).all()
    assert relative_error(found, right) <= 1e-10


@pytest.mark.parametrize("rtol", [1e-3, 1e-8])
def test_error_of_gradients(rtol: float) -> None:
    p, b = leaf([3.0, 40.0, 900.0]), leaf([1.0, 0.3, 0.2])
    result = log_quad(ramp, 0.0, b, (p,), rtol=rtol)
    exact = log_ramp(p, 0.0, b)
    weights = t64([1.0, -2.0, 0.5])
    found, right = (torch.autograd.grad(v, (p, b), weights, retain_graph=True) for v in (result.value, exact))
    for error, one, other in zip(qg.gradient_error(result, (p, b), weights), found, right, strict=True):
        assert ((one - other).abs() <= error).all()
        assert (error <= 1e3 * rtol).all()


def test_error_of_gradients_of_components() -> None:
    q = leaf(2.0)
    p = q**2

    def log_f(x: Tensor, p: Tensor) -> Tensor:
        return torch.stack((ramp(x, p), ramp(x, 100 * p), torch.full_like(x, -inf)), -1)

    result = log_quad(log_f, 0.0, 1.0, (p,), rtol=1e-4)
    exact = torch.stack((log_ramp(p), log_ramp(100 * p)))
    error = qg.gradient_error(result, (p, q), t64([1.0, -1.0, 1.0]))
    found = torch.autograd.grad(result.value, (p, q), t64([1.0, -1.0, 1.0]), retain_graph=True)
    right = torch.autograd.grad(exact, (p, q), t64([1.0, -1.0]))
    for one, other, most in zip(found, right, error, strict=True):
        assert float((one - other).detach().abs()) <= float(most) <= 1.0


# ----------------------------------------------------------------------------------------- plans, batches, chunks


@pytest.mark.parametrize(
    ("dtype", "widths", "heights"),
    [
        (torch.float64, [1e-1, 1e-3, 1e-6, 1.0], [0.0, -1e5, 1e4, -1e9]),
        (torch.float32, [1e-1, 1e-2, 1e-3, 1.0], [0.0, -2e2, 7e2, -1e4]),
    ],
)
def test_batch_element_equals_single_call(dtype: torch.dtype, widths: list[float], heights: list[float]) -> None:
    """Where log f is rounded differently, too, so that they are searched with other notions of noise."""
    c, s, height = (torch.tensor(v, dtype=dtype) for v in ([0.2, 0.5, 0.8, 0.31], widths, heights))
    together = log_quad(gauss, -9.0, 9.0, (c, s, height), on_failure="ignore")
    for i in range(4):
        alone = log_quad(gauss, -9.0, 9.0, (c[i], s[i], height[i]), on_failure="ignore")
        assert torch.equal(cells_of(together.plan, i), cells_of(alone.plan, 0))
        assert int(together.nfev[i]) == int(alone.nfev)
        assert relative_error(together.value[i], alone.value) <= 4 * torch.finfo(dtype).eps
        assert int(together.status[i]) == int(alone.status)


def test_nfev_counts_every_call() -> None:
    f = Recorder(gauss)
    result = log_quad(f, -9.0, 9.0, (t64(0.3), t64(1e-4)))
    probe = 1
    assert f.nodes.numel() == int(result.nfev) + probe
    assert int(result.nfev) <= 1200


@pytest.mark.parametrize("chunk_size", [1, 100, 10_000])
def test_chunks(chunk_size: int) -> None:
    p, z = leaf([3.0, 40.0, 900.0]), t64([1.0, 2.0, 3.0])

    def values(**options: Any) -> tuple[Tensor, Tensor]:
        result = log_quad(lambda x, p, z: gauss(x, z, p * 1e-6), -10.0, 10.0, (p, z), **options)
        return result.value.detach(), torch.autograd.grad(result.value.sum(), p)[0]

    for found, right in zip(values(chunk_size=chunk_size), values(), strict=True):
        assert relative_error(found, right) <= 1e-12


def test_warm_start_and_replay() -> None:
    c, s = leaf([0.2, 0.5]), leaf([1e-2, 1e-5])
    first = log_quad(gauss, -9.0, 9.0, (c, s, -5e4))
    again = log_quad(gauss, -9.0, 9.0, (c, s * 1.01, -5e4), plan=first.plan)
    exact = -5e4 + torch.log(s * math.sqrt(2 * pi))
    assert_honest(again, exact.detach() + math.log(1.01))
    replayed = qg.replay(gauss, first.plan, -9.0, 9.0, (c, s, -5e4), log=True)
    assert_honest(first, replayed.detach())
    found, right = (torch.autograd.grad(v.sum(), (c, s)) for v in (replayed, exact + 0 * c))
    assert relative_error(found[1], right[1]) <= 1e-7
    compiled = torch.compile(
        lambda c, s: qg.replay(gauss, first.plan, -9.0, 9.0, (c, s, -5e4), log=True),
        fullgraph=True,
        backend="eager",
    )
    assert relative_error(compiled(c, s), replayed) <= 1e-15


def test_replay_of_descending_limits_is_not_a_number() -> None:
    plan = log_quad(ramp, 0.0, t64([1.0, 2.0]), (t64(3.0),)).plan
    value = qg.replay(ramp, plan, t64([0.0, 2.0]), t64([1.0, 0.0]), (t64(3.0),), log=True)
    assert value.isnan().tolist() == [False, True]
    assert relative_error(value[0], log_ramp(t64(3.0))) <= 1e-12


def test_kept_plan() -> None:
    c, s = leaf(0.3), leaf(1e-3)
    integrate = qg.Integrator(qg.quad, log=True)
    for step in range(25):
        moved = c + 1e-5 * step
        result = integrate(gauss, -1.0, 1.0, (moved, s, -3e4))
        assert_honest(result, t64(-3e4 + math.log(1e-3 * math.sqrt(2 * pi))))
        (slope,) = torch.autograd.grad(result.value, s)
        assert relative_error(slope, 1 / s) <= 1e-6
    assert integrate.started == 1
    fresh = log_quad(gauss, -1.0, 1.0, (moved, s, -3e4))
    assert len(integrate.plan) <= 2 * len(fresh.plan)


# ------------------------------------------------------------------------------------- dtypes and kinds of f


def test_single_precision() -> None:
    """The rounding of log f is part of the error; where it exceeds the tolerance, the status says so."""
    z = torch.tensor([1.0, 3.0, 30.0, 100.0, 400.0, 3000.0], requires_grad=True)
    result = log_quad(gamma, 0.0, inf, (z,), on_failure="ignore")
    assert result.value.dtype == torch.float32
    true = (result.value.detach().double() - torch.lgamma(z.detach().double())).abs()
    assert (true <= result.error).all()
    assert result.converged.tolist() == [True, True, True, True, False, False]
    assert result.status[4:].tolist() == [qg.Status.ROUNDOFF] * 2
    assert (result.nfev <= 1500).all()
    (slope,) = torch.autograd.grad(result.value.sum(), z)
    assert relative_error(slope[1:].double(), torch.digamma(z.detach()[1:].double())) <= 1e-3


def test_noise_of_huge_logarithms_is_told() -> None:
    result = log_quad(gauss, -9.0, 9.0, (t64(0.3), t64(1e-2), t64([-1e3, -1e7, -1e9])), on_failure="ignore")
    exact = t64([-1e3, -1e7, -1e9]) + math.log(1e-2 * math.sqrt(2 * pi))
    assert ((result.value - exact).abs() <= result.error).all()
    assert result.converged.tolist() == [True, True, False]
    assert (result.error >= t64([1e-13, 1e-9, 1e-7])).all()
    assert (result.nfev <= 2000).all()


def test_half_precision() -> None:
    k = torch.tensor([1.0, 4.0, 16.0], dtype=torch.float16)
    result = log_quad(lambda x, k: -k * x, 0.0, 1.0, (k,), on_failure="ignore")
    assert result.value.dtype == torch.float32
    k = k.double()
    assert ((result.value - torch.log(-torch.expm1(-k) / k)).abs() <= result.error).all()
    assert (result.error <= 0.1).all()


def test_functions_of_one_number() -> None:
    b = t64(1.0)
    assert_honest(log_quad(lambda x: -1e4 - 3.0 * x, 0.0, b, vectorized=False), log_ramp(t64(3.0)) - 9e3)
    p = leaf(3.0)
    value = log_quad(lambda x, p: -1e3 - p * x, 0.0, b, (p,), vectorized=False).value
    assert relative_error(torch.autograd.grad(value, p)[0], torch.autograd.grad(log_ramp(p), p)[0]) <= 1e-8
    pair = log_quad(lambda x: [-1e4 - 3.0 * x, -3.0 * x], 0.0, b, vectorized=False).value
    assert relative_error(pair, log_ramp(t64(3.0)) + t64([-9e3, 1e3])) <= 1e-12


def test_other_rules() -> None:
    for rule in ("gk15", "gk61", "cc33"):
        assert_honest(
            log_quad(gauss, -9.0, 9.0, (t64(0.3), t64(1e-4), -1e4), rule=rule),
            t64(-1e4 + math.log(1e-4 * math.sqrt(2 * pi))),
        )


def test_autocast_and_inference_mode() -> None:
    p = t64(3.0)
    with torch.inference_mode():
        assert_honest(log_quad(ramp, 0.0, 1.0, (p,)), log_ramp(p))
    with torch.autocast("cpu", torch.bfloat16):
        assert_honest(log_quad(ramp, 0.0, 1.0, (p,)), log_ramp(p))


def test_integrals_inside_integrals() -> None:
    """The log of a double integral, its inner one taken by logarithm too."""
    p = t64(5.0)

    def inner(y: Tensor, p: Tensor) -> Tensor:
        return log_quad(lambda x, y, p: -p * x * 100.0 - 900.0 * y, 0.0, 1.0, (y, p), rtol=1e-11).value

    result = log_quad(inner, 0.0, 1.0, (p,))
    exact = math.log(-math.expm1(-500.0) / 500.0) + math.log(-math.expm1(-900.0) / 900.0)
    assert result.converged
    assert float((result.value - exact).abs()) <= float(result.error) <= 1.5e-8


# ------------------------------------------------------------------------------------------- what goes wrong


def test_tolerances_are_those_of_the_logarithm() -> None:
    loose = log_quad(gauss, -9.0, 9.0, (t64(0.3), t64(1e-2), -1e4), rtol=1e-3)
    absolute = log_quad(gauss, -9.0, 9.0, (t64(0.3), t64(1e-2), -1e4), rtol=1e-12, atol=1e-3)
    tight = log_quad(gauss, -9.0, 9.0, (t64(0.3), t64(1e-2), -1e4), rtol=1e-10)
    assert same_plan(loose.plan, absolute.plan)
    assert float(loose.error) <= 1e-3
    assert float(tight.error) <= 1e-10
    assert int(loose.nfev) < int(tight.nfev)


def test_complex_values_are_refused() -> None:
    with pytest.raises(
        qg.IntegrandError, match=r"the logarithm of a positive function, which is real; it returned"
    ):
        log_quad(lambda x: x + 0j, 0.0, 1.0)


def test_infinite_and_missing_values() -> None:
    nowhere = log_quad(lambda x: torch.where(x > 0.4, nan, -5e3 + 0 * x), 0.0, t64(1.0), on_failure="ignore")
    everywhere = log_quad(lambda x: torch.where(x > 0.4, inf, -5e3 + 0 * x), 0.0, t64(1.0), on_failure="ignore")
    for result, shown in ((nowhere, "nan"), (everywhere, "inf")):
        assert int(result.status) == qg.Status.NONFINITE
        assert result.value.isnan()
        assert float(result.error) == inf
        assert f"f(x) = {shown} at x = 0.4" in result.message


def test_divergent_integrals_do_not_converge() -> None:
    result = log_quad(lambda x, k: -k * torch.log(x), 0.0, 1.0, (t64([1.0, 3.0]),), on_failure="ignore")
    assert not result.converged.any()
    with pytest.warns(qg.IntegrationWarning, match="1 of 1 integrals did not converge"):
        log_quad(lambda x: 1 / x, 0.0, t64(1.0))


def test_messages_of_the_calling_contract() -> None:
    batch = t64([1.0, 2.0, 3.0])
    with pytest.raises(qg.IntegrandError, match="must not be closed over"):
        log_quad(lambda x: -x * batch, 0.0, t64([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(qg.IntegrandError, match="vectorized=False"):
        log_quad(lambda x: (x**2).mean().item(), 0.0, 1.0)
    with pytest.raises(qg.IntegrandError, match=r"torch\.where\(condition, 0\.0, -torch\.inf\)"):
        log_quad(lambda x: x > 0.5, 0.0, 1.0)
    assert float(log_quad(lambda x: 1.0, 0.0, 2.0).value) == pytest.approx(1.0 + math.log(2.0), rel=1e-6)
    with pytest.raises(qg.IntegrandError, match="not deterministic"):
        log_quad(lambda x, p: -p * x + torch.rand_like(x), 0.0, 1.0, (leaf(1.0),), rtol=1e-2, on_failure="ignore")
    with pytest.warns(qg.SeveredGradientWarning, match=r"args\[0\] requires grad"):
        log_quad(lambda x, p: -p.detach() * x, 0.0, 1.0, (leaf(1.0),))


def test_climbing_stops() -> None:
    """f rises without end towards 0, and noise looks like peaks: neither takes more than a share of the budget."""
    for f in (lambda x: 1 / x, lambda x: -1e6 * torch.frac(1e5 * x * (1 + x))):
        recorder = Recorder(f)
        log_quad(recorder, 0.0, t64(1.0), max_nfev=4000, on_failure="ignore")
        assert recorder.nodes.numel() <= 40_000
    assert peaks.BUDGET < 1.0


@pytest.mark.parametrize("upper", (1e80, 1e300))
@pytest.mark.parametrize("decay", (lambda x, p: -p * x, lambda x, p: -p * x - torch.log1p(x)))
@pytest.mark.parametrize("mode", (qg.Reuse(), qg.Resolve()))
def test_what_is_too_narrow_for_its_interval_is_not_said_to_be_infinite(
    upper: float, decay: Any, mode: Any
) -> None:
    p = leaf(1.0)
    result = qg.quad(decay, t64(0.0), upper, (p,), log=True, gradient=mode, on_failure="ignore")
    assert result.status != qg.Status.NONFINITE and "infinite" not in result.detail
    exact = 0.0 if decay(t64(1.0), t64(1.0)) == -1.0 else math.log(0.596347362323194)
    assert not result.converged or abs(float(result.value.detach()) - exact) <= float(result.error)
    if result.derivative is not None:  # which cannot know more than the value that it is divided by
        assert not result.derivative.converged or result.converged


def test_log_f_that_is_infinite_or_nan_is_still_told() -> None:
    for bad in (math.inf, math.nan):
        f = partial(lambda bad, x: torch.where(x > 0.5, bad, x), bad)
        result = qg.quad(f, t64(0.0), 1.0, log=True, on_failure="ignore")
        assert result.status == qg.Status.NONFINITE and "f(x)" in result.detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("b", [1e15, 1e30, 1e100, 1e300])
@pytest.mark.parametrize("side", [-1, 1])
def test_what_is_nothing_but_close_to_an_end_of_a_very_wide_interval(
    dtype: torch.dtype, b: float, side: int
) -> None:
    """exp(-x), exp(-x^2) and far smaller ones: what is said to have converged is right, -inf never is."""
    zero, half = torch.tensor(0.0, dtype=dtype), math.log(math.sqrt(math.pi) / 2)
    limits = (zero, b) if side > 0 else (-b, zero)
    for log_f, exact in (
        (lambda x: -x.abs(), 0.0),
        (lambda x: -x * x, half),
        (lambda x: -1e6 - x.abs(), -1e6),
        (lambda x: -1e6 - x * x, half - 1e6),
    ):
        result = log_quad(log_f, *limits, on_failure="ignore")
        off = abs(float(result.value) - exact)
        rounding = 4 * torch.finfo(dtype).eps * max(1.0, abs(exact))
        assert not result.converged or off <= float(result.error) + rounding
