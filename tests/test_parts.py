"""Where a pole is seen, and into which parts a cell is bisected towards it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import t64
from quadgrad._core.estimates.null_rules import STEPS, UNRESOLVED, null_rule_error, see_pole, weigh
from quadgrad._core.mesh.bisection import PART, Intervals, Refinement, find_parts
from quadgrad._core.mesh.interval import Pieces
from quadgrad._core.mesh.poles import LEVELS, ellipse, middles_near, part_numbers
from quadgrad._core.rules import get_rule

SHAPE = ellipse(1e-8, 21)


def draw_poles(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    place, height = torch.rand((2, n), generator=generator, dtype=torch.float64)
    return 1.5 * place - 0.25, (10.0 ** (-6.5 * height)) ** 2 * SHAPE.across


def look(f, rule: str = "gk21", eps: float = 2.0**-52) -> tuple[Tensor, Tensor]:
    """Return place and height of the pole that is seen in f on [0, 1]."""
    tensors = get_rule(rule).tensors(torch.float64, torch.device("cpu"))
    y = f(tensors.nodes[:, None])
    values = torch.view_as_real(y) if y.is_complex() else y
    sums = weigh(tensors, values.flatten(1), values.flatten(1).abs())
    _, decay, _ = null_rule_error(tensors, sums.nulls, sums.size, eps)
    return see_pole(tensors, y.abs(), eps, decay.amax() >= UNRESOLVED)


def part(place: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parts of cells, all of which are bisected: whose, where they begin, how long they are."""
    middles, near = middles_near(place, high, SHAPE.along, part_numbers(place))
    n, move = len(place), torch.full_like(place, PART, dtype=torch.int64)
    mesh = Intervals(Pieces(t64([0.0]), t64([1.0]), 1, False), get_rule("gk21"), SHAPE)
    moves = Refinement(move, move, mesh.table, middles, near)
    moves.restrict(move > 0, move > 0)
    parent, (low, end) = find_parts(moves, 2 * n, 0, int(near.sum()))
    return parent, low, end - low


def near_to(place: float, high: float, middle: float, width: float) -> bool:
    return (place - middle) * (place - middle) * SHAPE.along + high < 0.25 * width * width


def bisect_naively(place: float, high: float, low: float = 0.0, width: float = 1.0) -> list[tuple[float, float]]:
    smallest = width == 0.5**LEVELS
    if width < 1.0 and (smallest or not near_to(place, high, low + 0.5 * width, width)):
        return [(low, width)]
    half = 0.5 * width
    return [*bisect_naively(place, high, low, half), *bisect_naively(place, high, low + half, half)]


def test_parts_are_those_of_one_bisection_after_another() -> None:
    place, high = draw_poles(100)
    # On the ellipse itself, too: half a width away along the cell, or across it, at any level.
    level = torch.arange(1, 21, dtype=torch.float64)
    edge = 0.5 - 0.5 ** (level + 1) * SHAPE.along**-0.5
    place = torch.cat((place, edge, torch.full_like(level, 0.25), t64([0.0, 0.5, 1.0, -0.2, 1.2])))
    high = torch.cat((high, 0.0 * edge, 0.25 * 0.25**level, torch.zeros(5, dtype=torch.float64)))
    parent, low, width = part(place, high)
    for i, (p, h) in enumerate(zip(place.tolist(), high.tolist(), strict=True)):
        mine = parent == i
        assert list(zip(low[mine].tolist(), width[mine].tolist(), strict=True)) == bisect_naively(p, h)


def test_without_a_pole_cells_are_halved() -> None:
    parent, low, width = part(t64([0.5, 0.3]), t64([torch.inf, torch.inf]))
    assert parent.tolist() == [0, 0, 1, 1] and low.tolist() == [0.0, 0.5] * 2 and width.tolist() == [0.5] * 4


@pytest.mark.parametrize(("rtol", "m"), ((1e-4, 15), (1e-8, 21), (1e-10, 61)))
def test_the_ellipse_is_that_of_the_tolerance(rtol: float, m: int) -> None:
    shape = ellipse(rtol, m)
    long, high = shape.along**-0.5, shape.across**-0.5
    assert math.isclose((long + high) ** -m, rtol, rel_tol=1e-9)
    assert math.isclose(long**2 - high**2, 1.0, rel_tol=1e-9)  # the foci are the cell's ends


def test_the_ellipse_reaches_no_more_than_two_neighbours() -> None:
    for rtol in (0.0, 1e-15, 1e-3, 0.5):
        assert 1.0 < ellipse(rtol, 15).along ** -0.5 <= 1.5


@pytest.mark.parametrize("height", (3e-2, 1e-2, 1e-3, 1e-4, 1e-5))
@pytest.mark.parametrize("place", (0.3, 0.6123, 0.99))
def test_the_pole_of_a_peak_is_seen_where_it_is(place: float, height: float) -> None:
    pole, seen = look(lambda x: 7.0 / ((x - place) ** 2 + height**2))
    assert float(pole) == pytest.approx(place, abs=1e-7)
    assert height <= float(seen) * (1 + 1e-6) and float(seen) <= height * 2 ** (1 / STEPS) * (1 + 1e-6)


@pytest.mark.parametrize("size", (1e-290, 1e-200, 1e200, 1e290))
def test_how_large_f_is_does_not_matter(size: float) -> None:
    f = lambda x: 1e-4 / ((x - 0.3) ** 2 + 1e-8)
    (pole, height), (same, also) = look(f), look(lambda x: size * f(x))
    assert torch.equal(pole, same) and torch.equal(height, also)
    c = t64([0.3, 0.61])
    counts = [qg.quad(lambda x, c, s=s: s / ((x - c) ** 2 + 1e-8), 0.0, 1.0, (c,)).nfev for s in (1.0, size)]
    assert torch.equal(*counts)


def test_the_pole_of_a_complex_function_is_that_of_its_modulus() -> None:
    f = lambda x: 1e-4 / ((x - 0.3) ** 2 + 1e-8)
    (pole, height), (same, also) = look(f), look(lambda x: f(x) * torch.exp(40j * x))
    assert torch.allclose(pole, same, atol=1e-6) and float(also) == pytest.approx(float(height), rel=0.1)


def test_a_pole_beside_the_cell_is_seen_from_it() -> None:
    pole, height = look(lambda x: 1.0 / ((x + 0.002) ** 2 + 0.001**2))
    assert float(pole) == pytest.approx(-0.002, abs=1e-7) and float(height) < 0.0011


@pytest.mark.parametrize("other", (0.003, 0.03, 0.1))
def test_a_pole_beside_another_is_trusted_no_more_than_its_place_is_off(other: float) -> None:
    pole, height = look(lambda x: 1e-3 / ((x - 0.4) ** 2 + 1e-6) + other / ((x - 0.7) ** 2 + 0.09))
    assert 1e-6 < abs(float(pole) - 0.4) <= float(height) < 0.1


@pytest.mark.parametrize(
    "f",
    (
        lambda x: torch.exp(-60.0 * x),
        lambda x: torch.cos(40.0 * x),
        lambda x: 1.0 + (x - 0.3).abs(),
        lambda x: x**0.5,
        lambda x: 1.0 / (x - 0.5) * 0.0,
        lambda x: torch.full_like(x, math.nan),
    ),
    ids=("exponential", "wave", "kink", "root", "nothing", "NaN"),
)
def test_where_there_is_none_no_pole_is_seen_nearby(f) -> None:
    _, height = look(f)
    assert not float(height) < 0.03


def test_smooth_cells_are_not_looked_at() -> None:
    assert float(look(lambda x: 1.0 / ((x - 0.5) ** 2 + 1.0))[1]) == math.inf


def test_a_peak_costs_what_its_cells_need() -> None:
    """Of all evaluations at most a fifth is for cells that are parted."""
    c = torch.linspace(0.1, 0.9, 100, dtype=torch.float64)
    result = qg.quad(lambda x, c: 1e-4 / ((x - c) ** 2 + 1e-8), 0.0, 1.0, (c,), rtol=1e-8)
    kept = 21 * len(result.plan) / float(result.nfev.sum())
    assert result.converged.all() and kept >= 0.8
    exact = torch.atan((1 - c) / 1e-4) + torch.atan(c / 1e-4)
    assert ((result.value - exact).abs() <= result.error).all()


@pytest.mark.parametrize("budget", (110, 200, 400))
def test_where_the_budget_is_too_small_for_the_pole_cells_are_halved(budget: int) -> None:
    c = t64([0.3, 0.5123])
    f = lambda x, c: 1e-5 / ((x - c) ** 2 + 1e-10)
    result = qg.quad(f, 0.0, 1.0, (c,), rtol=1e-8, max_nfev=budget, on_failure="ignore")
    assert (result.status == qg.Status.MAX_NFEV).all()
    assert (result.nfev <= budget).all() and (
        result.nfev > budget - 2 * 2 * 22
    ).all()  # two cells at most are halved
