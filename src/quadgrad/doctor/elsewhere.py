"""Lines that sever what changes nothing at the point, looked at further away: there it may matter.

Where the output is the same with a line's results frozen as without, the line only logs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from quadgrad.doctor.examine import Examination
from quadgrad.doctor.trace import Order

__all__ = ["find_elsewhere"]


def find_elsewhere(x: Examination) -> list[str]:
    """Return notes on lines that sever elsewhere only, as far as runs are left for them."""
    idle = x.idle()
    far = sorted((t for t in x.looks if 0.1 < abs(t) <= 2.0), key=lambda t: -abs(t))[:2]
    place = next((t for t in far if _matters(x, [k for loss in idle for k in loss.numbers], t)), None)
    if place is None:
        return []
    matter = [x.trace.events[loss.numbers[0]] for loss in idle if _matters(x, loss.numbers, place)]
    return [f"what {e.op} severs at {e.place} changes nothing here, but elsewhere it does" for e in matter]


def _matters(x: Examination, numbers: Iterable[int], t: float) -> bool:
    """Whether freezing these events changes the output at a place that was looked at."""
    if not (only := frozenset(numbers)) or x.left() < 1:
        return False
    try:
        run = x.program.run(Order(base=x.trace, only=only), x.directions[0].steps, t)
    except Exception:  # so far away the program may not be defined, and says so in its own way
        return False
    return not run.trace.parted and x.noise < abs(run.value - x.looks[t].value) < math.inf
