"""How right derivatives are at a loose tolerance for the value, and what value and gradient of many peaks cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.derivatives import ROWS, Row
from benchmarks.findings import Figure, Findings, Sheet, Target, compare, show_time
from benchmarks.peaks import BATCH, RTOL, SEED, Peaks, make_peaks, peak
from benchmarks.timing import interleave

__all__ = ["measure"]

LOOSE, TIGHT = 1e-4, 1e-9
SAMPLE = 500
CELLS = 100
"""quadax's largest number of cells for one integral: with its 50 the narrowest peaks do not converge."""

ACCURACY = ("worst value,\nrelative", "worst d/dc,\nover int |df|", "worst d/de,\nover int |df|")


@dataclass(frozen=True)
class Slopes:
    """Exact derivatives of the peaks' areas, and the integrals of the moduli of the integrands' derivatives."""

    by_centre: Tensor
    by_width: Tensor
    size_centre: Tensor
    size_width: Tensor


def exact_slopes(peaks: Peaks) -> Slopes:
    """Differentiate ``atan((1 - c) / e) + atan(c / e)``; the moduli's integrals are at least about 1 / e."""
    c, e = peaks.centre, peaks.width
    low, high = c**2 + e**2, (1 - c) ** 2 + e**2
    return Slopes(e / low - e / high, -((1 - c) / high + c / low), 1 / e, 1 / e)


def judge(value: Tensor, by_centre: Tensor, by_width: Tensor, peaks: Peaks) -> list[str]:
    """Return the columns of ``ACCURACY``."""
    exact = exact_slopes(peaks)
    errors = (
        (value - peaks.exact).abs() / peaks.exact,
        (by_centre - exact.by_centre).abs() / exact.size_centre,
        (by_width - exact.by_width).abs() / exact.size_width,
    )
    return [f"{error.max().item():.1e}" for error in errors]


def ours(peaks: Peaks, mode: qg.GradientMode) -> tuple[Tensor, Tensor, Tensor]:
    """Return all areas and their derivatives."""
    c, e = peaks.centre.clone().requires_grad_(), peaks.width.clone().requires_grad_()
    value = qg.quad(peak, 0.0, 1.0, (c, e), rtol=RTOL, gradient=mode, on_failure="ignore").value
    return value.detach(), *torch.autograd.grad(value.sum(), (c, e))


def prepare_quadax(peaks: Peaks, adjoint: str, extrapolate: bool) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Return quadax's value and ``jax.grad`` under jit and vmap, already compiled."""
    import jax
    import jax.numpy as jnp
    import quadax

    jax.config.update("jax_enable_x64", True)
    f = lambda x, c, e: e / ((x - c) ** 2 + e**2)

    def single(c: Any, e: Any) -> Any:
        interval, way = jnp.array([0.0, 1.0]), getattr(quadax, adjoint)()
        return quadax.quadgk(
            f, interval, (c, e), epsabs=0.0, epsrel=RTOL, max_ninter=CELLS, adjoint=way, extrapolate=extrapolate
        )[0]

    compiled = jax.jit(jax.vmap(jax.value_and_grad(single, argnums=(0, 1))))
    inputs = jnp.asarray(peaks.centre.numpy()), jnp.asarray(peaks.width.numpy())

    def run() -> tuple[Tensor, Tensor, Tensor]:
        value, (by_centre, by_width) = jax.block_until_ready(compiled(*inputs))
        return tuple(torch.from_dlpack(t).clone() for t in (value, by_centre, by_width))

    run()
    return run


def part(peaks: Peaks, chosen: Tensor) -> Peaks:
    return Peaks(peaks.centre[chosen], peaks.width[chosen], peaks.exact[chosen])


PEERS = {
    "quadax DirectAdjoint": ("DirectAdjoint", True),
    "quadax LeibnizAdjoint": ("LeibnizAdjoint", True),
    "DirectAdjoint, no epsilon": ("DirectAdjoint", False),
    "LeibnizAdjoint, no epsilon": ("LeibnizAdjoint", False),
}
TARGETS = {"quadax DirectAdjoint": Target(50, at_least=True), "quadax LeibnizAdjoint": Target(10, at_least=True)}


def peaks_beside_quadax(scale: float) -> tuple[Sheet, list[Figure], list[str]]:
    """Time value and gradient of all peaks, and of a sample of them with quadax if it is installed."""
    n = max(100, round(BATCH * scale))
    peaks = make_peaks(n)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))[: min(n, SAMPLE)]
    sample, notes = part(peaks, chosen), []
    tasks: dict[str, Callable[[], tuple[Tensor, Tensor, Tensor]]] = {
        "Reuse": lambda: ours(peaks, qg.Reuse()),
        "Resolve(1e-6)": lambda: ours(peaks, qg.Resolve(rtol=1e-6)),
    }
    try:
        tasks |= {name: prepare_quadax(sample, *setting) for name, setting in PEERS.items()}
    except ImportError as error:
        notes.append(f"Not beside quadax: {error}.")
    seconds = interleave(tasks, repeats=3)
    rows: list[tuple[str, ...]] = []
    worst = 0.0
    for name, task in tasks.items():
        mine = name not in PEERS
        if not mine:
            seconds[name] = seconds[name].scaled(n / len(chosen))
        accuracy = judge(*task(), peaks if mine else sample)
        worst = max(map(float, accuracy[1:])) if name == "Reuse" else worst
        times = (seconds[name].best, seconds[name].median, seconds[name].median / n)
        rows.append((name, *map(show_time, times), *accuracy))
    figures = [
        compare(f"Reuse faster than {name}", seconds[name], seconds["Reuse"], TARGETS.get(name))
        for name in PEERS
        if name in seconds
    ]
    figures.append(Figure("Reuse's worst gradient, over the integral of |df|", worst, None, Target(1e-6), ""))
    return Sheet(("value and gradient", "best", "median", "per\nintegral", *ACCURACY), rows), figures, notes


@dataclass(frozen=True)
class Columns:
    """What one row of the table gives: relative errors of both modes, and Resolve's own account."""

    reused: float
    resolved: float
    reported: float
    nodes: int
    more: int
    converged: bool


def both_columns(row: Row) -> Columns:
    """Differentiate one row with both modes, at a loose tolerance for the value."""
    errors: list[float] = []
    for mode in (qg.Reuse(), qg.Resolve(rtol=TIGHT)):
        p = torch.tensor(row.parameter, dtype=torch.float64, requires_grad=True)
        result = qg.quad(row.f, row.a, row.b, (p,), rtol=LOOSE, gradient=mode, on_failure="ignore")
        (gradient,) = torch.autograd.grad(result.value, p)
        errors.append(abs(float(gradient) - row.exact) / abs(row.exact))
    found = result.derivative
    reported = float(found.error.max()) / abs(row.exact)
    return Columns(errors[0], errors[1], reported, int(result.nfev), int(found.nfev), bool(found.converged))


def table() -> tuple[Sheet, list[Figure]]:
    """Show both columns for all rows."""
    found = {row: both_columns(row) for row in ROWS}
    headings = (
        "derivative of",
        "Reuse",
        "Resolve",
        "its own\nestimate",
        "value's\nnodes",
        "more\nnodes",
        "converged",
    )
    rows = [
        (
            row.name,
            f"{c.reused:.1e}",
            f"{c.resolved:.1e}",
            f"{c.reported:.1e}",
            str(c.nodes),
            str(c.more),
            "" if c.converged else "no: rounding",
        )
        for row, c in found.items()
    ]
    hard = [c for c in found.values() if c.reused > 1e-4]
    return Sheet(headings, rows), [
        Figure("Resolve's worst relative error", max(c.resolved for c in found.values()), None, Target(1e-8), ""),
        Figure("integrals where Reuse is off by more than 1e-4", len(hard), None, Target(12, at_least=True), ""),
        Figure("Resolve: true error above its estimate", sum(c.resolved > c.reported for c in found.values()), None,
               Target(0), ""),
    ]  # fmt: skip


def measure(scale: float = 1.0) -> Findings:
    """Show both columns for the table of derivatives; time value and gradient of the peaks beside quadax."""
    columns, accuracy = table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times, figures, notes = peaks_beside_quadax(scale)
    return Findings(
        "gradients",
        f"Derivatives of integrals asked for to rtol {LOOSE:g}, differentiated on the value's plan (Reuse) and "
        f"with Resolve(rtol={TIGHT:g}); errors are relative to the exact derivative. Below, value and gradient of "
        f"{max(100, round(BATCH * scale)):,} peaks e / ((x - c)^2 + e^2) over [0, 1], c uniform, e log-uniform in "
        f"[1e-5, 1e-1], rtol {RTOL:g}. quadax: quadgk and jax.grad under jit and vmap, order 21, at most {CELLS} "
        f"cells, on a random sample of {SAMPLE:,}, its times multiplied; compiling is not timed.",
        [columns, times],
        accuracy + figures,
        notes,
    )
