"""Step by step the kernel does what the tensor operations do: where f is called, what is made of it, what follows.

Random cells, on finite and infinite pieces, of real and complex functions of one and of several components; and
cells whose estimates are all equal, or exactly at a limit, where the two must not choose differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import t64
from quadgrad._core.mesh.interval import LINEAR, LOGARITHMIC
from quadgrad._core.problem import Problem
from quadgrad._core.search.intervals import interval_parts, record
from quadgrad._core.search.kernel.library import CELL, load
from quadgrad._core.search.native import NativeBodies
from quadgrad._core.search.start import first_cells
from quadgrad._core.search.tensors import TensorBodies
from quadgrad._core.verbs.inputs import prepare

INF = float("inf")

pytestmark = pytest.mark.skipif(load() is None, reason="the package was installed without its compiled kernel")

LIMITS = {
    "finite": (t64([0.0, -1.0, 2.0, 0.1, -3e3, 1.0]), t64([1.0, 1.0, 2.5, 9.0, 3e3 + 0.1, 1.0])),
    "infinite": (t64([0.0, -INF, -INF, 2.0, 0.5, -INF]), t64([INF, 1.0, INF, 3.0, INF, -40.0])),
}


def bump(x: Tensor, c: Tensor) -> Tensor:
    return 1.0 / (0.01 + (x - c) ** 2)


def wave(x: Tensor, c: Tensor) -> Tensor:
    return torch.exp(torch.complex(-x.abs(), c * x))


def several(x: Tensor, c: Tensor) -> Tensor:
    return torch.stack([bump(x, c) * k for k in range(-2, 3)] + [torch.exp(-x * x)], -1)


def many(x: Tensor, c: Tensor) -> Tensor:
    return (torch.exp(-((x - c)[..., None] ** 2)) * torch.arange(1, 71)).unflatten(-1, (2, 35))


def pairs(x: Tensor, c: Tensor) -> Tensor:
    return torch.stack([wave(x, c), 1j * bump(x, c), wave(x, 0.1 * c)], -1)


def singular(x: Tensor, c: Tensor) -> Tensor:
    return x.abs() ** -0.4 * (1.0 + c * x.abs().log())


def broken(x: Tensor, c: Tensor) -> Tensor:
    return torch.where(x > c, torch.nan, torch.where(x < c - 0.5, torch.inf, x))


FUNCTIONS = {f.__name__: f for f in (bump, wave, several, many, pairs, singular, broken)} | {
    "complex end": lambda x, c: singular(x, c) * torch.exp(1j * x),
    "zero": lambda x, c: 0.0 * x,
    "constant": lambda x, c: torch.ones_like(x),
    "two equal tops": lambda x, c: 1.0 / ((x - 0.25) ** 2 + 1e-3) + 1.0 / ((x - 0.75) ** 2 + 1e-3),
    "tiny": lambda x, c: 1e-305 * torch.exp(-x * x),
}


@dataclass
class Both:
    """The two bodies of one search."""

    compiled: NativeBodies
    plain: TensorBodies[Any]

    @staticmethod
    def of(problem: Problem, cells: tuple[Tensor, ...] | None) -> Both:
        plain = TensorBodies(problem, *interval_parts(problem), partial(record, problem))
        bodies, whole = Both(NativeBodies(problem), plain), first_cells(problem, None)
        first = None if cells is None else whole.with_cells(*cells)
        bodies.compiled.open(first)
        bodies.plain.open(first or whole)
        return bodies

    def evaluate(self) -> None:
        self.compiled.evaluate()
        self.plain.evaluate()

    def decide(self) -> tuple[int, int]:
        compiled, plain = self.compiled.decide(), self.plain.decide()
        assert (compiled.running, compiled.waiting) == (plain.running, plain.waiting)
        return plain.running, plain.waiting


def make_problem(
    f: Callable[..., Tensor], limits: tuple[Tensor, Tensor], dtype: torch.dtype = torch.float64, rtol: float = 1e-8
) -> Problem:
    lower, upper = (end.to(dtype) for end in limits)
    c = torch.linspace(-0.3, 1.2, len(lower), dtype=dtype)
    problem = prepare(f, lower, upper, (c,), None, tolerances=(rtol, 0.0))
    problem.integrand, _ = problem.integrand.probe(torch.full((1,), 0.4375, dtype=torch.float64))
    return problem


def random_cells(batch: int, seed: int) -> tuple[Tensor, ...]:
    """Return cells of every kind and place that bisection makes, all in no order but that of their rows."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(1, 9, (batch * 7,), generator=generator)
    start = (torch.rand(level.shape, generator=generator, dtype=torch.float64) * 2.0**level).floor() / 2.0**level
    stop, upper = start + 2.0**-level, start >= 0.5
    start, stop = start - 1.0 * upper, stop - 1.0 * upper
    row = torch.randint(0, batch, level.shape, generator=generator).sort().values
    kind = torch.randint(0, 2, level.shape, generator=generator).to(torch.int8)
    assert {LINEAR, LOGARITHMIC} == set(kind.tolist())
    whole = torch.rand(level.shape, generator=generator) < 0.1
    start, stop = start.masked_fill(whole, 0.0), stop.masked_fill(whole, 1.0)
    return row, start, stop, kind.masked_fill(whole, LINEAR)


def columns(bodies: Both) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what either body holds of its cells at hand, in the same order."""
    native, cells = bodies.compiled, bodies.plain.cells
    n, k = native.linear.n + native.ends.n, native.columns
    rows = native.linear.room.flatten()[: n * (CELL + native.width)].view(n, -1)
    flags = rows.view(torch.int8)[:, 72:]
    compiled = {
        "row": rows.view(torch.int64)[:, 8], "start": rows[:, 0], "stop": rows[:, 1],
        "kind": flags[:, 0].long(), "refinable": flags[:, 2].long(), "lean": flags[:, 1].double(),
        "height": rows.view(torch.uint8)[:, 75].double(), "pole": rows.view(torch.float32)[:, 19].double(),
        "error": rows[:, 3], "floor": rows[:, 4], "edges": rows[:, 5:7], "middle": rows[:, 7],
        "value": rows[:, CELL:] if k > 1 else rows[:, 2:3],
    }  # fmt: skip
    start, stop, lean, pole, height, middle, *edges = cells.real
    plain = {
        "row": cells.whole[2], "start": start, "stop": stop, "kind": cells.whole[3], "refinable": cells.whole[1],
        "lean": lean, "height": torch.where(height < INF, -8.0 * height.log2(), 0.0), "pole": pole,
        "error": cells.sums[-2], "floor": cells.sums[-1], "edges": torch.stack(edges, 1), "middle": middle,
        "value": cells.sums[:-2].T,
    }  # fmt: skip
    for table in (compiled, plain):
        order = np.lexsort([table[name].numpy() for name in ("stop", "start", "row")])
        order = torch.from_numpy(order)
        table |= {name: column[order] for name, column in table.items()}
    return compiled, plain


def assert_same_cells(bodies: Both) -> None:
    """Places exactly, estimates to what rounding allows, hints where there is more than rounding to judge by."""
    compiled, plain = columns(bodies)
    for name in ("row", "kind"):
        assert torch.equal(compiled[name], plain[name]), name
    task, floor = bodies.compiled.task, plain["floor"]
    noise = max(1e3, 1e-9 / task.tolerance.eps) * floor  # f itself may be less precise than its dtype
    linear, rough = plain["kind"] == LINEAR, plain["error"] > noise.clamp_min(1e-290)
    for name in ("refinable", "lean"):
        assert torch.equal(compiled[name][rough], plain[name][rough]), name
    assert ((compiled["height"] - plain["height"])[linear & rough].abs() <= 1.0).all()
    for name in ("start", "stop"):
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-15, atol=0.0)
    seen = linear & rough & (plain["height"] > 0)
    torch.testing.assert_close(compiled["floor"], floor, rtol=1e-6, atol=1e-310)
    torch.testing.assert_close(compiled["pole"][seen], plain["pole"][seen], rtol=1e-5, atol=1e-5)
    assert torch.equal(compiled["error"].isinf(), plain["error"].isinf())
    sure = plain["error"].isfinite()
    allowed = torch.where(rough, 0.01 * plain["error"], noise) + 1e-300
    assert ((compiled["error"] - plain["error"]).abs() <= allowed)[sure].all()
    assert ((compiled["value"] - plain["value"]).abs().amax(1) <= allowed)[sure].all()
    eps = task.pieces.rounding.eps
    for name in ("edges", "middle"):
        torch.testing.assert_close(
            compiled[name][linear], plain[name][linear], rtol=1e-9 + 4 * eps, atol=1e-9, equal_nan=True
        )


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16))
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_estimates_of_random_cells(name: str, limits: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and name in ("wave", "pairs", "complex end"):
        pytest.skip("there are no complex numbers of half precision")
    problem = make_problem(FUNCTIONS[name], LIMITS[limits], dtype, 1e-3)
    bodies = Both.of(problem, random_cells(len(LIMITS[limits][0]) - 1, len(name)))
    bodies.evaluate()
    assert_same_cells(bodies)


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rounds_from_whole_pieces(name: str, limits: str) -> None:
    bodies = Both.of(make_problem(FUNCTIONS[name], LIMITS[limits], rtol=1e-6), None)
    for _ in range(5):
        bodies.evaluate()
        assert_same_cells(bodies)
        running, _ = bodies.decide()
        if not running:
            break


@pytest.mark.parametrize("reopened", (False, True))
@pytest.mark.parametrize("f", (bump, several, pairs))
def test_decisions_where_all_is_equal(f: Callable[..., Tensor], reopened: bool) -> None:
    """Errors exactly at the limit from which on a cell is refined, and integrals exactly at their tolerance."""
    batch, each = 8, 8
    problem = make_problem(f, (torch.zeros(batch, dtype=torch.float64), torch.ones(batch, dtype=torch.float64)))
    start = torch.arange(each, dtype=torch.float64) / each
    start = torch.where(start >= 0.5, start - 1.0, start)
    row, start = torch.arange(batch).repeat_interleave(each), start.repeat(batch)
    bodies = Both.of(problem, (row, start, start + 1.0 / each))
    bodies.evaluate()
    # A value of 1 in one component, by eighths: the tolerance is rtol, and a cell may have a sixteenth of it.
    generator = torch.Generator().manual_seed(0)
    kinds = t64([0.0, 0.5, 1.0, 2.0, 16.0, INF]) * (problem.tolerance.rtol / 16.0)
    error = kinds[torch.randint(0, 5, (batch * each,), generator=generator)]
    error[:each], error[each : 2 * each], error[-1] = kinds[2], 2.0 * kinds[2], kinds[5]
    native, cells = bodies.compiled, bodies.plain.cells
    rows = native.linear.room.flatten()[: len(row) * (CELL + native.width)].view(len(row), -1)
    rows[:, 2], rows[:, 3], rows[:, 4] = 1.0 / each, error, 1e-18
    if native.width:
        rows[:, CELL:] = 0.0
        rows[:, CELL] = 1.0 / each
    rows.view(torch.int8)[:, 74] = 1
    cells.sums[:-2], cells.sums[0], cells.sums[-2], cells.sums[-1] = 0.0, 1.0 / each, error, 1e-18
    cells.whole[1] = 1
    native.round.reopened, bodies.plain.reopened = int(reopened), reopened
    running, _ = bodies.decide()
    assert 0 < running < batch
    bodies.evaluate()
    assert_same_cells(bodies)


def kinked(x: Tensor, c: Tensor) -> Tensor:
    return torch.exp(-0.1 * x * x) * ((x - c).abs() ** 0.5 + (x > 0.3).to(x.dtype))


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("name", (*FUNCTIONS, "kinked"))
def test_where_cells_pile_up(name: str, limits: str) -> None:
    f = FUNCTIONS.get(name, kinked)
    bodies = Both.of(make_problem(f, LIMITS[limits], rtol=1e-6), None)
    number = 0
    for _ in range(8):
        bodies.evaluate()
        assert_same_piles(bodies)
        number += len(bodies.plain.look_for_piles(1e3).row)
        running, _ = bodies.decide()
        if not running:
            break
    assert number or name != "kinked"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("f", (bump, several, pairs, kinked))
def test_where_random_cells_pile_up(f: Callable[..., Tensor], limits: str, seed: int) -> None:
    problem = make_problem(f, LIMITS[limits], rtol=1e-9)
    bodies = Both.of(problem, random_cells(len(LIMITS[limits][0]), seed))
    bodies.evaluate()
    assert_same_piles(bodies)
    assert_same_piles(bodies, 1.0)


def assert_same_piles(bodies: Both, far: float = 1e3) -> None:
    """The same errors, which are what is judged by, and from these the same stretches and ends."""
    native, cells = bodies.compiled, bodies.plain.cells
    rows = native.linear.room.flatten()[: (native.linear.n + native.ends.n) * (CELL + native.width)]
    rows = rows.view(-1, CELL + native.width)
    orders = [
        np.lexsort([column.numpy() for column in (*columns, row)])
        for row, *columns in (
            (rows.view(torch.int64)[:, 8], rows[:, 1], rows[:, 0]),
            (cells.whole[2], *cells.real[[1, 0]]),
        )
    ]
    mine, theirs = (torch.from_numpy(order) for order in orders)
    kept = cells.sums.clone()
    cells.sums[-2, theirs] = rows[mine, 3]
    compiled, plain = native.look_for_piles(far), bodies.plain.look_for_piles(far)
    cells.sums = kept
    for name in ("row", "start", "stop"):
        torch.testing.assert_close(getattr(compiled, name), getattr(plain, name), rtol=1e-15, atol=0.0)
    for name in ("row", "upper", "distance", "singular"):
        assert torch.equal(getattr(compiled.ends, name), getattr(plain.ends, name)), name
