"""Half-lines, several components and complex values, each beside the same without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.earlier import time_in_turn
from benchmarks.findings import Findings, Measured, Target, compare, show_seconds
from benchmarks.timing import Task, several

__all__ = ["make_tasks", "measure"]

RTOL = 1e-9
SIZES = (1, 100, 10_000)
COMPONENTS = 100
COMPLEX_BATCH = 100
PAUSE = 0.005


@dataclass(frozen=True)
class Shape:
    """An integral, how many values it stands for, how often it is called in a row, and its exact value."""

    call: Callable[[], qg.Result]
    integrals: int
    in_a_row: int
    exact: Tensor

    def measured(self, name: str, seconds) -> Measured:
        """Return a row of the table."""
        result = self.call()
        nodes = int(result.nfev.sum()) * (self.integrals // result.nfev.numel())
        worst = ((result.value - self.exact).abs() / self.exact.abs()).max()
        return Measured(name, seconds, self.integrals, nodes, (f"{float(worst):.1e}",))


def damped(x: Tensor, a: Tensor) -> Tensor:
    return torch.exp(-a * x) * torch.cos(x)


def damped_by_hand(t: Tensor, a: Tensor) -> Tensor:
    """Return the same after the substitution x = t / (1 - t)."""
    rest = 1 - t
    return damped(t / rest, a) / rest**2


def half_line(n: int, by_hand: bool) -> Shape:
    """Return ``exp(-a x) cos(x)`` over [0, inf) for n values of a."""
    a = torch.linspace(0.5, 3.0, n, dtype=torch.float64) if n > 1 else torch.tensor([1.0], dtype=torch.float64)
    f, upper = (damped_by_hand, 1.0) if by_hand else (damped, inf)
    call = lambda: qg.quad(f, 0.0, upper, (a,), rtol=RTOL)
    return Shape(call, n, max(1, min(10, 1000 // n)), a / (1 + a**2))


def wave(k: Tensor) -> Tensor:
    """Return the integral of ``exp(-x) cos(k x)`` over [0, 1]."""
    return (1 + torch.exp(-torch.ones_like(k)) * (k * torch.sin(k) - torch.cos(k))) / (1 + k**2)


def components(as_batch: bool) -> Shape:
    """Return ``exp(-x) cos(k x)`` over [0, 1] for 100 values of k, components of one integral or a batch."""
    k = torch.linspace(0.5, 30.0, COMPONENTS, dtype=torch.float64)
    if as_batch:
        call = lambda: qg.quad(lambda x, k: torch.exp(-x) * torch.cos(k * x), 0.0, 1.0, (k,), rtol=RTOL)
    else:
        call = lambda: qg.quad(
            lambda x: torch.exp(-x[..., None]) * torch.cos(k * x[..., None]), k.new_zeros(()), 1.0, rtol=RTOL
        )
    return Shape(call, COMPONENTS, 10, wave(k))


def complex_wave(part: str) -> Shape:
    """Return the integrals of ``exp((i k - 1) x)`` over [0, 1], or of its real or imaginary part."""
    k = torch.linspace(0.5, 30.0, COMPLEX_BATCH, dtype=torch.float64)
    exact = (torch.exp(1j * k - 1) - 1) / (1j * k - 1)
    if part == "complex":
        call = lambda: qg.quad(lambda x, k: torch.exp((1j * k - 1) * x), 0.0, 1.0, (k,), rtol=RTOL)
        return Shape(call, COMPLEX_BATCH, 10, exact)
    f = torch.cos if part == "real" else torch.sin
    call = lambda: qg.quad(lambda x, k: torch.exp(-x) * f(k * x), 0.0, 1.0, (k,), rtol=RTOL)
    return Shape(call, COMPLEX_BATCH, 10, exact.real if part == "real" else exact.imag)


def make_shapes() -> dict[str, Shape]:
    """Return all integrals by their names."""
    shapes: dict[str, Shape] = {}
    for n in SIZES:
        shapes |= {f"half-line, {n:,}": half_line(n, False), f"by hand, {n:,}": half_line(n, True)}
    shapes |= {"components": components(False), "batch": components(True)}
    return shapes | {part: complex_wave(part) for part in ("complex", "real", "imaginary")}


def make_tasks() -> dict[str, Task]:
    """Return what is timed; an earlier commit can run all of it."""
    shapes = make_shapes()
    tasks = {name: several(shape.call, shape.in_a_row) for name, shape in shapes.items()}
    both = lambda: (shapes["real"].call(), shapes["imaginary"].call())
    return tasks | {"two real parts": several(both, 10)}


COMPARISONS = (
    *((f"half-line over mapped by hand, {n:,}", f"half-line, {n:,}", f"by hand, {n:,}", 1.4) for n in SIZES),
    (f"{COMPONENTS} components over a batch", "components", "batch", 2.5),
    ("complex over its two real parts", "complex", "two real parts", 1.5),
)


def measure(scale: float = 1.0, against: str | None = None) -> Findings:
    """Time each shape beside what it is compared with, and that beside an earlier commit."""
    shapes, repeats = make_shapes(), max(5, round(21 * scale))
    names = dict.fromkeys(under for _, _, under, _ in COMPARISONS)
    seconds, slower, notes = time_in_turn(make_tasks(), names, against, "benchmarks.shapes", repeats, PAUSE)
    figures = [
        compare(label, seconds[over], seconds[under], Target(bound)) for label, over, under, bound in COMPARISONS
    ]
    return Findings(
        "Shapes",
        f"float64, rtol {RTOL:g}, value alone. half-line: exp(-a x) cos(x) over [0, inf), a of 0.5 to 3; by hand: "
        f"the same on [0, 1] with x = t / (1 - t) in f. components: exp(-x) cos(k x) on [0, 1] for {COMPONENTS} "
        "k as components of one integral, which share cells and nodes; batch: as so many integrals. complex: "
        f"{COMPLEX_BATCH} integrals of exp((i k - 1) x); real and imaginary: its parts, in two calls. Errors are "
        "relative; of components, nodes are counted for each.",
        [show_seconds([shape.measured(name, seconds[name]) for name, shape in shapes.items()], ("true\nerror",))],
        figures + slower,
        notes,
    )
