"""How often intervals of sampled integrals hold the truth.

On Genz' families, for fixed samples and stopped ones; of expectations that tails decide; of hard decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target
from benchmarks.problems.genz import FAMILIES, Genz, draw
from benchmarks.problems.moments import DECISIONS, Moment, decide, moments

__all__ = ["measure"]

DIMENSIONS = (2, 4, 8)
SEEDS = 500
EACH = 4
"""Integrals of a family in each dimension."""
N = 2**12
RTOLS = (1e-2, 1e-3)
SIZES = (2**9, 2**12)
"""Draws for an expectation, each with as many seeds."""


def sample(problem: Genz, seed: int, **options: object) -> qg.Result:
    """Sample a batch of one family."""
    d = problem.c.shape[-1]
    args = (qg.element(problem.c, 1), qg.element(problem.u, 1))
    return qg.qmc(problem.f, [0.0] * d, 1.0, args, seed=seed, on_failure="ignore", **options)  # type: ignore


def fixed(family: str, d: int, seeds: int) -> tuple[float, float]:
    """Return the share of intervals that hold the truth, and the median half-width over the rms error."""
    problem = draw(family, d, EACH, seed=d)
    results = [sample(problem, seed, n=N) for seed in range(seeds)]
    error = torch.stack([result.value - problem.exact for result in results]).abs()
    width = torch.stack([result.error for result in results])
    ratio = width.median(0).values / error.square().mean(0).sqrt()
    return float((error <= width).double().mean()), float(ratio.max())


def expected(moment: Moment, seeds: int) -> tuple[float, float, float]:
    """Return of an expectation the share of intervals, and for each size half-width over rms error."""
    inside, ratios = 0, [0.0, 0.0]
    for i, n in enumerate(SIZES):
        results = [qg.expectation(moment.f, moment.distribution, method="qmc", n=n, seed=s) for s in range(seeds)]
        error = torch.stack([r.value - moment.exact for r in results]).abs()
        width = torch.stack([r.error for r in results])
        inside += int((error <= width).sum())
        ratios[i] = float(width.median() / error.square().mean().sqrt())
    return inside / (len(SIZES) * seeds), ratios[0], ratios[1]


def decided(d: int, seeds: int) -> tuple[float, float]:
    """Return of decisions the share of intervals, of all probabilities and of the worst one."""
    normal, f, ends = decide(d)
    results = [qg.expectation(f, normal, (ends,), method="qmc", n=2**10, seed=s) for s in range(seeds)]
    inside = torch.stack([(r.value - DECISIONS).abs() <= r.error for r in results]).double().mean(0)
    return float(inside.mean()), float(inside.min())


@dataclass
class Stopped:
    """How samples with a tolerance ended."""

    integrals: int = 0
    converged: int = 0
    wrong: int = 0
    reachable: int = 0
    reached: int = 0

    def add(self, family: str, d: int, seeds: int, rtol: float) -> None:
        """Sample a family to a tolerance, new integrals for each seed."""
        for seed in range(seeds):
            problem = draw(family, d, EACH, seed=1000 + seed)
            result = sample(problem, seed, n=2**16, rtol=rtol)
            whole = sample(problem, seed, n=2**16)
            miss = (result.value - problem.exact).abs()
            met = whole.error <= rtol * whole.value.abs()  # what a fixed sample of the same size would have reached
            self.integrals += EACH
            self.converged += int(result.converged.sum())
            self.wrong += int((result.converged & (miss > rtol * problem.exact.abs())).sum())
            self.reachable += int(met.sum())
            self.reached += int((met & result.converged).sum())


def measure(scale: float = 1.0) -> Findings:
    """Sample all families."""
    seeds = max(10, round(SEEDS * scale))
    rows: list[list[str]] = []
    shares: list[float] = []
    ratios: list[float] = []
    for family in FAMILIES:
        for d in DIMENSIONS:
            share, ratio = fixed(family, d, seeds)
            shares.append(share)
            ratios.append(ratio)
            rows.append([f"{family}, d = {d}", f"{100 * share:.1f} %", f"{ratio:.2f}"])
    stopped = Stopped()
    for family in FAMILIES:
        for d in DIMENSIONS:
            for rtol in RTOLS:
                stopped.add(family, d, max(1, seeds // 20), rtol)
    hard = 0
    for seed in range(max(10, seeds // 10)):
        problem = draw("corner peak", 8, EACH, seed=seed, difficulty=37.5)
        result = sample(problem, seed, n=2**16, rtol=1e-2)
        hard += int((result.converged & ((result.value / problem.exact - 1).abs() > 1e-2)).sum())
    tails = [(moment.name, *expected(moment, seeds)) for moment in moments()]
    decisions = [(d, *decided(d, max(10, seeds // 2))) for d in (1, 2, 8, 64)]
    return Findings(
        title="Coverage of sampled integrals",
        setting=(
            f"Genz' families, {EACH} integrals of each in each dimension; fixed: {seeds} seeds, n = {N:,} in 16 "
            f"replicates, intervals at 99 %; stopping: n at most 65,536, rtol {RTOLS[0]:g} and {RTOLS[1]:g}, "
            f"{stopped.integrals:,} integrals; expectations: as many seeds with {SIZES[0]} and with {SIZES[1]:,} "
            f"draws; decisions: half spaces of normal numbers, probabilities to 1e-8 from 0 and 1, 1,024 draws"
        ),
        sheets=[
            Sheet(["fixed sample", "intervals with the truth", "median half-width / rms error"], rows),
            Sheet(
                ["expectation", "intervals with the truth", *(f"half-width / rms error, n = {n:,}" for n in SIZES)],
                [[name, f"{100 * share:.1f} %", f"{a:.2f}", f"{b:.2f}"] for name, share, a, b in tails],
            ),
            Sheet(
                ["decision", "intervals with the truth", "of the worst probability"],
                [[f"d = {d}", f"{100 * a:.2f} %", f"{100 * b:.1f} %"] for d, a, b in decisions],
            ),
        ],
        figures=[
            Figure(
                "least share of intervals with the truth", 100 * min(shares), target=Target(97.5, True), unit="%"
            ),
            Figure("largest half-width over rms error", max(ratios), target=Target(3.5)),
            Figure(
                "wrong, of 2,000 that converged", 2000 * stopped.wrong / max(1, stopped.converged),
                target=Target(1.0), unit="",
            ),
            Figure(
                "converged, of what a fixed sample of 65,536 reaches", 100 * stopped.reached / stopped.reachable,
                target=Target(90.0, True), unit="%",
            ),
            Figure("hard corner peaks (37.5) converged and wrong", hard, target=Target(0.0), unit=""),
            Figure(
                "expectations: least share of intervals with the truth", 100 * min(row[1] for row in tails),
                target=Target(97.5, True), unit="%",
            ),
            Figure(
                "decisions: least share of intervals with the truth", 100 * min(row[1] for row in decisions),
                target=Target(97.5, True), unit="%",
            ),
        ],
        notes=[f"With stopping {stopped.converged:,} of {stopped.integrals:,} converged, {stopped.wrong} wrong."],
    )  # fmt: skip
