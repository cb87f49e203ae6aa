"""Peak memory of a sample of 10^8 points in eight dimensions, and of the backward pass through one of 10^7.

Each case runs in a fresh process, ``python -m benchmarks.samples``: a process's high-water mark never falls.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target, show_time
from benchmarks.memory import MEBIBYTE, current_memory, peak_memory

__all__ = ["Case", "Outcome", "measure", "run_fresh"]

D = 8
LARGE = 10**8
BACKWARD = 10**7


@dataclass(frozen=True)
class Case:
    """How many points, and whether a gradient is taken; ``progress`` shows a bar."""

    n: int
    gradient: bool
    progress: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one process found: sizes in bytes, seconds; value and derivative, and how far they are from exact ones.

    Attributes
    ----------
    before, peak : float
        What the process held before the call, torch included, and at most.
    """

    before: float
    peak: float
    seconds: float
    off: float
    error: float
    nfev: int


def run(case: Case) -> Outcome:
    """Integrate ``prod exp(-s x_i)`` over the unit cube; the process must be fresh."""
    s = torch.tensor(1.5, dtype=torch.float64, requires_grad=case.gradient)
    f = lambda x, s: torch.exp(-s * x.sum(-1))
    before, began = current_memory(), time.perf_counter()
    result = qg.qmc(f, [0.0] * D, 1.0, (s,), n=case.n, progress=case.progress)
    if case.gradient:
        result.value.backward()
    seconds = time.perf_counter() - began
    side = (1 - torch.exp(-s.detach())) / s.detach()
    off = abs(float(result.value.detach() - side**D))
    if s.grad is not None:
        slope = D * side ** (D - 1) * (torch.exp(-s.detach()) - side) / s.detach()
        off = max(off, abs(float(s.grad - slope)))
    return Outcome(before, peak_memory(), seconds, off, float(result.error), int(result.nfev))


def run_fresh(case: Case) -> Outcome:
    """Measure one case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.samples", json.dumps(asdict(case))]
    root = Path(__file__).parent.parent
    finished = subprocess.run(command, cwd=root, env=os.environ, check=True, stdout=subprocess.PIPE, text=True)
    return Outcome(**json.loads(finished.stdout))


def measure(scale: float = 1.0) -> Findings:
    """Measure both, and a hundredth of each."""
    large, backward = (max(10**5, round(n * scale)) for n in (LARGE, BACKWARD))
    cases = [
        Case(large // 100, False), Case(large, False, progress=True), Case(backward // 100, True),
        Case(backward, True),
    ]  # fmt: skip
    outcomes = [run_fresh(case) for case in cases]
    rows = [
        (
            f"{case.n:,} points, {'value and gradient' if case.gradient else 'value'}",
            f"{outcome.peak / MEBIBYTE:.0f} MiB",
            f"{(outcome.peak - outcome.before) / MEBIBYTE:.0f} MiB",
            show_time(outcome.seconds),
            show_time(outcome.seconds / outcome.nfev),
            f"{outcome.off:.0e}",
            f"{outcome.error:.0e}",
        )
        for case, outcome in zip(cases, outcomes, strict=True)
    ]
    headings = ("", "peak", "of the call", "time", "per point", "off by", "error")
    return Findings(
        "Memory of samples",
        f"The product of exp(-1.5 x) over the unit cube in {D} dimensions, float64, a fresh process for each line. "
        "Peak: all that the process held at most, Python and torch included. Off by: the larger difference of "
        "value and derivative from the exact ones.",
        [Sheet(headings, rows)],
        [
            Figure("peak of 10^8 points, over 1 GiB", outcomes[1].peak / 2**30, target=Target(1.0)),
            Figure("peak backward through 10^7, over 1 GiB", outcomes[3].peak / 2**30, target=Target(1.0)),
            Figure("peak, a hundred times as many points", outcomes[1].peak / outcomes[0].peak),
            Figure("peak backward, a hundred times as many points", outcomes[3].peak / outcomes[2].peak),
        ],
    )


def main() -> None:
    """Run the case given on the command line."""
    print(json.dumps(asdict(run(Case(**json.loads(sys.argv[1]))))))


if __name__ == "__main__":
    main()
