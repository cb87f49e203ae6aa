"""The integral from a to x: accurate at every x, differentiable in everything, and honest."""

from __future__ import annotations

import io
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special as special
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import quadgrad as qg
from helpers import Recorder, leaf, t64

INF = math.inf
TOLERANCES = (1e-6, 1e-10)


def uniform(n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return random places, the same in every run."""
    generator = torch.Generator().manual_seed(7)
    return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)


def towards_zero(n: int, octaves: float = 1000.0) -> Tensor:
    """Return random places in (0, 1], evenly spread over the logarithm, and both ends."""
    return torch.cat((torch.exp2(-octaves * uniform(n)), t64([0.0, 5e-324, 1e-300, 1.0])))


def exactly(f: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
    """Return a NumPy function as one of tensors."""
    return lambda x: torch.as_tensor(f(x.numpy()))


Case = tuple[Callable[[Tensor], Tensor], float, float, Callable[[Tensor], Tensor], Tensor]

N = 10**5
CASES: dict[str, Case] = {
    "erf": (
        lambda x: 2.0 / math.sqrt(math.pi) * torch.exp(-(x**2)),
        0.0, 30.0, torch.erf, uniform(N, 0.0, 30.0),
    ),
    "sine integral": (
        lambda x: torch.sinc(x / math.pi), 0.0, 30.0, exactly(lambda x: special.sici(x)[0]), uniform(N, 0.0, 30.0),
    ),
    "Fresnel": (
        lambda x: torch.sin(math.pi / 2 * x**2),
        0.0, 30.0, exactly(lambda x: special.fresnel(x)[0]), uniform(N, 0.0, 30.0),
    ),
    "logarithm": (
        lambda x: -torch.log(x), 0.0, 1.0, lambda x: x - torch.special.xlogy(x, x),
        torch.cat((uniform(N // 2), towards_zero(N // 2))),
    ),
    "inverse root": (
        lambda x: x**-0.5, 0.0, 1.0, lambda x: 2.0 * x**0.5, torch.cat((uniform(N // 2), towards_zero(N // 2))),
    ),
    "power -0.9": (
        lambda x: x**-0.9, 0.0, 1.0, lambda x: 10.0 * x**0.1, torch.cat((uniform(N // 2), towards_zero(N // 2))),
    ),
    "power -0.9 at an end that is not 0": (
        lambda x: (1.0 - x) ** -0.9, 0.0, 1.0, lambda x: 10.0 - 10.0 * (1.0 - x) ** 0.1,
        torch.cat((uniform(N // 2), 1.0 - towards_zero(N // 2, 53.0))),
    ),
    "Weibull hazard": (
        lambda x: 0.35 * (x / 2.0) ** -0.3, 0.0, 5.0, lambda x: (x / 2.0) ** 0.7,
        torch.cat((uniform(N // 2, 0.0, 5.0), 5.0 * towards_zero(N // 2))),
    ),
    "normal": (
        lambda x: torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
        -INF, INF, torch.special.ndtr, torch.cat((uniform(N, -9.0, 9.0), t64([-INF, -1e300, 0.0, 1e300, INF]))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rtol", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_accurate_at_every_x(name: str, rtol: float) -> None:
    f, a, b, exact, x = CASES[name]
    F = qg.antiderivative(f, a, t64(b), rtol=rtol)
    value = exact(x)
    error = float((F(x) - value).abs().max())
    assert F.converged
    assert error <= rtol * float(value.abs().max())
    assert error <= float(F.error)


@pytest.mark.parametrize("rtol", TOLERANCES)
def test_a_batch_of_peaks(rtol: float) -> None:
    centre, width = uniform(1000), 10.0 ** -(1.0 + 3.0 * uniform(1000).flip(0))
    peak = lambda x, c, e: e / ((x - c) ** 2 + e**2)
    F = qg.antiderivative(peak, 0.0, 1.0, (centre, width), rtol=rtol)
    x = uniform(100_000).reshape(100, 1000)
    x[:50] = (centre + width * torch.tan(3.0 * (x[:50] - 0.5))).clamp(0.0, 1.0)
    exact = torch.atan((x - centre) / width) + torch.atan(centre / width)
    error = (F(x) - exact).abs().amax(0)
    assert F.converged.all()
    assert (error <= rtol * F(1.0)).all()
    assert (error <= F.error).all()
    assert torch.equal(F(x[3]), F(x)[3])


def test_the_cells_of_the_value_are_too_coarse() -> None:
    """Inside of the value's own cells the curve would be off by more than was asked."""
    f, a, b, exact, x = CASES["sine integral"]
    value = qg.quad(f, a, t64(b), rtol=1e-10)
    F = qg.antiderivative(f, a, t64(b), rtol=1e-10)
    assert len(F.plan) > len(value.plan)
    allowed = 1e-10 * float(exact(x).abs().max())
    # What a polynomial through the value's own nodes leaves of f, at the place between them where it is most.
    worst = 0.0
    for low, high in value.plan.cells(a, b).tolist():
        inside = np.linspace(low, high, 400)
        nodes = low + (high - low) * value.plan.tau.numpy()
        fit = np.polynomial.Legendre.fit(nodes, f(torch.from_numpy(nodes)).numpy(), len(nodes) - 1).integ(lbnd=low)
        worst = max(worst, np.abs(fit(inside) - (exact(torch.from_numpy(inside)) - exact(t64(low))).numpy()).max())
    assert worst > allowed
    assert float((F(x) - exact(x)).abs().max()) < 0.1 * allowed


def integrands(seed: int) -> list[tuple[Callable[[Tensor], Tensor], float, Callable[[Any], Any], float]]:
    """Return a family: f on [0, b], its antiderivative, and the place of its feature."""
    draw = np.random.default_rng(seed)
    c, e, w, p = draw.random(), 10.0 ** draw.uniform(-4, 0), 10.0 ** draw.uniform(0, 3), draw.uniform(-0.95, 3.0)
    return [
        (lambda x: e / ((x - c) ** 2 + e * e), 1.0, lambda x: np.arctan((x - c) / e), c),
        (lambda x: torch.cos(w * x + c), 1.0, lambda x: np.sin(w * x + c) / w, c),
        (lambda x: (x - c).abs() ** abs(p), 1.0,
         lambda x: np.sign(x - c) * abs(x - c) ** (abs(p) + 1) / (abs(p) + 1), c),
        (lambda x: x**p, 1.0, lambda x: x ** (p + 1) / (p + 1), 0.0),
        (lambda x: x**p * torch.log(x), 1.0,
         lambda x: special.xlogy(x ** (p + 1), x) / (p + 1) - x ** (p + 1) / (p + 1) ** 2, 0.0),
        (lambda x: torch.exp(-w * x), INF, lambda x: -np.expm1(-w * x) / w, 1.0 / w),
        (lambda x: torch.cosh((x - c) / e) ** -2 / e, 1.0, lambda x: np.tanh((x - c) / e), c),
        (lambda x: x**p * (1 - x) ** (abs(p) - 0.9), 1.0,
         lambda x: special.betainc(p + 1, abs(p) + 0.1, x) * special.beta(p + 1, abs(p) + 0.1), 0.0),
        (lambda x: (1 - x) ** p, 1.0, lambda x: -((1 - x) ** (p + 1)) / (p + 1), 1.0),
        (lambda x: x**p * torch.exp(-w * x), INF,
         lambda x: special.gammainc(p + 1, w * x) * special.gamma(p + 1) / w ** (p + 1), 1.0 / w),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_the_reported_error_covers_the_true_one(seed: int) -> None:
    draw = np.random.default_rng(100 + seed)
    for f, b, exact, feature in integrands(seed):
        rtol = 10.0 ** draw.uniform(-11, -3)
        F = qg.antiderivative(f, 0.0, t64(b), rtol=rtol, on_failure="ignore")
        near = feature + 10.0 ** draw.uniform(-12, 0, 2000) * draw.choice([-1.0, 1.0], 2000)
        x = np.clip(np.concatenate((draw.random(2000), near, 10.0 ** -draw.uniform(0, 300, 500))), 0.0, b)
        value = exact(x) - exact(np.zeros(()))
        off, noise = np.abs(F(torch.from_numpy(x)).numpy() - value).max(), 4e-15 * np.abs(exact(x)).max()
        assert off <= float(F.error) + noise
        assert not F.converged or off <= rtol * np.abs(value).max() + noise


# ------------------------------------------------------------------------------------------ shapes and domains


def test_complement_and_order_of_the_limits() -> None:
    x = t64([0.0, 0.5, 2.0])
    up, down = qg.antiderivative(torch.cos, 0.0, t64(2.0)), qg.antiderivative(torch.cos, t64(2.0), 0.0)
    both = qg.antiderivative(torch.cos, t64([0.0, 2.0]), t64([2.0, 0.0]))
    rising, falling = torch.sin(x), torch.sin(x) - math.sin(2.0)
    torch.testing.assert_close(up(x), rising)
    torch.testing.assert_close(down(x), falling)
    torch.testing.assert_close(up(x, complement=True), -falling)
    torch.testing.assert_close(down(x, complement=True), -rising)
    torch.testing.assert_close(both(x[:, None]), torch.stack((rising, falling), 1))
    torch.testing.assert_close(both(x[:, None], complement=True), -torch.stack((falling, rising), 1))


@pytest.mark.parametrize("complement", (False, True))
def test_what_is_small_is_accurate_relative_to_itself(complement: bool) -> None:
    density, *_ = CASES["normal"]
    F = qg.antiderivative(density, -INF, t64(INF), rtol=1e-13, on_failure="ignore")
    x = torch.linspace(-6.7, 0.0, 200, dtype=torch.float64)
    value = F(-x if complement else x, complement=complement)
    torch.testing.assert_close(value, torch.as_tensor(special.ndtr(x.numpy())), rtol=1e-11, atol=0.0)


def test_events_complex_values_and_single_precision() -> None:
    x = t64([[0.25], [1.0]])
    F = qg.antiderivative(lambda x: torch.stack((x, x**-0.5), -1), 0.0, t64([1.0, 2.0]), rtol=1e-10)
    torch.testing.assert_close(F(x), torch.stack((x**2 / 2, 2 * x**0.5), -1).expand(2, 2, 2))
    F = qg.antiderivative(lambda x: torch.exp(1j * x), 0.0, t64(1.0))
    torch.testing.assert_close(F(x), -1j * (torch.exp(1j * x) - 1.0))
    F = qg.antiderivative(torch.cos, 0.0, torch.tensor(1.0))
    value = F(x.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, torch.sin(x.float()))
    F = qg.antiderivative(torch.cos, 0.0, 0.1)  # single precision's 0.1 is a little more
    assert F(torch.tensor(0.1)) == pytest.approx(math.sin(0.1), abs=1e-7)
    F = qg.antiderivative(torch.cos, 0.0, torch.tensor(1.0, dtype=torch.float16))
    assert F(0.5).dtype == torch.float32


def test_breakpoints_numbers_empty_intervals_and_batches() -> None:
    step = lambda x: (x > 0.3).to(x.dtype)
    F = qg.antiderivative(step, 0.0, t64(1.0), points=[0.3])
    torch.testing.assert_close(F(t64([0.1, 0.3, 0.5, 1.0])), t64([0.0, 0.0, 0.2, 0.7]), rtol=0, atol=1e-14)
    F = qg.antiderivative(math.sin, 0.0, t64(1.0), vectorized=False, chunk_size=7)
    assert F(0.5).item() == pytest.approx(1 - math.cos(0.5), abs=1e-15)
    F = qg.antiderivative(torch.cos, t64([1.0, 0.0]), t64([1.0, 2.0]))
    torch.testing.assert_close(F(t64([1.0, 0.5])), t64([0.0, math.sin(0.5)]))
    F = qg.antiderivative(torch.cos, 0.0, torch.zeros(0, dtype=torch.float64))
    assert F(torch.zeros(3, 0)).shape == (3, 0)
    F = qg.antiderivative(lambda x: torch.exp(-x.abs()), t64([0.0, -INF, 0.0, INF]), t64([INF, 0.0, 1.0, 0.0]))
    exact = [1 - math.exp(-2), math.exp(-1), 1 - math.exp(-0.5), -math.exp(-2)]
    torch.testing.assert_close(F(t64([2.0, -1.0, 0.5, 2.0])), t64(exact))


def test_values_need_no_call_and_a_derivative_needs_one() -> None:
    f = Recorder(torch.cos)
    F = qg.antiderivative(f, 0.0, t64(2.0))
    made, x = f.calls, leaf([0.0, 0.5, 2.0])
    value = F(x)
    assert f.calls == made
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert f.calls == made + 1
    torch.testing.assert_close(slope, torch.cos(x), rtol=0, atol=1e-15)
    third = slope.sum()
    for _ in range(2):
        (third,) = torch.autograd.grad(third.sum(), x, create_graph=True)
    torch.testing.assert_close(third, -torch.cos(x), rtol=0, atol=1e-15)


# ---------------------------------------------------------------------------------------------- derivatives


def wave(x: Tensor, t: Tensor) -> Tensor:
    """Return the integrand whose derivatives are checked."""
    return x * torch.sin(t * x)


def wave_integral(x: Tensor, t: Tensor, a: Any = 0.1) -> Tensor:
    """Return its integral from a to x."""
    whole = lambda x: (torch.sin(t * x) - t * x * torch.cos(t * x)) / t**2
    return whole(x) - whole(torch.as_tensor(a, dtype=torch.float64))


@pytest.mark.parametrize(("complement", "turned"), ((False, False), (True, False), (True, True)))
def test_gradients(complement: bool, turned: bool) -> None:
    def F(x: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ends = (b, a) if turned else (a, b)
        return qg.antiderivative(wave, *ends, (t,), rtol=1e-12)(x, complement=complement)

    inputs = (leaf([0.9, 1.7]), leaf(1.3), leaf(0.0), leaf(2.1))
    assert gradcheck(F, inputs)
    assert gradgradcheck(F, inputs)
    assert gradcheck(F, (leaf([0.3]), leaf([1.3, 0.5]), leaf(0.0), leaf([2.0, 1.0])), check_forward_ad=True)


def test_gradients_against_the_exact_ones() -> None:
    x, t, a = leaf([0.1, 0.9, 1.7]), leaf(1.3), leaf(0.1)
    F = qg.antiderivative(wave, a, 2.0, (t,), rtol=1e-12)
    ours = torch.autograd.grad(F(x).pow(2).sum(), (x, t, a))
    exact = torch.autograd.grad(wave_integral(x, t, a).pow(2).sum(), (x, t, a))
    torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-13)
    F(x).sum().backward()  # every value has a graph of its own
    F(x).sum().backward()


def test_gradients_in_a_tail_are_those_of_its_law() -> None:
    power, x = leaf(0.9), towards_zero(50, 900.0)[:50]
    F = qg.antiderivative(lambda x, p: x**-p, 0.0, t64(1.0), (power,), rtol=1e-10)
    (slope,) = torch.autograd.grad(F(x).sum(), power, create_graph=True)
    (bend,) = torch.autograd.grad(slope, power)
    again = leaf(0.9)
    exact = (x ** (1 - again) / (1 - again)).sum()
    (slope_exact,) = torch.autograd.grad(exact, again, create_graph=True)
    (bend_exact,) = torch.autograd.grad(slope_exact, again)
    torch.testing.assert_close(slope, slope_exact, rtol=1e-9, atol=0)
    torch.testing.assert_close(bend, bend_exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("limits", ((0.0, 2.0), (2.0, 0.0)))
def test_a_breakpoint_moves_what_lies_behind_it(limits: tuple[float, float]) -> None:
    place, x = leaf(0.7), t64([0.3, 0.9, 1.7])
    jump = lambda x, p: torch.where(x < p, torch.sin(x), 2 * x)
    F = qg.antiderivative(jump, *limits, (place.detach(),), points=place[None], rtol=1e-12)
    slopes = t64([torch.autograd.grad(v, place, retain_graph=True)[0].item() for v in F(x)])
    size = math.sin(0.7) - 1.4
    behind = (x > 0.7) if limits[0] == 0.0 else -(x < 0.7).to(x.dtype)
    torch.testing.assert_close(slopes, size * behind.to(x.dtype), rtol=1e-9, atol=1e-12)


def test_the_gradient_in_a_singular_limit_is_infinite_and_said_to_be() -> None:
    a = leaf(0.0)
    F = qg.antiderivative(lambda x: x**-0.5, a, t64(1.0))
    with pytest.warns(qg.IntegrationWarning, match="limit or breakpoint is infinite"):
        value = F(0.5)
    value.backward()
    assert a.grad == -INF


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": lambda f: grad(f, (0, 1))(t64(0.9), t64(1.3)),
    "hessian": lambda f: hessian(f, (0, 1))(t64(0.9), t64(1.3)),
    "vmap": lambda f: vmap(f, (0, None))(t64([0.3, 0.9]), t64(1.3)),
    "vmap of both": lambda f: vmap(f)(t64([0.3, 0.9]), t64([1.3, 0.7])),
    "gradients for each x, parameter shared": lambda f: vmap(grad(f, 1), (0, None))(t64([0.3, 0.9]), t64(1.3)),
    "jacrev": lambda f: jacrev(f, (0, 1))(t64([0.3, 0.9]), t64(1.3)),
    "jacfwd": lambda f: jacfwd(f, (0, 1))(t64([0.3, 0.9]), t64(1.3)),
    "nested": lambda f: vmap(lambda t: vmap(lambda x: grad(f, 1)(x, t))(t64([0.3, 0.9, 1.7])))(t64([1.3, 0.7])),
    "nested the other way": lambda f: vmap(lambda x: vmap(lambda t: grad(f, 1)(x, t))(t64([1.3, 0.7])))(
        t64([0.3, 0.9, 1.7])
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_made_inside_of_a_transform(name: str) -> None:
    ours = lambda x, t: qg.antiderivative(wave, 0.1, 2.0, (t,), rtol=1e-12)(x)
    torch.testing.assert_close(TRANSFORMS[name](ours), TRANSFORMS[name](wave_integral), rtol=1e-11, atol=1e-12)


def test_made_outside_of_a_transform() -> None:
    x, t = t64([0.3, 0.9, 1.7]), leaf(1.3)
    F = qg.antiderivative(wave, 0.1, 2.0, (t,), rtol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(vmap(F)(x), wave_integral(x, t))
    slopes = vmap(grad(F))(x)
    torch.testing.assert_close(slopes, wave(x, t))
    torch.testing.assert_close(torch.func.jvp(F, (x,), (torch.ones_like(x),))[1], wave(x, t))
    F = qg.antiderivative(lambda x: x * torch.sin(1.3 * x), 0.1, t64(2.0), rtol=1e-12)
    bends = vmap(grad(grad(F)))(x)
    torch.testing.assert_close(bends, torch.sin(1.3 * x) + 1.3 * x * torch.cos(1.3 * x))


def test_a_network_is_closed_over() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    with torch.no_grad():
        for i, parameter in enumerate(layers.parameters()):
            parameter.copy_(torch.linspace(-1.0, 1.0 + i, parameter.numel()).reshape(parameter.shape))
    net = lambda x: layers(x[..., None])[..., 0]
    F = qg.antiderivative(net, 0.0, t64(1.0), rtol=1e-12)
    ours = torch.autograd.grad(F(0.4), list(layers.parameters()))
    theirs = torch.autograd.grad(qg.quad(net, 0.0, t64(0.4), rtol=1e-12).value, list(layers.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        next(layers.parameters()).add_(0.5)
        stale = F(0.4)
    with pytest.raises(qg.IntegrandError, match="has changed since"):
        F(0.4)
    with torch.no_grad():
        assert torch.equal(F(0.4), stale)


# ------------------------------------------------------------------------------- statuses, messages, records


def test_what_does_not_exist_is_not_called_converged() -> None:
    with pytest.warns(qg.IntegrationWarning, match="diverge"):
        assert not qg.antiderivative(lambda x: 1 / x, 0.0, t64(1.0)).converged
    broken = lambda x: torch.where(x > 0.5, torch.nan, x)
    with pytest.warns(qg.IntegrationWarning, match="NaN or infinite.*f\\(x\\) = nan at x"):
        F = qg.antiderivative(broken, 0.0, t64([0.4, 1.0]))
    assert F.converged.tolist() == [True, False]
    assert F(0.1).isnan().tolist() == [False, True]
    pole = qg.antiderivative(lambda x: (x - 0.3) ** -2, 0.0, t64(1.0), on_failure="ignore")
    assert not pole.converged
    with pytest.raises(qg.IntegrationError):
        qg.antiderivative(lambda x: 1 / x, 0.0, t64(1.0), on_failure="raise")
    poor = qg.antiderivative(
        lambda x: torch.sin(1 / x), 0.0, t64(1.0), rtol=1e-12, max_nfev=500, on_failure="ignore"
    )
    assert poor.status == qg.Status.MAX_NFEV
    assert float((poor(1.0) - 0.504067061906928).abs()) <= float(poor.error)


def test_a_whole_that_vanishes_converges_by_the_height_of_the_curve() -> None:
    F = qg.antiderivative(torch.sin, 0.0, t64(2 * math.pi), rtol=1e-10)
    assert F.converged
    x = uniform(1000, 0.0, 2 * math.pi)
    torch.testing.assert_close(F(x), 1 - torch.cos(x), rtol=0, atol=1e-10)


def test_bad_input() -> None:
    F = qg.antiderivative(torch.cos, 0.0, t64([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"x = 1.5 is outside of the interval \[0, 1\] of integral 0"):
        F(t64([[0.5, 0.5], [1.5, 1.5], [-1.0, 3.0]]))
    with pytest.raises(ValueError, match=r"x of shape \(3,\) does not broadcast with the batch \(2,\)"):
        F(t64([0.1, 0.2, 0.3]))
    with pytest.raises(TypeError, match="x is a complex tensor"):
        F(torch.tensor(1j))
    assert F(t64([0.5, math.nan])).isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="rtol and atol are both 0"):
        qg.antiderivative(torch.cos, 0.0, 1.0, rtol=0.0)
    with pytest.raises(ValueError, match="on_failure"):
        qg.antiderivative(torch.cos, 0.0, 1.0, on_failure="never")  # pyright: ignore
    with pytest.raises(ValueError, match="limit b is NaN"):
        qg.antiderivative(torch.cos, 0.0, math.nan)
    with pytest.warns(qg.SeveredGradientWarning, match=r"args\[0\]"):
        qg.antiderivative(lambda x, t: torch.sin(t.item() * x), 0.0, t64(1.0), (leaf(1.0),))
    noise = torch.Generator().manual_seed(0)
    with pytest.raises(qg.IntegrandError, match="not deterministic"):
        qg.antiderivative(
            lambda x, t: t * x + 1e-3 * torch.rand(x.shape, generator=noise, dtype=x.dtype),
            0.0, t64(1.0), (leaf(1.0),), rtol=1e-2, on_failure="ignore",
        )  # fmt: skip


def test_a_jump_that_is_not_marked_is_warned_of() -> None:
    place = leaf(0.37)
    with pytest.warns(qg.UnmarkedJumpWarning):
        qg.antiderivative(lambda x, p: p * (x > p).to(x.dtype), 0.0, t64(1.0), (place,))


def test_printed_saved_and_drawn() -> None:
    F = qg.antiderivative(lambda x: x**-0.5, 0.0, t64([1.0, 2.0]))
    assert repr(F).splitlines()[0] == "Antiderivative of 2 integrands"
    assert len(repr(F).splitlines()) == 5
    file = io.BytesIO()
    torch.save(F.plan, file)
    file.seek(0)
    plan = torch.load(file, weights_only=True)
    torch.testing.assert_close(qg.replay(lambda x: x**-0.5, plan, 0.0, t64([1.0, 2.0])), F(t64([1.0, 2.0])))
    assert len(pickle.loads(pickle.dumps(F.plan))) == len(F.plan)
    assert F.error.shape == F.status.shape == F.nfev.shape == (2,)
    figure = pytest.importorskip("matplotlib.figure")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = F.plot(element=1, ax=figure.Figure().subplots())
        normal, a, b, *_ = CASES["normal"]
        qg.antiderivative(normal, a, t64(b)).plot(ax=figure.Figure().subplots())
    drawn = axes.get_lines()[0].get_xydata()
    np.testing.assert_allclose(drawn[:, 1], 2.0 * drawn[:, 0] ** 0.5, atol=1e-7)
    with pytest.raises(IndexError):
        F.plot(element=2, ax=figure.Figure().subplots())


def test_under_autocast_f_alone_is_cast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        F = qg.antiderivative(torch.cos, 0.0, t64(1.0), rtol=1e-12)
        value = F(0.5)
    assert value.item() == pytest.approx(math.sin(0.5), abs=1e-13)


def test_derivatives_at_a_singular_end_are_large_and_no_nan() -> None:
    for power in (-0.9, -0.5, 0.5):
        p = leaf(power)
        for args in ((p,), (power,)):
            F = qg.antiderivative(lambda x, p: x**p, 0.0, t64(1.0), args, on_failure="ignore")
            x = leaf([0.0, 0.3])
            value = F(x).sum()
            (slope,) = torch.autograd.grad(value, x)
            assert float(slope[0]) > 1e60 if power < 0 else float(slope[0]) < 1e-60
            torch.testing.assert_close(slope[1], x.detach()[1] ** power)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of the compiler's own making
def test_compiled_around() -> None:
    """A compiled function steps out of its graph to make F, to ask for heights, and to invert them."""
    x = leaf([0.2, 0.5])

    def work(x: Tensor) -> Tensor:
        F = qg.antiderivative(lambda t: torch.exp(-x[0] * t), 0.0, 1.0)
        return F(x) + F.inverse(x / 2, complement=True)

    F = qg.antiderivative(torch.cos, 0.0, t64(1.0))
    for each in (work, lambda x: 2 * F(x), lambda x: 2 * F.inverse(x)):
        for given in (x, x.detach()):
            torch._dynamo.reset()
            torch.testing.assert_close(torch.compile(each, backend="aot_eager")(given), each(given))
