"""What lines take away, as it is measured: step by step, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from quadgrad.doctor import values
from quadgrad.doctor.slopes import Estimate
from quadgrad.doctor.trace import Trace

__all__ = ["Loss", "Moved", "Table", "any_moved", "last_of"]

Moved = tuple[dict[int, values.Held | None], dict[int, values.Held | None]]
"""How far results moved at both sides, by the numbers of their events."""


@dataclass(eq=False)
class Loss:
    """What a line takes away from the derivative along the first direction.

    Where slopes to both sides differ, ``lost`` is their mean: what all lines together lose by it is ``apart`` from
    it at most.
    """

    numbers: list[int]
    lost: Estimate
    moved: bool = True
    apart: float = 0.0

    @property
    def matters(self) -> bool:
        """Whether it is more than nothing."""
        return not abs(self.lost.value) <= 3.0 * self.lost.error + self.apart

    @property
    def widened(self) -> Estimate:
        """What is lost, and how far it may be off in all."""
        return replace(self.lost, error=self.lost.error + self.apart)


class Table:
    """Slopes by the share of the step, of everything that is measured along the first direction."""

    def __init__(self, trace: Trace, active: Sequence[int]) -> None:
        self.lines: dict[Any, list[int]] = {}
        for k in active:
            self.lines.setdefault(trace.events[k].place.key, []).append(k)
        self.frozen: dict[float, float] = {}
        self.faults: dict[float, list[float]] = {}
        self.lost: dict[Any, dict[float, float]] = {key: {} for key in self.lines}
        self.bent: dict[Any, dict[float, float]] = {key: {} for key in self.lines}
        self.moved: set[Any] = set()


def last_of(side: dict[int, values.Held | None], trace: Trace, key: Any) -> values.Held | None:
    """Return how far the last result of a place moved, of those that there were at this side."""
    return next((held for k, held in reversed(side.items()) if trace.events[k].key == key), None)


def any_moved(numbers: list[int], moved: Moved) -> bool:
    """Tell whether any of these results moved at either side."""
    return any(k in side and values.moves(side[k]) for side in moved for k in numbers)
