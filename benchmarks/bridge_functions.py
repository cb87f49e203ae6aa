"""Random functions of a few inputs with exact derivatives, of the kinds for which differences are known to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["KINDS", "Function", "functions"]

Profile = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""A function of one number and its derivative."""
Generator = np.random.Generator


@dataclass(frozen=True)
class Function:
    """A function from ``(n,)`` to ``(m,)`` at a point.

    Attributes
    ----------
    kind : str
    fn : callable
    x : array, shape (n,)
    low, high : array, shape (m, n)
        Its derivatives: at a kink those on both sides, elsewhere the same twice.
    options : dict
        For :func:`quadgrad.bridge.wrap`.
    """

    kind: str
    fn: Callable[[np.ndarray], np.ndarray]
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)


def wave(rng: Generator, scale: float = 1.0) -> Profile:
    """Return a smooth function that changes over about ``scale``."""
    a, p = rng.normal(size=3), rng.uniform(0.0, 6.3, 3)
    k, c = rng.uniform(0.3, 3.0, 3) / scale, rng.normal()
    pick = rng.integers(3)
    if pick == 0:
        return lambda x: c + np.sum(a * np.sin(k * x + p)), lambda x: np.sum(a * k * np.cos(k * x + p))
    if pick == 1:
        q = rng.uniform(-1.0, 1.0) / scale
        return lambda x: a[0] * np.exp(q * x) + c, lambda x: a[0] * q * np.exp(q * x)
    s = 1.0 / scale
    return (
        lambda x: a[0] * (x * s) ** 3 + a[1] * (x * s) ** 2 + a[2] * x * s + c,
        lambda x: 3.0 * a[0] * s * (x * s) ** 2 + 2.0 * a[1] * s * x * s + a[2] * s,
    )


LINES: list[Profile] = [
    (lambda u: np.exp(-0.5 * u * u), lambda u: -u * np.exp(-0.5 * u * u)),
    (lambda u: 1.0 / (1.0 + u * u), lambda u: -2.0 * u / (1.0 + u * u) ** 2),
    (np.tanh, lambda u: 1.0 / np.cosh(u) ** 2),
    (lambda u: u / (1.0 + u * u), lambda u: (1.0 - u * u) / (1.0 + u * u) ** 2),
    (lambda u: u * np.exp(-0.5 * u * u), lambda u: (1.0 - u * u) * np.exp(-0.5 * u * u)),
    (lambda u: 1.0 / np.cosh(u), lambda u: -np.tanh(u) / np.cosh(u)),
]


def place(rng: Generator, low: float = -2.0, high: float = 2.0) -> float:
    return float(rng.choice([-1.0, 1.0]) * 10.0 ** rng.uniform(low, high))


def combined(
    rng: Generator, kind: str, x: list[float], profiles: list[tuple[Profile, Callable[[Any], Any]]], **more: Any
) -> Function:
    """Mix profiles, one for each input, each with its derivative from below and above, into one or two outputs."""
    outputs = int(rng.integers(1, 3))
    matrix = rng.normal(size=(outputs, len(x)))
    finish = more.pop("finish", lambda y, x: y)

    def fn(v: np.ndarray) -> np.ndarray:
        return finish(matrix @ np.array([f(t) for ((f, _), _), t in zip(profiles, v, strict=True)]), v)

    point = np.array(x)
    right = matrix * np.array([d(t) for ((_, d), _), t in zip(profiles, x, strict=True)])
    left = matrix * np.array([d(t) for (_, d), t in zip(profiles, x, strict=True)])
    return Function(kind, fn, point, left, right, more)


def simple(rng: Generator, kind: str, x: list[float], profiles: list[Profile], **more: Any) -> Function:
    return combined(rng, kind, x, [(p, p[1]) for p in profiles], **more)


def some(rng: Generator) -> range:
    return range(int(rng.integers(1, 4)))


def smooth(rng: Generator) -> Function:
    x = [place(rng, -2.0, 1.0) for _ in some(rng)]
    return simple(rng, "smooth", x, [wave(rng) for _ in x])


def narrow(rng: Generator) -> Function:
    x, profiles = list[float](), list[Profile]()
    for _ in some(rng):
        t = place(rng)
        w = abs(t) * 10.0 ** rng.uniform(-6.0, -1.0)
        centre = t - w * rng.normal() * 1.5
        (f, d), b = LINES[rng.integers(len(LINES))], rng.normal() * rng.integers(2)
        x.append(t)
        profiles.append((
            lambda t, f=f, c=centre, w=w, b=b: b + f((t - c) / w), lambda t, d=d, c=centre, w=w: d((t - c) / w) / w
        ))  # fmt: skip
    return simple(rng, "narrow", x, profiles)


def oscillating(rng: Generator) -> Function:
    x, profiles = list[float](), list[Profile]()
    for _ in some(rng):
        k, p = 10.0 ** rng.uniform(-1.0, 1.5), rng.uniform(0.0, 6.3)
        x.append(place(rng, 2.0, 6.0))
        profiles.append((lambda t, k=k, p=p: np.sin(k * t + p), lambda t, k=k, p=p: k * np.cos(k * t + p)))
    return simple(rng, "oscillating", x, profiles)


def kinked(rng: Generator) -> Function:
    x, profiles = list[float](), list[tuple[Profile, Callable[[Any], Any]]]()
    for _ in some(rng):
        (f, d), t, k = wave(rng), place(rng, -2.0, 1.0), rng.normal()
        away = 0.0 if rng.random() < 0.4 else place(rng, -12.0, 0.0)
        c = t + away
        x.append(t)
        profiles.append((
            (
                lambda t, f=f, k=k, c=c: f(t) + k * abs(t - c),
                lambda t, d=d, k=k, c=c: d(t) + k * (1 if t >= c else -1),
            ),
            lambda t, d=d, k=k, c=c: d(t) + k * (1 if t > c else -1),
        ))  # fmt: skip
    return combined(rng, "kinked", x, profiles)


def stepped(rng: Generator) -> Function:
    x, profiles = list[float](), list[Profile]()
    for _ in some(rng):
        (f, d), t, j = wave(rng), place(rng, -2.0, 1.0), rng.normal()
        width, c = abs(t) * 10.0 ** rng.uniform(-3.0, 0.0), rng.uniform()
        if rng.random() < 0.3:
            f, d = (lambda t: 0.0), (lambda t: 0.0)
        x.append(t)
        profiles.append((lambda t, f=f, j=j, w=width, c=c: f(t) + j * np.floor(t / w + c), d))
    return simple(rng, "stepped", x, profiles)


def printed(rng: Generator) -> Function:
    x, digits = [place(rng, -2.0, 1.0) for _ in some(rng)], int(rng.integers(4, 10))
    finish = lambda y, v: np.array([float(f"{t:.{digits}g}") for t in y])
    return simple(rng, "printed", x, [wave(rng) for _ in x], finish=finish)


def single(rng: Generator) -> Function:
    x = [place(rng, -2.0, 1.0) for _ in some(rng)]
    pick = rng.integers(3)
    if pick == 0:
        return simple(
            rng, "float32", x, [wave(rng) for _ in x], finish=lambda y, v: y.astype(np.float32).astype(float)
        )
    if pick == 1:
        return simple(rng, "float32", x, [wave(rng) for _ in x], finish=lambda y, v: y.astype(np.float32))
    profiles = [wave(rng) for _ in x]
    rounded = [(lambda t, f=f: float(np.float32(f(np.float32(t)))), d) for f, d in profiles]
    return simple(rng, "float32", [float(np.float32(t)) for t in x], rounded)


def mixed_bits(x: np.ndarray) -> np.ndarray:
    """Return numbers in [-1, 1] that look random but are the same for the same x."""
    bits = np.ascontiguousarray(x).view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (bits ^ (bits >> np.uint64(31))).astype(np.float64) / 2.0**63 - 1.0


def noisy(rng: Generator) -> Function:
    x, level = [place(rng, -2.0, 1.0) for _ in some(rng)], 10.0 ** rng.uniform(-12.0, -3.0)
    shift = rng.uniform(1.0, 2.0, size=(2, 1))
    finish = lambda y, v: y * (1.0 + level * mixed_bits(y * shift[: len(y), 0] + np.sum(v * np.pi)))
    return simple(rng, "noisy", x, [wave(rng) for _ in x], finish=finish)


def scaled(rng: Generator) -> Function:
    units = [10.0 ** rng.uniform(3.0, 12.0) ** 1.0 * 1.0 for _ in some(rng)]
    units = [u if rng.random() < 0.3 else 1.0 / u for u in units]
    x = [u * place(rng, -1.0, 0.5) for u in units]
    if rng.random() < 0.5:  # of mixed units
        units, x = [*units, 1.0], [*x, place(rng, 0.0, 2.5)]
    return simple(rng, "badly scaled", x, [wave(rng, u) for u in units])


def bounded(rng: Generator) -> Function:
    x, profiles = list[float](), list[Profile]()
    for _ in some(rng):
        (f, d), t = wave(rng), 10.0 ** rng.uniform(-9.0, 1.0)
        if rng.random() < 0.3:
            p = rng.uniform(1.5, 3.0)
            f, d, t = (lambda t, p=p: (1.0 + t) ** p), (lambda t, p=p: p * (1.0 + t) ** (p - 1.0)), 0.0
        elif rng.random() < 0.5:
            f, d = np.log, (lambda t: 1.0 / t)
        x.append(t)
        profiles.append((f, d))

    def finish(y: np.ndarray, v: np.ndarray) -> np.ndarray:
        if np.any(v < 0.0):
            raise ValueError("outside")
        return y

    return simple(rng, "bounded", x, profiles, finish=finish, bounds=(0.0, np.inf))


KINDS: dict[str, Callable[[Generator], Function]] = {
    "smooth": smooth,
    "narrow": narrow,
    "oscillating": oscillating,
    "kinked": kinked,
    "stepped": stepped,
    "printed": printed,
    "float32": single,
    "noisy": noisy,
    "badly scaled": scaled,
    "bounded": bounded,
}


def functions(count: int, seed: int) -> Iterator[Function]:
    """Return random functions, as many of each kind."""
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        yield list(KINDS.values())[i % len(KINDS)](rng)
