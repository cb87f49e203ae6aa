"""Everyday integrals: every rule solves each of them at its own tolerance, within the count of nodes given here."""

from __future__ import annotations

from math import inf, pi

import mpmath as mp

from benchmarks.problems.problem import Problem, problem

__all__ = ["EVERYDAY"]


def lorentzian(centre: float, width: float):
    """Return a peak of the given width, whose area over the whole line is pi."""
    return lambda x, m: width / ((x - centre) ** 2 + width**2)


def lorentzian_area(centre: float, width: float):
    """Return the integral of that peak over [0, 1]."""
    return mp.atan((1 - mp.mpf(centre)) / width) + mp.atan(mp.mpf(centre) / width)


def bump_area(centre: float, sharpness: float):
    """Return the integral over [0, 1] of exp(-sharpness (x - centre)^2)."""
    root = mp.sqrt(sharpness)
    return mp.sqrt(mp.pi) / (2 * root) * (mp.erf(root * (1 - mp.mpf(centre))) + mp.erf(root * mp.mpf(centre)))


def vee_area(kink: float):
    """Return the integral over [0, 1] of |x - kink|."""
    return (mp.mpf(kink) ** 2 + (1 - mp.mpf(kink)) ** 2) / 2


EVERYDAY: tuple[Problem, ...] = (
    problem("exponential", lambda x, m: m.exp(x), 0, 1, lambda: mp.e - 1, "smooth", 26),
    problem("polynomial", lambda x, m: 5 * x**4 - 3 * x**2 + 1, -1, 2, lambda: mp.mpf(27), "smooth polynomial", 26),
    problem("negative", lambda x, m: -m.exp(x), 0, 1, lambda: 1 - mp.e, "smooth", 26),
    problem("reversed", lambda x, m: m.exp(x), 1, 0, lambda: 1 - mp.e, "smooth", 26),
    problem("empty", lambda x, m: m.exp(x), 0.5, 0.5, lambda: mp.mpf(0), "smooth zero", 0),
    problem("odd", lambda x, m: m.sin(x), -1, 1, lambda: mp.mpf(0), "smooth zero", 47),
    problem(
        "cosine squared",
        lambda x, m: m.cos(4 * x) ** 2,
        0,
        pi,
        lambda: mp.mpf(pi) / 2 + mp.sin(8 * mp.mpf(pi)) / 16,
        "smooth oscillating",
        68,
    ),
    problem(
        "runge",
        lambda x, m: 1 / (1 + 25 * x**2),
        -1,
        1,
        lambda: mp.mpf(2) / 5 * mp.atan(5),
        "smooth peak",
        263,
    ),
    problem("fast cosine", lambda x, m: m.cos(200 * x), 0, 1, lambda: mp.sin(200) / 200, "smooth oscillating", 973),
    problem("complex phase", lambda x, m: m.exp(3j * x), 0, 2, lambda: (mp.expj(6) - 1) / 3j, "smooth complex", 26),
    problem(
        "bump",
        lambda x, m: m.exp(-1000 * (x - 0.61) ** 2),
        0,
        1,
        lambda: bump_area(0.61, 1000),
        "smooth peak",
        500,
        features=(0.61,),
    ),
    problem(
        "wide lorentzian",
        lorentzian(0.5, 2**-7),
        0,
        1,
        lambda: lorentzian_area(0.5, 2**-7),
        "peak symmetric",
        372,
        features=(0.48, 0.5, 0.52),
    ),
    problem(
        "narrow lorentzian",
        lorentzian(0.3, 2**-17),
        0,
        1,
        lambda: lorentzian_area(0.3, 2**-17),
        "peak",
        658,
        features=(0.299, 0.29998, 0.3, 0.30002, 0.301),
    ),
    problem(
        "pole nearby",
        lambda x, m: 1 / (x + 1e-6),
        0,
        1,
        lambda: mp.log((1 + mp.mpf(1e-6)) / mp.mpf(1e-6)),
        "peak",
        333,
        features=(1e-6, 1e-4, 1e-2),
    ),
    problem("square root", lambda x, m: m.sqrt(x), 0, 1, lambda: mp.mpf(2) / 3, "end", 95),
    problem("x log x", lambda x, m: x * m.log(x), 0, 1, lambda: -mp.mpf(1) / 4, "end", 149),
    problem("logarithm", lambda x, m: m.log(x), 0, 1, lambda: -mp.mpf(1), "end infinite-value", 95, rtol=1e-8),
    problem(
        "inverse root",
        lambda x, m: 1 / m.sqrt(x),
        0,
        1,
        lambda: mp.mpf(2),
        "end infinite-value",
        95,
        rtol=1e-8,
    ),
    problem(
        "inverse root from the right",
        lambda x, m: 1 / m.sqrt(-x),
        -1,
        0,
        lambda: mp.mpf(2),
        "end infinite-value",
        95,
        rtol=1e-8,
    ),
    problem("vee", lambda x, m: abs(x - 0.37), 0, 1, lambda: vee_area(0.37), "kink", 580, features=(0.37,)),
    problem(
        "marked vee",
        lambda x, m: abs(x - 0.37),
        0,
        1,
        lambda: vee_area(0.37),
        "kink marked",
        52,
        points=(0.37,),
        features=(0.37,),
    ),
    problem(
        "step",
        lambda x, m: (x > 0.3) * m.exp(x),
        0,
        1,
        lambda: mp.e - mp.exp(0.3),
        "jump",
        1114,
        features=(0.3,),
    ),
    problem(
        "marked step",
        lambda x, m: (x > 0.3) * m.exp(x),
        0,
        1,
        lambda: mp.e - mp.exp(0.3),
        "jump marked",
        1143,
        points=(0.3,),
        features=(0.3,),
    ),
    # A tolerance tested panel by panel ends 5e-6 away. The value is mpmath's.
    problem(
        "wiggle with a kink",
        lambda x, m: m.sin(50 * x) * m.exp(-3 * x) * m.sqrt(abs(x - 0.37)),
        0,
        1,
        lambda: mp.mpf("0.0118347747049775393697762888165"),
        "kink oscillating",
        1799,
        rtol=1e-8,
        features=(0.37,),
    ),
    problem("decay", lambda x, m: m.exp(-x), 0, inf, lambda: mp.mpf(1), "half-line", 194),
    problem("shifted decay", lambda x, m: m.exp(3 - x), 3, inf, lambda: mp.mpf(1), "half-line", 194),
    problem("growth", lambda x, m: m.exp(x), -inf, 0.5, lambda: mp.exp(0.5), "half-line", 194),
    problem("inverse square", lambda x, m: 1 / x**2, 2, inf, lambda: mp.mpf(1) / 2, "half-line algebraic", 26),
    problem("reversed half-line", lambda x, m: m.exp(-x), inf, 0, lambda: -mp.mpf(1), "half-line", 194),
    problem("gaussian", lambda x, m: m.exp(-(x**2)), -inf, inf, lambda: mp.sqrt(mp.pi), "whole-line", 196),
    problem("cauchy", lambda x, m: 1 / (1 + x**2), -inf, inf, lambda: +mp.pi, "whole-line algebraic", 152),
    problem(
        "moment",
        lambda x, m: x**2 * m.exp(-((x - 1) ** 2)),
        -inf,
        inf,
        lambda: mp.mpf(3) / 2 * mp.sqrt(mp.pi),
        "whole-line",
        348,
    ),
    problem(
        "characteristic function",
        lambda x, m: m.exp(2j * x - x**2),
        -inf,
        inf,
        lambda: mp.sqrt(mp.pi) / mp.e,
        "whole-line complex",
        628,
    ),
)
