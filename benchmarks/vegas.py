"""VEGAS beside the ``vegas`` package and torchquad's, in turn: a peak, a ridge, a thousand peaks; and memory.

``python -m benchmarks.vegas`` with a case as JSON measures the memory of that case in a fresh process.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target, show_time
from benchmarks.memory import MEBIBYTE, current_memory, peak_memory

__all__ = ["measure", "run_fresh"]

SAMPLES = 2**22
"""Of each call that is compared on the peak: the warm-up iterations of peers are among them."""

MANY = 1000
PEERS_PEAKS = 50
"""The peer's loop over a thousand peaks is timed on so many of them."""

RIDGE = 0.999941839


@dataclass
class Runs:
    """What several calls of one integrator gave: seconds, samples, reported standard errors and true ones."""

    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    reported: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)

    def mean_square(self) -> float:
        """Return the mean square of the reported standard errors, relative to the integral."""
        return sum(e * e for e in self.reported) / len(self.reported)

    def cost(self, best: bool = False) -> float:
        """Return error^2 times time: what it takes to reach an error, whatever the number of samples."""
        return self.mean_square() * self.time(best)

    def rate(self, best: bool = False) -> float:
        """Return samples per second."""
        return sum(self.samples) / len(self.samples) / self.time(best)

    def time(self, best: bool = False) -> float:
        """Return the median time of a call, or the best."""
        return min(self.seconds) if best else statistics.median(self.seconds)

    def row(self, label: str) -> tuple[str, ...]:
        """Return the line of a table."""
        count = len(self.seconds)
        rms = math.sqrt(sum(e * e for e in self.off) / count)
        samples = f"{sum(self.samples) / count:,.0f}"
        error = f"{math.sqrt(self.mean_square()):.1e}"
        rate = f"{self.rate() / 1e6:.2f} M"
        return label, show_time(self.time()), samples, rate, error, f"{rms:.1e}", f"{self.cost():.1e}"


Call = Callable[[int], tuple[float, float, int]]
"""Returns value, standard error and samples of a call with a seed."""


def student(replicates: int = 16) -> float:
    """Return how many standard errors our reported interval is wide."""
    from scipy.stats import t

    return float(t.ppf(0.995, replicates - 1))


def ours(f: Callable[[Tensor], Tensor], d: int, n: int, chunk_size: int | None = None) -> Call:
    """Return a call of quadgrad: n points through a map that is learnt on more."""

    def call(seed: int) -> tuple[float, float, int]:
        result = qg.vegas(f, torch.zeros(d, dtype=torch.float64), 1.0, n=n, seed=seed, chunk_size=chunk_size)
        return float(result.value), float(result.error) / student(), int(result.nfev)

    return call


def peer(f: Callable[[Any], Any], d: int, n: int, turns: tuple[int, int] = (5, 10)) -> Call:
    """Return a call of the ``vegas`` package, warmed up as its tutorial does; f takes arrays."""
    import vegas

    def call(seed: int) -> tuple[float, float, int]:
        np.random.seed(seed)  # noqa: NPY002  (its own way to fix its numbers)
        integrator, each = vegas.Integrator([[0.0, 1.0]] * d), n // sum(turns)
        integrator(vegas.lbatchintegrand(f), nitn=turns[0], neval=each)
        found = integrator(vegas.lbatchintegrand(f), nitn=turns[1], neval=each)
        return float(found.mean), float(found.sdev), each * sum(turns)

    return call


def torchquads(f: Callable[[Tensor], Tensor], d: int, n: int) -> Call:
    """Return a call of torchquad's VEGAS, which reports no error: its true one stands in the table."""
    from torchquad import VEGAS

    def call(seed: int) -> tuple[float, float, int]:
        domain = torch.tensor([[0.0, 1.0]] * d, dtype=torch.float64)
        value = VEGAS().integrate(f, dim=d, N=n, integration_domain=domain, seed=seed, backend="torch")
        return float(value), math.nan, n

    return call


def compare(calls: dict[str, Call], exact: float, seeds: int) -> dict[str, Runs]:
    """Call all in turn, once to warm up."""
    runs = {name: Runs() for name in calls}
    for seed in range(-1, seeds):
        for name, call in calls.items():
            began = time.perf_counter()
            value, error, samples = call(seed + 1)
            seconds = time.perf_counter() - began
            if seed >= 0:
                each = runs[name]
                each.seconds.append(seconds)
                each.samples.append(samples)
                each.off.append(value / exact - 1.0)
                each.reported.append(abs(each.off[-1]) if math.isnan(error) else error / exact)
    return runs


def ratio(
    label: str, ours: Runs, theirs: Runs, what: Callable[[Runs, bool], float], target: Target | None = None
) -> Figure:
    """Return a ratio from medians of times, and from the best."""
    return Figure(label, what(ours, False) / what(theirs, False), what(ours, True) / what(theirs, True), target)


HEADINGS = ("", "time", "samples", "per second", "standard\nerror", "rms off", "error^2\nx time")


def narrow(x: Tensor) -> Tensor:
    """Return the peak, of torch's tensors."""
    return torch.exp(-625.0 * ((x - 0.5) ** 2).sum(-1))


def narrow_array(x: Any) -> Any:
    """Return the peak, of NumPy's arrays."""
    return np.exp(-625.0 * ((x - 0.5) ** 2).sum(-1))


def ridge(x: Tensor) -> Tensor:
    """Return the mean of a thousand peaks along the diagonal; the squares are opened, so that memory is small."""
    c = torch.linspace(0.25, 0.75, 1000, dtype=x.dtype)
    power = (200.0 * x.sum(-1))[..., None] * c - 400.0 * c * c - 100.0 * (x**2).sum(-1)[..., None]
    return (100.0 / math.pi) ** 2 * power.exp_().mean(-1)


def measure_many(n: int, peaks: int) -> tuple[Sheet, list[Figure]]:
    """Integrate many peaks with a map each, beside a loop of the peer with as many samples for each."""
    generator = torch.Generator().manual_seed(1)
    centre = 0.2 + 0.6 * torch.rand(peaks, 4, generator=generator, dtype=torch.float64)
    s = 100.0 * 10.0 ** torch.rand(peaks, generator=generator, dtype=torch.float64)
    root = s.sqrt()[:, None]
    exact = (math.sqrt(math.pi) / (2 * root) * (torch.erf(root * (1 - centre)) + torch.erf(root * centre))).prod(-1)
    f = lambda x, s, c: torch.exp(-s * ((x - c) ** 2).sum(-1))
    call = lambda: qg.vegas(f, torch.zeros(4, dtype=torch.float64), 1.0, (s, qg.element(centre, 1)), n=n)
    qg.vegas(f, torch.zeros(4, dtype=torch.float64), 1.0, (s[:50], qg.element(centre[:50], 1)), n=n)
    began = time.perf_counter()
    result = call()
    mine, samples = time.perf_counter() - began, float(result.nfev.double().mean())
    variance = float((result.error / student() / exact).square().mean())
    rows = [
        ("quadgrad, one call", show_time(mine), f"{samples:,.0f}", f"{math.sqrt(variance):.1e}",
         f"{float((result.value / exact - 1).square().mean().sqrt()):.1e}"),
    ]  # fmt: skip
    if importlib.util.find_spec("vegas") is None:
        return Sheet(("", "time", "samples each", "standard error", "rms off"), rows), []
    some = min(PEERS_PEAKS, peaks)
    runs = Runs()
    for i in range(some):
        ci, si = centre[i].numpy(), float(s[i])
        g = lambda x, ci=ci, si=si: np.exp(-si * ((x - ci) ** 2).sum(-1))
        began = time.perf_counter()
        value, error, samples_each = peer(g, 4, int(samples), (5, 5))(i)
        runs.seconds.append(time.perf_counter() - began)
        runs.samples.append(samples_each)
        runs.reported.append(error / float(exact[i]))
        runs.off.append(value / float(exact[i]) - 1.0)
    theirs = sum(runs.seconds) / some * peaks
    rows.append(
        ("vegas, a loop", f"{show_time(theirs)} (from {some})", f"{runs.samples[0]:,}",
         f"{math.sqrt(runs.mean_square()):.1e}", f"{math.sqrt(sum(e * e for e in runs.off) / some):.1e}")
    )  # fmt: skip
    equal = theirs * runs.mean_square() / (mine * variance)
    figures = [
        Figure("loop of vegas to the same error, over ours", equal, target=Target(3.0, at_least=True)),
        Figure("loop of vegas with as many samples, over ours", theirs / mine),
    ]
    return Sheet(("", "time", "samples each", "standard error", "rms off"), rows), figures


def run_fresh(n: int, gradient: bool) -> dict[str, float]:
    """Integrate in a process of its own; return its peak memory in bytes, seconds, and how wrong it was."""
    command = [sys.executable, "-m", "benchmarks.vegas", json.dumps({"n": n, "gradient": gradient})]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=os.environ, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def run(n: int, gradient: bool) -> dict[str, float]:
    """Integrate a peak in eight dimensions; the process must be fresh."""
    s = torch.tensor(50.0, dtype=torch.float64, requires_grad=gradient)
    f = lambda x, s: torch.exp(-s * ((x - 0.5) ** 2).sum(-1))
    torch.set_num_threads(1)
    before, began = current_memory(), time.perf_counter()
    result = qg.vegas(f, torch.zeros(8, dtype=torch.float64), 1.0, (s,), n=n)
    if gradient:
        result.value.backward()
    seconds = time.perf_counter() - began
    side = math.sqrt(math.pi / 50.0) * math.erf(0.5 * math.sqrt(50.0))
    off = abs(float(result.value.detach()) / side**8 - 1.0)
    return {
        "before": before, "peak": peak_memory(), "seconds": seconds, "off": off,
        "error": float(result.error) / side**8,
    }  # fmt: skip


def measure_memory(scale: float) -> tuple[Sheet, list[Figure]]:
    """Measure a sample of 10^8 points and the backward pass of 10^7."""
    cases = [(max(10**5, round(n * scale)), gradient) for n, gradient in ((10**8, False), (10**7, True))]
    found = [run_fresh(*case) for case in cases]
    rows = [
        (f"{n:,} points, {'value and gradient' if gradient else 'value'}", f"{each['peak'] / MEBIBYTE:.0f} MiB",
         show_time(each["seconds"]), f"{each['off']:.0e}", f"{each['error']:.0e}")
        for (n, gradient), each in zip(cases, found, strict=True)
    ]  # fmt: skip
    labels = ("peak of 10^8 points, over 1 GiB", "peak backward through 10^7, over 1 GiB")
    figures = [
        Figure(label, each["peak"] / 2**30, target=Target(1.0)) for label, each in zip(labels, found, strict=True)
    ]
    return Sheet(("", "peak", "time", "off by", "error"), rows), figures


def measure(scale: float = 1.0) -> Findings:
    """Measure all of it on one thread, which is what the peer uses."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure_all(scale)
    finally:
        torch.set_num_threads(threads)


def measure_all(scale: float) -> Findings:
    """Measure all of it."""
    n, seeds = 2 ** round(math.log2(max(2**16, SAMPLES * scale))), max(3, round(5 * scale))
    peak = (math.sqrt(math.pi) / 25.0 * math.erf(12.5)) ** 5
    calls, long = {"quadgrad": ours(narrow, 5, n)}, {"quadgrad": ours(ridge, 4, max(2**14, n >> 6), 2**12)}
    notes = []
    if importlib.util.find_spec("vegas") is not None:
        calls["vegas"] = peer(narrow_array, 5, n)
        by_torch = lambda x: ridge(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        long["vegas"] = peer(by_torch, 4, max(2**14, n >> 6))
    else:
        notes.append("The package vegas is not installed: pip install vegas.")
    if importlib.util.find_spec("torchquad") is not None:
        calls["torchquad"] = torchquads(narrow, 5, n)
    runs, ridges = compare(calls, peak, seeds), compare(long, RIDGE, seeds)
    many, figures_many = measure_many(max(2**12, 2**13 if scale == 1.0 else 0), max(50, round(MANY * scale)))
    memory, figures_memory = measure_memory(scale)
    figures: list[Figure] = []
    if "vegas" in runs:
        mine, theirs = runs["quadgrad"], runs["vegas"]
        figures += [
            ratio("peak: our error^2 x time over vegas's", mine, theirs, Runs.cost, Target(0.1)),
            ratio("peak: our samples a second over vegas's", mine, theirs, Runs.rate, Target(2.0, at_least=True)),
            ratio("ridge: our error^2 x time over vegas's", ridges["quadgrad"], ridges["vegas"], Runs.cost),
        ]  # fmt: skip
    worst = max(
        abs(o) / (student() * e) for o, e in zip(ridges["quadgrad"].off, ridges["quadgrad"].reported, strict=True)
    )
    figures.append(Figure("ridge: largest error over the reported one", worst, target=Target(1.0)))
    return Findings(
        "VEGAS",
        f"exp(-625 |x - 1/2|^2) in 5 dimensions with about {n:,} samples, the ridge in 4 with 1/64 of them, "
        f"{seeds} seeds, float64, one thread, in turn; samples of training and of warm-up count. Errors are "
        "the reported standard errors, relative to the integral; torchquad has none: its true one stands here.",
        [
            Sheet(HEADINGS, [each.row(f"peak, {name}") for name, each in runs.items()]
                  + [each.row(f"ridge, {name}") for name, each in ridges.items()]),
            many, memory,
        ],
        figures + figures_many + figures_memory,
        notes,
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(run(**json.loads(sys.argv[1]))))
