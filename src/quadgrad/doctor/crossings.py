"""Where the next decision falls otherwise, along a direction, and whether the output jumps there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quadgrad.doctor.examine import Direction, Examination
from quadgrad.doctor.names import DRAWS, SELECTIONS
from quadgrad.doctor.program import Run
from quadgrad.doctor.trace import Decision, Event, Order
from quadgrad.doctor.watch import same_outcome

__all__ = ["Jump", "find_jumps", "find_restless"]

_REACH = 64.0
"""How far a crossing is looked for, in sizes of what is varied."""

_WIDTH = 1e-7
_SECANTS = 5

_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Where a decision is looked at whose next crossing its rate at the point does not tell."""

_SHARES = (1.0, 2.0**-3, 2.0**-6)
_HALVINGS, _BISECTIONS = 12, 30


@dataclass(eq=False)
class Jump:
    """A decision (or what severs, and decides unseen) at which the output jumps: by how much, and how far away."""

    decision: Decision | Event
    count: int
    size: float
    distance: float


_Ends = tuple[tuple[float, Run], tuple[float, Run]]
"""Two places along a direction, and the runs there."""


class _Crossing(NamedTuple):
    number: int
    element: int
    level: float
    t: float


def find_jumps(examination: Examination) -> list[Jump]:
    """Return where the output jumps, for each line that decides: at its next crossing along the first direction."""
    trace, main = examination.trace, examination.directions[0]
    lines: dict[Any, list[int]] = {}
    for k, decision in enumerate(trace.decisions):
        if not decision.reason:
            lines.setdefault(decision.key, []).append(k)
    if not lines or not math.isfinite(main.true.value):
        return []
    search = _Search(examination, main)
    jumps: list[Jump] = []
    for numbers in lines.values():
        size, distance = search.jump_of(numbers)
        if size > 0.0:
            jumps.append(Jump(trace.decisions[numbers[0]], len(numbers), size, distance))
    return jumps


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


class _Search:
    """Runs further out along one direction."""

    def __init__(self, examination: Examination, main: Direction) -> None:
        self.x, self.main = examination, main
        self.trace = examination.trace
        self.at_point = self._run(0.0)
        self._scans: dict[float, list[tuple[float, Run]]] = {}
        h = main.step
        self.sides = [(t, self._run(t)) for t in (h / 4.0, -h / 4.0)]

    def _run(self, t: float, outcomes: Any = None) -> Run:
        order = Order(base=self.trace, margins=True, outcomes=outcomes or {})
        return self.x.program.run(order, self.main.steps, t)

    def jump_of(self, numbers: list[int]) -> tuple[float, float]:
        """Return how far the output jumps where the first of these decisions changes, and at which distance."""
        if self.trace.decisions[numbers[0]].op in DRAWS:
            return self._drawn(numbers)
        nearest = self._next(numbers)
        for crossing in nearest:
            bracket = self._bracket(crossing)
            if bracket is not None:
                return self._jump(crossing, *bracket)
        # One that stands still at the point, or turns, may all the same change further out.
        scanned = self._scanned(numbers) if self._moves(numbers) else None
        return (0.0, 0.0) if scanned is None else self._jump(scanned[0], *scanned[1])

    def _moves(self, numbers: list[int]) -> bool:
        """Whether what decides depends on what is varied at all."""
        for k in numbers:
            right, left = (self._quantity(run, k) for _, run in self.sides)
            if right is not None and left is not None and not torch.equal(right, left):
                return True
        return False

    def _drawn(self, numbers: list[int]) -> tuple[float, float]:
        """Return what another draw makes of the output, where its probabilities move."""
        for k in numbers:
            first, second = (self._quantity(run, k) for _, run in self.sides)
            if first is None or second is None or torch.equal(first, second):
                continue
            held = self.trace.decisions[k].out
            drawn = held.leaves[0]
            other = 1 - drawn if "bernoulli" in self.trace.decisions[k].op else (drawn == 0).to(drawn.dtype)
            changed = self._run(0.0, {k: held._replace(leaves=(other,))}).value
            size = abs(changed - self.at_point.value)
            if size > self._noise(0.0):
                return size, 0.0
        return 0.0, 0.0

    def _next(self, numbers: list[int]) -> list[_Crossing]:
        """Return where elements reach the next level, were they to go on as they do: the nearest to either side."""
        best: dict[bool, _Crossing] = {}
        step = self.sides[0][0]
        for k in numbers:
            here, right, left = (self._quantity(run, k) for run in (self.at_point, *(run for _, run in self.sides)))
            if here is None or right is None or left is None or not (here.shape == right.shape == left.shape):
                continue
            here, rate = here.flatten(), ((right - left) / (2.0 * step)).flatten()
            for level, t in _arrivals(here, rate, self.trace.decisions[k], self.at_point.trace.decisions[k].levels):
                t = torch.where(t.isfinite() & (t.abs() <= _REACH) & (rate != 0.0), t, torch.inf)
                for side in (True, False):
                    own = torch.where((t > 0.0) == side, t.abs(), torch.inf)
                    if not own.numel() or not bool(own.isfinite().any()):
                        continue
                    i = int(own.argmin())
                    if side not in best or float(own[i]) < abs(best[side].t):
                        best[side] = _Crossing(k, i, float(level[i]), float(t[i]))
        return sorted(best.values(), key=lambda c: abs(c.t))

    def _bracket(self, crossing: _Crossing) -> _Ends | None:
        """Return two places with the crossing between them, close to each other, and the runs there."""
        value, t = self._margin(self.at_point, crossing), crossing.t
        if value is None or t == 0.0:
            return None if value is None else self._pair(crossing, t)
        return self._close_in(crossing, (0.0, value), None, t)

    def _close_in(
        self, crossing: _Crossing, inside: tuple[float, float], outside: tuple[float, float] | None, t: float
    ) -> _Ends | None:
        """Follow the secant from a place on this side (and one beyond), each with its margin, to the crossing."""
        last, side = inside, inside[1] > 0.0
        for tries in range(_SECANTS if outside is None else 2 * _SECANTS):
            margin = self._margin(self._run(t), crossing)
            if margin is None:
                return None
            slope = (margin - last[1]) / (t - last[0]) if t != last[0] else 0.0
            if (margin > 0.0) == side:
                inside = (t, margin)
            else:
                outside = (t, margin)
            if outside is None and (slope == 0.0 or not math.isfinite(slope)):
                return None
            root, last = t - margin / slope if slope else math.inf, (t, margin)
            if outside is not None and (tries % 4 == 3 or not _is_between(root, inside[0], outside[0])):
                root = 0.5 * (inside[0] + outside[0])
            if abs(root) > _REACH:
                return None
            near = abs(root - t) <= 1e-4 * abs(t)  # the secant's next error is the square of it, about
            t = root
            if near:
                break
        if pair := self._pair(crossing, t):
            return pair
        # Numbers that decide may be rounded coarsely, in single precision: then what they decide tells where.
        return self._halve(crossing.number, inside[0], 2.0 * inside[0] if outside is None else outside[0])

    def _halve(self, number: int, near: float, far: float) -> _Ends | None:
        """Return two places close to each other, with the runs there, between which a decision falls otherwise."""
        ends = [(near, self._run(near)), (far, self._run(far))]
        if not all(self._is_met(run, number) for _, run in ends) or _same(ends[0], ends[1], number):
            return None
        for _ in range(_BISECTIONS):
            (near, _), (far, _) = ends
            if abs(far - near) <= 2.0 * _WIDTH * abs(far):
                break
            middle = 0.5 * (near + far)
            run = self._run(middle)
            if not self._is_met(run, number):  # a wide one: then only a large jump is one
                break
            ends[not _same(ends[0], (middle, run), number)] = (middle, run)
        return ends[0], ends[1]

    def _is_met(self, run: Run, number: int) -> bool:
        """Whether a run comes to this decision."""
        decisions = run.trace.decisions
        return number < len(decisions) and decisions[number].key == self.trace.decisions[number].key

    def _scanned(self, numbers: list[int]) -> tuple[_Crossing, _Ends] | None:
        """Return where one of these decisions is seen to have changed further out, whatever its rate here."""
        for side in (1.0, -1.0):
            before, at = 0.0, self.at_point
            for t, run in self._further_out(side):
                for k in numbers:
                    if run.trace.parted and len(run.trace.decisions) <= k:
                        continue
                    crossing = self._changed(k, at, run)
                    ends = None if crossing is None else (self._margin(at, crossing), self._margin(run, crossing))
                    if crossing is None or ends is None or ends[0] is None or ends[1] is None:
                        continue
                    bracket = self._close_in(crossing, (before, ends[0]), (t, ends[1]), 0.5 * (before + t))
                    return None if bracket is None else (crossing, bracket)
                before, at = t, run
        return None

    def _further_out(self, side: float) -> list[tuple[float, Run]]:
        if side not in self._scans:
            self._scans[side] = [(side * t, self._run(side * t)) for t in _SCAN]
        return self._scans[side]

    def _changed(self, number: int, near: Run, far: Run) -> _Crossing | None:
        """Return the first element of a decision whose outcome is another in two runs."""
        here, there = self._quantity(near, number), self._quantity(far, number)
        if here is None or there is None or here.shape != there.shape:
            return None
        decision = self.at_point.trace.decisions[number]
        if decision.op in SELECTIONS:
            return _Crossing(number, 0, 0.0, 0.0) if self._chose_another(far, number) else None
        shift = 0.5 if decision.levels == "halves" else 0.0
        here, there = here.flatten(), there.flatten()
        if decision.levels == "zero":
            differ, level = (here > 0.0) != (there > 0.0), torch.zeros_like(here)
        else:
            differ = (here - shift).floor() != (there - shift).floor()
            level = torch.maximum(here, there).sub(shift).floor() + shift
        if not bool(differ.any()):
            return None
        i = int(differ.nonzero()[0])
        return _Crossing(number, i, float(level[i]), 0.0)

    def _pair(self, crossing: _Crossing, t: float) -> _Ends | None:
        least = _WIDTH * (abs(t) or 1.0)
        for width in (least, 100.0 * least):
            near, far = t - math.copysign(width, t), t + math.copysign(width, t)
            first, second = self._run(near), self._run(far)
            a, b = self._margin(first, crossing), self._margin(second, crossing)
            if a is not None and b is not None and (a > 0.0) != (b > 0.0):
                return (near, first), (far, second)
        return None

    def _quantity(self, run: Run, number: int) -> Tensor | None:
        """Return the numbers that decide; None where another run does not come to this decision."""
        if not self._is_met(run, number):
            return None
        quantity = run.trace.decisions[number].quantity
        return None if quantity is None else torch.as_tensor(quantity, dtype=torch.float64)

    def _margin(self, run: Run, crossing: _Crossing) -> float | None:
        quantity = self._quantity(run, crossing.number)
        if (
            quantity is not None
            and self.trace.decisions[crossing.number].op in SELECTIONS
            and self._chose_another(run, crossing.number)
        ):  # then the distance to the next choice is that to the former one
            quantity = quantity[quantity.isfinite()]
            return -float(quantity.min()) if quantity.numel() else None
        if quantity is None or crossing.element >= quantity.numel():
            return None
        value = float(quantity.flatten()[crossing.element]) - crossing.level
        return value if math.isfinite(value) else None

    def _chose_another(self, run: Run, number: int) -> bool:
        return not same_outcome(run.trace.decisions[number].out, self.trace.decisions[number].out)

    def _jump(self, crossing: _Crossing, near: tuple[float, Run], far: tuple[float, Run]) -> tuple[float, float]:
        """Return how far the output jumps there: with the other outcome on this side, so nothing else counts."""
        (t, before), (beyond, after) = near, far
        outcome = after.trace.decisions[crossing.number].out
        try:
            crossed = self._run(t, {crossing.number: outcome})
        except Exception:  # with an outcome that its own numbers contradict, a program may refuse to go on
            crossed = after
        size = abs(crossed.value - before.value)
        return (size, abs(t)) if size > self._noise(abs(beyond - t) * self.main.size) else (0.0, 0.0)

    def _noise(self, smooth: float) -> float:
        return 1e3 * self.x.eps * max(self.at_point.size, abs(self.at_point.value)) + 100.0 * smooth


def _same(one: tuple[float, Run], other: tuple[float, Run], number: int) -> bool:
    """Whether a decision falls alike at two places."""
    return same_outcome(one[1].trace.decisions[number].out, other[1].trace.decisions[number].out)


def _is_between(t: float, one: float, other: float) -> bool:
    return min(one, other) < t < max(one, other)


def _arrivals(here: Tensor, rate: Tensor, decision: Decision, levels: str) -> list[tuple[Tensor, Tensor]]:
    """Return the next levels to both sides, and when elements get there."""
    if levels == "zero":
        level = torch.zeros_like(here)
        return [(level, (level - here) / rate)]
    shift = 0.5 if levels == "halves" else 0.0
    low = (here - shift).floor() + shift
    below = torch.where(low == here, low - 1.0, low)
    return [(level, (level - here) / rate) for level in (low + 1.0, below)]
