"""Families with a singular, a far or a cancelling end."""

from __future__ import annotations

import mpmath as mp
import torch
from torch import Tensor

from benchmarks.families import logarithmic_ends, power_area
from benchmarks.fuzz.sample import Draw, Family, Sample

__all__ = ["ENDS"]

INF = torch.inf


def half_line(like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(like), torch.full_like(like, INF)


def powers_from_0(draw: Draw) -> Sample:
    """x^p times a line, p from -0.97 to 2.5."""
    length = draw.length(-2, 2)
    f = lambda x, p, g: x**p * (1 + g * x)
    area = lambda a, b, p, g: power_area(a, b, None, None, p, g)
    return Sample(
        f,
        torch.zeros_like(length),
        length,
        (draw.uniform(-0.97, 2.5), draw.uniform(-1, 1) / length),
        area,
        ends=False,
    )


def powers_from_elsewhere(draw: Draw) -> Sample:
    """The same about either end of any interval, p from -0.9."""
    a, b, h = draw.interval()
    side = draw.side()

    def f(x: Tensor, end: Tensor, inwards: Tensor, p: Tensor, g: Tensor) -> Tensor:
        distance = inwards * (x - end)
        return distance**p * (1 + g * distance)

    args = (torch.where(side > 0, a, b), side, draw.uniform(-0.9, 1.5), draw.uniform(-2, 2) / h)
    return Sample(f, a, b, args, power_area, wrt=(2, 3), ends=False)


def logarithms(draw: Draw) -> Sample:
    """u^p log(u / length), u the distance from either end."""
    s = logarithmic_ends(draw)
    return Sample(s.f, s.a, s.b, s.args, s.closed_form, wrt=(2, 3), ends=False)


def beta(draw: Draw) -> Sample:
    """Powers at both ends of [0, 1]."""
    p, q = draw.uniform(0.1, 3), draw.uniform(0.3, 3)
    return Sample(
        lambda x, p, q: x ** (p - 1) * (1 - x) ** (q - 1), torch.zeros_like(p), torch.ones_like(p), (p, q),
        lambda a, b, p, q: mp.beta(p, q), ends=False,
        log_f=lambda x, p, q: (p - 1) * torch.log(x) + (q - 1) * torch.log1p(-x),
    )  # fmt: skip


def bose(draw: Draw) -> Sample:
    """x^(s-1) / (exp(x/t) - 1) on the half line, as it is written down: it cancels towards 0."""
    s, t = draw.uniform(1.15, 4), draw.decades(-2, 2)
    return Sample(
        lambda x, s, t: x ** (s - 1) / (torch.exp(x / t) - 1), *half_line(s), (s, t),
        lambda a, b, s, t: t**s * mp.gamma(s) * mp.zeta(s), ends=False,
    )  # fmt: skip


def fermi(draw: Draw) -> Sample:
    """1 / (exp(x/t - eta) + 1) on the half line: derivatives are infinity over infinity far out."""
    t, eta = draw.decades(-2, 2), draw.uniform(-5, 30)
    return Sample(
        lambda x, t, eta: 1 / (torch.exp(x / t - eta) + 1), *half_line(t), (t, eta),
        lambda a, b, t, eta: t * mp.log1p(mp.exp(eta)), ends=False,
    )  # fmt: skip


def symmetric_fermi(draw: Draw) -> Sample:
    """A bell over 1 + exp(k (x - c)) on the line, half the bell by symmetry: derivatives are 0 times infinity."""
    s, k = draw.decades(-2, 2), draw.decades(-0.5, 1.5)
    return Sample(
        lambda x, s, c, k, high: high * torch.exp(-(((x - c) / s) ** 2)) / (torch.exp(k / s * (x - c)) + 1),
        torch.full_like(s, -INF), torch.full_like(s, INF), (s, s * draw.uniform(-3, 3), k, draw.decades(-1, 1)),
        lambda a, b, s, c, k, high: high * s * mp.sqrt(mp.pi) / 2, wrt=(1, 2, 3), ends=False,
    )  # fmt: skip


def sech(draw: Draw) -> Sample:
    """1 / (exp(u) + exp(-u)) on the line."""
    s = draw.decades(-3, 3)

    def f(x: Tensor, s: Tensor, c: Tensor) -> Tensor:
        u = (x - c) / s
        return 1 / (torch.exp(u) + torch.exp(-u))

    return Sample(
        f, torch.full_like(s, -INF), torch.full_like(s, INF), (s, s * draw.uniform(-10, 10)),
        lambda a, b, s, c: s * mp.pi / 2 + 0 * c, ends=False,
    )  # fmt: skip


def products_on_the_line(draw: Draw) -> Sample:
    """exp(-x^2) exp(k x) as a product: 0 times infinity far out."""
    k = draw.uniform(-3, 3)
    return Sample(
        lambda x, k: torch.exp(-(x**2)) * torch.exp(k * x), torch.full_like(k, -INF), torch.full_like(k, INF), (k,),
        lambda a, b, k: mp.sqrt(mp.pi) * mp.exp(k**2 / 4), ends=False,
    )  # fmt: skip


def frullani(draw: Draw) -> Sample:
    """(exp(-p x) - exp(-q x)) / x on the half line: log(q / p)."""
    p = draw.decades(-2, 2)
    return Sample(
        lambda x, p, q: (torch.exp(-p * x) - torch.exp(-q * x)) / x, *half_line(p), (p, p * draw.decades(0.05, 2)),
        lambda a, b, p, q: mp.log(q / p), ends=False,
    )  # fmt: skip


def one_minus_cosine(draw: Draw) -> Sample:
    """(1 - cos(w x)) / x^2 on [0, L]: noise over next to nothing towards 0.

    Where w x is below 1.5e-8 the cosine is 1 and f is 0, which takes up to 1.5e-7 of the integral away.
    """
    length = draw.length(-2, 2)
    area = lambda a, b, w: w * mp.si(w * b) - (1 - mp.cos(w * b)) / b
    f = lambda x, w: (1 - torch.cos(w * x)) / x**2
    return Sample(
        f,
        torch.zeros_like(length),
        length,
        (draw.decades(-1, 1.5) / length,),
        area,
        ends=False,
        finest=1e-6,
        single=False,
    )


def inverse_logarithms(draw: Draw) -> Sample:
    """1 / (x abs(log x)^p) on [0, c]."""
    c = draw._once("end", lambda: draw.uniform(0.02, 0.6))
    return Sample(
        lambda x, p: 1 / (x * torch.log(x).abs() ** p), torch.zeros_like(c), c, (draw.uniform(1.4, 3),),
        lambda a, b, p: abs(mp.log(b)) ** (1 - p) / (p - 1), ends=False,
    )  # fmt: skip


def decays(draw: Draw) -> Sample:
    """exp(-k x) on the half line, k from 1e-9 to 1e12: it may be over before the first node."""
    k = draw.decades(-9, 12)
    return Sample(
        lambda x, k: torch.exp(-k * x), *half_line(k), (k,), lambda a, b, k: mp.exp(-k * a) / k,
        log_f=lambda x, k: -k * x, without=lambda x, k: torch.zeros_like(x * k), ends=False, single=False,
    )  # fmt: skip


def shifted_decays(draw: Draw) -> Sample:
    """The same from elsewhere, in either direction, as fast as a millionth of the distance from 0."""
    a, _, h = draw.interval()
    way = draw.side()
    ends = torch.where(way > 0, a, -INF), torch.where(way > 0, INF, a)
    return Sample(
        lambda x, start, way, k: torch.exp(-k * way * (x - start)), *ends, (a, way, draw.decades(-3, 6) / h),
        lambda a, b, start, way, k: mp.exp(-k * way * ((a if way > 0 else b) - start)) / k, wrt=(2,),
        log_f=lambda x, start, way, k: -k * way * (x - start),
        without=lambda x, start, way, k: torch.zeros_like(x * k),
    )  # fmt: skip


def steep(draw: Draw) -> Sample:
    """exp(k x) on a finite interval, over up to 300 decades."""
    length = draw.length(-2, 2)
    return Sample(
        lambda x, k: torch.exp(k * x), torch.zeros_like(length), length,
        (draw.side() * draw.decades(0, 2.84) / length,),
        lambda a, b, k: (mp.exp(k * b) - mp.exp(k * a)) / k, log_f=lambda x, k: k * x, single=False,
    )  # fmt: skip


def power_tails(draw: Draw) -> Sample:
    """x^-p to infinity, p from 1.05 to 5."""
    a = draw._once("start", lambda: draw.decades(-2, 2))
    return Sample(
        lambda x, p: x**-p, a, torch.full_like(a, INF), (draw.uniform(1.05, 5),),
        lambda a, b, p: a ** (1 - p) / (p - 1), log_f=lambda x, p: -p * torch.log(x),
    )  # fmt: skip


def gammas(draw: Draw) -> Sample:
    """A likelihood x^n exp(-r x), n up to ten thousand: for logarithms."""
    n, r = draw.decades(0, 4), draw.decades(-2, 2)
    return Sample(
        lambda x, n, r: torch.exp(n * torch.log(x) - r * x), *half_line(n), (n, r),
        lambda a, b, n, r: mp.gamma(n + 1) / r ** (n + 1), log_f=lambda x, n, r: n * torch.log(x) - r * x,
        ends=False,
    )  # fmt: skip


ENDS: dict[str, Family] = {
    "powers from 0": Family(powers_from_0),
    "powers from elsewhere": Family(powers_from_elsewhere),
    "logarithmic ends": Family(logarithms),
    "beta": Family(beta),
    "x^(s-1)/(e^x-1)": Family(bose, count=60),
    "1/(e^(x-eta)+1)": Family(fermi),
    "bell/(e^x+1)": Family(symmetric_fermi),
    "1/(e^x+e^-x)": Family(sech),
    "e^(-x^2) e^(kx)": Family(products_on_the_line),
    "(e^-px-e^-qx)/x": Family(frullani),
    "(1-cos wx)/x^2": Family(one_minus_cosine),
    "1/(x |log x|^p)": Family(inverse_logarithms, count=40),
    "e^-kx": Family(decays),
    "e^-kx from elsewhere": Family(shifted_decays),
    "steep": Family(steep),
    "x^-p to infinity": Family(power_tails),
    "gamma likelihoods": Family(gammas, skip=("not log",)),
}
