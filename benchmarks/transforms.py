"""What `torch.func` costs beside the same derivatives by `torch.autograd`, and `vmap` beside the batch call.

Each line twice: parameters that come in through ``args``, and parameters that f captures. Memory is measured by a
fresh process, which ``python -m benchmarks.transforms`` is, as in `benchmarks.memory`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

import quadgrad as qg
from benchmarks.earlier import time_in_turn
from benchmarks.findings import Figure, Findings, Sheet, Target, compare, show_time
from benchmarks.memory import MALLOC, MEBIBYTE, current_memory, peak_memory
from benchmarks.timing import Seconds, Task, several

__all__ = ["make_tasks", "measure"]

PEAKS = 15
PROBLEMS = 6
LANES = 100
RTOL = 1e-9
IN_A_ROW = 10
PAUSE = 0.01
WAYS = ("arguments", "captured")
MANY, HARD, OSCILLATION = 1000, 17, 25_000.0
"""Lanes of which one is hard, which one, and a frequency for which an integral takes more than 4,000 cells."""


def peak(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
    return e / ((x - c) ** 2 + e**2)


def total(way: str) -> Callable[[Tensor], Tensor]:
    """Return the sum of 15 peaks' areas as a function of how far all are moved and of a factor of all widths."""
    centre = torch.linspace(0.1, 0.9, PEAKS, dtype=torch.float64)
    width = torch.logspace(-3, -1, PEAKS, dtype=torch.float64)

    def of(parameters: Tensor) -> Tensor:
        moved, factor = parameters.unbind()
        if way == "arguments":
            return qg.quad(peak, 0.0, 1.0, (centre + moved, width * factor), rtol=RTOL).value.sum()
        f = lambda x, c, e: peak(x, c + moved, e * factor)
        return qg.quad(f, 0.0, 1.0, (centre, width), rtol=RTOL).value.sum()

    return of


def exact(parameters: Tensor) -> Tensor:
    """Return the closed form of `total`."""
    moved, factor = parameters.unbind()
    c = torch.linspace(0.1, 0.9, PEAKS, dtype=torch.float64) + moved
    e = torch.logspace(-3, -1, PEAKS, dtype=torch.float64) * factor
    return (torch.atan((1 - c) / e) + torch.atan(c / e)).sum()


def make_lanes() -> tuple[Tensor, Tensor]:
    """Return centres and widths of 100 peaks."""
    return torch.linspace(0.1, 0.9, LANES).double(), torch.logspace(-4, -1, LANES).double()


def single(way: str) -> Callable[[Tensor, Tensor], qg.Result]:
    """Return the integral of one peak."""
    if way == "arguments":
        return lambda c, e: qg.quad(peak, 0.0, 1.0, (c, e), rtol=RTOL)
    return lambda c, e: qg.quad(lambda x: peak(x, c, e), c.new_zeros(()), 1.0, rtol=RTOL)


def make_tasks() -> dict[str, Task]:
    """Return what is timed; an earlier commit can run what the others are compared with."""
    start = torch.tensor([0.01, 1.1], dtype=torch.float64)
    several_starts = start + torch.linspace(0, 0.05, PROBLEMS, dtype=torch.float64)[:, None]
    centre, width = make_lanes()
    tasks: dict[str, Task] = {}

    def backward(function: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = start.clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf)[0]

    for way in WAYS:
        function, one = total(way), single(way)
        tasks |= {
            f"backward, {way}": lambda f=function: backward(f),
            f"functional.hessian, {way}": lambda f=function: torch.autograd.functional.hessian(f, start),
            f"batch call, {way}": lambda: single("arguments")(centre, width),
            f"func.grad, {way}": lambda f=function: grad(f)(start),
            f"func.hessian, {way}": lambda f=function: hessian(f)(start),
            f"vmap(hessian), {way}": lambda f=function: vmap(hessian(f))(several_starts),
            f"vmap, {way}": lambda one=one: vmap(lambda c, e: one(c, e).value)(centre, width),
        }
    return {name: several(task, IN_A_ROW) for name, task in tasks.items()}


REFERENCES = ("backward", "functional.hessian", "batch call")
COMPARISONS = (
    ("func.grad over backward", "func.grad", "backward", (3.0, 3.0)),
    ("func.hessian over functional.hessian", "func.hessian", "functional.hessian", (3.0, 3.0)),
    (f"vmap(hessian) of {PROBLEMS} over one", "vmap(hessian)", "func.hessian", (4.0, 4.0)),
    (f"vmap over {LANES} peaks over the batch call", "vmap", "batch call", (5.0, 20.0)),
)


def nodes_differ(way: str) -> int:
    """Return how many lanes took other numbers of nodes than calls of their own."""
    lanes = make_lanes()
    together = vmap(lambda c, e: single(way)(c, e).nfev)(*lanes)
    alone = torch.stack([single(way)(c, e).nfev for c, e in zip(*lanes, strict=True)])
    return int((together != alone).sum())


def worst_derivatives(way: str) -> tuple[float, float]:
    """Return the worst relative errors of gradient and Hessian."""
    start = torch.tensor([0.01, 1.1], dtype=torch.float64)
    errors: list[float] = []
    for derive in (grad, hessian):
        ours, true = derive(total(way))(start), derive(exact)(start)
        errors.append(float((ours - true).abs().max() / true.abs().max()))
    return errors[0], errors[1]


# ------------------------------------------------------------------------------------- one hard lane among many


@dataclass(frozen=True)
class Cost:
    """Nodes at which f was called, growth of the process in bytes, cells of the hardest integral."""

    nodes: int
    peak: float
    cells: int


def run_hard(way: str, gradient: bool) -> Cost:
    """Integrate ``sin(k x)^2 + x`` for 1,000 k, of which one is large; the process must be fresh."""
    nodes = 0

    def f(x: Tensor, k: Tensor) -> Tensor:
        nonlocal nodes
        nodes += x.numel()
        return torch.sin(k * x) ** 2 + x

    one = lambda k: qg.quad(f, 0.0, 1.0, (k,), rtol=RTOL, max_nfev=10**6)

    def integrate(k: Tensor) -> qg.Result | None:
        if not gradient:
            return one(k) if way == "batch" else vmap(one)(k)
        if way == "batch":
            k = k.clone().requires_grad_()
            torch.autograd.grad(one(k).value.sum(), k)
        else:
            vmap(grad(lambda k: one(k).value))(k)
        return None

    k = torch.ones(MANY, dtype=torch.float64)
    integrate(k[:64])  # what torch sets up once is not counted
    k[HARD], nodes = OSCILLATION, 0
    before = current_memory()
    result = integrate(k)
    peak_growth = peak_memory() - before
    return Cost(nodes, peak_growth, 0 if result is None else int((result.plan.owner == HARD).sum()))


def run_fresh(way: str, gradient: bool) -> Cost:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.transforms", way, str(int(gradient))]
    finished = subprocess.run(
        command, cwd=Path(__file__).parent.parent, env=os.environ | MALLOC, check=True, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    return Cost(**json.loads(finished.stdout))


def one_hard_lane() -> tuple[Sheet, list[Figure]]:
    """Compare 1,000 lanes of which one is hard with the batch call, as values and with gradients."""
    rows: list[tuple[str, ...]] = []
    figures: list[Figure] = []
    for gradient in (False, True):
        label = "value and gradient" if gradient else "value"
        batch, lanes = (run_fresh(way, gradient) for way in ("batch", "lanes"))
        for name, cost in (("batch call", batch), ("vmap", lanes)):
            cells = f"{cost.cells:,}" if cost.cells else ""
            rows.append((f"{name}, {label}", f"{cost.nodes:,}", f"{cost.peak / MEBIBYTE:.1f} MiB", cells))
        figures += [
            Figure(f"one hard lane of {MANY:,}, {label}: nodes", lanes.nodes / batch.nodes, target=Target(1.5)),
            Figure(f"one hard lane of {MANY:,}, {label}: memory", lanes.peak / batch.peak, target=Target(1.5)),
        ]
    return Sheet(("", "nodes", "peak", "cells of the\nhard lane"), rows), figures


# ----------------------------------------------------------------------------------------------------- the page


def measure(scale: float = 1.0, against: str | None = None) -> Findings:
    """Time transforms beside what they are compared with, and that beside an earlier commit."""
    names, repeats = [f"{name}, {way}" for way in WAYS for name in REFERENCES], max(5, round(21 * scale))
    seconds, slower, notes = time_in_turn(make_tasks(), names, against, "benchmarks.transforms", repeats, PAUSE)
    figures = [
        compare(f"{label}, {way}", seconds[f"{over}, {way}"], seconds[f"{under}, {way}"], Target(bounds[place]))
        for label, over, under, bounds in COMPARISONS
        for place, way in enumerate(WAYS)
    ]
    figures += slower
    figures += [
        Figure(f"lanes whose nfev is not that of a call of its own, {way}", nodes_differ(way), None, Target(0), "")
        for way in WAYS
    ]
    errors = {way: worst_derivatives(way) for way in WAYS}
    figures += [
        Figure(f"{name}'s worst relative error, {way}", errors[way][place], None, Target(bound), "")
        for place, (name, bound) in enumerate((("gradient", 1e-6), ("Hessian", 1e-4)))
        for way in WAYS
    ]
    hard_sheet, hard_figures = one_hard_lane()
    return Findings(
        "Transforms",
        f"{PEAKS} peaks e / ((x - c)^2 + e^2) over [0, 1], widths from 1e-3 to 0.1, rtol {RTOL:g}; two parameters: "
        "how far all are moved and a factor of all widths. Arguments: they reach f in args; captured: f closes "
        "over them. "
        "backward: torch.autograd.grad; hessian: torch.func's beside torch.autograd.functional's. "
        f"vmap: {LANES} peaks, widths from 1e-4 to 0.1, value alone. All in runs of {IN_A_ROW} calls. One hard "
        f"lane: sin(k x)^2 + x, k = 1 in {MANY - 1} lanes and {OSCILLATION:g} in one; nodes are all at which f was "
        "called, peak is by how much a fresh process grew.",
        [times(seconds), hard_sheet],
        figures + hard_figures,
        notes,
    )


def times(seconds: dict[str, Seconds]) -> Sheet:
    """Return the table of times."""
    rows = [(name, show_time(s.best), show_time(s.median)) for name, s in seconds.items()]
    return Sheet(("", "best", "median"), rows)


def main() -> None:
    """Run the case given on the command line."""
    print(json.dumps(asdict(run_hard(sys.argv[1], bool(int(sys.argv[2]))))))


if __name__ == "__main__":
    main()
