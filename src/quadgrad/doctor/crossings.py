"""Where decisions next fall otherwise, along a direction, and whether the output jumps there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from quadgrad.doctor.examine import A_LINE, Direction, Examination
from quadgrad.doctor.kinks import bends_only
from quadgrad.doctor.margins import Margins, margins_of
from quadgrad.doctor.names import DRAWS
from quadgrad.doctor.program import Run
from quadgrad.doctor.roots import WIDTH, Point, changed, root_of, slope_beside, zeros_of
from quadgrad.doctor.together import Crossing, Together
from quadgrad.doctor.trace import Decision, Event
from quadgrad.doctor.values import Held

__all__ = ["Jump", "find_jumps"]

_REACH, _NEAR, _WITHIN = 64.0, 2.0, 0.25
"""How far the first crossing of a line is looked for, others, and others in an integral, in sizes of the inputs.

Where what decides moves in proportion, it costs little to look as far as for the first one.
A jump inside an interval is near: its next node is. One that comes in from outside is not there at the point.
"""

_MOST = 8
"""So many crossings of a line are looked at, of different elements: one may bend where another one jumps."""

_A_CROSSING = 3
"""So many runs a crossing takes at least."""

_ELSEWHERE = 4
"""So many are left for what :mod:`quadgrad.doctor.elsewhere` does."""

_SHOWS = 1e-2
"""Of its distance: as close to a crossing a jump may show that is much larger than what slopes make there."""

_NARROWER, _STAYS = 0.125, 0.5
"""Of a bend no more than an eighth is left at an eighth of the distance; of a jump much more than that."""

_TRIES = 24

_BEHIND = 1.1
_SCAN = (0.5, -0.5, 1.0, -1.0, 2.0, -2.0)
"""Where decisions are looked at whose next crossing is not certain: so much behind a guess, and there."""

_KEPT = 4_000_000
"""So many numbers that decide are kept of runs along the direction, which several lines then need not run again."""


@dataclass(eq=False)
class Jump:
    """A decision (or what severs, and decides unseen) at which the output jumps: by how much, and how far away."""

    decision: Decision | Event
    count: int
    size: float
    distance: float


class _Size(NamedTuple):
    """How far the output jumps, at which distance, and whether the margin jumped as well."""

    size: float
    distance: float
    carried: bool = False


_NONE = _Size(0.0, 0.0)


@dataclass(eq=False)
class _Line:
    """A line that decides: its decisions, which crossings were followed or not reached, and what was found."""

    numbers: list[int]
    done: set[tuple[int, int]] = field(default_factory=lambda: set())
    failed: set[tuple[int, int, bool]] = field(default_factory=lambda: set())
    jump: _Size = _NONE
    open: bool = True

    def left_out(self, number: int, side: float) -> list[int]:
        """Return which crossings of a decision are not to be followed again."""
        failed = [c for k, c, right in self.failed if k == number and right == (side > 0.0)]
        return failed + [c for k, c in self.done if k == number]


def find_jumps(examination: Examination) -> list[Jump]:
    """Return where the output jumps, for each line that decides: at its next crossings along a direction."""
    trace, main = examination.trace, examination.directions[0]
    lines: dict[Any, list[int]] = {}
    for k, decision in enumerate(trace.decisions):
        if not decision.reason:
            lines.setdefault(decision.key, []).append(k)
    if not lines or not math.isfinite(main.true.value):
        return []
    found = [line for line in _Search(examination, main).lines(lines.values()) if line.jump.size > 0.0]
    # What a line decides on may jump itself, by what another one decides: that is the other line's.
    own = [line for line in found if not line.jump.carried] or found
    return [
        Jump(trace.decisions[line.numbers[0]], len(line.numbers), line.jump.size, line.jump.distance)
        for line in own
    ]


class _Search:
    """Runs further out along one direction."""

    def __init__(self, examination: Examination, main: Direction) -> None:
        self.x, self.main = examination, main
        self.trace = examination.trace
        self._runs: dict[float, Run] = {}
        self._refused: list[float] = []
        self._kept = 4
        h = main.step / 4.0
        if examination.at_point is not None:
            self._keep(0.0, examination.at_point)
        for t, run in zip((h, -h), main.sides.get(h, ()), strict=False):
            self._keep(t, run)
        self.at_point = self._run(0.0)
        self.sides = self._run(h), self._run(-h)
        sizes = [
            torch.as_tensor(d.quantity).numel() for d in self.at_point.trace.decisions if d.quantity is not None
        ]
        self._kept = max(self._kept, _KEPT // max(1, sum(sizes)))
        self._margins: dict[int, Margins | None] = {}
        self._bends: dict[int, Tensor] = {}
        self._more = 0
        self._together = Together(examination, self.at_point, self._values)
        self._is_told = abs(main.gap) > 3.0 * main.bar(examination.floor)  # then the verdict is no OK anyway

    def _run(self, t: float, outcomes: Any = None) -> Run:
        if t in self._runs and not outcomes:
            return self._runs[t]
        run = self.x.run_along(t, outcomes)
        if not outcomes and (t == 0.0 or len(self._runs) < self._kept):
            self._keep(t, run)
        return run

    def _attempt(self, t: float) -> Run | None:
        """Run where the program may not be defined, which it says in its own way."""
        try:
            return self._run(t)
        except Exception:
            self._refused.append(t)
            return None

    def _keep(self, t: float, run: Run) -> None:
        run.trace.events.clear()  # results as large as the program's own, which nobody reads any more
        run.trace.calls.clear()
        self._runs[t] = run

    # ------------------------------------------------------------------------------------ all lines

    def lines(self, numbers: Iterable[list[int]]) -> list[_Line]:
        """Follow crossings of all lines in turn, the nearest first, as long as runs are left for it."""
        self._find_bends()
        moving = [[k for k in each if self._moves(k)] for each in numbers]
        lines = [_Line(each) for each in moving if each]
        for line in lines:
            if self.trace.decisions[line.numbers[0]].op in DRAWS:
                line.jump, line.open = self._drawn(line.numbers), False
        self._more = A_LINE * len(lines)
        while True:
            found = self._next(lines)
            if found is not None and found[0].done:
                self._more = 0
            t = self._outlook(lines) if found is None else None
            if self._left() < _A_CROSSING or (found is None and t is None):
                return lines
            if found is not None and not (found[0].done and self._follow_together(lines)):
                self._follow(*found)
            elif t is not None:
                self._attempt(t)

    def _left(self) -> int:
        """Return how many runs are left, but for those that look at lines which sever what changes nothing.

        Until one crossing of each line was followed there are some more.
        """
        return self.x.left() + self._more - (_ELSEWHERE if self.x.idle() else 0)

    def _outlook(self, lines: list[_Line]) -> float | None:
        """Return where to run next: a little behind where a line that was not followed yet may change, or far out.

        A decision that changed between two runs is certain, and each run tells of all lines.
        """
        waiting = [line for line in lines if line.open and not line.done]
        if not waiting:
            return None
        guesses = [c.t for line in waiting if (c := self._nearest(line, _NEAR, certain=False)) is not None]
        for t in (*(_BEHIND * t for t in sorted(guesses, key=abs)), *_SCAN):
            if not any(0.8 < seen / t < 1.25 for seen in (*self._runs, *self._refused)):
                return t
        return None

    def _find_bends(self) -> None:
        """Find out which decisions, or elements of them, only bend the output, or do nothing."""
        runs = [run.trace.decisions for run in (self.at_point, *self.sides)]
        for k, known in enumerate(self.trace.decisions):
            there = [decisions[k] for decisions in runs if k < len(decisions) and decisions[k].key == known.key]
            if len(there) == len(runs) and known.op not in DRAWS:
                bends = bends_only(there[0], (there[1], there[2]))
                if bends is not None:
                    self._bends[k] = bends.flatten()
        unread = [k for k in self._bends if not runs[0][k].gaps]
        if unread:  # as far as torch shows: what TorchScript takes it does not show
            outcomes = {k: _other_outcome(self.trace.decisions[k].out) for k in unread}
            try:
                silent = self._run(0.0, outcomes).value == self.at_point.value
            except Exception:  # an index that is none
                silent = False
            for k in () if silent else unread:
                del self._bends[k]
        for decisions in runs:
            for decision in decisions:
                decision.gaps.clear()

    def _moves(self, number: int) -> bool:
        """Whether what decides depends on what is varied at all, here or further away."""
        if number in self._bends and bool(self._bends[number].all()):
            return False
        right, left = (self._values(run, number) for run in self.sides)
        if right is None or left is None:
            return False
        return self.trace.decisions[number].flows or not torch.equal(right, left)

    def _next(self, lines: list[_Line]) -> tuple[_Line, Crossing] | None:
        """Return the crossing that is followed next: of lines of which none was, the nearest; then of others."""
        near = _WITHIN if self.x.program.rehearsal.kept else _NEAR
        found: list[tuple[int, float, _Line, Crossing]] = []
        for line in lines:
            if line.open and len(line.done) < (1 if self._is_told else _MOST):
                reach = near if near == _WITHIN and line.done else _REACH
                crossing = self._nearest(line, reach)
                if crossing is not None:
                    found.append((len(line.done), abs(crossing.t), line, crossing))
        return min(found, key=lambda each: each[:2])[2:] if found else None

    def _follow(self, line: _Line, crossing: Crossing) -> None:
        """Close in on a crossing until a jump shows there, or none can be."""
        jump, by_outcome = None, self._is_by_outcome(crossing.number)
        for closeness in (_SHOWS, WIDTH) if not by_outcome else ():
            ends = self._close_in(crossing, closeness)
            jump = jump if ends is None else self._jump(crossing, *ends)
            if ends is None or (jump is not None and jump.size > 0.0):
                break
        jump = self._bisect(crossing) if jump is None else jump
        if jump is None:
            line.failed.add((crossing.number, crossing.column, crossing.t > 0.0))
            return
        if not by_outcome or jump.size:
            line.done.add((crossing.number, crossing.column))
        if jump.size > 0.0 and not jump.carried:
            self._is_told, line.open = True, False
        if not line.open or not line.jump.size:
            line.jump = jump

    def _follow_together(self, lines: list[_Line]) -> bool:
        """Cross in one step what moves in proportion; return whether that only bent the output."""
        waiting: list[Crossing] = []
        for line in lines:
            for k in line.numbers if line.open else ():
                for side in (1.0, -1.0):
                    waiting += self._straight_ones(line, k, side)
        crossed, jumps, distance = self._together.cross(sorted(waiting, key=lambda crossing: abs(crossing.t)))
        for line in lines:
            line.done |= {(c.number, c.column) for c in crossed if c.number in line.numbers}
            for k in jumps.keys() & set(line.numbers):
                line.jump, line.open, self._is_told = _Size(jumps[k], distance), False, True
        return bool(crossed)

    def _straight_ones(self, line: _Line, number: int, side: float) -> list[Crossing]:
        """Return crossings of a decision that are not between runs, but certain."""
        margins, places = self._margins_of(number), self._places(number, side, certain=True)
        if margins is None or places is None or margins.order is not None:
            return []
        columns, out = self._columns(number, margins), line.left_out(number, side)
        near = places.argsort()[:_MOST].tolist()
        return [
            Crossing(number, i, int(columns[i]), side * float(places[i]))
            for i in near
            if float(places[i]) <= _NEAR and int(columns[i]) not in out
        ]

    def _drawn(self, numbers: list[int]) -> _Size:
        """Return what another draw makes of the output, where its probabilities move."""
        for k in numbers:
            outcome = _other_outcome(self.trace.decisions[k].out)
            size = abs(self._run(0.0, {k: outcome}).value - self.at_point.value)
            if size > self._noise(0.0):
                return _Size(size, 0.0)
        return _NONE

    # ------------------------------------------------------------------------------------ where margins are zero

    def _margins_of(self, number: int) -> Margins | None:
        if number not in self._margins:
            integrates = bool(self.x.program.rehearsal.kept)
            self._margins[number] = margins_of(self.at_point.trace.decisions[number], integrates)
        return self._margins[number]

    def _values(self, run: Run, number: int) -> Tensor | None:
        """Return the margins of a decision in a run; None where it does not come to this decision."""
        margins, decisions = self._margins_of(number), run.trace.decisions
        if margins is None or number >= len(decisions) or decisions[number].key != self.trace.decisions[number].key:
            return None
        return margins.at(decisions[number])

    def _nearest(self, line: _Line, reach: float, certain: bool = True) -> Crossing | None:
        """Return the nearest crossing that was not followed yet: a certain one, or as far as runs so far tell."""
        best: Crossing | None = None
        for k in line.numbers:
            margins = self._margins_of(k)
            if margins is None:
                continue
            for side in (1.0, -1.0):
                places = self._places(k, side, certain)
                if places is None:
                    continue
                if out := line.left_out(k, side):
                    places[torch.isin(self._columns(k, margins), torch.tensor(out))] = torch.inf
                i = int(places.argmin())
                t = float(places[i])
                if t <= reach and (best is None or t < abs(best.t)):
                    best = Crossing(k, i, int(self._columns(k, margins)[i]), side * t)
        return best

    def _columns(self, number: int, margins: Margins) -> Tensor:
        """Return what a margin stands for: in an integral also which way its nodes cross."""
        columns = margins.columns
        if not self.x.program.rehearsal.kept or margins.order is not None:
            return columns
        here, right = self._values(self.at_point, number), self._values(self.sides[0], number)
        if here is None or right is None:
            return columns
        return 4 * columns + 2 * (here > 0.0) + (right > here)

    def _places(self, number: int, side: float, certain: bool) -> Tensor | None:
        """Return how far away each margin is zero: between runs, or by secants; infinity where nothing tells.

        Certain is what changed between two runs, and what moves in proportion.
        """
        before = self._values(self.at_point, number)
        if before is None:
            return None
        further = sorted(side * t for t in self._runs if side * t > 0.0)
        places, guessed = zeros_of(before, ((t, self._values(self._runs[side * t], number)) for t in further))
        if certain:
            places[guessed & ~self._straight(number, places)] = torch.inf
        if number in self._bends:
            places[self._bends[number]] = torch.inf
        return torch.where(places.isfinite(), places, torch.inf)

    def _straight(self, number: int, places: Tensor) -> Tensor:
        """Whether margins at the point and beside it tell of no bend all the way to these places."""
        left, here, right = (self._values(run, number) for run in (self.sides[1], self.at_point, self.sides[0]))
        if left is None or here is None or right is None:
            return torch.zeros_like(places, dtype=torch.bool)
        quantity = self.at_point.trace.decisions[number].quantity
        size = torch.as_tensor(0.0 if quantity is None else quantity).abs().nan_to_num(0.0, 0.0, 0.0).max()
        bend = (right - 2.0 * here + left).abs()
        # Margins of numbers much larger than their moves bend by rounding, which puts the place off by little.
        allowed = torch.where(bend <= 4.0 * self.x.eps * size, 1e-3, 1e-7)
        return bend * places * 4.0 / self.main.step <= allowed * (right - left).abs()

    def _points(self, crossing: Crossing) -> list[Point]:
        """Return all runs so far to this side of the point, with the margin there, the nearest first."""
        found: list[Point] = []
        for t in sorted((t for t in self._runs if t * crossing.t >= 0.0), key=abs):
            values = self._values(self._runs[t], crossing.number)
            if values is None:
                break
            found.append(Point(t, self._runs[t], float(values[crossing.element])))
        return [p for p in found if math.isfinite(p.margin)]

    def _close_in(self, crossing: Crossing, closeness: float) -> tuple[Point, Point, float] | None:
        """Return two runs close to each other with the crossing between them, and what slopes are there."""
        points, last, halve = self._points(crossing), crossing.t, 0
        for _ in range(_TRIES):
            far = changed(points)
            if far:
                near, beyond, slope = points[far - 1], points[far], max(self.main.size, slope_beside(points, far))
                width = abs(beyond.t - near.t) / abs(beyond.t)
                shows = abs(beyond.run.value - near.run.value) > self._noise(abs(beyond.t - near.t) * slope)
                if width <= 2.5 * WIDTH or (width <= closeness and closeness > WIDTH and shows):
                    return near, beyond, self.main.size if width <= 2.5 * WIDTH else slope
            if len(points) < 2 or self._left() < (_A_CROSSING + 1 if far else 2):
                return None  # what is left is enough for a bisection, if there is something to bisect
            root = root_of(points, far)
            if far and halve >= 2:  # of a margin that is not smooth interpolation tells little from far away
                narrow = abs(points[far].t - points[far - 1].t) <= 2.0 * _NARROWER * abs(points[far].t)
                root, halve = 0.5 * (points[far].t + points[far - 1].t), 0 if narrow else 2
            if root is None or abs(root) > _REACH:
                return None
            # Of an interpolation the next error is the square of the last one, about.
            off = abs(root / last - 1.0)
            around = max(WIDTH, 4.0 * off**2)
            width = abs(points[far].t - points[far - 1].t) if far else math.inf
            for t in (root * (1.0 - around), root * (1.0 + around)) if off <= 0.03 else (root,):
                points = self._with(points, t, crossing)
            last, narrower = root, changed(points)
            if narrower and abs(points[narrower].t - points[narrower - 1].t) > 0.5 * width:
                halve += 1
        return None

    def _with(self, points: list[Point], t: float, crossing: Crossing) -> list[Point]:
        """Return the points and one more."""
        run = self._attempt(t)
        values = None if run is None else self._values(run, crossing.number)
        if run is None or values is None or not math.isfinite(margin := float(values[crossing.element])):
            return points
        return sorted([*(p for p in points if p.t != t), Point(t, run, margin)], key=lambda p: abs(p.t))

    # ------------------------------------------------------------------------------------ what happens there

    def _jump(self, crossing: Crossing, near: Point, far: Point, slope: float) -> _Size:
        """Return how far the output jumps there: with the other outcome on this side, so nothing else counts."""
        width = abs(far.t - near.t)
        noise = self._noise(width * slope)
        if abs(far.run.value - near.run.value) <= noise:
            return _NONE
        size = self._exchanged(crossing.number, near, far)
        here = self._values(self.at_point, crossing.number)
        before = 0.0 if here is None else abs(float(here[crossing.element]))
        carried = abs(far.margin - near.margin) > (1e-2 + 10.0 * width / abs(near.t)) * before
        return _Size(size, abs(near.t), carried) if size > noise else _NONE

    def _exchanged(self, number: int, near: Point, far: Point) -> float:
        """Return what the outcome that a decision has elsewhere changes of the output."""
        outcome = far.run.trace.decisions[number].out
        try:
            value = self._run(near.t, {number: outcome}).value
        except Exception:  # with an outcome that its own numbers contradict, a program may refuse to go on
            value = far.run.value
        return abs(value - near.run.value)

    def _bisect(self, crossing: Crossing) -> _Size | None:
        """Return how far the output jumps where runs are too few to close in, or no margin is known to close in by.

        What the new outcome changes stays as large near the place as it is further away, or shrinks.
        """
        points, by_outcome = self._points(crossing), self._is_by_outcome(crossing.number)
        while far := changed(points):
            near, beyond = points[far - 1], points[far]
            away = [p for p in points[:far] if by_outcome or abs(near.margin) <= _NARROWER * abs(p.margin)]
            narrow = abs(beyond.t - near.t) <= _NARROWER * abs(beyond.t)
            if away and narrow and (by_outcome or self._is_alone(crossing, near, beyond)):
                there = self._exchanged(crossing.number, near, beyond)
                reference = away[0 if by_outcome else -1]
                here = self._exchanged(crossing.number, reference, beyond) if there > self._noise(0.0) else math.inf
                return _Size(there, abs(near.t)) if there > _STAYS * here else self._pass(crossing.number, beyond)
            if self._left() < _A_CROSSING:
                return None
            points = self._with(points, 0.5 * (near.t + beyond.t), crossing)
        return None

    def _is_alone(self, crossing: Crossing, near: Point, far: Point) -> bool:
        """Whether no other choice of this decision changes between two runs: of an integral's nodes many do."""
        margins = self._margins_of(crossing.number)
        before, beyond = (self._values(p.run, crossing.number) for p in (near, far))
        if margins is None or before is None or beyond is None or self.x.program.rehearsal.kept:
            return False
        changes = (before > 0.0) != (beyond > 0.0)
        return bool((margins.columns[changes] == crossing.column).all())

    def _pass(self, number: int, point: Point) -> _Size:
        """Note that an outcome matters no more than that at the point: the next one may."""
        margins = self._margins_of(number)
        if margins is not None and self._is_by_outcome(number):
            margins.passed.append(point.run.trace.decisions[number].out)
        return _NONE

    def _is_by_outcome(self, number: int) -> bool:
        return self.at_point.trace.decisions[number].levels == "outcome"

    def _noise(self, smooth: float) -> float:
        return self.x.noise + 100.0 * smooth


def _other_outcome(held: Held) -> Held:
    """Return what a decision did not come to: of a mask the opposite, of places the first two exchanged."""
    other = lambda x: ~x if x.dtype == torch.bool else (x == 0).to(x.dtype)
    steps = lambda x: isinstance(x, Tensor) and (len(held.leaves) == 1 or not x.is_floating_point())
    return held._replace(leaves=tuple(other(x) if steps(x) else x for x in held.leaves))
