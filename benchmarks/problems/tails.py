"""Integrals over infinite ranges: slow decay, singular ends, oscillating tails."""

from __future__ import annotations

from math import inf

import mpmath as mp

from benchmarks.problems.problem import Problem, problem

__all__ = ["TAILS"]


def power_tail(p: float) -> Problem:
    """Return the integral of x^p from 1 on."""
    primitive = lambda x: mp.mpf(0) if x == mp.inf else x ** (1 + mp.mpf(p)) / (1 + mp.mpf(p))
    closed = lambda: -1 / (1 + mp.mpf(p))
    return problem(f"x^{p} from 1", lambda x, m: x**p, 1, inf, closed, "half-line slow", antiderivative=primitive)


def stretched(k: int) -> Problem:
    """Return Piessens' integral of x^2 exp(-x / 2^k)."""
    return problem(
        f"x^2 exp(-x/2^{k})",
        lambda x, m: x**2 * m.exp(-x / 2**k),
        0,
        inf,
        lambda: mp.mpf(2) ** (3 * k + 1),
        "smooth half-line",
        features=(2.0**k, 2.0 ** (k + 3), 2.0 ** (k + 6)),
    )


def power_and_tail(p: float) -> Problem:
    """Return Piessens' integral of x^(p-1) / (1 + 10 x)^2: a power at 0, another one at infinity."""
    r = p - 1
    exact = lambda: 1 + mp.mpf(r)
    closed = lambda: mp.mpf(10) ** -exact() * (1 - exact()) * mp.pi / mp.sin(mp.pi * exact())
    tags = "half-line slow" if p > 1 else "end half-line"
    return problem(f"x^{r:.1f} / (1+10x)^2", lambda x, m: x**r / (1 + 10 * x) ** 2, 0, inf, closed, tags, power=40)


TAILS: tuple[Problem, ...] = (
    power_tail(-1.5),
    power_tail(-1.1),
    power_tail(-1.01),
    problem(
        "(1+x)^-1.2",
        lambda x, m: (1 + x) ** -1.2,
        0,
        inf,
        lambda: 1 / (mp.mpf(1.2) - 1),
        "half-line slow",
        power=10,
    ),
    problem(
        "1/(x log(x)^2) from 2",
        lambda x, m: 1 / (x * m.log(x) ** 2),
        2,
        inf,
        lambda: 1 / mp.log(2),
        "half-line slow",
        antiderivative=lambda x: -1 / mp.log(x),
    ),
    problem(
        "log(x) / x^2 from 1", lambda x, m: m.log(x) / x**2, 1, inf, lambda: mp.mpf(1), "half-line slow", power=8
    ),
    problem(
        "(1+x^2)^-0.6",
        lambda x, m: (1 + x**2) ** -0.6,
        -inf,
        inf,
        lambda: mp.sqrt(mp.pi) * mp.gamma(mp.mpf(0.6) - 0.5) / mp.gamma(mp.mpf(0.6)),
        "whole-line slow",
        power=20,
        features=(0,),
    ),
    problem(
        "x^-0.5 exp(-x)",
        lambda x, m: m.exp(-x) / m.sqrt(x),
        0,
        inf,
        lambda: mp.sqrt(mp.pi),
        "end half-line",
        power=4,
        features=(1, 10, 50),
    ),
    problem(
        "x^-0.9 exp(-x)",
        lambda x, m: m.exp(-x) * x**-0.9,
        0,
        inf,
        lambda: mp.gamma(1 + mp.mpf(-0.9)),
        "end half-line",
        power=20,
        features=(1, 10, 50),
    ),
    problem(
        "x^-0.5 / (1+x) to infinity",
        lambda x, m: 1 / (m.sqrt(x) * (1 + x)),
        0,
        inf,
        lambda: +mp.pi,
        "end half-line slow",
        power=4,
    ),
    # QUADPACK's example for QAGI.
    problem(
        "log(x) / (1+100x^2)",
        lambda x, m: m.log(x) / (1 + 100 * x**2),
        0,
        inf,
        lambda: -mp.pi * mp.log(10) / 20,
        "end half-line",
        power=8,
    ),
    power_and_tail(0.1),
    power_and_tail(1.9),
    stretched(0),
    stretched(5),
    problem("exp(-sqrt(x))", lambda x, m: m.exp(-m.sqrt(x)), 0, inf, lambda: mp.mpf(2), "end half-line", power=4),
    problem(
        "exp(-|x-1|) marked",
        lambda x, m: m.exp(-abs(x - 1)),
        -inf,
        inf,
        lambda: mp.mpf(2),
        "kink marked whole-line",
        points=(1,),
    ),
    problem(
        "sech",
        lambda x, m: 1 / m.cosh(x),
        -inf,
        inf,
        lambda: +mp.pi,
        "smooth whole-line",
        features=(0,),
    ),
    problem(
        "damped cosine to infinity",
        lambda x, m: m.exp(-x) * m.cos(20 * x),
        0,
        inf,
        lambda: mp.mpf(1) / 401,
        "oscillating half-line",
        features=tuple(float(i) for i in range(1, 60)),
    ),
    problem(
        "sin(x)/x",
        lambda x, m: m.sin(x) / x,
        0,
        inf,
        lambda: mp.pi / 2,
        "oscillating half-line slow",
        antiderivative=mp.si,
    ),
    problem(
        "(sin(x)/x)^2",
        lambda x, m: (m.sin(x) / x) ** 2,
        0,
        inf,
        lambda: mp.pi / 2,
        "oscillating half-line slow",
        antiderivative=lambda x: mp.si(2 * x) - (mp.sin(x) ** 2 / x if x and x != mp.inf else 0),
    ),
)
