"""Where a pole is seen, and into which parts a cell is bisected towards it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import quadgrad as qg
from helpers import t64
from quadgrad._core.estimates.null_rules import STEPS, apply_rule
from quadgrad._core.mesh.poles import LEVELS, ellipse, find_parts, is_near, one_pole
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
    blur, unknown = torch.zeros(1, dtype=torch.float64), torch.full((2, 1), math.nan, dtype=torch.float64)
    *_, pole, height, _ = apply_rule(tensors, y, None, get_rule(rule).order_gap, eps, blur, unknown)
    return pole, height


def test_parts_fill_their_cells() -> None:
    place, high = draw_poles(200)
    parts = find_parts(torch.arange(200) * 3, place, high, SHAPE.along)
    assert torch.equal(parts.origin, parts.origin.sort().values)
    assert set(parts.origin.tolist()) == set(range(0, 600, 3))
    begins = parts.low == 0.0
    assert torch.equal(parts.low[1:][~begins[1:]], (parts.low + parts.width)[:-1][~begins[1:]])
    assert torch.equal((parts.low + parts.width)[:-1][begins[1:]], torch.ones(199, dtype=torch.float64))
    assert torch.equal(parts.low / parts.width, (parts.low / parts.width).round())


def test_parts_end_where_the_pole_is_far_enough_and_not_before() -> None:
    place, high = draw_poles(500)
    parts = find_parts(torch.arange(500), place, high, SHAPE.along)
    place, high = place[parts.origin], high[parts.origin]
    middle, smallest = parts.low + 0.5 * parts.width, parts.width == 0.5**LEVELS
    assert not (is_near(place, high, SHAPE.along, middle, parts.width) & ~smallest)[parts.width < 1.0].any()
    parent = (parts.low / (2 * parts.width)).floor() * 2 * parts.width
    near = is_near(place, high, SHAPE.along, parent + parts.width, 2 * parts.width)
    assert (near | (parts.width == 0.5)).all()
    assert parts.width.min() < 1e-5


def test_without_a_pole_cells_are_halved() -> None:
    parts = find_parts(torch.tensor([4]), *one_pole(t64([0.5]), t64([torch.inf]), SHAPE), SHAPE.along)
    assert parts.origin.tolist() == [4, 4] and parts.low.tolist() == [0.0, 0.5]


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


def test_lanes_with_poles_apart_share_a_place_between_them() -> None:
    heights: list[tuple[float, float]] = []

    def share(pole: Tensor, height: Tensor) -> Tensor:
        place, high = one_pole(pole[None], height[None], SHAPE)
        heights.append((float(place), float(high)))
        return pole

    torch.func.vmap(share)(t64([0.25, 0.75, 0.9]), t64([1e-4, 1e-2, torch.inf]))
    place, high = heights[0]
    assert place == 0.5 and high == pytest.approx(1e-4 + 0.25**2 * SHAPE.across)


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
