"""Points of the unit cube beside torch's own Sobol points, streamed in blocks and in single calls."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.findings import Findings, Measured, Target, compare, show_seconds
from benchmarks.timing import Task, interleave, several
from quadgrad._core.points import SEQUENCES, make_sequence

__all__ = ["measure"]

D = 8
TOTAL = 1 << 22
BLOCK = 1 << 14
REPLICATES = 16
TORCH = "torch, scrambled"


def torch_stream(total: int) -> Task:
    """Return a task that draws torch's scrambled points, in its float32, block by block."""

    def run() -> None:
        engine = torch.quasirandom.SobolEngine(D, scramble=True, seed=0)
        for _ in range(total // BLOCK):
            engine.draw(BLOCK)

    return run


def stream(name: str, total: int, replicates: int = 1, dtype: torch.dtype = torch.float64) -> Task:
    """Return a task that makes as many points of ours, its set-up included, in blocks of as many."""
    count = BLOCK // replicates

    def run() -> None:
        sequence = make_sequence(name, D, 0, replicates, dtype=dtype)
        for start in range(0, total // replicates, count):
            sequence.points(start, count)

    return run


def single(d: int, fresh: bool) -> Task:
    """Return a task that asks for one block, of a sequence that is made for it or has been used."""
    kept = make_sequence("sobol", d)
    make: Callable[[], object] = lambda: (make_sequence("sobol", d) if fresh else kept).points(0, BLOCK)
    return several(make, 20)


def torch_single(d: int) -> Task:
    """Return a task that sets up torch's engine and draws one block."""
    return several(lambda: torch.quasirandom.SobolEngine(d, scramble=True, seed=0).draw(BLOCK), 20)


def measure(scale: float = 1.0) -> Findings:
    """Time all of it in turn."""
    total = max(8, round(TOTAL // BLOCK * scale)) * BLOCK
    labels = {"sobol": "Sobol", "lattice": "lattice", "random": "pseudo-random"}
    streams = {TORCH: torch_stream(total)}
    streams |= {f"{labels.get(name, name)}": stream(name, total) for name in SEQUENCES}
    streams |= {
        f"Sobol, {REPLICATES} replicates": stream("sobol", total, REPLICATES),
        "Sobol, float32": stream("sobol", total, dtype=torch.float32),
    }
    blocks: dict[str, Task] = {}
    for d in (2, 16):
        blocks |= {
            f"torch, set up, {d}-d": torch_single(d),
            f"Sobol, set up, {d}-d": single(d, True),
            f"Sobol, kept, {d}-d": single(d, False),
        }
    seconds = interleave(streams | blocks, max(5, round(11 * scale)))
    rows = [Measured(name, seconds[name], 1, total) for name in streams]
    rows += [Measured(name, seconds[name], 1, BLOCK) for name in blocks]
    bounds = {"Sobol": 1.5, f"Sobol, {REPLICATES} replicates": 1.5}
    figures = [
        compare(
            f"{name} over torch's", seconds[name], seconds[TORCH], Target(bounds[name]) if name in bounds else None
        )
        for name in streams
        if name != TORCH
    ]
    figures += [
        compare(f"one block with its set-up over torch's, {d}-d", seconds[f"Sobol, set up, {d}-d"],
                seconds[f"torch, set up, {d}-d"])
        for d in (2, 16)
    ]  # fmt: skip
    return Findings(
        "Points",
        f"{total:,} points in {D} dimensions in blocks of {BLOCK:,}, set-up included; {REPLICATES} replicates have "
        f"so many together. Below, one block. Ours are float64 with 52 digits unless said otherwise; torch's are "
        "float32 with 30, of which some are exactly 1. A node is a point.",
        [show_seconds(rows, ())],
        figures,
    )
