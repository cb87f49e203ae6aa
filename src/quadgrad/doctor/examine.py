"""The examination of a program at one point: true derivatives, autograd's, and what each line takes away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quadgrad.doctor import values
from quadgrad.doctor.losses import Loss, Moved, Table, any_moved, last_of
from quadgrad.doctor.prints import Look
from quadgrad.doctor.products import along, paired, product
from quadgrad.doctor.program import Program, Run
from quadgrad.doctor.slopes import LADDERS, Estimate, extrapolate
from quadgrad.doctor.trace import Call, Order, Trace

__all__ = ["ALONE", "A_LINE", "BAR", "KINK", "RUNS", "Direction", "Examination"]

RUNS, A_LINE = 25, 6
"""So many runs are allowed, and so many more for each line that severs."""

BAR, FLOOR = 1e-6, 2e-9
"""What an error bar may be at most, and is at least, of the derivative."""

_STEPS = (1.0, 0.5, 0.25)

KINK = "The program has a kink at the point."
ALONE = (
    "The output at the very point is another one than those at both sides of it, however near: something compares "
    "with just what is given there (==, !=, a key of a dict)."
)
"""What the point itself may be."""

_STEADY, _SMOOTH = 1e-5, 1e-3
"""Up to such shares of the derivative differences of several steps are the same, and those of a smooth function."""


@dataclass(eq=False)
class Direction:
    """One direction: autograd's derivative along it, the true one, and their scale."""

    steps: list[Tensor]
    autograd: float
    scale: float
    true: Estimate = field(default_factory=Estimate.none)
    step: float = 0.0
    slopes: dict[float, float] = field(default_factory=lambda: {})
    bends: dict[float, float] = field(default_factory=lambda: {})
    sides: dict[float, tuple[Run, Run]] = field(default_factory=lambda: {})

    @property
    def gap(self) -> float:
        """What autograd is off."""
        return self.true.value - self.autograd

    def bar(self, floor: float) -> float:
        """How far the true derivative may be off."""
        return self.true.error + floor * self.size

    @property
    def size(self) -> float:
        """What the derivative's digits are counted from."""
        true = abs(self.true.value) if math.isfinite(self.true.value) else 0.0
        return max(self.scale, abs(self.autograd), true)


class Examination:
    """A program at one point.

    Parameters
    ----------
    program : Program
        With all sources known.
    base : Run
        A run at the point, with the gradient.
    trace : Trace
        What the first run showed.
    count : int
        How many directions.
    stop_at_kink : bool
        Measure nothing more where the point itself is seen to be a kink.
    """

    def __init__(self, program: Program, base: Run, trace: Trace, count: int, stop_at_kink: bool = False) -> None:
        self.program, self.base, self.trace = program, base, trace
        self.eps = 2.0**-52 if _is_double(program) else 2.0**-23
        self.ladder = LADDERS[_is_double(program)]
        if program.rehearsal.kept and any(not decision.reason for decision in trace.decisions):
            self.ladder = (*self.ladder[1:3], self.ladder[0], *self.ladder[3:])  # nodes cross places all the time
        self.floor = FLOOR if _is_double(program) else 2e-4
        self.most = BAR if _is_double(program) else 1e-2
        # Integrals are wrong by what was allowed, their derivatives by about as much.
        self.allowed = max(self.floor, 10.0 * program.rehearsal.tolerance)
        self.floor = max(self.floor, min(0.5 * self.most, self.allowed))
        self.parted, self.flipped = "", set[int]()
        self.stop_at_kink, self.border = stop_at_kink, ""
        self.decides = any(not decision.reason for decision in trace.decisions)
        self.at_point: Run | None = None
        self.directions = [self._direction(i, "tensor") for i in range(count)]
        self.losses: list[Loss] = []
        self.frozen = Estimate.none()
        self.wrong: list[tuple[Call, Estimate]] = []
        self.single: list[float] = []
        self._single_run: Run | None = None
        self.looks: dict[float, Look] = {}
        """What runs along the first direction showed, as far as it was run there."""

    def left(self) -> int:
        """Return how many runs are left of those that are allowed."""
        lines = {self.trace.events[k].place.key for k in self.active()}
        return RUNS + A_LINE * len(lines) - self.program.runs

    def _direction(self, number: int, scale: str) -> Direction:
        steps = self.program.direction(number, scale)
        terms = [product(g, s) for g, s in zip(self.base.gradient or [], steps, strict=False) if g is not None]
        size = math.hypot(*(float(torch.linalg.vector_norm(t)) for t in terms))
        return Direction(steps, along(self.base.gradient, steps), size)

    def run_along(self, t: float, outcomes: Any = None) -> Run:
        """Run at a place of the first direction, and keep a look, unless decisions are told these outcomes.

        What is decided on purpose stays as it is at the point.
        """
        meant = {k: decision.out for k, decision in enumerate(self.trace.decisions) if decision.reason}
        order = Order(base=self.trace, margins=True, outcomes=meant | (outcomes or {}))
        order.gradient = order.record = not outcomes
        steps = self.directions[0].steps
        run = self.program.run(order, steps, t)
        if not outcomes:
            self.looks[t] = Look(t, run.value, along(run.gradient, steps), run.trace.prints)
            run.gradient = None
        return run

    def look(self, t: float) -> Look:
        """Return what a run at a place of the first direction shows."""
        if t == 0.0 and self.at_point is not None:
            self.looks[t] = Look(t, self.base.value, self.directions[0].autograd, self.at_point.trace.prints)
        if t not in self.looks:
            self.run_along(t)
        return self.looks[t]

    # ------------------------------------------------------------------------------------ the true derivative

    def active(self) -> list[int]:
        """Return which events are nobody's intention."""
        return [k for k, event in enumerate(self.trace.events) if not event.reason]

    def rounding(self, h: float) -> float:
        """Return how far a central difference may be off because values are rounded."""
        return 2.0 * self.eps * max(self.base.size, abs(self.base.value)) / h

    @property
    def noise(self) -> float:
        """What values differ by at most that would be the same, were there no rounding."""
        return 1e3 * self.eps * max(self.base.size, abs(self.base.value), 1e-300)

    def pair(self, order: Any, direction: Direction, h: float) -> tuple[Run, Run]:
        """Run at both sides of the point."""
        runs = tuple(self.program.run(order(), direction.steps, t) for t in (h, -h))
        for run in runs:
            self.parted = self.parted or run.trace.parted
            self.flipped |= {k for k in run.trace.flipped if k < len(self.trace.decisions)}
        return runs[0], runs[1]

    def measure_truth(self) -> None:
        """Find the true derivative along every direction, the first with three steps, others with one or two."""
        main = self.directions[0]
        self._measure(main)
        if self.border:
            return
        if not math.isfinite(main.true.value):  # it leaves where the function is defined: by each element's size
            self.directions = [self._direction(i, "element") for i in range(len(self.directions))]
            main = self.directions[0]
            self._measure(main)
        if self._stands(main):  # a gap that nobody is to blame for: others can tell no more
            self.directions = [main]
        for direction in self.directions[1:]:
            if not self._measure_once(direction, main):
                self._measure(direction, main)

    def _measure_once(self, direction: Direction, main: Direction) -> bool:
        """Try one step, of which the first direction's tell how much is lost by curvature and by rounding."""
        if not main.slopes or not main.size > 0.0:
            return False
        last = min(main.slopes)
        curvature = 10.0 * abs(main.slopes[last] - main.true.value) / main.size / last**2
        # As small as rounding allows: kinks lie further away then.
        h = min(max(2.0 * self.rounding(1.0) / main.size / (0.5 * self._share(main)), self.ladder[2]), last)
        if not self._difference(direction, h, self.decides):
            return False
        slope = direction.slopes[h]
        estimate = _at_least(Estimate(slope, 2.0 * self.rounding(h), main.true.ratio), main, direction.size)
        estimate = replace(estimate, error=estimate.error + curvature * h**2 * direction.size)
        if not self._is_enough(replace(direction, true=estimate), main):
            return False
        direction.true, direction.step = estimate, h
        return True

    def _share(self, main: Direction | None) -> float:
        """Return how well a derivative is to be known: others than the first one no better than that."""
        if main is None or not main.size > 0.0:
            return 1e-2 * self.most
        return max(0.1 * self.most, 20.0 * main.true.error / main.size)

    def _is_enough(self, direction: Direction, main: Direction | None = None) -> bool:
        """Whether a derivative is known well, and autograd agrees or there are lines to blame."""
        # Where lines sever, a gap is no sign that steps are too large, if the first direction has one, too.
        explained = self._blames() and (main is None or self._is_off(main))
        known = direction.true.error <= self._share(main) * direction.size or self.is_zero(direction)
        return known and (explained or not self._is_off(direction))

    def is_zero(self, direction: Direction) -> bool:
        """Whether the output changes by no more than its rounding."""
        rounding = 10.0 * self.rounding(direction.step or 1.0)
        return max(abs(direction.true.value), abs(direction.autograd), direction.scale) <= rounding

    def _is_off(self, direction: Direction) -> bool:
        """Whether autograd's derivative is another one than the true one."""
        return not abs(direction.gap) <= 3.0 * direction.bar(self.floor)

    def _blames(self) -> bool:
        """Whether there are lines that may explain a gap."""
        return bool(self.active() or self._followed())

    def _stands(self, direction: Direction) -> bool:
        """Whether a gap that no line may explain is there at steps of different size."""
        if not direction.slopes:
            return False
        h, slope = min(direction.slopes.items())
        others = [other for step, other in sorted(direction.slopes.items()) if step >= 16.0 * h]
        steady = bool(others) and abs(slope - others[0]) <= _STEADY * direction.size
        return steady and self._is_far(direction, slope)

    def is_off_at_once(self) -> bool:
        """Whether two differences already tell of a gap that no line may explain."""
        main = self.directions[0]
        return all(self._difference(main, h, False) for h in self.ladder[:2]) and self._stands(main)

    def _measure(self, direction: Direction, main: Direction | None = None) -> None:
        """Try steps until they agree, and autograd agrees with them; keep the best."""
        ladder = self.ladder if main is None else (main.step, *(h for h in self.ladder[:-1] if h < main.step))
        for first in ladder:
            h = first
            if h > direction.step > 0.0 and direction.true.error < self.most * direction.size:
                continue  # a larger step is tried only where rounding drowned the smaller ones
            if 0.0 < direction.step > h and self._is_drowned(direction):
                continue
            self._try(direction, h, main, h != ladder[-1])
            while main is None and direction.step == h and self._gains(direction):
                h *= 0.5
                self._try(direction, h, None, False)
            if self.border or self._is_enough(direction, main) or (main is None and self._stands(direction)):
                return

    def _is_drowned(self, direction: Direction) -> bool:
        """Whether most of what a derivative may be off comes from rounding: smaller steps would make it more."""
        return 6.0 * self.rounding(direction.step * _STEPS[-1]) >= direction.true.error

    def _gains(self, direction: Direction) -> bool:
        """Whether half the step, which costs two runs, makes what is well known better known."""
        share = direction.true.error / direction.size if direction.size > 0.0 else 0.0
        return 1e-2 * self.most < share < _SMOOTH and not self._is_drowned(direction)

    def _try(self, direction: Direction, h: float, main: Direction | None, more: bool) -> None:
        """Take differences with a step and its half (and a quarter), and keep the best estimate."""
        slopes: list[float] = []
        step = h
        for share in _STEPS if main is None else _STEPS[1:]:
            step = h * share
            if not self._difference(direction, step, main is None and share == _STEPS[-1] and self.decides):
                return
            slopes.append(direction.slopes[step])
            if main is None and self.stop_at_kink and len(slopes) == 2:
                self.border = ALONE if self._is_alone(direction) else KINK if self._is_kink(direction) else ""
                if self.border:
                    return
            size = max(direction.size, abs(slopes[-1]))
            if main is None and more and len(slopes) == 2 and abs(slopes[1] - slopes[0]) > _SMOOTH * size:
                return
            looks = len(slopes) == (2 if self.stop_at_kink and main is None else 1)
            if looks and more and self._is_far(direction, slopes[-1]) and not self._stands(direction):
                return  # a step over kinks, most likely
        noise = self.rounding(step)
        estimate = extrapolate(slopes, noise, 1.0 if main is None else main.true.ratio)
        if main is not None:
            estimate = _at_least(estimate, main, direction.size)
        if estimate.error < direction.true.error:
            direction.true, direction.step = estimate, h

    def _difference(self, direction: Direction, step: float, margins: bool) -> bool:
        """Take a central difference, unless it is known; return whether both runs did what the first one did."""
        if step in direction.slopes and not (margins and step not in direction.sides):
            return True
        right, left = self.pair(lambda: Order(base=self.trace, margins=margins), direction, step)
        if right.trace.parted or left.trace.parted or not math.isfinite(right.value - left.value):
            return False
        if margins:
            direction.sides = {step: (right, left)}
        direction.slopes[step] = (right.value - left.value) / (2.0 * step)
        direction.bends[step] = (right.value - 2.0 * self.base.value + left.value) / step
        return True

    def compare_single(self, run: Run | None) -> None:
        """Take the run in single precision, whose gradient is the one that the program really has."""
        if run is not None and len(run.trace.calls) == len(self.base.trace.calls):
            self._single_run = run

    def off_in_single(self) -> float:
        """Return by how much of the derivative autograd's is off in single precision, at most."""
        if self._single_run is None or self._single_run.gradient is None:
            return 0.0
        off = 0.0
        for d in self.directions:
            gap = abs(along(self._single_run.gradient, d.steps) - d.autograd)
            off = max(off, gap / d.size if d.size > 0.0 else 0.0)
        return off

    def _is_far(self, direction: Direction, slope: float) -> bool:
        """Whether a difference is far from autograd's derivative, with no line to blame."""
        return not self._blames() and abs(slope - direction.autograd) > 1e-3 * direction.size

    def _is_alone(self, direction: Direction) -> bool:
        """Whether the value at the point is another one than those at both sides, however small the step.

        What it differs by is then the same at every step, where that of a kink falls with it. A jump at the point
        to one side leaves the sides apart by as much.
        """
        (h, last), (_, before) = sorted(direction.bends.items())[:2]
        grows = 1.5 * abs(before) < abs(last) and last * before > 0.0
        return grows and abs(last) * h > self.noise and abs(direction.slopes[h]) < 0.05 * abs(last)

    def _is_kink(self, direction: Direction) -> bool:
        """Whether slopes differ to both sides, however small the step, and autograd's is not that of the middle.

        Of a smooth function the slopes differ in proportion to the step.
        """
        (h, last), (_, before) = sorted(direction.bends.items())[:2]
        bent = abs(last) > max(10.0 * self.rounding(h), 1e-300) and abs(last) > 0.75 * abs(before)
        return bent and abs(direction.slopes[h] - direction.autograd) > 1e-4 * direction.size

    # ------------------------------------------------------------------------------------ line by line

    def measure_losses(self) -> None:
        """Freeze all lines, then shift one at a time: what autograd sees, and what each line takes away."""
        main = self.directions[0]
        if not math.isfinite(main.true.value) or not self._blames():
            self.frozen = main.true
            return
        table = Table(self.trace, self.active())
        for share in (*_STEPS[1:], _STEPS[0]):
            if not self._measure_step(table, main.step * share):
                return
            if share == _STEPS[-1]:
                self._conclude(table, (0.5, 0.25), main)
                if abs(self.residual.value) <= 3.0 * (self.residual.error + self.floor * main.size):
                    return
        self._conclude(table, _STEPS, main)

    def _measure_step(self, table: Table, step: float) -> bool:
        """Measure with one step; return whether the runs did what the first one did."""
        main, active = self.directions[0], self.active()
        frozen = "all" if active else "intended"
        right, left = self.pair(lambda: Order(base=self.trace, frozen=frozen, measure=True), main, step)
        if right.trace.parted or left.trace.parted:
            return False
        share = step / main.step
        slope = (right.value - left.value) / (2.0 * step)
        table.frozen[share] = slope
        table.faults[share] = self._faults(self.base.trace, right.trace, left.trace, step)
        if self._single_run is not None:
            self.single = self._faults(self._single_run.trace, right.trace, left.trace, step)
        moved = (right.trace.moved, left.trace.moved)
        # Where freezing all of them changes nothing, none of them takes anything away.
        idle = abs(slope - main.slopes.get(step, math.inf)) <= 1e-11 * main.size + 2.0 * self.rounding(step)
        for key, numbers in table.lines.items():
            if not any_moved(numbers, moved):
                table.lost[key][share] = 0.0
                continue
            table.moved.add(key)
            table.lost[key][share], table.bent[key][share] = (
                (0.0, 0.0) if idle else self._shift(numbers, moved, step)
            )
        return True

    def _conclude(self, table: Table, shares: Sequence[float], main: Direction) -> None:
        noise = self.rounding(main.step * shares[-1])

        def estimate(slopes: dict[float, float], noise: float) -> Estimate:
            found = extrapolate([slopes[share] for share in shares], noise, main.true.ratio)
            return _at_least(found, main, abs(found.value)) if len(shares) == 2 else found

        self.frozen = estimate(table.frozen, noise)
        self.losses = [
            Loss(
                numbers,
                estimate(table.lost[key], noise if any(table.lost[key].values()) else 0.0),
                key in table.moved,
            )
            for key, numbers in table.lines.items()
        ]
        for key, loss in zip(table.lines, self.losses, strict=True):
            # A tie that all lines keep together one alone breaks: steps agree on the mean of two slopes, wrongly.
            last, before = (table.bent[key].get(share, 0.0) for share in (shares[-1], shares[-2]))
            if abs(last) > max(0.75 * abs(before), 10.0 * noise):
                loss.apart = 0.5 * abs(last) + abs(
                    before - last
                )  # the step still adds half of that, and more of higher order
        self.wrong = [
            (call, estimate({share: parts[i] for share, parts in table.faults.items()}, 0.0))
            for i, call in enumerate(self._followed())
        ]
        # What is written behind torch's back cannot be frozen: it shows in the frozen derivative.
        edited = [
            loss for loss in self.losses if any(self.trace.events[k].detail == "edited" for k in loss.numbers)
        ]
        for loss in edited[:1]:
            unseen = self.frozen.value - main.autograd - sum(fault.value for _, fault in self.wrong)
            loss.lost = Estimate(unseen, self.frozen.error)

    def _shift(self, numbers: list[int], moved: Moved, step: float) -> tuple[float, float]:
        """Return the derivative by way of one line's results alone, and by what the slopes to both sides differ."""
        sums: list[float] = []
        for side in moved:
            shifts: dict[int, values.Held] = {}
            for k in numbers:
                event = self.trace.events[k]
                # Of a loop that took fewer turns there, the last one stands for those that are missing.
                last = side[k] if k in side else last_of(side, self.trace, event.key)
                if last is None:
                    return math.nan, math.nan
                if not event.linked:
                    shifts[k] = last
            run = self.program.run(Order(base=self.trace, shifts=shifts))
            sums.append(run.value)
        return (sums[0] - sums[1]) / (2.0 * step), (sums[0] - 2.0 * self.base.value + sums[1]) / step

    def idle(self) -> list[Loss]:
        """Return the lines that sever what changes nothing at the point."""
        return [loss for loss in self.losses if not loss.matters]

    def _followed(self) -> list[Call]:
        """Return the calls of custom functions whose backward pass ran."""
        return [call for call in self.base.trace.calls if call.cotangents_in is not None]

    def _faults(self, base: Trace, right: Trace, left: Trace, step: float) -> list[float]:
        """Return for each custom function what its backward pass took away, along the first direction."""
        faults: list[float] = []
        for call, a, b in zip(base.calls, right.calls, left.calls, strict=False):
            if call.cotangents_in is None:
                continue
            came, went = paired(call.cotangents_out, a.outs, b.outs), paired(call.cotangents_in, a.ins, b.ins)
            faults.append((came - went) / (2.0 * step))
        return faults

    @property
    def residual(self) -> Estimate:
        """What neither lines nor custom functions explain."""
        main = self.directions[0]
        parts = [loss.widened for loss in self.losses if math.isfinite(loss.lost.value)] + [
            w for _, w in self.wrong
        ]
        explained = sum(p.value for p in parts)
        error = main.true.error + sum(p.error for p in parts)
        return Estimate(main.gap - explained, error)


def _at_least(estimate: Estimate, main: Direction, size: float) -> Estimate:
    """Return what two steps gave, which do not tell their error: at least what three others left, of this size."""
    share = 10.0 * main.true.error / main.size if main.size > 0.0 else 0.0
    return Estimate(estimate.value, max(estimate.error, share * size), estimate.ratio)


def _is_double(program: Program) -> bool:
    return program.wide or all(t.dtype in (torch.float64, torch.complex128) for t in program.sources)
