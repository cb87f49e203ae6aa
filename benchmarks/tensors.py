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

__all__ = ["Cost", "count_rounds", "measure"]

BATCH = 2_000
BLOCK = 2**21
NODES = 21
"""Nodes of the rule; f is called on as many rows, but for what is asked beside cells."""

OPERATIONS, READS = 350, 2
"""What a round may cost."""


@dataclass(frozen=True)
class Cost:
    """What a search asked of a device: how often f was called on cells, and what was counted, f's own left out."""

    rounds: int
    counting: Counting

    @property
    def totals(self) -> tuple[int, int, int]:
        """Operations, those that start work, reads."""
        return self.counting.operations.total(), self.counting.launches, self.counting.reads.total()

    def in_a_round(self, without: Cost | None = None) -> tuple[float, ...]:
        """Return the totals over the rounds; ``without`` what another call took, and its rounds."""
        rounds = self.rounds - (without.rounds if without else 0)
        base = without.totals if without else (0, 0, 0)
        return tuple((mine - other) / rounds for mine, other in zip(self.totals, base, strict=True))


@contextmanager
def without_kernel() -> Iterator[None]:
    """Search with tensor operations on the CPU, too."""
    from quadgrad._core.search.kernel import opening

    load, opening.load = opening.load, lambda: None
    try:
        yield
    finally:
        opening.load = load


def count_rounds(widths: float, n: int = BATCH) -> Cost:
    """Count what the search of n peaks asks of a device; their widths are multiplied."""
    problem, counting, rounds = peaks.make_peaks(n), Counting(), 0

    def f(x: Tensor, c: Tensor, e: Tensor) -> Tensor:
        nonlocal rounds
        rounds += x.shape[0] == NODES
        return peaks.peak(x, c, e)

    def integrate(f: Callable[..., Tensor]) -> qg.Result:
        """Integrate so that every round's cells are one block."""
        args = (problem.centre, widths * problem.width)
        return qg.quad(f, 0.0, 1.0, args, rtol=peaks.RTOL, chunk_size=BLOCK)

    with without_kernel(), torch.no_grad():
        integrate(peaks.peak)  # tables are made once
        with counting:
            integrate(counting.uncounted(f))
    return Cost(rounds, counting)


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
    cost, easy = count_rounds(1.0, n), count_rounds(1e6, n)
    operations, launches, reads = cost.in_a_round()
    further, _, more_reads = cost.in_a_round(easy)
    figures = [
        Figure("operations of the call over its rounds", operations, None, Target(OPERATIONS), ""),
        Figure("the same, those that start work on a device", launches, None, None, ""),
        Figure("operations of a further round", further, None, Target(OPERATIONS), ""),
        Figure("reads by the host, of the call over its rounds", reads, None, Target(READS), ""),
        Figure("reads of a further round", more_reads, None, Target(READS), ""),
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
        f"{cost.rounds} rounds, each one block of cells. Operations: views among them, f's own not. Reads: "
        "numbers, and sizes that only the device knows. A further round: without what a call of wide peaks takes.",
        [show_seconds(measured, ("worst\nerror",))] if measured else [],
        figures,
        notes,
    )
