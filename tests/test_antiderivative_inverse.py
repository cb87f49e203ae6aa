"""Where an antiderivative reaches a height: accurate relative to the nearer end, and differentiable."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, vmap

import quadgrad as qg
from helpers import Recorder, leaf, t64

INF = math.inf


def density(x: Tensor) -> Tensor:
    """Return the standard normal density."""
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def quantile(u: Tensor) -> Tensor:
    """Return the standard normal quantile from 30 digits."""
    with mpmath.workdps(30):
        return t64([float(mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(each) - 1)) for each in u.tolist()])


@pytest.fixture(scope="module")
def normal() -> qg.Antiderivative:
    """Return the normal distribution function."""
    return qg.antiderivative(density, -INF, t64(INF), rtol=1e-13, on_failure="ignore")


@pytest.mark.parametrize("complement", (False, True))
def test_the_normal_quantile(normal: qg.Antiderivative, complement: bool) -> None:
    u = torch.cat(
        (torch.logspace(-11, -0.5, 300, dtype=torch.float64), torch.linspace(0.3, 0.499, 100, dtype=torch.float64))
    )
    u = u.requires_grad_()
    x = normal.inverse(u, complement=complement)
    exact = -quantile(u) if complement else quantile(u)
    torch.testing.assert_close(x, exact, rtol=1e-12, atol=0.0)
    # Beside the median x is near 0, and what is left of 1/2 has lost its digits: x is right to 15 decimals.
    middle = t64([0.4999, 0.499999, 0.5, 0.5 + 1e-9])
    off = normal.inverse(middle, complement=complement) - (-1 if complement else 1) * quantile(middle)
    assert float(off.abs().max()) < 5e-15
    (slope,) = torch.autograd.grad(x.sum(), u)
    torch.testing.assert_close(slope, (-1 if complement else 1) / density(exact), rtol=1e-10, atol=0.0)


def test_the_ends_and_what_is_no_number(normal: qg.Antiderivative) -> None:
    x = normal.inverse(t64([0.0, 1.0, math.nan]))
    assert x[:2].tolist() == [-INF, INF] and x[2].isnan()
    assert normal.inverse(0.0, complement=True) == INF
    # Below 1e-25 of the whole heights are known to that, and so is x.
    assert -INF <= normal.inverse(1e-300) < -9.0


@pytest.mark.parametrize("complement", (False, True))
def test_round_trips_of_a_batch(complement: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    random = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    centre, width = random(200), 10.0 ** -(1.0 + 3.0 * random(200))
    a, b = t64([0.0, 1.0]).repeat(100), t64([1.0, 0.0]).repeat(100)
    sign = t64([1.0, 1.0, -1.0, -1.0]).repeat(50)
    F = qg.antiderivative(
        lambda x, c, e, s: s * e / ((x - c) ** 2 + e**2),
        a,
        b,
        (centre, width, sign),
        rtol=1e-12,
        on_failure="ignore",
    )
    x = random(50, 200)
    again = F.inverse(F(x, complement=complement), complement=complement)
    # An error of the height moves x by its part of f.
    f = width / ((x - centre) ** 2 + width**2)
    assert ((again - x).abs() * f <= 4e-15 * math.pi + 1e-15).all()


POWERS = (-0.9, -0.5, 0.5, 2.0)


@pytest.mark.parametrize("power", POWERS)
def test_down_to_a_singular_end(power: float) -> None:
    F = qg.antiderivative(lambda x: x**power, 0.0, t64(1.0), rtol=1e-13, on_failure="ignore")
    x = torch.logspace(-6, 0, 200, dtype=torch.float64)
    y = x ** (power + 1) / (power + 1)
    y = y[y > 1e-13]
    torch.testing.assert_close(F.inverse(y), x[-len(y) :], rtol=1e-11, atol=0.0)


def test_a_tail_with_a_logarithm_and_one_at_an_upper_end() -> None:
    F = qg.antiderivative(lambda x: -torch.log(x), 0.0, t64(1.0), rtol=1e-12)
    x = torch.logspace(-15, 0, 100, dtype=torch.float64)
    torch.testing.assert_close(F.inverse(x - torch.special.xlogy(x, x)), x, rtol=1e-7, atol=1e-12)
    F = qg.antiderivative(lambda x: (1 - x) ** -0.5, 0.0, t64(1.0), rtol=1e-11)
    left = 1.0 - (1.0 - torch.logspace(-12, -1, 100, dtype=torch.float64))
    torch.testing.assert_close(F.inverse(2.0 * left.sqrt(), complement=True), 1.0 - left, rtol=0, atol=1e-14)


def test_a_stretch_where_f_is_zero() -> None:
    F = qg.antiderivative(lambda x: (x < 1).to(x.dtype) + (x > 2), 0.0, t64(3.0), points=[1.0, 2.0])
    x = F.inverse(t64([0.5, 1.0, 1.5]))
    torch.testing.assert_close(x[[0, 2]], t64([0.5, 2.5]))
    assert 1.0 - 1e-14 <= float(x[1]) <= 2.0 + 1e-14
    nothing = qg.antiderivative(lambda x: 0 * x, 0.0, t64(1.0))
    assert nothing.inverse(0.0) == 0.0


# ---------------------------------------------------------------------------------------------- derivatives


def decaying(x: Tensor, t: Tensor) -> Tensor:
    """Return the integrand whose inverse is differentiated."""
    return torch.exp(-t * x)


def exact_inverse(y: Tensor, t: Tensor, a: Any) -> Tensor:
    """Return x at which the integral of it from a on is y."""
    return -torch.log(torch.exp(-t * a) - t * y) / t


@pytest.mark.parametrize("complement", (False, True))
def test_gradients(complement: bool) -> None:
    def invert(y: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return qg.antiderivative(decaying, a, b, (t,), rtol=1e-13, on_failure="ignore").inverse(
            y, complement=complement
        )

    inputs = (leaf([0.1, 0.5]), leaf(1.3), leaf(0.1), leaf(4.0))
    assert gradcheck(invert, inputs)
    assert gradgradcheck(invert, inputs)
    assert gradcheck(invert, (leaf([0.1, 0.2]), leaf([1.3, 0.7]), leaf(0.1), leaf(3.0)), check_forward_ad=True)


def test_gradients_against_the_exact_ones() -> None:
    inputs = (leaf([0.1, 0.3, 0.5]), leaf(1.3), leaf(0.1))
    ours = lambda y, t, a: qg.antiderivative(decaying, a, 4.0, (t,), rtol=1e-13, on_failure="ignore").inverse(y)
    both: list[tuple[Tensor, ...]] = []
    for x in (ours(*inputs), exact_inverse(*inputs)):
        first = torch.autograd.grad(x.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.sum() for g in first), inputs)
        both.append((x, *first, *second))
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-11)


def test_transforms() -> None:
    y, t = t64([0.1, 0.3]), t64(1.3)
    ours = lambda y, t: qg.antiderivative(decaying, 0.1, 4.0, (t,), rtol=1e-13, on_failure="ignore").inverse(y)
    exact = lambda y, t: exact_inverse(y, t, 0.1)
    for each in (
        lambda f: grad(f, (0, 1))(y[0], t),
        lambda f: hessian(f, (0, 1))(y[0], t),
        lambda f: vmap(f, (0, None))(y, t),
        lambda f: vmap(grad(f, 1), (0, None))(y, t),
        lambda f: vmap(grad(f, (0, 1)))(y, t + y),
    ):
        torch.testing.assert_close(each(ours), each(exact), rtol=1e-9, atol=1e-10)
    F = qg.antiderivative(lambda x: torch.exp(-x), 0.1, t64(4.0), rtol=1e-13, on_failure="ignore")
    torch.testing.assert_close(vmap(grad(F.inverse))(y), torch.exp(F.inverse(y)))


def test_values_need_no_call() -> None:
    f = Recorder(density)
    F = qg.antiderivative(f, -3.0, t64(3.0))
    made = f.calls
    F.inverse(t64([0.1, 0.5]))
    assert f.calls == made


def test_samples_that_depend_on_their_density() -> None:
    """A mean over samples by inversion has the derivative that a mean over the density has."""
    rate = leaf(1.5)
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    weight = qg.antiderivative(decaying, 0.0, 2.0, (rate,), rtol=1e-12)
    x = weight.inverse(u * weight(2.0))
    (slope,) = torch.autograd.grad(x.mean(), rate)
    again = leaf(1.5)
    mean = 1 / again - 2 * torch.exp(-2 * again) / (1 - torch.exp(-2 * again))
    (exact,) = torch.autograd.grad(mean, again)
    torch.testing.assert_close(slope, exact, rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------------------- refusals


def test_what_is_not_monotone_is_refused() -> None:
    with pytest.raises(ValueError, match="no inverse: f changes its sign"):
        qg.antiderivative(torch.sin, 0.0, t64(6.0)).inverse(0.5)
    with pytest.raises(ValueError, match=r"no inverse: f changes its sign \(integral 1"):
        qg.antiderivative(torch.sin, 0.0, t64([3.0, 6.0])).inverse(0.5)
    with pytest.raises(ValueError, match="returns components"):
        qg.antiderivative(lambda x: torch.stack((x, x), -1), 0.0, t64(1.0)).inverse(0.5)
    with pytest.raises(ValueError, match="returns complex numbers"):
        qg.antiderivative(lambda x: torch.exp(1j * x), 0.0, t64(1.0)).inverse(0.5)


def test_what_is_out_of_range_is_refused() -> None:
    F = qg.antiderivative(torch.sin, 0.0, t64(3.0))
    with pytest.raises(ValueError, match="y = 2.5 is no integral from a to x .* between 0 and 1.98999"):
        F.inverse(t64([0.5, 2.5]))
    with pytest.raises(ValueError, match="y = -0.1 is no integral from x to b"):
        F.inverse(-0.1, complement=True)
    falling = qg.antiderivative(torch.sin, t64(3.0), 0.0)
    with pytest.raises(ValueError, match="between -1.98999.* and 0"):
        falling.inverse(0.5)
    assert F.inverse(F(3.0) * (1 + 4e-16)).item() == pytest.approx(3.0, abs=1e-14)  # beyond by rounding


EXPONENTS = (0.3, 1.5, 2.0, 3.0, 8.0)


@pytest.mark.parametrize("turned", (False, True))
@pytest.mark.parametrize("complement", (False, True))
@pytest.mark.parametrize("power", EXPONENTS)
def test_the_ends_do_not_spoil_derivatives(power: float, complement: bool, turned: bool) -> None:
    """At 0, and at all there is, x is a limit, and moves with no parameter, also where f is 0 or infinite."""
    p = leaf(power)
    limits = (t64(1.0), 0.0) if turned else (0.0, t64(1.0))
    F = qg.antiderivative(lambda x, p: p * x ** (p - 1.0), *limits, (p,), rtol=1e-12, on_failure="ignore")
    whole = float(F(limits[1 - complement], complement=complement).detach())
    y = t64([0.0, 0.3 * whole, whole]).requires_grad_()
    x = F.inverse(y, complement=complement)
    with torch.no_grad():
        assert torch.equal(x, F.inverse(y, complement=complement))
    ends = [float(limits[complement]), float(limits[1 - complement])]
    assert x.detach()[[0, 2]].tolist() == pytest.approx(ends, abs=1e-15)
    by_p, by_y = torch.autograd.grad(x.sum(), (p, y))
    inner = x[1].detach()
    torch.testing.assert_close(by_p, -inner * inner.log() / power, rtol=1e-9, atol=1e-12)
    assert not by_y.isnan().any()
    torch.testing.assert_close(by_y[1], (-1 if complement else 1) / (power * inner ** (power - 1)))
    at_zero = float(by_y[ends.index(0.0) * 2].abs())
    assert at_zero < 1e-50 if power < 1 else at_zero > 1e50


def test_infinite_ends_do_not_spoil_derivatives() -> None:
    """The integrand is no number at infinity, and not finite at 0, where it is never asked for either."""
    rate = leaf(1.3)
    F = qg.antiderivative(lambda x: rate**2.5 * x**1.5 * torch.exp(-rate * x) / math.gamma(2.5), 0.0, t64(INF))
    y = leaf([0.0, 0.4])
    x = F.inverse(y, complement=True)
    assert x[0] == INF
    by_rate, by_y = torch.autograd.grad(x.sum(), (rate, y))
    torch.testing.assert_close(by_rate, -x[1].detach() / 1.3)
    assert by_y[0] == -INF and by_y[1] < 0
    places = leaf([1.0, INF])
    by_rate, by_x = torch.autograd.grad(F(places).sum(), (rate, places))
    torch.testing.assert_close(by_x[1], t64(0.0))
    assert by_rate.isfinite() and by_x[0] > 0
    still = qg.antiderivative(lambda x: x**1.5 * torch.exp(-x), 0.0, t64(INF))
    assert torch.autograd.grad(still(places).sum(), places)[0][1] == 0.0
