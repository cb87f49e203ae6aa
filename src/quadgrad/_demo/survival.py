"""Survival analysis: a likelihood with one integral per fly, and a Weibull hazard fitted through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import quadgrad as qg
from quadgrad._demo.data import Lifetimes
from quadgrad._demo.outcome import Check, Cost, Progress, cost_of, stopwatch

__all__ = [
    "WeibullFit",
    "cumulative_hazard",
    "fit_weibull",
    "kaplan_meier",
    "maximise",
    "negative_log_likelihood",
    "weibull_hazard",
]

# lifelines 0.30.3, WeibullFitter().fit(T, E) on the same data: a closed form for H, fitted without quadgrad.
LIFELINES = {
    "scale": 55.7330970,
    "shape": 3.4505054,
    "log-likelihood": -672.0621873,
    "scale error": 1.3265043,
    "shape error": 0.2433232,
}


@dataclass(frozen=True)
class WeibullFit:
    """A fitted Weibull hazard.

    Attributes
    ----------
    scale, shape : float
        lambda in days, and rho.
    log_likelihood : float
        At the maximum.
    evaluations : int
        How often the likelihood and its gradient were computed.
    seconds : float
        Time of the fit.
    checks : list of Check
        The fit beside that of lifelines.
    cost : Cost
        What the 163 integrals cost.
    """

    scale: float
    shape: float
    log_likelihood: float
    evaluations: int
    seconds: float
    checks: list[Check]
    cost: Cost


def weibull_hazard(days: Tensor, scale: Tensor, shape: Tensor) -> Tensor:
    """Return the death rate per day at an age, (rho / lambda) (t / lambda)^(rho - 1)."""
    return shape / scale * (days / scale) ** (shape - 1)


def cumulative_hazard(hazard: Callable[..., Tensor], days: Tensor, args: Sequence[Tensor] = ()) -> qg.Result:
    """Integrate the hazard from birth to each age: every fly in one call."""
    return qg.quad(hazard, 0.0, days, args=tuple(args))


def negative_log_likelihood(hazard: Callable[..., Tensor], flies: Lifetimes, args: Sequence[Tensor] = ()) -> Tensor:
    """Return minus the log-likelihood of censored lifetimes, sum of H(t) - died * log h(t)."""
    survived = cumulative_hazard(hazard, flies.days, args).value
    return (survived - flies.died * hazard(flies.days, *args).log()).sum()


def maximise(
    objective: Callable[[], Tensor], parameters: Sequence[Tensor], progress: Progress, max_iter: int
) -> int:
    """Minimise ``objective`` in place with L-BFGS and return how often it was evaluated."""
    optimiser = torch.optim.LBFGS(
        list(parameters),
        max_iter=max_iter,
        history_size=30,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        optimiser.zero_grad()
        loss = objective()
        loss.backward()
        evaluations += 1
        progress(evaluations, -loss.item())
        return loss

    optimiser.step(closure)
    return evaluations


def fit_weibull(flies: Lifetimes, progress: Progress) -> WeibullFit:
    """Fit a Weibull hazard by maximum likelihood; standard errors from the Hessian through the integral.

    Parameters
    ----------
    flies : Lifetimes
        The data.
    progress : callable
        Told the number of evaluations and the value reached.

    Returns
    -------
    WeibullFit
        The parameters beside those of lifelines.
    """
    log_parameters = torch.stack([flies.days.mean().log(), flies.days.new_zeros(())]).requires_grad_()

    def objective(parameters: Tensor) -> Tensor:
        return negative_log_likelihood(weibull_hazard, flies, (parameters[0], parameters[1]))

    with stopwatch() as watch:
        evaluations = maximise(lambda: objective(log_parameters.exp()), [log_parameters], progress, max_iter=50)
    best = log_parameters.detach().exp()
    hessian: Tensor = torch.func.hessian(objective)(best)
    errors = torch.linalg.inv(hessian).diagonal().sqrt()
    log_likelihood = -objective(best).item()
    scale, shape = best
    cost = cost_of(
        "Weibull hazard",
        lambda: cumulative_hazard(weibull_hazard, flies.days, (scale, shape)),
        (flies.days / scale) ** shape,
        "formula",
    )
    ours = [*best.tolist(), *errors.tolist(), log_likelihood]
    return WeibullFit(ours[0], ours[1], log_likelihood, evaluations, watch.seconds, weibull_checks(ours), cost)


def weibull_checks(ours: Sequence[float]) -> list[Check]:
    """Put scale, shape, their errors and the log-likelihood beside those of lifelines."""
    scale, shape, scale_error, shape_error, log_likelihood = ours
    return [
        Check("lambda", "days", scale, LIFELINES["scale"], 1e-3),
        Check("  standard error", "days", scale_error, LIFELINES["scale error"], 1e-3),
        Check("rho", "1", shape, LIFELINES["shape"], 1e-4),
        Check("  standard error", "1", shape_error, LIFELINES["shape error"], 1e-4),
        Check("log-likelihood", "nat", log_likelihood, LIFELINES["log-likelihood"], 1e-4),
    ]


def kaplan_meier(days: Tensor, died: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Kaplan-Meier curve: the ages at which flies died, and the share alive after each.

    Parameters
    ----------
    days, died : Tensor
        Ages, and whether death was seen. Shape (n,).

    Returns
    -------
    ages, alive : Tensor
        Shape (k,), k the number of different ages at death.
    """
    ages = days[died > 0].unique()
    at_risk = (days >= ages[:, None]).sum(-1)
    deaths = ((days == ages[:, None]) & (died > 0)).sum(-1)
    return ages, (1 - deaths / at_risk.to(days.dtype)).cumprod(0)
