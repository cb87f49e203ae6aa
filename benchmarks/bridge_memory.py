"""Peak memory of wrapped functions over many steps, and over many static arguments.

A process's high-water mark never falls, so each case runs in a fresh one: ``python -m benchmarks.bridge_memory CASE
COUNT`` is that process and prints its mark. There freed memory goes back to the system at once, as on the page
``memory``: a heap with holes grows by some tens of megabytes in any loop over arrays of this size.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import quadgrad as qg
from benchmarks.bridge_speed import step
from benchmarks.findings import Figure, Target
from benchmarks.memory import MALLOC, MEBIBYTE, peak_memory

__all__ = ["measure_memory"]

ELEMENTS, STEPS = 10**6, 50
STATICS, SHORTER = 1_000, 10_000
"""How many static arguments one after the other, and with how many elements each."""


def many_steps(derivative: str | Callable[[np.ndarray], np.ndarray]) -> Callable[[int], None]:
    """Return what goes forward and backward as often as it is told, each time at another point."""
    f = qg.bridge.wrap(lambda x: np.sin(x), derivative, sparsity="elementwise")
    x = torch.linspace(0.1, 1.0, ELEMENTS, dtype=torch.float64)
    return lambda count: step(f, x, count, 1e-3)


def many_statics(count: int) -> None:
    """Go forward and backward with another static argument each time."""
    f = qg.bridge.wrap(lambda x, k: np.sin(k * x), sparsity="elementwise", static=("k",))
    x = torch.linspace(0.1, 1.0, SHORTER, dtype=torch.float64)
    for k in range(count):
        step(lambda t, k=k: f(t, 1.0 + k), x, 1, 0.0)


CASES: dict[str, Callable[[int], None]] = {
    "central": many_steps("central"),
    "richardson": many_steps("richardson"),
    "derivative=": many_steps(np.cos),
    "static": many_statics,
}


def peak(case: str, count: int) -> float:
    """Return the high-water mark of a fresh process that runs a case."""
    command = [sys.executable, "-m", "benchmarks.bridge_memory", case, str(count)]
    root = Path(__file__).parent.parent
    finished = subprocess.run(
        command, cwd=root, env=os.environ | MALLOC, check=True, stdout=subprocess.PIPE, text=True
    )
    return float(finished.stdout)


def measure_memory() -> list[Figure]:
    """Compare the peaks of many steps with those of one, and of many static arguments with those of fifty."""
    label = f"{ELEMENTS:,} elements, {STEPS} steps, " + "{}: peak above that of one step"
    figures = [
        Figure(label.format(case), (peak(case, STEPS) - peak(case, 1)) / MEBIBYTE, target=Target(50), unit="MiB")
        for case in CASES
        if case != "static"
    ]
    grown = (peak("static", STATICS) - peak("static", STEPS)) / MEBIBYTE
    label = f"a static argument that changes {STATICS:,} times: peak above that of {STEPS}"
    return [*figures, Figure(label, grown, target=Target(5), unit="MiB")]


if __name__ == "__main__":
    CASES[sys.argv[1]](int(sys.argv[2]))
    print(peak_memory())
