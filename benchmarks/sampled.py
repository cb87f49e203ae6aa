"""Rules and splines on samples, with their gradients, beside SciPy's, torch's trapezoids and xitorch's sums.

Peak memory of a spline through 10^5 knots is that of a fresh process, ``python -m benchmarks.sampled``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import scipy.integrate
import scipy.interpolate
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target, compare, show_time
from benchmarks.memory import MEBIBYTE, current_memory, peak_memory
from benchmarks.timing import Seconds, Task, interleave, several

__all__ = ["measure"]

COUNTS = (10**3, 10**4, 10**5, 10**6)
KNOTS = 10**5
TOGETHER = 3 * 10**5
"""Short calls are timed together until they have taken so many samples."""

Rule = Callable[[Tensor, Tensor], Tensor]


def samples(n: int) -> tuple[Tensor, Tensor]:
    """Return samples of a wave at uneven places, both differentiable."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.1).cumsum(0) * (10.0 / n)
    return torch.sin(x).requires_grad_(), x.requires_grad_()


RULES: dict[str, tuple[Rule, Callable[..., object]]] = {
    "trapezoid": (qg.trapezoid, scipy.integrate.trapezoid),
    "simpson": (qg.simpson, lambda y, x: scipy.integrate.simpson(y, x=x)),
    "cumulative_simpson": (qg.cumulative_simpson, lambda y, x: scipy.integrate.cumulative_simpson(y, x=x)),
    "spline": (
        lambda y, x: qg.spline(y, x).integral(),
        lambda y, x: scipy.interpolate.CubicSpline(x, y).integrate(x[0], x[-1]),
    ),
    "spline, akima": (
        lambda y, x: qg.spline(y, x, kind="akima").integral(),
        lambda y, x: scipy.interpolate.Akima1DInterpolator(x, y).integrate(x[0], x[-1]),
    ),
    "spline, pchip": (
        lambda y, x: qg.spline(y, x, kind="pchip").integral(),
        lambda y, x: scipy.interpolate.PchipInterpolator(x, y).integrate(x[0], x[-1]),
    ),
}


def peers(y: Tensor, x: Tensor) -> dict[str, Rule]:
    """Return those that have a gradient."""
    rules: dict[str, Rule] = {"torch.trapezoid": torch.trapezoid}
    if importlib.util.find_spec("xitorch"):
        from xitorch.integrate import SQuad

        rules["xitorch, simpson"] = lambda y, x: SQuad(x, method="simpson").integrate(y)
        if y.numel() <= 1000:  # it inverts a dense matrix
            rules["xitorch, cspline"] = lambda y, x: SQuad(x, method="cspline").integrate(y)
    return rules


def tasks(n: int) -> dict[str, Task]:
    """Return everything that is timed at n samples, value and value with gradient."""
    y, x = samples(n)
    plain = y.detach(), x.detach()
    arrays = plain[0].numpy(), plain[1].numpy()
    found: dict[str, Task] = {}
    for name, rule in ({name: ours for name, (ours, _) in RULES.items()} | peers(y, x)).items():
        found[name] = lambda rule=rule: rule(*plain)
        found[f"{name}, gradient"] = lambda rule=rule: torch.autograd.grad(rule(y, x).sum(), (y, x))
    for name, (_, rule) in RULES.items():
        found[f"SciPy {name}"] = lambda rule=rule: rule(*arrays)
    times = max(1, TOGETHER // (10 * n))
    return {name: several(task, times) for name, task in found.items()}


def measure(scale: float = 1.0) -> Findings:
    """Measure all counts, and the memory of a long spline."""
    counts = [max(10, round(n * scale)) for n in COUNTS]
    seconds = [interleave(tasks(n), repeats=5) for n in counts]
    names = list(seconds[0])
    rows = [(name, *(show_time(at[name].median) if name in at else "" for at in seconds)) for name in names]
    figures = [
        compare(f"{name} over SciPy's, {n:,} samples", at[name], at[f"SciPy {name}"])
        for n, at in zip(counts, seconds, strict=True)
        for name in RULES
        if n >= counts[-2]
    ]
    figures.append(compare("trapezoid over torch's", seconds[-1]["trapezoid"], seconds[-1]["torch.trapezoid"]))
    figures += [_linear(name, counts, seconds) for name in ("spline", "spline, gradient")]
    knots = [max(1000, round(n * scale)) for n in (KNOTS // 2, KNOTS)]
    bytes_used = [run_fresh(n) for n in knots]
    figures.append(
        Figure(f"memory of a spline and its gradient, {knots[1]:,} knots", bytes_used[1] / MEBIBYTE, unit="MiB")
    )
    figures.append(Figure("memory, twice as many knots", bytes_used[1] / bytes_used[0], target=Target(2.5)))
    return Findings(
        "Sampled data",
        "A wave at uneven places, float64. Gradients with respect to samples and places. SciPy has none.",
        [Sheet(("", *(f"{n:,}" for n in counts)), rows)],
        figures,
    )


def _linear(name: str, counts: list[int], seconds: list[dict[str, Seconds]]) -> Figure:
    """Return how much longer the longest took than the one before, for each sample."""
    share = counts[-2] / counts[-1]
    label = f"{name}: time for a sample, {counts[-1]:,} over {counts[-2]:,}"
    return compare(label, seconds[-1][name].scaled(share), seconds[-2][name])


def run_fresh(n: int) -> float:
    """Return the bytes that a spline through n knots and its gradient take, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.sampled", str(n)]
    root = Path(__file__).parent.parent
    finished = subprocess.run(command, cwd=root, env=os.environ, check=True, stdout=subprocess.PIPE, text=True)
    return float(finished.stdout)


def main() -> None:
    """Measure the number of knots given on the command line."""
    y, x = samples(100)
    torch.autograd.grad(qg.spline(y, x).integral(), (y, x))
    y, x = samples(int(sys.argv[1]))
    before = current_memory()
    torch.autograd.grad(qg.spline(y, x).integral(), (y, x))
    print(peak_memory() - before)


if __name__ == "__main__":
    main()
