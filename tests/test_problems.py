"""The table of problems is itself tested: exact values against mpmath, integrands against mpmath's."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath as mp
import numpy as np
import pytest
import torch

from benchmarks.problems import PROBLEMS, TAGS, Problem

HARD_TAGS = ("end", "both-ends", "inside", "slow", "peak", "oscillating", "jump", "complex", "vector")


def test_names_are_unique() -> None:
    names = [p.name for p in PROBLEMS]
    assert len(set(names)) == len(names)


def test_every_kind_of_difficulty_is_represented() -> None:
    assert set().union(*(p.tags for p in PROBLEMS)) >= set(TAGS)
    for tag in HARD_TAGS:
        assert sum(tag in p.tags for p in PROBLEMS) >= 5, tag


def test_there_are_enough_of_them() -> None:
    assert len(PROBLEMS) >= 100


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.a != p.b], ids=str)
def test_exact_value_against_mpmath(problem: Problem) -> None:
    # A singularity at c != 0 is told from c by as many digits as there are; the substitution needs them.
    with mp.workdps(30 if problem.power == 1 else 250):
        closed = problem.closed_form()
        for place, exact in enumerate(closed if isinstance(closed, tuple) else (closed,)):
            value = measure(problem, place if isinstance(closed, tuple) else None)
            assert abs(value - exact) <= mp.mpf("1e-16") * max(1, abs(exact))


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.antiderivative], ids=str)
def test_antiderivative_is_one(problem: Problem) -> None:
    assert problem.antiderivative is not None
    with mp.workdps(30):
        for x in map(mp.mpf, sample_points(problem)):
            slope = mp.diff(problem.antiderivative, x)
            assert abs(slope - problem.integrand(x, mp)) <= mp.mpf("1e-12") * abs(slope)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_torch_integrand_and_scalar_integrand_are_the_mpmath_integrand(problem: Problem) -> None:
    for x in sample_points(problem):
        with mp.workdps(30):
            value = problem.integrand(mp.mpf(x), mp)
            exact = np.array([complex(v) for v in (value if isinstance(value, tuple) else (value,))])
        vectorized = problem.f(torch.tensor(x, dtype=torch.float64)).numpy().reshape(-1)
        scalar = np.array([complex(f(x)) for f in problem.components()])
        for found in (vectorized, scalar):
            assert np.all(np.abs(found - exact) <= 1e-13 * np.maximum(1.0, np.abs(exact)))


def measure(problem: Problem, place: int | None) -> mp.mpf | mp.mpc:
    """Return the integral as mpmath finds it."""
    if problem.antiderivative is not None:
        return problem.antiderivative(mp.mpf(problem.b)) - problem.antiderivative(mp.mpf(problem.a))
    f = lambda x: problem.integrand(x, mp) if place is None else problem.integrand(x, mp)[place]
    inside = {*problem.features, *problem.points}
    if "kink" in problem.tags and "oscillating" in problem.tags:
        inside |= {i / 10 for i in range(1, 10)}
    breaks = [problem.a, *sorted(inside, reverse=problem.a > problem.b), problem.b]
    if problem.power == 1:
        return mp.quad(f, breaks)
    return sum(substitute(f, mp.mpf(low), mp.mpf(high), problem.power) for low, high in pairwise(breaks))


def substitute(f, low: mp.mpf, high: mp.mpf, power: int) -> mp.mpf | mp.mpc:
    """Integrate over [low, high] with powers of the distance from both ends, which removes singularities there."""
    rule = lambda g: mp.quad(g, [0, 0.5, 1], method="gauss-legendre", maxdegree=6)
    if mp.isinf(low):
        return substitute(lambda x: f(-x), -high, -low, power)
    if mp.isinf(high):
        far = lambda t: f(low + t**-power) * power * t ** (-power - 1)
        return substitute(f, low, low + 1, power) + rule(far)
    half = (high - low) / 2
    near = lambda t: (f(low + half * t**power) + f(high - half * t**power)) * half * power * t ** (power - 1)
    return rule(near)


def sample_points(problem: Problem) -> list[float]:
    """Return a few points inside the problem's interval, none of them special."""
    low, high = min(problem.a, problem.b), max(problem.a, problem.b)
    low, high = max(low, -5.0 if math.isinf(high) else high - 5.0), min(high, max(low, -5.0) + 5.0)
    return [low + t * (high - low) for t in (0.1234, 0.3141, 0.5772, 0.9123)]
