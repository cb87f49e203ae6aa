"""Points of an antiderivative and of its inverse, beside SciPy's piecewise polynomials and as many integrals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import PPoly
from scipy.special import ndtri
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target, compare, show_time
from benchmarks.timing import Seconds, interleave

__all__ = ["measure"]

POINTS = 10**6
RTOL = 1e-10
THREADS = 1
WAVE = 40.0


@dataclass(frozen=True)
class Case:
    """An integrand between two limits, and how points between them are drawn from uniform ones."""

    label: str
    f: Callable[[Tensor], Tensor]
    a: float
    b: float
    place: Callable[[Tensor], Tensor] = lambda u: u


def density(x: Tensor) -> Tensor:
    """Return the standard normal density."""
    return torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


CASES = (
    Case("cos(40 t) on [0, 1]", lambda x: torch.cos(WAVE * x), 0.0, 1.0),
    Case("Fresnel on [0, 15]", lambda x: torch.sin(math.pi / 2 * x**2), 0.0, 15.0, lambda u: 15.0 * u),
    Case("x^-0.9 on [0, 1]", lambda x: x**-0.9, 0.0, 1.0),
    Case("normal on the line", density, -math.inf, math.inf, lambda u: 12.0 * u - 6.0),
)


def limit(x: float) -> Tensor:
    """Return a limit in double precision."""
    return torch.tensor(x, dtype=torch.float64)


def piecewise(cells: int, degree: int) -> PPoly:
    """Return a piecewise polynomial on [0, 1] with so many cells: its coefficients do not matter for its speed."""
    coefficients = (
        np.random.default_rng(0).standard_normal((degree + 1, cells)) * 0.5 ** np.arange(degree, -1, -1)[:, None]
    )
    return PPoly(coefficients, np.linspace(0.0, 1.0, cells + 1))


def compare_points(case: Case, u: Tensor, repeats: int) -> tuple[tuple[str, ...], list[Figure]]:
    """Time F at many points beside SciPy's polynomials of its degree on as many cells."""
    F = qg.antiderivative(case.f, case.a, limit(case.b), rtol=RTOL)
    cells, degree = len(F.plan), F.plan.tau.shape[0]
    x, peer, places = case.place(u), piecewise(cells, degree), u.numpy()
    seconds = interleave({"ours": lambda: F(x), "scipy": lambda: peer(places)}, repeats)
    ours, theirs = seconds["ours"], seconds["scipy"]
    row = (case.label, str(cells), each(ours, u), each(theirs, u), f"{ours.best / theirs.best:.2f}x")
    return row, [
        microseconds(f"{case.label}: us a point", ours, u, 0.3),
        compare(f"{case.label}: over PPoly of the same degree", ours, theirs, Target(3.0)),
    ]  # fmt: skip


def microseconds(label: str, seconds: Seconds, u: Tensor, bound: float) -> Figure:
    """Return the time of a point beside its target."""
    return Figure(label, 1e6 * seconds.median / len(u), 1e6 * seconds.best / len(u), Target(bound), "us")


def each(seconds: Seconds, u: Tensor) -> str:
    """Return the best time of a point."""
    return show_time(seconds.best / len(u))


def compare_integrals(u: Tensor, repeats: int) -> tuple[tuple[str, ...], list[Figure]]:
    """Time making F and evaluating it beside one call that integrates up to each point."""
    f = CASES[0].f
    tasks = {
        "F": lambda: qg.antiderivative(f, 0.0, limit(1.0), rtol=RTOL)(u),
        "quad": lambda: qg.quad(f, 0.0, u, rtol=RTOL, on_failure="ignore"),
    }
    seconds = interleave(tasks, max(1, repeats // 3), warm_up=0)
    off = float((tasks["F"]() - torch.sin(WAVE * u) / WAVE).abs().max())
    row = ("F made and evaluated, and as many integrals", f"{off:.1e} off", each(seconds["F"], u),
           each(seconds["quad"], u), f"{seconds['F'].best / seconds['quad'].best:.4f}x")  # fmt: skip
    return row, [
        compare("F of cos(40 t) over as many integrals in one call", seconds["F"], seconds["quad"], Target(1.0))
    ]


def compare_inverse(u: Tensor, repeats: int) -> tuple[tuple[str, ...], list[Figure]]:
    """Time the normal quantile beside SciPy's own function for it."""
    F, numbers = qg.antiderivative(density, -math.inf, limit(math.inf), rtol=1e-13, on_failure="ignore"), u.numpy()
    seconds = interleave({"ours": lambda: F.inverse(u), "scipy": lambda: ndtri(numbers)}, repeats)
    ours, theirs = seconds["ours"], seconds["scipy"]
    away = np.abs(ndtri(numbers)) > 1e-3
    off = np.abs(F.inverse(u).numpy() / ndtri(numbers) - 1.0)[away].max()
    row = ("normal quantile, and SciPy's own", f"{off:.1e} off", each(ours, u), each(theirs, u),
           f"{ours.best / theirs.best:.2f}x")  # fmt: skip
    return row, [
        microseconds("normal quantile: us a point", ours, u, 5.0),
        compare("normal quantile over scipy.special.ndtri", ours, theirs),
    ]


def measure(scale: float = 1.0) -> Findings:
    """Time everything at ``scale`` times 10^6 points, one thread."""
    threads, count = torch.get_num_threads(), max(1000, round(scale * POINTS))
    torch.set_num_threads(THREADS)
    try:
        u = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = [compare_points(case, u, 7) for case in CASES]
        found += [compare_integrals(u, 3), compare_inverse(u, 5)]
    finally:
        torch.set_num_threads(threads)
    headings = ("", "cells,\nor error", "ours,\na point", "peer,\na point", "ratio")
    return Findings(
        "The antiderivative at many points",
        f"{count:,} random points, one thread, rtol {RTOL:g}, all in turn. The peer of F is SciPy's PPoly of the "
        "same degree on as many cells; ours finds cells of infinite and singular pieces by maps and logarithms.",
        [Sheet(headings, [row for row, _ in found])],
        [figure for _, figures in found for figure in figures],
    )
