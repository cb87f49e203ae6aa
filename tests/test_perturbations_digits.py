"""Handwritten digits: what training under noise gains, and expectations that are known exactly."""

from __future__ import annotations

import torch
from scipy.stats import t as student
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import Normal

import quadgrad as qg

SIGMA = 0.25
NOISE = Normal(0.0, SIGMA)
cross_entropy = nn.CrossEntropyLoss(reduction="none")


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(data.images / 16.0).float()[order, None], torch.from_numpy(data.target)[order]


def make(kind: str) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 10)]
    if kind == "convolutional":
        layers = [
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
        ]
        layers += [nn.Flatten(), nn.Linear(256, 10)]
    model, draw = nn.Sequential(*layers), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.ndim > 1 else 1
            p.copy_(torch.randn(p.shape, generator=draw) * (0.7 / fan**0.5 if p.ndim > 1 else 0.0))
    return model


def train(model: nn.Module, x: Tensor, y: Tensor, perturb: bool, steps: int = 100) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        index = torch.randint(len(x), (64,), generator=draw)
        optimizer.zero_grad()
        if perturb:
            loss = qg.perturbation_loss(
                lambda xs, ys: cross_entropy(model(xs), ys), x[index], y[index], NOISE, seed=step, index=index
            )
        else:
            loss = cross_entropy(model(x[index]), y[index]).mean()
        loss.backward()
        optimizer.step()
    return model.eval()


def smoothed(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the certified accuracy and the mean certified radius, 0 where a decision is wrong."""
    label, _, radius = qg.certify(model, x, NOISE, n=400)
    right = label == y
    return float(right.double().mean()), float((radius * right).mean())


def test_training_under_noise_makes_smoothed_decisions_more_certain() -> None:
    """Tried: mean radius .365 -> .417 for the linear one."""
    x, y = digits()
    gains = {"linear": 0.015, "convolutional": 0.05}
    for kind, gain in gains.items():
        found = {}
        for perturb in (False, True):
            model = train(make(kind), x[:1400], y[:1400], perturb)
            found[perturb] = smoothed(model, x[1400:1600], y[1400:1600])
        print(f"\n{kind}: accuracy, radius {found[False]} -> {found[True]}")
        assert found[True][0] > 0.83
        assert found[True][0] >= found[False][0] - 0.01
        assert found[True][1] > found[False][1] + gain


def test_three_against_eight_is_what_is_known_exactly() -> None:
    """Phi(w.x / (sigma |w|)) of the linear classifier, and a probit loss, each within its error bar."""
    x, y = digits()
    x, y = x[(y == 3) | (y == 8)].flatten(1), y[(y == 3) | (y == 8)]
    signs = torch.where(y == 3, 1.0, -1.0)
    model = nn.Linear(64, 1)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for step in range(60):
        optimizer.zero_grad()
        qg.perturbation_loss(
            lambda xs, s: nn.functional.softplus(-s * model(xs)[:, 0]), x, signs, NOISE, n=4, seed=step
        ).backward()
        optimizer.step()
    with torch.no_grad():
        w, margin = model.weight[0].double(), model(x)[:, 0].double()
    width = SIGMA * w.norm()
    assert float(((margin > 0) == (signs > 0)).double().mean()) > 0.95

    # Decisions, with Clopper and Pearson's bounds.
    decide = lambda xs: (model(xs)[:, 0] < 0).long()
    label, probability, radius = qg.certify(decide, x, NOISE, alpha=0.01)
    exact = torch.special.ndtr(torch.where(label == 0, margin, -margin) / width)
    certain = label >= 0
    assert float(certain.double().mean()) > 0.9
    held = (probability <= exact)[certain].double().mean()
    assert float(held) >= 0.975
    slack = (exact - probability)[certain] - 5 * (exact * (1 - exact) / 1000).sqrt()[certain]
    assert float(slack.max()) < 0.01
    assert float((radius * w.norm() <= margin.abs() + 1e-9).double().mean()) >= 0.975

    model.requires_grad_(False)
    # The same as a sampled mean of hard decisions: all images, also those that no perturbation changes.
    shape = x.double().shape
    right = lambda z, image, s: (s * (model((image + z).float())[..., 0]) > 0).double()
    exact = torch.special.ndtr(signs.double() * margin / width)
    noise = torch.distributions.Independent(
        torch.distributions.Normal(torch.zeros(shape).double(), torch.full(shape, SIGMA).double()), 1
    )
    images = (qg.element(x.double(), 1), signs)
    for seed in range(8):
        value, error = qg.expectation(right, noise, images, method="qmc", n=1024, seed=seed)
        held = ((value - exact).abs() <= error).double().mean()
        print(f"seed {seed}: {100 * float(held):.1f} % held, widest {float(error.max()):.4f}")
        assert float(held) >= 0.975
        assert float(error.max()) < 0.05

    # A loss of each image, from the scatter of seeds; the derivative by its weight is its expectation.
    def expected(seed: int) -> Tensor:
        weights = torch.ones(len(x), requires_grad=True)
        probit = lambda xs, c: c * torch.special.ndtr(model(xs)[:, 0] / width)
        value = qg.perturbation_loss(probit, x, weights, NOISE, n=64, seed=seed)
        return torch.autograd.grad(value, weights)[0].double() * len(x)

    each = torch.stack([expected(seed) for seed in range(16)])
    bar = student.ppf(0.995, 15) * each.std(0) / 4
    error = (each.mean(0) - torch.special.ndtr(margin / (2**0.5 * width))).abs()
    assert float((error <= bar).double().mean()) >= 0.975
    assert float(bar.max()) < 0.02
