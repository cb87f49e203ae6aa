"""Noise of perturbations: keyed by item, fresh with every seed, of the distribution asked for, evenly spread."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Cauchy,
    Exponential,
    Gamma,
    Gumbel,
    Independent,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    Uniform,
    VonMises,
)

import quadgrad as qg
from benchmarks.perturbations import digits, gradient_errors, make_model, trained
from helpers import leaf, t64
from quadgrad._core.distributions.transport import standard_normal
from quadgrad._core.perturbations.noise import Noise
from quadgrad._core.perturbations.transport import Transport
from quadgrad._core.points import make_sequence

CPU = torch.device("cpu")


def noise(distribution: Any, x: Tensor, **options: Any) -> Tensor:
    """Return the perturbations of items, ``(n, B, *item)``, from what a loss is called with."""
    seen: list[Tensor] = []
    loss = lambda xs, ys: (seen.append(xs.clone()), xs.flatten(1).sum(1) if xs.ndim > 1 else xs)[1]
    with torch.no_grad():
        qg.perturbation_loss(loss, x, torch.zeros(len(x)), distribution, chunk_size=len(x), **options)
    return torch.stack(seen) - x


# ------------------------------------------------------------------------------------------------------- keys


def test_the_key_is_seed_and_index_whatever_else_is_in_the_batch() -> None:
    x = torch.zeros(6, 3, dtype=torch.float64)
    index = torch.tensor([40, 7, 2**40, 0, 3, 7])
    whole = noise(Normal(0.0, 1.0), x, index=index, seed=5)
    assert torch.equal(whole[:, 1], whole[:, 5])
    assert torch.equal(noise(Normal(0.0, 1.0), x[:2], index=[7, 0], seed=5), whole[:, [1, 3]])
    assert torch.equal(noise(Normal(0.0, 1.0), x, seed=5)[:, 3], whole[:, 4])  # by position
    assert torch.equal(noise(Normal(0.0, 1.0), x, index=index, seed=5, n=8), whole[:8])


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 12, 100])
def test_chunks_do_not_change_the_noise(chunk_size: int) -> None:
    x, seen = torch.rand(5, 2, dtype=torch.float64), list[Tensor]()
    loss = lambda xs, ys: (seen.append(xs.clone()), xs[:, 0])[1]
    qg.perturbation_loss(loss, x, x[:, 0], Normal(0.0, 1.0), n=4, seed=2, chunk_size=chunk_size)
    assert torch.equal(torch.cat(seen).unflatten(0, (4, 5)), x + noise(Normal(0.0, 1.0), x * 0, n=4, seed=2))


def test_every_seed_and_every_item_has_noise_of_its_own() -> None:
    """Noise drawn once for a whole fit, or once for all images of a batch, is what must not happen."""
    x = torch.zeros(50, 3, dtype=torch.float64)
    each = torch.stack([noise(Normal(0.0, 1.0), x, seed=seed) for seed in range(20)])  # (seed, n, B, 3)
    assert len(each.flatten().unique()) == each.numel()
    # Means over n, whose true deviation is below that of independent points.
    means = each.mean(1)
    assert 0.0 < float(means.std()) < 16**-0.5
    table = torch.corrcoef(means.transpose(0, 1).flatten(1))  # of items, over seeds and coordinates
    assert float((table - torch.eye(50, dtype=torch.float64)).abs().max()) < 0.6  # 60 numbers: deviation .13
    assert abs(float(table.sum() - 50) / (50 * 49)) < 0.03


def test_each_item_has_evenly_spread_points() -> None:
    uniform = noise(Uniform(0.0, 1.0), torch.zeros(20, 30, dtype=torch.float64), n=16)
    strata = (uniform * 16).long().sort(0).values
    assert torch.equal(strata, torch.arange(16)[:, None, None].expand_as(strata))


def test_rounding_does_not_reach_the_ends() -> None:
    """Row 74: a normal quantile of a number too close to 0 is infinite."""
    for dtype in (torch.float32, torch.float64):
        least = make_sequence("sobol", 1, dtype=dtype).digits
        for last in (0, (1 << least.count) - 1):
            u = least.numbers(torch.tensor([last | least.one], dtype=least.integer))
            exact = scipy.stats.norm.ppf(float(u.double()))
            assert float(standard_normal(u)) == pytest.approx(exact, rel=1e-6)


# ----------------------------------------------------------------------------------------- beyond the Sobol tables


def test_beyond_the_tables_each_coordinate_stays_even_and_blocks_are_matched_at_random() -> None:
    d, n = 3 * 4096 - 5, 64
    points = Noise(d, n, 1, torch.float64, CPU)
    u = points.points(points.shifts(torch.arange(3)), 0, n)
    assert u.shape == (n, 3, d)
    strata = (u * n).long().sort(0).values
    assert torch.equal(strata, torch.arange(n)[:, None, None].expand_as(strata))
    # A coordinate and its fellow in the next block come from the same direction numbers: in the same order, their
    # leading digits would agree at all points or at none.
    agree = ((u[:, :, :4000] < 0.5) == (u[:, :, 4096:8096] < 0.5)).double().mean(0)
    assert float(((agree == 0) | (agree == 1)).double().mean()) < 0.01
    levels = u.sort(0).values  # with scrambles and shifts of their own, fellows do not even take the same values
    first, second, third = (levels[:, :, low : low + 4000] for low in (0, 4096, 8192))
    assert not ((first == second) | (second == third)).any()
    few = points.points(points.shifts(torch.tensor([2, 9])), 10, 20)
    assert torch.equal(few[:, 0], u[10:20, 2])


def test_large_images() -> None:
    x = torch.zeros(2, 3, 40, 40)
    w = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0))
    mean = lambda seed: noise(Normal(0.0, 1.0), x, n=16, seed=seed).mul(w).sum((2, 3, 4)).mean(0)
    deviation = torch.stack([mean(seed) for seed in range(20)]).square().mean().sqrt()
    assert float(deviation) < 0.7 * float(w.norm()) / 4  # independent points have 1


# ------------------------------------------------------------------------------------------------- distributions

ITEM = (3, 2)
LOC, SCALE = torch.tensor([0.5, -1.0]), torch.tensor([0.3, 2.0])
ONES = {
    "Normal": Normal(LOC, SCALE),
    "Laplace": Laplace(LOC, SCALE),
    "Uniform": Uniform(-SCALE, LOC + 2),
    "Cauchy": Cauchy(LOC, SCALE),
    "Exponential": Exponential(SCALE),
    "LogNormal": LogNormal(LOC, SCALE / 2),
    "Gumbel": Gumbel(LOC, SCALE),
    "Independent": Independent(Normal(LOC, SCALE), 1),
    "whole item": Independent(Laplace(LOC.expand(ITEM), SCALE), 2),
}


@pytest.mark.parametrize("name", ONES)
def test_perturbations_have_the_distribution_asked_for(name: str) -> None:
    distribution = ONES[name]
    delta = noise(distribution, torch.zeros(4, *ITEM), n=4096)
    assert delta.shape == (4096, 4, *ITEM)
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    levels = base.cdf(delta).sort(0).values
    even = (torch.arange(4096) + 0.5) / 4096
    assert float((levels - even.reshape(-1, 1, 1, 1)).abs().max()) < 1e-3  # as no random sample would


BY_SCIPY = [
    (Gamma(t64([2.5, 0.4]), t64([1.0, 3.0])), scipy.stats.gamma([2.5, 0.4], scale=[1.0, 1 / 3])),
    (Beta(t64(0.5), t64(2.0)), scipy.stats.beta(0.5, 2.0)),
    (StudentT(t64(3.0), t64(0.5), t64(2.0)), scipy.stats.t(3.0, 0.5, 2.0)),
    (Independent(StudentT(t64([3.0, 7.0])), 1), scipy.stats.t([3.0, 7.0])),
]


@pytest.mark.parametrize(("distribution", "exact"), BY_SCIPY, ids=lambda d: type(d).__name__)
def test_distributions_whose_quantiles_torch_does_not_have(distribution: Any, exact: Any) -> None:
    x = torch.zeros(3, *ITEM, dtype=torch.float64)
    points = noise(Uniform(t64(0.0), t64(1.0)), x, n=256)  # the same points
    torch.testing.assert_close(noise(distribution, x, n=256), t64(exact.ppf(points.numpy())), rtol=1e-9, atol=1e-12)


def test_the_gradient_by_a_shape_parameter_is_that_of_the_mean() -> None:
    concentration = leaf(2.5)
    x = torch.zeros(64, dtype=torch.float64)
    value = qg.perturbation_loss(lambda xs, ys: xs, x, x, Gamma(concentration, t64(2.0)), n=1024)
    (slope,) = torch.autograd.grad(value, concentration)
    assert abs(float(value.detach()) - 1.25) < 1e-3 and abs(float(slope) - 0.5) < 1e-3


def test_multivariate_normals() -> None:
    factor = torch.tensor([[1.0, 0.0], [0.8, 0.3]])
    full = MultivariateNormal(LOC, scale_tril=factor)
    low = LowRankMultivariateNormal(LOC, factor[:, :1], torch.tensor([0.1, 0.2]))
    for distribution in (full, low, MultivariateNormal(LOC, full.covariance_matrix)):
        delta = noise(distribution, torch.zeros(1, 2), n=4096)[:, 0]
        torch.testing.assert_close(delta.mean(0), LOC, rtol=0, atol=2e-3)
        torch.testing.assert_close(torch.cov(delta.T), distribution.covariance_matrix, rtol=0, atol=2e-2)


def test_items_of_one_number_and_of_double_precision() -> None:
    delta = noise(Normal(0.0, 1.0), torch.zeros(3, dtype=torch.float64), n=64)
    assert delta.shape == (64, 3)
    assert delta.dtype == torch.float64
    assert float(delta.mean(0).abs().max()) < 0.05
    assert (delta.float().double() != delta).all()  # 52 digits


# --------------------------------------------------------------------------------------------------- how even


def linear_model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize(
    ("make", "over_independent", "over_one"),
    [(linear_model, 0.45, 1 / 3.5), (lambda: make_model(4), 0.75, 1 / 1.9)],
    ids=["linear", "convolutional"],
)
def test_a_shifted_set_for_each_item_has_the_smallest_gradient_error(
    make: Any, over_independent: float, over_one: float
) -> None:
    """Row 72: one noise for all images adds up; independent noise is not evenly spread."""
    errors = gradient_errors(trained(make(), *digits(256)), seeds=20, many=1024)
    print("\ngradient's rms error over its norm:", errors)
    assert errors["shifted"] < over_independent * errors["independent"]
    assert errors["shifted"] < over_one * errors["one for all"]


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "distribution",
    [
        VonMises(0.0, 1.0), Bernoulli(0.5), Independent(Poisson(torch.ones(2)), 1),
        MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.zeros(2), 1.0)),
    ],
)  # fmt: skip
def test_a_distribution_without_differentiable_transport_is_refused_with_a_remedy(distribution: Any) -> None:
    with pytest.raises(TypeError, match="TransformedDistribution of Normal or Uniform"):
        noise(distribution, torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 2, dtype=torch.uint8)}, TypeError, "floating"),
        ({"x": [1.0]}, TypeError, "tensor"),
        ({"target": torch.zeros(3)}, ValueError, "first dimension"),
        ({"x": torch.zeros(0, 2), "target": torch.zeros(0)}, ValueError, "nothing to average"),
        ({"distribution": 0.25}, TypeError, "Normal"),
        ({"distribution": Normal(torch.zeros(2, 1), 1.0)}, ValueError, "expand"),
        ({"distribution": Normal(torch.zeros(5), 1.0)}, ValueError, r"\(5,\).*\(2,\)"),
        ({"n": 0}, ValueError, "n=0"),
        ({"n": True}, ValueError, "n=True"),
        ({"chunk_size": 0}, ValueError, "chunk_size=0"),
        ({"chunk_size": 2.5}, ValueError, r"chunk_size=2\.5"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"index": torch.zeros(3, dtype=torch.int64)}, ValueError, "one for each of 4"),
        ({"index": torch.zeros(4)}, TypeError, "integer"),
        ({"loss": 3}, TypeError, "callable"),
        ({"loss": lambda xs, ys: xs.mean()}, qg.IntegrandError, "reduction='none'"),
        ({"loss": lambda xs, ys: xs}, qg.IntegrandError, r"\(64, 2\).*shape \(64,\)"),
        ({"loss": lambda xs, ys: 1.0}, qg.IntegrandError, "float"),
        ({"loss": lambda xs, ys: xs[:, 0] > 0}, qg.IntegrandError, "real floating"),
    ],
)
def test_bad_input_is_refused_by_name(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"loss": lambda xs, ys: xs[:, 0], "x": torch.zeros(4, 2), "target": torch.zeros(4)}
    given |= {"distribution": Normal(0.0, 1.0)}
    given |= change
    with pytest.raises(error, match=message):
        qg.perturbation_loss(**given)


def test_a_hard_decision_is_warned_about() -> None:
    x = torch.zeros(3, 2, requires_grad=True)
    w = torch.ones(2, requires_grad=True)
    with pytest.warns(qg.SeveredGradientWarning, match="hard decision"):
        value = qg.perturbation_loss(lambda xs, ys: (xs[:, 0] > 0) * w[0], x, x[:, 0].detach(), Normal(0.0, 1.0))
    assert torch.autograd.grad(value, w)[0][0] == 0.5


def test_a_transport_refuses_a_distribution_larger_than_the_item() -> None:
    with pytest.raises(ValueError, match="shape"):
        Transport.of(Normal(torch.zeros(2, 3), 1.0), torch.Size([3]))
