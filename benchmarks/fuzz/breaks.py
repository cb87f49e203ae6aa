"""Families with kinks, jumps and singularities inside, marked and unmarked."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import torch
from torch import Tensor

from benchmarks import families
from benchmarks.fuzz.bells import grain
from benchmarks.fuzz.sample import Draw, Family, Sample

__all__ = ["BREAKS"]


def at(*places: int) -> Any:
    """Return what makes breakpoints of some parameters."""
    return lambda *args: torch.stack([args[place] for place in places], dim=-1)


def kinks(draw: Draw, marked: bool = False) -> Sample:
    """exp(-k |x - c|), where nothing marks c."""
    s = families.kinks(draw)
    sign = draw.side()
    args = (s.args[0], s.args[1].abs() * sign)
    return Sample(s.f, s.a, s.b, args, s.closed_form, points=at(0) if marked else None)


def marked_kinks(draw: Draw) -> Sample:
    """The same, c a breakpoint that moves."""
    return kinks(draw, marked=True)


def kinks_close_to_an_end(draw: Draw) -> Sample:
    """|x - c|^p, p from 1 to 4, c within a tenth to a ten-thousandth of an end at 0."""
    length = draw.length(-2, 2)
    args = (length * draw.decades(-4, -1), draw.uniform(1, 4))
    area = lambda a, b, c, p: ((c - a) ** (p + 1) + (b - c) ** (p + 1)) / (p + 1)
    return Sample(lambda x, c, p: (x - c).abs() ** p, torch.zeros_like(length), length, args, area)


def step(x: Tensor, c: Tensor, high: Tensor, k: Tensor, start: Tensor) -> Tensor:
    return torch.exp(k * (x - start)) * (1 + high * (x > c))


def steps(draw: Draw, marked: bool = False) -> Sample:
    """An exponential that jumps to a multiple of itself, at an unmarked place."""
    s = families.steps(draw)
    jumps = lambda x, c, *_: x - c
    return Sample(
        step, s.a, s.b, s.args, families.step_area, points=at(0) if marked else None,
        jumps=None if marked else jumps, wrt=(0, 1, 2) if marked else (1, 2),
    )  # fmt: skip


def marked_steps(draw: Draw) -> Sample:
    """The same, its place a breakpoint that moves."""
    return steps(draw, marked=True)


def boxes(draw: Draw) -> Sample:
    """A box a third to a thousandth of the interval wide, nothing beside it and nothing marked."""
    s = families.box(draw, -3)
    return Sample(s.f, s.a, s.b, s.args, s.closed_form, without=lambda x, *_: torch.zeros_like(x), wrt=(2,))


def marked_boxes(draw: Draw) -> Sample:
    """A box down to a billionth of the interval wide, its edges breakpoints that move."""
    s = families.box(draw, -9)
    wider = lambda a, b, left, right, high: (left, torch.maximum(right, left + grain(a, b)), high)
    return Sample(s.f, s.a, s.b, s.args, s.closed_form, points=at(0, 1), coarse=wider)


def two_powers(a: Any, b: Any, c: Any, p: Any) -> Any:
    return ((c - a) ** (p + 1) + (b - c) ** (p + 1)) / (p + 1)


def singular_inside(draw: Draw, marked: bool) -> Sample:
    """Return |x - c|^p, p from -0.9 to -0.1."""
    a, b, h = draw.interval()
    args = (a + h * draw.uniform(0.02, 0.98), draw.uniform(-0.9, -0.1))
    f = lambda x, c, p: (x - c).abs() ** p
    return Sample(f, a, b, args, two_powers, points=at(0) if marked else None, wrt=(0, 1) if marked else (1,))


def unmarked_powers(draw: Draw) -> Sample:
    """|x - c|^p, p from -0.9 to -0.1, where nothing marks c."""
    return singular_inside(draw, marked=False)


def marked_powers(draw: Draw) -> Sample:
    """The same, c a breakpoint that moves."""
    return singular_inside(draw, marked=True)


def unmarked_logarithms(draw: Draw) -> Sample:
    """log(|x - c| / s), where nothing marks c."""
    a, b, h = draw.interval()
    half = lambda u, s: u * (mp.log(u / s) - 1)
    args = (a + h * draw.uniform(0.02, 0.98), h * draw.decades(-1, 1))
    return Sample(
        lambda x, c, s: torch.log((x - c).abs() / s), a, b, args,
        lambda a, b, c, s: half(c - a, s) + half(b - c, s), wrt=(1,),
    )  # fmt: skip


def rectified_waves(draw: Draw) -> Sample:
    """|sin(w x + q)|, up to twenty kinks."""
    length = draw.length(-2, 2)

    def primitive(u: Any) -> Any:
        k = mp.floor(u / mp.pi)
        return 2 * k + 1 - mp.cos(u - k * mp.pi)

    area = lambda a, b, w, q: (primitive(w * b + q) - primitive(w * a + q)) / w
    f = lambda x, w, q: torch.sin(w * x + q).abs()
    return Sample(f, torch.zeros_like(length), length, (draw.uniform(1, 60) / length, draw.uniform(0, 3)), area)


KNOTS = 8


def bends(draw: Draw, after_exp: bool) -> Sample:
    """Return a sum of ramps from random places on, or its exponential."""
    a, b, h = draw.interval()
    slopes = [draw.uniform(-4, 4) / h for _ in range(KNOTS)]
    places = [a + h * draw.uniform(0, 1) for _ in range(KNOTS)]

    def ramps(x: Tensor, base: Tensor, *rest: Tensor) -> Tensor:
        return base + sum(s * torch.relu(x - c) for s, c in zip(rest[:KNOTS], rest[KNOTS:], strict=True))

    def area(a: Any, b: Any, base: Any, *rest: Any) -> Any:
        pairs = sorted(zip(rest[KNOTS:], rest[:KNOTS], strict=True))
        if not after_exp:
            return base * (b - a) + sum(s * (b - c) ** 2 / 2 for c, s in pairs)
        total, height, slope, left = mp.mpf(0), base, mp.mpf(0), a
        for c, s in [*pairs, (b, 0)]:
            rise = slope * (c - left)
            total += mp.exp(height) * (mp.expm1(rise) / slope if slope else c - left)
            height, slope, left = height + rise, slope + s, c
        return total

    return Sample(
        (lambda x, *args: torch.exp(ramps(x, *args))) if after_exp else ramps, a, b,
        (draw.uniform(-1, 1), *slopes, *places), area, log_f=ramps if after_exp else None, wrt=(0, 2, KNOTS + 3),
    )  # fmt: skip


def tables(draw: Draw) -> Sample:
    """A piecewise linear function with eight unmarked knots."""
    return bends(draw, after_exp=False)


def networks(draw: Draw) -> Sample:
    """A small relu network behind exp."""
    return bends(draw, after_exp=True)


BREAKS: dict[str, Family] = {
    "kinks": Family(kinks),
    "kinks, marked": Family(marked_kinks),
    "kinks close to an end": Family(kinks_close_to_an_end),
    "steps": Family(steps),
    "steps, marked": Family(marked_steps),
    "boxes": Family(boxes),
    "boxes, marked": Family(marked_boxes),
    "|x-c|^p": Family(unmarked_powers, count=40),
    "|x-c|^p, marked": Family(marked_powers),
    "log|x-c|": Family(unmarked_logarithms, count=100),
    "|sin wx|": Family(rectified_waves, count=100),
    "tables": Family(tables, count=100),
    "exp of a relu network": Family(networks, count=100),
}
