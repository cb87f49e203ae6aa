"""The search in tensor operations, which other devices run: operations and waits of a round; times on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import quadgrad as qg
from benchmarks import distances, peaks
from benchmarks.counting import Counting
from benchmarks.findings import Figure, Findings, Measured, Target, compare, show_seconds
from benchmarks.timing import Task, interleave

__all__ = ["Round", "count_rounds", "measure"]

BATCH = 2_000
NODES = 21
"""Nodes of the rule; f is called on as many rows, but for what is asked beside cells."""

OPERATIONS, READS = 350, 2
"""What a round may cost."""


@dataclass(frozen=True)
class Round:
    """How often f was called on cells, and what a round cost on the average, f's own operations left out."""

    rounds: int
    operations: float
    reads: float
    counting: Counting


@contextmanager
def without_kernel() -> Iterator[None]:
    """Search with tensor operations on the CPU, too."""
    from quadgrad._core.search.kernel import native

    load, native.load = native.load, lambda: None
    try:
        yield
    finally:
        native.load = load


def count_rounds(n: int = BATCH) -> Round:
    """Count what the search of n peaks asks of a device in a round."""
    problem, counting, sizes = peaks.make_peaks(n), Counting(), []

    def f(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        if x.shape[0] == NODES:
            sizes.append(x.shape[1])
        return peaks.peak(x, c, e)

    with without_kernel(), torch.no_grad():
        peaks.integrate(problem, peaks.peak)  # tables are made once
        with counting:
            peaks.integrate(problem, counting.uncounted(f))
    blocks = sum(size == max(sizes) for size in sizes)  # a round of many cells is several full blocks and a rest
    rounds = len(sizes) - (blocks if blocks > 1 else 0)
    operations, reads = sum(counting.operations.values()), sum(counting.reads.values())
    return Round(rounds, operations / rounds, reads / rounds, counting)


def on(device: str, scale: float) -> dict[str, tuple[Task, int, int, Callable[[], str]]]:
    """Return what is timed on a device, how many integrals and nodes that are, and how right they are."""
    n, m = max(100, round(peaks.BATCH * scale)), max(100, round(distances.BATCH * scale))
    here = peaks.make_peaks(n)
    there = peaks.Peaks(*(t.to(device) for t in (here.centre, here.width, here.exact)))
    redshift = distances.make_redshifts(m).to(device)
    universe = tuple(t.detach().to(device).requires_grad_() for t in distances.make_universe())
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def timed(call: Callable[[], object]) -> Task:
        def task() -> None:
            call()
            wait()

        return task

    def areas() -> qg.Result:
        with torch.no_grad():
            return peaks.integrate(there, peaks.peak)

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(distances.distance(redshift, universe).sum(), universe)

    def distance() -> Tensor:
        with torch.no_grad():
            return distances.distance(redshift, universe)

    worst = lambda: f"{float(((areas().value - there.exact).abs() / there.exact).max()):.1e}"
    nodes = int(areas().nfev.sum())
    with torch.no_grad():
        few = int(qg.quad(distances.inverse_expansion, 0.0, redshift, args=universe).nfev.sum())
    return {
        "peaks": (timed(areas), n, nodes, worst),
        "distances": (timed(distance), m, few, lambda: ""),
        "distances and gradient": (timed(gradient), m, few, lambda: ""),
    }


def measure(scale: float = 1.0) -> Findings:
    """Count a round; time peaks and distances on the GPU beside the CPU where there is one."""
    n = max(200, round(BATCH * scale))
    cost = count_rounds(n)
    figures = [
        Figure("operations in a round", cost.operations, None, Target(OPERATIONS), ""),
        Figure("reads by the host in a round", cost.reads, None, Target(READS), ""),
    ]
    most = ", ".join(f"{name} {count}" for name, count in cost.counting.operations.most_common(12))
    reads = ", ".join(f"{name} {count}" for name, count in cost.counting.reads.most_common())
    notes = [f"All operations, the most frequent: {most}.", f"All reads: {reads or 'none'}."]
    measured: list[Measured] = []
    if torch.cuda.is_available():
        devices = {device: on(device, scale) for device in ("cpu", "cuda")}
        tasks = {f"{name}, {device}": task[0] for device, those in devices.items() for name, task in those.items()}
        seconds = interleave(tasks, repeats=7, warm_up=2)
        measured = [
            Measured(f"{name}, {device}", seconds[f"{name}, {device}"], task[1], task[2], (task[3](),))
            for device, those in devices.items()
            for name, task in those.items()
        ]
        figures += [
            compare(f"{name}: CPU's time over the GPU's", seconds[f"{name}, cpu"], seconds[f"{name}, cuda"])
            for name in devices["cpu"]
        ]
        notes.append(f"GPU: {torch.cuda.get_device_name()}.")
    else:
        notes.append("No GPU here: times of peaks and distances on one are left out.")
    return Findings(
        "Tensor path",
        f"The search of {n:,} peaks in tensor operations, on the CPU and without the compiled kernel: "
        f"{cost.rounds} rounds. Operations are those that start work on a device, without views and without f's "
        "own; reads are numbers, and sizes that only the device knows.",
        [show_seconds(measured, ("worst\nerror",))] if measured else [],
        figures,
        notes,
    )
