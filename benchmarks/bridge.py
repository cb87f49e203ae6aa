"""Wrapped NumPy functions: whether reported errors hold, what calls and derivatives cost, what stencils and pools
save, what memory many steps take."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

import quadgrad as qg
from benchmarks.bridge_errors import measure_checks, measure_errors
from benchmarks.bridge_memory import measure_memory
from benchmarks.bridge_speed import measure_hand_written
from benchmarks.findings import Figure, Findings, Sheet, Target, compare, show_time
from benchmarks.timing import Seconds, interleave

__all__ = ["measure"]

INPUTS = 1000
SLOW_INPUTS = 5
SLEEP = 0.05
WORKERS = 2
CALLS = 2000


def simulate(forces: np.ndarray) -> np.ndarray:
    """Drive a damped oscillator with one force a time step: 1,000 steps of Python, whatever is stacked in front."""
    position, speed = np.zeros(forces.shape[:-1]), np.zeros(forces.shape[:-1])
    for i in range(forces.shape[-1]):
        speed = 0.99 * speed + 0.01 * (forces[..., i] - np.sin(position))
        position = position + 0.01 * speed
    return np.stack([position, speed], -1)


def slow(x: np.ndarray) -> np.ndarray:
    """Take 50 ms."""
    time.sleep(SLEEP)
    return np.sin(x) * np.sum(x)


def gradient(wrapped: Any, x: Tensor) -> Tensor:
    """Return the gradient of the outputs' sum, computed anew."""
    wrapped.forget()
    leaf = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(wrapped(leaf).sum(), leaf)
    return found


def repeat(f: Callable[[Any], object], x: Any) -> None:
    """Call a function many times."""
    for _ in range(CALLS):
        f(x)


def measure_overhead(repeats: int) -> tuple[list[tuple[str, Seconds]], Figure]:
    """Time calls without gradient, wrapped and bare."""
    bare = np.random.default_rng(0).uniform(size=100)
    wrapped = qg.bridge.wrap(np.exp)
    with torch.no_grad():
        seconds = interleave(
            {"bare": partial(repeat, np.exp, bare), "wrapped": partial(repeat, wrapped, torch.from_numpy(bare))},
            repeats,
        )
    each = {name: s.scaled(1e6 / CALLS) for name, s in seconds.items()}
    figure = Figure(
        "overhead of a call without gradient",
        each["wrapped"].median - each["bare"].median,
        each["wrapped"].best - each["bare"].best,
        Target(40),
        "us",
    )
    rows = [(f"np.exp of 100 numbers, {name}", s.scaled(1 / CALLS)) for name, s in seconds.items()]
    return rows, figure


def measure_stencil(repeats: int) -> tuple[list[tuple[str, Seconds]], list[Figure]]:
    """Time a Jacobian with 1,000 inputs, all points in one call and one after the other."""
    x = torch.linspace(-1.0, 1.0, INPUTS, dtype=torch.float64)
    stacked, loop = (qg.bridge.wrap(simulate, vectorized=v, noise=0.0) for v in (True, False))
    gap = (gradient(stacked, x) - gradient(loop, x)).abs().max().item()
    seconds = interleave(
        {"one call": partial(gradient, stacked, x), "loop": partial(gradient, loop, x)}, repeats, warm_up=0
    )
    rows = [(f"Jacobian with {INPUTS:,} inputs, {name}", s) for name, s in seconds.items()]
    faster = compare(
        "vectorized Jacobian: faster than the loop", seconds["loop"], seconds["one call"], Target(20, True)
    )
    return rows, [faster, Figure("its gradient differs by", gap, unit="")]


def measure_pool(repeats: int) -> tuple[list[tuple[str, Seconds]], list[Figure]]:
    """Time a Jacobian of a slow function, with a pool of processes and without."""
    x = torch.linspace(0.1, 1.0, SLOW_INPUTS, dtype=torch.float64)
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        alone, pooled = (qg.bridge.wrap(slow, executor=e, noise=0.0) for e in (None, pool))
        same = torch.equal(gradient(alone, x), gradient(pooled, x))
        seconds = interleave({"alone": partial(gradient, alone, x), "pool": partial(gradient, pooled, x)}, repeats)
    rows = [(f"Jacobian of a function of 50 ms, {name}", s) for name, s in seconds.items()]
    faster = compare(f"{WORKERS} workers: faster than alone", seconds["alone"], seconds["pool"], Target(1.8, True))
    return rows, [faster, Figure("gradients identical (1: yes)", float(same), target=Target(1, True), unit="")]


def measure(scale: float = 1.0, seed: int | None = None) -> Findings:
    """Compare reported errors with true ones, and time calls, stencils and a pool."""
    repeats = max(2, round(5 * scale))
    seed = int(np.random.SeedSequence().generate_state(1)[0] % 10000) if seed is None else seed
    tables, errors = measure_errors(scale, seed)
    checks = measure_checks(scale, seed)
    ratios = measure_hand_written(repeats)
    calls, overhead = measure_overhead(repeats)
    stencils, faster = measure_stencil(repeats)
    pools, pooled = measure_pool(repeats)
    memory = measure_memory()
    return Findings(
        "Wrapped NumPy functions",
        "Central differences, float64. The Jacobian with 1,000 inputs is that of a simulator with one input for "
        "each of 1,000 time steps, 2,252 evaluations; that of the slow function, 50 ms a call, has 5 inputs and "
        "15 evaluations. First come random functions "
        f"(seed {seed}) of ten kinds, with exact derivatives: the share of entries whose true error is above the "
        "reported one; reported over true errors, median; evaluations for each input, median.",
        [
            *tables,
            Sheet(
                ("", "best", "median"),
                [(label, show_time(s.best), show_time(s.median)) for label, s in [*calls, *stencils, *pools]],
            ),
        ],
        [*errors, *checks, *ratios, overhead, *faster, *pooled, *memory],
    )
