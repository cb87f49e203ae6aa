"""One table of integrals whose derivative with respect to a parameter is known, and how hard it is.

A row's integrand takes the namespace it computes with, as in `problems.py`. In most of them the derivative is
harder than the value: a plan that meets a loose tolerance for the value does not resolve it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import mpmath as mp
import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """An integral over [a, b] and its derivative with respect to a parameter, at ``parameter``.

    ``hard`` tells that the plan of the value at rtol 1e-4 is off by more than 1e-4 for the derivative, ``smooth``
    that the derivative is an analytic function of x on the closed interval, so that estimates are tight.
    """

    name: str
    integrand: Callable[[Any, Any, Any], Any]
    a: float
    b: float
    parameter: float
    closed_form: Callable[[], Any]
    hard: bool = True
    smooth: bool = False

    def f(self, x: Tensor, p: Tensor) -> Tensor:
        """Return the integrand at x, as quadgrad calls it."""
        return self.integrand(x, p, torch)

    @cached_property
    def exact(self) -> float:
        """The derivative, rounded once from 40 digits."""
        with mp.workdps(40):
            return float(self.closed_form())

    def __str__(self) -> str:
        return self.name


def lorentzian_by_centre(a: float, b: float, c: float, e: float) -> Callable[[], Any]:
    a, b, c, e = (mp.mpf(v) for v in (a, b, c, e))
    return lambda: 1 / ((a - c) ** 2 + e**2) - 1 / ((b - c) ** 2 + e**2)


def lorentzian_by_width(a: float, b: float, c: float, e: float) -> Callable[[], Any]:
    def derivative() -> Any:
        lower, upper, width = mp.mpf(a) - mp.mpf(c), mp.mpf(b) - mp.mpf(c), mp.mpf(e)
        area = mp.atan(upper / width) - mp.atan(lower / width)
        return -area / width**2 - (upper / (upper**2 + width**2) - lower / (lower**2 + width**2)) / width

    return derivative


def beta_by_first(a: float, b: float) -> Callable[[], Any]:
    return lambda: mp.beta(a, b) * (mp.digamma(a) - mp.digamma(mp.mpf(a) + mp.mpf(b)))


def bessel_k_by_order(order: float, z: float) -> Callable[[], Any]:
    """Differentiate K's integral over u from 0 of exp(-z (1+u)) (u (u+2))^(order-1/2), without its factor."""
    area = lambda v: mp.besselk(v, z) * mp.gamma(v + mp.mpf(1) / 2) * (mp.mpf(2) / z) ** v / mp.sqrt(mp.pi)
    return lambda: mp.diff(area, mp.mpf(order))


def bessel_j_by_order(order: float, z: float) -> Callable[[], Any]:
    """Differentiate Poisson's integral over u from 0 to 1 of cos(z (1-u)) (u (2-u))^(order-1/2)."""
    area = lambda v: mp.besselj(v, z) * mp.gamma(v + mp.mpf(1) / 2) * (mp.mpf(2) / z) ** v * mp.sqrt(mp.pi) / 2
    return lambda: mp.diff(area, mp.mpf(order))


def elliptic_e_by_parameter(m: float) -> Callable[[], Any]:
    return lambda: (mp.ellipe(mp.mpf(m)) - mp.ellipk(mp.mpf(m))) / (2 * mp.mpf(m))


def softplus(x: Any, p: Any, m: Any) -> Any:
    """Return a ramp from p on, rounded off over 1e-4, without overflow."""
    return 1e-4 * m.log1p(m.exp(-abs(x - p) / 1e-4)) + (abs(x - p) + x - p) / 2


def softplus_by_place(p: float) -> Callable[[], Any]:
    place, width = mp.mpf(p), mp.mpf(1e-4)
    return lambda: width * (mp.log1p(mp.exp(-place / width)) - mp.log1p(mp.exp((1 - place) / width)))


def airy_on_a_ray(x: Any, z: Any, m: Any) -> Any:
    """Ai's integral along the ray of angle pi/6, on which it decays like exp(-x^3 / 3): the real part."""
    cosine, sine = 3**0.5 / 2, 0.5
    turn = mp.pi / 6 if m is mp else torch.pi / 6
    return m.exp(-(x**3) / 3 - z * x * sine) * m.cos(z * x * cosine + turn) / torch.pi


def airy_laplace(x: Any, z: Any, m: Any) -> Any:
    """Ai's Laplace integral (DLMF 9.5.8): for small z its derivative is nearly singular at 0, unlike its value."""
    zeta = 2 * z**1.5 / 3
    scale = float(mp.sqrt(mp.pi) * mp.mpf(48) ** (mp.mpf(1) / 6) * mp.gamma(mp.mpf(5) / 6))
    return m.exp(-zeta - x) * (x * (x + 2 * zeta)) ** (-1 / 6) / scale


ROWS = (
    Row("peak of width 1e-2 by its centre", lambda x, c, m: 1 / ((x - c) ** 2 + 1e-4), 0.0, 1.0, 0.5144,
        lorentzian_by_centre(0.0, 1.0, 0.5144, 1e-2)),
    Row("peak of width 1e-3 by its centre", lambda x, c, m: 1 / ((x - c) ** 2 + 1e-6), 0.0, 1.0, 0.33,
        lorentzian_by_centre(0.0, 1.0, 0.33, 1e-3), hard=False),
    Row("peak of width 1e-4 by its centre", lambda x, c, m: 1 / ((x - c) ** 2 + 1e-8), -0.5, 1.0, 0.0,
        lorentzian_by_centre(-0.5, 1.0, 0.0, 1e-4)),
    Row("peak of width 1e-1 by its width", lambda x, e, m: 1 / ((x - 0.3) ** 2 + e**2), 0.0, 1.0, 1e-1,
        lorentzian_by_width(0.0, 1.0, 0.3, 1e-1), hard=False, smooth=True),
    Row("peak of width 1e-4 by its width", lambda x, e, m: 1 / ((x - 0.3) ** 2 + e**2), 0.0, 1.0, 1e-4,
        lorentzian_by_width(0.0, 1.0, 0.3, 1e-4), hard=False, smooth=True),
    Row("Beta function B(a, 3) at a = 1", lambda x, a, m: x ** (a - 1) * (1 - x) ** 2, 0.0, 1.0, 1.0,
        beta_by_first(1, 3)),
    Row("Beta function B(a, 2.5) at a = 0.2", lambda x, a, m: x ** (a - 1) * (1 - x) ** 1.5, 0.0, 1.0, 0.2,
        beta_by_first(0.2, 2.5), hard=False),
    Row("exp(-2 x) / x^s by s at s = 0", lambda x, s, m: m.exp(-2 * x) * x**-s, 0.0, inf, 0.0,
        lambda: (mp.log(2) + mp.euler) / 2),
    Row("exp(-2 x) / x^s by s at s = 0.8", lambda x, s, m: m.exp(-2 * x) * x**-s, 0.0, inf, 0.8,
        lambda: mp.diff(lambda s: mp.gamma(1 - s) * mp.mpf(2) ** (s - 1), mp.mpf(0.8)), hard=False),
    Row("exp(-t x) / x^s by t", lambda x, t, m: m.exp(-t * x) * x**-0.5, 0.0, inf, 3.0,
        lambda: -mp.gamma(0.5) * mp.mpf(0.5) * mp.mpf(3) ** mp.mpf(-1.5), hard=False),
    Row("x^s at s = 0", lambda x, s, m: x**s, 0.0, 1.0, 0.0, lambda: -mp.mpf(1)),
    Row("x^s at s = -0.8", lambda x, s, m: x**s, 0.0, 1.0, -0.8, lambda: -1 / (1 + mp.mpf(-0.8)) ** 2, hard=False),
    Row("square root of x + p at p = 0", lambda x, p, m: m.sqrt(x + p), 0.0, 1.0, 0.0, lambda: mp.mpf(1)),
    Row("(x + p)^0.3 at p = 0", lambda x, p, m: (x + p) ** 0.3, 0.0, 1.0, 0.0, lambda: mp.mpf(1)),
    Row("logarithm of x + 1e-6", lambda x, p, m: m.log(x + p), 0.0, 1.0, 1e-6,
        lambda: mp.log1p(1 / mp.mpf(1e-6))),
    Row("hypotenuse of x and 1e-4", lambda x, p, m: m.sqrt(x**2 + p**2), 0.0, 1.0, 1e-4,
        lambda: mp.mpf(1e-4) * mp.asinh(1 / mp.mpf(1e-4))),
    Row("elliptic integral E near m = 1", lambda x, k, m: m.sqrt((1 - k) + k * m.sin(x) ** 2), 0.0,
        float(mp.pi / 2), 1 - 1e-8, elliptic_e_by_parameter(1 - 1e-8)),
    Row("kink abs(x - p)", lambda x, p, m: abs(x - p), 0.0, 1.0, 0.3, lambda: 2 * mp.mpf(0.3) - 1),
    Row("softplus, a step 1e-4 wide", softplus, 0.0, 1.0, 0.7, softplus_by_place(0.7)),
    Row("Bessel function K by its order", lambda x, v, m: m.exp(-1.5 * (1 + x)) * (x * (x + 2)) ** (v - 0.5),
        0.0, inf, 0.5, bessel_k_by_order(0.5, 1.5)),
    Row("Bessel function J by its order", lambda x, v, m: m.cos(3.0 * (1 - x)) * (x * (2 - x)) ** (v - 0.5),
        0.0, 1.0, 0.5, bessel_j_by_order(0.5, 3.0)),
    Row("Bessel function J0 by its argument", lambda x, z, m: m.cos(z * m.sin(x)) / torch.pi,
        0.0, float(mp.pi), 2.5, lambda: -mp.besselj(1, mp.mpf(2.5)), hard=False, smooth=True),
    Row("Airy function, Laplace integral", airy_laplace, 0.0, inf, 1e-4,
        lambda: mp.airyai(mp.mpf(1e-4), derivative=1)),
    Row("Airy function on a ray", airy_on_a_ray, 0.0, inf, 1.0, lambda: mp.airyai(1, derivative=1), hard=False),
    Row("Gaussian by its rate", lambda x, p, m: m.exp(-p * x**2), 0.0, 2.0, 1.5,
        lambda: mp.diff(lambda p: mp.sqrt(mp.pi / p) / 2 * mp.erf(2 * mp.sqrt(p)), mp.mpf(1.5)),
        hard=False, smooth=True),
    Row("damped wave by its frequency", lambda x, k, m: m.exp(-x) * m.cos(k * x), 0.0, inf, 5.0,
        lambda: mp.diff(lambda k: 1 / (1 + k**2), mp.mpf(5)), hard=False),
)  # fmt: skip
