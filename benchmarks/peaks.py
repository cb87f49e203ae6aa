"""20,000 peaks of very different widths in one call, beside a loop of SciPy's and the integrand alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.integrate import IntegrationWarning
from scipy.integrate import quad as scipy_quad
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Measured, Target, compare, show_seconds
from benchmarks.recording import Recorder
from benchmarks.timing import Seconds, interleave, several

__all__ = ["measure"]

BATCH = 20_000
SAMPLE = 2_000
RTOL = 1e-8
SCIPY_LIMIT = 200
SEED = 20_000
ACCURACY = ("worst true\nerror", "not\nconverged", "converged,\ntrue error >\nreported")
IN_A_ROW = 6
"""Calls of quad at a time: about as long as SciPy's loop over the sample."""

COSTLY = 50e-9
"""What the costly integrand should cost, in seconds a node."""


@dataclass(frozen=True)
class Peaks:
    """Centres and half widths, float64, and what the integrals over [0, 1] are."""

    centre: Tensor
    width: Tensor
    exact: Tensor


def make_peaks(n: int) -> Peaks:
    """Draw centres uniformly from [0, 1] and half widths log-uniformly from [1e-5, 1e-1]."""
    generator = torch.Generator().manual_seed(SEED)
    c, decades = torch.rand((2, n), generator=generator, dtype=torch.float64)
    e = 10 ** (4 * decades - 5)
    return Peaks(c, e, torch.atan((1 - c) / e) + torch.atan(c / e))


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    """Return the integrand."""
    return e / ((x - c) ** 2 + e**2)


@dataclass(frozen=True)
class CostlyPeak:
    """The same integrand after ``passes`` sines whose result has no weight."""

    passes: int

    def __call__(self, x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        idle = x
        for _ in range(self.passes):
            idle = idle.sin()
        return torch.add(peak(x, c, e), idle, alpha=0.0)


def calibrate(blocks: Recorder) -> CostlyPeak:
    """Choose the number of sines so that a node costs about ``COSTLY``."""
    passes = 20
    heavy = CostlyPeak(passes)
    seconds = interleave({"light": blocks.evaluate, "heavy": lambda: blocks.evaluate(heavy)}, repeats=5)
    light, heavy_cost = (seconds[name].median / blocks.nodes for name in ("light", "heavy"))
    return CostlyPeak(max(1, round((COSTLY - light) * passes / (heavy_cost - light))))


def integrate(peaks: Peaks, f: Callable[..., Tensor]) -> qg.Result:
    """Integrate all peaks in one call."""
    return qg.quad(f, 0.0, 1.0, args=(peaks.centre, peaks.width), rtol=RTOL, atol=0.0)


@dataclass(frozen=True)
class ScipyLoop:
    """A loop of ``scipy.integrate.quad`` over some of the peaks, with an integrand of Python floats.

    ``products``: written with products instead of squares, which makes an integrand of floats much quicker.
    """

    pairs: list[tuple[float, float]]
    products: bool = False

    def __call__(self) -> list[tuple[float, float, int, bool]]:
        """Return value, reported error, number of nodes and convergence of each integral."""
        found: list[tuple[float, float, int, bool]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IntegrationWarning)
            for c, e in self.pairs:
                if self.products:
                    f = lambda x, c=c, e=e: e / ((x - c) * (x - c) + e * e)
                else:
                    f = lambda x, c=c, e=e: e / ((x - c) ** 2 + e**2)
                value, error, info, *message = scipy_quad(
                    f, 0.0, 1.0, epsrel=RTOL, epsabs=0.0, limit=SCIPY_LIMIT, full_output=1
                )
                found.append((value, error, info["neval"], not message))
        return found


def judge(value: Tensor, error: Tensor, exact: Tensor, converged: Tensor) -> list[str]:
    """Return the columns of ``ACCURACY``."""
    true = (value - exact).abs()
    worst = (true / exact).max().item()
    failed = int((~converged).sum())
    dishonest = int((converged & (true > error)).sum())
    return [f"{worst:.1e}", str(failed), str(dishonest)]


def judge_scipy(loop: ScipyLoop, exact: Tensor) -> tuple[list[str], int]:
    """Return the accuracy of SciPy's loop, and the nodes it took."""
    value, error, nodes, converged = torch.tensor(loop(), dtype=torch.float64).T
    return judge(value, error, exact, converged > 0), int(nodes.sum())


def record(peaks: Peaks, f: Callable[..., Tensor]) -> tuple[Recorder, qg.Result]:
    """Integrate once, keeping the blocks of nodes."""
    recorder = Recorder(f)
    return recorder, integrate(peaks, recorder)


def measure(scale: float = 1.0) -> Findings:
    """Time quad, SciPy's loop and the bare integrand; then quad and an integrand that costs 50 ns a node."""
    n = max(100, round(BATCH * scale))
    peaks = make_peaks(n)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))[: min(n, SAMPLE)]
    pairs = list(zip(peaks.centre[chosen].tolist(), peaks.width[chosen].tolist(), strict=True))
    loop, products = ScipyLoop(pairs), ScipyLoop(pairs, products=True)
    with torch.no_grad():
        blocks, result = record(peaks, peak)
        cheap = interleave(
            {
                "after a pause": lambda: integrate(peaks, peak),
                "quad": several(lambda: integrate(peaks, peak), IN_A_ROW),
                "bare": several(blocks.evaluate, IN_A_ROW),
                "cached": blocks.evaluate_cached,
                "scipy": loop,
                "products": products,
            },
            repeats=11,
        )
        costly_peak = calibrate(blocks)
        costly_blocks = Recorder(costly_peak, blocks.blocks)
        costly = interleave(
            {"quad": lambda: integrate(peaks, costly_peak), "bare": costly_blocks.evaluate}, repeats=5
        )
        costly_result = integrate(peaks, costly_peak)
    for name in ("scipy", "products"):
        cheap[name] = cheap[name].scaled(n / len(chosen))
    scipy_accuracy, scipy_nodes = judge_scipy(loop, peaks.exact[chosen])
    ours, theirs = (judge(r.value, r.error, peaks.exact, r.converged) for r in (result, costly_result))
    return Findings(
        f"{n:,} peaks",
        "e / ((x - c)^2 + e^2) over [0, 1], c uniform, e log-uniform in [1e-5, 1e-1], "
        f"rtol {RTOL:g}, atol 0, float64. "
        f"SciPy: a loop with limit={SCIPY_LIMIT} and the same expression of Python floats over a random sample "
        f"of {len(chosen):,}, its times multiplied by {n / len(chosen):g}; products: with (x - c) * (x - c) and "
        f"e * e, quicker for floats and the same for tensors. quad, and bare: {IN_A_ROW} calls in a row; after a "
        "pause: one call after SciPy's loops. "
        f"Bare: the integrand alone on the {len(blocks.blocks)} blocks of nodes that quad asked for; in cache: "
        "each block read a moment before. Costly: "
        f"{costly_peak.passes} sines more at each node. Errors are relative.",
        [
            show_seconds(
                [
                    Measured("quad", cheap["quad"], n, blocks.nodes, ours),
                    Measured("quad, after a pause", cheap["after a pause"], n, blocks.nodes),
                    Measured("SciPy loop", cheap["scipy"], n, scipy_nodes * n // len(chosen), scipy_accuracy),
                    Measured("the same, products", cheap["products"], n, scipy_nodes * n // len(chosen)),
                    Measured("bare", cheap["bare"], n, blocks.nodes),
                    Measured("bare, in cache", cheap["cached"], n, blocks.nodes),
                    Measured("quad, costly f", costly["quad"], n, blocks.nodes, theirs),
                    Measured("bare, costly f", costly["bare"], n, blocks.nodes),
                ],
                ACCURACY,
            )
        ],
        figures(cheap, costly, costly["bare"].median / blocks.nodes),
    )


def figures(cheap: dict[str, Seconds], costly: dict[str, Seconds], cost: float) -> list[Figure]:
    """Return the ratios that the targets are about."""
    return [
        compare("faster than SciPy's loop", cheap["scipy"], cheap["quad"], Target(50, at_least=True)),
        compare("the same, one call after a pause", cheap["scipy"], cheap["after a pause"]),
        compare("the same, written with products", cheap["products"], cheap["quad"]),
        compare("quad over bare blocks", cheap["quad"], cheap["bare"], Target(5)),
        compare("quad over bare blocks in cache", cheap["quad"], cheap["cached"]),
        compare(
            f"quad over bare blocks, f {1e9 * cost:.0f} ns a node",
            costly["quad"],
            costly["bare"],
            Target(1.3),
        ),
    ]
