"""Expectations and their derivatives by the parameters, against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import Tensor
from torch import distributions as D

import quadgrad as qg

Case = tuple[Callable[..., Any], Callable[..., Any], list[Any], Callable[..., Tensor]]


def parameters(*values: Any) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]


def mix(w: Tensor, loc: Tensor, scale: Tensor) -> D.Distribution:
    return D.MixtureSameFamily(D.Categorical(probs=w), D.Normal(loc, scale))


def mean_of_weights(w: Tensor, values: Tensor) -> Tensor:
    return (w / w.sum() * values).sum()


def square(x: Tensor) -> Tensor:
    return x * x


ONE = torch.ones((), dtype=torch.float64)

# What is integrated, over which distribution of which parameters, and the exact expectation as a function of them.
LINE: dict[str, Case] = {
    "normal-polynomial": (
        lambda x: x**4 - 2 * x, D.Normal, [[0.3, -1.0], [0.7, 1.3]],
        lambda m, s: m**4 + 6 * m**2 * s**2 + 3 * s**4 - 2 * m,
    ),
    "normal-exp": (torch.exp, D.Normal, [[0.3, -1.0], [0.7, 1.3]], lambda m, s: torch.exp(m + 0.5 * s**2)),
    "normal-far": (square, D.Normal, [[1e4, -1e6], [1.0, 1e-2]], lambda m, s: m**2 + s**2),
    "step": (lambda x: (x > 0.5).double(), D.Normal, [0.3, 0.7], lambda m, s: torch.special.ndtr((m - 0.5) / s)),
    "lognormal": (square, D.LogNormal, [0.3, 0.6], lambda m, s: torch.exp(2 * m + 2 * s**2)),
    "uniform-both-ends": (
        lambda x: torch.exp(x), D.Uniform, [[0.0, 1.0], [2.0, 1.5]], lambda a, b: (b.exp() - a.exp()) / (b - a)
    ),
    "uniform-step": (lambda x: (x > 1.2).double(), D.Uniform, [0.0, 2.0], lambda a, b: (b - 1.2) / (b - a)),
    "gamma": (square, D.Gamma, [[0.3, 2.5], [2.0, 0.5]], lambda a, b: a * (a + 1) / b**2),
    "gamma-log": (torch.log, D.Gamma, [0.7, 2.0], lambda a, b: torch.digamma(a) - torch.log(b)),
    "beta": (square, D.Beta, [0.5, 0.5], lambda a, b: a * (a + 1) / (a + b) / (a + b + 1)),
    "beta-log": (torch.log, D.Beta, [0.5, 0.5], lambda a, b: torch.digamma(a) - torch.digamma(a + b)),
    "student": (square, D.StudentT, [6.0, 0.4, 1.5], lambda n, m, s: m**2 + s**2 * n / (n - 2)),
    "chi2": (square, D.Chi2, [5.0], lambda n: n * (n + 2)),
    "exponential": (square, D.Exponential, [[0.5, 3.0]], lambda r: 2 / r**2),
    "laplace": (torch.abs, D.Laplace, [0.0, 2.0], lambda m, s: s + m * 0),
    "pareto": (lambda x: x, D.Pareto, [1.5, 3.0], lambda s, a: s * a / (a - 1)),
    "weibull": (square, D.Weibull, [2.0, 1.5], lambda s, k: s**2 * torch.exp(torch.lgamma(1 + 2 / k))),
    "gumbel": (lambda x: x, D.Gumbel, [1.0, 2.0], lambda m, s: m + s * float(mp.euler)),
    "halfnormal": (lambda x: x, D.HalfNormal, [2.0], lambda s: s * math.sqrt(2 / math.pi)),
    "transformed": (
        square,
        lambda m, s: D.TransformedDistribution(
            D.Normal(0 * ONE, ONE), [D.AffineTransform(m, s), D.transforms.ExpTransform()]
        ),
        [0.3, 0.6], lambda m, s: torch.exp(2 * m + 2 * s**2),
    ),
    "transformed-moving-ends": (
        lambda x: (x > 0.5).double(),
        lambda m, s: D.TransformedDistribution(D.Uniform(0 * ONE, ONE), [D.AffineTransform(m, s)]),
        [0.3, 0.6], lambda m, s: (m + s - 0.5) / s,
    ),
    "falling-transform": (
        square, lambda m: D.TransformedDistribution(D.Exponential(ONE), [D.AffineTransform(m, -ONE)]),
        [0.5], lambda m: m**2 - 2 * m + 2,
    ),
    "mixture": (
        square, mix, [[0.2, 0.3, 0.5], [-1.0, 0.0, 1e4], [0.5, 1.0, 2.0]],
        lambda w, m, s: mean_of_weights(w, m**2 + s**2),
    ),
}  # fmt: skip

SUMS: dict[str, Case] = {
    "bernoulli": (lambda x: 3 * x + 1, D.Bernoulli, [[0.2, 0.9, 0.0, 1.0]], lambda p: 3 * p + 1),
    "bernoulli-logits": (
        lambda x: 3 * x + 1, lambda t: D.Bernoulli(logits=t), [0.4], lambda t: 3 * torch.sigmoid(t) + 1
    ),
    "categorical": (
        lambda x: x.double() ** 2, D.Categorical, [[[0.2, 0.3, 0.5], [0.0, 0.1, 0.8]]],
        lambda p: (p[:, 1] + 4 * p[:, 2]) / p.sum(-1),
    ),
    "one-hot": (
        lambda x: x[..., 0] + 2 * x[..., 2], D.OneHotCategorical, [[0.2, 0.3, 0.5]],
        lambda p: (p[0] + 2 * p[2]) / p.sum(),
    ),
    "binomial": (
        square, lambda p: D.Binomial(10, p), [[0.3, 0.5]], lambda p: 10 * p * (1 - p) + 100 * p**2
    ),
    "poisson": (square, D.Poisson, [[1e-3, 2.0, 300.0]], lambda r: r + r * r),
    "poisson-exp": (torch.exp, D.Poisson, [5.0], lambda r: torch.exp(r * (math.e - 1))),
    "geometric": (lambda x: x, D.Geometric, [[0.5, 0.01]], lambda p: (1 - p) / p),
    "negative-binomial": (lambda x: x, lambda p: D.NegativeBinomial(3.5, p), [0.4], lambda p: 3.5 * p / (1 - p)),
    "independent": (
        lambda x: x.prod(-1), lambda p: D.Independent(D.Bernoulli(p), 1), [[[0.3, 0.5, 0.9], [0.1, 0.2, 0.0]]],
        lambda p: p.prod(-1),
    ),
    "mixture": (
        lambda x: x, lambda w, p: D.MixtureSameFamily(D.Categorical(w), D.Bernoulli(p)), [[0.3, 0.7], [0.2, 0.9]],
        mean_of_weights,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINE)
@pytest.mark.parametrize("rtol", [None, 1e-8])
def test_quadrature_of_f_times_the_density(name: str, rtol: float | None) -> None:
    f, make, values, exact = LINE[name]
    given = parameters(*values)
    result = qg.expectation(f, make(*given), method="quad", rtol=rtol)
    truth = exact(*given)
    assert bool(result.converged.all())
    assert bool(((result.value - truth).abs() <= result.error).all())
    assert bool((result.error <= (rtol or 1e-3) * truth.abs()).all())
    slopes = torch.autograd.grad(result.value.sum(), given, retain_graph=True)
    wanted = torch.autograd.grad(truth.sum(), given)
    for slope, true, error in zip(slopes, wanted, qg.gradient_error(result, given), strict=True):
        size = true.abs().max().clamp_min(0.1)
        assert bool(((slope - true).abs() <= error + 1e-9 * truth.abs().max()).all())
        assert bool(((slope - true).abs() <= 1e-2 * size).all())


SMOOTH = [n for n in LINE if "step" not in n and n not in ("transformed-moving-ends", "normal-far")]


@pytest.mark.parametrize("name", SMOOTH)
def test_points_through_the_transport(name: str) -> None:
    f, make, values, exact = LINE[name]
    given = parameters(*values)
    result = qg.expectation(f, make(*given), method="qmc", n=2**16)
    truth = exact(*given)
    assert result.status.unique().tolist() == [int(qg.Status.SAMPLED)]
    assert "is pathwise" in result.message and "score" not in result.message
    assert bool(((result.value - truth).abs() <= result.error).all())
    slopes = torch.autograd.grad(result.value.sum(), given, retain_graph=True)
    wanted = torch.autograd.grad(truth.sum(), given)
    for slope, true, error in zip(slopes, wanted, qg.gradient_error(result, given), strict=True):
        assert bool(((slope - true).abs() <= error + 1e-9 * truth.abs().max()).all())
        # The mixture's answer is 5e7, and its error 1.6.
        assert bool((error <= (0.6 if name == "mixture" else 3e-4) * true.abs().max().clamp_min(0.1)).all())


@pytest.mark.parametrize("name", SUMS)
def test_sums_over_states(name: str) -> None:
    f, make, values, exact = SUMS[name]
    given = parameters(*values)
    result = qg.expectation(f, make(*given))
    truth = exact(*given)
    assert bool(result.converged.all()) and "sum over states" in result.message
    assert bool(((result.value - truth).abs() <= result.error + 1e-15).all())
    assert bool((result.error <= 1e-9 * truth.abs() + 1e-14).all())
    slopes = torch.autograd.grad(result.value.sum(), given)
    wanted = torch.autograd.grad(truth.sum(), given)
    for slope, true in zip(slopes, wanted, strict=True):
        assert torch.allclose(slope, true, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("z", [-1.0, -4.0, -7.0, -10.0])
def test_expected_improvement_far_in_the_tail(z: float) -> None:
    mean, scale, best = parameters(0.5 + 0.3 * z, 0.3, 0.5)
    result = qg.expectation(lambda x, best: torch.relu(x - best), D.Normal(mean, scale), (best,), rtol=1e-6)
    exact = 0.3 * float(mp.npdf(z) + z * mp.ncdf(z))
    assert bool(result.converged)
    assert abs(result.value.item() - exact) <= min(result.error.item(), 1e-6 * exact)
    given = mean, scale, best
    slopes = torch.autograd.grad(result.value, given, retain_graph=True)
    truths = mp.ncdf(z), mp.npdf(z), -mp.ncdf(z)
    # f's own derivative by best jumps at best, where nothing divides the line; the density's are smooth.
    for slope, true, error, off in zip(
        slopes, truths, qg.gradient_error(result, given), (1e-8, 1e-8, 2e-4), strict=True
    ):
        assert abs(slope.item() - float(true)) <= min(error.item(), off * abs(float(true)))


def test_a_density_that_torch_knows_to_seven_digits_does_not_converge_beyond() -> None:
    loc, kappa = parameters(0.3, 4.0)
    exact = torch.cos(loc) * torch.special.i1e(kappa) / torch.special.i0e(kappa)
    result = qg.expectation(torch.cos, D.VonMises(loc, kappa))
    assert bool(result.converged) and abs(result.value - exact) <= result.error
    for slope, true in zip(*(torch.autograd.grad(v, (loc, kappa)) for v in (result.value, exact)), strict=True):
        assert torch.allclose(slope, true, atol=1e-6)
    finer = qg.expectation(torch.cos, D.VonMises(loc, kappa), rtol=1e-10, on_failure="ignore")
    assert not bool(finer.converged) and abs(finer.value - exact) <= finer.error


@pytest.mark.parametrize("construction", ["cholesky", "pca"])
def test_multivariate_normal(construction: Any) -> None:
    loc, factor = parameters([0.1, 0.2, 0.3], [[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.2, 0.1, 0.4]])
    for made in (D.MultivariateNormal(loc, scale_tril=factor), D.MultivariateNormal(loc, factor @ factor.mT)):
        result = qg.expectation(lambda x: x.square().sum(-1), made, construction=construction)
        exact = loc.square().sum() + factor.square().sum()
        assert bool(result.converged) and abs(result.value - exact) <= result.error
        slopes = torch.autograd.grad(result.value, (loc, factor), retain_graph=True)
        for slope, true in zip(slopes, torch.autograd.grad(exact, (loc, factor)), strict=True):
            assert (
                torch.allclose(slope.tril(), true, atol=3e-3)
                if slope.ndim > 1
                else torch.allclose(slope, true, atol=3e-3)
            )


def test_a_batch_of_multivariate_normals_is_that_of_each() -> None:
    loc = torch.randn(4, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factor = torch.eye(3, dtype=torch.float64) * torch.tensor([1.0, 2.0], dtype=torch.float64)[:, None, None]
    c = torch.tensor([1.0, 3.0], dtype=torch.float64)
    f = lambda x, c: c * torch.exp(-x.square().sum(-1))
    whole = qg.expectation(f, D.MultivariateNormal(loc, scale_tril=factor), (c,), n=2**12)
    assert whole.value.shape == (4, 2)
    for i in range(4):
        for j in range(2):
            one = qg.expectation(f, D.MultivariateNormal(loc[i, 0], scale_tril=factor[j]), (c[j],), n=2**12)
            assert torch.allclose(one.value, whole.value[i, j], rtol=1e-12)


def test_dirichlet() -> None:
    (c,) = parameters([0.3, 2.0, 3.0])
    exact = c[0] * c[1] / c.sum() / (c.sum() + 1)
    (wanted,) = torch.autograd.grad(exact, c)
    for estimator in ("pathwise", "score"):
        result = qg.expectation(lambda x: x[..., 0] * x[..., 1], D.Dirichlet(c), estimator=estimator)
        assert bool(result.converged) and abs(result.value - exact) <= result.error
        (slope,) = torch.autograd.grad(result.value, c, retain_graph=True)
        assert bool(((slope - wanted).abs() <= 1.5 * qg.gradient_error(result, c)).all())


def test_keister_in_eight_dimensions() -> None:
    normal = D.Independent(D.Normal(torch.zeros(8).double(), torch.ones(8).double()), 1)
    f = lambda x: math.pi**4 * torch.cos(x.square().sum(-1).sqrt() / math.sqrt(2))
    result = qg.expectation(f, normal, atol=1e-2)
    assert bool(result.converged)
    assert abs(result.value.item() + 30.609075003558562675) <= result.error.item() <= 1e-2


def test_posterior_mean_is_a_quotient_on_the_same_points() -> None:
    loc, scale, y = parameters(0.3, 0.6, 1.5)
    likelihood = lambda x, y: torch.exp(-0.5 * (y - x) ** 2)
    exact = (loc / scale**2 + y) / (1 / scale**2 + 1)
    wanted = torch.autograd.grad(exact, (loc, scale, y))
    for method in ("quad", "qmc"):
        result = qg.expectation(
            lambda x, y: x, D.Normal(loc, scale), (y,), weight=likelihood, method=method, rtol=1e-4
        )
        assert bool(result.converged) and abs(result.value - exact) <= result.error <= 1e-4 * exact
        slopes = torch.autograd.grad(result.value, (loc, scale, y), retain_graph=True)
        errors = qg.gradient_error(result, (loc, scale, y))
        for slope, true, error in zip(slopes, wanted, errors, strict=True):
            assert abs(slope - true) <= 1.5 * error + 1e-9


def test_posterior_of_a_discrete_prior() -> None:
    (p,) = parameters([0.2, 0.3, 0.5])
    result = qg.expectation(lambda x: x.double(), D.Categorical(p), weight=lambda x: 1.0 + x.double())
    q = p / p.sum()
    exact = (2 * q[1] + 6 * q[2]) / (q[0] + 2 * q[1] + 3 * q[2])
    assert bool(result.converged) and abs(result.value - exact) <= result.error + 1e-15
    assert torch.allclose(*(torch.autograd.grad(v, p, retain_graph=True)[0] for v in (result.value, exact)))
