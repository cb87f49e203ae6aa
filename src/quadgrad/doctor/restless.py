"""Decisions that fall otherwise within every step and let the output jump: then differences are noise."""

from __future__ import annotations

from typing import Any

from quadgrad.doctor.crossings import Jump
from quadgrad.doctor.examine import Examination
from quadgrad.doctor.trace import Order

__all__ = ["find_restless"]

_SHARES = (1.0, 2.0**-3, 2.0**-6)
_HALVINGS = 12


def find_restless(examination: Examination) -> list[Jump]:
    """Return decisions that fall otherwise within every step and let the output jump: differences are noise.

    An integral's nodes crowd around a jump: each one that crosses it jumps by little, and there is always one.
    Those around a kink cross it, too, and change nothing.
    """
    lines: dict[Any, list[int]] = {}
    for k in sorted(examination.flipped):
        if not examination.trace.decisions[k].reason:
            lines.setdefault(examination.trace.decisions[k].key, []).append(k)
    jumps = [(numbers, _Held(examination, numbers).jump()) for numbers in lines.values()]
    return [Jump(examination.trace.decisions[numbers[0]], 1, size, 0.0) for numbers, size in jumps if size > 0.0]


class _Held:
    """How much the output depends on some decisions: with them held as they fell at the point, and as they fall."""

    def __init__(self, examination: Examination, numbers: list[int]) -> None:
        self.x = examination
        self.outcomes = {k: examination.trace.decisions[k].out for k in numbers}

    def jump(self) -> float:
        """Return by how much the output jumps within a step; 0 where it is bent only.

        What was held back grows like the step where nodes cross jumps one after the other, and like its square
        where they cross a kink. Where none cross nearby, it is followed to the first that does: it goes to zero
        there, or jumps.
        """
        for h in (self.x.directions[0].step, -self.x.directions[0].step):
            sizes = [self._size(h * share) for share in _SHARES]
            if sizes[0] <= 0.0:
                continue
            if any(size > 0.5 * share**1.5 * sizes[0] for share, size in zip(_SHARES[1:], sizes[1:], strict=True)):
                return sizes[0]
            beyond = [h * share for share, size in zip(_SHARES, sizes, strict=True) if size > 0.0][-1]
            if sizes[-1] <= 0.0 and self._first(beyond) > sizes[0] / 32.0:
                return sizes[0]
        return 0.0

    def _first(self, beyond: float) -> float:
        """Return what is held back just beyond the first place, before this one, at which it is something."""
        near, last = 0.0, 0.0
        for _ in range(_HALVINGS):
            middle = 0.5 * (near + beyond)
            size = self._size(middle)
            near, beyond, last = (near, middle, size) if size > 0.0 else (middle, beyond, last)
        return last or self._size(beyond)

    def _size(self, t: float) -> float:
        """Return how much the output differs at a place, beyond its rounding."""
        x, steps = self.x, self.x.directions[0].steps
        live = x.program.run(Order(base=x.trace), steps, t)
        try:
            held = x.program.run(Order(base=x.trace, outcomes=self.outcomes), steps, t)
        except Exception:  # with an outcome that its own numbers contradict, a program may refuse to go on
            return abs(live.value - x.base.value)
        size = abs(live.value - held.value)
        return size if size > 32.0 * x.eps * max(x.base.size, abs(x.base.value)) else 0.0
