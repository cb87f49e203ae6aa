"""Adaptive integration over boxes beside SciPy's, the C library's and quadax', in turn; Genz' families.

The peers are optional: ``cubature`` (the C library's wrapper) and ``quadax`` are measured if they can be imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target, show_time
from benchmarks.problems.genz import FAMILIES, draw

__all__ = ["measure"]

SMOOTH = ("oscillatory", "product peak", "corner peak", "Gaussian")
MOST = 5_000_000
EACH = 35
"""Integrals of a family, in each dimension and at each tolerance: 2,100 in all."""
CASES = [(d, rtol) for d in (2, 3, 5, 8) for rtol in ((1e-3, 1e-6, 1e-9) if d <= 3 else (1e-3, 1e-6))]
MANY = 10_000
BLOCK = 2**14
"""Points that f is called at together when it is timed alone: none takes longer with more or fewer of them."""


@dataclass(frozen=True)
class Problem:
    """One integral over the unit cube, for torch and for NumPy: f is made of their common functions."""

    name: str
    f: Callable[[Any, Any], Any]
    d: int
    rtol: float
    exact: float


def _problems() -> list[Problem]:
    def bell(k: float) -> Callable[[Any, Any], Any]:
        return lambda x, m: m.exp(-k * ((x - 0.5) ** 2).sum(-1))

    def side(k: float) -> float:
        return math.sqrt(math.pi / k) * math.erf(0.5 * math.sqrt(k))

    corner = sum(
        (-1) ** sum(v) / (1 + v[0] + 2 * v[1] + 3 * v[2]) for v in itertools.product((0, 1), repeat=3)
    ) / 36  # fmt: skip
    peaks = (10 * (math.atan(7) + math.atan(3))) ** 3
    return [
        Problem("Gaussian, k = 625", bell(625.0), 3, 1e-6, side(625.0) ** 3),
        Problem("Gaussian, k = 25", bell(25.0), 3, 1e-6, side(25.0) ** 3),
        Problem("product peak", lambda x, m: (1 / (1e-2 + (x - 0.3) ** 2)).prod(-1), 3, 1e-6, peaks),
        Problem("corner peak", _corner, 3, 1e-6, corner),
        Problem("corner peak, 1e-8", _corner, 3, 1e-8, corner),
    ]


def _corner(x: Any, m: Any) -> Any:
    return (1 + x[..., 0] + 2 * x[..., 1] + 3 * x[..., 2]) ** -4.0


Answer = tuple[float, int, float]
"""Value, evaluations, seconds."""


def ours(problem: Problem) -> Answer:
    a, b = torch.zeros(problem.d, dtype=torch.float64), torch.ones(problem.d, dtype=torch.float64)
    start = time.perf_counter()
    result = qg.cubature(lambda x: problem.f(x, torch), a, b, rtol=problem.rtol, on_failure="ignore")
    return float(result.value), int(result.nfev), time.perf_counter() - start


def by_c(problem: Problem) -> Answer:
    library, count = importlib.import_module("cubature"), 0

    def f(x: np.ndarray) -> np.ndarray:
        nonlocal count
        count += len(x)
        return problem.f(x, np)

    start = time.perf_counter()
    value, _ = library.cubature(
        f, problem.d, 1, np.zeros(problem.d), np.ones(problem.d), relerr=problem.rtol, abserr=0, maxEval=MOST,
        vectorized=True, adaptive="h",
    )  # fmt: skip
    return float(value[0]), count, time.perf_counter() - start


def by_scipy(problem: Problem, rule: str = "genz-malik") -> Answer:
    from scipy.integrate import cubature

    count = 0

    def f(x: np.ndarray) -> np.ndarray:
        nonlocal count
        count += len(x)
        return problem.f(x, np)

    start = time.perf_counter()
    result = cubature(f, np.zeros(problem.d), np.ones(problem.d), rule=rule, rtol=problem.rtol, atol=0)
    return float(result.estimate), count, time.perf_counter() - start


def by_quadax(problem: Problem) -> Answer:
    jax, quadax = importlib.import_module("jax"), importlib.import_module("quadax")
    jax.config.update("jax_enable_x64", True)
    bounds = np.stack((np.zeros(problem.d), np.ones(problem.d)), axis=1)

    def call() -> Any:
        return quadax.cubegm(lambda x: problem.f(x, jax.numpy), bounds, epsrel=problem.rtol, epsabs=0.0)

    call()  # which compiles
    start = time.perf_counter()
    value, info = call()
    return float(value), int(info.neval), time.perf_counter() - start


PEERS: dict[str, tuple[str, Callable[[Problem], Answer]]] = {
    "C cubature": ("cubature", by_c),
    "SciPy genz-malik": ("scipy", by_scipy),
    "SciPy gk21": ("scipy", lambda problem: by_scipy(problem, "gk21")),
    "quadax": ("quadax", by_quadax),
}


def best_of(call: Callable[[Problem], Answer], problem: Problem) -> Answer:
    """Return the quickest of a few calls: the first one makes rules, and whatever else is kept."""
    answers = [call(problem)]
    while len(answers) < 5 and answers[0][2] < 1.0:
        answers.append(call(problem))
    return min(answers, key=lambda answer: answer[2])


def beside_peers(notes: list[str]) -> tuple[Sheet, list[Figure]]:
    """Integrate the same with everybody; who is not right takes no part."""
    peers = {name: call for name, (module, call) in PEERS.items() if importlib.util.find_spec(module)}
    rows: list[list[str]] = []
    worst = 0.0
    for problem in _problems():
        value, nfev, seconds = best_of(ours, problem)
        off = abs(value / problem.exact - 1)
        row = [f"{problem.name}, {problem.rtol:g}", f"{nfev:,} in {show_time(seconds)}, {off:.0e}"]
        best = math.inf
        for name, call in peers.items():
            try:
                value, spent, seconds = best_of(call, problem)
            except Exception as error:  # a peer's own
                notes.append(f"{name}, {problem.name}: {type(error).__name__} {error!s:.60}")
                row.append("failed")
                continue
            off = abs(value / problem.exact - 1)
            best = min(best, spent) if off <= problem.rtol else best
            row.append(f"{spent:,} in {show_time(seconds)}, {off:.0e}")
        rows.append(row)
        worst = max(worst, nfev / best)
    sheet = Sheet(["evaluations, time, true error", "quadgrad", *peers], rows)
    return sheet, [Figure("most evaluations over those of the best right peer", worst, target=Target(1.0))]


def genz(each: int, seed: int) -> tuple[Sheet, list[Figure]]:
    """Integrate all families; list what does not converge and what is wrong."""
    rows: list[list[str]] = []
    missed = {True: 0, False: 0}
    runs = 0
    for d, rtol in CASES:
        for family in FAMILIES:
            problem = draw(family, d, each, 1000 * seed + d)
            args = (qg.element(problem.c, 1), qg.element(problem.u, 1))
            box = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
            result = qg.cubature(problem.f, *box, args, rtol=rtol, max_nfev=MOST, on_failure="ignore")
            off = (result.value - problem.exact).abs()
            wrong = int((result.converged & (off > rtol * problem.exact.abs())).sum())
            missed[family in SMOOTH] += wrong
            runs += each
            solved = int(result.converged.sum())
            if solved < each or wrong:
                spent = result.nfev.double().median()
                rows.append(
                    [f"{family}, d = {d}, {rtol:g}", f"{each - solved} of {each}", str(wrong), f"{spent:,.0f}"]
                )
    sheet = Sheet(["Genz", "did not converge", "converged and wrong", "evaluations (median)"], rows)
    return sheet, [
        Figure("smooth families: converged and wrong", missed[True], target=Target(0.0), unit=""),
        Figure(
            "all families: converged and wrong, of 1,000", 1000 * sum(missed.values()) / runs, target=Target(1.0),
            unit="",
        ),
    ]  # fmt: skip


def seconds_of(f: Callable[..., Tensor], d: int, nodes: int, *args: Tensor, together: bool = False) -> float:
    """Return the processor time f takes alone at so many points, a block of them at a time, in its better layout.

    That is one coordinate after another in memory; points ``together`` are what callers have.
    """
    x = torch.rand(BLOCK, d, dtype=torch.float64) if together else torch.rand(d, BLOCK, dtype=torch.float64).T
    best = math.inf
    for _ in range(20):
        start = time.process_time()
        f(x, *args)
        best = min(best, time.process_time() - start)
    return best * nodes / BLOCK


def batches(count: int) -> list[Figure]:
    """Compare one call for many integrals with a loop, and with f alone."""
    k = 1 + 50 * torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    bell: Callable[[Tensor, Tensor], Tensor] = lambda x, k: torch.exp(-k * ((x - 0.5) ** 2).sum(-1))
    box = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    together, loop, some, nodes = math.inf, math.inf, min(count, 50), 0
    for _ in range(3):
        start = time.process_time()
        nodes = int(qg.cubature(bell, *box, (k,), rtol=1e-3).nfev.sum())
        together = min(together, time.process_time() - start)
        start = time.process_time()
        for one in k[:some]:
            qg.cubature(bell, *box, (one,), rtol=1e-3)
        loop = min(loop, (time.process_time() - start) * count / some)
    bare = seconds_of(bell, 3, nodes, k.repeat(BLOCK // count + 1)[:BLOCK])
    return [
        Figure(f"a loop over {count:,} integrals in one call", loop / together, target=Target(30.0, True)),
        Figure("that call over f alone at as many points", together / bare),
    ]


def overhead() -> list[Figure]:
    """Compare a call of more than a million evaluations with what it spends in f, and with f alone."""
    whole, inside, spent = math.inf, 0.0, 0.0
    bell: Callable[[Tensor], Tensor] = lambda x: torch.exp(-25 * ((x - 0.5) ** 2).sum(-1))

    def f(x: Tensor) -> Tensor:
        nonlocal spent
        start = time.process_time()
        y = bell(x)
        spent += time.process_time() - start
        return y

    box = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    nodes = 0
    for _ in range(5):
        spent, start = 0.0, time.process_time()
        nodes = int(qg.cubature(f, *box, rtol=1e-6).nfev)
        seconds = time.process_time() - start
        whole, inside = min((whole, inside), (seconds, spent))
    return [
        Figure("5-D Gaussian at 1e-6, over the time spent in f", whole / inside, target=Target(1.7)),
        Figure("the same over f alone, points as rows", whole / seconds_of(bell, 5, nodes, together=True)),
    ]


def measure(scale: float = 1.0, seed: int | None = None) -> Findings:
    """Integrate everything."""
    seed = time.time_ns() % 1000 if seed is None else seed
    notes: list[str] = []
    table, figures = beside_peers(notes)
    families, honest = genz(max(2, round(EACH * scale)), seed)
    figures += [*honest, *batches(max(100, round(MANY * scale))), *overhead()]
    return Findings(
        title="Integrals over boxes",
        setting=f"unit cubes; Genz' families with seed {seed}, at most {MOST:,} evaluations each",
        sheets=[table, families],
        figures=figures,
        notes=notes,
    )
