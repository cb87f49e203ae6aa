"""One task: a family, a way of calling, a seed. Run it, judge it, and ask about what was wrong."""

from __future__ import annotations

import random
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from benchmarks.fuzz.bells import BELLS
from benchmarks.fuzz.breaks import BREAKS
from benchmarks.fuzz.claims import Claims, Verdict
from benchmarks.fuzz.ends import ENDS
from benchmarks.fuzz.inquiry import contrast, rounding
from benchmarks.fuzz.sample import Draw, Family, Sample
from benchmarks.fuzz.waves import WAVES
from benchmarks.fuzz.ways import SMALL, WAYS, Call, DisagreementError, suits

__all__ = ["FAMILIES", "Case", "Count", "Outcome", "Task", "all_tasks", "draw", "run"]

FAMILIES: dict[str, Family] = BELLS | ENDS | BREAKS | WAVES

ASKED = 300
"""Integrals of a task that are asked about; more are counted as they are."""

MEDIANS = 20
"""Claims of a call that medians are taken of."""

NEAR = 4.0
"""What differs at no node by so many eps from f without its feature cannot be seen."""

KEPT = 6
"""Cases of a task and kind that are kept."""


@dataclass(frozen=True)
class Task:
    """What to do; the text ``family:way:turn`` says it too."""

    family: str
    way: str
    turn: int
    seed: int
    """Of the run."""

    @property
    def count(self) -> int:
        return max(2, round(FAMILIES[self.family].count * SMALL.get(self.way, 1.0)))

    @property
    def number(self) -> int:
        """Return a seed of its own."""
        return zlib.crc32(f"{self.seed}:{self}".encode())

    def __str__(self) -> str:
        return f"{self.family}:{self.way}:{self.turn}"


@dataclass
class Count:
    """What was counted about some claims; ``ratios`` are reported over true errors, a sample of them.

    ``false`` and ``understated`` are those that nothing excuses. Beside them stand what the rounding of f explains
    (``noisy``), misses that no node could see or that are ``faint``, which differed at every node by less than the
    tolerance, and derivatives of a value that was itself false (``following``).
    """

    claims: int = 0
    converged: int = 0
    false: int = 0
    understated: int = 0
    noisy_false: int = 0
    noisy_understated: int = 0
    unseeable: int = 0
    following: int = 0
    faint: int = 0
    silent: int = 0
    overspent: int = 0
    crashes: int = 0
    disagreements: int = 0
    ratios: list[float] = field(default_factory=list[float])
    nodes: list[float] = field(default_factory=list[float])
    shares: list[float] = field(default_factory=list[float])

    def enter(self, claims: Claims, verdict: Verdict) -> None:
        """Count what needs no excuse."""
        self.claims += len(verdict.true)
        self.converged += int(claims.converged.sum())
        self.silent += int(verdict.silent.sum())
        self.overspent += int(verdict.overspent.sum())
        self.ratios += verdict.ratio[:MEDIANS].tolist()
        self.shares += [claims.share] if claims.share is not None else []
        if claims.nodes is not None and claims.place is None:
            self.nodes += claims.nodes[:MEDIANS].double().tolist()

    def excuse(self, kind: str, excuse: str) -> None:
        """Count what is false or understated, or what excuses it."""
        names = {"noisy": [f"noisy_{kind}"], "": [kind]}.get(excuse, [excuse])
        for name in names:
            setattr(self, name, getattr(self, name) + 1)

    def add(self, other: Count) -> None:
        """Add what another counted."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Case:
    """Something wrong, in a way that can be repeated."""

    kind: str
    task: str
    index: int
    what: str
    text: str
    excuse: str = ""


@dataclass
class Outcome:
    """What a task found: counts of values and of gradients, cases, seconds."""

    task: Task
    values: Count = field(default_factory=Count)
    gradients: Count = field(default_factory=Count)
    cases: list[Case] = field(default_factory=list[Case])
    seconds: float = 0.0
    contrast: dict[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])


def draw(family: str, count: int, seed: int) -> tuple[Sample, Sample | None]:
    """Return a sample, and another with the same limits where the family has such."""
    made = FAMILIES[family]
    numbers = Draw(count, torch.Generator().manual_seed(seed))
    return made.make(numbers), made.make(numbers) if made.paired else None


def all_tasks(seed: int, turn: int, only: Sequence[str] = ()) -> list[Task]:
    """Return every family in every way that suits it, once, shuffled; ``only`` keeps those that a text names."""
    tasks: list[Task] = []
    for name, family in FAMILIES.items():
        sample, _ = draw(name, 2, 0)
        tasks += [Task(name, way, turn, seed) for way in WAYS if suits(way, sample, family.paired, family.skip)]
    tasks = [task for task in tasks if not only or any(_fits(text, task) for text in only)]
    random.Random(f"{seed}:{turn}").shuffle(tasks)  # so that a short run sees of everything
    return tasks


def _fits(text: str, task: Task) -> bool:
    """Whether ``family``, ``family:way``, ``:way`` or ``family:way:turn`` names a task."""
    parts = text.split(":")
    return all(not part or part == name for part, name in zip(parts, str(task).split(":"), strict=False))


def run(task: Task) -> Outcome:
    """Run one task."""
    start, outcome = time.perf_counter(), Outcome(task)
    sample, other = draw(task.family, task.count, task.number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _Part(outcome, sample, other, 0).run()
    outcome.seconds = time.perf_counter() - start
    return outcome


@dataclass(frozen=True)
class _Part:
    """The integrals of a task from the ``first`` on; ``false`` gathers those whose values are."""

    outcome: Outcome
    sample: Sample
    other: Sample | None
    first: int
    false: set[int] = field(default_factory=set[int])

    def call(self, which: slice = slice(None)) -> Call:
        """Return the call of some of the integrals."""
        other = None if self.other is None else self.other.part(which)
        return Call(self.sample.part(which), other, self.outcome.task.number)

    def run(self) -> None:
        """Call, judge and count; where the call raises do so with halves, down to what raises alone."""
        task, claims = self.outcome.task, list[Claims]()
        try:
            for claim in WAYS[task.way](self.call()):
                claims.append(claim)
        except DisagreementError as error:
            self.outcome.values.disagreements += 1
            self.outcome.cases.append(Case("disagree", str(task), self.first, "", str(error)))
        except Exception as error:  # whatever it is, it is a finding
            half = self.sample.count // 2
            if half:
                for low, part in ((0, slice(0, half)), (half, slice(half, None))):
                    some = self.call(part)
                    _Part(self.outcome, some.sample, some.other, self.first + low).run()
                return
            self.outcome.values.crashes += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = (
                f"{type(error).__name__}: {str(error)[:300]} ({where.filename.rpartition('/')[2]}:{where.lineno})"
            )
            self.outcome.cases.append(Case("crash", str(task), self.first, "", f"{text}; {show(self.sample, 0)}"))
        for number, claim in enumerate(claims):
            self.enter(claim, number)

    def enter(self, claims: Claims, number: int) -> None:
        """Count the claims of a way that have this ``number``, and ask about each wrong one."""
        verdict = claims.judge()
        count = self.outcome.values if claims.place is None else self.outcome.gradients
        count.enter(claims, verdict)
        for kind in ("false", "understated", "silent", "overspent"):
            for i in getattr(verdict, kind).nonzero().flatten().tolist():
                at = i if claims.chosen is None else int(claims.chosen[i])
                shown, excuse = kind, ""
                if kind in ("false", "understated"):
                    shown, excuse = self.ask(kind, claims, number, verdict, i, at)
                    if claims.place is None and shown == "false":
                        self.false.add(at)
                    elif claims.place is not None and at in self.false:
                        excuse = "following"
                    count.excuse(shown, excuse)
                case = Case(shown, str(self.outcome.task), self.first + at, claims.what, "", excuse)
                self.keep(case, lambda i=i: describe(claims, verdict, i), at)

    def ask(self, kind: str, claims: Claims, number: int, verdict: Verdict, i: int, at: int) -> tuple[str, str]:
        """Return whether claim ``i``, about integral ``at``, is false or understated, and what excuses it."""
        task, known, index = self.outcome.task, self.outcome.contrast, (self.first + at, number)
        true, reported = float(verdict.true[i]), float(claims.reported[i])
        if index not in known and len(known) >= ASKED:
            return kind, ""
        single = slice(at, at + 1)
        try:
            noise, size = rounding(task.way, self.call(single), claims)
            if index not in known:
                known[index] = contrast(task.way, self.call(single), task.number, number)
        except Exception:  # alone it may fail in another way, which has a task of its own
            return kind, ""
        if true <= claims.slack * size:
            kind = "understated"
        if true - reported <= noise:
            return kind, "noisy"
        if known[index] < NEAR * claims.eps:
            return kind, "unseeable"
        size = float(claims.exact[i].abs().max())
        return kind, "faint" if size > 0 and known[index] < float(claims.allowed[i]) / size else ""

    def keep(self, case: Case, numbers: Callable[[], str], at: int) -> None:
        """Keep a case, unless there are enough of its kind."""
        cases = self.outcome.cases
        if sum((kept.kind, kept.excuse) == (case.kind, case.excuse) for kept in cases) >= KEPT:
            return
        text = f"{numbers()}; {show(self.sample, at)}"
        if self.other is not None and any(way in case.task for way in ("events", "complex", "kept", "warm")):
            text += " | other: " + show(self.other, at)
        cases.append(replace(case, text=text))


def describe(claims: Claims, verdict: Verdict, i: int) -> str:
    """Return the numbers of a claim."""
    exact, found = (t[i].tolist() for t in (claims.exact, claims.found))
    nodes = "" if claims.nodes is None else f", nodes {int(claims.nodes[i])}"
    return (
        f"exact {exact}, found {found}, true error {float(verdict.true[i]):.2e}, "
        f"reported {float(claims.reported[i]):.2e}, allowed {float(claims.allowed[i]):.2e}{nodes}"
    )


def show(sample: Sample, i: int) -> str:
    """Return limits and parameters to the last bit."""
    numbers = ", ".join(repr(float(arg[i])) for arg in sample.args)
    return f"[{float(sample.a[i])!r}, {float(sample.b[i])!r}], args {numbers}"
