"""Run tasks in parallel, as long as it is told, and show what was found."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

import torch

from benchmarks.findings import Figure, Findings, Sheet, Target
from benchmarks.fuzz.tasks import Case, Count, Outcome, Task, all_tasks, run

__all__ = ["measure"]

CLAIMS = 1_100_000
SHOWN = 4
"""How many cases of a family, kind and excuse are printed at most."""

ORDER = ("false", "crash", "silent", "understated", "overspent", "disagree")


@dataclass
class Totals:
    """Counts by family and by way, of values and of gradients, and all cases."""

    values: dict[str, Count] = field(default_factory=lambda: defaultdict[str, Count](Count))
    gradients: dict[str, Count] = field(default_factory=lambda: defaultdict[str, Count](Count))
    by_way: dict[str, tuple[Count, Count]] = field(default_factory=lambda: defaultdict(lambda: (Count(), Count())))
    value: Count = field(default_factory=Count)
    gradient: Count = field(default_factory=Count)
    cases: list[Case] = field(default_factory=list[Case])
    slow: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    def add(self, outcome: Outcome) -> None:
        """Add what a task found."""
        ways = self.by_way[outcome.task.way]
        for one, groups in (
            (outcome.values, (self.values[outcome.task.family], ways[0], self.value)),
            (outcome.gradients, (self.gradients[outcome.task.family], ways[1], self.gradient)),
        ):
            for group in groups:
                group.add(one)
        self.cases += outcome.cases
        self.slow = sorted([*self.slow, (outcome.seconds, str(outcome.task))])[-5:]


def measure(
    scale: float = 1.0, seed: int | None = None, minutes: float | None = None, claims: int | None = None,
    only: Sequence[str] = (), workers: int | None = None,
) -> Findings:  # fmt: skip
    """Try random integrals in every way, for so many claims or minutes; ``only``: families, ways or tasks."""
    seed = secrets.randbelow(2**31) if seed is None else seed
    most = claims or (round(CLAIMS * scale) if minutes is None else 10**12)
    end = time.monotonic() + 60 * (minutes or 1e6)
    totals, start = Totals(), time.monotonic()
    turns = {int(part[2]) for part in (text.split(":") for text in only) if len(part) > 2}
    try:
        for outcome in parallel(tasks(seed, only, turns), workers or os.cpu_count() or 1):
            totals.add(outcome)
            if totals.value.claims + totals.gradient.claims >= most or time.monotonic() > end:
                break
    except KeyboardInterrupt:  # shows what there is
        pass
    return show(totals, seed, time.monotonic() - start)


def tasks(seed: int, only: Sequence[str], turns: set[int]) -> Iterator[Task]:
    """Yield every task, turn by turn; only some turns, if they are named."""
    turn = 0
    while not turns or turn <= max(turns):
        if not turns or turn in turns:
            some = all_tasks(seed, turn, only)
            if not some:
                raise ValueError(f"no family and way is called as --only says: {', '.join(only)}")
            yield from some
        turn += 1


def parallel(todo: Iterator[Task], workers: int) -> Iterator[Outcome]:
    """Yield outcomes as they come; what is under way when nobody asks any more is not waited for."""
    if workers == 1:
        yield from map(run, todo)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    under_way: set[Future[Outcome]] = set()
    try:
        for task in todo:
            under_way.add(pool.submit(run, task))
            if len(under_way) >= 2 * workers:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        for future in under_way:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def show(totals: Totals, seed: int, seconds: float) -> Findings:
    """Return the page."""
    value, gradient = totals.value, totals.gradient
    claims = value.claims + gradient.claims
    shares = value.shares
    false, understated = value.false + gradient.false, value.understated + gradient.understated
    unseeable = value.unseeable + gradient.unseeable
    slow = ", ".join(f"{task} {took:.1f} s" for took, task in reversed(totals.slow))
    figures = [
        Figure(f"false success, of {value.claims:,} values", value.false, unit=""),
        Figure(f"false success, of {gradient.claims:,} entries of gradients", gradient.false, unit=""),
        Figure(f"false success of both, of {claims:,}", false, target=Target(3), unit=""),
        Figure("errors understated", understated, target=Target(10), unit=""),
        Figure("faint: missed, and seen by less than the tolerance", value.faint + gradient.faint, unit=""),
        Figure("crashes", value.crashes, target=Target(0), unit=""),
        Figure("NaN without a status or a warning", value.silent + gradient.silent, target=Target(0), unit=""),
        Figure("ways that disagree", value.disagreements, target=Target(0), unit=""),
        Figure("max_nfev exceeded", value.overspent, target=Target(0), unit=""),
        Figure("missed and not to be seen, in a million", 1e6 * unseeable / max(1, claims), unit=""),
    ]
    if shares:
        figures.append(
            Figure("evaluations of kept plans over fresh ones", statistics.median(shares), target=Target(0.6))
        )
    return Findings(
        f"Fuzz: {claims:,} claims about values and gradients, seed {seed}",
        f"{len(totals.values)} families in {len(totals.by_way)} ways, {seconds / 60:.1f} minutes. "
        "A claim: a number and its reported error. False success: CONVERGED, and the error above the tolerance and "
        "above the reported one; understated: above the reported one alone. Two ulp of the exact number are left "
        "out, which is rounded once from 50 digits. Not among these, but counted beside them, is where f without "
        "its feature differed from f at no node by as much as the tolerance (faint: ADR 75 says what is promised "
        "of it), or by 4 eps of its scale (unseen); what is within the rounding of x and f on the cells "
        "(rounding); derivatives of values that were false already (follow); then NaN without a word, crashes, "
        "ways that disagree, max_nfev exceeded. nodes: the median; pessimism: the median of reported over true "
        f"errors, these taken as eps at least. Slowest tasks: {slow}.",
        [
            Sheet(("values", *HEADINGS), [*rows(totals.values), row("all", value)]),
            Sheet(("gradients", *HEADINGS), [*rows(totals.gradients), row("all", gradient)]),
            Sheet(("both", *HEADINGS), rows({way: joined(counts) for way, counts in totals.by_way.items()})),
        ],
        figures,
        [
            *list_cases(totals.cases),
            f"Again: python -m benchmarks fuzz --seed {seed} --only 'family:way:turn', for all: 'family', ':way'. "
            f"Cases: at most {SHOWN} of a family and kind. The integrals of a task: "
            "benchmarks.fuzz.tasks.draw(family, task.count, task.number).",
        ],
    )  # fmt: skip


HEADINGS = (
    "claims", "conv.", "false", "under-\nstated", "faint", "round-\ning", "un-\nseen", "fol-\nlow",
    "NaN, crash,\ndisagree, over", "nodes", "pessi-\nmism",
)  # fmt: skip


def rows(counts: Mapping[str, Count]) -> list[tuple[str, ...]]:
    """Return a row for each name."""
    return [row(name, count) for name, count in sorted(counts.items()) if count.claims or count.crashes]


def row(name: str, count: Count) -> tuple[str, ...]:
    """Return the numbers of a family or way."""
    noisy = count.noisy_false + count.noisy_understated
    numbers = (count.false, count.understated, count.faint, noisy, count.unseeable, count.following)
    broken = (count.silent, count.crashes, count.disagreements, count.overspent)
    share = f"{100 * count.converged / count.claims:.1f}" if count.claims else ""
    nodes = f"{statistics.median(count.nodes):,.0f}" if count.nodes else ""
    ratio = f"{statistics.median(count.ratios):.2g}" if count.ratios else ""
    shown = " ".join(map(str, broken)) if any(broken) else ""
    return name, f"{count.claims:,}", share, *(str(n or ".") for n in numbers), shown, nodes, ratio


def joined(counts: Sequence[Count]) -> Count:
    """Return the sum of counts."""
    whole = Count()
    for count in counts:
        whole.add(count)
    return whole


def list_cases(cases: Sequence[Case]) -> list[str]:
    """Return a line for each case that is printed, the worst kinds first."""
    seen: dict[tuple[str, ...], int] = defaultdict(int)
    lines: list[str] = []
    for case in sorted(cases, key=lambda case: (ORDER.index(case.kind), case.excuse, case.task)):
        key = (case.kind, case.excuse, case.task.partition(":")[0])
        seen[key] += 1
        if seen[key] <= (SHOWN if not case.excuse else 1):
            kind = f"{case.kind} ({case.excuse})" if case.excuse else case.kind
            lines.append(f"{kind}: {case.task}, {case.index} {case.what} {case.text}")
    return lines
