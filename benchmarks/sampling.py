"""Sampling to a tolerance beside QMCPy and SciPy's ``qmc_quad``: Keister's integral, and an Asian option.

B. D. Keister, *Multidimensional quadrature algorithms*, *Computers in Physics* 10, 1996. The option is a call on
the geometric mean of 16 prices, whose price is a closed form; its paths are constructed by principal components.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from scipy.stats import qmc
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target, compare, show_time
from benchmarks.timing import Seconds, interleave

__all__ = ["measure"]

KEISTER = -30.609075003558562675
"""In eight dimensions: pi^4 times the mean of cos(|x| / sqrt 2) over standard normal x."""

ASIAN = 5.841672354667324
"""S0 = K = 100, r = 0.05, sigma = 0.2, T = 1, 16 equal steps."""

Answer = tuple[float, int]
"""A value, and how many points it took."""


def keister(x: Tensor) -> Tensor:
    return math.pi**4 * torch.cos(torch.linalg.vector_norm(x, dim=-1) / math.sqrt(2))


def our_keister(atol: float, seed: int) -> Answer:
    cloud = Independent(Normal(torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)), 1)
    result = qg.expectation(keister, cloud, method="qmc", rtol=0.0, atol=atol, seed=seed, n=2**24)
    return float(result.value), int(result.nfev)


TIMES = torch.arange(1, 17, dtype=torch.float64) / 16


def payoff(w: Tensor) -> Tensor:
    """The discounted payoff of a path of Brownian motion ``(..., 16)``."""
    mean = 100.0 * torch.exp((0.03 * TIMES + 0.2 * w).mean(-1))
    return math.exp(-0.05) * (mean - 100.0).clamp_min(0.0)


def our_asian(atol: float, seed: int) -> Answer:
    paths = MultivariateNormal(torch.zeros(16, dtype=torch.float64), torch.minimum(TIMES[:, None], TIMES))
    result = qg.expectation(
        payoff, paths, method="qmc", construction="pca", rtol=0.0, atol=atol, seed=seed, n=2**24
    )
    return float(result.value), int(result.nfev)


def scipy_until(f: Callable[[Any], Any], d: int, atol: float, seed: int) -> Answer:
    """Double the points of ``qmc_quad`` until its own error, at 99 %, meets the tolerance."""
    n = 2**10
    while True:
        points = qmc.Sobol(d, rng=np.random.default_rng(seed))
        answer = qmc_quad(f, np.zeros(d), np.ones(d), n_estimates=16, n_points=n, qrng=points)
        if scipy.stats.t.ppf(0.995, 15) * answer.standard_error <= atol or 16 * n >= 2**24:
            return float(answer.integral), 16 * n
        n *= 2


qmc_quad = scipy.integrate.qmc_quad


def scipy_keister(atol: float, seed: int) -> Answer:
    def f(u: Any) -> Any:
        x = scipy.special.ndtri(u)
        return math.pi**4 * np.cos(np.linalg.norm(x, axis=0) / math.sqrt(2))

    return scipy_until(f, 8, atol, seed)


def scipy_asian(atol: float, seed: int) -> Answer:
    w, v = np.linalg.eigh(torch.minimum(TIMES[:, None], TIMES).numpy())
    root, times = (v * np.sqrt(w))[:, ::-1], TIMES.numpy()[:, None]

    def f(u: Any) -> Any:
        mean = 100.0 * np.exp((0.03 * times + 0.2 * root @ scipy.special.ndtri(u)).mean(0))
        return math.exp(-0.05) * np.maximum(mean - 100.0, 0.0)

    return scipy_until(f, 16, atol, seed)


def qmcpy_keister(atol: float, seed: int) -> Answer:
    import qmcpy

    value, data = qmcpy.CubQMCNetG(qmcpy.Keister(qmcpy.DigitalNetB2(8, seed=seed)), abs_tol=atol).integrate()
    return float(np.squeeze(value)), int(data.n_total)


def qmcpy_asian(atol: float, seed: int) -> Answer:
    import qmcpy

    option = qmcpy.FinancialOption(
        qmcpy.DigitalNetB2(16, seed=seed), option="ASIAN", call_put="CALL", asian_mean="GEOMETRIC",
        asian_mean_quadrature_rule="RIGHT", start_price=100, strike_price=100, interest_rate=0.05, volatility=0.2,
        t_final=1, decomp_type="PCA",
    )  # fmt: skip
    value, data = qmcpy.CubQMCNetG(option, abs_tol=atol).integrate()
    return float(np.squeeze(value)), int(data.n_total)


JOBS: dict[str, tuple[float, tuple[float, ...], dict[str, Callable[[float, int], Answer]]]] = {
    "Keister, 8-D": (
        KEISTER,
        (1e-2, 1e-3),
        {"quadgrad": our_keister, "QMCPy": qmcpy_keister, "SciPy": scipy_keister},
    ),
    "Asian call, 16-D": (ASIAN, (1e-4,), {"quadgrad": our_asian, "QMCPy": qmcpy_asian, "SciPy": scipy_asian}),
}

BOUNDS = {("Keister, 8-D", 1e-2): 2.0, ("Keister, 8-D", 1e-3): 1.0}


def measure(scale: float = 1.0) -> Findings:
    """Time all of it in turn, each turn with another seed."""
    installed = importlib.util.find_spec("qmcpy") is not None
    rows: list[list[str]] = []
    figures: list[Figure] = []
    repeats = max(3, round(7 * scale))
    for job, (exact, tolerances, ways) in JOBS.items():
        for atol in tolerances:
            answers: dict[str, list[Answer]] = {name: [] for name in ways if installed or name != "QMCPy"}

            def task(name: str, atol: float = atol, ways: Any = ways, answers: Any = answers) -> Callable[[], None]:
                def run() -> None:
                    answers[name].append(ways[name](atol, 1 + len(answers[name])))

                return run

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # QMCPy's own
                seconds = interleave({name: task(name) for name in answers}, repeats)
            for name, found in answers.items():
                worst = max(abs(value - exact) for value, _ in found)
                points = sorted(count for _, count in found)
                rows.append([
                    f"{job}, {atol:g}: {name}", show_time(seconds[name].median), f"{points[len(points) // 2]:,}",
                    f"{worst:.1e}",
                ])  # fmt: skip
            figures += _ratios(job, atol, seconds)
    return Findings(
        "Sampling to an absolute tolerance",
        "The Asian option's paths by principal components, everywhere. quadgrad: 16 scrambles, two rounds in a "
        "row, intervals at 99 %; QMCPy: its CubQMCNetG; SciPy: qmc_quad with 16 scrambles, doubled until its own "
        "error at 99 % meets the tolerance once" + ("" if installed else ". QMCPy is not installed"),
        [Sheet(["", "median time", "points", "largest error"], rows)],
        figures,
    )


def _ratios(job: str, atol: float, seconds: dict[str, Seconds]) -> list[Figure]:
    bound = BOUNDS.get((job, atol))
    return [
        compare(
            f"{job}, {atol:g}: over {name}", seconds["quadgrad"], seconds[name],
            Target(bound) if bound is not None and name == "QMCPy" else None,
        )
        for name in seconds
        if name != "quadgrad"
    ]  # fmt: skip
