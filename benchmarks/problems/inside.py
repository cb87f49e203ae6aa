"""Integrals singular inside the interval, at places named in ``points``, and two at places that are not."""

from __future__ import annotations

from math import pi, sqrt

import mpmath as mp

from benchmarks.problems.problem import Problem, problem

__all__ = ["INSIDE"]


def cusp(p: float, c: float, place: str, marked: bool, times: int) -> Problem:
    """Return Piessens' integral of |x - c|^p."""

    def closed() -> mp.mpf:
        q = 1 + mp.mpf(p)
        return (mp.mpf(c) ** q + (1 - mp.mpf(c)) ** q) / q

    return problem(
        f"{'marked ' if marked else ''}|x-{place}|^{p}",
        lambda x, m: abs(x - c) ** p,
        0,
        1,
        closed,
        f"inside{' marked' if marked else ''}",
        points=(c,) if marked else (),
        features=() if marked else (c,),
        power=times,
    )


INSIDE: tuple[Problem, ...] = (
    cusp(0.5, 1 / 3, "1/3", True, 4),
    cusp(-0.2, pi / 4, "pi/4", True, 10),
    cusp(-0.5, 1 / 3, "1/3", True, 4),
    cusp(-0.8, 1 / 3, "1/3", True, 20),
    cusp(-0.9, 1 / 3, "1/3", True, 40),
    cusp(0.5, 1 / 3, "1/3", False, 4),
    cusp(-0.5, 1 / 3, "1/3", False, 4),
    problem(
        "marked log|x-0.3|",
        lambda x, m: m.log(abs(x - 0.3)),
        0,
        1,
        lambda: mp.mpf(0.3) * mp.log(mp.mpf(0.3)) + (1 - mp.mpf(0.3)) * mp.log(1 - mp.mpf(0.3)) - 1,
        "inside marked",
        points=(0.3,),
        power=8,
    ),
    problem(
        "marked |x|^-0.5",
        lambda x, m: abs(x) ** -0.5,
        -1,
        2,
        lambda: 2 + 2 * mp.sqrt(2),
        "inside marked",
        points=(0,),
        power=4,
    ),
    problem(
        "marked two singularities",
        lambda x, m: abs(x - 0.25) ** -0.5 + abs(x - 0.7) ** -0.25,
        0,
        1,
        lambda: (
            2 * (mp.sqrt(0.25) + mp.sqrt(0.75)) + (mp.mpf(0.7) ** 0.75 + (1 - mp.mpf(0.7)) ** 0.75) / mp.mpf(0.75)
        ),
        "inside marked",
        points=(0.25, 0.7),
        power=8,
    ),
    # QUADPACK's example for QAGP.
    problem(
        "marked x^3 log|(x^2-1)(x^2-2)|",
        lambda x, m: x**3 * m.log(abs((x**2 - 1) * (x**2 - 2))),
        0,
        3,
        lambda: 61 * mp.log(2) + mp.mpf(77) / 4 * mp.log(7) - 27,
        "inside marked",
        points=(1, sqrt(2)),
        power=8,
    ),
)
