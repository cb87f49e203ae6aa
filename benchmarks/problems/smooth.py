"""Smooth and oscillating integrals; those with a 2^k are Piessens' (QUADPACK, Springer 1983, section 4.1)."""

from __future__ import annotations

from math import pi

import mpmath as mp

from benchmarks.problems.problem import Problem, problem

__all__ = ["SMOOTH"]


def bessel(k: int) -> Problem:
    """Return the integral of cos(2^k sin x) over a half period."""
    # The upper limit is the float next to pi; the integrand is 1 there.
    closed = lambda: mp.pi * mp.besselj(0, 2**k) + (mp.mpf(pi) - mp.pi)
    cuts = tuple(pi * i / 32 for i in range(1, 32)) if k > 6 else ()
    return problem(
        f"cos(2^{k} sin x)", lambda x, m: m.cos(2**k * m.sin(x)), 0, pi, closed, "smooth oscillating", features=cuts
    )


def damped_sine(k: int) -> Problem:
    """Return the integral of a sine that grows towards the right end."""
    w = 2**k
    closed = lambda: (20 * mp.sin(w) - w * mp.cos(w) + w * mp.exp(-20)) / (400 + w**2)
    f = lambda x, m: m.exp(20 * (x - 1)) * m.sin(w * x)
    cuts = tuple(i / 32 for i in range(1, 32))
    return problem(f"exp(20(x-1)) sin(2^{k} x)", f, 0, 1, closed, "smooth oscillating", features=cuts)


SMOOTH: tuple[Problem, ...] = (
    problem("power 40", lambda x, m: x**40, 0, 1, lambda: mp.mpf(1) / 41, "smooth"),
    problem(
        "quartic",
        lambda x, m: 1 / (1 + x**4),
        0,
        1,
        lambda: (mp.pi + 2 * mp.log(1 + mp.sqrt(2))) / (4 * mp.sqrt(2)),
        "smooth",
    ),
    problem(
        "cosh less cos",
        lambda x, m: 23 / 25 * m.cosh(x) - m.cos(x),
        -1,
        1,
        lambda: 2 * mp.mpf(23 / 25) * mp.sinh(1) - 2 * mp.sin(1),
        "smooth",
    ),
    problem(
        "debye",
        lambda x, m: x / m.expm1(x),
        0,
        1,
        lambda: mp.log(1 - mp.exp(-1)) - mp.polylog(2, mp.exp(-1)) + mp.pi**2 / 6,
        "smooth",
    ),
    problem(
        "elliptic",
        lambda x, m: m.sqrt(1 - 0.81 * m.sin(x) ** 2),
        0,
        pi / 2,
        lambda: mp.ellipe(mp.mpf(0.81)),
        "smooth",
    ),
    problem(
        "orbit",
        lambda x, m: 1 / (1 + 0.9 * m.cos(x)),
        0,
        2 * pi,
        lambda: 2 * mp.pi / mp.sqrt(1 - mp.mpf(0.9) ** 2),
        "smooth peak",
        features=(pi / 2, pi, 3 * pi / 2),
    ),
    problem(
        "ten periods",
        lambda x, m: 2 / (2 + m.sin(10 * pi * x)),
        0,
        1,
        lambda: 2 / mp.sqrt(3),
        "smooth oscillating",
        features=tuple(i / 10 for i in range(1, 10)),
    ),
    problem(
        "chirp",
        lambda x, m: m.cos(100 * x**2),
        0,
        1,
        lambda: mp.sqrt(mp.pi / 200) * mp.fresnelc(mp.sqrt(200 / mp.pi)),
        "smooth oscillating",
        features=tuple(i / 16 for i in range(1, 16)),
    ),
    bessel(3),
    bessel(6),
    bessel(9),
    damped_sine(5),
    damped_sine(9),
)
