"""The doctor on random programs whose faults are known, and what it costs."""

from __future__ import annotations

import math
import secrets
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn

import quadgrad as qg
from benchmarks.doctor_programs import RandomProgram, write_program
from benchmarks.findings import Figure, Findings, Sheet, Target
from benchmarks.memory import peak_memory
from quadgrad.doctor.check import JITTER
from quadgrad.doctor.program import Program

__all__ = ["KINDS", "Outcome", "examine_program", "measure"]

KINDS = {
    "severing, wrong": ({"severing": 5, "wrong": 1}, 600),
    "severing": ({"severing": 5}, 150),
    "steps among them": ({"severing": 3, "wrong": 1, "steps": 1}, 100),
    "steps alone": ({"severing": 0, "steps": 1}, 100),
    "healthy": ({"severing": 0}, 50),
}
"""Programs of up to 30 lines: how many of each kind, and what is in them at most."""

WRONG = {"severing": 0, "wrong": 1}, 100
_TRIES = 100  # numbers of one program: those that raise by themselves are drawn anew
_FORWARDS = 10

_RUNS, _A_LINE = 25, 6
"""The contract, stated here once more: so many runs, and so many more for each line that severs."""


@dataclass
class Outcome:
    """What came of one program: its verdict, and every way in which the doctor was wrong."""

    seed: int
    verdict: str = ""
    runs: int = 0
    severing: int = 0
    lines: int = 0
    defects: list[str] = field(default_factory=lambda: [])
    wrong: tuple[int, int] = (0, 0)
    jumps: bool | None = None


def examine_program(seed: int, **kinds: int) -> Outcome | None:
    """Examine a random program, and compare each row with what the twin's derivatives tell.

    None where the program itself raises: a derivative is asked of what an earlier line severed.
    """
    program = write_program(seed, **kinds)
    function = program.compile()
    steps = Program(function, program.inputs, [program.module], 0, lambda: None).direction(0)
    try:
        lost = program.losses(steps)
        seen, true = program.slope(set(program.kinds), steps), program.slope(set(), steps)
    except RuntimeError:
        return None
    torch.default_generator.set_state(program.names["state"])
    report = qg.doctor.check(function, *program.inputs, modules=[program.module])
    outcome = Outcome(seed, report.verdict.value, report.runs)
    if any("examined beside" in note for note in report.notes):  # then the twin's derivatives are those there
        moved = Program(function, program.inputs, [program.module], 0, lambda: None).direction(99)
        with torch.no_grad():
            for source, step in zip((*program.inputs, *program.module.parameters()), moved, strict=True):
                source.add_(JITTER * step)
        steps = Program(function, program.inputs, [program.module], 0, lambda: None).direction(0)
        lost = program.losses(steps)
        seen, true = program.slope(set(program.kinds), steps), program.slope(set(), steps)
    size = abs(seen) + abs(true) + sum(map(abs, lost.values()))
    rows = {row.line - 2: row for row in report.rows if row.file == program.file}
    blamed = {i for i, row in rows.items() if row.verdict.value in ("SEVERED", "WRONG", "EDITED")}
    matter = {i for i, amount in lost.items() if abs(amount) > 1e-7 * size}
    checks = {
        "true derivative": abs(report.true - true) <= max(1e-8 * size, report.error),
        "autograd's derivative": abs(report.autograd - seen) <= 1e-9 * size,
        "gap": abs(report.gap) <= max(1e-8 * size, report.error + sum(row.error for row in report.rows)),
        "a line that matters is not named": matter <= blamed,
        "a clean line is blamed": blamed <= set(program.kinds),
        "size of a loss": all(
            abs(rows[i].lost - lost[i]) <= max(1e-6 * size, rows[i].error) for i in matter & blamed
        ),
        "OK though severed": not (report.ok and matter),
        "a finding in a healthy program": report.ok or bool(matter or program.steps) or not size,
        "a clean line is said to jump": {i for i, r in rows.items() if r.verdict == "STEP"} <= set(program.steps),
    }
    if program.steps:
        outcome.jumps = program.jumps(steps)
        checks["OK though a step moves"] = not (outcome.jumps and report.ok)
    outcome.defects = [what for what, holds in checks.items() if not holds]
    wrong = {i for i, kind in program.kinds.items() if kind == "wrong"} & matter
    outcome.wrong = len(wrong), sum(i in blamed and abs(rows[i].lost - lost[i]) <= 1e-6 * size for i in wrong)
    outcome.severing, outcome.lines = _lines_with_costs(program, report)
    return outcome


def _lines_with_costs(program: RandomProgram, report: qg.doctor.Report) -> tuple[int, int]:
    """Return how many lines sever, and how many do so or decide."""
    sever = {row.line - 2 for row in report.rows if row.verdict != qg.doctor.Verdict.STEP}
    return len(sever), len(sever | set(program.steps))


def measure(scale: float = 1.0, seed: int | None = None, first: int = 0, count: int | None = None) -> Findings:
    """Examine a thousand random programs and a hundred wrong backwards, and a network of ten million parameters.

    With ``first`` and ``count`` a part of the programs alone, by their numbers: pieces with one seed are the whole.
    """
    seed = secrets.randbelow(2**31) if seed is None else seed
    whole = first == 0 and count is None
    last = math.inf if count is None else first + count
    rows: list[tuple[str, ...]] = []
    cases: list[tuple[str, ...]] = []
    every: list[Outcome] = []
    begins = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, (kind, (kinds, share)) in enumerate({**KINDS, "wrong backwards": WRONG}.items()):
            ends = begins + max(3, round(share * scale))
            numbers = [n for n in range(begins, ends) if first <= n < last]
            begins = ends
            outcomes = [_examine(seed + 10**6 * k + _TRIES * n, kinds) for n in numbers]
            if not outcomes:
                continue
            every += outcomes
            rows.append((kind, *_summary(outcomes)))
            cases += [(kind, f"{o.seed}", o.verdict, "; ".join(o.defects)) for o in outcomes if o.defects]
            cases += [
                (kind, f"{o.seed}", o.verdict, f"{o.runs} runs, {o.severing} lines")
                for o in outcomes
                if _over(o) > 0
            ]
    return Findings(
        f"The doctor on {len(every):,} random programs, seed {seed}"
        + ("" if whole else f", numbers {first} to {first + len(every) - 1} of {begins}"),
        "Up to 30 lines, with faults of every kind among them; true derivatives and losses from autograd on a twin "
        "whose lines do not sever. Programs that raise by themselves are drawn anew.",
        [
            Sheet(("", "programs", "with a\ndefect", "verdicts", "runs", "over 25 + 6\na line, at most"), rows),
            Sheet(("kind", "seed", "verdict", "defect, or more than 25 + 6 runs a line"), cases),
        ],
        _figures(every) + (_costs(scale) if whole else []),
    )  # fmt: skip


def _examine(number: int, kinds: dict[str, int]) -> Outcome:
    """Examine the first program from this number on that does not raise by itself."""
    return next(o for n in range(number, number + _TRIES) if (o := examine_program(n, **kinds)) is not None)


def _over(outcome: Outcome) -> int:
    return outcome.runs - _RUNS - _A_LINE * outcome.severing


def _summary(outcomes: list[Outcome]) -> tuple[str, ...]:
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in Counter(o.verdict for o in outcomes).most_common())
    mean = sum(o.runs for o in outcomes) / len(outcomes)
    bad = sum(bool(o.defects) for o in outcomes)
    return f"{len(outcomes)}", f"{bad}", verdicts, f"{mean:.0f}", f"{max(map(_over, outcomes)):+d}"


def _figures(every: list[Outcome]) -> list[Figure]:
    there, sized = (sum(o.wrong[i] for o in every) for i in (0, 1))
    within = sum(_over(o) <= 0 for o in every) / len(every)
    decide = sum(o.runs <= _RUNS + _A_LINE * o.lines for o in every) / len(every)
    every_one = Target(1, at_least=True)
    return [
        Figure("programs with a defect", sum(bool(o.defects) for o in every), target=Target(0), unit=""),
        Figure(f"wrong backwards found, sized, of {there}", sized / max(1, there), target=every_one, unit=""),
        Figure("share within 25 runs and 6 a line that severs", within, target=every_one, unit=""),
        Figure("the same, and 6 a line that jumps", decide, target=every_one, unit=""),
    ]


def _costs(scale: float) -> list[Figure]:
    return [
        Figure("10^7 parameters: time over a forward pass by itself", _cost(scale), target=Target(60)),
        Figure("10^7 parameters: peak memory over that of a training step", _memory(scale), target=Target(3)),
    ]


def _network(scale: float) -> tuple[nn.Module, torch.Tensor]:
    width = round(1800 * scale**0.5)
    layers = [m for _ in range(3) for m in (nn.Linear(width, width), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(width, 1)).double(), torch.randn(256, width, dtype=torch.float64)


def _cost(scale: float) -> float:
    """Return the time of an examination over that of a forward pass."""
    network, x = _network(scale)
    loss = lambda: (network(x) ** 2).mean()
    loss()
    began = time.perf_counter()
    for _ in range(_FORWARDS):
        loss()
    forward = (time.perf_counter() - began) / _FORWARDS
    return qg.doctor.check(loss).seconds / forward


def _memory(scale: float) -> float:
    """Return the peak of an examination over that of a training step, each in a process of its own."""
    peaks = [
        float(subprocess.run(
            [sys.executable, "-c", f"from benchmarks.doctor import peak; peak({scale}, {which!r})"],
            check=True, capture_output=True, text=True,
        ).stdout)
        for which in ("nothing", "step", "check")
    ]  # fmt: skip
    return (peaks[2] - peaks[0]) / (peaks[1] - peaks[0])


def peak(scale: float, which: str) -> None:
    """Print the peak memory of this process after a training step, an examination, or nothing."""
    if which != "nothing":
        network, x = _network(scale)
        loss = lambda: (network(x) ** 2).mean()
        if which == "step":
            optimiser = torch.optim.Adam(network.parameters())
            for _ in range(2):
                optimiser.zero_grad()
                loss().backward()
                optimiser.step()
        else:
            qg.doctor.check(loss)
    print(peak_memory())
