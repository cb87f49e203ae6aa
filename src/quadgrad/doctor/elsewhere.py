"""Lines that sever what changes nothing at the point, looked at further away: NumPy may decide by it, unseen.

Where the output is the same with a line's results frozen as without, at every place looked at, the line only logs.
"""

from __future__ import annotations

import math

from quadgrad.doctor.crossings import Jump
from quadgrad.doctor.examine import Examination, Loss
from quadgrad.doctor.trace import Order

__all__ = ["find_elsewhere"]

_PLACES = (0.3, -0.7, 1.5)
_HALVINGS = 24


def find_elsewhere(x: Examination) -> tuple[list[Jump], list[str]]:
    """Return where the output jumps with what a line severs, and notes on lines that sever elsewhere only."""
    main = x.directions[0]
    idle = [loss for loss in x.losses if not abs(loss.lost.value) > 3.0 * loss.lost.error]
    numbers = {k for loss in idle for k in loss.numbers}
    if not idle or not math.isfinite(main.true.value):
        return [], []
    jumps: list[Jump] = []
    notes: list[str] = []
    for t in _PLACES:
        if not _differs(x, numbers, t):
            continue
        for loss in idle:
            if not _differs(x, set(loss.numbers), t):
                continue
            event = x.trace.events[loss.numbers[0]]
            size, distance = _follow(x, loss, t)
            if size > 0.0:
                jumps.append(Jump(event, len(loss.numbers), size, distance))
            else:
                notes.append(f"what {event.op} severs at {event.place} changes nothing here, but elsewhere it does")
        break
    return jumps, notes


def _difference(x: Examination, numbers: set[int], t: float) -> float:
    """Return what freezing these events changes at a place; 0 where the program does something else, or fails."""
    steps = x.directions[0].steps
    try:
        live = x.program.run(Order(base=x.trace), steps, t)
        frozen = x.program.run(Order(base=x.trace, only=frozenset(numbers)), steps, t)
    except Exception:  # so far away the program may not be defined, and says so in its own way
        return 0.0
    if live.trace.parted or frozen.trace.parted:
        return 0.0
    difference = live.value - frozen.value
    return difference if math.isfinite(difference) else 0.0


def _differs(x: Examination, numbers: set[int], t: float) -> bool:
    return abs(_difference(x, numbers, t)) > 1e3 * x.eps * max(x.base.size, abs(x.base.value), 1e-300)


def _follow(x: Examination, loss: Loss, t: float) -> tuple[float, float]:
    """Return how far the output jumps where the line begins to matter, and at which distance; 0 if it does not."""
    numbers, near, far = set(loss.numbers), 0.0, t
    there = abs(_difference(x, numbers, t))
    for _ in range(_HALVINGS):
        middle = 0.5 * (near + far)
        if _differs(x, numbers, middle):
            far = middle
        else:
            near = middle
        if abs(far - near) <= 1e-4 * abs(far):
            break
    size = abs(_difference(x, numbers, far))
    return (size, abs(far)) if size > 0.05 * there else (0.0, 0.0)
