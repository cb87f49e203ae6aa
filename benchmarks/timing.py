"""Honest timing: everything that is compared runs in turn, A B A B, so that a busy machine slows all alike.

It knows nothing of integrals.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Seconds", "Task", "interleave", "several"]

Task = Callable[[], object]
"""What is timed. A task that returns a float has timed the part of it that matters itself, in seconds."""


@dataclass(frozen=True)
class Seconds:
    """The times of one task, in seconds, in the order they were taken."""

    runs: tuple[float, ...]

    @property
    def best(self) -> float:
        """The least disturbed run."""
        return min(self.runs)

    @property
    def median(self) -> float:
        """The usual run."""
        return statistics.median(self.runs)

    def scaled(self, factor: float) -> Seconds:
        """Return the times multiplied: those of a sample, scaled to the whole."""
        return Seconds(tuple(factor * run for run in self.runs))


def several(task: Task, times: int) -> Task:
    """Return a task that runs ``times`` times in a row, timed as the mean: what is short beside what takes long."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(times):
            task()
        return (time.perf_counter() - start) / times

    return run


def interleave(tasks: Mapping[str, Task], repeats: int, warm_up: int = 1, pause: float = 0.0) -> dict[str, Seconds]:
    """Run all tasks ``warm_up`` times untimed and ``repeats`` times timed, taking turns.

    ``pause`` seconds before each: a library's threads spin for a while after its work is done, and would slow
    what comes next if that is another library's.
    """
    runs: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(warm_up + repeats):
        for name, task in tasks.items():
            time.sleep(pause)
            start = time.perf_counter()
            own = task()
            whole = time.perf_counter() - start
            if turn >= warm_up:
                runs[name].append(own if isinstance(own, float) else whole)
    return {name: Seconds(tuple(times)) for name, times in runs.items()}
