"""Ten families of integrals, parameters and affine changes of variable at random: how often success is false.

Each run draws afresh, unless a seed is given. Two of the families are drawn twice, with their places marked in
``points`` and without. Exact values come from closed forms in mpmath, from the very floats that quad is given.
"""

from __future__ import annotations

import secrets
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import torch
from scipy.integrate import IntegrationWarning
from scipy.integrate import quad as scipy_quad
from torch import Tensor

import quadgrad as qg
from benchmarks.findings import Figure, Findings, Sheet, Target

__all__ = ["FAMILIES", "TOLERANCES", "Draw", "Sample", "Verdict", "generate", "judge", "measure"]

COUNT = 1_000
TOLERANCES = (1e-3, 1e-6, 1e-9)
SCIPY_COUNT = 100
SCIPY_LIMIT = 500
SHOWN = 40
"""How many cases of a family are printed at most."""
RATE = 1e-3

Integrand = Callable[..., Tensor]
Primitive = Callable[..., Any]


@dataclass(frozen=True)
class Draw:
    """Random numbers for one family: ``count`` of each kind, float64."""

    count: int
    generator: torch.Generator

    def uniform(self, low: float, high: float) -> Tensor:
        """Draw uniformly from [low, high]."""
        return low + (high - low) * torch.rand(self.count, dtype=torch.float64, generator=self.generator)

    def decades(self, low: float, high: float) -> Tensor:
        """Draw log-uniformly from [10^low, 10^high]."""
        return 10 ** self.uniform(low, high)

    def sign(self) -> Tensor:
        """Draw 1 or -1."""
        return torch.where(self.uniform(0, 1) < 0.5, 1.0, -1.0).double()

    def interval(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw limits a < b at any scale, up to five lengths away from 0, and return them with the length."""
        length = self.decades(-3, 3)
        a = length * self.uniform(-5, 5)
        return a, a + length, length


@dataclass(frozen=True)
class Sample:
    """Integrals drawn from a family.

    Attributes
    ----------
    f : callable
        ``f(x, *args)``, in torch.
    a, b : Tensor
        Limits.
    args : tuple of Tensor
        The parameters, one number an integral.
    closed_form : callable
        ``closed_form(a, b, *args)``: the integral, in mpmath.
    points : Tensor or None
        Breakpoints, ``(count, k)``.
    """

    f: Integrand
    a: Tensor
    b: Tensor
    args: tuple[Tensor, ...]
    closed_form: Primitive
    points: Tensor | None = None

    def exact(self) -> Tensor:
        """Return the values, rounded once from 30 digits."""
        with mp.workdps(30):
            rows = zip(*(t.tolist() for t in (self.a, self.b, *self.args)), strict=True)
            values = [float(self.closed_form(*map(mp.mpf, row))) for row in rows]
        return torch.tensor(values, dtype=torch.float64)


def peaks(draw: Draw) -> Sample:
    """Lorentzians down to a millionth of the interval wide."""
    a, b, h = draw.interval()
    f = lambda x, c, w: w / ((x - c) ** 2 + w**2)
    return Sample(f, a, b, (a + h * draw.uniform(0, 1), h * draw.decades(-6, 0.5)), peak_area)


def peak_area(a: Any, b: Any, c: Any, w: Any) -> Any:
    """Return the integral of w / ((x - c)^2 + w^2)."""
    return mp.atan((b - c) / w) - mp.atan((a - c) / w)


def kinks(draw: Draw) -> Sample:
    """Exponentials that turn round at an unmarked place."""
    a, b, h = draw.interval()
    f = lambda x, c, k: torch.exp(-k * (x - c).abs())
    return Sample(f, a, b, (a + h * draw.uniform(0, 1), draw.sign() * draw.decades(-1, 1.5) / h), kink_area)


def kink_area(a: Any, b: Any, c: Any, k: Any) -> Any:
    """Return the integral of exp(-k abs(x - c))."""
    return -(mp.expm1(-k * (c - a)) + mp.expm1(-k * (b - c))) / k


def oscillations(draw: Draw) -> Sample:
    """Damped and growing waves of up to 150 periods."""
    a, b, h = draw.interval()
    f = lambda x, start, d, w, q: torch.exp(-d * (x - start)) * torch.cos(w * (x - start) + q)
    args = (a, draw.uniform(-5, 5) / h, draw.decades(0, 3) / h, draw.uniform(0, 6))
    return Sample(f, a, b, args, wave_area)


def wave_area(a: Any, b: Any, start: Any, d: Any, w: Any, q: Any) -> Any:
    """Return the integral of exp(-d (x - start)) cos(w (x - start) + q)."""
    rate = mp.mpc(-d, w)
    return mp.re((mp.exp(rate * (b - start)) - mp.exp(rate * (a - start))) / rate * mp.expj(q))


def algebraic_ends(draw: Draw) -> Sample:
    """Powers from -0.9 to 1.5 of the distance from either end, times a line."""
    a, b, h = draw.interval()
    side = draw.sign()

    def f(x: Tensor, end: Tensor, inwards: Tensor, p: Tensor, g: Tensor) -> Tensor:
        distance = inwards * (x - end)
        return distance**p * (1 + g * distance)

    args = (torch.where(side > 0, a, b), side, draw.uniform(-0.9, 1.5), draw.uniform(-2, 2) / h)
    return Sample(f, a, b, args, power_area)


def power_area(a: Any, b: Any, end: Any, inwards: Any, p: Any, g: Any) -> Any:
    """Return the integral of u^p (1 + g u), u the distance from an end."""
    length = b - a
    return length ** (p + 1) / (p + 1) + g * length ** (p + 2) / (p + 2)


def logarithmic_ends(draw: Draw) -> Sample:
    """Powers from -0.5 to 1 of the distance from either end, times its logarithm."""
    a, b, h = draw.interval()
    side = draw.sign()

    def f(x: Tensor, end: Tensor, inwards: Tensor, p: Tensor, length: Tensor) -> Tensor:
        distance = inwards * (x - end)
        return distance**p * torch.log(distance / length)

    args = (torch.where(side > 0, a, b), side, draw.uniform(-0.5, 1), h * draw.decades(-1, 1))
    return Sample(f, a, b, args, logarithm_area)


def logarithm_area(a: Any, b: Any, end: Any, inwards: Any, p: Any, length: Any) -> Any:
    """Return the integral of u^p log(u / length), u the distance from an end."""
    whole, q = b - a, p + 1
    return whole**q * (mp.log(whole / length) - 1 / q) / q


def steps(draw: Draw) -> Sample:
    """An exponential that jumps to a multiple of itself, at an unmarked place."""
    a, b, h = draw.interval()
    c = a + h * draw.uniform(0, 1)
    f = lambda x, c, high, k, start: torch.exp(k * (x - start)) * (1 + high * (x > c))
    return Sample(f, a, b, (c, draw.uniform(-3, 3), draw.uniform(-3, 3) / h, a), step_area)


def marked_steps(draw: Draw) -> Sample:
    """The same with the place marked."""
    return mark(steps(draw), 0)


def step_area(a: Any, b: Any, c: Any, high: Any, k: Any, start: Any) -> Any:
    """Return the integral of exp(k (x - start)), (1 + high) times as high from c on."""
    whole = mp.expm1(k * (b - start)) - mp.expm1(k * (a - start))
    return (whole + high * (mp.expm1(k * (b - start)) - mp.expm1(k * (c - start)))) / k


def boxes(draw: Draw) -> Sample:
    """A box a third to a thousandth of the interval wide, nothing beside it."""
    return box(draw, -3)


def marked_boxes(draw: Draw) -> Sample:
    """A box down to a billionth of the interval wide, its edges marked."""
    return mark(box(draw, -9), 0, 1)


def box(draw: Draw, narrowest: float) -> Sample:
    """Return boxes as narrow as that, in decades of the interval."""
    a, b, h = draw.interval()
    left = a + h * draw.uniform(0, 0.65)
    right = left + h * draw.decades(narrowest, -0.5)
    f = lambda x, left, right, high: high * ((x > left) & (x < right))
    return Sample(
        f, a, b, (left, right, draw.decades(-3, 3)), lambda a, b, left, right, high: high * (right - left)
    )


def gaussians(draw: Draw) -> Sample:
    """Three Gaussians on a half line in either direction, no narrower than a tenth of their distance."""
    return bells_from(draw, -1.0)


def hidden_gaussians(draw: Draw) -> Sample:
    """The same, down to a thousandth of their distance: one that falls between the nodes is seen by nobody."""
    return bells_from(draw, -3.0)


def bells_from(draw: Draw, narrowest: float) -> Sample:
    """Return three Gaussians as narrow as that, in decades of their distance."""
    a, _, h = draw.interval()
    way = draw.sign()
    bells: list[Tensor] = []
    for _ in range(3):
        distance = h * draw.decades(-1, 1)
        bells += [draw.uniform(0.1, 1), a + way * distance, distance * draw.decades(narrowest, 0.5)]
    ends = torch.where(way > 0, a, -torch.inf), torch.where(way > 0, torch.inf, a)
    return Sample(gaussian_sum, *ends, tuple(bells), gaussian_area)


def gaussian_sum(x: Tensor, *bells: Tensor) -> Tensor:
    """Return the sum of height exp(-((x - centre) / width)^2), three numbers a bell."""
    return sum((w * torch.exp(-(((x - c) / s) ** 2)) for w, c, s in triples(bells)), torch.zeros_like(x))


def gaussian_area(a: Any, b: Any, *bells: Any) -> Any:
    """Return the integral of that sum over a half line."""
    beyond = lambda c, s: mp.erfc((a - c) / s) if mp.isinf(b) else mp.erfc((c - b) / s)
    return sum(w * s * mp.sqrt(mp.pi) / 2 * beyond(c, s) for w, c, s in triples(bells))


def triples(numbers: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Return numbers by threes."""
    return list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def rationals(draw: Draw) -> Sample:
    """Two pairs of complex poles beside the interval and a real one before it."""
    a, b, h = draw.interval()
    poles: list[Tensor] = []
    for _ in range(2):
        poles += [draw.uniform(-2, 2), a + h * draw.uniform(-0.3, 1.3), h * draw.decades(-2, 0.5)]
    before = a - h * draw.decades(-4, 1)
    return Sample(pole_sum, a, b, (before, *poles), pole_area)


def pole_sum(x: Tensor, before: Tensor, *poles: Tensor) -> Tensor:
    """Return 1 / (x - before) and the sum of r w / ((x - c)^2 + w^2)."""
    return 1 / (x - before) + sum(r * w / ((x - c) ** 2 + w**2) for r, c, w in triples(poles))


def pole_area(a: Any, b: Any, before: Any, *poles: Any) -> Any:
    """Return the integral of that sum."""
    return mp.log((b - before) / (a - before)) + sum(r * peak_area(a, b, c, w) for r, c, w in triples(poles))


def mixtures(draw: Draw) -> Sample:
    """A peak, a kink, a wave and an algebraic left end, of random heights."""
    a, b, h = draw.interval()
    parts = (draw.uniform(0.1, 1) / h for _ in range(3))
    args = (
        *parts, a + h * draw.uniform(0, 1), h * draw.decades(-4, 0), a + h * draw.uniform(0, 1),
        draw.decades(-1, 1) / h, a, draw.decades(0, 2) / h, draw.uniform(0, 6), draw.uniform(-0.5, 0.5),
    )  # fmt: skip
    return Sample(mixture, a, b, args, mixture_area)


def mixture(x: Tensor, *args: Tensor) -> Tensor:
    """Return the sum of the four."""
    one, two, three, c, w, turn, k, start, wave, q, p = args
    distance = x - start
    bend = one * torch.exp(-k * (x - turn).abs()) + two * torch.cos(wave * distance + q)
    return w / ((x - c) ** 2 + w**2) + bend + three * (k * distance) ** p


def mixture_area(a: Any, b: Any, *args: Any) -> Any:
    """Return its integral."""
    one, two, three, c, w, turn, k, start, wave, q, p = args
    bend = one * kink_area(a, b, turn, k) + two * wave_area(a, b, start, mp.mpf(0), wave, q)
    return peak_area(a, b, c, w) + bend + three * k**p * (b - a) ** (p + 1) / (p + 1)


def mark(sample: Sample, *which: int) -> Sample:
    """Return the sample with some of its arguments as breakpoints."""
    points = torch.stack([sample.args[place] for place in which], dim=-1)
    return Sample(sample.f, sample.a, sample.b, sample.args, sample.closed_form, points)


FAMILIES: dict[str, Callable[[Draw], Sample]] = {
    "peaks": peaks,
    "kinks": kinks,
    "oscillations": oscillations,
    "algebraic ends": algebraic_ends,
    "logarithmic ends": logarithmic_ends,
    "marked steps": marked_steps,
    "unmarked steps": steps,
    "marked narrow boxes": marked_boxes,
    "unmarked narrow boxes": boxes,
    "Gaussians on a half line": gaussians,
    "rational": rationals,
    "mixtures": mixtures,
}


HIDDEN = "hidden Gaussians"
"""A family beside the others: what is counted there is not how well anyone looks, but how much cannot be seen."""


def generate(name: str, count: int, seed: int) -> Sample:
    """Draw from a family; each has random numbers of its own."""
    family = hidden_gaussians if name == HIDDEN else FAMILIES[name]
    return family(Draw(count, torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))))


@dataclass(frozen=True)
class Verdict:
    """What quad claimed about a sample at one tolerance, and the truth; one number an integral.

    Attributes
    ----------
    converged : Tensor
        Whether success was reported.
    true, reported, exact : Tensor
        The errors as they are and as they were reported; the exact values.
    rtol : float
        The relative tolerance.
    nodes : float
        Nodes an integral, in the mean.
    """

    converged: Tensor
    true: Tensor
    reported: Tensor
    exact: Tensor
    rtol: float
    nodes: float

    @property
    def false(self) -> Tensor:
        """Whether success is false: the error is larger than reported. Within it, the tolerance is met."""
        return self.converged & ~(self.true <= self.reported)

    @property
    def missed(self) -> Tensor:
        """Whether, besides, the tolerance is missed."""
        return self.false & ~(self.true <= self.rtol * self.exact.abs())


def judge(sample: Sample, rtol: float) -> Verdict:
    """Integrate a whole sample in one call."""
    with torch.no_grad():
        result = qg.quad(
            sample.f, sample.a, sample.b, sample.args, points=sample.points, rtol=rtol, on_failure="ignore"
        )
    exact = sample.exact()
    true = (result.value - exact).abs()
    return Verdict(result.converged, true, result.error, exact, rtol, result.nfev.double().mean().item())


def judge_scipy(sample: Sample, rtol: float, count: int) -> Verdict:
    """Integrate the first few of a sample with ``scipy.integrate.quad``, with the same breakpoints."""
    found: list[tuple[float, float, int, bool]] = []
    for place in range(count):
        args = [arg[place] for arg in sample.args]
        f = lambda x, args=args: sample.f(torch.tensor(x, dtype=torch.float64), *args).item()
        marks = None if sample.points is None else sample.points[place].tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IntegrationWarning)
            value, error, info, *message = scipy_quad(
                f, sample.a[place].item(), sample.b[place].item(),
                epsrel=rtol, epsabs=0.0, limit=SCIPY_LIMIT, points=marks, full_output=1,
            )  # fmt: skip
        found.append((value, error, info["neval"], not message))
    value, error, nodes, converged = torch.tensor(found, dtype=torch.float64).T
    exact = sample.exact()[:count]
    return Verdict(converged > 0, (value - exact).abs(), error, exact, rtol, nodes.mean().item())


def measure(scale: float = 1.0, seed: int | None = None) -> Findings:
    """Draw all families and count false successes."""
    seed = secrets.randbelow(2**31) if seed is None else seed
    count = max(10, round(COUNT * scale))
    few = max(5, round(SCIPY_COUNT * scale))
    rows: list[tuple[str, ...]] = []
    beside: list[tuple[str, ...]] = []
    cases: list[tuple[str, ...]] = []
    total = false = missed = scipy_total = scipy_missed = 0
    for name in (*FAMILIES, HIDDEN):
        sample = generate(name, count, seed)
        verdicts = [judge(sample, rtol) for rtol in TOLERANCES]
        rows.append((name, *(summarize(verdict) for verdict in verdicts)))
        scipy = [judge_scipy(sample, rtol, few) for rtol in TOLERANCES]
        beside.append((name, *(summarize(verdict) for verdict in scipy)))
        if name == HIDDEN:
            break
        scipy_missed += sum(int(verdict.missed.sum()) for verdict in scipy)
        cases += list_cases(name, sample, verdicts)
        total += count * len(verdicts)
        scipy_total += few * len(scipy)
        false += sum(int(verdict.false.sum()) for verdict in verdicts)
        missed += sum(int(verdict.missed.sum()) for verdict in verdicts)
    tolerances = tuple(f"{rtol:g}: false, missed,\nnot converged; nodes" for rtol in TOLERANCES)
    return Findings(
        f"{len(FAMILIES)} families of {count:,} random integrals, seed {seed}",
        "atol 0, rtol at the head of the column, float64, intervals of length 1e-3 to 1e3, up to five lengths "
        "off 0. False: reported as converged although the error is larger than reported; missed: and larger than "
        "the tolerance, which is false success. Nodes: the mean of an integral. The last row counts apart: bells "
        "down to a thousandth of their distance, most of which no node sees. "
        f"The same again: --seed {seed}. Cases: at most {SHOWN} of a family.",
        [
            Sheet(("", *tolerances), rows),
            Sheet((f"SciPy, {few} of each", *tolerances), beside),
            Sheet(("false success", "rtol", "exact", "true error", "reported", "a, b; parameters"), cases),
        ],
        [
            Figure(f"rate of false success, {missed} of {total:,}", missed / total, target=Target(RATE), unit=""),
            Figure(f"error too small, {false} of {total:,}", false / total, unit=""),
            Figure(
                f"SciPy's false success, {scipy_missed} of {scipy_total:,}", scipy_missed / scipy_total, unit=""
            ),
        ],
    )


def summarize(verdict: Verdict) -> str:
    """Return the counts of a family at one tolerance."""
    numbers = (verdict.false, verdict.missed, ~verdict.converged)
    return ", ".join(str(int(mask.sum())) for mask in numbers) + f"; {verdict.nodes:,.0f}"


def list_cases(name: str, sample: Sample, verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """Return a row for each false success."""
    rows = [
        (
            f"{name} {place}",
            f"{verdict.rtol:g}",
            f"{verdict.exact[place].item():.3g}",
            f"{verdict.true[place].item():.1e}",
            f"{verdict.reported[place].item():.1e}",
            f"{sample.a[place].item():.6g}, {sample.b[place].item():.6g}; "
            + ", ".join(f"{arg[place].item():.6g}" for arg in sample.args),
        )
        for verdict in verdicts
        for place in verdict.false.nonzero().flatten().tolist()
    ]
    more = len(rows) - SHOWN
    return [*rows[:SHOWN], *([(f"{name}: {more} more", "", "", "", "", "")] if more > 0 else [])]
