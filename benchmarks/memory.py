"""Peak memory of a backward pass through a network in the integrand, with and without ``chunk_size``.

A process's high-water mark never falls, so each case runs in a fresh one: ``python -m benchmarks.memory``
is that process, reads its case from the command line and prints what it found as JSON. There freed memory goes
back to the system at once, so that the mark is that of memory in use, not of a heap with holes.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

import quadgrad as qg
from benchmarks.earlier import Earlier
from benchmarks.findings import Figure, Findings, Sheet, Target, compare
from benchmarks.timing import Task, interleave

__all__ = ["make_tasks", "measure"]

BATCH = 80_000
WIDTH = 16
CHUNK = 4096
SEED = 40_000
MEBIBYTE = 2.0**20
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc's setting for giving blocks of this size back at once; others ignore it."""


@dataclass(frozen=True)
class Case:
    """How many integrals, nodes evaluated at a time (0: no ``chunk_size``), and whether a gradient is taken."""

    batch: int
    chunk_size: int
    gradient: bool = True


@dataclass(frozen=True)
class Outcome:
    """What one process found, sizes in bytes.

    Attributes
    ----------
    peak : float
        Growth of the process over what it was before the call.
    kept : float
        Size of the result's tensors and the plan's.
    nodes, gradient
        Nodes of the search; gradient with respect to the network's parameters.
    """

    peak: float
    kept: float
    nodes: int
    gradient: list[float]


def make_network() -> nn.Sequential:
    """Return a small network with weights from a generator of its own."""
    network = nn.Sequential(nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    network = network.to(torch.float64)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / WIDTH**0.5)
    return network


def integrate(network: nn.Module, upper: Tensor, case: Case) -> tuple[qg.Result, list[Tensor]]:
    """Integrate the network from 0 to each upper limit, and differentiate the sum if asked for."""
    f = lambda x: network(x.unsqueeze(-1)).squeeze(-1)
    with torch.set_grad_enabled(case.gradient):
        result = qg.quad(f, 0.0, upper, chunk_size=case.chunk_size or None)
    if not case.gradient:
        return result, []
    return result, list(torch.autograd.grad(result.value.sum(), list(network.parameters())))


def run(case: Case) -> Outcome:
    """Measure one case; the process must be fresh."""
    network = make_network()
    upper = 0.1 + torch.rand(case.batch, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    integrate(network, upper[:64], case)  # what torch sets up once is not counted
    before = current_memory()
    result, gradient = integrate(network, upper, case)
    peak = peak_memory() - before
    plan = (getattr(result.plan, field.name) for field in fields(result.plan))
    kept = size_of((result.value, result.error, result.status, result.nfev)) + size_of(
        t for t in plan if isinstance(t, Tensor)
    )
    flat = [entry for g in gradient for entry in g.flatten().tolist()]
    return Outcome(peak, kept, int(result.nfev.sum()), flat)


def size_of(tensors: Iterable[Tensor]) -> float:
    """Return the bytes that the tensors' elements take."""
    return float(sum(t.numel() * t.element_size() for t in tensors))


def peak_memory() -> float:
    """Return the process's high-water mark in bytes."""
    mark = linux_status("VmHWM")
    if mark is not None:  # Linux hands a parent's ru_maxrss down to its children, but not this
        return mark
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


def current_memory() -> float:
    """Return what the process holds now, in bytes; its high-water mark where the system does not tell."""
    now = linux_status("VmRSS")
    return peak_memory() if now is None else now


def linux_status(name: str) -> float | None:
    """Return a size from ``/proc/self/status`` in bytes, or None where there is none."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024.0 * float(line.split()[1])
    return None


def run_fresh(case: Case) -> Outcome:
    """Measure one case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(case))]
    root = Path(__file__).parent.parent
    finished = subprocess.run(
        command, cwd=root, env=os.environ | MALLOC, check=True, stdout=subprocess.PIPE, text=True
    )
    return Outcome(**json.loads(finished.stdout))


def measure(scale: float = 1.0) -> Findings:
    """Measure two batch sizes, with and without ``chunk_size``."""
    large = max(4000, round(BATCH * scale))
    cases = [Case(batch, chunk_size) for batch in (large // 2, large) for chunk_size in (0, CHUNK)]
    outcomes = [run_fresh(case) for case in cases]
    small_free, small_chunked, free, chunked = outcomes
    kept = chunked.kept - small_chunked.kept
    grown = {gradient: growth(2 * large, gradient) for gradient in (False, True)}
    rows = [
        (
            f"{case.batch:,} integrals, {f'chunk_size={case.chunk_size}' if case.chunk_size else 'no chunk_size'}",
            f"{outcome.peak / MEBIBYTE:.1f} MiB",
            f"{outcome.kept / MEBIBYTE:.1f} MiB",
            f"{outcome.nodes / case.batch:.0f}",
            f"{gradient_gap(outcome, reference):.0e}" if case.chunk_size else "",
        )
        for case, outcome, reference in zip(cases, outcomes, [small_free] * 2 + [free] * 2, strict=True)
    ]
    headings = ("", "peak", "result\nand plan", "nodes per\nintegral", "gradient\noff by")
    return Findings(
        "Memory",
        f"A network with two layers of {WIDTH} inside the integrand, float64, value and gradient with respect to "
        "its parameters. Peak: by how much the process grew over what it held before, a fresh process for each "
        "line. Gradient: relative difference from the one without chunk_size. Growth: that of the peak between the "
        "two batches, with chunk_size between those two and four times as large, over that of result and plan.",
        [Sheet(headings, rows)],
        [
            Figure("peak without chunk_size over peak with", free.peak / chunked.peak),
            Figure("growth over result and plan, no chunk_size", (free.peak - small_free.peak) / kept),
            Figure(
                "growth over result and plan, chunk_size, value alone",
                grown[False],
                target=Target(1.1),
            ),
            Figure(
                "growth over result and plan, chunk_size",
                grown[True],
                target=Target(1.1),
            ),
            Figure("gradient with chunk_size off by", gradient_gap(chunked, free), target=Target(1e-12), unit=""),
            gain_of_keeping(scale),
        ],
    )


def make_tasks() -> dict[str, Task]:
    """Return what is timed in processes that keep freed memory and in others: integrals of a cheap integrand."""
    a = torch.linspace(0.5, 3.0, 10_000, dtype=torch.float64)
    f = lambda t, a: torch.exp(-a * t / (1 - t)) * torch.cos(t / (1 - t)) / (1 - t) ** 2
    integrate = lambda: qg.quad(f, 0.0, 1.0, (a,), rtol=1e-9)

    def kept() -> None:
        qg.keep_freed_memory()
        integrate()

    return {"as it is": integrate, "kept": kept}


def gain_of_keeping(scale: float) -> Figure:
    """Return how long 10,000 integrals take in a process that keeps freed memory, over one that does not."""
    source = str(Path(qg.__file__).parent.parent)
    processes = {name: Earlier(source, "benchmarks.memory") for name in ("as it is", "kept")}
    seconds = interleave(
        {name: process.task(name) for name, process in processes.items()}, max(5, round(21 * scale)), 2, 0.01
    )
    for process in processes.values():
        process.close()
    return compare("time of 10,000 integrals, keep_freed_memory() over none", seconds["kept"], seconds["as it is"])


def growth(batch: int, gradient: bool) -> float:
    """Return how much the peak grows with ``chunk_size`` when the batch doubles, by that of result and plan."""
    small, large = (run_fresh(Case(size, CHUNK, gradient)) for size in (batch, 2 * batch))
    return (large.peak - small.peak) / (large.kept - small.kept)


def gradient_gap(outcome: Outcome, reference: Outcome) -> float:
    """Return the largest difference of two gradients over the largest entry."""
    ours, theirs = (torch.tensor(o.gradient, dtype=torch.float64) for o in (outcome, reference))
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def main() -> None:
    """Run the case given on the command line."""
    print(json.dumps(asdict(run(Case(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
