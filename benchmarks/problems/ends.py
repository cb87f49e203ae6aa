"""Integrals over finite intervals, singular at one end or at both; powers and logarithms are Piessens'.

Singularities at a right end other than 0 are the hard ones: there x is no closer to the end than rounding lets it.
"""

from __future__ import annotations

from math import pi

import mpmath as mp

from benchmarks.problems.problem import Problem, problem

__all__ = ["ENDS"]


def power(p: float) -> Problem:
    """Return the integral of x^p, singular at the left end."""
    return problem(
        f"x^{p}", lambda x, m: x**p, 0, 1, lambda: 1 / (1 + mp.mpf(p)), "end", antiderivative=primitive_of_power(p)
    )


def mirrored_power(p: float) -> Problem:
    """Return the integral of (1 - x)^p, singular at the right end."""
    primitive = primitive_of_power(p)
    return problem(
        f"(1-x)^{p}",
        lambda x, m: (1 - x) ** p,
        0,
        1,
        lambda: 1 / (1 + mp.mpf(p)),
        "end",
        antiderivative=lambda x: -primitive(1 - x),
    )


def primitive_of_power(p: float):
    """Return the antiderivative of x^p that is 0 at 0."""
    return lambda x: x ** (1 + mp.mpf(p)) / (1 + mp.mpf(p))


def log_power(p: float, times: int) -> Problem:
    """Return Piessens' integral of x^p log(1/x)."""
    closed = lambda: 1 / (1 + mp.mpf(p)) ** 2
    return problem(f"x^{p} log(1/x)", lambda x, m: -(x**p) * m.log(x), 0, 1, closed, "end", power=times)


def beta(p: float, q: float, times: int) -> Problem:
    """Return the Beta function, singular at both ends for exponents below 1."""
    r, s = p - 1, q - 1
    closed = lambda: mp.beta(1 + mp.mpf(r), 1 + mp.mpf(s))
    return problem(f"Beta({p}, {q})", lambda x, m: x**r * (1 - x) ** s, 0, 1, closed, "both-ends", power=times)


def chebyshev_pole(k: int) -> Problem:
    """Return Piessens' integral with inverse roots at both ends and a pole 2^-k beyond the left one."""
    gap = 2.0**-k
    f = lambda x, m: 1 / (m.sqrt((1 - x) * (1 + x)) * (1 + x + gap))
    closed = lambda: mp.pi / mp.sqrt((1 + mp.mpf(gap)) ** 2 - 1)
    near = tuple(-1 + gap * 4**j for j in range(k // 2 + 1))
    return problem(f"inverse roots and a pole 2^-{k}", f, -1, 1, closed, "both-ends", power=4, features=near)


def chebyshev_cosine(k: int) -> Problem:
    """Return Piessens' integral of an oscillation between inverse roots at both ends."""
    w = 2**k
    f = lambda x, m: m.cos(w * x) / m.sqrt(x * (1 - x))
    closed = lambda: mp.pi * mp.cos(mp.mpf(w) / 2) * mp.besselj(0, mp.mpf(w) / 2)
    return problem(f"inverse roots and cos(2^{k} x)", f, 0, 1, closed, "both-ends oscillating", power=4)


def log_gamma(p: float, times: int) -> Problem:
    """Return Piessens' integral for the gamma function: log(1/x)^(p-1)."""
    r = p - 1
    f = lambda x, m: (-m.log(x)) ** r
    return problem(f"log(1/x)^{r:g}", f, 0, 1, lambda: mp.gamma(1 + mp.mpf(r)), "both-ends", power=times)


def sine_power(p: float, times: int) -> Problem:
    """Return Piessens' integral of sin(x)^(p-1) over a quarter period."""
    r = p - 1
    closed = lambda: mp.beta((1 + mp.mpf(r)) / 2, mp.mpf(1) / 2) / 2
    return problem(f"sin(x)^{r:g}", lambda x, m: m.sin(x) ** r, 0, pi / 2, closed, "end", power=times)


def davis_rabinowitz() -> Problem:
    """Return 30 periods that end in an inverse root: x sin(30 x) / sqrt(1 - (x / 2 pi)^2)."""
    w = 60 * pi
    f = lambda x, m: 4 * pi**2 * x * m.sin(w * x) / m.sqrt((1 - x) * (1 + x))
    closed = lambda: 4 * mp.mpf(pi**2) * mp.pi / 2 * mp.besselj(1, mp.mpf(w))
    cuts = tuple(i / 10 for i in range(1, 10))
    return problem("thirty periods and an inverse root", f, 0, 1, closed, "end oscillating", power=4, features=cuts)


ENDS: tuple[Problem, ...] = (
    power(0.1),
    power(-0.5),
    power(-0.9),
    power(-0.99),
    mirrored_power(-0.5),
    mirrored_power(-0.9),
    mirrored_power(0.5),
    problem(
        "(-x)^-0.9",
        lambda x, m: (-x) ** -0.9,
        -1,
        0,
        lambda: 1 / (1 + mp.mpf(-0.9)),
        "end",
        antiderivative=lambda x: -primitive_of_power(-0.9)(-x),
    ),
    log_power(2.6, 4),
    log_power(-0.5, 8),
    log_power(-0.9, 100),
    problem("log(1-x)", lambda x, m: m.log(1 - x), 0, 1, lambda: -mp.mpf(1), "end", power=8),
    problem("log(x)^2", lambda x, m: m.log(x) ** 2, 0, 1, lambda: mp.mpf(2), "end", power=8),
    problem(
        "log(x) log(1-x)",
        lambda x, m: m.log(x) * m.log(1 - x),
        0,
        1,
        lambda: 2 - mp.pi**2 / 6,
        "both-ends",
        power=8,
    ),
    problem("x^-0.5 / (1+x)", lambda x, m: 1 / (m.sqrt(x) * (1 + x)), 0, 1, lambda: mp.pi / 2, "end", power=4),
    problem(
        "1/(x log(x)^2)",
        lambda x, m: 1 / (x * m.log(x) ** 2),
        0,
        0.5,
        lambda: 1 / mp.log(2),
        "end",
        antiderivative=lambda x: -1 / mp.log(x) if x else mp.mpf(0),
    ),
    problem(
        "sin(1/x)",
        lambda x, m: m.sin(1 / x),
        0,
        1,
        lambda: mp.sin(1) - mp.ci(1),
        "end oscillating",
        antiderivative=lambda x: x * mp.sin(1 / x) - mp.ci(1 / x) if x else mp.mpf(0),
    ),
    beta(0.5, 0.5, 4),
    beta(0.1, 0.1, 40),
    beta(0.5, 3.0, 4),
    beta(0.25, 0.9, 24),
    chebyshev_pole(2),
    chebyshev_pole(12),
    chebyshev_cosine(5),
    log_gamma(0.5, 8),
    log_gamma(1.5, 8),
    sine_power(0.1, 40),
    sine_power(0.6, 10),
    davis_rabinowitz(),
)
