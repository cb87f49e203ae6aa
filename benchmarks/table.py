"""The whole table of problems at three tolerances and in float32, beside SciPy: what is solved, and what is a lie.

Evaluations are compared where both solve a problem, and over the whole table; names stand below each table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks.findings import Figure, Findings, Sheet, Target
from benchmarks.problems import HIDDEN, PROBLEMS, TAGS
from benchmarks.solve import SCIPY_LIMIT, Outcome, solve, solve_scipy

__all__ = ["measure"]

TOLERANCES = (1e-4, 1e-8, 1e-12)
COARSE = 1e-3
"""The tolerance in float32."""
HEADINGS = ("", "of", "solved", "missed", "error\ntoo small", "not\nconverged", "nodes")

Outcomes = Sequence[Outcome]


def measure(scale: float = 1.0) -> Findings:
    """Solve every problem; ``scale`` is the share of the table, for a quick look."""
    problems = PROBLEMS[:: max(1, round(1 / scale))]
    sheets: list[Sheet] = []
    ours: list[Outcome] = []
    theirs: list[Outcome] = []
    for tolerance in TOLERANCES:
        mine = [solve(problem, tolerance) for problem in problems]
        scipy = [solve_scipy(problem, tolerance) for problem in problems]
        sheets += [by_tag(f"{tolerance:g}", mine, scipy), offenders(mine, scipy)]
        ours += mine
        theirs += scipy
    hidden = [solve(problem, tolerance) for tolerance in TOLERANCES for problem in HIDDEN]
    hidden_scipy = [solve_scipy(problem, tolerance) for tolerance in TOLERANCES for problem in HIDDEN]
    single = [solve(problem, COARSE, torch.float32) for problem in problems]
    sheets += [by_tag(f"{COARSE:g}, float32", single), offenders(single), offenders(hidden, hidden_scipy)]
    return Findings(
        f"{len(problems)} problems with exact values",
        "rtol = atol = the tolerance at the head of each table, float64 but for the last. Solved: reported as "
        "converged, and within the tolerance. Missed: reported as converged, but not within it. Error too small: "
        "reported as converged, with an error below the true one. A problem counts in each of its tags, and once "
        f"in the total. SciPy: scipy.integrate.quad with limit={SCIPY_LIMIT} and the same breakpoints; of a vector "
        "or complex integrand its nodes are those of the component that took most. Names below each table: "
        "true error / reported error, nodes. Last and apart: a feature that lies between all nodes.",
        sheets,
        figures(ours, theirs, single),
    )


def by_tag(tolerance: str, ours: Outcomes, theirs: Outcomes = ()) -> Sheet:
    """Return the counts for each tag and in total, ours / theirs."""

    def row(label: str, keep: Callable[[Outcome], bool]) -> tuple[str, ...]:
        mine, scipy = ([o for o in outcomes if keep(o)] for outcomes in (ours, theirs))
        columns = zip(counts(mine), counts(scipy), strict=True)
        return (label, str(len(mine)), *(f"{a} / {b}" if theirs else f"{a}" for a, b in columns))

    rows = [row(tag, lambda o, tag=tag: tag in o.problem.tags) for tag in TAGS]
    headings = (f"{tolerance}\nours / SciPy" if theirs else tolerance, *HEADINGS[1:])
    return Sheet(headings, [*rows, row("total", lambda o: True)])


def counts(outcomes: Outcomes) -> tuple[str, ...]:
    """Return how many are solved, missed, understated and not converged, and all their nodes."""
    return (
        str(sum(o.solved for o in outcomes)),
        str(sum(o.missed for o in outcomes)),
        str(sum(o.understated for o in outcomes)),
        str(sum(not o.claimed for o in outcomes)),
        f"{sum(o.nfev for o in outcomes):,}",
    )


def offenders(ours: Outcomes, theirs: Outcomes = ()) -> Sheet:
    """Return the problems that one of them did not solve or was wrong about."""
    pairs = zip(ours, theirs or (None,) * len(ours), strict=True)
    rows = [
        (mine.problem.name, describe(mine), *([describe(scipy)] if scipy else []))
        for mine, scipy in pairs
        if any(o and (o.missed or o.understated or not o.claimed) for o in (mine, scipy))
    ]
    return Sheet(("", "quad", *(["SciPy"] if theirs else [])), rows)


def describe(outcome: Outcome) -> str:
    """Return what became of a problem, in a few words."""
    if not outcome.claimed:
        verdict = outcome.reason if outcome.reason.isupper() else "not converged"
    elif outcome.missed:
        verdict = "MISSED"
    else:
        verdict = "ERROR TOO SMALL" if outcome.understated else "solved"
    return f"{verdict}: {outcome.true:.1e} / {outcome.reported:.1e}, {outcome.nfev:,}"


def figures(ours: Outcomes, theirs: Outcomes, single: Outcomes) -> list[Figure]:
    """Return what the targets are about."""
    none = Target(0)
    both = [(a.nfev, b.nfev) for a, b in zip(ours, theirs, strict=True) if a.solved and b.solved]
    return [
        Figure("reported as converged, tolerance missed", sum(o.missed for o in ours), target=none, unit=""),
        Figure("reported as converged, error too small", sum(o.understated for o in ours), target=none, unit=""),
        Figure("the same two in float32", sum(o.missed or o.understated for o in single), target=none, unit=""),
        Figure("the same two, SciPy", sum(o.missed or o.understated for o in theirs), unit=""),
        Figure(
            "solved, less those that SciPy solves",
            sum(o.solved for o in ours) - sum(o.solved for o in theirs),
            target=Target(0, at_least=True),
            unit="",
        ),
        Figure(
            f"nodes over SciPy's where both solve it ({len(both)} times)",
            sum(a for a, _ in both) / sum(b for _, b in both),
            target=Target(1),
        ),
        Figure(
            "nodes over SciPy's, all problems",
            sum(o.nfev for o in ours) / sum(o.nfev for o in theirs),
            target=Target(1),
        ),
    ]
