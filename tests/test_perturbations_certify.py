"""Certificates beside exact ones: the smoothed linear classifier is known in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.distributions import Independent, Laplace, LogNormal, MultivariateNormal, Normal

import quadgrad as qg
from quadgrad._core.verbs.certify import lower_bound

SIGMA = 0.25


def linear(seed: int = 0) -> tuple[Any, Tensor, Tensor]:
    """Return a classifier, items and their signed distances from its boundary."""
    draw = torch.Generator().manual_seed(seed)
    w, x = torch.randn(6, generator=draw), 0.2 * torch.randn(400, 6, generator=draw)
    model = lambda xs: torch.stack((xs @ w, -(xs @ w)), dim=1)
    return model, x, (x @ w) / w.norm()


@pytest.mark.parametrize("alpha", [0.3, 0.01])
def test_bounds_hold_as_often_as_promised_and_are_tight(alpha: float) -> None:
    model, x, distance = linear()
    label, probability, radius = qg.certify(model, x, Normal(0.0, SIGMA), alpha=alpha, seed=1)
    certain = label >= 0
    towards = torch.where(label == 1, -distance, distance).double()
    exact = torch.special.ndtr(towards / SIGMA)  # of the class that was chosen
    wrong = ((probability > exact) & certain).double().mean()
    assert float(wrong) <= alpha + 3 * (alpha * (1 - alpha) / 400) ** 0.5
    assert alpha < 0.1 or float(wrong) > 0.1  # and are no wider than they must be
    assert float((radius > towards.clamp_min(0) + 1e-6).double().mean()) <= float(wrong)
    assert bool((radius > 0).eq(certain).all())
    torch.testing.assert_close(radius, torch.where(certain, SIGMA * torch.special.ndtri(probability), 0.0).double())
    assert float(distance[~certain].abs().max()) < 0.4 * SIGMA  # of .65
    assert float(certain.double().mean()) > 0.8


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    for hits, n, alpha in ((0, 10, 0.1), (7, 10, 0.01), (999, 1000, 1e-3), (1000, 1000, 1e-3), (1, 100000, 0.5)):
        exact = binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha).low
        assert lower_bound(hits, n, alpha) == pytest.approx(exact, rel=1e-9)
    assert lower_bound(1000, 1000, 1e-3) == pytest.approx(1e-3 ** (1 / 1000))


def test_points_are_independent_and_those_that_choose_are_not_those_that_count() -> None:
    seen: list[Tensor] = []
    model = lambda xs: (seen.append(xs), torch.zeros(len(xs), dtype=torch.int64))[1]
    qg.certify(model, torch.zeros(2, 5), Normal(0.0, 1.0), n0=300, n=1500)
    chunks = list(map(len, seen))
    assert chunks == [300, 1000, 500] * 2
    noise = torch.cat(seen)
    assert len(noise.flatten().unique()) > 0.99 * noise.numel()
    z = noise.double().sum(1) / 5**0.5
    assert abs(float(z.mean())) < 4 / 3600**0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / 3600) ** 0.5  # an even set of n points would sum up far closer
    lag = float((z[1:] * z[:-1]).mean())
    assert abs(lag) < 4 / 3600**0.5


def test_certificates_are_functions_of_seed_and_position() -> None:
    model, x, _ = linear()
    state = torch.get_rng_state()
    first = qg.certify(model, x[:20], Normal(0.0, SIGMA), n=100)
    assert torch.equal(torch.get_rng_state(), state)
    again = qg.certify(model, x[:5], Normal(0.0, SIGMA), n=100)
    other = qg.certify(model, x[:20], Normal(0.0, SIGMA), n=100, seed=1)
    assert all(torch.equal(a[:5], b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.probability, other.probability)


def test_an_even_choice_abstains() -> None:
    label, probability, radius = qg.certify(linear()[0], torch.zeros(3, 6), Normal(0.0, SIGMA))
    assert label.tolist() == [-1, -1, -1]
    assert radius.tolist() == [0.0] * 3
    assert bool(((probability > 0.4) & (probability < 0.5)).all())


def test_nan_scores_count_for_no_class() -> None:
    scores = lambda xs: torch.stack((xs[:, 0] * 0 + 1, xs[:, 0] * 0), dim=1)
    sometimes = lambda xs: torch.where(xs[:, :1] > 0, scores(xs), torch.nan)
    assert qg.certify(sometimes, torch.ones(1, 2), Normal(0.0, 1.0)).probability[0] < 0.85  # exact: .841
    label, probability, radius = qg.certify(lambda xs: scores(xs) * torch.nan, torch.ones(1, 2), Normal(0.0, 1.0))
    assert (int(label), float(probability), float(radius)) == (-1, 0.0, 0.0)


def test_normal_noise_of_other_shapes() -> None:
    model, x, distance = linear()
    covariance = torch.diag(torch.tensor([0.1, 0.2, 0.2, 0.3, 0.4, 0.5])) ** 2
    for noise in (
        MultivariateNormal(torch.zeros(6), covariance),
        Independent(Normal(torch.zeros(6), covariance.diagonal().sqrt()), 1),
    ):
        label, probability, radius = qg.certify(model, x[:40], noise)
        certain = label >= 0
        assert bool(certain.any())
        smallest = 0.1 * torch.special.ndtri(probability)
        torch.testing.assert_close(radius[certain], smallest[certain])
        assert bool((radius <= distance[:40].abs() + 1e-6).all())


def test_labels_images_and_empty_batches() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=draw)
    certain = qg.certify(lambda xs: (xs.mean((1, 2, 3)) > 0).long(), x, Normal(0.0, SIGMA), n=50, n0=5)
    assert certain.label.tolist() == [1, 1, 1]
    assert [t.shape for t in qg.certify(lambda xs: xs, x[:0], Normal(0.0, 1.0))] == [(0,)] * 3


@pytest.mark.parametrize("item", [(6,), (1, 8, 8)])
def test_an_item_without_a_batch_is_told_apart(item: tuple[int, ...]) -> None:
    layers = [nn.Linear(6, 2)] if item == (6,) else [nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)]
    model, x = nn.Sequential(*layers).eval(), torch.zeros(item)
    with pytest.raises(RuntimeError) as caught:
        qg.certify(model, x, Normal(0.0, SIGMA), n=10, n0=5)
    assert "For one item alone pass x[None]" in "".join(caught.value.__notes__)
    assert qg.certify(model, x[None], Normal(0.0, SIGMA), n=10, n0=5).label.shape == (1,)
    with pytest.raises(qg.IntegrandError, match=r"items of shape \(\).*pass x\[None\]"):
        qg.certify(lambda xs: xs, x.flatten(), Normal(0.0, SIGMA))


def test_bad_input_is_refused_by_name() -> None:
    model, x, _ = linear()
    noise = Normal(0.0, SIGMA)
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        qg.certify(nn.Sequential(nn.Linear(6, 2)), x, noise)
    for distribution in (Laplace(0.0, 1.0), LogNormal(0.0, 1.0)):
        with pytest.raises(TypeError, match="normal noise"):
            qg.certify(model, x, distribution)
    with pytest.raises(TypeError, match="floating"):
        qg.certify(model, x.long(), noise)
    with pytest.raises(ValueError, match="alpha"):
        qg.certify(model, x, noise, alpha=0.0)
    for name in ("n0", "n"):
        with pytest.raises(ValueError, match=name):
            qg.certify(model, x, noise, **{name: 0})
    with pytest.raises(ValueError, match="shape"):
        qg.certify(model, x, Normal(torch.zeros(5), 1.0))
        with pytest.raises(ValueError, match=f"{name}=2.5 must be a whole number, at least 1"):
            qg.certify(model, x, noise, **{name: 2.5})
    few = qg.certify(model, x, noise, n0=1e1, n=1e2)  # type: ignore[arg-type]
    assert torch.equal(few.probability, qg.certify(model, x, noise, n0=10, n=100).probability)
    for wrong in (lambda xs: xs[:, :1], lambda xs: xs[:, 0], lambda xs: 3, lambda xs: xs[:2]):
        with pytest.raises(qg.IntegrandError, match="two or more classes"):
            qg.certify(wrong, x, noise)
