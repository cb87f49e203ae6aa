"""One task: a family, a way of calling, a seed. Run it, judge it, and ask about what was wrong."""

from __future__ import annotations

import random
import time
import traceback
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    (``noisy``), misses that no node could see, and derivatives of a value that was itself false (``following``).
    ``faint``, of the false and understated: what differed at every node by less than the tolerance.
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
    contrast: dict[int, float] = field(default_factory=dict[int, float])


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
        _run_part(task, outcome, sample, other, 0)
    outcome.seconds = time.perf_counter() - start
    return outcome


def _run_part(task: Task, outcome: Outcome, sample: Sample, other: Sample | None, first: int) -> None:
    """Run a part of a task; where it raises, its halves, down to the integrals that raise alone."""
    claims: list[Claims] = []
    try:
        for claim in WAYS[task.way](Call(sample, other, task.number)):
            claims.append(claim)
    except DisagreementError as error:
        outcome.values.disagreements += 1
        outcome.cases.append(Case("disagree", str(task), first, "", str(error)))
    except Exception as error:  # whatever it is, it is a finding
        if sample.count > 1:
            half = sample.count // 2
            for low, part in ((0, slice(0, half)), (half, slice(half, None))):
                _run_part(task, outcome, sample.part(part), other.part(part) if other else None, first + low)
            return
        outcome.values.crashes += 1
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:300]} ({where.filename.rpartition('/')[2]}:{where.lineno}); "
        outcome.cases.append(Case("crash", str(task), first, "", text + show(sample, 0)))
    false: set[int] = set()
    for claim in claims:
        _enter(task, outcome, sample, other, first, claim, false)


def _enter(
    task: Task, outcome: Outcome, sample: Sample, other: Sample | None, first: int, claims: Claims, false: set[int]
) -> None:
    """Count claims, and ask about each wrong one; ``false`` gathers integrals whose values are."""
    verdict = claims.judge()
    count = outcome.values if claims.place is None else outcome.gradients
    count.claims += len(verdict.true)
    count.converged += int(claims.converged.sum())
    count.silent += int(verdict.silent.sum())
    count.overspent += int(verdict.overspent.sum())
    count.ratios += verdict.ratio[:20].tolist()
    count.shares += [claims.share] if claims.share is not None else []
    if claims.nodes is not None and claims.place is None:
        count.nodes += claims.nodes[:20].double().tolist()
    for kind in ("false", "understated", "silent", "overspent"):
        for i in getattr(verdict, kind).nonzero().flatten().tolist():
            shown, excuse = kind, ""
            if kind in ("false", "understated"):
                shown, excuse = _ask(task, outcome, sample, other, first, i, claims, verdict, kind)
                if claims.place is None and shown == "false":
                    false.add(i)
                elif claims.place is not None and i in false:
                    excuse = "following"
                names = {"noisy": [f"noisy_{shown}"], "faint": ["faint", shown], "": [shown]}.get(excuse, [excuse])
                for name in names:
                    setattr(count, name, getattr(count, name) + 1)
            kept = sum((case.kind, case.excuse) == (shown, excuse) for case in outcome.cases)
            if kept >= KEPT:
                continue
            text = describe(claims, verdict, i) + "; " + show(sample, i)
            if other is not None and task.way.removeprefix("gradient, ") in ("events", "complex", "kept", "warm"):
                text += " | other: " + show(other, i)
            outcome.cases.append(Case(shown, str(task), first + i, claims.what, text, excuse))


def _ask(
    task: Task, outcome: Outcome, sample: Sample, other: Sample | None, first: int, i: int, claims: Claims,
    verdict: Verdict, kind: str,
) -> tuple[str, str]:  # fmt: skip
    """Return whether a claim is false or understated, and what excuses it."""
    part, known = slice(i, i + 1), outcome.contrast
    single = lambda: Call(sample.part(part), other.part(part) if other else None, task.number)
    true, reported = float(verdict.true[i]), float(claims.reported[i])
    if first + i not in known and len(known) >= ASKED:
        return kind, ""
    try:
        noise, size = rounding(task.way, single(), claims)
        if first + i not in known:
            known[first + i] = contrast(task.way, single(), task.number)
    except Exception:  # alone it may fail in another way, which has a task of its own
        return kind, ""
    if true <= claims.slack * size:
        kind = "understated"
    if true - reported <= noise:
        return kind, "noisy"
    shown = known[first + i]
    if shown < NEAR * claims.eps:
        return kind, "unseeable"
    size = float(claims.exact[i].abs().max())
    return kind, "faint" if size > 0 and shown < float(claims.allowed[i]) / size else ""


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
