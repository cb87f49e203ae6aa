"""Reported errors of derivatives beside true ones, for random functions: ours, jacobi's and numdifftools'."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

import quadgrad as qg
from benchmarks.bridge_functions import Function, functions
from benchmarks.findings import Figure, Sheet, Target

__all__ = ["measure_checks", "measure_errors"]

METHODS = ("central", "forward", "richardson", "auto", "spsa")
AGAIN = "central, a later call"
"""Differentiated somewhere else before, so that less is asked about noise."""
AMONG, OTHERS = "central, among twelve others", np.linspace(0.5, 1.5, 12)
"""With the sines of more inputs added, which hide what its own do and have no third point each."""
EVERY, LARGEST = 0.1, 1.0
"""Percent of entries, of all and of any kind, whose true error may be above the reported one."""
Way = Callable[[Function], tuple[np.ndarray, np.ndarray, int]]
"""Returns derivatives, their reported errors, and how many evaluations that took."""


@dataclass
class Score:
    """How a way did on one kind."""

    missed: int = 0
    entries: int = 0
    raised: int = 0
    ratios: list[float] = field(default_factory=list[float])
    evaluations: list[float] = field(default_factory=list[float])


def ours(f: Function, method: str, before: float | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    wrapped = qg.bridge.wrap(f.fn, method, **f.options)
    if before is not None:
        assert wrapped.linearization([torch.from_numpy(before * f.x)]).problem.look is not None
    point = wrapped.linearization([torch.from_numpy(f.x)])
    earlier = point.counter.nfev - 1
    jacobian, unit = point.jacobian, np.eye(len(f.low))
    error = jacobian.pull_error(unit)
    assert error is not None
    return jacobian.pull(unit), error, point.counter.nfev - earlier


def among_others(f: Function) -> tuple[np.ndarray, np.ndarray, int]:
    count = f.x.size
    fn = lambda v: f.fn(v[:count]) + np.sum(np.sin(v[count:]))
    value, error, nfev = ours(replace(f, fn=fn, x=np.append(f.x, OTHERS)), "central")
    return value[:, :count], error[:, :count], round(nfev * count / (count + OTHERS.size))


def counted(f: Function) -> tuple[Callable[[Any], np.ndarray], list[int]]:
    count = [0]

    def fn(x: Any) -> np.ndarray:
        count[0] += 1
        return f.fn(np.asarray(x, np.float64))

    return fn, count


def by_jacobi(f: Function) -> tuple[np.ndarray, np.ndarray, int]:
    from jacobi import jacobi

    fn, count = counted(f)
    value, error = jacobi(fn, f.x)
    return np.reshape(value, f.low.shape), np.reshape(error, f.low.shape), count[0]


def by_numdifftools(f: Function) -> tuple[np.ndarray, np.ndarray, int]:
    import numdifftools

    fn, count = counted(f)
    value, error, *_ = numdifftools.Jacobian(fn, full_output=True)(f.x)
    return np.reshape(value, f.low.shape), np.reshape(error, f.low.shape), count[0]


def ways() -> dict[str, Way]:
    found: dict[str, Way] = {method: partial(ours, method=method) for method in METHODS}
    found[AGAIN] = partial(ours, method="central", before=1.03)
    found[AMONG] = among_others
    for name, way in (("jacobi", by_jacobi), ("numdifftools", by_numdifftools)):
        try:
            __import__(name)
        except ImportError:
            continue
        found[name] = way
    return found


def measure_errors(scale: float, seed: int) -> tuple[list[Sheet], list[Figure]]:
    """Differentiate random functions by every way."""
    count = max(100, round(2000 * scale))
    scores: dict[str, dict[str, Score]] = {}
    for name, way in ways().items():
        table = scores[name] = defaultdict[str, Score](Score)
        for f in functions(count, seed):
            enter(table[f.kind], f, way)
    kinds = list(scores["central"])
    heads = ("kind", *scores)
    missed = lambda s: f"{100 * s.missed / max(1, s.entries):.2f} %"
    sheets = [
        Sheet(heads, [(k, *(missed(s[k]) for s in scores.values())) for k in kinds]),
        Sheet(heads, [(k, *(f"{np.median(s[k].ratios):.2g}" for s in scores.values())) for k in kinds]),
        Sheet(heads, [(k, *(f"{np.median(s[k].evaluations):.0f}" for s in scores.values())) for k in kinds]),
    ]  # fmt: skip
    figures: list[Figure] = []
    for name, table in scores.items():
        every = 100 * sum(s.missed for s in table.values()) / max(1, sum(s.entries for s in table.values()))
        worst = max(100 * s.missed / max(1, s.entries) for s in table.values())
        raised = sum(s.raised for s in table.values())
        target = (Target(EVERY), Target(LARGEST)) if name in (*METHODS, AGAIN) else (None, None)
        figures.append(Figure(f"{name}: errors above the reported one, of all", every, target=target[0], unit="%"))
        figures.append(Figure(f"{name}: the same, of the worst kind", worst, target=target[1], unit="%"))
        if raised:
            figures.append(Figure(f"{name}: functions it gave up", raised, unit=""))
    return sheets, figures


def enter(score: Score, f: Function, way: Way) -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            value, error, nfev = way(f)
        except Exception:
            score.raised += 1
            return
    true = np.maximum(np.abs(value - f.low), np.abs(value - f.high))
    score.missed += int(np.sum(~(true <= error)))
    score.entries += true.size
    with np.errstate(all="ignore"):
        score.ratios += list((error / np.maximum(true, 1e-300)).ravel())
    score.evaluations.append(nfev / f.x.size)


def measure_checks(scale: float, seed: int) -> list[Figure]:
    """Check right derivatives, and wrong ones, five percent off in one column."""
    verdicts = Counter[tuple[str, str]]()
    for f in functions(max(100, round(2000 * scale)), seed):
        column = np.arange(f.x.size) == np.argmax(np.abs(f.high).max(axis=0))
        for name, given in (("right", f.high), ("wrong", f.high * np.where(column, 1.05, 1.0))):
            if name == "wrong" and np.array_equal(given, f.high):
                continue
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                report = qg.bridge.check(f.fn, f.x, jacobian=lambda x, given=given: given, **f.options)
            verdicts[name, report.verdict] += 1
    return [
        Figure("check: right derivatives called wrong", verdicts["right", "wrong"], target=Target(0), unit=""),
        Figure("check: wrong derivatives called right", verdicts["wrong", "right"], target=Target(0), unit=""),
        Figure("check: right derivatives called right", verdicts["right", "right"], unit=""),
        Figure("check: wrong derivatives called wrong", verdicts["wrong", "wrong"], unit=""),
    ]
