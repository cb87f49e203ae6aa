"""Families of waves, rational functions and mixtures, and double integrals."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks import families
from benchmarks.fuzz.sample import Draw, Family, Sample

__all__ = ["WAVES"]

INF = torch.inf


def waves(draw: Draw) -> Sample:
    """Damped and growing waves of up to 150 periods."""
    s = families.oscillations(draw)
    return Sample(s.f, s.a, s.b, s.args, s.closed_form, wrt=(1, 2, 3))


def slowly_damped(draw: Draw) -> Sample:
    """exp(-d x) cos(w x + q) on the half line, d down to a three-hundredth of w."""
    w = draw.decades(-2, 2)
    return Sample(
        lambda x, d, w, q: torch.exp(-d * x) * torch.cos(w * x + q), torch.zeros_like(w), torch.full_like(w, INF),
        (w * draw.decades(-2.5, 0.5), w, draw.uniform(0, 6)),
        lambda a, b, d, w, q: mp.re(mp.expj(q) / mp.mpc(d, -w)), ends=False,
    )  # fmt: skip


def complex_waves(draw: Draw) -> Sample:
    """exp((-d + i w) x) on the half line."""
    w = draw.decades(-2, 2)

    def f(x: Tensor, d: Tensor, w: Tensor) -> Tensor:
        return torch.exp(torch.complex(-d * x, w * x))

    return Sample(
        f, torch.zeros_like(w), torch.full_like(w, INF), (w * draw.decades(-1.5, 1), w),
        lambda a, b, d, w: 1 / mp.mpc(d, -w), ends=False,
    )  # fmt: skip


def far_waves(draw: Draw) -> Sample:
    """sin(x + q) on an interval near 1 that starts at 1e3 to 1e12."""
    a = draw._once("start", lambda: draw.decades(3, 12))
    b = draw._once("stop", lambda: a + draw.uniform(0.5, 2))
    return Sample(
        lambda x, q: torch.sin(x + q), a, b, (draw.uniform(0, 6),),
        lambda a, b, q: mp.cos(a + q) - mp.cos(b + q), single=False,
    )  # fmt: skip


def chirps(draw: Draw) -> Sample:
    """cos(w x^2) on [0, L], up to thirty periods."""
    length = draw.length(-2, 2)

    def area(a: Any, b: Any, w: Any) -> Any:
        scale = mp.sqrt(2 * w / mp.pi)
        return (mp.fresnelc(scale * b) - mp.fresnelc(scale * a)) / scale

    w = draw.uniform(1, 200) / length**2
    return Sample(lambda x, w: torch.cos(w * x**2), torch.zeros_like(length), length, (w,), area)


def to_infinity(draw: Draw) -> Sample:
    """sin(wx)/x, cos(w x^2), x sin(wx)/(1+x^2), cos(wx)/sqrt(x), (1-cos wx)/x^2."""
    w = draw.decades(-1, 1)
    kinds = draw.kind(5)

    def f(x: Tensor, kind: Tensor, w: Tensor) -> Tensor:
        u = w * x
        forms = (
            torch.sin(u) / x, torch.cos(w * x**2), x * torch.sin(u) / (1 + x**2), torch.cos(u) / x**0.5,
            2 * (torch.sin(u / 2) / x) ** 2,
        )  # fmt: skip
        return sum(torch.where(kind == i, form, torch.zeros_like(form)) for i, form in enumerate(forms))

    def area(a: Any, b: Any, kind: Any, w: Any) -> Any:
        forms = (
            lambda: mp.pi / 2 + 0 * w, lambda: mp.sqrt(mp.pi / (8 * w)), lambda: mp.pi / 2 * mp.exp(-w),
            lambda: mp.sqrt(mp.pi / (2 * w)), lambda: mp.pi * w / 2,
        )  # fmt: skip
        return forms[int(kind)]()

    return Sample(f, torch.zeros_like(w), torch.full_like(w, INF), (kinds, w), area, wrt=(1,), ends=False)


def towards_an_end(draw: Draw) -> Sample:
    """sin(w / x) on [0, c]."""
    c = draw.length(-1, 1)
    return Sample(
        lambda x, w: torch.sin(w / x), torch.zeros_like(c), c, (c * draw.decades(-1, 1),),
        lambda a, b, w: b * mp.sin(w / b) - w * mp.ci(w / b), ends=False,
    )  # fmt: skip


def rationals(draw: Draw) -> Sample:
    """Two pairs of complex poles beside the interval and a real one before it."""
    s = families.rationals(draw)
    return Sample(s.f, s.a, s.b, s.args, s.closed_form)


def peaks(draw: Draw) -> Sample:
    """Lorentzians down to a millionth of the interval wide."""
    s = families.peaks(draw)
    return Sample(s.f, s.a, s.b, s.args, s.closed_form)


def mixtures(draw: Draw) -> Sample:
    """A peak, a kink, a wave and an algebraic left end."""
    s = families.mixtures(draw)
    return Sample(s.f, s.a, s.b, s.args, s.closed_form, wrt=(0, 1, 2, 3, 4, 5, 6, 8, 9, 10), ends=False)


def inner_exponentials(x: Tensor, p: Tensor) -> Tensor:
    return qg.quad(lambda y, p: torch.exp(p * y), torch.zeros_like(x), x, (p,), on_failure="ignore").value


def triangles(draw: Draw) -> Sample:
    """exp(p y) over 0 < y < x < b, by two nested calls."""
    b = draw.length(-1, 1)
    area = lambda a, b, p: (mp.expm1(p * b) - p * b) / p**2
    return Sample(inner_exponentials, torch.zeros_like(b), b, (draw.side() * draw.uniform(0.2, 3) / b,), area)


def quarter_plane(draw: Draw) -> Sample:
    """exp(-p x^2 - q y^2) over the quarter plane, by two nested calls."""
    p = draw.decades(-1, 1)

    def f(x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        inner = lambda y, x, p, q: torch.exp(-p * x**2 - q * y**2)
        return qg.quad(inner, torch.zeros_like(x), INF, (x, p, q), on_failure="ignore").value

    return Sample(
        f, torch.zeros_like(p), torch.full_like(p, INF), (p, draw.decades(-1, 1)),
        lambda a, b, p, q: mp.pi / 4 / mp.sqrt(p * q), ends=False,
    )  # fmt: skip


def kinked_squares(draw: Draw) -> Sample:
    """|x - y|^s over the unit square, by two nested calls with a breakpoint that moves with x."""
    s = draw.uniform(-0.4, 2)

    def f(x: Tensor, s: Tensor) -> Tensor:
        inner = lambda y, x, s: (x - y).abs() ** s
        return qg.quad(inner, torch.zeros_like(x), 1.0, (x, s), points=x[..., None], on_failure="ignore").value

    return Sample(
        f, torch.zeros_like(s), torch.ones_like(s), (s,), lambda a, b, s: 2 / ((s + 1) * (s + 2)), ends=False
    )


WAVES: dict[str, Family] = {
    "waves": Family(waves),
    "slowly damped waves": Family(slowly_damped, count=100),
    "complex waves": Family(complex_waves, count=100, skip=("complex", "not vectorized")),
    "far waves": Family(far_waves),
    "chirps": Family(chirps, count=100),
    "waves to infinity": Family(to_infinity, count=20),
    "sin(w/x)": Family(towards_an_end, count=20),
    "rationals": Family(rationals),
    "peaks": Family(peaks),
    "mixtures": Family(mixtures, count=60),
    "nested, triangle": Family(triangles, count=4, skip=("kept", "complex", "events", "not vectorized")),
    "nested, quarter plane": Family(quarter_plane, count=4, skip=("kept", "complex", "events", "not vectorized")),
    "nested, kink": Family(kinked_squares, count=2, skip=("kept", "complex", "events", "not vectorized")),
}
