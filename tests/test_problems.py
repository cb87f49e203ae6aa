"""The table of problems is itself tested: exact values against mpmath, torch integrands against mpmath's."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch

from problems import PROBLEMS, Problem


def test_names_are_unique() -> None:
    names = [p.name for p in PROBLEMS]
    assert len(set(names)) == len(names)


def test_every_kind_of_difficulty_is_represented() -> None:
    kinds = {
        "smooth",
        "peak",
        "oscillating",
        "end",
        "kink",
        "jump",
        "marked",
        "half-line",
        "whole-line",
        "complex",
        "zero",
    }
    assert kinds <= set().union(*(p.tags for p in PROBLEMS))


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.a != p.b], ids=str)
def test_exact_value_against_mpmath(problem: Problem) -> None:
    inside = sorted(problem.features, reverse=problem.a > problem.b)
    if "kink" in problem.tags and "oscillating" in problem.tags:
        inside += [i / 10 for i in range(1, 10)]
        inside.sort()
    with mp.workdps(30):
        value = mp.quad(lambda x: problem.integrand(x, mp), [problem.a, *inside, problem.b])
        assert abs(value - problem.closed_form()) <= mp.mpf("1e-16") * max(1, abs(problem.closed_form()))


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_torch_integrand_is_the_mpmath_integrand(problem: Problem) -> None:
    for x in sample_points(problem):
        ours = complex(problem.f(torch.tensor(x, dtype=torch.float64)))
        with mp.workdps(30):
            theirs = complex(problem.integrand(mp.mpf(x), mp))
        assert abs(ours - theirs) <= 1e-13 * max(1.0, abs(theirs))


def sample_points(problem: Problem) -> list[float]:
    """Return a few points inside the problem's interval, none of them special."""
    low, high = min(problem.a, problem.b), max(problem.a, problem.b)
    low, high = max(low, -5.0 if math.isinf(high) else high - 5.0), min(high, max(low, -5.0) + 5.0)
    return [low + t * (high - low) for t in (0.1234, 0.3141, 0.5772, 0.9123)]
