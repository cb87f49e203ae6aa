"""Boxes in the compiled kernel, function by function and search by search, against tensor operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import t64
from quadgrad._core.mesh.boxes import HINTS, NewBoxes
from quadgrad._core.mesh.protocol import Cells
from quadgrad._core.problem import Problem
from quadgrad._core.search.books import Running, sum_by_owner
from quadgrad._core.search.boxes import groups, neighbours
from quadgrad._core.search.boxes.bodies import BoxBodies
from quadgrad._core.search.boxes.kernel import NativeLook, NativeRound
from quadgrad._core.search.boxes.native import NativeBoxBodies
from quadgrad._core.search.boxes.neighbours import Sample, find_unseen
from quadgrad._core.search.boxes.search import BoxFound, box_parts, record_boxes, search_boxes
from quadgrad._core.search.decide import Totals, judge
from quadgrad._core.search.kernel.library import load
from quadgrad._core.verbs.boxes import prepare_boxes
from quadgrad._core.verbs.door import open_call

pytestmark = pytest.mark.skipif(load() is None, reason="no kernel was built here")

INF = math.inf
F = Callable[..., Tensor]


def problem_of(
    f: F, a: Tensor, b: Tensor, args: Any = (), rtol: float = 1e-4, rule: str = "auto", **options: Any
) -> Problem:
    prepared = prepare_boxes(f, a, b, args, True, (rtol, 0.0), rule, options.pop("max_nfev", None), None)
    assert prepared is not None
    return replace(open_call(prepared, (rtol, 0.0), None, False)[0], **options)


def state_of(problem: Problem, kind: type[BoxBodies[BoxFound]]) -> BoxBodies[BoxFound]:
    bodies = kind(problem, *box_parts(problem), partial(record_boxes, problem))
    bodies.open(None)
    return bodies


def _waves(x: Tensor, c: Tensor) -> Tensor:
    return torch.cos(c[..., 0] * x[..., 0] + 2.3 * x[..., 1]) * torch.exp(-c[..., 1] * (x[..., -1] - 0.31) ** 2)


def _peaks(x: Tensor, c: Tensor) -> Tensor:
    return (1.0 / (0.01 + (x - c) ** 2)).prod(-1)


C2 = qg.element(t64([[3.0, 5.0], [9.0, 40.0], [0.5, 300.0]]), 1)
C3 = qg.element(t64([[0.21, 0.43, 0.78], [0.47, 0.11, 0.92]]), 1)
CORNERS = t64([0.0, 0.0]), t64([1.0, 1.0])
SEARCHES: dict[str, tuple[F, Any, Any, Any, float, dict[str, Any]]] = {
    "batch": (_waves, *CORNERS, (C2,), 1e-6, {}),
    "peaks": (_peaks, torch.zeros(3), torch.ones(3).double(), (C3,), 1e-5, {}),
    "reversed, own limits": (_waves, t64([[0, 1], [2, 0], [0.3, 0.1]]), t64([1.0, 0.0]), (C2,), 1e-5, {}),
    "infinite": (lambda x: torch.exp(-((x - 0.3) ** 2).sum(-1)), t64([-INF, 0.1]), t64([INF, INF]), (), 1e-7, {}),
    "complex": (lambda x: torch.exp(9j * x[..., 0] - 2 * x[..., 1] ** 2), *CORNERS, (), 1e-7, {}),
    "events": (lambda x: torch.stack((x[..., 0].exp(), (9 * x.sum(-1)).sin()), -1), *CORNERS, (), 1e-7, {}),
    "no event": (lambda x: x[..., :0], *CORNERS, (), 1e-7, {}),
    "kink": (lambda x: (x[..., 0] + 1.3 * x[..., 1] - 0.97).abs(), *CORNERS, (), 1e-4, {}),
    "jump": (lambda x: 1.0 * (x[..., 0] + 0.3 * x[..., 1] > 0.61), *CORNERS, (), 1e-3, {"max_nfev": 40_000}),
    "singular": (lambda x: (x[..., 0] + 1.3 * x[..., 1]) ** -1.1, *CORNERS, (), 1e-5, {}),
    "not finite": (lambda x: torch.where(x[..., 0] > 0.7, torch.nan, x[..., 1]), *CORNERS, (), 1e-4, {}),
    "few cells": (_peaks, torch.zeros(3), torch.ones(3).double(), (C3,), 1e-5, {"max_cells": 30}),
    "bump": (lambda x: 1 + 5 * torch.exp(-900 * ((x - 0.37) ** 2).sum(-1)), *CORNERS, (), 1e-3, {}),
    "nothing": (lambda x: 0.0 * x[..., 0], *CORNERS, (), 1e-4, {}),
    "single": (lambda x: (x[..., 0] * 7 + x[..., 1]).sin(), torch.zeros(2), torch.ones(2), (), 1e-4, {}),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_are_the_same(name: str) -> None:
    f, a, b, args, rtol, options = SEARCHES[name]
    problem = problem_of(f, a, b, args, rtol, **options)
    one, other = (search_boxes(problem, None, native=native) for native in (True, False))
    for both in ("status", "nfev"):
        assert getattr(one, both).tolist() == getattr(other, both).tolist()
    for column in ("row", "level", "position"):
        assert torch.equal(getattr(one.plan, column), getattr(other.plan, column))
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-13, equal_nan=True)
    torch.testing.assert_close(one.value, other.value, rtol=1e-12, atol=1e-14)
    close(one.plan.trust, other.plan.trust, rtol=1e-2)  # of differences between parents and children
    close(one.error, other.error, rtol=1e-3)
    for both in ("top", "height", "modulus", "corner", "doubt", "doubted"):
        close(getattr(one, both), getattr(other, both))
    again = [search_boxes(problem, one.plan, native=native) for native in (True, False)]
    assert again[0].nfev.tolist() == again[1].nfev.tolist()


@pytest.mark.parametrize("native", (True, False))
def test_groups_are_searched_like_all_together(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them one that ends at once, one whose peak scouts find, one without volume, and cells of a plan."""
    monkeypatch.setattr(groups, "search_boxes", partial(search_boxes, native=native))
    c = qg.element(t64([[0.0, 0.0], [3.0, 5.0], [9.0, 40.0], [0.5, 4e5], [1.0, 1.0], [0.0, 2.0], [2.0, 7.0]]), 1)
    b = torch.ones(7, 2, dtype=torch.float64)
    b[5] = 0.0
    problem = problem_of(_waves, torch.zeros(7, 2).double(), b, (c,), 1e-6)
    whole = groups.search_groups(problem, None)
    half = replace(problem, tolerance=replace(problem.tolerance, rtol=1e-4))
    plan = search_boxes(half, None).plan
    warm = groups.search_groups(problem, plan)
    monkeypatch.setattr(groups, "GROUP", 3)
    for first, expected in ((None, whole), (plan, warm)):
        found = groups.search_groups(problem, first)
        for name in ("status", "nfev", "corner"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
        for name in ("value", "error", "modulus", "height", "top", "doubt"):
            # Of products of matrices of other shapes.
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-14)
        for column in ("row", "level", "position"):
            assert torch.equal(getattr(found.plan, column), getattr(expected.plan, column)), column
        assert found.plan.batch_shape == (7,)


def cells_of(d: int, n: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return levels and places of n cells that fill the cube."""
    cells = [(np.zeros(d, dtype=np.int64), np.zeros(d, dtype=np.int64))]
    while len(cells) < n:
        level, place = cells.pop(int(random.integers(len(cells))))
        axis = np.arange(d) == random.integers(d)
        cells += [(level + axis, np.where(axis, 2 * place, place) + upper * axis) for upper in (0, 1)]
    return tuple(torch.tensor(np.array(t).T.copy()) for t in zip(*cells, strict=True))  # type: ignore[return-value]


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth": lambda x, r: torch.exp(-((x - 0.2) ** 2).sum(-1)) * (1 + 1e-9 * r),
    "waves": lambda x, r: torch.sin(40 * x[..., 0] + 11 * x[..., -1]),
    "noise": lambda x, r: r,
    "zero": lambda x, r: 0.0 * r,
    "tiny": lambda x, r: 1e-300 * r,
    "huge": lambda x, r: 1e290 * r,
    "symmetric": lambda x, r: (x**2).sum(-1),
    "constant": lambda x, r: 0.0 * r + 3.0,
    "nan": lambda x, r: torch.where(r > 1.9, torch.nan, r),
    "inf": lambda x, r: torch.where(r > 1.9, torch.inf, x[..., 0]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rule", "d", "event", "infinite"),
    (("gm9", 2, (), False), ("gm11", 3, (), False), ("gm7", 5, (3,), False), ("gm9", 3, (40,), True)),
)
@pytest.mark.parametrize("is_complex", (False, True))
def test_what_values_say(
    kind: str, rule: str, d: int, event: tuple[int, ...], infinite: bool, is_complex: bool
) -> None:
    """Values, errors, floors, axes and sizes are those of the tensors, and so is what polynomials tell."""
    random = np.random.default_rng(d)
    dtype = torch.complex128 if is_complex else torch.float64
    upper = torch.full((d,), INF if infinite else 1.7, dtype=torch.float64)
    f = lambda x: x.sum(-1).reshape(*x.shape[:-1], *(1,) * len(event)).expand(*x.shape[:-1], *event).to(dtype)
    problem = problem_of(f, torch.zeros(d).double(), upper, rule=rule)
    one, other = state_of(problem, NativeBoxBodies), state_of(problem, BoxBodies)
    assert isinstance(one, NativeBoxBodies)
    n = 37
    level, place = cells_of(d, n, random)
    row = torch.zeros(n, dtype=torch.int64)
    trust = torch.tensor(random.choice([0.002, 0.5, 1.0, 30.0], n))
    new = NewBoxes(row, row, level, place, problem.rule.rows, trust)
    layout = other.mesh.lay_out(new)
    x, factor = other.mesh.nodes(layout, slice(0, n))
    if not infinite:
        places, volume = one.kernel.nodes(one.kernel.lay_out(new), slice(0, n))
        torch.testing.assert_close(places, x, rtol=1e-15, atol=0.0)
        torch.testing.assert_close(volume, factor, rtol=1e-15, atol=0.0)
    r = torch.tensor(random.normal(size=(*x.shape[:2], *event)))
    y = KINDS[kind](x.reshape(*x.shape[:2], *(1,) * len(event), d), r).expand(r.shape).to(dtype)
    y = y * (1 + 0.5j) if is_complex else y
    cells = one.kernel.cells(n)
    one.kernel.open_round(new, one.kernel.lay_out(new) if not infinite else layout, cells)
    one.kernel.estimate(y, factor, 0, 2e-16)
    one.kernel.compare_held_out(cells, None)
    expected = other.estimate.judge(new, layout, other.estimate.read(factor, y), is_complex, 2e-16)
    drawn = other.held_out.draw(new, slice(0, n), y, factor)
    told = other.held_out.compare(new, [] if drawn is None else [drawn], 2e-16)
    size = expected.sums[-1].nan_to_num(0.0, 0.0)
    rounding = 1e4 * size  # sums in another order, times what errors and trust multiply them by
    off = (cells.sums - expected.sums).abs().nan_to_num(0.0)
    relative = torch.full((len(off), 1), 1e-12, dtype=torch.float64)
    relative[-2] = 1e-5  # of quotients of small null rules
    assert (off <= rounding + relative * expected.sums.abs()).all()
    assert torch.equal(cells.sums.isinf(), expected.sums.isinf())
    if kind not in ("symmetric", "constant", "smooth"):  # in which rounding decides between axes
        assert torch.equal(cells.whole, expected.whole)
    sure = (expected.sums[-2] > 1e6 * size) & expected.sums.isfinite().all(0)
    torch.testing.assert_close(cells.real[:-4, sure], expected.real[:, sure], rtol=1e-5, atol=0.0)
    for k in (0, 2):
        torch.testing.assert_close(cells.real[k - 4], told[k], rtol=1e-6, atol=1e3 * float(size.max()))
    seen = (told[0] > 0.0) & (cells.real[-4] > 0.0)
    if kind == "noise":
        assert torch.equal(cells.real[-3, seen], told[1, seen]) and torch.equal(cells.real[-1], told[3])


def _state(problem: Problem, kind: type[BoxBodies[BoxFound]], cells: Cells, spent: Tensor) -> BoxBodies[BoxFound]:
    bodies, n = state_of(problem, kind), problem.batch
    bodies.cells = Cells(*(t.clone() for t in (cells.sums, cells.whole, cells.real)))
    count = torch.bincount(cells.whole[0], minlength=n)
    whole = torch.stack((torch.arange(n), count, spent, torch.zeros_like(count)))
    bodies.running = Running(whole, torch.zeros_like(cells.sums[:, :n]))
    bodies.looked.fill_(2**40)  # no points anywhere
    return bodies


@pytest.mark.parametrize("seed", range(40))
def test_which_cells_are_halved(seed: int) -> None:
    """Errors are whole numbers of one unit, many of them equal, so that both add them up to the last bit."""
    random = np.random.default_rng(seed)
    batch, d = int(random.integers(1, 6)), int(random.integers(2, 5))
    corners = torch.zeros(batch, d).double(), torch.ones(batch, d).double()
    problem = problem_of(lambda x: x.sum(-1), *corners, rtol=2.0 ** -float(random.integers(1, 12)), rule="gm7")
    made = [cells_of(d, int(random.choice([1, 2, 7, 300])), random) for _ in range(batch)]
    owner = torch.tensor(np.repeat(np.arange(batch), [level.shape[1] for level, _ in made]))
    level, place = (torch.cat([cell[k] for cell in made], 1) for k in (0, 1))
    n, draw = len(owner), lambda *values: torch.tensor(random.choice(values, len(owner)))
    shuffled = torch.tensor(random.permutation(n))
    error = draw(0.0, 1.0, 2.0, 2.0, 3.0, 64.0, 1000.0) * draw(1.0, 1.0, 1024.0) * 2.0**-10
    error[draw(*[0.0] * 200, 1.0) > 0.0] = INF
    floor = torch.minimum(error, draw(0.0, 2.0**-12))
    value = draw(0.0, 1.0, -1.0, 64.0, 4096.0)
    told = torch.stack((owner, draw(1, 1, 1, 0, -1).long(), owner, draw(*range(d)).long()))
    whole = torch.cat((told, level, place))
    real = torch.tensor(random.choice([0.0, 1e-9, 1.0, 1e3], (HINTS + 2 * d + 4, n)))
    cells = Cells(torch.stack((value, error, floor)), whole, real).take(shuffled)
    spent = torch.tensor(random.choice([0, problem.max_nfev - 5 * problem.rule.rows], batch))
    native, tensor = (_state(problem, kind, cells, spent) for kind in (NativeBoxBodies, BoxBodies))
    assert isinstance(native, NativeBoxBodies)
    round = NativeRound(native.kernel, native.cells, native.running, False)
    if round.n_ready:
        NativeLook(round).mark_blind()
    sums = sum_by_owner(cells.sums, cells.whole[0], batch)
    totals, running = Totals.of(sums, False), tensor.running.whole
    verdict = judge(problem.tolerance, totals, running[1], running[3])
    assert torch.equal(round.totals, sums)
    assert torch.equal(round.marked, tensor.mark(verdict, totals, tensor.cells, True))
    counts, others = native.decide(), tensor.decide()
    assert (counts.running, counts.waiting) == (others.running, others.waiting)
    assert torch.equal(native.books.whole, tensor.books.whole)
    if counts.running:
        assert torch.equal(native.running.whole, tensor.running.whole)
        for column in ("owner", "row", "level", "place"):
            assert torch.equal(getattr(native.new[0], column), getattr(tensor.new[0], column))


@pytest.mark.parametrize("seed", range(10))
def test_which_cells_are_blind(seed: int) -> None:
    """At faces, and at points anywhere; and along which axis they are halved."""
    random, batch, d = np.random.default_rng(seed), 3, 3
    problem = problem_of(lambda x: x.sum(-1), torch.zeros(batch, d).double(), torch.ones(d).double(), rule="gm7")
    made = [cells_of(d, 150, random) for _ in range(batch)]
    level, place = (torch.cat([cell[k] for cell in made], 1) for k in (0, 1))
    owner = torch.arange(batch).repeat_interleave(150)
    axis = torch.tensor(random.integers(0, d, len(owner)))
    whole = torch.cat((torch.stack((owner, torch.ones_like(owner), owner, axis)), level, place))
    real = torch.tensor(random.lognormal(0.0, 3.0, (HINTS + 2 * d + 4, len(owner))))
    sums = torch.stack((torch.ones(len(owner)), torch.full((len(owner),), 1e-9), torch.zeros(len(owner)))).double()
    cells = Cells(sums, whole, real)
    native = _state(problem, NativeBoxBodies, cells, torch.zeros(batch, dtype=torch.int64))
    assert isinstance(native, NativeBoxBodies)
    round = NativeRound(native.kernel, native.cells, native.running, False)
    round.target[1] = 1e9  # of which nothing matters
    shallow = round.marked.clone()
    look, ready = NativeLook(round), (round.told & 16) > 0
    look.mark_blind()
    blind = neighbours.find_blind(cells, d, round.target, ready)
    assert torch.equal(round.marked, shallow | blind) and bool(blind.any())
    count, mine = torch.tensor([40, 0, 500]), torch.arange(3)
    point, height = torch.tensor(random.random((d, 540))), torch.tensor(random.lognormal(3.0, 3.0, 540))
    sample = Sample(mine, count, torch.tensor([0.01, 0.5, 0.002]).double(), point, height)
    look.mark_unseen(sample)
    unseen = find_unseen(cells, d, round.target, sample)
    assert torch.equal(round.marked, shallow | blind | unseen) and bool(unseen.any())
    neighbours.halve_widest(cells, d, blind | unseen)
    assert torch.equal(native.cells.whole[3], cells.whole[3]) and not torch.equal(cells.whole[3], axis)
