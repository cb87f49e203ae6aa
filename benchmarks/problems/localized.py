"""Integrals of which most happens in a small part of the interval, and piecewise ones with their places marked."""

from __future__ import annotations

from math import inf, pi

import mpmath as mp

from benchmarks.problems.problem import Problem, problem

__all__ = ["HIDDEN", "LOCALIZED"]


def piessens_peak(k: int) -> Problem:
    """Return Piessens' peak of half width 4^-k."""
    width = 4.0**-k
    c = pi / 4
    closed = lambda: mp.atan((1 - mp.mpf(c)) / width) + mp.atan(mp.mpf(c) / width)
    near = tuple(c + side * 4.0**-j for j in range(1, k + 1, 2) for side in (-1, 1) if 0 < c + side * 4.0**-j < 1)
    f = lambda x, m: width / ((x - c) ** 2 + width**2)
    return problem(f"peak 4^-{k}", f, 0, 1, closed, "peak", features=tuple(sorted((*near, c))))


def three_bumps_area() -> mp.mpf:
    """Return the integral of sech^2, sech^4 and sech^6, each narrower than the one before."""

    def difference(primitive, scale: int, centre: float):
        return (
            primitive(mp.tanh(scale * (1 - mp.mpf(centre)))) - primitive(mp.tanh(-scale * mp.mpf(centre)))
        ) / scale

    return (
        difference(lambda t: t, 10, 0.2)
        + difference(lambda t: t - t**3 / 3, 100, 0.4)
        + difference(lambda t: t - 2 * t**3 / 3 + t**5 / 5, 1000, 0.6)
    )


LOCALIZED: tuple[Problem, ...] = (
    piessens_peak(2),
    piessens_peak(5),
    piessens_peak(10),
    piessens_peak(15),
    problem(
        "decay at the left end",
        lambda x, m: m.exp(-1e4 * x),
        0,
        1,
        lambda: (1 - mp.exp(-10000)) / 10000,
        "smooth peak",
        features=(1e-4, 1e-3, 1e-2),
    ),
    problem(
        "gaussian in a long interval",
        lambda x, m: m.exp(-(x**2)),
        -300,
        700,
        lambda: mp.sqrt(mp.pi),
        "smooth peak",
        features=(-10, 0, 10),
    ),
    # SciPy finds 8.9e-22.
    problem(
        "normal density far out",
        lambda x, m: m.exp(-(((x - 116) / 3.81) ** 2) / 2) / (3.81 * (2 * pi) ** 0.5),
        0,
        inf,
        lambda: mp.erfc(-116 / (mp.mpf(3.81) * mp.sqrt(2))) / 2,
        "smooth peak half-line",
        features=(80, 116, 150),
    ),
    problem(
        "box in a long interval",
        lambda x, m: (x > 0) * (x < 1) * (1 + 0 * x),
        -1,
        10_000,
        lambda: mp.mpf(1),
        "jump peak",
        features=(0, 1),
    ),
    problem(
        "marked box in a long interval",
        lambda x, m: (x > 0) * (x < 1) * (1 + 0 * x),
        -1,
        10_000,
        lambda: mp.mpf(1),
        "jump peak marked",
        points=(0, 1),
    ),
    problem(
        "marked stairs",
        lambda x, m: (1.0 * (x > 0.2) + 2.0 * (x > 0.5) - 5.0 * (x > 0.9)) * m.cos(x),
        0,
        1,
        lambda: -(mp.sin(mp.mpf(0.2)) + 2 * mp.sin(mp.mpf(0.5)) - 5 * mp.sin(mp.mpf(0.9))) - 2 * mp.sin(1),
        "jump marked",
        points=(0.2, 0.5, 0.9),
    ),
    problem(
        "marked sawtooth",
        lambda x, m: x - m.floor(x),
        0,
        4.5,
        lambda: mp.mpf(17) / 8,
        "jump marked",
        points=(1, 2, 3, 4),
    ),
    problem("sawtooth", lambda x, m: x - m.floor(x), 0, 4.5, lambda: mp.mpf(17) / 8, "jump", features=(1, 2, 3, 4)),
    problem(
        "marked absolute sine",
        lambda x, m: abs(m.sin(5 * x)),
        0,
        3,
        lambda: (9 - mp.cos(15)) / 5,
        "kink marked",
        points=(pi / 5, 2 * pi / 5, 3 * pi / 5, 4 * pi / 5),
    ),
    problem(
        "marked change of law",
        lambda x, m: (x < 0.6) * m.exp(x) + (x >= 0.6) * m.cos(3 * x),
        0,
        1,
        lambda: mp.expm1(mp.mpf(0.6)) + (mp.sin(3) - mp.sin(3 * mp.mpf(0.6))) / 3,
        "jump marked",
        points=(0.6,),
    ),
    problem(
        "ramp",
        lambda x, m: (x > 0.4) * (x - 0.4) * m.exp(x),
        0,
        1,
        lambda: mp.exp(mp.mpf(0.4)) - mp.mpf(0.4) * mp.e,
        "kink",
        features=(0.4,),
    ),
)

HIDDEN: tuple[Problem, ...] = (
    # Kahaner's; the third bump is 2e-3 wide.
    problem(
        "three bumps",
        lambda x, m: (
            1 / m.cosh(10 * (x - 0.2)) ** 2 + 1 / m.cosh(100 * (x - 0.4)) ** 4 + 1 / m.cosh(1000 * (x - 0.6)) ** 6
        ),
        0,
        1,
        three_bumps_area,
        "peak",
        features=(0.2, 0.35, 0.4, 0.45, 0.59, 0.595, 0.6, 0.605, 0.61),
    ),
)
"""Integrals with a feature between all nodes: the value is wrong and nothing can tell. They count apart."""
