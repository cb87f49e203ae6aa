"""Families of bells and peaks: at breakpoints, in wide intervals, far out, faint, and none at all."""

from __future__ import annotations

from typing import Any

import mpmath as mp
import torch
from torch import Tensor

from benchmarks.fuzz.sample import Draw, Family, Sample

__all__ = ["BELLS", "grain"]

NAN = float("nan")
INF = torch.inf


def bell(x: Tensor, c: Tensor, w: Tensor, *_: Tensor) -> Tensor:
    return torch.exp(-(((x - c) / w) ** 2))


def bell_area(a: Any, b: Any, c: Any, w: Any, *_: Any) -> Any:
    """Return the area in tails: never the difference of two numbers near 1."""
    u, v = (a - c) / w, (b - c) / w
    if u > 0:
        tails = mp.erfc(u) - mp.erfc(v)
    elif v < 0:
        tails = mp.erfc(-v) - mp.erfc(-u)
    else:
        tails = 2 - mp.erfc(-u) - mp.erfc(v)
    return w * mp.sqrt(mp.pi) / 2 * tails


def zeros(x: Tensor, *_: Tensor) -> Tensor:
    return torch.zeros_like(x)


def grain(a: Tensor, b: Tensor) -> Tensor:
    """Return a length that float32 resolves in an interval, its grid 64 times."""
    return 64 * torch.finfo(torch.float32).eps * torch.maximum(a.abs(), b.abs())


def no_narrower(a: Tensor, b: Tensor, c: Tensor, w: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    return (c, torch.maximum(w, grain(a, b)), *rest)


def marked_needles(draw: Draw) -> Sample:
    """A bell of a thousandth to a billionth of the interval, alone, its centre marked, and one to three marks."""
    a, b, h = draw.interval()
    args = (a + h * draw.uniform(0.05, 0.95), h * draw.decades(-9, -3))
    pads = torch.stack(
        [torch.where(draw.uniform(0, 1) < 0.5, a + h * draw.uniform(0, 1), NAN) for _ in range(2)], -1
    )
    # Marks are a part of the sample that moves with it: arguments that f does not use.
    return Sample(
        bell, a, b, (*args, *pads.unbind(-1)), bell_area,
        points=lambda c, w, *more: torch.stack([c, *more], dim=-1), without=zeros, wrt=(0, 1), coarse=no_narrower,
    )  # fmt: skip


def grounded(draw: Draw, low: float, high: float, marked: bool, named: bool = True) -> Sample:
    """Return bells on a wave of at most two periods.

    Where they are is an argument, or, if it is not to be ``named``, its mirror image beyond the lower limit is.
    """
    a, b, h = draw.interval()
    wave = lambda x, start, k: torch.cos(k * (x - start))
    at = (lambda c, _: c) if named else (lambda c, start: 2 * start - c)
    args = (
        at(a + h * draw.uniform(0.05, 0.95), a),
        h * draw.decades(low, high),
        draw.uniform(0.1, 3),
        a,
        draw.uniform(0.1, 12) / h,
    )

    def f(x: Tensor, c: Tensor, w: Tensor, high: Tensor, start: Tensor, k: Tensor) -> Tensor:
        return high * bell(x, at(c, start), w) + wave(x, start, k)

    def area(a: Any, b: Any, c: Any, w: Any, high: Any, start: Any, k: Any) -> Any:
        return high * bell_area(a, b, at(c, start), w) + (mp.sin(k * (b - start)) - mp.sin(k * (a - start))) / k

    return Sample(
        f, a, b, args, area, points=(lambda c, *_: c[..., None]) if marked else None,
        without=lambda x, c, w, high, start, k: wave(x, start, k), wrt=(0, 1, 2, 4), coarse=no_narrower,
    )  # fmt: skip


def marked_needles_on_waves(draw: Draw) -> Sample:
    """A wave and a needle of a thousandth to a billionth of the interval, its centre marked."""
    return grounded(draw, -9, -3, marked=True)


def hidden_needles_on_waves(draw: Draw) -> Sample:
    """A wave and a needle of a tenth to a ten-thousandth of the interval, not marked."""
    return grounded(draw, -4, -1, marked=False)


def unnamed_needles_on_waves(draw: Draw) -> Sample:
    """The same, where no argument is its place."""
    return grounded(draw, -4, -1, marked=False, named=False)


def wide(draw: Draw, decades: float, place: str) -> Sample:
    """Return a bell alone in an interval of many widths."""
    width = draw.length()
    length = width * draw._once("decades", lambda: draw.decades(2, decades))
    a = draw._once("start", lambda: -length * draw.uniform(0, 1))
    at = draw.uniform(0.49, 0.51) if place == "centred" else draw.uniform(0.02, 0.98)
    return Sample(
        bell, a, a + length, (a + length * at, width * draw.uniform(0.7, 1.4)), bell_area,
        points=(lambda c, w: c[..., None]) if place == "marked" else None, without=zeros,
        log_f=lambda x, c, w: -(((x - c) / w) ** 2), coarse=no_narrower,
    )  # fmt: skip


def bells_in_wide_intervals(draw: Draw) -> Sample:
    """A bell anywhere in an interval of 1e2 to 1e5 widths."""
    return wide(draw, 5, "anywhere")


def centred_bells(draw: Draw) -> Sample:
    """A bell within a hundredth of the middle of an interval of 1e2 to 1e6 widths."""
    return wide(draw, 6, "centred")


def marked_bells(draw: Draw) -> Sample:
    """A bell at a breakpoint in an interval of 1e2 to 1e6 widths."""
    return wide(draw, 6, "marked")


def peak(x: Tensor, c: Tensor, w: Tensor, high: Tensor) -> Tensor:
    return high / (1 + ((x - c) / w) ** 2)


def peak_area(a: Any, b: Any, c: Any, w: Any, high: Any) -> Any:
    return high * w * (mp.atan((b - c) / w) - mp.atan((a - c) / w))


def peaks_of_height(draw: Draw, low: float, high: float) -> Sample:
    """Return peaks of extreme heights in intervals near 1."""
    length = draw.length(-0.5, 0.5)
    a = draw._once("start", lambda: length * draw.uniform(-2, 2))
    args = (a + length * draw.uniform(0, 1), length * draw.decades(-3, 0), draw.decades(low, high))
    return Sample(peak, a, a + length, args, peak_area, single=False)


def faint_peaks(draw: Draw) -> Sample:
    """Peaks of height 1e-250 to 1e-140, whose squares underflow."""
    return peaks_of_height(draw, -250, -140)


def vanishing_peaks(draw: Draw) -> Sample:
    """Peaks of height 1e-307 to 1e-290, where errors underflow."""
    return peaks_of_height(draw, -307, -290)


def huge_peaks(draw: Draw) -> Sample:
    """Peaks of height 1e150 to 1e300."""
    return peaks_of_height(draw, 150, 300)


def bells_on_the_line(draw: Draw) -> Sample:
    """A bell on the whole line, up to ten widths off 0, of any width."""
    width = draw.decades(-3, 3)
    return Sample(
        bell, torch.full_like(width, -INF), torch.full_like(width, INF), (width * draw.uniform(-10, 10), width),
        bell_area, without=zeros, log_f=lambda x, c, w: -(((x - c) / w) ** 2), ends=False,
    )  # fmt: skip


def bells_on_half_lines(draw: Draw) -> Sample:
    """A wide bell and one down to a hundredth as wide, on a half line in either direction."""
    a, _, h = draw.interval()
    way = draw.side()
    wide_bell = (a + way * h * draw.uniform(0, 3), h * draw.decades(-0.3, 0.3))
    narrow = (a + way * h * draw.decades(-1, 1), h * draw.decades(-2, 0), draw.uniform(0.1, 1))
    ends = torch.where(way > 0, a, -INF), torch.where(way > 0, INF, a)

    def f(x: Tensor, c: Tensor, w: Tensor, c2: Tensor, w2: Tensor, high: Tensor) -> Tensor:
        return bell(x, c, w) + high * bell(x, c2, w2)

    def area(a: Any, b: Any, c: Any, w: Any, c2: Any, w2: Any, high: Any) -> Any:
        return bell_area(a, b, c, w) + high * bell_area(a, b, c2, w2)

    return Sample(f, *ends, (*wide_bell, *narrow), area, without=lambda x, c, w, *_: bell(x, c, w))


def two_modes(draw: Draw) -> Sample:
    """Two bells of like size on the whole line, five to two hundred widths apart."""
    distance = draw.decades(0.7, 2.3) * draw.side()
    args = (draw.uniform(-5, 5), draw.decades(-0.3, 0.3), distance, draw.decades(-0.3, 0.3))
    log_f = lambda x, c, w, c2, w2: torch.logaddexp(-(((x - c) / w) ** 2), -(((x - c2) / w2) ** 2))
    return Sample(
        lambda x, c, w, c2, w2: bell(x, c, w) + bell(x, c2, w2),
        torch.full_like(distance, -INF), torch.full_like(distance, INF), args,
        lambda a, b, c, w, c2, w2: bell_area(a, b, c, w) + bell_area(a, b, c2, w2),
        log_f=log_f, without=lambda x, c, w, *_: bell(x, c, w), ends=False,
    )  # fmt: skip


def student(draw: Draw) -> Sample:
    """Student's t on the whole line, from very heavy to light tails."""
    width = draw.decades(-3, 3)
    log_f = lambda x, s, p, c: -p * torch.log1p(((x - c) / s) ** 2)
    return Sample(
        lambda x, s, p, c: (1 + ((x - c) / s) ** 2) ** -p,
        torch.full_like(width, -INF), torch.full_like(width, INF),
        (width, draw.uniform(0.6, 5), width * draw.uniform(-5, 5)),
        lambda a, b, s, p, c: s * mp.sqrt(mp.pi) * mp.gamma(p - mp.mpf(1) / 2) / mp.gamma(p),
        log_f=log_f, ends=False,
    )  # fmt: skip


def nothing(draw: Draw) -> Sample:
    """0 everywhere."""
    a, b, _ = draw.interval()
    return Sample(lambda x, p: 0.0 * p * x, a, b, (draw.uniform(-1, 1),), lambda a, b, p: mp.mpf(0) * p)


BELLS: dict[str, Family] = {
    "needles, marked": Family(marked_needles),
    "needles on waves, marked": Family(marked_needles_on_waves),
    "needles on waves, hidden": Family(hidden_needles_on_waves),
    "needles on waves, unnamed": Family(unnamed_needles_on_waves),
    "bells in wide intervals": Family(bells_in_wide_intervals),
    "bells, centred": Family(centred_bells),
    "bells, marked": Family(marked_bells),
    "peaks 1e-250 to 1e-140": Family(faint_peaks),
    "peaks 1e-307 to 1e-290": Family(vanishing_peaks),
    "peaks 1e150 to 1e300": Family(huge_peaks),
    "bells on the line": Family(bells_on_the_line),
    "bells on half lines": Family(bells_on_half_lines),
    "two modes on the line": Family(two_modes),
    "Student's t": Family(student),
    "zero": Family(nothing, count=60),
}
