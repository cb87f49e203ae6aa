"""One table of test integrals with exact values, for the tests and for the page ``table``.

`everyday` holds those that every rule solves; the others are harder, and grouped by what is hard about them.
`HIDDEN` stands apart: no node sees what matters there. Tags
(an integral may have several):

* smooth: analytic in the interval and at its ends
* peak: localized, most of the value comes from a small part of the interval
* oscillating: many periods
* end, both-ends, inside: where it is singular
* kink, jump: piecewise
* marked: the places inside are given in ``points``
* half-line, whole-line: infinite ranges; slow: algebraic decay, or slower
* complex, vector, zero: what the value is
"""

from __future__ import annotations

from benchmarks.problems.ends import ENDS
from benchmarks.problems.everyday import EVERYDAY
from benchmarks.problems.inside import INSIDE
from benchmarks.problems.localized import HIDDEN, LOCALIZED
from benchmarks.problems.problem import Problem
from benchmarks.problems.several import SEVERAL
from benchmarks.problems.smooth import SMOOTH
from benchmarks.problems.tails import TAILS

__all__ = ["EVERYDAY", "HIDDEN", "PROBLEMS", "TAGS", "Problem"]

PROBLEMS: tuple[Problem, ...] = (*EVERYDAY, *SMOOTH, *LOCALIZED, *ENDS, *INSIDE, *TAILS, *SEVERAL)
TAGS = (
    "smooth", "peak", "oscillating", "end", "both-ends", "inside", "kink", "jump", "marked",
    "half-line", "whole-line", "slow", "complex", "vector", "zero",
)  # fmt: skip
