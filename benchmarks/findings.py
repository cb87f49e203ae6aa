"""What a benchmark hands on to be shown: its settings, its measurements, and figures beside their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.timing import Seconds

__all__ = ["Figure", "Findings", "Measured", "Sheet", "Target", "compare", "show_seconds", "show_time"]


@dataclass(frozen=True)
class Target:
    """A bound that a figure should keep, from above or from below."""

    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether the value keeps the bound; NaN never does."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """One number that a target is about.

    Attributes
    ----------
    label, unit : str
        What the number is; ``"x"`` for a ratio.
    measured : float
        From the median of times.
    best : float or None
        From the best of times; None for what is no time.
    target : Target or None
        None for a number that only explains another one.
    """

    label: str
    measured: float
    best: float | None = None
    target: Target | None = None
    unit: str = "x"


@dataclass(frozen=True)
class Measured:
    """One thing that was timed: how long it took, for how much, and how right it was."""

    label: str
    seconds: Seconds
    integrals: int
    nodes: int
    accuracy: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """A table of text; the first column is a label."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Findings:
    """All that one benchmark found."""

    title: str
    setting: str
    sheets: Sequence[Sheet]
    figures: Sequence[Figure]
    notes: Sequence[str] = field(default=())


def compare(label: str, over: Seconds, under: Seconds, target: Target | None = None) -> Figure:
    """Return the ratio of two times measured in turn."""
    return Figure(label, over.median / under.median, over.best / under.best, target)


def show_seconds(measured: Sequence[Measured], accuracy: Sequence[str]) -> Sheet:
    """Return the table of times, accuracy beside each; ``accuracy`` holds the headings of that."""
    headings = ("", "best", "median", "per\nintegral", "nodes per\nintegral", "per\nnode", *accuracy)
    rows = [
        (
            m.label,
            show_time(m.seconds.best),
            show_time(m.seconds.median),
            show_time(m.seconds.median / m.integrals),
            f"{m.nodes / m.integrals:.0f}",
            show_time(m.seconds.median / m.nodes),
            *(m.accuracy or [""] * len(accuracy)),
        )
        for m in measured
    ]
    return Sheet(headings, rows)


def show_time(seconds: float) -> str:
    """Return a time with three digits and a unit that suits it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
