"""Solve a problem of the table with quadgrad or with SciPy at given tolerances, and judge what was claimed.

Used by the page ``table`` and by the tests. It knows nothing of printing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.integrate import IntegrationWarning
from scipy.integrate import quad as scipy_quad

import quadgrad as qg
from benchmarks.problems import Problem

__all__ = ["Outcome", "solve", "solve_scipy"]

SCIPY_LIMIT = 1000
"""Most cells that SciPy may make; with quadgrad's own budget of 50,000 nodes about as much."""


@dataclass(frozen=True)
class Outcome:
    """What an integrator claimed about one problem, and the truth.

    Attributes
    ----------
    problem : Problem
        What was integrated.
    claimed : bool
        Whether success was reported.
    reported, true, tolerance : float
        The error as reported, as it is, and as it may be.
    nfev : int
        Nodes spent.
    reason : str
        Why it did not converge.
    """

    problem: Problem
    claimed: bool
    reported: float
    true: float
    tolerance: float
    nfev: int
    reason: str = ""

    @property
    def solved(self) -> bool:
        """Whether success was reported, rightly."""
        return self.claimed and self.true <= self.tolerance

    @property
    def missed(self) -> bool:
        """Whether success was reported although the tolerance is missed; a NaN misses it."""
        return self.claimed and not self.true <= self.tolerance

    @property
    def understated(self) -> bool:
        """Whether success was reported with an error below the true one."""
        return self.claimed and not self.true <= self.reported


def solve(problem: Problem, tolerance: float, dtype: torch.dtype = torch.float64) -> Outcome:
    """Integrate with quadgrad, ``rtol = atol = tolerance``."""
    points = torch.tensor(problem.points, dtype=dtype) if problem.points else None
    a, b = (torch.tensor(limit, dtype=dtype) for limit in (problem.a, problem.b))
    with torch.no_grad():
        result = qg.quad(problem.f, a, b, points=points, rtol=tolerance, atol=tolerance, on_failure="ignore")
    claimed = bool(result.converged)
    return Outcome(
        problem,
        claimed,
        float(result.error),
        problem.error_of(result.value),
        problem.tolerance(tolerance, tolerance),
        int(result.nfev),
        "" if claimed else qg.Status(int(result.status)).name,
    )


def solve_scipy(problem: Problem, tolerance: float) -> Outcome:
    """Integrate each component with ``scipy.integrate.quad``, ``epsrel = epsabs = tolerance``.

    The nodes are those of the component, or of the real or imaginary part, that took most: who evaluates a vector
    anew for each component pays more.
    """
    complex_func = "complex" in problem.tags
    options: dict[str, Any] = {"epsrel": tolerance, "epsabs": tolerance, "limit": SCIPY_LIMIT}
    if problem.points:
        options["points"] = problem.points
    # QUADPACK takes breakpoints on finite intervals only.
    pieces = [(problem.a, problem.b)]
    if problem.points and any(abs(limit) == float("inf") for limit in pieces[0]):
        breaks = [problem.a, *options.pop("points"), problem.b]
        pieces = list(pairwise(breaks))
    values: list[complex] = []
    errors: list[float] = []
    counts: list[int] = []
    messages: list[str] = []
    for f in problem.components():
        value, error, count = 0j, 0.0, [0, 0]
        for low, high in pieces:
            found, claimed, infos = run_scipy(f, low, high, complex_func, options)
            value, error = value + found, error + claimed
            count = [before + info[0] for before, info in zip(count, infos, strict=False)]
            messages += [info[1] for info in infos if info[1]]
        values.append(value)
        errors.append(error)
        counts.append(max(count))
    return Outcome(
        problem,
        not messages,
        max(errors),
        problem.error_of(torch.tensor(values, dtype=torch.complex128)),
        problem.tolerance(tolerance, tolerance),
        max(counts),
        messages[0].split(".")[0].replace("\n", " ") if messages else "",
    )


def run_scipy(
    f: Any, low: float, high: float, complex_func: bool, options: dict[str, Any]
) -> tuple[complex, float, list[tuple[int, str]]]:
    """Return value, reported error, and nodes and message of the call (of both parts of a complex one)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IntegrationWarning)
        if not complex_func:
            value, error, info, *message = scipy_quad(f, low, high, full_output=1, **options)
            return value, error, [(info["neval"], message[0] if message else "")]
        parts = [scipy_quad(lambda x, p=p: p(complex(f(x))), low, high, full_output=1, **options) for p in (re, im)]
    (x, x_error, *x_rest), (y, y_error, *y_rest) = parts
    infos = [(rest[0]["neval"], rest[1] if len(rest) > 1 else "") for rest in (x_rest, y_rest)]
    return complex(x, y), abs(complex(x_error, y_error)), infos


def re(z: complex) -> float:
    """Return the real part."""
    return z.real


def im(z: complex) -> float:
    """Return the imaginary part."""
    return z.imag
