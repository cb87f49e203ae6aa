"""Solve a problem of the table with quadgrad or with SciPy at given tolerances, and judge what was claimed.

Used by the page ``table`` and by the tests. It knows nothing of printing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from scipy.integrate import IntegrationWarning
from scipy.integrate import quad as scipy_quad

import quadgrad as qg
from benchmarks.problems import Problem

__all__ = ["Outcome", "solve", "solve_scipy"]

Scalar = Callable[[float], Any]
SCIPY_LIMIT = 1000
"""Most cells that SciPy may make; quadgrad's own budget of 30,000 nodes is less."""


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
    found = [[Found.of(part, problem, tolerance) for part in parts(f, problem)] for f in problem.components()]
    everything = [part for component in found for part in component]
    message = next((part.message for part in everything if part.message), "")
    return Outcome(
        problem,
        not message,
        max(math.hypot(*(part.error for part in component)) for component in found),
        problem.error_of([complex(*(part.value for part in component)) for component in found]),
        problem.tolerance(tolerance, tolerance),
        max(part.nfev for part in everything),
        message,
    )


def parts(f: Scalar, problem: Problem) -> list[Scalar]:
    """Return a function and, if it is complex, its real and imaginary parts."""
    if "complex" not in problem.tags:
        return [f]
    return [lambda x: complex(f(x)).real, lambda x: complex(f(x)).imag]


@dataclass(frozen=True)
class Found:
    """What SciPy returned for one real function."""

    value: float
    error: float
    nfev: int
    message: str

    @classmethod
    def of(cls, f: Scalar, problem: Problem, tolerance: float) -> Found:
        """Integrate; QUADPACK takes breakpoints on finite intervals only, so infinite ones are cut there."""
        cut = problem.points if math.isinf(problem.b - problem.a) else ()
        points = problem.points if problem.points and not cut else None
        value, error, nfev, message = 0.0, 0.0, 0, ""
        for low, high in pairwise((problem.a, *cut, problem.b)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", IntegrationWarning)
                one, off, info, *text = scipy_quad(
                    f,
                    low,
                    high,
                    epsrel=tolerance,
                    epsabs=tolerance,
                    limit=SCIPY_LIMIT,
                    points=points,
                    full_output=1,
                )
            value, error, nfev = value + one, error + off, nfev + info["neval"]
            message = message or (text[0].split(".")[0] if text else "")
        return cls(value, error, nfev, message)
