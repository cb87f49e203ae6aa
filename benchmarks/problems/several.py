"""Complex and vector-valued integrals; the components of a vector differ in what is hard about them."""

from __future__ import annotations

from math import inf, pi

import mpmath as mp

from benchmarks.problems.everyday import lorentzian, lorentzian_area
from benchmarks.problems.problem import Problem, problem

__all__ = ["SEVERAL"]


SEVERAL: tuple[Problem, ...] = (
    problem(
        "complex pole nearby",
        lambda x, m: 1 / (x - (0.3 + 1e-3j)),
        0,
        1,
        lambda: mp.log(1 - mp.mpc(0.3, 1e-3)) - mp.log(-mp.mpc(0.3, 1e-3)),
        "complex peak",
        features=(0.29, 0.299, 0.3, 0.301, 0.31),
    ),
    problem(
        "complex oscillation",
        lambda x, m: m.exp(60j * x) / (1 + x),
        0,
        1,
        lambda: mp.expj(-60) * (mp.e1(-60j) - mp.e1(-120j)),
        "complex oscillating",
        features=tuple(i / 10 for i in range(1, 10)),
    ),
    problem(
        "complex decay",
        lambda x, m: m.exp(-(1 + 2j) * x),
        0,
        inf,
        lambda: 1 / mp.mpc(1, 2),
        "complex half-line",
        features=(1, 5, 20),
    ),
    problem(
        "complex inverse root",
        lambda x, m: m.exp(1j * x) / m.sqrt(x),
        0,
        1,
        lambda: 2 * mp.hyp1f1(0.5, 1.5, 1j),
        "complex end",
        power=4,
    ),
    problem(
        "marked complex jump",
        lambda x, m: (1.0 * (x > 0.3) - 0.5) * m.exp(2j * pi * x),
        0,
        1,
        lambda: -mp.expm1(2j * mp.mpf(pi) * mp.mpf(0.3)) / (2j * mp.mpf(pi)),
        "complex jump marked",
        points=(0.3,),
    ),
    problem(
        "vector of smooth ones",
        lambda x, m: (m.exp(x), m.cos(3 * x), 1 / (1 + x**2)),
        0,
        1,
        lambda: (mp.e - 1, mp.sin(3) / 3, mp.pi / 4),
        "vector smooth",
    ),
    problem(
        "vector of peaks",
        lambda x, m: tuple(lorentzian(c, w)(x, m) for c, w in ((0.2, 1e-2), (0.5, 1e-3), (0.8, 1e-4))),
        0,
        1,
        lambda: tuple(lorentzian_area(c, w) for c, w in ((0.2, 1e-2), (0.5, 1e-3), (0.8, 1e-4))),
        "vector peak",
        features=(0.19, 0.2, 0.21, 0.49, 0.499, 0.5, 0.501, 0.51, 0.79, 0.799, 0.8, 0.801, 0.81),
    ),
    problem(
        "vector of singular ends",
        lambda x, m: (x**-0.5, m.log(x), m.cos(x)),
        0,
        1,
        lambda: (mp.mpf(2), -mp.mpf(1), mp.sin(1)),
        "vector end",
        power=8,
    ),
    problem(
        "vector of decays",
        lambda x, m: (m.exp(-x), x * m.exp(-3 * x), m.exp(-x) * m.sin(x)),
        0,
        inf,
        lambda: (mp.mpf(1), mp.mpf(1) / 9, mp.mpf(1) / 2),
        "vector half-line",
        features=(1, 5, 20),
    ),
    problem(
        "vector with a zero",
        lambda x, m: (0 * x, m.exp(-5 * x)),
        0,
        2,
        lambda: (mp.mpf(0), -mp.expm1(-10) / 5),
        "vector smooth",
    ),
    problem(
        "vector with marked jumps",
        lambda x, m: ((x > 0.25) * m.exp(x), (x > 0.6) * m.sin(x)),
        0,
        1,
        lambda: (mp.e - mp.exp(0.25), mp.cos(mp.mpf(0.6)) - mp.cos(1)),
        "vector jump marked",
        points=(0.25, 0.6),
    ),
)
