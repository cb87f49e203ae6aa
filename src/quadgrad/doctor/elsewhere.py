"""Lines that sever what changes nothing at the point, looked at further away: NumPy may decide by it, unseen.

Where the output is the same with a line's results frozen as without, at every place looked at, the line only logs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from quadgrad.doctor.crossings import Jump
from quadgrad.doctor.examine import Examination, Loss
from quadgrad.doctor.trace import Order

__all__ = ["find_elsewhere"]

_PLACES = (0.5, -1.0, 2.0)
_NARROWER, _STAYS, _TWICE, _BENDS = 0.25, 0.6, 2, 3
"""What a jump keeps of its size where what is around it becomes so much narrower; a bend shrinks with it."""


def find_elsewhere(x: Examination) -> tuple[list[Jump], list[str]]:
    """Return where the output jumps with what a line severs, and notes on lines that sever elsewhere only."""
    idle = x.idle()
    if not idle or not math.isfinite(x.directions[0].true.value):
        return [], []
    compare = _Comparison(x)
    every = [k for loss in idle for k in loss.numbers]
    place = next((t for t in _PLACES if x.left() >= 2 and compare.difference(every, t)), None)
    jumps: list[Jump] = []
    notes: list[str] = []
    if place is None:
        return jumps, notes
    for loss in idle:
        if x.left() < 1 or not compare.difference(loss.numbers, place):
            continue
        event = x.trace.events[loss.numbers[0]]
        size, distance = compare.follow(loss, place)
        if size > 0.0:
            jumps.append(Jump(event, len(loss.numbers), size, distance))
        else:
            notes.append(f"what {event.op} severs at {event.place} changes nothing here, but elsewhere it does")
    return jumps, notes


class _Comparison:
    """Runs along the first direction, with the results of some lines frozen and without."""

    def __init__(self, x: Examination) -> None:
        self.x = x
        self._found: dict[tuple[frozenset[int], float], float] = {}

    def difference(self, numbers: Iterable[int], t: float) -> float:
        """Return what freezing these events changes at a place; 0 where it is rounding, or the program fails."""
        key = frozenset(numbers), t
        if key not in self._found:
            try:
                change = abs(self._value(frozenset(), t) - self._value(key[0], t))
            except Exception:  # so far away the program may not be defined, and says so in its own way
                change = 0.0
            self._found[key] = change if self.x.noise < change < math.inf else 0.0
        return self._found[key]

    def _value(self, numbers: frozenset[int], t: float) -> float:
        x = self.x
        if not numbers:
            return x.look(t).value
        run = x.program.run(Order(base=x.trace, only=numbers), x.directions[0].steps, t)
        return math.nan if run.trace.parted else run.value

    def follow(self, loss: Loss, place: float) -> tuple[float, float]:
        """Return how far the output jumps where the line begins to matter, and at which distance; 0 if it bends."""
        near, beyond, bends, stays = 0.0, [(place, self.difference(loss.numbers, place))], 0, 0
        while stays or self.x.left() >= 2:
            t = 0.5 * (near + beyond[-1][0])
            size = self.difference(loss.numbers, t)
            if not size:
                near = t
            else:
                beyond.append((t, size))
            last, size = beyond[-1]
            wider = [s for t, s in beyond if abs(last - near) <= _NARROWER * abs(t - near)]
            if not wider:
                continue
            if size > _STAYS * wider[-1]:
                stays, beyond = stays + 1, beyond[-1:]
            else:
                bends, stays = bends + 1, 0
            if stays == _TWICE:
                return size, abs(last)
            if bends == _BENDS:
                break
        return 0.0, 0.0
