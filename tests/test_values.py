"""The table of problems through ``quad``: values, honest errors, statuses and evaluation counts.

Two lists are kept apart: problems that may not converge (`HOPELESS`), and problems whose reported error is
smaller than the true one. The second must be empty.
"""

from __future__ import annotations

import pytest
import torch

import quadgrad as qg
from helpers import relative_error, t64
from problems import HOPELESS, PROBLEMS, Hopeless, Problem, tagged

RULES = ("gk15", "gk21", "gk31", "gk41", "gk51", "gk61", "cc15", "cc31")


def solve(problem: Problem, **options) -> qg.Result:
    """Integrate a problem of the table in float64, silently."""
    options.setdefault("rtol", problem.rtol)
    points = t64(problem.points) if problem.points else None
    return qg.quad(problem.f, t64(problem.a), t64(problem.b), points=points, on_failure="ignore", **options)


def true_error(problem: Problem, result: qg.Result) -> float:
    return abs(complex(result.value) - problem.exact)


def lies(problem: Problem, **options) -> bool:
    """Whether quad claims convergence with an error smaller than the true one."""
    result = solve(problem, **options)
    return bool(result.converged) and true_error(problem, result) > float(result.error)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_table_converges_to_the_exact_value(problem: Problem, rule: str) -> None:
    result = solve(problem, rule=rule)
    assert qg.Status(int(result.status)) is qg.Status.CONVERGED
    assert true_error(problem, result) <= float(result.error)
    if "zero" not in problem.tags:
        assert float(result.error) <= problem.rtol * abs(complex(result.value))


@pytest.mark.parametrize("problem", tagged("zero"), ids=str)
def test_zero_integral_converges_by_rounding(problem: Problem) -> None:
    result = solve(problem)
    assert float(result.error) <= 50 * torch.finfo(torch.float64).eps
    assert abs(complex(result.value)) <= float(result.error)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_evaluation_count(problem: Problem) -> None:
    assert int(solve(problem).nfev) <= problem.nfev


@pytest.mark.parametrize("problem", tagged("polynomial"), ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_polynomial_costs_one_cell(problem: Problem, rule: str) -> None:
    assert int(solve(problem, rule=rule).nfev) == int(rule[2:]) + 5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rtol", (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8))
def test_no_reported_error_is_too_small(rtol: float, rule: str) -> None:
    liars = [p.name for p in PROBLEMS if lies(p, rtol=rtol, rule=rule)]
    assert liars == []


@pytest.mark.parametrize("budget", (63, 105, 210))
def test_a_small_budget_is_no_reason_to_lie(budget: int) -> None:
    liars = [p.name for p in PROBLEMS if lies(p, max_nfev=budget)]
    assert liars == []


@pytest.mark.parametrize("problem", HOPELESS, ids=str)
def test_hopeless_integral_is_not_reported_as_converged(problem: Hopeless) -> None:
    result = qg.quad(problem.f, t64(problem.a), t64(problem.b), max_nfev=problem.max_nfev, on_failure="ignore")
    assert qg.Status(int(result.status)) is not qg.Status.CONVERGED
    assert not bool(result.converged)
    assert int(result.nfev) <= (problem.max_nfev or 100_000)


@pytest.mark.parametrize("atol", (1e-2, 1e-5, 1e-9))
def test_absolute_tolerance_alone(atol: float) -> None:
    result = qg.quad(lambda x: torch.cos(200 * x), t64(0.0), t64(1.0), rtol=0.0, atol=atol)
    assert result.converged
    assert float(result.error) <= atol
    assert abs(float(result.value) - torch.sin(t64(200.0)) / 200) <= float(result.error)


def test_narrow_peaks_are_closed_in_on() -> None:
    """Peaks of any width take 425 nodes on average; 466 before one was bisected more than twice at once."""
    generator = torch.Generator().manual_seed(0)
    c, decades = torch.rand((2, 2000), generator=generator, dtype=torch.float64)
    result = qg.quad(lambda x, c, e: e / ((x - c) ** 2 + e**2), 0.0, 1.0, (c, 10 ** (4 * decades - 5)), rtol=1e-8)
    assert result.converged.all()
    assert float(result.nfev.double().mean()) <= 425


def test_looser_tolerance_costs_less() -> None:
    (peak,) = (p for p in PROBLEMS if p.name == "narrow lorentzian")
    counts = [int(solve(peak, rtol=rtol).nfev) for rtol in (1e-12, 1e-8, 1e-4)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_every_element_of_a_batch_stops_on_its_own() -> None:
    width = t64([1e1, 1e-1, 1e-2, 1e-3, 1e-4])
    f = lambda x, e: e / ((x - 0.3) ** 2 + e**2)
    result = qg.quad(f, t64(0.0), t64(1.0), (width,), rtol=1e-10)
    exact = torch.atan(0.7 / width) + torch.atan(0.3 / width)
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error).all()
    assert int(result.nfev[0]) == 26
    assert result.nfev.tolist() == [int(qg.quad(f, t64(0.0), t64(1.0), (e,), rtol=1e-10).nfev) for e in width]


def test_twenty_thousand_peaks_at_once_are_all_honest() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(20_000, dtype=torch.float64, generator=generator)
    width = 10 ** (-1 - 4 * torch.rand(20_000, dtype=torch.float64, generator=generator))
    result = qg.quad(lambda x, c, e: e / ((x - c) ** 2 + e**2), t64(0.0), t64(1.0), (centre, width), rtol=1e-8)
    exact = torch.atan((1 - centre) / width) + torch.atan(centre / width)
    assert result.converged.all()
    assert ((result.value - exact).abs() <= result.error).all()
    assert relative_error(result.value, exact) <= 1e-8
