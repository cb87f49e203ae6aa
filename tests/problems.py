"""The integrals that every rule must solve, from the table in `benchmarks.problems`, and those that none can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch

from benchmarks.problems import EVERYDAY, Problem

PROBLEMS: tuple[Problem, ...] = EVERYDAY


@dataclass(frozen=True)
class Hopeless:
    """An integral that must not be reported as converged: it diverges, or its budget is too small."""

    name: str
    f: Callable[[torch.Tensor], torch.Tensor]
    a: float
    b: float
    max_nfev: int | None = None

    def __str__(self) -> str:
        return self.name


HOPELESS: tuple[Hopeless, ...] = (
    Hopeless("1/x at 0", lambda x: 1 / x, 0, 1),
    Hopeless("double pole inside", lambda x: (x - 1 / 3) ** -2, 0, 1),
    Hopeless("constant on the half-line", lambda x: 1 + 0 * x, 0, inf),
    Hopeless("1/x at infinity", lambda x: 1 / x, 1, inf),
    Hopeless("not a number on a region", lambda x: torch.sqrt(x - 0.3), 0, 1),
    Hopeless("infinite on a region", lambda x: torch.where(x < 0.3, inf, x), 0, 1),
    Hopeless("peak with one round to spend", lambda x: 1e-5 / ((x - 0.3) ** 2 + 1e-10), 0, 1, 26),
    Hopeless("sin(1/x) with few nodes to spend", lambda x: torch.sin(1 / x), 0, 1, 210),
)


def tagged(*tags: str) -> list[Problem]:
    """Return the problems that carry every one of the tags."""
    return [p for p in PROBLEMS if p.tags.issuperset(tags)]
