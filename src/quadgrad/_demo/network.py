"""A neural-network hazard: no formula for its integral exists, and the likelihood is the same one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import skip_init

from quadgrad._demo.data import Lifetimes
from quadgrad._demo.outcome import Check, Cost, Progress, cost_of, fixed_sum, stopwatch
from quadgrad._demo.survival import cumulative_hazard, kaplan_meier, maximise, negative_log_likelihood

__all__ = ["GROUPS", "HazardNetwork", "NetworkFit", "fit_network"]

GROUPS = ("control", "miR-137")
WEIGHT_PRECISION = 0.3
"""Of the Gaussian prior on the weights, which keeps the network from learning single flies by heart.

With a third of it some seeds end in other optima; with this one all 24 seeds tried found the same.
"""


class HazardNetwork(nn.Module):
    """A death rate per day from age and group: two inputs, eight smooth hidden units, one positive output.

    Parameters
    ----------
    lifespan : float
        A typical age in days; ages are divided by it.
    generator : torch.Generator
        Draws the first weights, so that the global random state is left alone.
    """

    def __init__(self, lifespan: float, generator: torch.Generator) -> None:
        super().__init__()
        self.lifespan = lifespan
        first, second = (skip_init(nn.Linear, *size, dtype=torch.float64) for size in ((2, 8), (8, 1)))
        for tensor in (*first.parameters(), *second.parameters()):
            nn.init.normal_(tensor, std=0.5, generator=generator)
        self.layers = nn.Sequential(first, nn.Tanh(), second)

    def forward(self, days: Tensor, group: Tensor) -> Tensor:
        """Return the hazard; any two shapes that broadcast."""
        inputs = torch.stack(torch.broadcast_tensors(days / self.lifespan, group), dim=-1)
        return softplus(self.layers(inputs).squeeze(-1)) / self.lifespan


@dataclass(frozen=True)
class NetworkFit:
    """A fitted network hazard.

    Attributes
    ----------
    log_likelihood : float
        At the best weights, without the prior.
    evaluations : int
        How often the likelihood and its gradient were computed.
    seconds : float
        Time of the fit.
    days : Tensor
        Ages of the curves. Shape (k,).
    survival, lower, upper : Tensor
        Share alive and its 95 % band, for each of the two groups. Shape (2, k).
    checks : list of Check
        The integrals and their gradient beside a fixed sum, medians beside Kaplan-Meier.
    median_errors : list of float
        Standard errors of the two medians in days.
    cost : Cost
        What the 163 integrals cost.
    """

    log_likelihood: float
    evaluations: int
    seconds: float
    days: Tensor
    survival: Tensor
    lower: Tensor
    upper: Tensor
    checks: list[Check]
    median_errors: list[float]
    cost: Cost


def fit_network(flies: Lifetimes, seed: int, progress: Progress) -> NetworkFit:
    """Fit the network by penalised likelihood; error bands come from the Hessian through the integrals.

    Parameters
    ----------
    flies : Lifetimes
        The data.
    seed : int
        Of the first weights.
    progress : callable
        Told the number of evaluations and the value reached.

    Returns
    -------
    NetworkFit
        Curves, bands, and checks.
    """
    network = HazardNetwork(flies.days.mean().item(), torch.Generator().manual_seed(seed))
    weights = list(network.parameters())

    def objective() -> Tensor:
        prior = 0.5 * WEIGHT_PRECISION * sum((w.square().sum() for w in weights), flies.days.new_zeros(()))
        return negative_log_likelihood(network, flies, (flies.group,)) + prior

    with stopwatch() as watch:
        evaluations = maximise(objective, weights, progress, max_iter=300)
    medians = median_ages(network)
    days = torch.linspace(1.0, 80.0, 80, dtype=torch.float64)
    band_days = torch.cat([days.expand(2, -1), medians[:, None]], dim=-1)
    hazard, spread = log_hazard_band(network, flies, band_days)
    median_errors = spread[:, -1] * math.log(2) / network(medians, medians.new_tensor([0.0, 1.0])).detach()
    survival, factor = (-hazard[:, :-1]).exp(), (1.96 * spread[:, :-1]).exp()
    likelihood_check, gradient_check, cost = compare_with_sum(network, flies)
    return NetworkFit(
        log_likelihood=likelihood_check.ours,
        evaluations=evaluations,
        seconds=watch.seconds,
        days=days,
        survival=survival,
        lower=survival**factor,
        upper=survival ** (1 / factor),
        checks=[likelihood_check, gradient_check, *median_checks(medians, flies)],
        median_errors=median_errors.tolist(),
        cost=cost,
    )


def log_hazard_band(network: HazardNetwork, flies: Lifetimes, days: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cumulative hazard at ages of the two groups, and the standard error of its logarithm.

    The covariance of the weights is the inverse Hessian of the penalised likelihood (Laplace's
    approximation); it is carried to the curves by their Jacobian. Both pass through the integrals.

    Parameters
    ----------
    network : HazardNetwork
        At its best weights.
    flies : Lifetimes
        The data.
    days : Tensor
        Ages, one row for each group. Shape (2, k).

    Returns
    -------
    hazard, error : Tensor
        Shape (2, k). The error is NaN where the weights are not at a minimum.
    """
    names = [name for name, _ in network.named_parameters()]
    tensors = [tensor.detach() for tensor in network.parameters()]
    sizes = [tensor.numel() for tensor in tensors]
    best = torch.cat([tensor.flatten() for tensor in tensors])
    group = torch.tensor([[0.0], [1.0]], dtype=days.dtype)

    def hazard_of(theta: Tensor) -> Callable[..., Tensor]:
        pieces = (piece.view(t.shape) for piece, t in zip(theta.split(sizes), tensors, strict=True))
        weights = dict(zip(names, pieces, strict=True))
        return lambda x, g: torch.func.functional_call(network, weights, (x, g))

    def objective(theta: Tensor) -> Tensor:
        prior = 0.5 * WEIGHT_PRECISION * theta.square().sum()
        return negative_log_likelihood(hazard_of(theta), flies, (flies.group,)) + prior

    def curve(theta: Tensor) -> Tensor:
        return cumulative_hazard(hazard_of(theta), days, (group,)).value.log()

    hessian: Tensor = torch.func.hessian(objective)(best)
    jacobian: Tensor = torch.func.jacfwd(curve)(best)
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if failed:  # not a minimum: there is no covariance
        return curve(best).exp(), torch.full_like(days, float("nan"))
    whitened = torch.linalg.solve_triangular(factor, jacobian.reshape(-1, len(best)).T, upper=False)
    return curve(best).exp(), whitened.square().sum(0).sqrt().view_as(days)


def median_ages(network: HazardNetwork) -> Tensor:
    """Return the age that half of each group reaches: Newton's method on H(t) = log 2, whose slope is h."""
    group = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ages = torch.full_like(group, network.lifespan)
    with torch.no_grad():
        for _ in range(12):
            excess = cumulative_hazard(network, ages, (group,)).value - math.log(2)
            ages = (ages - excess / network(ages, group)).clamp(1.0, 200.0)
    return ages


def median_checks(medians: Tensor, flies: Lifetimes) -> list[Check]:
    """Put the network's median ages beside those read off the Kaplan-Meier curves; they need not agree."""
    checks: list[Check] = []
    for index, name in enumerate(GROUPS):
        member = flies.group == index
        ages, alive = kaplan_meier(flies.days[member], flies.died[member])
        observed = ages[alive <= 0.5][0].item()
        checks.append(Check(f"median age, {name}", "days", medians[index].item(), observed, None, digits=2))
    return checks


def compare_with_sum(network: HazardNetwork, flies: Lifetimes) -> tuple[Check, Check, Cost]:
    """Compare integrals, likelihood and gradient with those of a fixed sum."""

    def hazard_sum() -> Tensor:
        return fixed_sum(lambda x: network(x, flies.group[:, None]), flies.days)

    by_sum = (hazard_sum() - flies.died * network(flies.days, flies.group).log()).sum()
    by_quad = negative_log_likelihood(network, flies, (flies.group,))
    parameters = list(network.parameters())
    theirs, ours = (
        -torch.cat([piece.flatten() for piece in torch.autograd.grad(loss, parameters)])
        for loss in (by_sum, by_quad)
    )
    # Tolerances: what 163 integrals of size 1 at rtol 1.5e-8 may add up to; the derivatives are larger.
    worst = (ours - theirs).abs().argmax()
    cost = cost_of(
        "network hazard",
        lambda: cumulative_hazard(network, flies.days, (flies.group,)),
        hazard_sum().detach(),
        "fixed sum",
    )
    likelihood = Check("log-likelihood", "nat", -by_quad.item(), -by_sum.item(), 5e-6)
    slope = Check("worst derivative", "nat", ours[worst].item(), theirs[worst].item(), 1e-5)
    return likelihood, slope, cost
