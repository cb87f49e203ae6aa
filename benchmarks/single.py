"""One single integral of a torch integrand, beside SciPy calling it a number at a time, and SciPy on floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.integrate import quad as scipy_quad
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Measured, Target, compare, show_seconds
from benchmarks.recording import Recorder
from benchmarks.timing import Seconds, interleave

__all__ = ["measure"]

RTOL = 1e-8
SCIPY_LIMIT = 200
CALLS = 200
"""Calls timed together, as in a program that integrates in a loop: after a pause the first find the caches cold."""

PAUSE = 0.01
"""Seconds before each of the single calls that are timed cold."""


@dataclass(frozen=True)
class Problem:
    """A single integral from 0 with float limits; float64 comes from its arguments."""

    label: str
    f: Callable[..., Tensor]
    scalar: Callable[..., float]
    args: tuple[Tensor, ...]
    upper: float
    exact: float

    def integrate(self, f: Callable[..., Tensor] | None = None) -> qg.Result:
        """Integrate with quadgrad."""
        return qg.quad(f or self.f, 0.0, self.upper, args=self.args, rtol=RTOL, atol=0.0)

    def integrate_math(self) -> tuple[float, float, int]:
        """Integrate the same written with `math` by SciPy: numbers, no tensors."""
        return self.integrate_scipy(self.scalar, tuple(arg.item() for arg in self.args))

    def integrate_scipy(
        self, g: Callable[..., float] | None = None, args: tuple[float, ...] = ()
    ) -> tuple[float, float, int]:
        """Integrate with SciPy; return value, reported error and number of nodes."""
        g = g or (lambda x: self.f(torch.tensor(x, dtype=torch.float64), *self.args).item())
        value, error, info = scipy_quad(
            g, 0.0, self.upper, args, epsrel=RTOL, epsabs=0.0, limit=SCIPY_LIMIT, full_output=1
        )[:3]
        return value, error, info["neval"]

    def judge(self, value: float, error: float) -> tuple[str, str]:
        """Return the relative error as it is and as it was reported."""
        return f"{abs(value / self.exact - 1):.1e}", f"{error / abs(self.exact):.1e}"


def damped_wave(x: Tensor, k: Tensor) -> Tensor:
    """Return the smooth integrand."""
    return torch.exp(-x) * torch.cos(k * x) + 1 / (1 + x**2)


def damped_wave_of_numbers(x: float, k: float) -> float:
    """Return the smooth integrand without tensors."""
    return math.exp(-x) * math.cos(k * x) + 1 / (1 + x * x)


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    """Return the peaked integrand."""
    return e / ((x - c) ** 2 + e**2)


def peak_of_numbers(x: float, c: float, e: float) -> float:
    """Return the peaked integrand without tensors; products, which are quicker for numbers."""
    return e / ((x - c) * (x - c) + e * e)


def smooth_problem(k: float = 3.0, upper: float = 2.0) -> Problem:
    """Return the integral of a damped wave and its closed form."""
    wave = 1 + math.exp(-upper) * (k * math.sin(k * upper) - math.cos(k * upper))
    exact = wave / (1 + k * k) + math.atan(upper)
    return Problem(
        "smooth", damped_wave, damped_wave_of_numbers, (torch.tensor(k, dtype=torch.float64),), upper, exact
    )


def peaked_problem(label: str, e: float, c: float = 0.3) -> Problem:
    """Return the integral of a peak and its closed form."""
    args = (torch.tensor(c, dtype=torch.float64), torch.tensor(e, dtype=torch.float64))
    return Problem(label, peak, peak_of_numbers, args, 1.0, math.atan((1 - c) / e) + math.atan(c / e))


def in_a_row(call: Callable[[], object]) -> Callable[[], None]:
    """Return a task of several calls."""

    def task() -> None:
        for _ in range(CALLS):
            call()

    return task


def compare_single(problem: Problem, runs: int) -> tuple[list[Measured], list[Figure]]:
    """Time quad and SciPy on one integral, each in runs of many calls, then one call at a time."""
    tasks = {
        "ours": in_a_row(problem.integrate),
        "scipy": in_a_row(problem.integrate_scipy),
        "math": in_a_row(problem.integrate_math),
    }
    seconds = {name: each.scaled(1 / CALLS) for name, each in interleave(tasks, runs, warm_up=2).items()}
    result = problem.integrate()
    value, error, nodes = problem.integrate_scipy()
    plain = problem.integrate_math()
    ours = problem.judge(result.value.item(), result.error.item())
    measured = [
        Measured(f"{problem.label}, quad", seconds["ours"], 1, int(result.nfev), ours),
        Measured(f"{problem.label}, SciPy", seconds["scipy"], 1, nodes, problem.judge(value, error)),
        Measured(f"{problem.label}, SciPy, math", seconds["math"], 1, plain[2], problem.judge(*plain[:2])),
    ]
    cold = interleave({"ours": problem.integrate, "scipy": problem.integrate_scipy}, 10 * runs, 2, PAUSE)
    label = f"{problem.label}: faster than SciPy with .item()"
    return measured, [
        compare(label, seconds["scipy"], seconds["ours"], Target(3, at_least=True)),
        compare("the same, single calls after a pause", cold["scipy"], cold["ours"]),
        compare(f"{problem.label}: time over SciPy's with math", seconds["ours"], seconds["math"]),
    ]


def cost_of_rounds(problem: Problem, easy: Problem, repeats: int) -> tuple[list[Measured], list[Figure]]:
    """Time a hard integral and its integrand alone; a round is one call of the integrand."""
    hard_calls, easy_calls = Recorder(problem.f), Recorder(easy.f)
    result = problem.integrate(hard_calls)
    easy.integrate(easy_calls)
    hard_calls.drop_probe()
    easy_calls.drop_probe()
    seconds = interleave(
        {
            "hard": problem.integrate,
            "hard bare": hard_calls.evaluate,
            "easy": easy.integrate,
            "easy bare": easy_calls.evaluate,
        },
        repeats,
        warm_up=5,
    )
    rounds, few = len(hard_calls.blocks), len(easy_calls.blocks)

    def per_round(of: Callable[[Seconds], float]) -> float:
        return 1e3 * (of(seconds["hard"]) - of(seconds["hard bare"])) / rounds

    def per_further_round(of: Callable[[Seconds], float]) -> float:
        start = of(seconds["easy"]) - of(seconds["easy bare"])
        return 1e3 * (of(seconds["hard"]) - of(seconds["hard bare"]) - start) / (rounds - few)

    accuracy = problem.judge(result.value.item(), result.error.item())
    measured = [
        Measured(f"{problem.label}, quad", seconds["hard"], 1, hard_calls.nodes, accuracy),
        Measured(f"{problem.label}, bare", seconds["hard bare"], 1, hard_calls.nodes),
    ]
    median, best = lambda s: s.median, lambda s: s.best
    return measured, [
        Figure(f"overhead per round, {rounds} rounds", per_round(median), per_round(best), Target(0.3), "ms"),
        Figure(
            f"the same without what {few} round{'s' if few > 1 else ''} cost{'' if few > 1 else 's'}",
            per_further_round(median), per_further_round(best), unit="ms",
        ),
    ]  # fmt: skip


def measure(scale: float = 1.0) -> Findings:
    """Time one smooth and one peaked integral, and what a round of refinement costs."""
    repeats, runs = max(5, round(100 * scale)), max(3, round(9 * scale))
    smooth, peaked, hard = smooth_problem(), peaked_problem("peaked", 1e-3), peaked_problem("needle", 1e-7)
    with torch.no_grad():
        first, faster_smooth = compare_single(smooth, runs)
        second, faster_peaked = compare_single(peaked, runs)
        third, overheads = cost_of_rounds(hard, smooth, repeats)
    return Findings(
        "One single integral",
        f"Float limits, rtol {RTOL:g}, atol 0, float64. Smooth: exp(-x) cos(3 x) + 1 / (1 + x^2) over [0, 2]; "
        "peaked: e / ((x - 0.3)^2 + e^2) over [0, 1] with e = 1e-3; needle: the same with e = 1e-7. SciPy calls "
        f"the same torch integrand, a number at a time with .item(), or one of floats written with Python's math; "
        f"in runs of {CALLS} calls, and then single calls {1e3 * PAUSE:g} ms apart. "
        "A round is one call of the integrand after the "
        "probe; its overhead is what quad takes longer than the integrand alone. Errors are relative.",
        [show_seconds(first + second + third, ("true\nerror", "reported\nerror"))],
        [*faster_smooth, *faster_peaked, *overheads],
        [
            "A single integral of a function that math can write, and that nobody differentiates, is SciPy's: it "
            "is faster than we are. Batches are what tensors are for: the page on peaks."
        ],
    )
